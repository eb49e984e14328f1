//! Pieces joined in one map that never folds over itself.
//!
//! ```text
//!   piece A │ gap │ piece B        nodes A A A . . B B B     those of a gap that closes lie on the other side's tissue:
//!           ▼                            │ │ │ └─┴─ free     free, put harmonically between those that stay
//!   volume: A A A..B B B                 └─┴─ stay
//! ```
//! *Form.* An ordinary grid map with nodes 8 px apart, the coarsest that keeps both rims of a crack of 20 px in cells of their own: files,
//! renderer and whoever reads them need nothing new.
//!
//! *Promise.* All cells keep a part of their area, and far outside the map is affine; hence every volume pixel comes from exactly one place.
//! Where pieces lie across each other, more nodes around such places are freed, ring by ring, until that holds (a harmonic filling between
//! sides that stay does not fold once it is wide enough; Tutte 1963): the tissue right at the gap pays, both sides stay.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Grid, Map};

use super::cut::Labels;
use super::fine::Axes;
use super::fit::{self, Pair};

/// Distance of the nodes of the resulting grid, full-resolution pixels; grows where a section would need more than [`MOST_NODES`] a side.
const NODE_PX: f64 = 8.0;
const MOST_NODES: f64 = 400.0;
/// Beyond this many pixels outside the section the map is affine.
const RIM_PX: f64 = 256.0;
/// Part of its area that a cell keeps at least.
const LEAST_AREA: f64 = 0.05;
/// Rings of nodes that are freed around every cell that folds, round by round.
const RINGS: [i64; 14] = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48];
/// Sweeps of the harmonic filling in a round, beside two for every ring, and by how much each overshoots.
const SWEEPS: usize = 60;
const OVERSHOOT: f64 = 1.6;

/// One map of all pieces over a section from `low` to `high`; `None` where the pieces lie so that no map joins them.
pub(super) fn joined(maps: &[Map], labels: &Labels, low: Xy<f64>, high: Xy<f64>) -> Option<(Map, Axes)> {
    let longest = (high.x - low.x).max(high.y - low.y);
    let step = NODE_PX.max((longest / MOST_NODES).ceil());
    let inner = (axis(low.x, high.x, step), axis(low.y, high.y, step));
    let guesses: Vec<Affine> = maps.iter().map(|m| labels.inverse(m)).collect();
    let place = |p: Xy<f64>| {
        let held = Xy::new(p.x.clamp(low.x, high.x), p.y.clamp(low.y, high.y));
        let (own, score) = labels.at(held).unwrap_or((0, 0.0));
        let q = maps[own].apply(p);
        let covers = |k: usize| {
            let other = maps[k].invert_at(q, guesses[k].apply(q));
            other.and_then(|o| labels.at(o)).is_some_and(|(piece, s)| piece == k && s > score)
        };
        (q, (0..maps.len()).any(|k| k != own && covers(k)))
    };
    unfolded(&inner, place)
}

/// The grid of the nodes of `inner` whose images `place` gives, each with whether it is free to lie elsewhere; more are freed until none folds.
pub(super) fn unfolded(inner: &Axes, place: impl Fn(Xy<f64>) -> (Xy<f64>, bool)) -> Option<(Map, Axes)> {
    let given: Vec<(Xy<f64>, Xy<f64>, bool)> =
        nodes(inner).map(|p| (p, place(p))).map(|(p, (q, f))| (p, q, f)).collect();
    let pair = |(from, to, _): &(Xy<f64>, Xy<f64>, bool)| Pair { from: *from, to: *to, weight: 1.0, fold: 0 };
    let whole = fit::affine(&given.iter().map(pair).collect::<Vec<Pair>>()).filter(|a| a.determinant() > 0.0)?;
    let axes = (beyond(&inner.0), beyond(&inner.1));
    let mut given = given.into_iter();
    let (nx, ny) = (axes.0.len(), axes.1.len());
    let outside = |i: usize| i % nx < 2 || i % nx + 2 >= nx || i / nx < 2 || i / nx + 2 >= ny;
    let start = nodes(&axes).enumerate().map(|(i, p)| match outside(i) {
        true => Some((whole.apply(p), false)),
        false => given.next().map(|(_, q, free)| (q, free)),
    });
    let (images, free): (Vec<Xy<f64>>, Vec<bool>) = start.collect::<Option<Vec<_>>>()?.into_iter().unzip();
    let mut mesh = Mesh { axes, images, free, least: LEAST_AREA * whole.determinant() };
    mesh.unfold().then_some(())?;
    let Mesh { axes, images, .. } = mesh;
    Grid::new(axes.0.clone(), axes.1.clone(), images).ok().map(|g| (Map::Grid(g), axes))
}

fn nodes((xs, ys): &Axes) -> impl Iterator<Item = Xy<f64>> + '_ {
    ys.iter().flat_map(|y| xs.iter().map(|x| Xy::new(*x, *y)))
}

/// Nodes `step` apart from `low` on, the last at or beyond `high`.
fn axis(low: f64, high: f64, step: f64) -> Vec<f64> {
    let cells = ((high - low.floor()) / step).ceil().max(1.0) as u32;
    (0..=cells).map(|i| low.floor() + step * f64::from(i)).collect()
}

/// Two more nodes at either end, far outside.
fn beyond(axis: &[f64]) -> Vec<f64> {
    let (first, last, step) = (axis[0], axis[axis.len() - 1], axis[1] - axis[0]);
    let before = [first - RIM_PX - step, first - RIM_PX];
    let after = [last + RIM_PX, last + RIM_PX + step];
    before.into_iter().chain(axis.iter().copied()).chain(after).collect()
}

/// Nodes and where they are put.
struct Mesh {
    axes: Axes,
    images: Vec<Xy<f64>>,
    /// Whether a node may lie anywhere.
    free: Vec<bool>,
    /// Least area of a cell, a part of what it covers in the section.
    least: f64,
}

impl Mesh {
    /// Fills and frees until no cell folds; `false` where that does not come about.
    fn unfold(&mut self) -> bool {
        for ring in RINGS {
            self.fill(SWEEPS + 2 * ring as usize);
            let flat = self.flat();
            if flat.is_empty() {
                return true;
            }
            for (c, r) in flat {
                self.release(c, r, ring);
            }
        }
        self.fill(4 * SWEEPS);
        self.flat().is_empty()
    }

    /// Cells that are flatter than allowed in a corner: the area of a bilinear cell is least in one of them.
    fn flat(&self) -> Vec<(i64, i64)> {
        let (xs, ys) = &self.axes;
        let nx = xs.len();
        let folds = |c: usize, r: usize| {
            let i = r * nx + c;
            let [a, b, d, e] = [i, i + 1, i + nx, i + nx + 1].map(|i| self.images[i]);
            let area = (xs[c + 1] - xs[c]) * (ys[r + 1] - ys[r]);
            let cross = |u: Xy<f64>, v: Xy<f64>| u.x * v.y - u.y * v.x;
            let corners = [cross(b - a, d - a), cross(b - a, e - b), cross(e - d, d - a), cross(e - d, e - b)];
            corners.into_iter().any(|k| k < self.least * area)
        };
        let cells = (0..ys.len() - 1).flat_map(|r| (0..nx - 1).map(move |c| (c, r)));
        cells.filter(|(c, r)| folds(*c, *r)).map(|(c, r)| (c as i64, r as i64)).collect()
    }

    /// Frees the corners of a cell and `ring` rings around them; not those that make the map affine outside.
    fn release(&mut self, column: i64, row: i64, ring: i64) {
        let (nx, ny) = (self.axes.0.len() as i64, self.axes.1.len() as i64);
        for r in (row - ring).max(2)..(row + 2 + ring).min(ny - 2) {
            for c in (column - ring).max(2)..(column + 2 + ring).min(nx - 2) {
                self.free[(r * nx + c) as usize] = true;
            }
        }
    }

    /// Puts the free nodes at the mean of their neighbours, the nearer weighing more.
    fn fill(&mut self, sweeps: usize) {
        let (xs, ys) = &self.axes;
        let nx = xs.len();
        let weights = |i: usize| {
            let (c, r) = (i % nx, i / nx);
            let near = [xs[c] - xs[c - 1], xs[c + 1] - xs[c], ys[r] - ys[r - 1], ys[r + 1] - ys[r]];
            near.map(|d| 1.0 / d)
        };
        let free: Vec<(usize, [f64; 4])> =
            (0..self.images.len()).filter(|i| self.free[*i]).map(|i| (i, weights(i))).collect();
        for _ in 0..sweeps {
            for (i, w) in &free {
                let around = [i - 1, i + 1, i - nx, i + nx].map(|k| self.images[k]);
                let sum = around.into_iter().zip(w).fold(Xy::default(), |s, (q, w)| s + q * *w);
                let mean = sum * (1.0 / w.iter().sum::<f64>());
                self.images[*i] = self.images[*i] + (mean - self.images[*i]) * OVERSHOOT;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, TileKey};
    use kinesin_stream::map::{SectionToVolume, TileToSection};
    use kinesin_stream::pixels::Pixels;

    use super::super::links::near_inverse;
    use super::*;
    use crate::render::{PlacedTile, RenderConfig, Renderer, Tone, compose};

    const SIDE: f64 = 511.0;

    /// Numbers from -1 to 1.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0
        }
    }

    /// Up to three cracks or folds along wavy lines, each with its opening, shear and turn, and the border between the sides told badly.
    fn torn(seed: u64) -> impl Fn(Xy<f64>) -> (Xy<f64>, bool) {
        let mut random = Random(seed);
        (0..5).for_each(|_| _ = random.next());
        let cuts: Vec<[f64; 7]> = (0..1 + seed % 3).map(|_| [0; 7].map(|_| random.next())).collect();
        let ragged: Vec<f64> = (0..64 * 64).map(|_| random.next()).collect();
        move |p| {
            let mut q = p;
            let mut free = false;
            for [x, y, angle, opening, shear, turn, wave] in &cuts {
                let (sin, cos) = (angle * 3.2).sin_cos();
                let d = p - Xy::new(256.0 + 150.0 * x, 256.0 + 150.0 * y);
                let (across, along) = (d.x * cos + d.y * sin, d.y * cos - d.x * sin);
                let noise = ragged[(p.y as usize / 16 % 64) * 64 + p.x as usize / 16 % 64];
                let off = across - 20.0 * wave * (along / 90.0).sin() + 12.0 * noise;
                let side = if off > 0.0 { 0.5 } else { -0.5 };
                // Both sides move apart by up to 40 px, or over one another, along each other by 30 px, and turn by 1.5 degrees.
                let (away, beside) = (40.0 * opening + 0.025 * turn * along, 30.0 * shear - 0.025 * turn * across);
                q = q + Xy::new(cos * away - sin * beside, sin * away + cos * beside) * side;
                free |= off.abs() < 8.0 && *opening < 0.0;
            }
            (q, free)
        }
    }

    fn axes() -> Axes {
        (axis(0.0, SIDE, 8.0), axis(0.0, SIDE, 8.0))
    }

    #[test]
    fn whatever_the_cracks_and_folds_every_volume_pixel_comes_from_one_place_and_can_be_drawn() {
        let (mut bent_whole, mut far) = (0, 0);
        for seed in 0..60 {
            let place = torn(seed);
            let Some((map, _)) = unfolded(&axes(), &place) else {
                bent_whole += 1;
                continue;
            };
            let guess = near_inverse(&map);
            for (x, y) in (-20..40).flat_map(|y| (-20..60).map(move |x| (x, y))) {
                let q = guess.inverse().expect("regular").apply(Xy::new(f64::from(x) * 13.7, f64::from(y) * 13.1));
                let p = map.invert_at(q, guess.apply(q)).expect("one place");
                assert!((map.apply(p) - q).norm() < 1e-5, "seed {seed} at {q:?}");
            }
            // Tissue far from what was torn lies where its piece says.
            let inside = (2..62).flat_map(|r| (2..62).map(move |c| Xy::new(8.0 * f64::from(c), 8.0 * f64::from(r))));
            far += inside.filter(|p| (map.apply(*p) - place(*p).0).norm() < 0.01).count();
            drawn(&map, seed);
        }
        assert!(bent_whole <= 1, "{bent_whole} of 60");
        // Of 3600 nodes each; two cracks on average, with 48 px around each freed, take about a third.
        assert!(far > 59 * 1800, "{far}");
    }

    /// The renderer draws two tiles of such a section at two scales.
    fn drawn(map: &Map, seed: u64) {
        let tile = |beam: u16| {
            let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
            let at = TileToSection(Map::Affine(Affine::translation(Xy::new(f64::from(beam) * 192.0, 3.0))));
            let map = compose(&at, &SectionToVolume(map.clone()), Xy::new(320, 500));
            let placed = PlacedTile {
                key: TileKey { mfov, beam: BeamId(beam) },
                size: Xy::new(320, 500),
                map,
                tone: Tone::IDENTITY,
            };
            (placed, Pixels::new(320, 500, vec![9u8; 320 * 500]))
        };
        let tiles = [tile(0), tile(1)];
        let renderer = Renderer::new(RenderConfig::default()).expect("the default is allowed");
        for scale in [1, 4] {
            let block = tiles[0].0.bounds(scale).union(&tiles[1].0.bounds(scale));
            let out = renderer.render_block(block, scale, &tiles);
            assert!(out.is_ok_and(|o| o.iter().any(|v| *v == 9)), "seed {seed} at scale {scale}");
        }
    }
}
