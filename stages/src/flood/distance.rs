//! Exact Euclidean distance transform with voxel sizes, by lower envelopes of parabolas along each axis.
//!
//! Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 2012. Linear in voxels.
//! The border of the volume is no edge: a voxel is measured to the nearest edge voxel inside.

use ndarray::{Array3, ArrayViewMut1, Axis, Zip};

/// Distance of every voxel to the nearest `true` voxel, in the units of `size` (z, y, x); infinite where there is none.
pub(crate) fn distance(edges: &Array3<bool>, size: [f64; 3]) -> Array3<f32> {
    let mut squared = edges.mapv(|e| if e { 0.0f64 } else { f64::INFINITY });
    for (axis, step) in size.into_iter().enumerate() {
        let mut lane = Envelope::default();
        for mut line in squared.lanes_mut(Axis(axis)) {
            lane.transform(&mut line, step);
        }
    }
    let mut out = Array3::zeros(edges.raw_dim());
    Zip::from(&mut out).and(&squared).for_each(|o, &s| *o = s.sqrt() as f32);
    out
}

/// Working space for one line.
#[derive(Default)]
struct Envelope {
    values: Vec<f64>,
    /// Positions of the parabolas of the lower envelope, and where each begins to be lowest.
    feet: Vec<usize>,
    starts: Vec<f64>,
}

impl Envelope {
    fn transform(&mut self, line: &mut ArrayViewMut1<'_, f64>, step: f64) {
        self.values.clear();
        self.values.extend(line.iter().copied());
        self.feet.clear();
        self.starts.clear();
        for q in 0..self.values.len() {
            if self.values[q].is_finite() {
                self.add(q, step);
            }
        }
        if self.feet.is_empty() {
            return;
        }
        let mut k = 0;
        for (q, out) in line.iter_mut().enumerate() {
            let at = q as f64 * step;
            while k + 1 < self.feet.len() && self.starts[k + 1] < at {
                k += 1;
            }
            *out = self.values[self.feet[k]] + (at - self.feet[k] as f64 * step).powi(2);
        }
    }

    fn add(&mut self, q: usize, step: f64) {
        let at = q as f64 * step;
        while let (Some(&foot), Some(&start)) = (self.feet.last(), self.starts.last()) {
            let p = foot as f64 * step;
            let crossing = ((self.values[q] + at * at) - (self.values[foot] + p * p)) / (2.0 * (at - p));
            if crossing > start {
                self.feet.push(q);
                self.starts.push(crossing);
                return;
            }
            self.feet.pop();
            self.starts.pop();
        }
        self.feet.push(q);
        self.starts.push(f64::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_a_search_over_all_edges() {
        let (shape, size) = ([5usize, 7, 6], [3.0, 1.0, 1.5]);
        let edges = Array3::from_shape_fn(shape, |(z, y, x)| (z * 31 + y * 17 + x * 7) % 23 == 0);
        let got = distance(&edges, size);
        for ((z, y, x), &d) in got.indexed_iter() {
            let best = edges.indexed_iter().filter(|(_, e)| **e).map(|((a, b, c), _)| {
                let gap = |p: usize, q: usize, s: f64| (p as f64 - q as f64) * s;
                gap(z, a, size[0]).powi(2) + gap(y, b, size[1]).powi(2) + gap(x, c, size[2]).powi(2)
            });
            let best = best.fold(f64::INFINITY, f64::min).sqrt();
            assert!((f64::from(d) - best).abs() < 1e-6, "{z} {y} {x}: {d} {best}");
        }
    }

    #[test]
    fn without_edges_every_distance_is_infinite() {
        assert!(distance(&Array3::from_elem((2, 3, 4), false), [1.0; 3]).iter().all(|d| d.is_infinite()));
    }
}
