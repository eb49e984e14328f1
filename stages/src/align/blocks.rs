//! Where patches of one plane lie in another: exact normalised correlation over a square of offsets.
//!
//! `score(d) = sum t(x) r(x + d) / sqrt(sum t^2 sum r^2)` over a patch. The peak is refined by a quadratic through its 3 x 3
//! neighbours. A patch is trusted where its peak lies inside the search, is high enough, and stands out from the second
//! peak and from the best score of the *mirrored* patch, which cannot be real (feabas' measure of chance).
//! Cost: `patch^2 (2 search + 1)^2` products a patch, 1.25 times with the mirror.

use kinesin_stream::geometry::Xy;
use rayon::prelude::*;

use super::plane::Plane;

/// Sizes in pixels of the plane, and what is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) patch: usize,
    pub(super) stride: usize,
    pub(super) reach: usize,
    pub(super) least_score: f64,
    pub(super) least_distinctness: f64,
}

/// One patch of the moving plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    /// Centre of the patch's filled part, full-resolution volume pixels.
    pub(super) at: Xy<f64>,
    /// Where the fixed plane shows the same, full-resolution volume pixels; equals `at` where not trusted.
    pub(super) to: Xy<f64>,
    /// Peak correlation.
    pub(super) score: f64,
    pub(super) trusted: bool,
    /// Column and row in the lattice of patches.
    pub(super) cell: Xy<i64>,
}

/// Sums of squares and of filled pixels over any rectangle.
struct Tables {
    stride: usize,
    energy: Vec<u64>,
    filled: Vec<u32>,
}

impl Tables {
    fn new(p: &Plane) -> Self {
        let stride = p.width + 1;
        let (mut energy, mut filled) = (vec![0u64; stride * (p.height + 1)], vec![0u32; stride * (p.height + 1)]);
        for y in 0..p.height {
            let (mut e, mut f) = (0u64, 0u32);
            for x in 0..p.width {
                let v = i64::from(p.values[y * p.width + x]);
                e += (v * v) as u64;
                f += u32::from(p.filled[y * p.width + x]);
                energy[(y + 1) * stride + x + 1] = energy[y * stride + x + 1] + e;
                filled[(y + 1) * stride + x + 1] = filled[y * stride + x + 1] + f;
            }
        }
        Self { stride, energy, filled }
    }

    /// Energy and number of filled pixels of the square of side `n` at column `x`, row `y`.
    fn square(&self, x: usize, y: usize, n: usize) -> (u64, u32) {
        let (a, b) = (y * self.stride + x, (y + n) * self.stride + x);
        (
            self.energy[b + n] + self.energy[a] - self.energy[b] - self.energy[a + n],
            self.filled[b + n] + self.filled[a] - self.filled[b] - self.filled[a + n],
        )
    }
}

/// Every patch that is at least half filled in both planes, looked for in `fixed`; both planes cover the same area. In row order.
pub(super) fn match_blocks(moving: &Plane, fixed: &Plane, search: &Search) -> Vec<Match> {
    debug_assert_eq!(moving.area, fixed.area);
    let (mt, ft) = (Tables::new(moving), Tables::new(fixed));
    let (patch, reach, stride) = (search.patch, search.reach, search.stride as i64);
    // The lattice is anchored at the frame, so that a patch does not depend on how large the planes are.
    let first = |low: i64| (low + reach as i64).div_euclid(stride) + 1;
    let last = |high: i64| (high - (reach + patch) as i64).div_euclid(stride);
    let (min, max) = (moving.area.min, moving.area.max);
    let cells: Vec<Xy<i64>> =
        (first(min.y)..=last(max.y)).flat_map(|r| (first(min.x)..=last(max.x)).map(move |c| Xy::new(c, r))).collect();
    let place = |cell: Xy<i64>| Xy::new((cell.x * stride - min.x) as usize, (cell.y * stride - min.y) as usize);
    let half = (patch * patch / 2) as u32;
    cells
        .into_par_iter()
        .filter(|cell| {
            let at = place(*cell);
            mt.square(at.x, at.y, patch).1 >= half && ft.square(at.x, at.y, patch).1 >= half
        })
        .map(|cell| match_one(moving, fixed, (&mt, &ft), place(cell), search, cell))
        .collect()
}

fn match_one(
    moving: &Plane,
    fixed: &Plane,
    (mt, ft): (&Tables, &Tables),
    at: Xy<usize>,
    search: &Search,
    cell: Xy<i64>,
) -> Match {
    let n = search.patch;
    let patch: Vec<i16> =
        (at.y..at.y + n).flat_map(|y| &moving.values[y * moving.width + at.x..][..n]).copied().collect();
    let centre = moving.to_full(filled_centre(moving, at, n));
    let own = mt.square(at.x, at.y, n).0 as f64;
    let side = 2 * search.reach + 1;
    let corner = Xy::new(at.x - search.reach, at.y - search.reach);
    let score = |patch: &[i16], dx: usize, dy: usize| {
        let (x, y) = (corner.x + dx, corner.y + dy);
        let (energy, filled) = ft.square(x, y, n);
        if 2 * (filled as usize) < n * n || energy == 0 {
            return 0.0;
        }
        let rows = patch.chunks_exact(n).zip(fixed.values[y * fixed.width + x..].chunks(fixed.width));
        let sum: i64 = rows.map(|(a, b)| i64::from(dot(a, &b[..n]))).sum();
        sum as f64 / (own * energy as f64).sqrt().max(1.0)
    };
    let scores: Vec<f64> = (0..side * side).map(|i| score(&patch, i % side, i / side)).collect();
    let best = (0..scores.len()).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
    let (bx, by) = (best % side, best / side);
    let peak = scores[best];
    let unsure = Match { at: centre, to: centre, score: peak, trusted: false, cell };
    if peak < search.least_score || bx == 0 || by == 0 || bx + 1 == side || by + 1 == side {
        return unsure;
    }
    let mirrored: Vec<i16> = patch.iter().rev().copied().collect();
    let chance = (0..side * side)
        .filter(|i| (i % side).is_multiple_of(2) && (i / side).is_multiple_of(2))
        .map(|i| score(&mirrored, i % side, i / side))
        .fold(0.0, f64::max);
    let rival = second_peak(&scores, side, best).max(chance);
    if 1.0 - rival / peak < search.least_distinctness {
        return unsure;
    }
    let fine = refine(&scores, side, best);
    let scale = f64::from(fixed.scale);
    let reach = search.reach as f64;
    let shift = Xy::new((bx as f64 + fine.x - reach) * scale, (by as f64 + fine.y - reach) * scale);
    Match { at: centre, to: centre + shift, score: peak, trusted: true, cell }
}

/// Whole-number scalar product; at most 256 values of up to 255, so 32 bits hold it.
fn dot(a: &[i16], b: &[i16]) -> i32 {
    a.iter().zip(b).map(|(x, y)| i32::from(*x) * i32::from(*y)).sum()
}

/// Mean place of the filled pixels of the square.
fn filled_centre(p: &Plane, at: Xy<usize>, n: usize) -> Xy<f64> {
    let (mut sx, mut sy, mut count) = (0u64, 0u64, 0u64);
    for y in 0..n {
        let row = &p.filled[(at.y + y) * p.width + at.x..][..n];
        let (s, c) = row
            .iter()
            .enumerate()
            .fold((0u64, 0u64), |(s, c), (x, f)| (s + x as u64 * u64::from(*f), c + u64::from(*f)));
        sx += s;
        sy += y as u64 * c;
        count += c;
    }
    let count = count.max(1) as f64;
    Xy::new(at.x as f64 + sx as f64 / count, at.y as f64 + sy as f64 / count)
}

/// The highest local maximum that is more than a quarter of the search away from the best.
fn second_peak(scores: &[f64], side: usize, best: usize) -> f64 {
    let away = (side / 4).max(2);
    let at = |x: usize, y: usize| scores[y * side + x];
    let mut second: f64 = 0.0;
    for y in 1..side - 1 {
        for x in 1..side - 1 {
            let near = (best % side).abs_diff(x) <= away && (best / side).abs_diff(y) <= away;
            let v = at(x, y);
            if !near && v >= at(x - 1, y) && v >= at(x + 1, y) && v >= at(x, y - 1) && v >= at(x, y + 1) {
                second = second.max(v);
            }
        }
    }
    second
}

/// Maximum of the quadratic through the 3 x 3 scores around `best`, at most half a pixel off in x and y.
fn refine(scores: &[f64], side: usize, best: usize) -> Xy<f64> {
    let v = |dx: usize, dy: usize| scores[best + dy * side + dx - side - 1];
    let (mut gx, mut gy, mut hxx, mut hyy) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..3 {
        let k = if i == 1 { 2.0 } else { 1.0 };
        gx += k * (v(2, i) - v(0, i)) / 8.0;
        gy += k * (v(i, 2) - v(i, 0)) / 8.0;
        hxx += k * (v(2, i) - 2.0 * v(1, i) + v(0, i)) / 4.0;
        hyy += k * (v(i, 2) - 2.0 * v(i, 1) + v(i, 0)) / 4.0;
    }
    let hxy = (v(2, 2) - v(0, 2) - v(2, 0) + v(0, 0)) / 4.0;
    let det = hxx * hyy - hxy * hxy;
    if hxx >= 0.0 || det <= 0.0 {
        return Xy::default();
    }
    let (x, y) = (-(hyy * gx - hxy * gy) / det, -(hxx * gy - hxy * gx) / det);
    Xy::new(x.clamp(-0.5, 0.5), y.clamp(-0.5, 0.5))
}
