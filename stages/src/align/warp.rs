//! A plane under a map: the way back is solved at the nodes of a lattice and bilinear between them.
//!
//! The lattice is anchored at the target's origin. Cells in which the way back is not bilinear (at cuts, where both sides move apart) are
//! halved down to single pixels. Cost: one bilinear sample a pixel of the target, one inverse a node (a 256th of the pixels).

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::map::{Affine, Map};
use rayon::prelude::*;

use super::plane::Plane;

/// Side of a cell, pixels of the target.
const CELL: i64 = 16;
/// A cell is halved where its middle lies further than this from that of its corners, source pixels.
const BENT: f64 = 0.5;
/// How exactly the way back is solved, full-resolution pixels.
const SETTLED_PX: f64 = 1e-3;
/// Bits of fraction of a sample's place.
const FRACTION: u32 = 16;

/// What `source` shows in `area` of the target at the same scale, under `map` (full-resolution source pixel to target pixel).
pub(super) fn drawn(source: &Plane, map: &Map, area: BoxXy) -> Plane {
    let mut out = Plane::empty(area, source.scale);
    let back = Back::new(map, source);
    let size = area.size();
    let (first, last) = (area.min.x.div_euclid(CELL), (area.max.x - 1).div_euclid(CELL));
    let top = area.min.y.div_euclid(CELL);
    // Bands of rows are those of the lattice, whatever the area.
    let head = ((top + 1) * CELL - area.min.y).min(size.y as i64) as usize * size.x;
    let (start, rest) = out.grey.split_at_mut(head);
    let bands: Vec<&mut [u8]> = std::iter::once(start).chain(rest.chunks_mut(CELL as usize * size.x.max(1))).collect();
    bands.into_par_iter().enumerate().filter(|(_, b)| !b.is_empty()).for_each(|(i, band)| {
        let row = top + i as i64;
        let at = |c: i64, r: i64| Xy::new(c * CELL, r * CELL);
        let mut left = [back.at(at(first, row), None), back.at(at(first, row + 1), None)];
        for c in first..=last {
            let right = [back.at(at(c + 1, row), left[0]), back.at(at(c + 1, row + 1), left[1])];
            let cell = Cell { min: at(c, row), side: CELL, corners: [left[0], right[0], left[1], right[1]] };
            let low = Xy::new(area.min.x, (row * CELL).max(area.min.y));
            let rows = Target { low, width: size.x, rows: band.len() / size.x };
            fill(source, &back, &cell, &rows, band);
            left = right;
        }
    });
    out
}

/// The way back from the target, in pixels of the source plane.
struct Back<'a> {
    map: &'a Map,
    source: &'a Plane,
    /// Inverse of the map's linear part.
    linear: Affine,
    exact: bool,
}

impl<'a> Back<'a> {
    fn new(map: &'a Map, source: &'a Plane) -> Self {
        let linear = linear_inverse(map, source);
        Self { map, source, linear, exact: matches!(map, Map::Affine(_)) }
    }

    /// Source pixel of pixel `q` of the target; `near` is the source pixel of a neighbour.
    fn at(&self, q: Xy<i64>, near: Option<Xy<f64>>) -> Option<Xy<f64>> {
        let goal = self.source.full(Xy::new(q.x as f64, q.y as f64));
        let first = self.linear.apply(goal);
        if self.exact {
            return Some(self.source.place_of(first));
        }
        let [[a, b, _], [c, d, _]] = self.linear.rows;
        let mut p = near.map_or(first, |n| self.source.to_full(n));
        for _ in 0..12 {
            let e = goal - self.map.apply(p);
            p = Xy::new(p.x + a * e.x + b * e.y, p.y + c * e.x + d * e.y);
            if e.norm() < SETTLED_PX {
                return Some(self.source.place_of(p));
            }
        }
        self.map.invert_at(goal, first).map(|p| self.source.place_of(p))
    }
}

/// Inverse of the affine map through the corners and the middle of the source.
pub(super) fn linear_inverse(map: &Map, source: &Plane) -> Affine {
    if let Map::Affine(a) = map {
        return a.inverse().unwrap_or(Affine::IDENTITY);
    }
    let (w, h) = (source.width as f64, source.height as f64);
    let from = |u: f64, v: f64| source.to_full(Xy::new(u * w, v * h));
    let to = |u: f64, v: f64| map.apply(from(u, v));
    let (o, size) = (from(0.5, 0.5), from(1.0, 1.0) - from(0.0, 0.0));
    let dx = (to(1.0, 0.0) + to(1.0, 1.0) - to(0.0, 0.0) - to(0.0, 1.0)) * (0.5 / size.x);
    let dy = (to(0.0, 1.0) + to(1.0, 1.0) - to(0.0, 0.0) - to(1.0, 0.0)) * (0.5 / size.y);
    let t = to(0.5, 0.5) - Xy::new(dx.x * o.x + dy.x * o.y, dx.y * o.x + dy.y * o.y);
    Affine { rows: [[dx.x, dy.x, t.x], [dx.y, dy.y, t.y]] }.inverse().unwrap_or(Affine::IDENTITY)
}

/// A square of the target and the source pixels of its corners.
struct Cell {
    min: Xy<i64>,
    side: i64,
    corners: [Option<Xy<f64>>; 4],
}

/// The rows that are being filled.
struct Target {
    low: Xy<i64>,
    width: usize,
    rows: usize,
}

fn fill(source: &Plane, back: &Back<'_>, cell: &Cell, target: &Target, out: &mut [u8]) {
    let (side, min) = (cell.side, cell.min);
    let [Some(a), Some(b), Some(c), Some(d)] = cell.corners else {
        return halve(source, back, cell, target, out);
    };
    if !back.exact && side > 1 {
        // Across one of its diagonals a bilinear cell bends by the difference of their middles.
        let twist = (a + d - b - c).norm() * 0.5;
        let (across, down) = ((b - a).norm() / side as f64, (c - a).norm() / side as f64);
        let even = |v: f64| (0.7..1.4).contains(&v);
        if twist > BENT || !even(across) || !even(down) {
            return halve(source, back, cell, target, out);
        }
    }
    let n = side as f64;
    let rows = (min.y.max(target.low.y))..((min.y + side).min(target.low.y + target.rows as i64));
    let columns = min.x.max(target.low.x)..(min.x + side).min(target.low.x + target.width as i64);
    if columns.is_empty() {
        return;
    }
    for y in rows {
        let v = (y - min.y) as f64 / n;
        let left = a * (1.0 - v) + c * v;
        let step = (b * (1.0 - v) + d * v - left) * (1.0 / n);
        let start = left + step * (columns.start - min.x) as f64;
        let at = (y - target.low.y) as usize * target.width + (columns.start - target.low.x) as usize;
        let length = (columns.end - columns.start) as usize;
        sample(source, start, step, &mut out[at..at + length]);
    }
}

/// The four quarters of a cell, each with its own inverses.
fn halve(source: &Plane, back: &Back<'_>, cell: &Cell, target: &Target, out: &mut [u8]) {
    let (half, min) = (cell.side / 2, cell.min);
    if half == 0 {
        return;
    }
    let near = cell.corners.iter().copied().flatten().next();
    let at = |i: i64, j: i64| back.at(Xy::new(min.x + i * half, min.y + j * half), near);
    let nodes: Vec<Option<Xy<f64>>> = (0..9).map(|k| at(k % 3, k / 3)).collect();
    for (i, j) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let k = 3 * j + i;
        let corners = [nodes[k], nodes[k + 1], nodes[k + 3], nodes[k + 4]];
        let min = Xy::new(min.x + i as i64 * half, min.y + j as i64 * half);
        fill(source, back, &Cell { min, side: half, corners }, target, out);
    }
}

/// A straight run of bilinear samples; empty where one of the four neighbours is.
fn sample(source: &Plane, start: Xy<f64>, step: Xy<f64>, out: &mut [u8]) {
    let fixed = |v: f64| (v * f64::from(1u32 << FRACTION)).round() as i64;
    // The 256 places between two pixels are rounded to, not down to: what is drawn again and again would creep.
    let (half, dx, dy) = (1 << (FRACTION - 9), fixed(step.x), fixed(step.y));
    let (mut x, mut y) = (fixed(start.x) + half, fixed(start.y) + half);
    let (w, h) = (source.width, source.height);
    for o in out {
        let (c, r) = ((x >> FRACTION) as usize, (y >> FRACTION) as usize);
        if x >= 0 && y >= 0 && c + 1 < w && r + 1 < h {
            let top = &source.grey[r * w + c..][..2];
            let low = &source.grey[(r + 1) * w + c..][..2];
            let four = [top[0], top[1], low[0], low[1]].map(u32::from);
            if !four.contains(&0) {
                let (u, v) = (((x >> 8) & 255) as u32, ((y >> 8) & 255) as u32);
                let (t, l) = (four[0] * (256 - u) + four[1] * u, four[2] * (256 - u) + four[3] * u);
                *o = ((t * (256 - v) + l * v + (1 << 15)) >> 16) as u8;
            }
        }
        (x, y) = (x + dx, y + dy);
    }
}
