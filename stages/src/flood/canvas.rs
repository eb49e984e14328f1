//! One block being flooded: the flood-filling network's walk, object after object, as a state machine.
//!
//! Method: Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
//! Methods 2018, with the movement rules of the published implementation (first-in first-out queue of face maxima, visited
//! set on the lattice of deltas round the start, no voxel below one half rises again). Axes z, y, x; activations are logits.
//!
//! ```text
//! next object ──► pop a position ──► Canvas::request (image, seed) ──► network ──► Canvas::apply ──► push face maxima ─┐
//!      ▲               ▲                                                                                               │
//!      └── queue empty └───────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The canvas never calls the network, so several canvases can share one call and none notices.

use std::collections::VecDeque;

use kinesin_stream::geometry::Zyx;
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::counters::{FloodCounters, Origin};
use super::queue::{SeedQueue, SeedRound};
use super::rules::FloodRules;
use crate::model::GreyTable;

mod checkpoint;
mod object;
mod walk;

pub use self::checkpoint::{CheckpointError, Keeper};
use self::object::Present;

/// The voxels a canvas works on, all of the same shape.
pub struct CanvasInput {
    /// Grey.
    pub image: Array3<u8>,
    /// Grey to network input, one table per section of the block.
    pub tables: Vec<GreyTable>,
    /// Voxels that hold no centre of a field of view and get no label.
    pub closed: Array3<bool>,
    /// Labels from before, 1..; zero elsewhere and in every section from `open` on.
    pub known: Array3<i32>,
    /// First section whose voxels may be labelled.
    pub open: usize,
    /// Start points of new objects in visiting order.
    pub seeds: Vec<Zyx<usize>>,
}

/// An object of earlier sections and where its flood enters the new ones.
#[derive(Clone, Debug)]
pub(super) struct Continuation {
    pub(super) label: i32,
    pub(super) entries: Vec<[usize; 3]>,
}

/// A new object that lies, in sections labelled before, on an object from before; or one from before that lies, in the first new
/// section, on the last profile of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownOverlap {
    /// The new object, or the one that goes on.
    pub label: i32,
    /// The object from before.
    pub known: i32,
    /// Voxels they share there.
    pub shared: u64,
    /// Voxels of the new object there that carry any label from before.
    pub labelled: u64,
}

/// What a flooded block holds.
pub struct CanvasResult {
    /// 0 none, labels from before unchanged, new objects numbered on from the highest of those.
    pub labels: Array3<i32>,
    /// The highest label from before.
    pub known: i32,
    /// Where new objects meet those from before.
    pub overlaps: Vec<KnownOverlap>,
    /// Counts.
    pub counters: FloodCounters,
    /// Every object that got voxels here, in the order in which they did.
    pub origins: Vec<Origin>,
    /// Where asked for: the probability of each voxel in the object that it belongs to, 1 to 255 for (0, 1]; 0 where there is none.
    pub probability: Option<Array3<u8>>,
    /// The network answered 16 times in a row with what is no finite number; the labels are of no use.
    pub broken: bool,
}

/// A centre of a field of view may not move to this voxel (see [`Canvas::barred`]).
pub const NO_MOVE: u8 = 1;
/// No object may start at this voxel.
pub const NO_START: u8 = 2;

/// Answers without a finite number in a row, from which on the network itself is held for broken.
const BROKEN: u32 = 16;

/// See the module.
pub struct Canvas {
    rules: FloodRules,
    shape: [usize; 3],
    image: Vec<u8>,
    tables: Vec<GreyTable>,
    closed: Vec<bool>,
    labels: Vec<i32>,
    open: usize,
    /// Activation of the present object; not a number where not yet visited.
    activation: Vec<f32>,
    seeds: SeedQueue,
    continuations: VecDeque<Continuation>,
    highest_known: i32,
    last_label: i32,
    present: Option<Present>,
    overlaps: Vec<KnownOverlap>,
    counters: FloodCounters,
    origins: Vec<Origin>,
    /// Bits of [`NO_MOVE`] and [`NO_START`]; empty where nothing is barred.
    barred: Vec<u8>,
    /// Empty where nobody asked.
    probability: Vec<u8>,
    /// Answers without a finite number since the last good one.
    lost_in_a_row: u32,
    keeper: Option<Keeper>,
}

const FAILED: i32 = -1;

impl Canvas {
    /// Prepares a block.
    ///
    /// # Panics
    /// Where the arrays of `input` differ in shape (an error of the caller).
    pub fn new(rules: &FloodRules, input: CanvasInput) -> Self {
        let shape: [usize; 3] = input.image.dim().into();
        assert!(
            input.closed.dim() == input.image.dim()
                && input.known.dim() == input.image.dim()
                && input.tables.len() == shape[0]
        );
        let continuations = super::entries::entries(rules, &input.known, input.open);
        let highest_known = input.known.iter().copied().max().unwrap_or(0).max(0);
        let voxels = shape.iter().product();
        Self {
            rules: rules.clone(),
            shape,
            image: input.image.into_iter().collect(),
            tables: input.tables,
            closed: input.closed.into_iter().collect(),
            labels: input.known.into_iter().collect(),
            open: input.open,
            activation: vec![f32::NAN; voxels],
            seeds: input.seeds.into(),
            continuations: continuations.into(),
            highest_known,
            last_label: highest_known,
            present: None,
            overlaps: Vec::new(),
            counters: FloodCounters::default(),
            origins: Vec::new(),
            barred: Vec::new(),
            probability: Vec::new(),
            lost_in_a_row: 0,
            keeper: None,
        }
    }

    /// With more start points, visited after those before.
    #[must_use]
    pub fn seeded(mut self, rounds: impl IntoIterator<Item = SeedRound>) -> Self {
        rounds.into_iter().for_each(|round| self.seeds.push(round));
        self
    }

    /// With voxels to which no centre moves or at which nothing starts: bits of [`NO_MOVE`] and [`NO_START`].
    ///
    /// # Panics
    /// Where the shape is another one.
    #[must_use]
    pub fn barred(mut self, bits: Array3<u8>) -> Self {
        assert_eq!(<[usize; 3]>::from(bits.dim()), self.shape);
        self.barred = bits.into_iter().collect();
        self
    }

    /// With the probability of each voxel kept.
    #[must_use]
    pub fn with_probability(mut self) -> Self {
        self.probability = vec![0; self.labels.len()];
        self
    }

    /// Labels up to this one are there to be built round, and are not continued.
    #[must_use]
    pub fn fixed(mut self, highest: i32) -> Self {
        self.continuations.retain(|c| c.label > highest);
        self
    }

    /// Fills the next field of view into `image` and `seed` (both of the network's shape); `false` when the block is done.
    pub fn request(&mut self, image: &mut [f32], seed: &mut [f32]) -> bool {
        self.keep_if_due();
        loop {
            if self.broken() {
                return false;
            }
            let Some(mut present) = self.present.take().or_else(|| self.begin()) else {
                return false;
            };
            match self.next_position(&mut present) {
                Some(at) => {
                    present.at = at;
                    self.gather(at, image, seed);
                    self.present = Some(present);
                    return true;
                }
                None => self.finish_object(&present),
            }
        }
    }

    /// Takes the network's answer to the last request; changes `logits` where voxels may not rise again.
    pub fn apply(&mut self, logits: &mut [f32]) {
        let Some(mut present) = self.present.take() else {
            return;
        };
        let at = present.at;
        self.counters.evaluations += 1;
        if !logits.iter().all(|l| l.is_finite()) {
            return self.lose(&present);
        }
        self.lost_in_a_row = 0;
        self.scatter(at, logits);
        let cell = self.rules.cell(at, present.start);
        present.visited.insert(cell);
        present.low = std::array::from_fn(|a| present.low[a].min(at[a]));
        present.high = std::array::from_fn(|a| present.high[a].max(at[a]));
        present.steps += 1;
        present.push_moves(&self.rules, at, logits);
        self.present = Some(present);
    }

    /// Gives up the present object: what the network said of it is no number, and no voxel of it can be believed.
    fn lose(&mut self, present: &Present) {
        self.counters.not_finite += 1;
        self.lost_in_a_row += 1;
        let start = self.index(present.start);
        if present.label.is_none() && self.labels[start] == 0 {
            self.labels[start] = FAILED;
        }
        self.clear(present);
    }

    fn broken(&self) -> bool {
        self.lost_in_a_row >= BROKEN
    }

    /// Counts so far.
    pub fn counters(&self) -> &FloodCounters {
        &self.counters
    }

    /// The labels, when [`Canvas::request`] has said `false`.
    pub fn finish(self) -> CanvasResult {
        let broken = self.broken();
        let labels = self.labels.iter().map(|&l| l.max(0)).collect();
        let labels = Array3::from_shape_vec(self.shape, labels).expect("one label per voxel");
        let mut overlaps = self.overlaps;
        overlaps.extend(super::entries::taken_over(&labels, self.open, self.highest_known));
        let asked = !self.probability.is_empty();
        let probability =
            asked.then(|| Array3::from_shape_vec(self.shape, self.probability).expect("one value per voxel"));
        CanvasResult {
            labels,
            known: self.highest_known,
            overlaps,
            counters: self.counters,
            origins: self.origins,
            probability,
            broken,
        }
    }

    fn index(&self, p: [usize; 3]) -> usize {
        (p[0] * self.shape[1] + p[1]) * self.shape[2] + p[2]
    }

    fn begin(&mut self) -> Option<Present> {
        if let Some(known) = self.continuations.pop_front() {
            self.counters.continued += 1;
            let low = known.entries[0];
            self.fill_known(known.label);
            return Some(Present::new(low, Some(known.label), known.entries.into()));
        }
        while let Some(at) = self.next_seed() {
            self.counters.seeds += 1;
            let i = self.index(at);
            // where a flood failed before it would fail again
            if at[0] < self.open || !self.has_margin(at) || self.labels[i] != 0 || self.closed[i] {
                continue;
            }
            if self.bars(i, NO_MOVE | NO_START) {
                self.counters.skipped_barred += 1;
                continue;
            }
            if self.near_object(at) {
                self.labels[i] = FAILED;
                continue;
            }
            self.counters.started += 1;
            self.activation[i] = self.rules.init;
            return Some(Present::new(at, None, VecDeque::from([at])));
        }
        None
    }

    fn next_seed(&mut self) -> Option<[usize; 3]> {
        let (next, listed) = self.seeds.next(&self.labels, &self.closed, self.shape);
        self.counters.listed += listed;
        next
    }

    fn bars(&self, i: usize, what: u8) -> bool {
        self.barred.get(i).is_some_and(|bits| bits & what != 0)
    }

    /// The labelled sections as a flood that arrives from them would have left them: the object inside, all else outside, and
    /// what is outside may not rise again.
    fn fill_known(&mut self, label: i32) {
        let known = self.open * self.shape[1] * self.shape[2];
        for (a, &l) in self.activation[..known].iter_mut().zip(&self.labels[..known]) {
            *a = if l == label { self.rules.init } else { self.rules.pad };
        }
    }

    fn near_object(&self, at: [usize; 3]) -> bool {
        let d = self.rules.min_boundary;
        let range = |axis: usize| at[axis].saturating_sub(d[axis])..(at[axis] + d[axis] + 1).min(self.shape[axis]);
        range(0).any(|z| range(1).any(|y| range(2).any(|x| self.labels[self.index([z, y, x])] > 0)))
    }
}
