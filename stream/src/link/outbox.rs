//! What the scope still has to say, send and keep. Outlives connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};

use super::scope::{ScopeSummary, TRIES};
use super::shared::lock;
use super::shipment::{Frame, Shipment};
use super::wire::ToHead;
use super::{End, LinkError};
use crate::ids::{MfovId, SectionId};
use crate::plan::SectionPlan;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// One task of the newest connection waits on each.
    messages: Notify,
    shipments: Notify,
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    promises: BTreeMap<SectionId, Promise>,
    notes: VecDeque<ToHead>,
    kept: BTreeMap<MfovId, Arc<Shipment>>,
    queue: VecDeque<MfovId>,
    /// How often a damaged mFOV was sent.
    tries: BTreeMap<MfovId, u32>,
    /// Number of the connection that may take from here.
    epoch: u64,
    ending: bool,
    said_end: bool,
    done: bool,
    failure: Option<LinkError>,
    summary: ScopeSummary,
}

/// A section's plan, kept until the head has it and every mFOV has its receipt.
#[derive(Debug)]
struct Promise {
    plan: Arc<SectionPlan>,
    open: BTreeSet<MfovId>,
    told: bool,
}

impl Outbox {
    pub(super) fn announce(&self, plan: Arc<SectionPlan>, durable: &BTreeSet<MfovId>) {
        let open = plan.mfovs.iter().filter(|m| !m.tiles.is_empty()).map(|m| m.id);
        let open = open.filter(|id| !durable.contains(id)).collect();
        lock(&self.state).promises.insert(plan.section, Promise { plan, open, told: false });
        self.messages.notify_one();
    }

    pub(super) fn note(&self, message: ToHead) {
        lock(&self.state).notes.push_back(message);
        self.messages.notify_one();
    }

    pub(super) fn ship(&self, shipment: Shipment) {
        let mut state = lock(&self.state);
        let mfov = shipment.mfov;
        state.kept.insert(mfov, Arc::new(shipment));
        state.queue.push_back(mfov);
        drop(state);
        self.shipments.notify_one();
    }

    /// A new connection: what the head has is forgotten, everything else is told and sent again, in order.
    pub(super) fn connect(&self, durable: &[MfovId]) -> u64 {
        durable.iter().for_each(|m| self.receipt(*m));
        let mut state = lock(&self.state);
        let first = state.epoch == 0;
        state.epoch += 1;
        state.promises.values_mut().for_each(|p| p.told = false);
        state.said_end = false;
        if !first {
            let waiting: BTreeSet<MfovId> = state.queue.iter().copied().collect();
            state.summary.sent_again += state.kept.keys().filter(|m| !waiting.contains(m)).count() as u64;
        }
        state.queue = state.kept.keys().copied().collect();
        let epoch = state.epoch;
        drop(state);
        self.messages.notify_one();
        self.shipments.notify_one();
        epoch
    }

    /// The head has it: its bytes are given back.
    pub(super) fn receipt(&self, mfov: MfovId) {
        let mut state = lock(&self.state);
        if let Some(promise) = state.promises.get_mut(&mfov.section) {
            promise.open.remove(&mfov);
            if promise.told && promise.open.is_empty() {
                state.promises.remove(&mfov.section);
            }
        }
        state.tries.remove(&mfov);
        let kept = state.kept.remove(&mfov);
        if let Some(shipment) = &kept {
            state.summary.mfovs += 1;
            for frame in &shipment.frames {
                match frame {
                    Frame::Tile { pixels, .. } => {
                        state.summary.tiles += 1;
                        state.summary.bytes += pixels.data().len() as u64;
                    }
                    Frame::Lost { .. } => state.summary.losses += 1,
                    Frame::Again { .. } => {}
                }
            }
        }
        drop(state);
        // Dropped outside the lock: credits wake their waiters.
        drop(kept);
        self.messages.notify_one();
    }

    /// The head got it damaged.
    pub(super) fn again(&self, mfov: MfovId) -> Result<(), End> {
        let mut state = lock(&self.state);
        if !state.kept.contains_key(&mfov) {
            return Ok(());
        }
        let tries = state.tries.entry(mfov).or_insert(1);
        *tries += 1;
        if *tries > TRIES {
            return Err(End::Damaged(mfov));
        }
        state.summary.sent_again += 1;
        state.queue.push_back(mfov);
        drop(state);
        self.shipments.notify_one();
        Ok(())
    }

    pub(super) fn end(&self) {
        lock(&self.state).ending = true;
        self.messages.notify_one();
    }

    /// The next thing to say on this connection; `None` once there is a newer one.
    pub(super) async fn next_message(&self, epoch: u64) -> Option<ToHead> {
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
    pub(super) async fn next_shipment(&self, epoch: u64) -> Option<Arc<Shipment>> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.epoch != epoch {
                    self.shipments.notify_one();
                    return None;
                }
                while let Some(mfov) = state.queue.pop_front() {
                    if let Some(shipment) = state.kept.get(&mfov) {
                        return Some(shipment.clone());
                    }
                }
            }
            self.shipments.notified().await;
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        lock(&self.state).kept.len()
    }

    pub(super) fn summary(&self) -> ScopeSummary {
        lock(&self.state).summary.clone()
    }

    pub(super) fn count_reconnect(&self) {
        lock(&self.state).summary.reconnects += 1;
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

    /// The link has ended, well or not. What it kept is given back.
    pub(super) fn over(&self, failure: Option<LinkError>) {
        let mut state = lock(&self.state);
        state.failure = failure;
        let kept = std::mem::take(&mut state.kept);
        drop(state);
        drop(kept);
        self.over.send_replace(true);
    }

    pub(super) async fn wait_over(&self) {
        // The sender lives in self: waiting cannot fail.
        self.over.subscribe().wait_for(|over| *over).await.ok();
    }

    pub(super) fn take_failure(&self) -> Option<LinkError> {
        lock(&self.state).failure.take()
    }
}

impl State {
    fn next_message(&mut self) -> Option<ToHead> {
        if let Some(promise) = self.promises.values_mut().find(|p| !p.told) {
            promise.told = true;
            let (section, whole) = (promise.plan.section, promise.open.is_empty());
            let message = ToHead::Section(promise.plan.clone());
            if whole {
                self.promises.remove(&section);
            }
            return Some(message);
        }
        if let Some(note) = self.notes.pop_front() {
            return Some(note);
        }
        let end = self.ending && !self.said_end && self.kept.is_empty();
        self.said_end |= end;
        end.then_some(ToHead::End)
    }
}
