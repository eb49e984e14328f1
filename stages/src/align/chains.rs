//! Chains of sections that were laid onto one another, and what happens where a section fits none of those before it.
//!
//! ```text
//! 0 1 2 3 x 5 6      x fits nothing, 5 fits 3: x has no place, 5 is laid onto 3
//! 0 1 2 3 | 4 5 6    4 and 5 fit each other, but nothing before: a new chain begins at 4, in the frame there is; no object crosses |
//! 0 1 2 3 x x 6 7    two alike, but 6 fits 3 again: while they may still move, they lose their place
//! 0 | 1 2 3 4        the same behind a lone first section: it loses its place, and 1 defines the frame
//! 0 1 2 w 4 5        w fits 2 on little of the tissue, 4 fits w: where it confirms that place, the chain goes on through w; else w begins one
//! 0 1 2 v 4 5        v is laid onto 2, but 4 fits 2 much better than v: v is not laid onto any more
//! ```
//! So one wrong section costs itself, and not all that follow. Nothing final is taken back: a decision is made while the sections that it
//! is about may still move. Held for that: the last section that was not accepted, and the last accepted ones of the chain before.

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Map, SectionToVolume};
use serde::{Deserialize, Serialize};

use super::links::Links;
use super::look::{Beside, Look};
use super::state::{AlignerState, DrawnAs, Frozen, Pending};
use super::{AlignConfig, Alignment, Drift, Verdict, fine};

/// How much more of their tissue two sections must share with each other than with the one between, which is the nearer: of good ones
/// in cortex and block face none shares less with its neighbours than they do.
const MARGIN: f64 = 0.15;
/// From this much more on it is asked how the two lie without the one between: laid onto both, a section is drawn astray by a wrong one.
const SUSPECT: f64 = 0.05;

/// The last section that was not accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Where it lies, or would lie if a chain began with it.
    pub drawn: DrawnAs,
    /// Whether it has a place, on too little of the tissue.
    pub weak: bool,
}

/// What is kept of the chain before the last break.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Former {
    /// Its last accepted sections, newest first.
    pub drawn: Vec<DrawnAs>,
    /// What was learned of its deformation.
    pub drift: Option<Drift>,
}

/// What changes at a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// A chain begins with it.
    Anew,
    /// The chain before the last break goes on with it.
    Back,
}

/// That two sections share much more with each other than with the one between them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outvoted {
    /// The two.
    pub by: [SerialIndex; 2],
    /// Part of their common tissue whose matches are consistent.
    pub between: f64,
    /// The same of each with the section.
    pub with_it: [f64; 2],
}

impl AlignerState {
    /// The only section of the chain, where it began the stack and may still move: nothing was laid onto it.
    pub(super) fn lone_first(&self) -> Option<usize> {
        let [only] = self.drawn.iter().collect::<Vec<_>>()[..] else { return None };
        let at = self.pending.iter().position(|p| p.record.serial == only.serial)?;
        let laid_onto = self.pending.iter().flat_map(|p| &p.links).any(|l| l.reference == only.serial);
        (self.pending[at].record.verdict == Verdict::Reference && !laid_onto).then_some(at)
    }

    /// The sections of the newest chain lose their place, where all of them may still move; whether they did.
    pub(super) fn retract(&mut self) -> bool {
        let last = self.pending.iter().rposition(|p| p.turn.is_some());
        let Some(first) = last.filter(|i| self.pending[*i].turn == Some(Turn::Anew)) else { return false };
        for p in self.pending.iter_mut().skip(first).filter(|p| p.record.map.is_some()) {
            let named = match &p.record.verdict {
                Verdict::NewStart { reason, .. } => format!(": {reason}"),
                _ => String::new(),
            };
            let reason = format!("it fits a section beside it, but those before and after do not fit them{named}");
            p.unplace(reason);
        }
        true
    }

    /// Before the section `front` is final: a turn at it concerns what was learned so far.
    pub(super) fn turned(&mut self, front: &Pending, config: &AlignConfig) {
        let learned = self.former.as_mut().map(|f| &mut f.drift);
        match front.turn {
            None => return,
            Some(Turn::Anew) => {
                let now = self.drift.take();
                if let Some(kept) = learned {
                    *kept = now;
                }
                let [low, high] = front.record.map.as_ref().map_or(front.extent, |m| bounds(&m.0, front.extent));
                self.drift = Some(Drift::none(front.record.serial.0, low, high, config));
            }
            Some(Turn::Back) => {
                if let Some(kept) = learned.filter(|k| k.is_some()) {
                    std::mem::swap(kept, &mut self.drift);
                }
            }
        }
        // A key section is of its own chain.
        self.key = None;
    }

    /// A section against those with a place around it.
    pub(super) fn beside(&self, look: &Look) -> Beside {
        let placed = self.pending.iter().filter(|p| p.record.map.is_some()).filter_map(|p| p.look.as_ref());
        look.beside(self.looks.iter().chain(placed))
    }

    /// Notes where a section lies for good, as long as any other may be laid onto it or has matches with it.
    pub(super) fn remember(&mut self, record: &Alignment) {
        if let Some(map) = &record.map {
            self.frozen.push_front(Frozen { serial: record.serial, map: map.clone() });
        }
        let former = self.former.iter().flat_map(|f| &f.drawn);
        let drawn = self.drawn.iter().chain(former).chain(self.candidate.iter().map(|c| &c.drawn)).map(|d| d.serial);
        let matched = self.pending.iter().flat_map(|p| &p.links).map(|l| l.reference);
        let needed: Vec<SerialIndex> = drawn.chain(matched).collect();
        self.frozen.retain(|f| needed.contains(&f.serial));
    }

    /// What a new section with this map and these matches may have against the newest accepted one, where that may still move.
    pub(super) fn suspect(&self, new: SerialIndex, map: &Map, links: &[Links]) -> Option<Outvoted> {
        let (middle, before) = (self.drawn.front()?.serial, self.drawn.get(1)?.serial);
        let own = self.pending.iter().find(|p| p.record.serial == middle && p.moves())?;
        let with = |links: &[Links], here: &Map, there: SerialIndex| {
            let links = links.iter().find(|l| l.reference == there);
            links.zip(self.map(there)).map_or(0.0, |(links, there)| share(links, here, there))
        };
        let between = with(links, map, before);
        let with_it = [with(&own.links, &own.record.map.as_ref()?.0, before), with(links, map, middle)];
        let worst = with_it.iter().all(|w| between - w >= SUSPECT);
        worst.then_some(Outvoted { by: [before, new], between, with_it })
    }
}

impl Outvoted {
    /// The same where the two share this part, laid onto each other without the one between.
    pub(super) fn confirmed(self, between: f64) -> Option<Self> {
        let between = (between * 1000.0).round() / 1000.0;
        self.with_it.iter().all(|w| between - w >= MARGIN).then_some(Self { between, ..self })
    }
}

impl Pending {
    /// Takes its place away.
    pub(super) fn unplace(&mut self, reason: String) {
        self.record = Alignment::unplaced(self.record.serial, &self.record.name, Verdict::Failed { reason });
        (self.links, self.key, self.turn) = (vec![], None, None);
    }
}

/// Part of the patches looked for that are consistent where the sections lie so.
fn share(links: &Links, here: &Map, there: &Map) -> f64 {
    let off = links.forward(there).map(|p| (here.apply(p.from) - p.to).norm()).collect();
    let part = fine::residual(off).1 as f64 / f64::from(links.tried.max(1));
    (part * 1000.0).round() / 1000.0
}

/// First and last volume pixel of a section.
fn bounds(map: &Map, [low, high]: [Xy<f64>; 2]) -> [Xy<f64>; 2] {
    let corners = [low, high, Xy::new(low.x, high.y), Xy::new(high.x, low.y)].map(|p| map.apply(p));
    let over = |f: fn(f64, f64) -> f64| {
        corners.into_iter().reduce(|a, b| Xy::new(f(a.x, b.x), f(a.y, b.y))).unwrap_or_default()
    };
    [over(f64::min), over(f64::max)]
}

/// For the record of a section with which a chain begins.
pub(super) fn start(serial: SerialIndex, name: &str, map: &SectionToVolume, verdict: Verdict) -> Alignment {
    Alignment {
        map: Some(map.clone()),
        confidence: 1.0,
        kept_as_reference: true,
        broken_before: matches!(verdict, Verdict::NewStart { .. }),
        ..Alignment::unplaced(serial, name, verdict)
    }
}
