//! What the scope still has to say and send: ids and small records; the pixels are in the spool. Outlives connections.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::queue::{Held, Job, NOTES, PAST, Promise, Say, State};
use super::scope::{ScopeSummary, TRIES};
use super::sending::Buffers;
use super::shared::lock;
use super::status::{Asked, ScopeStatus};
use super::tile_spool::{Shipment, TileSpool};
use super::wire::ToHead;
use super::{End, LinkError};
use crate::ids::{MfovId, SectionId, TileKey};
use crate::plan::SectionPlan;

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) tiles: TileSpool,
    pub(super) buffers: Buffers,
    state: Mutex<State>,
    /// One task of the newest connection waits on each.
    messages: Notify,
    shipments: Notify,
    /// Whoever admits waits on it.
    learned: Notify,
    over: watch::Sender<bool>,
    connected: watch::Sender<bool>,
    /// Counts answers and ends of connections.
    answers: watch::Sender<u64>,
    began: Instant,
    /// Milliseconds since then, of the last byte that went out or receipt that came in.
    moved: AtomicU64,
}

impl Outbox {
    pub(super) fn new(tiles: TileSpool, buffers: Buffers) -> Self {
        Self {
            tiles,
            buffers,
            state: Mutex::default(),
            messages: Notify::new(),
            shipments: Notify::new(),
            learned: Notify::new(),
            over: watch::Sender::new(false),
            connected: watch::Sender::new(false),
            answers: watch::Sender::new(0),
            began: Instant::now(),
            moved: AtomicU64::new(0),
        }
    }

    /// A section's promise, or its next version; not told before [`Self::announced`], so that its plan can be put into the
    /// spool between the two without being taken for the old one.
    pub(super) fn announce(&self, plan: &SectionPlan) {
        let open = plan.mfovs.iter().filter(|m| !m.tiles.is_empty()).map(|m| m.id).collect();
        lock(&self.state).promises.insert(plan.section, Promise { open, told: true, answered: false });
    }

    /// The section's plan is in the spool.
    pub(super) fn announced(&self, section: SectionId) {
        if let Some(promise) = lock(&self.state).promises.get_mut(&section) {
            (promise.told, promise.answered) = (false, false);
        }
        self.messages.notify_one();
    }

    pub(super) fn note(&self, message: ToHead) {
        let mut state = lock(&self.state);
        if state.notes.len() < NOTES {
            state.notes.push_back(message);
        } else {
            tracing::warn!(?message, "too many notes wait for the head; this one is not told");
            state.summary.untold += 1;
        }
        drop(state);
        self.messages.notify_one();
    }

    pub(super) fn seen(&self, mfov: MfovId) {
        lock(&self.state).seen.insert(mfov);
        self.messages.notify_one();
    }

    pub(super) fn ship(&self, shipment: Shipment) -> Result<(), End> {
        let mfov = shipment.mfov;
        let mut state = lock(&self.state);
        state.seen.remove(&mfov);
        if state.promises.get(&mfov.section).is_some_and(|p| p.answered && !p.open.contains(&mfov)) {
            drop(state);
            // The head had it before it was whole here.
            self.tiles.release(mfov)?;
            return Ok(());
        }
        let at = state.next;
        state.next += 1;
        state.order.insert(at, mfov);
        state.queue.insert(at);
        state.untold.insert(at);
        state.kept.insert(mfov, Held { shipment, at, since: Instant::now(), tries: 1, checked: false });
        drop(state);
        self.shipments.notify_one();
        self.messages.notify_one();
        Ok(())
    }

    /// A new connection: everything that has no receipt is told and sent again, in order.
    pub(super) fn connect(&self) -> u64 {
        let mut state = lock(&self.state);
        let first = state.epoch == 0;
        state.epoch += 1;
        state.promises.values_mut().for_each(|p| (p.told, p.answered) = (false, false));
        state.said_end = false;
        if !first {
            state.summary.sent_again += (state.order.len() - state.queue.len()) as u64;
        }
        state.queue = state.order.keys().copied().collect();
        state.untold = state.queue.clone();
        let epoch = state.epoch;
        drop(state);
        self.moved();
        self.connected.send_replace(true);
        self.messages.notify_one();
        self.shipments.notify_one();
        epoch
    }

    pub(super) fn disconnect(&self) {
        self.connected.send_replace(false);
        self.answers.send_modify(|n| *n += 1);
    }

    /// The head has entered a section and says which of it is durable.
    pub(super) fn answered(&self, section: SectionId, durable: &[MfovId]) -> Result<(), End> {
        if !lock(&self.state).promises.get(&section).is_some_and(|p| p.told) {
            return Ok(());
        }
        // Before others of the section may go: what the head has is not sent.
        durable.iter().try_for_each(|mfov| self.settle(*mfov))?;
        if let Some(promise) = lock(&self.state).promises.get_mut(&section) {
            promise.answered = true;
        }
        self.forget_if_over(section)?;
        self.answers.send_modify(|n| *n += 1);
        self.moved();
        self.shipments.notify_one();
        Ok(())
    }

    /// The head has an mFOV: its room in the spool is given back.
    pub(super) fn receipt(&self, mfov: MfovId) -> Result<(), End> {
        let mut state = lock(&self.state);
        let known = state.past.contains(&mfov.section) || state.promises.contains_key(&mfov.section);
        if !known {
            tracing::warn!(%mfov, "the head sent a receipt for an mFOV that was never promised here; nothing is given back for it");
            state.summary.strange_receipts += 1;
            return Ok(());
        }
        drop(state);
        self.settle(mfov)?;
        self.forget_if_over(mfov.section)
    }

    fn settle(&self, mfov: MfovId) -> Result<(), End> {
        let mut state = lock(&self.state);
        let promise = state.promises.get_mut(&mfov.section);
        let was_open = promise.is_some_and(|p| p.open.remove(&mfov));
        let held = state.kept.remove(&mfov);
        if let Some(held) = &held {
            state.order.remove(&held.at);
            state.queue.remove(&held.at);
            state.untold.remove(&held.at);
            state.summary.mfovs += 1;
            state.summary.tiles += u64::from(held.shipment.tiles);
            state.summary.bytes += held.shipment.bytes;
            state.summary.losses += u64::from(held.shipment.losses);
        } else if was_open {
            state.news.push(mfov);
            self.learned.notify_one();
        }
        drop(state);
        if held.is_some() {
            self.moved();
            self.tiles.release(mfov)?;
        }
        self.messages.notify_one();
        Ok(())
    }

    fn forget_if_over(&self, section: SectionId) -> Result<(), End> {
        let mut state = lock(&self.state);
        if state.promises.get(&section).is_some_and(|p| p.answered && p.open.is_empty()) {
            state.promises.remove(&section);
            state.past.push_back(section);
            if state.past.len() > PAST {
                state.past.pop_front();
            }
            // Under the lock: a next version must not be announced in between.
            self.tiles.forget_plan(section)?;
        }
        drop(state);
        self.messages.notify_one();
        Ok(())
    }

    /// The head got it damaged, or the disk gave it damaged: again, and checked.
    pub(super) fn again(&self, mfov: MfovId) -> Result<(), End> {
        let mut state = lock(&self.state);
        let Some(held) = state.kept.get_mut(&mfov) else { return Ok(()) };
        held.tries += 1;
        held.checked = true;
        if held.tries > TRIES {
            return Err(End::Damaged(mfov));
        }
        let at = held.at;
        state.summary.sent_again += 1;
        state.queue.insert(at);
        drop(state);
        self.shipments.notify_one();
        Ok(())
    }

    /// A tile of it is damaged at rest: a loss now.
    pub(super) fn found_damaged(&self, key: TileKey, bytes: u64) {
        let mut state = lock(&self.state);
        state.summary.damaged_at_rest += 1;
        if let Some(held) = state.kept.get_mut(&key.mfov) {
            held.shipment.tiles = held.shipment.tiles.saturating_sub(1);
            held.shipment.losses += 1;
            held.shipment.bytes = held.shipment.bytes.saturating_sub(bytes);
        }
    }

    pub(super) fn keeps(&self, mfov: MfovId) -> bool {
        lock(&self.state).kept.contains_key(&mfov)
    }

    pub(super) fn end(&self) {
        lock(&self.state).ending = true;
        self.messages.notify_one();
    }

    /// The next thing to say on this connection; `None` once there is a newer one. Cancel-safe.
    pub(super) async fn next_message(&self, epoch: u64) -> Option<Say> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.epoch != epoch {
                    self.messages.notify_one();
                    return None;
                }
                if let Some(message) = state.next_message() {
                    return Some(message);
                }
            }
            self.messages.notified().await;
        }
    }

    /// The next mFOV to send on this connection; `None` once there is a newer one. Cancel-safe.
    pub(super) async fn next_shipment(&self, epoch: u64) -> Option<Job> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.epoch != epoch {
                    self.shipments.notify_one();
                    return None;
                }
                if let Some(job) = state.next_job() {
                    return Some(job);
                }
            }
            self.shipments.notified().await;
        }
    }

    /// mFOVs of which the head has said that it has them, although they were not sent; waits for some.
    pub(super) async fn news(&self) -> Vec<MfovId> {
        loop {
            let news = std::mem::take(&mut lock(&self.state).news);
            if !news.is_empty() {
                return news;
            }
            self.learned.notified().await;
        }
    }

    /// Sections with mFOVs that are neither durable nor in the spool, and those mFOVs.
    pub(super) fn unfinished(&self) -> Vec<(SectionId, BTreeSet<MfovId>)> {
        let state = lock(&self.state);
        let missing = |p: &Promise| p.open.iter().copied().filter(|m| !state.kept.contains_key(m)).collect();
        let sections = state.promises.iter().map(|(s, p)| (*s, missing(p)));
        sections.filter(|(_, m): &(_, BTreeSet<_>)| !m.is_empty()).collect()
    }

    pub(super) fn outstanding(&self) -> usize {
        lock(&self.state).kept.len()
    }

    /// Whether the head owes us an answer or a receipt.
    pub(super) fn is_waiting(&self) -> bool {
        let state = lock(&self.state);
        !state.kept.is_empty() || state.promises.values().any(|p| p.told && !p.answered)
    }

    pub(super) fn ask(&self, asked: Asked) {
        lock(&self.state).asked = asked;
    }

    pub(super) fn status(&self) -> ScopeStatus {
        let (went_in, came_out) = self.tiles.spool().totals();
        let state = lock(&self.state);
        let oldest = state.order.values().next().and_then(|m| state.kept.get(m));
        ScopeStatus {
            spool_held: self.tiles.spool().held().0,
            spool_capacity: self.tiles.spool().capacity().0,
            in_bytes_total: went_in.0,
            out_bytes_total: came_out.0,
            held: state.asked.held,
            holdable: state.asked.holdable,
            slowable: state.asked.slowable,
            pace: if state.asked.held { 0.0 } else { state.asked.pace },
            oldest_ms: oldest.map_or(0, |h| h.since.elapsed().as_millis() as u64),
        }
    }

    pub(super) fn summary(&self) -> ScopeSummary {
        lock(&self.state).summary.clone()
    }

    pub(super) fn count(&self, what: impl FnOnce(&mut ScopeSummary)) {
        what(&mut lock(&self.state).summary);
    }

    /// A byte went out, or something came in.
    pub(super) fn moved(&self) {
        self.moved.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    pub(super) fn moved_before(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Relaxed)))
    }

    pub(super) fn was_sent(&self, mfov: MfovId) {
        tracing::debug!(%mfov, "sent");
    }

    /// The head's last word is here.
    pub(super) fn done(&self) {
        lock(&self.state).done = true;
    }

    pub(super) fn is_done(&self) -> bool {
        lock(&self.state).done
    }

    pub(super) fn has_said_end(&self) -> bool {
        lock(&self.state).said_end
    }

    /// The link has ended, well or not.
    pub(super) fn over(&self, failure: Option<LinkError>) {
        lock(&self.state).failure = failure;
        self.over.send_replace(true);
    }

    pub(super) async fn wait_over(&self) {
        // The sender lives in self: waiting cannot fail.
        self.over.subscribe().wait_for(|over| *over).await.ok();
    }

    pub(super) async fn wait_connected(&self) {
        self.connected.subscribe().wait_for(|connected| *connected).await.ok();
    }

    /// Waits until the head has answered for a section, or is gone.
    pub(super) async fn wait_answered(&self, section: SectionId) {
        let waits = || {
            let state = lock(&self.state);
            *self.connected.borrow() && state.promises.get(&section).is_some_and(|p| !p.answered)
        };
        self.answers.subscribe().wait_for(|_| !waits()).await.ok();
    }

    pub(super) fn take_failure(&self) -> Option<LinkError> {
        lock(&self.state).failure.take()
    }
}
