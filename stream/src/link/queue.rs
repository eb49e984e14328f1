//! What waits at the scope, and which of it comes next: promises, notes, mFOVs by the order in which they ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::LinkError;
use super::scope::ScopeSummary;
use super::status::Asked;
use super::tile_spool::Shipment;
use super::wire::{Step, ToHead};
use crate::ids::{MfovId, SectionId};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) promises: BTreeMap<SectionId, Promise>,
    /// Sections of which everything has its receipt: the newest, because a receipt may come twice.
    pub(super) past: VecDeque<SectionId>,
    pub(super) notes: VecDeque<ToHead>,
    pub(super) seen: BTreeSet<MfovId>,
    pub(super) kept: BTreeMap<MfovId, Held>,
    /// In the order in which they ended.
    pub(super) order: BTreeMap<u64, MfovId>,
    /// Of these, what is to be sent, and what the head was not told of.
    pub(super) queue: BTreeSet<u64>,
    pub(super) untold: BTreeSet<u64>,
    pub(super) next: u64,
    /// mFOVs that the head had already.
    pub(super) news: Vec<MfovId>,
    pub(super) asked: Asked,
    /// Number of the connection that may take from here.
    pub(super) epoch: u64,
    pub(super) ending: bool,
    pub(super) said_end: bool,
    pub(super) done: bool,
    pub(super) failure: Option<LinkError>,
    pub(super) summary: ScopeSummary,
}

/// A section, until the head has entered it and every mFOV of it has its receipt. Its plan is in the spool.
#[derive(Debug)]
pub(super) struct Promise {
    pub(super) open: BTreeSet<MfovId>,
    pub(super) told: bool,
    pub(super) answered: bool,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) shipment: Shipment,
    pub(super) at: u64,
    pub(super) since: Instant,
    pub(super) tries: u32,
    pub(super) checked: bool,
}

/// An mFOV to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) shipment: Shipment,
    /// Its number in the order in which mFOVs ended.
    pub(super) at: u64,
    /// Whether each tile is checked before it goes out: it came damaged before.
    pub(super) checked: bool,
}

/// What is said next.
#[derive(Debug)]
pub(super) enum Say {
    /// This section's plan.
    Plan(SectionId),
    /// This.
    Message(ToHead),
}

/// Notes that wait at most: an instrument that gives ever the same or foreign tiles must not fill the memory.
pub(super) const NOTES: usize = 10_000;
/// mFOVs in one message.
const BATCH: usize = 1000;
/// Sections that are remembered when they are over.
pub(super) const PAST: usize = 64;

impl State {
    pub(super) fn next_message(&mut self) -> Option<Say> {
        // Oldest data first: the section of the first mFOV in the queue, then any.
        let first = self.queue.first().and_then(|at| Some(self.order.get(at)?.section));
        let untold = |p: &Promise| !p.told;
        let section = first.filter(|s| self.promises.get(s).is_some_and(untold));
        let section = section.or_else(|| self.promises.iter().find(|(_, p)| untold(p)).map(|(s, _)| *s));
        if let Some(section) = section {
            self.promises.get_mut(&section)?.told = true;
            return Some(Say::Plan(section));
        }
        if let Some(note) = self.notes.pop_front() {
            return Some(Say::Message(note));
        }
        if !self.seen.is_empty() {
            let mfovs: Vec<_> = std::mem::take(&mut self.seen).into_iter().collect();
            return Some(Say::Message(ToHead::Reached { step: Step::Seen, mfovs }));
        }
        let mut mfovs = Vec::new();
        while mfovs.len() < BATCH
            && let Some(at) = self.untold.pop_first()
        {
            mfovs.extend(self.order.get(&at).copied());
        }
        if !mfovs.is_empty() {
            return Some(Say::Message(ToHead::Reached { step: Step::Spooled, mfovs }));
        }
        let end = self.ending && !self.said_end && self.kept.is_empty() && self.promises.is_empty();
        self.said_end |= end;
        end.then_some(Say::Message(ToHead::End))
    }

    /// The oldest of the queue whose section the head has entered.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        let ready = |m: &MfovId| self.promises.get(&m.section).is_none_or(|p| p.answered);
        let at = self.queue.iter().copied().find(|at| self.order.get(at).is_some_and(ready))?;
        self.queue.remove(&at);
        let held = self.kept.get(self.order.get(&at)?)?;
        Some(Job { shipment: held.shipment, at, checked: held.checked })
    }
}
