//! The way back from target to tile, solved at the nodes of a lattice and straight between them.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use kinesin_stream::map::{Affine, Map};

use super::RenderError;
use super::compose::PlacedTile;

/// Error before the last step of the solution, target pixels; the step leaves of it as much as the map bends in a pixel,
/// a tenth or less.
const SETTLED_PX: f64 = 1e-3;
/// Nodes of a row that are solved one from the other. Chains begin at multiples of this, or where the tile begins, so that a
/// node is solved alike for whatever block.
const CHAIN: i64 = 16;

/// The way back from target to tile at nodes `step` output pixels apart, counted from the target's origin.
pub(super) struct Lattice {
    pub(super) step: i64,
    /// First node.
    first: Xy<i64>,
    columns: usize,
    /// Reduced tile pixels, row by row.
    back: Vec<Xy<f64>>,
}

impl Lattice {
    /// All nodes of the cells that touch `part`, which lies within `bounds`, those of the tile in the reduced target.
    pub(super) fn solve(
        placed: &PlacedTile,
        (part, bounds): (BoxXy, BoxXy),
        reduction: u32,
        step: i64,
    ) -> Result<Self, RenderError> {
        let first = Xy::new(part.min.x.div_euclid(step), part.min.y.div_euclid(step));
        let last = Xy::new((part.max.x - 1).div_euclid(step) + 1, (part.max.y - 1).div_euclid(step) + 1);
        let guess = linear_inverse(&placed.map, placed.size);
        let s = f64::from(reduction);
        let at = |n: i64| reduced_to_full((n * step) as f64, s);
        let begin = (first.x.div_euclid(CHAIN) * CHAIN).max(bounds.min.x.div_euclid(step));
        let columns = (last.x - first.x + 1) as usize;
        let mut back = Vec::with_capacity(columns * (last.y - first.y + 1) as usize);
        for r in first.y..=last.y {
            let mut before: [Option<Xy<f64>>; 2] = [None, None];
            for c in begin..=last.x {
                if c.rem_euclid(CHAIN) == 0 {
                    before = [None, None];
                }
                let q = Xy::new(at(c), at(r));
                let from = match before {
                    [Some(a), Some(b)] => a * 2.0 - b,
                    _ => guess.apply(q),
                };
                let p = invert(placed, &guess, q, from)?;
                before = [Some(p), before[0]];
                if c >= first.x {
                    back.push(Xy::new(full_to_reduced(p.x, s), full_to_reduced(p.y, s)));
                }
            }
        }
        Ok(Self { step, first, columns, back })
    }

    /// Reduced tile pixels at the four corners of cell (`column`, `row`).
    pub(super) fn corners(&self, column: i64, row: i64) -> [Xy<f64>; 4] {
        let i = (row - self.first.y) as usize * self.columns + (column - self.first.x) as usize;
        [self.back[i], self.back[i + 1], self.back[i + self.columns], self.back[i + self.columns + 1]]
    }

    /// Smallest and largest coordinates of all nodes.
    pub(super) fn reach(&self) -> (Xy<f64>, Xy<f64>) {
        reach(&self.back)
    }
}

/// The tile pixel whose image is `q`, looked for from `from` on.
fn invert(placed: &PlacedTile, guess: &Affine, q: Xy<f64>, from: Xy<f64>) -> Result<Xy<f64>, RenderError> {
    let [[a, b, _], [c, d, _]] = guess.rows;
    let mut p = from;
    // The map is close to its linear part, so each step shrinks the error by the bend per pixel.
    for _ in 0..12 {
        let e = q - placed.map.apply(p);
        p = Xy::new(p.x + a * e.x + b * e.y, p.y + c * e.x + d * e.y);
        if e.x * e.x + e.y * e.y < SETTLED_PX * SETTLED_PX {
            return Ok(p);
        }
    }
    let flat = RenderError::NotInvertible { key: placed.key, x: q.x as i64, y: q.y as i64 };
    placed.map.invert_at(q, guess.apply(q)).or_else(|| beyond(placed, guess, q)).ok_or(flat)
}

/// A target pixel that no part of the tile comes to: as far from the nearest node of the rim as the linear part says.
fn beyond(placed: &PlacedTile, guess: &Affine, q: Xy<f64>) -> Option<Xy<f64>> {
    let Map::Grid(g) = &placed.map else { return None };
    let (nx, ny) = (g.xs().len(), g.ys().len());
    let rim = (0..nx).flat_map(|c| [(c, 0), (c, ny - 1)]).chain((0..ny).flat_map(|r| [(0, r), (nx - 1, r)]));
    let nearest = rim.min_by(|a, b| (g.node(a.0, a.1) - q).norm().total_cmp(&(g.node(b.0, b.1) - q).norm()))?;
    let (from, to) = (Xy::new(g.xs()[nearest.0], g.ys()[nearest.1]), g.node(nearest.0, nearest.1));
    Some(from + guess.apply(q) - guess.apply(to))
}

/// Smallest and largest coordinates.
pub(super) fn reach(points: &[Xy<f64>]) -> (Xy<f64>, Xy<f64>) {
    let none = (Xy::new(f64::MAX, f64::MAX), Xy::new(f64::MIN, f64::MIN));
    points.iter().fold(none, |(low, high), p| {
        (Xy::new(low.x.min(p.x), low.y.min(p.y)), Xy::new(high.x.max(p.x), high.y.max(p.y)))
    })
}

/// Inverse of the affine map through the tile's corners and centre, identity linear part where it is flat.
fn linear_inverse(map: &Map, size: Xy<u32>) -> Affine {
    if let Map::Affine(a) = map {
        return a.inverse().unwrap_or(Affine::IDENTITY);
    }
    let (w, h) = (f64::from(size.x), f64::from(size.y));
    let at = |u: f64, v: f64| map.apply(Xy::new(u * w, v * h));
    let dx = (at(1.0, 0.0) + at(1.0, 1.0) - at(0.0, 0.0) - at(0.0, 1.0)) * (0.5 / w);
    let dy = (at(0.0, 1.0) + at(1.0, 1.0) - at(0.0, 0.0) - at(1.0, 0.0)) * (0.5 / h);
    let centre = at(0.5, 0.5);
    let t = centre - Xy::new(dx.x * w / 2.0 + dy.x * h / 2.0, dx.y * w / 2.0 + dy.y * h / 2.0);
    let a = Affine { rows: [[dx.x, dy.x, t.x], [dx.y, dy.y, t.y]] };
    a.inverse().unwrap_or(Affine::translation(Xy::default() - centre))
}
