//! One object: what is remembered of it while it is flooded, and the voxels it gets in the end.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::{Canvas, FAILED, KnownOverlap};
use crate::flood::counters::Origin;
use crate::flood::rules::FloodRules;

/// The object being flooded.
pub(super) struct Present {
    pub(super) start: [usize; 3],
    /// Set for an object from before.
    pub(super) label: Option<i32>,
    pub(super) queue: VecDeque<[usize; 3]>,
    pub(super) visited: HashSet<[i64; 3]>,
    /// Positions that were walked through without a run, see `schedule`.
    pub(super) aside: VecDeque<[usize; 3]>,
    pub(super) at: [usize; 3],
    pub(super) low: [usize; 3],
    pub(super) high: [usize; 3],
    pub(super) steps: u64,
}

impl Canvas {
    pub(super) fn finish_object(&mut self, present: &Present) {
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
        let mut voxels = 0;
        for i in mine.into_iter().filter(|&i| i >= self.open * plane) {
            self.labels[i] = label;
            if let Some(p) = self.probability.get_mut(i) {
                *p = quantised(self.activation[i]);
            }
            voxels += 1;
        }
        self.counters.voxels += voxels;
        self.origins.push(Origin {
            label,
            start: present.start,
            continued: present.label.is_some(),
            evaluations: present.steps,
            voxels,
        });
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

    pub(super) fn reach(&self, present: &Present) -> ([usize; 3], [usize; 3]) {
        let low = std::array::from_fn(|a| present.low[a].saturating_sub(self.rules.fov[a] / 2));
        let high = std::array::from_fn(|a| (present.high[a] + self.rules.fov[a] / 2 + 1).min(self.shape[a]));
        (low, high)
    }

    pub(super) fn clear(&mut self, present: &Present) {
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
    /// Queues where `logits`, those of the field of view at `at`, lead.
    pub(super) fn push_moves(&mut self, rules: &FloodRules, at: [usize; 3], logits: &[f32]) {
        self.queue.extend(rules.moves(logits).map(|m| std::array::from_fn(|a| (at[a] as i64 + m[a]) as usize)));
    }

    pub(super) fn new(start: [usize; 3], label: Option<i32>, queue: VecDeque<[usize; 3]>) -> Self {
        Self {
            start,
            label,
            queue,
            visited: HashSet::new(),
            aside: VecDeque::new(),
            at: start,
            low: start,
            high: start,
            steps: 0,
        }
    }
}

/// Probability of a logit in 255 steps, 1 to 255.
fn quantised(logit: f32) -> u8 {
    let p = 1.0 / (1.0 + (-logit).exp());
    (p * 255.0).ceil().clamp(1.0, 255.0) as u8
}
