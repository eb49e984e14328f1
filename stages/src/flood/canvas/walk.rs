//! The walk of one object: where the next field of view lies, and what goes into and comes out of it.

use super::{Canvas, NO_MOVE, Present};
use crate::flood::schedule::{ThriftyRule, is_cut};

impl Canvas {
    pub(super) fn has_margin(&self, at: [usize; 3]) -> bool {
        (0..3).all(|a| at[a] >= self.rules.fov[a] / 2 && at[a] + self.rules.fov[a] / 2 < self.shape[a])
    }

    pub(super) fn next_position(&mut self, present: &mut Present) -> Option<[usize; 3]> {
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
            if self.bars(i, NO_MOVE) {
                self.counters.skipped_barred += 1;
                continue;
            }
            if present.steps > 0 && self.rules.skip_explored > 0.0 && self.unexplored(at) <= self.rules.skip_explored {
                self.counters.skipped_explored += 1;
                continue;
            }
            if present.steps > 0 && self.walks_through(present, at) {
                continue;
            }
            return Some(at);
        }
        self.next_cut(present)
    }

    /// Where nearly all is seen and settled already: goes on from what is known there and puts the position aside.
    fn walks_through(&self, present: &mut Present, at: [usize; 3]) -> bool {
        if self.rules.thrifty.as_ref().is_none_or(|rule| self.unseen_inside(at, rule) > rule.fresh) {
            return false;
        }
        let known = self.known(at);
        if self.undecided(present, at, &known) {
            return false;
        }
        present.visited.insert(self.rules.cell(at, present.start));
        present.aside.push_back(at);
        present.push_moves(&self.rules, at, &known);
        true
    }

    /// Whether another run may decide something: a way on that the network holds for likely, but not for enough to go there, or
    /// many voxels of that kind near the centre.
    fn undecided(&self, present: &Present, at: [usize; 3], known: &[f32]) -> bool {
        let most = self.rules.thrifty.as_ref().map_or(1.0, |rule| rule.unsettled);
        self.rules.hesitations(known).any(|m| {
            let to = std::array::from_fn(|a| (at[a] as i64 + m[a]) as usize);
            !present.visited.contains(&self.rules.cell(to, present.start))
        }) || self.rules.unsettled(known) > most
    }

    /// Activations of the field of view at `at`.
    fn known(&self, at: [usize; 3]) -> Vec<f32> {
        let nx = self.rules.fov[2];
        let mut known = Vec::with_capacity(self.rules.fov.iter().product());
        self.rows(at).for_each(|(_, row)| known.extend_from_slice(&self.activation[row..row + nx]));
        known
    }

    /// Unseen share of the inner field of view.
    fn unseen_inside(&self, at: [usize; 3], rule: &ThriftyRule) -> f64 {
        let half = rule.half(self.rules.fov);
        let ([z, y, x], [hz, hy, hx]) = (at, half);
        let rows = (z - hz..=z + hz).flat_map(|z| (y - hy..=y + hy).map(move |y| [z, y, x - hx]));
        let unseen = |first: usize| self.activation[first..=first + 2 * hx].iter().filter(|a| a.is_nan()).count();
        let unseen: usize = rows.map(|first| unseen(self.index(first))).sum();
        unseen as f64 / half.iter().map(|h| 2 * h + 1).product::<usize>() as f64
    }

    /// The first position put aside where the object may still grow.
    fn next_cut(&mut self, present: &mut Present) -> Option<[usize; 3]> {
        if present.label.is_none() && self.activation[self.index(present.start)] < self.rules.move_at {
            return None;
        }
        let cut = self.rules.thrifty.as_ref().map_or(usize::MAX, |rule| rule.cut);
        while let Some(at) = present.aside.pop_front() {
            let live = self.activation[self.index(at)] >= self.rules.move_at;
            if live && (self.cuts(at) >= cut || self.undecided(present, at, &self.known(at))) {
                return Some(at);
            }
            self.counters.skipped_explored += 1;
        }
        None
    }

    /// Faces in the field of view at which the object ends because nothing beyond them was seen.
    fn cuts(&self, at: [usize; 3]) -> usize {
        let [nz, ny, nx] = self.rules.fov;
        let row = |first: usize| &self.activation[first..first + nx];
        let between = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| is_cut(**a, **b)).count();
        let rows = self.rows(at).enumerate().map(|(i, (_, first))| {
            let (here, mut cuts) = (row(first), 0);
            cuts += between(&here[1..], here);
            if i % ny + 1 < ny {
                cuts += between(here, row(first + self.shape[2]));
            }
            if i / ny + 1 < nz {
                cuts += between(here, row(first + self.shape[1] * self.shape[2]));
            }
            cuts
        });
        rows.sum()
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

    pub(super) fn gather(&self, at: [usize; 3], image: &mut [f32], seed: &mut [f32]) {
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

    pub(super) fn scatter(&mut self, at: [usize; 3], logits: &mut [f32]) {
        let nx = self.rules.fov[2];
        let movable = logits.iter().filter(|&&l| l >= self.rules.move_at).count();
        let hold = self.rules.disco >= 0.0 && movable as f64 / logits.len() as f64 > self.rules.disco;
        let rows: Vec<usize> = self.rows(at).map(|(_, row)| row).collect();
        let inside = self.rules.segment_at;
        let mut deleted = 0;
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
            deleted += old.iter().zip(new.iter()).filter(|(o, n)| **o >= inside && **n < inside).count() as u64;
            old.copy_from_slice(new);
        }
        self.counters.deleted += deleted;
    }
}
