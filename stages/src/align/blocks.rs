//! Where patches of one plane lie in another: exact normalised correlation over a square of offsets.
//!
//! `score(d) = sum t(x) r(x + d) / sqrt(sum t^2 sum r^2)` over the pixels of a patch that are filled in both at that offset: with the squares of
//! others, a patch at the rim of a section would score better the more of it finds something, and the volume would shrink from section to
//! section. The peak is refined by a quadratic through its 3 x 3 neighbours. A patch is trusted where its peak lies inside the search and is
//! high enough and, where the search is wide, stands out from the second peak and from the best score of the *mirrored* patch, which cannot be
//! real (feabas' measure of chance). Where the search is narrow it climbs from the middle instead of looking everywhere.
//!
//! Cost: `patch^2` products a score, of which a wide search takes `1.25 (2 search + 1)^2` and a narrow one 9 to 15, three times that at a rim;
//! eight products an instruction. For each column of offsets the window is laid out so that every score is one scalar product of two runs of
//! memory.

use kinesin_stream::geometry::Xy;
use rayon::prelude::*;

use super::filled::{Square, Summed, common_centre};
use crate::wide::{Kernel, wide};

/// Sizes in pixels of the plane, and what is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) patch: usize,
    pub(super) stride: usize,
    pub(super) reach: usize,
    pub(super) least_score: f64,
    /// 0: the search is narrow, and the nearest peak is taken.
    pub(super) least_distinctness: f64,
    /// Where a narrow search finds little, compared to the others, it is done again, wide, with this reach; 0: not.
    pub(super) again: usize,
}

/// Little: less than this part of the median score.
const LITTLE: f64 = 0.75;
/// Distinctness that is asked for then.
pub(super) const AGAIN_DISTINCTNESS: f64 = 0.15;

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

/// Every patch that is at least half filled in both planes, looked for in `fixed`; both planes cover the same area. In row order.
pub(super) fn match_blocks(moving: &Summed<'_>, fixed: &Summed<'_>, search: &Search) -> Vec<Match> {
    match_some(moving, fixed, search, &|_| true)
}

/// Those of them whose centre, full-resolution volume pixels, is `wanted`.
pub(super) fn match_some(
    moving: &Summed<'_>,
    fixed: &Summed<'_>,
    search: &Search,
    wanted: &(dyn Fn(Xy<f64>) -> bool + Sync),
) -> Vec<Match> {
    debug_assert_eq!(moving.plane.area, fixed.plane.area);
    let (patch, reach, stride) = (search.patch, search.reach, search.stride as i64);
    // The lattice is anchored at the frame, so that a patch does not depend on how large the planes are.
    let first = |low: i64| (low + reach as i64).div_euclid(stride) + 1;
    let last = |high: i64| (high - (reach + patch) as i64).div_euclid(stride);
    let (min, max) = (moving.plane.area.min, moving.plane.area.max);
    let (columns, rows) = ((first(min.x), last(max.x)), (first(min.y), last(max.y)));
    let place = |c: i64, r: i64| Xy::new((c * stride - min.x) as usize, (r * stride - min.y) as usize);
    let plane = moving.plane;
    let row = |r: i64| {
        let mut space = Space::default();
        let one = |c: i64| match_one(moving, fixed, place(c, r), search, (Xy::new(c, r), &mut space));
        let middle = |c: i64| {
            let (at, half) = (place(c, r), (patch - 1) as f64 / 2.0);
            plane.to_full(Xy::new(at.x as f64 + half, at.y as f64 + half))
        };
        (columns.0..=columns.1).filter(|c| wanted(middle(*c))).filter_map(one).collect::<Vec<Match>>()
    };
    let mut found: Vec<Match> = (rows.0..=rows.1).into_par_iter().flat_map_iter(row).collect();
    if search.again > 0 {
        let mut scores: Vec<f64> = found.iter().map(|m| m.score).collect();
        scores.sort_by(f64::total_cmp);
        let little = LITTLE * scores.get(scores.len() / 2).copied().unwrap_or(0.0);
        let wide = Search { reach: search.again, least_distinctness: AGAIN_DISTINCTNESS, ..*search };
        found.par_iter_mut().filter(|m| !m.trusted || m.score < little).for_each(|m| {
            let (at, far) = (place(m.cell.x, m.cell.y), wide.reach);
            let room = |v: usize, n: usize| v >= far && v + patch + far <= n;
            if room(at.x, plane.width) && room(at.y, plane.height) {
                let again = match_one(moving, fixed, at, &wide, (m.cell, &mut Space::default()));
                *m = again.unwrap_or(Match { trusted: false, ..*m });
            }
        });
    }
    found
}

/// What one thread needs for a patch.
#[derive(Default)]
struct Space {
    patch: [Vec<i16>; 3],
    /// A window a column of offsets.
    windows: Vec<[Vec<i16>; 3]>,
    scores: Vec<f64>,
    mirrored: Vec<f64>,
}

/// `None` where less than half of the patch is filled in either plane.
fn match_one(
    moving: &Summed<'_>,
    fixed: &Summed<'_>,
    at: Xy<usize>,
    search: &Search,
    (cell, space): (Xy<i64>, &mut Space),
) -> Option<Match> {
    let (n, reach) = (search.patch, search.reach);
    let square = Square { x: at.x, y: at.y, n };
    if 2 * fixed.of(square).1.min(moving.of(square).1) < n * n {
        return None;
    }
    let whole = moving.holes(square) + fixed.holes(square.wider(reach)) == 0;
    let middle = Xy::new(at.x as f64 + (n - 1) as f64 / 2.0, at.y as f64 + (n - 1) as f64 / 2.0);
    let centre = moving.plane.to_full(if whole { middle } else { common_centre(moving.plane, fixed.plane, square)? });
    let Space { patch, windows, scores, mirrored } = space;
    patch.iter_mut().for_each(Vec::clear);
    let [values, squares, masks] = patch;
    for y in at.y..at.y + n {
        let from = y * moving.plane.width + at.x;
        values.extend_from_slice(&moving.values[from..][..n]);
        if !whole {
            masks.extend(moving.plane.grey[from..][..n].iter().map(|v| i16::from(*v != 0)));
        }
    }
    if !whole {
        squares.extend(values.iter().map(|v| v * v));
    }
    let side = 2 * reach + 1;
    let own = f64::from(dot(&patch[0], &patch[0]));
    let wide = search.least_distinctness > 0.0;
    let mut around = Around { fixed, part: square, side, whole, windows };
    around.reset();
    if wide {
        around.everywhere(patch, own, 1, scores)
    } else {
        around.climb(patch, own, scores)
    }
    let best = (0..scores.len()).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
    let (bx, by) = (best % side, best / side);
    let peak = scores[best];
    let unsure = Some(Match { at: centre, to: centre, score: peak, trusted: false, cell });
    if peak < search.least_score || bx == 0 || by == 0 || bx + 1 == side || by + 1 == side {
        return unsure;
    }
    if wide {
        patch.iter_mut().for_each(|p| p.reverse());
        around.everywhere(patch, own, 2, mirrored);
        let chance = mirrored.iter().copied().fold(0.0, f64::max);
        let rival = second_peak(scores, side, best).max(chance);
        if 1.0 - rival / peak < search.least_distinctness {
            return unsure;
        }
    }
    let fine = refine(scores, side, best);
    let scale = f64::from(fixed.plane.scale);
    let reach = reach as f64;
    let shift = Xy::new((bx as f64 + fine.x - reach) * scale, (by as f64 + fine.y - reach) * scale);
    Some(Match { at: centre, to: centre + shift, score: peak, trusted: true, cell })
}

/// The square of offsets, `side` squared, in which a part of a plane is looked for.
struct Around<'a> {
    fixed: &'a Summed<'a>,
    part: Square,
    side: usize,
    /// Whether all pixels are filled, in the patch and wherever it is looked for.
    whole: bool,
    windows: &'a mut Vec<[Vec<i16>; 3]>,
}

impl Around<'_> {
    fn reset(&mut self) {
        self.windows.resize_with(self.side.max(self.windows.len()), Default::default);
        self.windows.iter_mut().flatten().for_each(Vec::clear);
    }

    /// Score at one offset of a patch as values, squares and filled pixels, `own` the sum of its squares; 0 where less than a quarter is
    /// filled: a patch of which half is filled in the middle of the search has neighbours on all sides to compare with.
    fn score(&mut self, [patch, squares, masks]: &[Vec<i16>; 3], own: f64, (dx, dy): (usize, usize)) -> f64 {
        let (n, area) = (self.part.n, self.part.n * self.part.n);
        let corner = Xy::new(self.part.x - self.side / 2, self.part.y - self.side / 2);
        let (energy, filled) = self.fixed.of(Square { x: corner.x + dx, y: corner.y + dy, n });
        if 4 * filled < area || energy == 0 {
            return 0.0;
        }
        self.lay_out(dx);
        let [values, their_squares, their_masks] = self.windows[dx].each_ref().map(|v| v.get(dy * n..).unwrap_or(&[]));
        let squares = if self.whole {
            own * f64::from(energy)
        } else {
            f64::from(dot(squares, &their_masks[..area])) * f64::from(dot(masks, &their_squares[..area]))
        };
        f64::from(dot(patch, &values[..area])) / squares.sqrt().max(1.0)
    }

    /// The window of a column of offsets, where it is not yet.
    fn lay_out(&mut self, dx: usize) {
        let [values, squares, masks] = &mut self.windows[dx];
        if !values.is_empty() {
            return;
        }
        let (n, plane) = (self.part.n, self.fixed.plane);
        let corner = Xy::new(self.part.x - self.side / 2, self.part.y - self.side / 2);
        for y in corner.y..corner.y + n + self.side - 1 {
            let from = y * plane.width + corner.x + dx;
            values.extend_from_slice(&self.fixed.values[from..][..n]);
            if !self.whole {
                masks.extend(plane.grey[from..][..n].iter().map(|v| i16::from(*v != 0)));
            }
        }
        if !self.whole {
            squares.extend(values.iter().map(|v| v * v));
        }
    }

    /// Scores at every `step`-th offset, row by row; 0 elsewhere.
    fn everywhere(&mut self, patch: &[Vec<i16>; 3], own: f64, step: usize, scores: &mut Vec<f64>) {
        scores.clear();
        scores.resize(self.side * self.side, 0.0);
        for dx in (0..self.side).step_by(step) {
            for dy in (0..self.side).step_by(step) {
                scores[dy * self.side + dx] = self.score(patch, own, (dx, dy));
            }
        }
    }

    /// Scores around the middle and around each better offset, until none is; below every score elsewhere.
    fn climb(&mut self, patch: &[Vec<i16>; 3], own: f64, scores: &mut Vec<f64>) {
        const UNSEEN: f64 = -2.0;
        let side = self.side;
        scores.clear();
        scores.resize(side * side, UNSEEN);
        let mut best = (side / 2, side / 2);
        loop {
            let (x, y) = best;
            for (i, j) in (0..9).map(|k| (x + k % 3, y + k / 3)) {
                if i > 0 && j > 0 && i <= side && j <= side && scores[(j - 1) * side + i - 1] == UNSEEN {
                    scores[(j - 1) * side + i - 1] = self.score(patch, own, (i - 1, j - 1));
                    if scores[(j - 1) * side + i - 1] > scores[best.1 * side + best.0] {
                        best = (i - 1, j - 1);
                    }
                }
            }
            if best == (x, y) {
                return;
            }
        }
    }
}

/// Whole-number scalar product; at most 256 x 256 values of up to 127, so 32 bits hold it.
fn dot(a: &[i16], b: &[i16]) -> i32 {
    wide(Dot(a, b))
}

struct Dot<'a>(&'a [i16], &'a [i16]);

impl Kernel for Dot<'_> {
    type Out = i32;

    #[inline(always)]
    fn run(self) -> i32 {
        let mut sum = 0;
        for (x, y) in self.0.iter().zip(self.1) {
            sum += i32::from(*x) * i32::from(*y);
        }
        sum
    }
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

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::BoxXy;

    use super::super::plane::Plane;
    use super::*;

    /// A texture some 17 px fine with noise of its own; empty from column `filled` on.
    fn plane(filled: i64, seed: i64) -> Plane {
        let side = 200;
        let area = BoxXy { min: Xy::new(0, 0), max: Xy::new(side, side) };
        let mut out = Plane::empty(area, 1);
        let grain = |x: i64, y: i64, seed: i64| {
            let h = (x * 7919 + y * 104_729 + seed * 1_299_709) as u64;
            let h = (h ^ (h >> 13)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            f64::from((h >> 40) as u16) / 32768.0 - 1.0
        };
        let soft = |x: i64, y: i64| {
            (-8..=8).flat_map(|j| (-8..=8).map(move |i| (i, j))).map(|(i, j)| grain(x + i, y + j, 0)).sum::<f64>()
        };
        for (y, x) in (0..side).flat_map(|y| (0..filled).map(move |x| (y, x))) {
            let value = 128.0 + 4.0 * soft(x, y) + 20.0 * grain(x, y, seed);
            out.grey[(y * side + x) as usize] = value.clamp(1.0, 255.0) as u8;
        }
        out
    }

    #[test]
    fn a_patch_at_the_rim_of_either_section_is_found_where_it_is() {
        let search = Search { patch: 40, stride: 7, reach: 3, least_score: 0.15, least_distinctness: 0.0, again: 0 };
        // Columns of the rim's patches are filled to a half and more.
        for (own, other) in [(150, 200), (200, 150), (150, 160), (160, 150)] {
            let found = match_blocks(&Summed::new(&plane(own, 1)), &Summed::new(&plane(other, 2)), &search);
            let rim = found.iter().filter(|m| m.trusted && m.cell.x * 7 + 40 > own.min(other));
            let off: Vec<f64> = rim.map(|m| m.to.x - m.at.x).collect();
            let mean = off.iter().sum::<f64>() / off.len() as f64;
            // Some 20 rows of patches, each 0.05 px sure. It was -0.10 px where the other plane ends first.
            assert!(off.len() > 40 && mean.abs() < 0.05, "{own} {other}: {mean:.3} px of {}", off.len());
        }
    }
}
