//! What the aligner knows beside images: it is written after every section, and a restart goes on from it with the same bits.

use std::collections::VecDeque;

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Map, SectionToVolume};
use serde::{Deserialize, Serialize};

use super::chains::{Candidate, Former, Turn};
use super::fit::{self, Pair};
use super::keys::KeyState;
use super::links::Links;
use super::look::{Look, Looks};
use super::{AlignConfig, Alignment, Drift, Flow, ResidualMap, Verdict, drift, fine};

/// Rounds over the sections that may move, of one solve each. The first takes nine tenths of the way.
const ROUNDS: usize = 2;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignerState {
    /// The section that is due; none before the first.
    pub next: Option<SerialIndex>,
    /// Sections that may still move, oldest first, and those without a place among them.
    pub pending: VecDeque<Pending>,
    /// Accepted sections that no longer move but that those above are laid onto, newest first.
    pub frozen: VecDeque<Frozen>,
    /// Sections that new ones are laid onto, newest first.
    pub drawn: VecDeque<DrawnAs>,
    /// What was learned of the volume's deformation.
    pub drift: Option<Drift>,
    /// The last key section.
    pub key: Option<KeyState>,
    /// The last section that was not accepted; none after one that was.
    pub candidate: Option<Candidate>,
    /// What is kept of the chain before the last break.
    pub former: Option<Former>,
    /// What the last final sections look like.
    pub looks: Looks,
}

/// A section that may still move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// As far as it is known.
    pub record: Alignment,
    /// First and last pixel of the section.
    pub extent: [Xy<f64>; 2],
    /// Its matches with earlier sections.
    pub links: Vec<Links>,
    /// Its matches with the key section, as it lies in the volume.
    pub key: Option<Links>,
    /// What changes at it.
    pub turn: Option<Turn>,
    /// What it looks like; none where it has too little tissue.
    pub look: Option<Look>,
}

/// Where a section lies for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// Its z.
    pub serial: SerialIndex,
    /// Section pixel to volume pixel.
    pub map: SectionToVolume,
}

/// How the image of a section was drawn that new ones are compared with: it is not drawn anew for each small move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawnAs {
    /// Its z.
    pub serial: SerialIndex,
    /// Section pixel to volume pixel at the time.
    pub map: SectionToVolume,
}

impl Pending {
    /// Of a section without matches.
    pub(super) fn new(record: Alignment, extent: [Xy<f64>; 2]) -> Self {
        Self { record, extent, links: vec![], key: None, turn: None, look: None }
    }

    /// Whether a solve may move it: it has a place, and it is not one that a chain begins with.
    pub(super) fn moves(&self) -> bool {
        self.record.map.is_some() && !matches!(self.record.verdict, Verdict::Reference | Verdict::NewStart { .. })
    }

    /// Whether a later solve may bend it: pieces beside a crack are left as they were found.
    fn bends(&self) -> bool {
        self.moves() && !self.record.in_pieces
    }
}

impl AlignerState {
    /// Serial indexes of the views that a restart needs, ascending.
    pub fn views_needed(&self) -> Vec<SerialIndex> {
        let mut needed: Vec<SerialIndex> = self.drawn.iter().map(|d| d.serial).collect();
        needed.extend(self.key.as_ref().map(|k| k.serial));
        needed.extend(self.candidate.as_ref().map(|c| c.drawn.serial));
        needed.extend(self.former.iter().flat_map(|f| &f.drawn).map(|d| d.serial));
        needed.sort();
        needed.dedup();
        needed
    }

    /// Where a section lies as far as it is known.
    pub(super) fn map(&self, serial: SerialIndex) -> Option<&Map> {
        let pending = self.pending.iter().find(|p| p.record.serial == serial);
        match pending {
            Some(p) => p.record.map.as_ref().map(|m| &m.0),
            None => self.frozen.iter().find(|f| f.serial == serial).map(|f| &f.map.0),
        }
    }

    /// Solves the sections that may move for one another's places: each in turn, the newest first, with the stiffness that
    /// its own matches chose.
    pub(super) fn smooth(&mut self) {
        let movable: Vec<usize> = (0..self.pending.len()).rev().filter(|i| self.pending[*i].bends()).collect();
        if movable.len() < 2 {
            return;
        }
        for _ in 0..ROUNDS {
            for &i in &movable {
                if let Some(map) = self.solved(i) {
                    self.pending[i].record.map = Some(SectionToVolume(map));
                }
            }
        }
    }

    /// The map of a section from all matches that it takes part in.
    fn solved(&self, i: usize) -> Option<Map> {
        let own = &self.pending[i];
        let serial = own.record.serial;
        let Some(SectionToVolume(Map::Grid(grid))) = &own.record.map else { return None };
        let mut pairs: Vec<Pair> = Vec::new();
        for links in &own.links {
            pairs.extend(self.map(links.reference).into_iter().flat_map(|there| links.forward(there)));
        }
        for later in self.pending.iter().skip(i + 1) {
            let Some(here) = &later.record.map else { continue };
            let about = later.links.iter().filter(|l| l.reference == serial);
            pairs.extend(about.flat_map(|l| l.backward(&here.0)));
        }
        let axes = (grid.xs().to_vec(), grid.ys().to_vec());
        let stiffness = own.record.stiffness.unwrap_or(f64::INFINITY);
        let start = Map::Grid(grid.clone());
        let map = fit::refit(&fine::evened(pairs), (&axes.0, &axes.1), stiffness, &start)?;
        fine::check_shape(&map, &axes).ok()?;
        Some(drift::on_axes(&map, &axes, |q| q))
    }

    /// Takes the oldest section out for good; what is taken back of the volume's deformation moves all that may still move with it.
    pub(super) fn freeze(&mut self, config: &AlignConfig) -> Option<Alignment> {
        let mut front = self.pending.pop_front()?;
        self.turned(&front, config);
        if let Some(mut drift) = self.drift.take() {
            if front.moves() {
                self.keep_in_shape(&mut front, &mut drift, config);
            }
            self.drift = Some(drift);
        }
        self.measure(&mut front, config);
        front.record.beside = front.look.filter(|_| front.record.map.is_some()).map(|l| self.beside(&l));
        if let Some(look) = front.look.filter(|_| front.record.map.is_some()) {
            self.looks.add(look);
        }
        self.remember(&front.record);
        self.elect_key(&front, config);
        Some(front.record)
    }

    /// What the volume is bent by is learned from a section, and a part of it taken back by it and all that may still move.
    fn keep_in_shape(&mut self, front: &mut Pending, drift: &mut Drift, config: &AlignConfig) {
        if let Some(SectionToVolume(map)) = front.record.map.as_ref().filter(|_| front.record.kept_as_reference) {
            drift.learn(front.record.serial.0, map, front.extent, config);
        }
        let (tie, pull) = self.key_pull(front, config);
        front.record.key = tie;
        front.record.shape = Some(drift.shape(config));
        let correction = |q: Xy<f64>| q - drift.at(q, config) * config.drift_relax + pull(q);
        let same_chain = self.pending.iter_mut().take_while(|p| p.turn.is_none());
        for p in std::iter::once(front).chain(same_chain).filter(|p| p.moves()) {
            if let Some(SectionToVolume(map)) = &p.record.map {
                p.record.map = Some(SectionToVolume(drift::moved(map, correction)));
            }
        }
        drift.relieve(config);
    }

    /// What is left between a section and those it was laid onto, as all lie now.
    fn measure(&self, front: &mut Pending, config: &AlignConfig) {
        let nearest = front.record.references.first();
        let links = front.links.iter().find(|l| Some(&l.reference) == nearest);
        if let (Some(links), Some(map)) = (links, &front.record.map)
            && let Some(there) = self.map(links.reference)
        {
            let off = links.forward(there).map(|p| (map.0.apply(p.from) - p.to).norm()).collect();
            front.record.residual_px = Some(fine::residual(off).0);
            let nearest = Flow::new(links, &map.0, there);
            front.record.residual_map = Some(ResidualMap::new(&nearest, front.extent, config));
        }
        if let Some(map) = &front.record.map {
            let flow = front.links.iter().filter_map(|l| Some(Flow::new(l, &map.0, self.map(l.reference)?)));
            front.record.flow = flow.collect();
        }
    }
}
