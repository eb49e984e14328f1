//! Cracks and folds: a section in pieces that move freely.
//!
//! ```text
//! matches of the wide pass ─► pieces: neighbours whose shifts agree ─► a map a piece ─► which piece a pixel belongs to: under whose map it
//! correlates best ─► the passes to follow, piece by piece (`pieces`) ─► one map (`join`)
//! ```
//! *What it does not do.* A crack that ends inside the section has one piece around its tip and is bent, not cut.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Map};
use rayon::prelude::*;

use super::fine::Tied;
use super::fit;
use super::plane::{Plane, deviation};
use super::warp::linear_inverse;

/// Shifts of neighbours in one piece differ by this at most: a part of their distance, and pixels.
const SLOPE: f64 = 0.05;
const NOISE_PX: f64 = 2.0;
/// Or, where matches scatter more, by this many times the median of all neighbours' differences.
const USUAL: f64 = 2.5;
/// Part of all trusted matches that makes a piece, and their least number.
const LEAST_SHARE: f64 = 0.12;
const LEAST_MATCHES: usize = 5;
/// Half side of the window in which is told which piece a pixel belongs to, pixels of the plane.
const WINDOW: usize = 5;
/// A piece is looked for this much further from its matches than the nearest match of any, full-resolution pixels.
const FURTHER_PX: f64 = 160.0;
/// Neighbouring matches of two pieces differ by more than this, half of them.
const LEAST_STEP_PX: f64 = 10.0;
/// Border pixels of two pieces are mapped at least this far apart, half of them.
const LEAST_JUMP_PX: f64 = 12.0;
/// Pixel pairs (every second row and column) along the border of two pieces, as a part of the plane's longer side: more is a ragged border.
const LONGEST_BORDER: f64 = 1.4;
/// A piece correlates at least this well, as a part of the best piece's mean.
const LEAST_SCORE: f64 = 0.7;
/// What that distance costs: decides at the rim, where the reference shows nothing to correlate with.
const PRIOR: f64 = 0.5;

/// The piece of each match, from 0 on; `None` where there is one piece only. Those of no piece have none.
pub(super) fn pieces(tied: &[Tied]) -> Option<Vec<Option<usize>>> {
    let sure: Vec<usize> = (0..tied.len()).filter(|i| tied[*i].found.trusted).collect();
    let pairs: Vec<fit::Pair> =
        sure.iter().map(|i| fit::Pair { from: tied[*i].from, to: tied[*i].found.to, weight: 1.0, fold: 0 }).collect();
    let stiff = fit::affine(&pairs)?;
    let shifts: Vec<Xy<f64>> = pairs.iter().map(|p| p.to - stiff.apply(p.from)).collect();
    let cells: Vec<Xy<i64>> = sure.iter().map(|i| tied[*i].found.cell).collect();
    let roots = joined(sure.len(), &neighbours(&cells, &pairs, &shifts));
    let least = LEAST_MATCHES.max((LEAST_SHARE * sure.len() as f64).ceil() as usize);
    let large = |r: &usize| roots.iter().filter(|o| *o == r).count() >= least;
    let kept: Vec<usize> = (0..sure.len()).filter(|r| roots[*r] == *r && large(r)).collect();
    if kept.len() < 2 {
        return None;
    }
    let mut out = vec![None; tied.len()];
    for (i, r) in sure.iter().zip(&roots) {
        out[*i] = kept.iter().position(|k| k == r);
    }
    Some(out)
}

/// Two matches next to each other.
struct Beside {
    ends: (usize, usize),
    /// How much their shifts differ, pixels, and how much they may in one piece.
    off: f64,
    limit: f64,
}

/// All neighbours, the most alike first.
fn neighbours(cells: &[Xy<i64>], pairs: &[fit::Pair], shifts: &[Xy<f64>]) -> Vec<Beside> {
    let near = |a: usize, b: usize| cells[a].x.abs_diff(cells[b].x) <= 1 && cells[a].y.abs_diff(cells[b].y) <= 1;
    let all = (0..cells.len()).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|(a, b)| near(*a, *b));
    let bent = |(a, b): (usize, usize)| NOISE_PX + SLOPE * (pairs[a].from - pairs[b].from).norm();
    let beside =
        |ends: (usize, usize)| Beside { ends, off: (shifts[ends.0] - shifts[ends.1]).norm(), limit: bent(ends) };
    let mut all: Vec<Beside> = all.map(beside).collect();
    all.sort_by(|a, b| a.off.total_cmp(&b.off));
    let usual = all.get(all.len() / 2).map_or(0.0, |l| l.off);
    all.iter_mut().for_each(|l| l.limit = l.limit.max(USUAL * usual));
    all
}

/// The group of each of `n` matches, named by its first: those joined by neighbours that are alike. Two large groups join only where most
/// neighbours across are (at a crack a few always are, patches that straddle it), or where they lie less apart than pieces do.
fn joined(n: usize, links: &[Beside]) -> Vec<usize> {
    let mut root: Vec<usize> = (0..n).collect();
    for Beside { ends: (a, b), .. } in links.iter().filter(|l| l.off <= l.limit) {
        let (x, y) = (root[*a].min(root[*b]), root[*a].max(root[*b]));
        let size = |r: usize| root.iter().filter(|o| **o == r).count();
        let across = |l: &&Beside| {
            let (p, q) = (root[l.ends.0], root[l.ends.1]);
            (p, q) == (x, y) || (p, q) == (y, x)
        };
        let alike = || {
            let all: Vec<&Beside> = links.iter().filter(across).collect();
            let middle = all[all.len() / 2];
            middle.off <= middle.limit.max(LEAST_STEP_PX)
        };
        if x != y && (size(x).min(size(y)) < LEAST_MATCHES || alike()) {
            root.iter_mut().filter(|r| **r == y).for_each(|r| *r = x);
        }
    }
    root
}

/// Which piece each pixel of a plane of the section belongs to, and how well it correlates there.
pub(super) struct Labels {
    plane: Plane,
    piece: Vec<u8>,
    score: Vec<f32>,
}

impl Labels {
    /// From the maps of the pieces and the section pixels of their matches.
    pub(super) fn new(own: &Plane, fixed: &[&Plane], maps: &[Map], members: &[Vec<Xy<f64>>]) -> Self {
        let (w, h) = (own.width, own.height);
        let scores: Vec<Vec<f32>> = maps.iter().map(|m| smooth(agreement(own, fixed, m), w, h)).collect();
        let least = |from: &[Xy<f64>], p: Xy<f64>| from.iter().map(|m| (*m - p).norm()).fold(f64::MAX, f64::min);
        let (mut piece, mut score) = (vec![0u8; w * h], vec![0.0; w * h]);
        const SIDE: usize = 8;
        for (y, x) in (0..h.div_ceil(SIDE)).flat_map(|y| (0..w.div_ceil(SIDE)).map(move |x| (y * SIDE, x * SIDE))) {
            // Distances change little within a few pixels.
            let p = own.to_full(Xy::new(x as f64 + 3.5, y as f64 + 3.5));
            let far: Vec<f64> = members.iter().map(|m| least(m, p)).collect();
            let nearest = far.iter().copied().fold(f64::MAX, f64::min);
            let open: Vec<usize> = (0..maps.len()).filter(|k| far[*k] <= nearest + FURTHER_PX).collect();
            for i in (y..(y + SIDE).min(h)).flat_map(|r| (x..(x + SIDE).min(w)).map(move |c| r * w + c)) {
                let rank = |k: usize| f64::from(scores[k][i]) - PRIOR * (far[k] - nearest) / FURTHER_PX;
                let best = open.iter().copied().reduce(|a, b| if rank(b) > rank(a) { b } else { a });
                let best = best.expect("the nearest piece is open");
                (piece[i], score[i]) = (best as u8, scores[best][i]);
            }
        }
        Self { plane: Plane::empty(own.area, own.scale), piece, score }
    }

    /// Whether the pieces are real: neighbouring pixels of two pieces are mapped apart, and each piece correlates nearly as well as the best.
    pub(super) fn parted(&self, maps: &[Map]) -> bool {
        let mut jumps = self.jumps(maps);
        jumps.sort_by(f64::total_cmp);
        let means: Vec<f64> = (0..maps.len()).map(|k| self.mean_score(k)).collect();
        let best = means.iter().copied().fold(0.0, f64::max);
        let short = LONGEST_BORDER * ((maps.len() - 1) * self.plane.width.max(self.plane.height)) as f64;
        if jumps.len() as f64 > short {
            return false;
        }
        jumps.get(jumps.len() / 2).is_some_and(|j| *j >= LEAST_JUMP_PX)
            && means.iter().all(|m| *m >= LEAST_SCORE * best)
    }

    /// Mean correlation under the maps of the pieces and under one map of all, over the pixels that they take to different places.
    pub(super) fn against(&self, own: &Plane, fixed: &[&Plane], maps: &[Map], whole: &Map) -> [f64; 2] {
        let scores = smooth(agreement(own, fixed, whole), own.width, own.height);
        let differ = |i: &usize| {
            let p = own.to_full(Xy::new((i % own.width) as f64, (i / own.width) as f64));
            let apart = (maps[usize::from(self.piece[*i])].apply(p) - whole.apply(p)).norm();
            own.grey[*i] != 0 && apart > LEAST_JUMP_PX / 2.0
        };
        let at: Vec<usize> = (0..scores.len()).filter(differ).collect();
        [&self.score, &scores].map(|s| at.iter().map(|i| f64::from(s[*i])).sum::<f64>() / at.len().max(1) as f64)
    }

    /// How far apart two pieces take the pixels at their border.
    fn jumps(&self, maps: &[Map]) -> Vec<f64> {
        let w = self.plane.width;
        let border = (0..self.piece.len().saturating_sub(w)).filter(|i| (i + 1) % w != 0).step_by(2);
        let pairs = border.flat_map(|i| [(i, i + 1), (i, i + w)]).filter(|(a, b)| self.piece[*a] != self.piece[*b]);
        let apart = |(a, b): (usize, usize)| {
            let p = self.plane.to_full(Xy::new((a % w) as f64, (a / w) as f64));
            let at = |k: usize| maps[usize::from(self.piece[k])].apply(p);
            (at(a) - at(b)).norm()
        };
        pairs.map(apart).collect()
    }

    fn mean_score(&self, piece: usize) -> f64 {
        let own = self.piece.iter().zip(&self.score).filter(|(p, s)| usize::from(**p) == piece && **s != 0.0);
        let (sum, n) = own.fold((0.0, 0.0), |(s, n), (_, v)| (s + f64::from(*v), n + 1.0));
        if n > 0.0 { sum / n } else { 0.0 }
    }

    /// Piece and score of a section pixel, `None` outside.
    pub(super) fn at(&self, p: Xy<f64>) -> Option<(usize, f32)> {
        let q = self.plane.place_of(p);
        let (x, y) = (q.x.round(), q.y.round());
        let inside = x >= 0.0 && y >= 0.0 && x < self.plane.width as f64 && y < self.plane.height as f64;
        let i = inside.then(|| y as usize * self.plane.width + x as usize)?;
        Some((usize::from(self.piece[i]), self.score[i]))
    }

    /// About the way back of a map of the section.
    pub(super) fn inverse(&self, map: &Map) -> Affine {
        linear_inverse(map, &self.plane)
    }

    /// The pixels of one piece only.
    pub(super) fn only(&self, own: &Plane, piece: usize) -> Plane {
        let mut out = own.clone();
        for y in 0..own.height {
            for x in 0..own.width {
                let p = own.to_full(Xy::new(x as f64, y as f64));
                if self.at(p).is_none_or(|(k, _)| k != piece) {
                    out.grey[y * own.width + x] = 0;
                }
            }
        }
        out
    }
}

/// Product of the section and of what the first reference that shows anything there shows under `map`, and both squares, a pixel.
fn agreement(own: &Plane, fixed: &[&Plane], map: &Map) -> Vec<[f32; 3]> {
    let shown = |fixed: &Plane, place: Xy<f64>| {
        let q = fixed.place_of(place);
        let (x, y) = (q.x.round(), q.y.round());
        let inside = x >= 0.0 && y >= 0.0 && x < fixed.width as f64 && y < fixed.height as f64;
        inside.then(|| fixed.grey[y as usize * fixed.width + x as usize]).filter(|v| *v != 0)
    };
    let value = |i: usize| {
        let place = map.apply(own.to_full(Xy::new((i % own.width) as f64, (i / own.width) as f64)));
        let Some(b) = fixed.iter().find_map(|f| shown(f, place)) else { return [0.0; 3] };
        let (a, b) = (f32::from(deviation(own.grey[i])), f32::from(deviation(b)));
        [a * b, a * a, b * b]
    };
    (0..own.grey.len()).into_par_iter().map(value).collect()
}

/// How well the section correlates with the reference under either map, on average over the pixels that they take to different places.
pub(super) fn agreements(own: &Plane, fixed: &[&Plane], maps: [&Map; 2]) -> [f64; 2] {
    let (w, h) = (own.width, own.height);
    let scores = maps.map(|m| smooth(agreement(own, fixed, m), w, h));
    let differ = |i: usize| {
        let p = own.to_full(Xy::new((i % w) as f64, (i / w) as f64));
        own.grey[i] != 0 && (maps[0].apply(p) - maps[1].apply(p)).norm() > LEAST_JUMP_PX / 2.0
    };
    let at: Vec<usize> = (0..w * h).filter(|i| differ(*i)).collect();
    scores.map(|s| at.iter().map(|i| f64::from(s[*i])).sum::<f64>() / at.len().max(1) as f64)
}

/// Correlation in the window around each pixel, and its mean over that window once more: membranes come and go.
fn smooth(products: Vec<[f32; 3]>, w: usize, h: usize) -> Vec<f32> {
    let sums = boxed(&products, w, h);
    let once: Vec<[f32; 3]> = sums.into_iter().map(|[p, a, b]| [p / (a * b).sqrt().max(1.0), 1.0, 0.0]).collect();
    boxed(&once, w, h).into_iter().map(|[s, n, _]| s / n).collect()
}

/// Sums over the window around each pixel, clipped at the border; in a fixed order.
fn boxed(values: &[[f32; 3]], w: usize, h: usize) -> Vec<[f32; 3]> {
    let add = |a: [f32; 3], b: &[f32; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
    let range = |v: usize, n: usize| v.saturating_sub(WINDOW)..(v + WINDOW + 1).min(n);
    let mut across = vec![[0.0; 3]; w * h];
    across.par_chunks_mut(w.max(1)).zip(values.par_chunks(w.max(1))).for_each(|(out, row)| {
        out.iter_mut().enumerate().for_each(|(x, o)| *o = row[range(x, w)].iter().fold([0.0; 3], add));
    });
    let mut out = vec![[0.0; 3]; w * h];
    out.par_chunks_mut(w.max(1)).enumerate().for_each(|(y, out)| {
        for row in range(y, h).map(|r| &across[r * w..(r + 1) * w]) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o = add(*o, v));
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::BoxXy;

    use super::super::blocks::Match;
    use super::super::join;
    use super::*;

    /// Matches on a lattice of 64 px under `shift`.
    fn lattice(shift: impl Fn(Xy<f64>) -> Xy<f64>) -> Vec<Tied> {
        let cells = (0..12i64).flat_map(|r| (0..12i64).map(move |c| Xy::new(c, r)));
        let tied = |cell: Xy<i64>| {
            let from = Xy::new(64.0 * cell.x as f64 + 32.0, 64.0 * cell.y as f64 + 32.0);
            let to = from + shift(from);
            Tied { from, found: Match { at: from, to, score: 0.5, trusted: true, cell }, second_hand: false }
        };
        cells.map(tied).collect()
    }

    #[test]
    fn a_crack_makes_two_pieces_and_a_bend_makes_none() {
        let torn = lattice(|p| Xy::new(if p.x + 0.3 * p.y < 500.0 { 15.0 } else { -15.0 }, 0.0));
        let pieces = pieces(&torn).expect("two pieces");
        for (t, piece) in torn.iter().zip(pieces) {
            assert_eq!(piece, Some(usize::from(t.from.x + 0.3 * t.from.y >= 500.0)));
        }
        // 12 px up and down over 400 px: steeper than sections bend, 12 px between neighbours a quarter wave apart.
        let bent = lattice(|p| Xy::new(0.0, 6.0 * (p.x / 64.0).sin()));
        assert!(super::pieces(&bent).is_none());
    }

    /// Irregular grain of about 12 px.
    fn texture(x: f64, y: f64) -> u8 {
        let v = (x * 0.21 + (y * 0.05).sin() * 3.0).sin() + (y * 0.27 - (x * 0.043).cos() * 4.0).sin();
        (128.0 + 55.0 * v) as u8
    }

    #[test]
    fn both_sides_of_a_crack_come_to_lie_where_they_were_and_the_gap_is_closed_without_folding() {
        let area = BoxXy { min: Xy::new(0, 0), max: Xy::new(120, 120) };
        let (mut own, mut fixed) = (Plane::empty(area, 4), Plane::empty(area, 4));
        for (y, x) in (0..120usize).flat_map(|y| (0..120).map(move |x| (y, x))) {
            let p = own.to_full(Xy::new(x as f64, y as f64));
            fixed.grey[y * 120 + x] = texture(p.x, p.y);
            // Torn apart by 32 px at column 240.
            let gap = (p.x - 240.0).abs() < 16.0;
            let from = if p.x < 240.0 { p.x + 16.0 } else { p.x - 16.0 };
            own.grey[y * 120 + x] = if gap { 130 } else { texture(from, p.y) };
        }
        let maps = [16.0, -16.0].map(|d| Map::Affine(Affine::translation(Xy::new(d, 0.0))));
        let rows = |x: f64| (0..8).map(|i| Xy::new(x, 60.0 * f64::from(i))).collect::<Vec<_>>();
        let labels = Labels::new(&own, &[&fixed], &maps, &[rows(130.0), rows(350.0)]);
        assert!(labels.parted(&maps));
        let (map, _) = join::joined(&maps, &labels, Xy::new(0.0, 0.0), Xy::new(479.0, 479.0)).expect("a map");
        for y in [100.0, 250.0, 400.0] {
            let at = |x: f64| map.apply(Xy::new(x, y)).x;
            // Twelve pixels from the rims, a cell and a half.
            assert!((at(212.0) - 228.0).abs() < 2.0 && (at(268.0) - 252.0).abs() < 2.0, "{} {}", at(212.0), at(268.0));
            assert!((60..104).all(|i| at(4.0 * f64::from(i) + 4.0) >= at(4.0 * f64::from(i)) - 1e-6));
        }
    }
}
