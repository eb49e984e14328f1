//! What the head has to tell the scope, and what it remembers of tiles under way. Outlives connections.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, VecDeque};
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
    /// mFOVs that are read now, or of which tiles went on and that are not settled yet. All others are asked of the ledger.
    under_way: BTreeMap<MfovId, UnderWay>,
    /// Tiles that came again and wait for their mFOV to be settled, to be compared with what was kept.
    late: BTreeMap<MfovId, Vec<(TileKey, ContentHash)>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// Streams that are being read.
    streams: u32,
    /// Tiles that already went into the edge.
    passed: BTreeSet<TileKey>,
    settled: bool,
}

/// A stream of an mFOV that is being read; its end is noted when this is dropped.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    desk: &'a Desk,
    mfov: MfovId,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), changed: Notify::new() }
    }

    /// A new connection. Messages for the old one are void, but for receipts: they are still true, and repeated tiles that
    /// wait for one are counted when it is written.
    pub(super) fn connect(&self) -> u64 {
        let mut state = lock(&self.state);
        state.epoch += 1;
        state.messages.clear();
        state.ended = false;
        state.epoch
    }

    /// A stream of an mFOV begins. `settled` asks the ledger; under the lock, so that no settling falls between the two.
    pub(super) fn begin<E>(&self, mfov: MfovId, settled: impl FnOnce() -> Result<bool, E>) -> Result<Reading<'_>, E> {
        let mut state = lock(&self.state);
        let under_way = match state.under_way.entry(mfov) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(UnderWay { settled: settled()?, ..UnderWay::default() }),
        };
        under_way.streams += 1;
        drop(state);
        Ok(Reading { desk: self, mfov })
    }

    pub(super) fn say(&self, message: ToScope) {
        lock(&self.state).messages.push_back(message);
        self.changed.notify_one();
    }

    pub(super) fn settle(&self, mfov: MfovId) {
        let mut state = lock(&self.state);
        if let Some(under_way) = state.under_way.get_mut(&mfov) {
            under_way.settled = true;
            under_way.passed.clear();
            if under_way.streams == 0 {
                state.under_way.remove(&mfov);
            }
        }
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
        lock(&self.state).under_way.get(&key.mfov).is_some_and(|u| !u.settled && !u.passed.contains(&key))
    }

    /// Passes a tile on with `send` if it was not passed before; under one lock, so that of two streams one does.
    pub(super) fn pass<E>(&self, key: TileKey, send: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        let mut state = lock(&self.state);
        let wanted = state.under_way.get_mut(&key.mfov).filter(|u| !u.settled);
        if !wanted.is_some_and(|u| u.passed.insert(key)) {
            return Ok(false);
        }
        send().map(|()| true)
    }

    /// Whether an mFOV that is being read is settled.
    pub(super) fn is_settled(&self, mfov: MfovId) -> bool {
        lock(&self.state).under_way.get(&mfov).is_some_and(|u| u.settled)
    }

    /// A tile came again after its mFOV was sent. Whether it can be compared now; otherwise it is kept for later. `settled`
    /// asks the ledger.
    pub(super) fn came_again<E>(
        &self,
        key: TileKey,
        hash: ContentHash,
        settled: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut state = lock(&self.state);
        let settled = settled()?;
        if !settled {
            state.late.entry(key.mfov).or_default().push((key, hash));
        }
        Ok(settled)
    }

    pub(super) fn take_late(&self, mfov: MfovId) -> Vec<(TileKey, ContentHash)> {
        lock(&self.state).late.remove(&mfov).unwrap_or_default()
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.desk.state);
        if let Some(under_way) = state.under_way.get_mut(&self.mfov) {
            under_way.streams -= 1;
            if under_way.streams == 0 && (under_way.settled || under_way.passed.is_empty()) {
                state.under_way.remove(&self.mfov);
            }
        }
    }
}

impl State {
    fn next(&mut self) -> Option<ToScope> {
        let message = self.messages.pop_front();
        let message = message.or_else(|| self.durable.pop_first().map(ToScope::Durable));
        message.or_else(|| self.ended.then_some(ToScope::Ended))
    }
}
