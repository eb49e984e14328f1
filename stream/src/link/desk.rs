//! What the head has to tell the scope, and what it remembers of tiles under way. Outlives connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;

use tokio::sync::Notify;

use super::shared::lock;
use super::wire::ToScope;
use crate::ids::{MfovId, TileKey};
use crate::ledger::ContentHash;

/// See the module.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// One writer waits on it.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<ToScope>,
    durable: BTreeSet<MfovId>,
    ended: bool,
    /// Number of the connection that may take messages: one that is going down must not take what the next one needs.
    epoch: u64,
    /// mFOVs that are settled in the ledger: some ten bytes each.
    settled: BTreeSet<MfovId>,
    /// Tiles that already went into the edge, of mFOVs that are not settled yet.
    passed: BTreeMap<MfovId, BTreeSet<TileKey>>,
    /// Tiles that came again and wait for their mFOV to be settled, to be compared with what was kept.
    late: BTreeMap<MfovId, Vec<(TileKey, ContentHash)>>,
}

impl Desk {
    pub(super) fn new(settled: Vec<MfovId>) -> Self {
        let state = State { settled: settled.into_iter().collect(), ..State::default() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// A new connection: what the scope need not send. Messages for the old one are void.
    pub(super) fn connect(&self) -> (u64, Vec<MfovId>) {
        let mut state = lock(&self.state);
        state.epoch += 1;
        state.messages.clear();
        state.ended = false;
        // Receipts stay queued: one that is both in the answer and in a message does no harm, and repeated tiles that wait
        // for it are counted when it is written.
        (state.epoch, state.settled.iter().copied().collect())
    }

    pub(super) fn say(&self, message: ToScope) {
        lock(&self.state).messages.push_back(message);
        self.changed.notify_one();
    }

    pub(super) fn settle(&self, mfov: MfovId) {
        let mut state = lock(&self.state);
        state.settled.insert(mfov);
        state.passed.remove(&mfov);
        state.durable.insert(mfov);
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_one();
    }

    /// Whether the scope has said that it is done.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.state).ended
    }

    /// The next message for this connection; waits for one. `None` once there is a newer connection.
    pub(super) async fn next(&self, epoch: u64) -> Option<ToScope> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.epoch != epoch {
                    // The wake-up was meant for the newer one.
                    self.changed.notify_one();
                    return None;
                }
                if let Some(message) = state.next() {
                    return Some(message);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Whether a tile is still wanted. [`Self::pass`] has the last word.
    pub(super) fn wants(&self, key: TileKey) -> bool {
        let state = lock(&self.state);
        !state.settled.contains(&key.mfov) && !state.passed.get(&key.mfov).is_some_and(|p| p.contains(&key))
    }

    /// Passes a tile on with `send` if it was not passed before; under one lock, so that of two connections one does.
    pub(super) fn pass<E>(&self, key: TileKey, send: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        let mut state = lock(&self.state);
        if state.settled.contains(&key.mfov) || !state.passed.entry(key.mfov).or_default().insert(key) {
            return Ok(false);
        }
        send().map(|()| true)
    }

    pub(super) fn is_settled(&self, mfov: MfovId) -> bool {
        lock(&self.state).settled.contains(&mfov)
    }

    /// A tile came again after its mFOV was sent. Whether it can be compared now; otherwise it is kept for later.
    pub(super) fn came_again(&self, key: TileKey, hash: ContentHash) -> bool {
        let mut state = lock(&self.state);
        if state.settled.contains(&key.mfov) {
            return true;
        }
        state.late.entry(key.mfov).or_default().push((key, hash));
        false
    }

    pub(super) fn take_late(&self, mfov: MfovId) -> Vec<(TileKey, ContentHash)> {
        lock(&self.state).late.remove(&mfov).unwrap_or_default()
    }
}

impl State {
    fn next(&mut self) -> Option<ToScope> {
        let message = self.messages.pop_front();
        let message = message.or_else(|| self.durable.pop_first().map(ToScope::Durable));
        message.or_else(|| self.ended.then_some(ToScope::Ended))
    }
}
