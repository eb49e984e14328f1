//! In which order a scope says what it has: shuffled, doubled, late, lost, skipped.
//!
//! A late tile is held back for some stage stops; the end of its own mFOV waits for it, and the end of its section for the
//! mFOV. So every tile promised is told of before its mFOV ends, and mFOVs interleave only where tiles are late.
//!
//! Retakes that come before their section ends are promised before its last stage stop ends; later ones once it has ended, as
//! stage stops between two sections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kinesin_stream::ids::{BeamId, MfovId, SectionId, SerialIndex, TileKey};
use kinesin_stream::plan::{MfovPlan, SectionPlan};
use kinesin_stream::tile::Reason;

use super::draw::{Draws, What, Whose};
use super::scene::Scene;

/// One thing to say; a tile still without its pixels.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    SectionBegins(Arc<SectionPlan>),
    SectionAmended(Arc<SectionPlan>),
    MfovBegins(MfovId),
    Tile(TileKey),
    Lost(TileKey, Reason),
    MfovEnds(MfovId),
    SectionEnds(SectionId),
}

/// A promise that will be made again.
struct Later {
    /// Before the section's last stop ends; else `due`.
    before_end: bool,
    /// As soon as so many sections have begun and all their stops are over.
    due: u32,
    plan: Arc<SectionPlan>,
    stops: Vec<MfovPlan>,
}

/// Says what happens stage stop by stage stop.
pub(crate) struct Transport {
    scene: Arc<Scene>,
    /// Sections not begun, in the order of imaging.
    sections: VecDeque<SerialIndex>,
    /// mFOVs of the begun section that have not begun.
    mfovs: VecDeque<MfovPlan>,
    missing: bool,
    /// Stage stops so far.
    stops: u64,
    /// Late tiles by the stop at which they come.
    late: BTreeMap<u64, Vec<TileKey>>,
    /// Late tiles still to come, of each mFOV that cannot end yet.
    waiting: BTreeMap<MfovId, usize>,
    /// mFOVs still to end, of each section begun.
    open: BTreeMap<SectionId, usize>,
    /// Sections begun so far.
    begun: u32,
    /// Promises still to be made of sections begun, in order.
    amendments: VecDeque<Later>,
    skipped: BTreeSet<MfovId>,
}

impl Transport {
    pub(crate) fn new(scene: Arc<Scene>) -> Self {
        Self {
            sections: scene.order().into(),
            scene,
            mfovs: VecDeque::new(),
            missing: false,
            stops: 0,
            late: BTreeMap::new(),
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            begun: 0,
            amendments: VecDeque::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Leaves out the tiles of an mFOV that has not begun.
    pub(crate) fn skip(&mut self, mfov: MfovId) {
        self.skipped.insert(mfov);
    }

    /// Whether no stage stop is left; late tiles may be.
    pub(crate) fn at_last_stop(&self) -> bool {
        self.mfovs.is_empty() && self.sections.is_empty() && self.amendments.is_empty()
    }

    /// What is said at the next stage stop, and after the last one whatever is still late; empty when all is said.
    pub(crate) fn next_stop(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        if self.mfovs.is_empty() {
            self.next_promise(&mut words);
        }
        match self.mfovs.pop_front() {
            Some(mfov) => self.stop(mfov, &mut words),
            None => {
                let late = std::mem::take(&mut self.late);
                for key in late.into_values().flatten() {
                    self.say(key, &mut words);
                    self.count_late(key.mfov, &mut words);
                }
            }
        }
        words
    }

    /// Promises what comes after the last stop: a retake that is due, or the next section.
    fn next_promise(&mut self, words: &mut Vec<Word>) {
        let last = self.sections.is_empty();
        // One that is still open waits for its late tiles.
        let due = |l: &Later| (last || l.due <= self.begun) && !self.open.contains_key(&l.plan.section);
        if let Some(at) = self.amendments.iter().position(due) {
            let Some(later) = self.amendments.remove(at) else { return };
            self.amend(later, words);
        } else if let Some(serial) = self.sections.pop_front() {
            let mut plan = Arc::new(self.scene.section_plan(serial));
            self.missing = self.scene.is_missing(serial);
            self.open.insert(plan.section, plan.mfovs.len());
            self.mfovs = plan.mfovs.clone().into();
            words.push(Word::SectionBegins(plan.clone()));
            self.begun += 1;
            for amendment in self.scene.amendments(&plan) {
                plan = Arc::new(plan.amended(amendment.stops.clone()));
                let due = self.begun + amendment.after_sections;
                let before_end = amendment.after_sections == 0;
                self.amendments.push_back(Later { before_end, due, plan: plan.clone(), stops: amendment.stops });
            }
        }
    }

    fn amend(&mut self, later: Later, words: &mut Vec<Word>) {
        *self.open.entry(later.plan.section).or_default() += later.stops.len();
        self.missing = false;
        self.mfovs.extend(later.stops);
        words.push(Word::SectionAmended(later.plan));
    }

    fn stop(&mut self, mfov: MfovPlan, words: &mut Vec<Word>) {
        self.stops += 1;
        words.push(Word::MfovBegins(mfov.id));
        let came_late = self.late.remove(&self.stops).unwrap_or_default();
        let mut now = came_late.clone();
        if self.skipped.contains(&mfov.id) {
            // The head has it: its begin and end are all there is to say.
        } else if self.missing {
            words.extend(mfov.tiles.iter().map(|t| Word::Lost(t.key, Reason::SectionMissing)));
        } else {
            let faults = &self.scene.config().faults;
            let (late, on_time): (Vec<_>, Vec<_>) =
                mfov.tiles.iter().map(|t| t.key).partition(|&k| self.scene.faults(k).late);
            now.extend(on_time);
            if !late.is_empty() {
                self.waiting.insert(mfov.id, late.len());
                self.late.entry(self.stops + u64::from(faults.late_mfovs)).or_default().extend(late);
            }
        }
        if self.scene.config().faults.shuffle {
            let whose = Whose::of(TileKey { mfov: mfov.id, beam: BeamId(0) });
            Draws::new(self.scene.config().seed, What::TileOrder, whose).shuffle(&mut now);
        }
        for key in now {
            self.say(key, words);
        }
        for key in came_late {
            self.count_late(key.mfov, words);
        }
        // Before the last stop of the section ends: until then what is taken again is part of the same result.
        let now = |l: &Later| l.before_end && l.plan.section == mfov.id.section;
        if self.mfovs.is_empty()
            && let Some(at) = self.amendments.iter().position(now)
            && let Some(later) = self.amendments.remove(at)
        {
            self.amend(later, words);
        }
        if !self.waiting.contains_key(&mfov.id) {
            self.end(mfov.id, words);
        }
    }

    /// The tile as often as it comes, or its loss.
    fn say(&self, key: TileKey, words: &mut Vec<Word>) {
        let faults = self.scene.faults(key);
        if faults.lost {
            words.push(Word::Lost(key, Reason::NotAcquired("the beam gave no image (simulated)".into())));
            return;
        }
        words.push(Word::Tile(key));
        if faults.duplicated {
            words.push(Word::Tile(key));
        }
    }

    fn count_late(&mut self, mfov: MfovId, words: &mut Vec<Word>) {
        let Some(left) = self.waiting.get_mut(&mfov) else { return };
        *left -= 1;
        if *left == 0 {
            self.waiting.remove(&mfov);
            self.end(mfov, words);
        }
    }

    fn end(&mut self, mfov: MfovId, words: &mut Vec<Word>) {
        words.push(Word::MfovEnds(mfov));
        let Some(left) = self.open.get_mut(&mfov.section) else { return };
        *left -= 1;
        if *left == 0 {
            self.open.remove(&mfov.section);
            words.push(Word::SectionEnds(mfov.section));
        }
    }
}
