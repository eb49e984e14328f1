//! Keeps the volume from bending, slowly, away from the shape of its sections.
//!
//! Neurites run slanted, so a section laid exactly onto its neighbour is pulled a fraction of a pixel along with them, and in a chain
//! these pulls add up: the tissue is straightened and the volume bends (about a pixel a section on cortex at 6 nm). But every section also
//! says what its rest shape is: it bends the volume frame by `u = F - R`, `R` the rigid part of its map `F`. A section's own deformation
//! averages out along z; what stays in the running mean `m` of `u` is a deformation of the volume. Each section takes the
//! part `k` of it back: `F' = F - k m(F)`.
//!
//! With a pull of `s` px a section and a mean over `n` sections this settles at `m = s / k`, where what is taken back equals the pull,
//! without overshoot to speak of where `4 k n` is about 2. Neighbours differ by `k m` at most. Cost: one inverse a node.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Grid, Map};
use serde::{Deserialize, Serialize};

use super::fit::{self, Pair};

/// Samples of a map along each side of a section, for its rigid part.
const SAMPLES: u32 = 8;

/// The running mean after a section; part of its record, so that a restart continues exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drift {
    /// Volume pixel to mean deformation there, pixels.
    field: Grid,
}

impl Drift {
    /// No drift yet; nodes lie at `xs` and `ys`, volume pixels.
    pub(super) fn none((xs, ys): (Vec<f64>, Vec<f64>)) -> Self {
        Self { field: Grid::from_fn(xs, ys, |_| Xy::default()).expect("axes increase") }
    }

    /// The mean after one more section of extent `low` to `high` whose map is `map`; nodes that it does not cover keep theirs.
    pub(super) fn with(&self, map: &Map, low: Xy<f64>, high: Xy<f64>, window: u32) -> Self {
        let Some(rigid) = rigid_part(map, low, high) else { return self.clone() };
        let Some(back) = rigid.inverse() else { return self.clone() };
        let share = 1.0 / f64::from(window);
        let update = |q: Xy<f64>| {
            let old = self.field.apply(q);
            let covered = |p: &Xy<f64>| p.x >= low.x && p.y >= low.y && p.x <= high.x && p.y <= high.y;
            match map.invert_at(q, back.apply(q)).filter(covered) {
                Some(p) => rounded(old + (q - rigid.apply(p) - old) * share),
                None => old,
            }
        };
        let axes = (self.field.xs().to_vec(), self.field.ys().to_vec());
        Self { field: Grid::from_fn(axes.0, axes.1, update).expect("the same axes") }
    }

    /// The mean deformation at a volume pixel; beyond the frame that of its rim.
    pub(super) fn at(&self, q: Xy<f64>) -> Xy<f64> {
        let held = |v: f64, axis: &[f64]| v.clamp(axis[0], axis[axis.len() - 1]);
        self.field.apply(Xy::new(held(q.x, self.field.xs()), held(q.y, self.field.ys())))
    }
}

/// The rotation and shift closest to `map` over a section.
fn rigid_part(map: &Map, low: Xy<f64>, high: Xy<f64>) -> Option<Affine> {
    let at = |i: u32| f64::from(i) / f64::from(SAMPLES - 1);
    let cells = (0..SAMPLES).flat_map(|r| (0..SAMPLES).map(move |c| (c, r)));
    let points = cells.map(|(c, r)| Xy::new(low.x + at(c) * (high.x - low.x), low.y + at(r) * (high.y - low.y)));
    let pairs: Vec<Pair> = points.map(|from| Pair { from, to: map.apply(from), weight: 1.0, fold: 0 }).collect();
    let a = fit::affine(&pairs)?;
    let [[p, q, _], [r, s, _]] = a.rows;
    let centre = (low + high) * 0.5;
    Some(Affine::rotation((r - q).atan2(p + s), centre).then(&Affine::translation(a.apply(centre) - centre)))
}

/// To a multiple of 1/1024 px, which short decimals hold exactly.
pub(super) fn rounded(p: Xy<f64>) -> Xy<f64> {
    Xy::new((p.x * 1024.0).round() / 1024.0, (p.y * 1024.0).round() / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> (Vec<f64>, Vec<f64>) {
        let along = |n: u32| (0..=n).map(|i| f64::from(i) * 100.0).collect::<Vec<f64>>();
        (along(10), along(8))
    }

    #[test]
    fn a_lasting_deformation_is_learned_and_a_turn_is_not() {
        let (low, high) = (Xy::new(0.0, 0.0), Xy::new(1000.0, 800.0));
        let mut drift = Drift::none(axes());
        let turn = Map::Affine(Affine::rotation(0.05, Xy::new(400.0, 300.0)));
        let learned = drift.with(&turn, low, high, 1);
        let points = [Xy::new(100.0, 100.0), Xy::new(900.0, 400.0), Xy::new(500.0, 700.0)];
        assert!(points.iter().all(|p| learned.at(*p).norm() < 0.01));
        let bend = |p: Xy<f64>| p + Xy::new(5.0 * ((p.x - 500.0) / 500.0).powi(2), 0.0);
        let bent = Map::Grid(Grid::from_fn(axes().0, axes().1, bend).expect("axes increase"));
        for _ in 0..60 {
            drift = drift.with(&bent, low, high, 6);
        }
        let (rim, middle) = (drift.at(Xy::new(900.0, 400.0)).x, drift.at(Xy::new(500.0, 400.0)).x);
        // The parabola at volume pixel 900 (section pixel 896.8): 5 * 0.794^2 = 3.15 px above its middle.
        assert!((rim - middle - 3.15).abs() < 0.1, "{rim} {middle}");
    }

    #[test]
    fn a_steady_pull_is_cancelled_and_does_not_add_up() {
        let (low, high) = (Xy::new(0.0, 0.0), Xy::new(1000.0, 800.0));
        let wave = |p: Xy<f64>| Xy::new(0.0, (p.x / 500.0 * std::f64::consts::TAU).cos());
        let (mut drift, mut height, mut highest) = (Drift::none(axes()), 0.0, 0.0f64);
        for _ in 0..200 {
            // Each section is pulled 0.5 px further along two full waves than the one before.
            height += 0.5;
            let pulled = |p: Xy<f64>| p + wave(p) * height;
            let given_back = |p: Xy<f64>| pulled(p) - drift.at(pulled(p)) * 0.08;
            let map = Map::Grid(Grid::from_fn(axes().0, axes().1, given_back).expect("axes increase"));
            height = map.apply(Xy::new(500.0, 400.0)).y - 400.0;
            highest = highest.max(height);
            drift = drift.with(&map, low, high, 6);
        }
        // Unchecked it would be 100 px; it settles at 0.5 / 0.08 = 6.3 px after a small overshoot.
        assert!((height - 6.3).abs() < 1.0 && highest < 9.0, "{height} {highest}");
    }
}
