//! Keeps the volume from bending, stretching and shearing, slowly, away from the shape of its sections.
//!
//! Neurites run slanted, so a section laid exactly onto its neighbour is pulled a fraction of a pixel along with them, and in a chain
//! these pulls add up: the tissue is straightened and the volume bends (up to a pixel a section on cortex at 6 nm). But every section also
//! says what its rest shape is: its map `F`, `R` the rigid part of it, shows `u = F - R` at each volume pixel. Of that
//!
//! ```text
//! u = b + e + d      b  what sections are deformed by on average, as the frame sees it: the first section's own shape, the
//!                       mean compression of the knife, and its trend along z
//!                    e  what the volume has been bent by since: the sum of the pulls s, and a walk of errors
//!                    d  the section's own deformation, new each time
//! ```
//! A Kalman filter tells them apart. `b` and `s` are unknown at first, `e` is 0; the spread of `d` is measured from what comes. So the more alike
//! sections are by themselves, the tighter the volume is held (a block face comes out all but rigid), and strongly deformed ones
//! hold it loosely. Each section takes back a part of `e`, and all after it with it.
//!
//! The affine part of `u` has a filter of its own. A steady trend there is the knife's, as far as chance does not explain it: it goes to `b` and
//! is not fought, up to the rate that a knife can have; only what departs from it is `e`. In what remains, a steady trend is a pull, and it is taken back.
//! Cost: one inverse a node.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Grid, Map};
use serde::{Deserialize, Serialize};

use super::AlignConfig;
use super::filter::{Filter, Rule};
use super::fine;
use super::fit::{self, Pair};

/// Samples of a map along each side of a section, for its rigid part.
const SAMPLES: u32 = 8;

/// Nodes along a side, less one, at most: what drifts is longer than a fiftieth of a section.
const MOST_CELLS: f64 = 48.0;

/// What is known of the volume's deformation after a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// Last section seen.
    last: u32,
    /// Volume pixel to `b` there, pixels, without its affine part. Likewise the next two.
    rest: Grid,
    error: Grid,
    pull: Grid,
    field: Filter,
    /// `[b, e, s]` of the stretch along x, along y, and of the shear.
    stretch: [[f64; 3]; 3],
    affine: Filter,
}

/// What a section was moved by to keep the volume in shape.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Root mean square of the bend that is held to be in the volume, pixels, before a part of it was taken back.
    pub bend_px: f64,
    /// The same of stretch along x and y and of shear, parts of one.
    pub stretch: [f64; 3],
    /// How sections stretch more from each to the next, along x and y, and their shear: the trend of the knife.
    pub trend: [f64; 3],
}

impl Drift {
    /// No drift yet, over the extent of the section `first`, which defines the frame.
    pub(super) fn none(first: u32, low: Xy<f64>, high: Xy<f64>, config: &AlignConfig) -> Self {
        let axis = |low: f64, high: f64| {
            // Other sections are moved and turned a little: they should reach every node.
            let inset = (f64::from(config.drift_node_px) / 2.0).min((high - low) / 8.0).floor();
            let (first, length) = (low + inset, (high - low - 2.0 * inset).max(8.0));
            let cells = (length / f64::from(config.drift_node_px)).round().clamp(2.0, MOST_CELLS);
            (0..=cells as u32).map(|i| first + length / cells * f64::from(i)).collect()
        };
        let (xs, ys) = (axis(low.x, high.x), axis(low.y, high.y));
        let zero = Grid::from_fn(xs, ys, |_| Xy::default()).expect("axes increase");
        let (rest, error, pull) = (zero.clone(), zero.clone(), zero);
        let (field, affine) = (Filter::new(&Rule::FIELD), Filter::new(&Rule::AFFINE));
        Self { last: first, rest, error, pull, field, stretch: [[0.0; 3]; 3], affine }
    }

    /// Learns from one more section of extent `low` to `high` whose map is `map`.
    pub(super) fn learn(&mut self, serial: u32, map: &Map, [low, high]: [Xy<f64>; 2], config: &AlignConfig) {
        let Some(rigid) = rigid_part(map, low, high) else { return };
        let Some(back) = rigid.inverse() else { return };
        self.predict(serial, config);
        let inside = |p: &Xy<f64>| p.x >= low.x && p.y >= low.y && p.x <= high.x && p.y <= high.y;
        let seen = |q: Xy<f64>| map.invert_at(q, back.apply(q)).filter(inside).map(|p| q - rigid.apply(p));
        let seen: Vec<Option<Xy<f64>>> = nodes(&self.rest).map(seen).collect();
        let moves = nodes(&self.rest)
            .zip(&seen)
            .filter_map(|(q, u)| u.map(|u| Pair { from: q, to: q + u, weight: 1.0, fold: 0 }));
        let Some(a) = fit::affine(&moves.collect::<Vec<Pair>>()) else { return };
        let [[xx, xy, _], [yx, yy, _]] = a.rows;
        self.learn_stretch([xx - 1.0, yy - 1.0, (xy + yx) / 2.0], config);
        let residue = nodes(&self.rest).zip(seen).map(|(q, u)| u.map(|u| u - (a.apply(q) - q))).collect::<Vec<_>>();
        self.learn_field(&residue);
    }

    /// What the volume is bent by, at a volume pixel: a part of it is to be taken away.
    pub(super) fn at(&self, q: Xy<f64>, config: &AlignConfig) -> Xy<f64> {
        let (xs, ys) = (self.rest.xs(), self.rest.ys());
        let held = |v: f64, axis: &[f64]| v.clamp(axis[0], axis[axis.len() - 1]);
        let bend = self.error.apply(Xy::new(held(q.x, xs), held(q.y, ys)));
        let d = q - self.centre();
        let [x, y, shear] = self.stretched(config).map(|s| s.0);
        bend + Xy::new(x * d.x + shear * d.y, shear * d.x + y * d.y)
    }

    /// After the set part of the error was taken away.
    pub(super) fn relieve(&mut self, config: &AlignConfig) {
        let (share, believed) = (config.drift_relax, self.stretched(config));
        self.error = mapped(&self.error, |e| rounded(e * (1.0 - share)));
        self.stretch.iter_mut().zip(believed).for_each(|(s, (error, _))| s[1] -= share * error);
    }

    /// Error and trend of the stretch along x, along y, and of the shear.
    fn stretched(&self, config: &AlignConfig) -> [(f64, f64); 3] {
        self.stretch.map(|s| self.affine.believed(&Rule::AFFINE, config.stretch_walk, s))
    }

    /// For the record of a section.
    pub(super) fn shape(&self, config: &AlignConfig) -> Shape {
        let n = (self.error.xs().len() * self.error.ys().len()) as f64;
        let square = nodes(&self.error).map(|q| self.error.apply(q).norm().powi(2)).sum::<f64>() / n;
        let short = |v: f64, unit: f64| (v / unit).round() * unit;
        Shape {
            bend_px: short(square.sqrt(), 1.0 / 1024.0),
            stretch: self.stretched(config).map(|s| short(s.0, 1.0 / 1_048_576.0)),
            trend: self.stretched(config).map(|s| short(s.1, 1.0 / 1_073_741_824.0)),
        }
    }

    fn centre(&self) -> Xy<f64> {
        let middle = |axis: &[f64]| (axis[0] + axis[axis.len() - 1]) / 2.0;
        Xy::new(middle(self.rest.xs()), middle(self.rest.ys()))
    }

    /// Sections from the last seen to this one.
    fn predict(&mut self, serial: u32, config: &AlignConfig) {
        for _ in self.last..serial {
            self.field.predict(&Rule::FIELD, config.drift_pull_px);
            self.affine.predict(&Rule::AFFINE, config.stretch_walk);
            let pull = self.pull.clone();
            self.error = added(&self.error, |q| pull.apply(q));
            self.pull = mapped(&pull, |s| rounded(s * Rule::FIELD.keeps));
            // The trend is the sections' own.
            self.stretch.iter_mut().for_each(|s| s[0] += s[2]);
        }
        self.last = serial;
    }

    fn learn_stretch(&mut self, seen: [f64; 3], config: &AlignConfig) {
        let new: Vec<f64> = self.stretch.iter().zip(seen).map(|(s, u)| u - s[0] - s[1]).collect();
        let square = new.iter().map(|v| v * v).sum::<f64>() / 3.0;
        let gain = self.affine.gain(&Rule::AFFINE, square);
        for (s, new) in self.stretch.iter_mut().zip(new) {
            (0..3).for_each(|i| s[i] += gain[i] * new);
            s[2] = s[2].clamp(-config.stretch_trend, config.stretch_trend);
        }
    }

    /// Nodes that the section does not cover keep theirs.
    fn learn_field(&mut self, seen: &[Option<Xy<f64>>]) {
        let new: Vec<Xy<f64>> = nodes(&self.rest)
            .zip(seen)
            .map(|(q, u)| u.map_or(Xy::default(), |u| u - self.rest.apply(q) - self.error.apply(q)))
            .collect();
        let n = seen.iter().flatten().count().max(1) as f64;
        let square = new.iter().map(|v| v.x * v.x + v.y * v.y).sum::<f64>() / (2.0 * n);
        let gain = self.field.gain(&Rule::FIELD, square);
        for (grid, k) in [&mut self.rest, &mut self.error, &mut self.pull].into_iter().zip(gain) {
            let mut new = new.iter();
            *grid = mapped(grid, |v| rounded(v + new.next().copied().unwrap_or_default() * k));
        }
        // Where a section misses nodes, the others keep a little of its stretch, which is not for this filter to judge.
        let moved = nodes(&self.error).map(|q| Pair { from: q, to: q + self.error.apply(q), weight: 1.0, fold: 0 });
        if let Some(a) = fit::affine(&moved.collect::<Vec<Pair>>()) {
            self.error = added(&self.error, |q| q - a.apply(q));
        }
    }
}

fn nodes(grid: &Grid) -> impl Iterator<Item = Xy<f64>> + '_ {
    grid.ys().iter().flat_map(|y| grid.xs().iter().map(|x| Xy::new(*x, *y)))
}

/// The same nodes with other images, row by row.
fn mapped(grid: &Grid, mut image: impl FnMut(Xy<f64>) -> Xy<f64>) -> Grid {
    let axes = (grid.xs().to_vec(), grid.ys().to_vec());
    Grid::from_fn(axes.0, axes.1, |q| image(grid.apply(q))).expect("the same axes and finite values")
}

fn added(grid: &Grid, more: impl Fn(Xy<f64>) -> Xy<f64>) -> Grid {
    let axes = (grid.xs().to_vec(), grid.ys().to_vec());
    Grid::from_fn(axes.0, axes.1, |q| grid.apply(q) + more(q)).expect("the same axes and finite values")
}

/// The rotation and shift closest to `map` over a section.
pub(super) fn rigid_part(map: &Map, low: Xy<f64>, high: Xy<f64>) -> Option<Affine> {
    let at = |i: u32| f64::from(i) / f64::from(SAMPLES - 1);
    let cells = (0..SAMPLES).flat_map(|r| (0..SAMPLES).map(move |c| (c, r)));
    let points = cells.map(|(c, r)| Xy::new(low.x + at(c) * (high.x - low.x), low.y + at(r) * (high.y - low.y)));
    let pairs: Vec<Pair> = points.map(|from| Pair { from, to: map.apply(from), weight: 1.0, fold: 0 }).collect();
    let a = fit::affine(&pairs)?;
    let [[p, q, _], [r, s, _]] = a.rows;
    let centre = (low + high) * 0.5;
    Some(Affine::rotation((r - q).atan2(p + s), centre).then(&Affine::translation(a.apply(centre) - centre)))
}

/// `map` at the nodes of `axes` with its images moved by `correction`, rounded to 1/1024 px.
pub(super) fn on_axes(map: &Map, (xs, ys): &fine::Axes, correction: impl Fn(Xy<f64>) -> Xy<f64>) -> Map {
    let image = |p: Xy<f64>| rounded(correction(map.apply(p)));
    Map::Grid(Grid::from_fn(xs.clone(), ys.clone(), image).expect("axes increase and solved maps are finite"))
}

/// `map` with its images moved by `correction`; stiff maps, which only the frame's own section has, stay.
pub(super) fn moved(map: &Map, correction: impl Fn(Xy<f64>) -> Xy<f64>) -> Map {
    match map {
        Map::Affine(_) => map.clone(),
        Map::Grid(g) => on_axes(map, &(g.xs().to_vec(), g.ys().to_vec()), correction),
    }
}

/// Largest distance of two maps of one section at its nodes, pixels.
pub(super) fn apart(a: &Map, b: &Map) -> f64 {
    let Map::Grid(g) = b else { return 0.0 };
    let nodes = g.ys().iter().flat_map(|y| g.xs().iter().map(|x| Xy::new(*x, *y)));
    nodes.map(|p| (a.apply(p) - b.apply(p)).norm()).fold(0.0, f64::max)
}

/// To a multiple of 1/1024 px, which short decimals hold exactly.
pub(super) fn rounded(p: Xy<f64>) -> Xy<f64> {
    Xy::new((p.x * 1024.0).round() / 1024.0, (p.y * 1024.0).round() / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: [Xy<f64>; 2] = [Xy::new(0.0, 0.0), Xy::new(1000.0, 800.0)];

    fn axes() -> (Vec<f64>, Vec<f64>) {
        let along = |n: u32| (0..=n).map(|i| f64::from(i) * 100.0).collect::<Vec<f64>>();
        (along(10), along(8))
    }

    /// Sections in a chain: each lies where the volume is bent to, `pulled` further than the one before, with its own shape on top.
    fn chain(n: u32, pulled: impl Fn(u32, Xy<f64>) -> Xy<f64>, own: impl Fn(u32, Xy<f64>) -> Xy<f64>) -> Vec<Xy<f64>> {
        let config = AlignConfig::default();
        let mut drift = Drift::none(0, EXTENT[0], EXTENT[1], &config);
        let spots = [Xy::new(500.0, 400.0), Xy::new(900.0, 400.0), Xy::new(100.0, 100.0), Xy::new(900.0, 700.0)];
        let zero = Grid::from_fn(axes().0, axes().1, |_| Xy::default()).expect("axes increase");
        let (mut bent, mut out) = (zero, vec![]);
        for z in 1..n {
            bent = added(&bent, |q| pulled(z, q));
            let image = |p: Xy<f64>| p + bent.apply(p) + own(z, p) - own(0, p);
            let map = Map::Grid(Grid::from_fn(axes().0, axes().1, image).expect("axes increase"));
            drift.learn(z, &map, EXTENT, &config);
            bent = added(&bent, |q| drift.at(q, &config) * -config.drift_relax);
            drift.relieve(&config);
            out = spots.map(|q| bent.apply(q)).to_vec();
        }
        out
    }

    /// Numbers from -1 to 1.
    fn random(z: u32, k: u32) -> f64 {
        let h = (u64::from(z) << 32 | u64::from(k)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let h = (h ^ (h >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((h >> 40) & 0xFFFF) as f64 / 32767.5 - 1.0
    }

    /// Waves of 6 px at most along x and y.
    fn wavy(z: u32, p: Xy<f64>) -> Xy<f64> {
        let wave = |k: u32, v: f64| 6.0 * random(z, k) * (v / 160.0 + 3.0 * random(z, k + 9)).sin();
        Xy::new(wave(1, p.y), wave(2, p.x))
    }

    #[test]
    fn a_steady_pull_is_learned_and_taken_back() {
        let pulled = |_: u32, q: Xy<f64>| Xy::new(0.0, 0.5 * (q.x / 500.0 * std::f64::consts::TAU).cos());
        let bent = chain(200, pulled, wavy);
        // Unchecked it would be 100 px; sections are bent by 3 px rms themselves.
        assert!(bent.iter().all(|b| b.norm() < 8.0), "{bent:?}");
    }

    #[test]
    fn a_trend_of_the_knife_and_the_first_section_s_own_shape_do_not_move_the_volume() {
        // Compression along y grows by 2 % over the stack, give or take 0.3 %, and everything is wavy.
        let own = |z: u32, p: Xy<f64>| {
            let part = 1e-4 * f64::from(z) + 3e-3 * random(z, 5);
            wavy(z, p) + Xy::new(0.0, part * (p.y - 400.0))
        };
        let bent = chain(200, |_, _| Xy::default(), own);
        assert!(bent.iter().all(|b| b.norm() < 5.0), "{bent:?}");
    }

    #[test]
    fn a_walk_of_the_scale_is_not_taken_for_the_knife() {
        // Sections that are alike but for 0.01 %; the scale along x walks by 0.012 % a section, 0.16 % in 200: 0.7 px at the rim.
        let (mut unchecked, mut held) = (0.0f64, 0.0f64);
        for seed in 0..8 {
            let step = |z: u32| 2e-4 * random(z, 100 + seed);
            let pulled = |z: u32, q: Xy<f64>| Xy::new(step(z) * (q.x - 500.0), 0.0);
            let own = |z: u32, p: Xy<f64>| Xy::new(1e-4 * random(z, 200 + seed) * (p.x - 500.0), 0.0);
            let bent = chain(200, pulled, own);
            unchecked += ((1..200).map(step).sum::<f64>() * 400.0).powi(2);
            held += bent[1].norm().powi(2);
        }
        assert!(held < unchecked / 3.0, "{held} of {unchecked}");
    }

    #[test]
    fn a_block_face_is_held_tightly() {
        // Errors of 0.06 px rms a section walk 0.8 px in 200 and would be 20 px with a lean to one side; sections themselves are all alike.
        let pulled = |z: u32, q: Xy<f64>| Xy::new(0.0, 0.1 * (1.0 + random(z, 3)) * (q.x / 160.0).cos());
        let bent = chain(200, pulled, |_, _| Xy::default());
        assert!(bent.iter().all(|b| b.norm() < 1.5), "{bent:?}");
    }
}
