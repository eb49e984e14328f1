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

use std::collections::{BTreeMap, HashSet, VecDeque};

use kinesin_stream::geometry::Zyx;
use ndarray::Array3;

use super::rules::FloodRules;
use crate::model::GreyTable;

/// What one block's flood counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FloodCounters {
    /// Fields of view run through the network.
    pub evaluations: u64,
    /// Start points looked at.
    pub seeds: u64,
    /// Start points from which a flood began.
    pub started: u64,
    /// Floods that became objects.
    pub kept: u64,
    /// Objects of earlier sections that were continued.
    pub continued: u64,
    /// Floods given up because their start point turned out to be outside.
    pub weak: u64,
    /// Floods that stayed too small.
    pub small: u64,
    /// Positions dropped because the activation there had fallen.
    pub skipped_low: u64,
    /// Positions dropped because they lie too near the border or in another object.
    pub skipped_taken: u64,
    /// Positions dropped because nearly all of the field of view was explored already.
    pub skipped_explored: u64,
    /// Voxels labelled.
    pub voxels: u64,
}

impl FloodCounters {
    /// Adds another block's counts.
    pub fn add(&mut self, o: &Self) {
        self.combine(o, u64::saturating_add);
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub);
        self
    }

    fn combine(&mut self, o: &Self, f: fn(u64, u64) -> u64) {
        let pairs = [
            (&mut self.evaluations, o.evaluations),
            (&mut self.seeds, o.seeds),
            (&mut self.started, o.started),
            (&mut self.kept, o.kept),
            (&mut self.continued, o.continued),
            (&mut self.weak, o.weak),
            (&mut self.small, o.small),
            (&mut self.skipped_low, o.skipped_low),
            (&mut self.skipped_taken, o.skipped_taken),
            (&mut self.skipped_explored, o.skipped_explored),
            (&mut self.voxels, o.voxels),
        ];
        for (mine, other) in pairs {
            *mine = f(*mine, other);
        }
    }
}

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

/// A new object that lies, in sections labelled before, on an object from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownOverlap {
    /// The new object.
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
}

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
    seeds: VecDeque<[usize; 3]>,
    continuations: VecDeque<Continuation>,
    highest_known: i32,
    last_label: i32,
    present: Option<Present>,
    overlaps: Vec<KnownOverlap>,
    counters: FloodCounters,
}

/// The object being flooded.
struct Present {
    start: [usize; 3],
    /// Set for an object from before.
    label: Option<i32>,
    queue: VecDeque<[usize; 3]>,
    visited: HashSet<[i64; 3]>,
    at: [usize; 3],
    low: [usize; 3],
    high: [usize; 3],
    steps: u64,
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
            seeds: input.seeds.iter().map(|s| [s.z, s.y, s.x]).collect(),
            continuations: continuations.into(),
            highest_known,
            last_label: highest_known,
            present: None,
            overlaps: Vec::new(),
            counters: FloodCounters::default(),
        }
    }

    /// Fills the next field of view into `image` and `seed` (both of the network's shape); `false` when the block is done.
    pub fn request(&mut self, image: &mut [f32], seed: &mut [f32]) -> bool {
        loop {
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
        self.scatter(at, logits);
        let cell = self.rules.cell(at, present.start);
        present.visited.insert(cell);
        present.low = std::array::from_fn(|a| present.low[a].min(at[a]));
        present.high = std::array::from_fn(|a| present.high[a].max(at[a]));
        present.steps += 1;
        self.counters.evaluations += 1;
        present.queue.extend(self.rules.moves(logits).map(|m| std::array::from_fn(|a| (at[a] as i64 + m[a]) as usize)));
        self.present = Some(present);
    }

    /// Counts so far.
    pub fn counters(&self) -> &FloodCounters {
        &self.counters
    }

    /// The labels, when [`Canvas::request`] has said `false`.
    pub fn finish(self) -> CanvasResult {
        let labels = self.labels.iter().map(|&l| l.max(0)).collect();
        let labels = Array3::from_shape_vec(self.shape, labels).expect("one label per voxel");
        CanvasResult { labels, known: self.highest_known, overlaps: self.overlaps, counters: self.counters }
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
        while let Some(at) = self.seeds.pop_front() {
            self.counters.seeds += 1;
            let i = self.index(at);
            if at[0] < self.open || !self.has_margin(at) || self.labels[i] > 0 || self.closed[i] {
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

    fn has_margin(&self, at: [usize; 3]) -> bool {
        (0..3).all(|a| at[a] >= self.rules.fov[a] / 2 && at[a] + self.rules.fov[a] / 2 < self.shape[a])
    }

    fn next_position(&mut self, present: &mut Present) -> Option<[usize; 3]> {
        while let Some(at) = present.queue.pop_front() {
            if present.visited.contains(&self.rules.cell(at, present.start)) {
                continue;
            }
            let i = self.index(at);
            if self.activation[i] < self.rules.move_at {
                self.counters.skipped_low += 1;
                continue;
            }
            let taken = self.labels[i] > 0 && Some(self.labels[i]) != present.label;
            let all_known = at[0] + self.rules.fov[0] / 2 < self.open;
            if !self.has_margin(at) || taken || all_known {
                self.counters.skipped_taken += 1;
                continue;
            }
            if present.label.is_none() && self.activation[self.index(present.start)] < self.rules.move_at {
                return None;
            }
            if self.closed[i] {
                continue;
            }
            if present.steps > 0 && self.rules.skip_explored > 0.0 && self.unexplored(at) <= self.rules.skip_explored {
                self.counters.skipped_explored += 1;
                continue;
            }
            return Some(at);
        }
        None
    }

    /// Index of the first voxel of each row of the field of view at `at`, and its section.
    fn rows(&self, at: [usize; 3]) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (fov, shape) = (self.rules.fov, self.shape);
        let corner: [usize; 3] = std::array::from_fn(|a| at[a] - fov[a] / 2);
        (0..fov[0]).flat_map(move |z| {
            (0..fov[1])
                .map(move |y| (corner[0] + z, ((corner[0] + z) * shape[1] + corner[1] + y) * shape[2] + corner[2]))
        })
    }

    fn unexplored(&self, at: [usize; 3]) -> f64 {
        let nx = self.rules.fov[2];
        let fresh: usize =
            self.rows(at).map(|(_, row)| self.activation[row..row + nx].iter().filter(|a| a.is_nan()).count()).sum();
        fresh as f64 / self.rules.fov.iter().product::<usize>() as f64
    }

    fn gather(&self, at: [usize; 3], image: &mut [f32], seed: &mut [f32]) {
        let nx = self.rules.fov[2];
        for ((z, row), (image, seed)) in self.rows(at).zip(image.chunks_exact_mut(nx).zip(seed.chunks_exact_mut(nx))) {
            let table = &self.tables[z].0;
            for (out, &grey) in image.iter_mut().zip(&self.image[row..row + nx]) {
                *out = table[usize::from(grey)];
            }
            for (out, &a) in seed.iter_mut().zip(&self.activation[row..row + nx]) {
                *out = if a.is_nan() { self.rules.pad } else { a };
            }
        }
    }

    fn scatter(&mut self, at: [usize; 3], logits: &mut [f32]) {
        let nx = self.rules.fov[2];
        let movable = logits.iter().filter(|&&l| l >= self.rules.move_at).count();
        let hold = self.rules.disco >= 0.0 && movable as f64 / logits.len() as f64 > self.rules.disco;
        let rows: Vec<usize> = self.rows(at).map(|(_, row)| row).collect();
        for (row, new) in rows.into_iter().zip(logits.chunks_exact_mut(nx)) {
            let old = &mut self.activation[row..row + nx];
            if hold {
                for (n, &o) in new.iter_mut().zip(old.iter()) {
                    // false where `o` is not a number, that is where nothing was predicted yet
                    if o < 0.0 && *n > o {
                        *n = o;
                    }
                }
            }
            old.copy_from_slice(new);
        }
    }

    fn finish_object(&mut self, present: &Present) {
        let start = self.index(present.start);
        let weak = present.label.is_none() && self.activation[start] < self.rules.move_at;
        if present.steps > 0 {
            let small = if weak {
                self.counters.weak += 1;
                true
            } else {
                !self.claim(present)
            };
            if small && present.label.is_none() && self.labels[start] == 0 {
                self.labels[start] = FAILED;
            }
        }
        self.clear(present);
    }

    /// Gives the object its free voxels; `false` where it is too small to keep.
    fn claim(&mut self, present: &Present) -> bool {
        let (mut mine, mut known) = (Vec::new(), BTreeMap::<i32, u64>::new());
        let plane = self.shape[1] * self.shape[2];
        let threshold = self.rules.segment_at;
        self.for_box(present, |i, a, label, closed| {
            if a < threshold || a.is_nan() {
                return;
            }
            if label <= 0 && !closed {
                mine.push(i);
            } else if label > 0 && i < self.open * plane {
                *known.entry(label).or_default() += 1;
            }
        });
        if present.label.is_none() && mine.len() < self.rules.min_size {
            self.counters.small += 1;
            return false;
        }
        let label = present.label.unwrap_or_else(|| {
            self.counters.kept += 1;
            self.last_label += 1;
            self.last_label
        });
        // what was labelled before stays as it was, labelled or not
        for i in mine.into_iter().filter(|&i| i >= self.open * plane) {
            self.labels[i] = label;
            self.counters.voxels += 1;
        }
        if present.label.is_none() {
            let labelled = known.values().sum();
            self.overlaps.extend(known.into_iter().map(|(known, shared)| KnownOverlap {
                label,
                known,
                shared,
                labelled,
            }));
        }
        true
    }

    /// Visits the voxels that fields of view of the object have covered: index, activation, label, closed.
    fn for_box(&self, present: &Present, mut visit: impl FnMut(usize, f32, i32, bool)) {
        let (low, high) = self.reach(present);
        for z in low[0]..high[0] {
            for y in low[1]..high[1] {
                let row = self.index([z, y, 0]);
                for i in row + low[2]..row + high[2] {
                    visit(i, self.activation[i], self.labels[i], self.closed[i]);
                }
            }
        }
    }

    fn reach(&self, present: &Present) -> ([usize; 3], [usize; 3]) {
        let low = std::array::from_fn(|a| present.low[a].saturating_sub(self.rules.fov[a] / 2));
        let high = std::array::from_fn(|a| (present.high[a] + self.rules.fov[a] / 2 + 1).min(self.shape[a]));
        (low, high)
    }

    fn clear(&mut self, present: &Present) {
        if present.label.is_some() {
            let known = self.open * self.shape[1] * self.shape[2];
            self.activation[..known].fill(f32::NAN);
        }
        let (low, high) = self.reach(present);
        for z in low[0]..high[0] {
            for y in low[1]..high[1] {
                let row = self.index([z, y, 0]);
                self.activation[row + low[2]..row + high[2]].fill(f32::NAN);
            }
        }
    }
}

impl Present {
    fn new(start: [usize; 3], label: Option<i32>, queue: VecDeque<[usize; 3]>) -> Self {
        Self { start, label, queue, visited: HashSet::new(), at: start, low: start, high: start, steps: 0 }
    }
}
