//! Maps from matched points: affine by votes and by least squares, and a grid whose stiffness the data choose.
//!
//! The grid minimises `sum w |F(p_i) - t_i|^2 + k sum |second differences of the nodes|^2` over the nodes, relative to the best affine
//! map, so that an infinite `k` is that map. `k` is chosen from a ladder by the error on blocks of matches held out in turn; a
//! stiffer one that is within a seventh of the best wins, and an affine one that is within seven tenths. Weights are Huber's around the
//! present scale of residuals. The normal matrix is banded (band: two rows of nodes) and solved exactly: `nodes * band^2` products a solve.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Grid, Map};

/// A point of the section and where it belongs in the volume, full-resolution pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) from: Xy<f64>,
    pub(super) to: Xy<f64>,
    pub(super) weight: f64,
    /// Which of the held-out groups it belongs to; [`FOLDS`]: none, it only helps a bending map.
    pub(super) fold: usize,
}

/// Groups of matches that are held out in turn.
pub(super) const FOLDS: usize = 4;
/// Stiffnesses tried, from soft to stiff; beyond the last the map is affine. Softer ones follow single neurites: on cortex they bend the
/// volume half again as much and put no more tissue on its own label.
const LADDER: [f64; 6] = [0.4, 1.0, 3.0, 10.0, 40.0, 160.0];
/// Held-out error that a stiffer map may have above the best.
const STIFFER_MAY_COST: f64 = 1.15;
/// Held-out error that an affine map may have above the best: neighbouring patches see the same neurites move, so that they foretell each
/// other by a third to a half even where nothing is bent. Where sections are bent by some px, affine maps cost three times the best and more.
const AFFINE_MAY_COST: f64 = 1.7;
/// Held-out error up to which that holds, full-resolution pixels: what tissue moves.
const AFFINE_PX: f64 = 1.25;
/// Weight of a slope as a part of the stiffness: keeps the rim, where matches lie to one side only, from running away.
const SLOPE: f64 = 0.03;
/// Residuals within this many robust deviations count fully.
const KNEE: f64 = 1.5;
/// Residuals beyond this many robust deviations do not count.
const CUT: f64 = 6.0;
/// The robust deviation is never taken smaller, pixels: sub-pixel peaks are not better.
const LEAST_SCALE: f64 = 0.5;

/// Weighted least squares, `None` where the points lie on a line.
pub(super) fn affine(pairs: &[Pair]) -> Option<Affine> {
    let total: f64 = pairs.iter().map(|p| p.weight).sum();
    if pairs.len() < 3 || total <= 0.0 {
        return None;
    }
    let mean = |f: fn(&Pair) -> Xy<f64>| pairs.iter().fold(Xy::default(), |m, p| m + f(p) * (p.weight / total));
    let (cf, ct) = (mean(|p| p.from), mean(|p| p.to));
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    let mut cross = [[0.0; 2]; 2];
    for p in pairs {
        let (f, t) = (p.from - cf, p.to - ct);
        xx += p.weight * f.x * f.x;
        xy += p.weight * f.x * f.y;
        yy += p.weight * f.y * f.y;
        cross[0][0] += p.weight * t.x * f.x;
        cross[0][1] += p.weight * t.x * f.y;
        cross[1][0] += p.weight * t.y * f.x;
        cross[1][1] += p.weight * t.y * f.y;
    }
    let det = xx * yy - xy * xy;
    // Thinner than 1 : 300 is a line.
    if det <= 1e-5 * (xx + yy) * (xx + yy) {
        return None;
    }
    let row = |c: [f64; 2]| [(c[0] * yy - c[1] * xy) / det, (c[1] * xx - c[0] * xy) / det];
    let ([a, b], [c, d]) = (row(cross[0]), row(cross[1]));
    Some(Affine { rows: [[a, b, ct.x - a * cf.x - b * cf.y], [c, d, ct.y - c * cf.x - d * cf.y]] })
}

/// The affine map that most pairs agree with to `tolerance` pixels, and those pairs. Triples are drawn in a fixed sequence.
pub(super) fn vote(pairs: &[Pair], tolerance: f64) -> Option<(Affine, Vec<Pair>)> {
    let n = pairs.len() as u64;
    if n < 3 {
        return None;
    }
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n) as usize
    };
    let agreeing = |a: &Affine| -> Vec<Pair> {
        pairs.iter().filter(|p| (a.apply(p.from) - p.to).norm() <= tolerance).copied().collect()
    };
    let mut best: Option<(Affine, Vec<Pair>)> = None;
    for _ in 0..400 {
        let (i, j, k) = (draw(), draw(), draw());
        let Some(a) = affine(&[pairs[i], pairs[j], pairs[k]]) else { continue };
        if !believable(&a) {
            continue;
        }
        let votes = agreeing(&a);
        if best.as_ref().is_none_or(|b| votes.len() > b.1.len()) {
            best = Some((a, votes));
        }
    }
    let (_, votes) = best?;
    let refined = affine(&votes).filter(believable)?;
    let votes = agreeing(&refined);
    Some((affine(&votes).filter(believable)?, votes))
}

/// Whether a section could have been deformed like this: area within 25 %, shear and anisotropy within 0.2, not mirrored.
pub(super) fn believable(a: &Affine) -> bool {
    let [[p, q, _], [r, s, _]] = a.rows;
    (0.75..1.33).contains(&a.determinant()) && (p - s).hypot(q + r) < 0.2
}

/// How a grid was found.
#[derive(Clone, Debug)]
pub(super) struct Solved {
    pub(super) map: Map,
    /// Weight of the bending term; infinite where the map is affine.
    pub(super) stiffness: f64,
}

/// The map through the pairs over the nodes `xs`, `ys`, of the given stiffness or of that which held-out pairs choose; `None` where even an
/// affine map is not determined.
pub(super) fn elastic(pairs: &[Pair], xs: &[f64], ys: &[f64], stiffness: Option<f64>) -> Option<Solved> {
    let mut weighted = pairs.to_vec();
    let mut stiff = affine(&weighted)?;
    for _ in 0..4 {
        reweigh(&mut weighted, pairs, |p| stiff.apply(p));
        stiff = affine(&weighted)?;
    }
    // A first, fairly soft pass tells bends from mismatches.
    let soft = System::new(xs, ys, LADDER[0], &stiff).solve(&weighted);
    reweigh(&mut weighted, pairs, |p| stiff.apply(p) + soft.at(p));
    let soft = System::new(xs, ys, LADDER[0], &stiff).solve(&weighted);
    reweigh(&mut weighted, pairs, |p| stiff.apply(p) + soft.at(p));

    let stiffness = stiffness.or_else(|| choose(&weighted, xs, ys))?;
    if stiffness.is_infinite() {
        weighted.retain(|p| p.fold < FOLDS);
        return Some(Solved { map: Map::Affine(affine(&weighted)?), stiffness });
    }
    let system = System::new(xs, ys, stiffness, &stiff);
    let mut field = system.solve(&weighted);
    for _ in 0..2 {
        reweigh(&mut weighted, pairs, |p| stiff.apply(p) + field.at(p));
        field = system.solve(&weighted);
    }
    let grid = Grid::from_fn(xs.to_vec(), ys.to_vec(), |p| stiff.apply(p) + field.at(p));
    grid.ok().map(|g| Solved { map: Map::Grid(g), stiffness })
}

/// The map of a stiffness that is known (infinite: affine) through the pairs, beginning with the weights that `start` gives.
pub(super) fn refit(pairs: &[Pair], (xs, ys): (&[f64], &[f64]), stiffness: f64, start: &Map) -> Option<Map> {
    let mut weighted = pairs.to_vec();
    reweigh(&mut weighted, pairs, |p| start.apply(p));
    let stiff = affine(&weighted)?;
    if stiffness.is_infinite() {
        return Some(Map::Affine(stiff));
    }
    let field = System::new(xs, ys, stiffness, &stiff).solve(&weighted);
    Grid::from_fn(xs.to_vec(), ys.to_vec(), |p| stiff.apply(p) + field.at(p)).ok().map(Map::Grid)
}

/// The stiffness with the least held-out error, or the stiffest one close to it.
fn choose(weighted: &[Pair], xs: &[f64], ys: &[f64]) -> Option<f64> {
    let error = |stiffness: f64| -> Option<f64> {
        let (mut sum, mut n) = (0.0, 0.0);
        for fold in 0..FOLDS {
            let kept: Vec<Pair> = weighted.iter().filter(|p| p.fold != fold && p.fold < FOLDS).copied().collect();
            let stiff = affine(&kept)?;
            let field = stiffness.is_finite().then(|| System::new(xs, ys, stiffness, &stiff).solve(&kept));
            for p in weighted.iter().filter(|p| p.fold == fold) {
                let at = stiff.apply(p.from) + field.as_ref().map_or(Xy::default(), |f| f.at(p.from));
                sum += p.weight * (at - p.to).norm();
                n += p.weight;
            }
        }
        (n > 0.0).then(|| sum / n)
    };
    let mut tried = vec![];
    for k in LADDER.into_iter().chain([f64::INFINITY]) {
        // Too few matches to hold any out: stay affine.
        let Some(e) = error(k) else { return Some(f64::INFINITY) };
        tried.push((k, e));
    }
    let best = tried.iter().map(|t| t.1).fold(f64::MAX, f64::min);
    let enough = |(k, e): &(f64, f64)| {
        let affine = k.is_infinite() && *e <= AFFINE_PX;
        *e <= best * if affine { AFFINE_MAY_COST } else { STIFFER_MAY_COST }
    };
    tried.into_iter().rev().find(enough).map(|t| t.0)
}

/// Sets the weights by the residuals under `map`.
fn reweigh(weighted: &mut [Pair], pairs: &[Pair], map: impl Fn(Xy<f64>) -> Xy<f64>) {
    let residuals: Vec<f64> = pairs.iter().map(|p| (map(p.from) - p.to).norm()).collect();
    let scale = deviation(&residuals);
    for ((w, p), r) in weighted.iter_mut().zip(pairs).zip(residuals) {
        let k = match r / scale {
            r if r <= KNEE => 1.0,
            r if r <= CUT => KNEE / r,
            _ => 0.0,
        };
        w.weight = p.weight * k;
    }
}

/// Robust deviation of lengths: the median over that of a unit Rayleigh distribution.
pub(super) fn deviation(lengths: &[f64]) -> f64 {
    let mut sorted = lengths.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    (median / 1.177).max(LEAST_SCALE)
}

/// Displacements at the nodes, bilinear between.
struct Field<'a> {
    xs: &'a [f64],
    ys: &'a [f64],
    nodes: Vec<Xy<f64>>,
}

impl Field<'_> {
    fn at(&self, p: Xy<f64>) -> Xy<f64> {
        corners(self.xs, self.ys, p).into_iter().fold(Xy::default(), |s, (i, w)| s + self.nodes[i] * w)
    }
}

/// The four nodes around `p` and their bilinear weights; the rim's weights continue outside.
fn corners(xs: &[f64], ys: &[f64], p: Xy<f64>) -> [(usize, f64); 4] {
    let cell = |axis: &[f64], v: f64| {
        let i = axis.partition_point(|&a| a <= v).clamp(1, axis.len() - 1) - 1;
        (i, (v - axis[i]) / (axis[i + 1] - axis[i]))
    };
    let ((c, u), (r, v)) = (cell(xs, p.x), cell(ys, p.y));
    let i = r * xs.len() + c;
    [(i, (1.0 - u) * (1.0 - v)), (i + 1, u * (1.0 - v)), (i + xs.len(), (1.0 - u) * v), (i + xs.len() + 1, u * v)]
}

/// The bending term over a grid, to which matches are added.
struct System<'a> {
    xs: &'a [f64],
    ys: &'a [f64],
    band: usize,
    /// Lower band of the bending term, `band + 1` values a node: value `j` couples node `i` and node `i - j`.
    bending: Vec<f64>,
    stiff: Affine,
}

impl<'a> System<'a> {
    fn new(xs: &'a [f64], ys: &'a [f64], stiffness: f64, stiff: &Affine) -> Self {
        let (nx, ny) = (xs.len(), ys.len());
        let band = 2 * nx;
        let mut bending = vec![0.0; nx * ny * (band + 1)];
        let mut add = |nodes: &[(usize, f64)], k: f64| {
            for &(i, a) in nodes {
                for &(j, b) in nodes.iter().filter(|(j, _)| *j <= i) {
                    bending[i * (band + 1) + i - j] += k * a * b;
                }
            }
        };
        for r in 0..ny {
            for c in 0..nx {
                let i = r * nx + c;
                // Holds nodes that no match reaches at the affine map.
                add(&[(i, 1.0)], 1e-5);
                if c + 1 < nx {
                    add(&[(i, 1.0), (i + 1, -1.0)], SLOPE * stiffness);
                }
                if r + 1 < ny {
                    add(&[(i, 1.0), (i + nx, -1.0)], SLOPE * stiffness);
                }
                if c + 2 < nx {
                    add(&[(i, 1.0), (i + 1, -2.0), (i + 2, 1.0)], stiffness);
                }
                if r + 2 < ny {
                    add(&[(i, 1.0), (i + nx, -2.0), (i + 2 * nx, 1.0)], stiffness);
                }
                if c + 1 < nx && r + 1 < ny {
                    add(&[(i, 1.0), (i + 1, -1.0), (i + nx, -1.0), (i + nx + 1, 1.0)], 2.0 * stiffness);
                }
            }
        }
        Self { xs, ys, band, bending, stiff: *stiff }
    }

    fn solve(&self, pairs: &[Pair]) -> Field<'a> {
        let mut matrix = self.bending.clone();
        let mut wanted = vec![Xy::default(); self.xs.len() * self.ys.len()];
        for p in pairs.iter().filter(|p| p.weight > 0.0) {
            let missing = p.to - self.stiff.apply(p.from);
            let around = corners(self.xs, self.ys, p.from);
            for &(i, a) in &around {
                wanted[i] = wanted[i] + missing * (p.weight * a);
                for &(j, b) in around.iter().filter(|(j, _)| *j <= i) {
                    matrix[i * (self.band + 1) + i - j] += p.weight * a * b;
                }
            }
        }
        solve_banded(&matrix, self.band, &mut wanted);
        Field { xs: self.xs, ys: self.ys, nodes: wanted }
    }
}

/// Cholesky of a positive definite band matrix, and the solution of both coordinates in `b`.
fn solve_banded(m: &[f64], band: usize, b: &mut [Xy<f64>]) {
    let (n, w) = (b.len(), band + 1);
    // Row i holds L(i, i - j) at j; kept in order of falling j it would be the row of L, so products run over slices.
    let mut rows = vec![0.0; n * w];
    for i in 0..n {
        for j in 0..=band.min(i) {
            rows[i * w + band - j] = m[i * w + j];
        }
    }
    for i in 0..n {
        let first = i.saturating_sub(band);
        for k in first..=i {
            let from = k.saturating_sub(band).max(first);
            let (head, tail) = rows.split_at(i * w);
            let own = &tail[band + from - i..band + k - i];
            let sum = if k == i { dot(own, own) } else { dot(own, &head[k * w + band + from - k..k * w + band]) };
            let v = rows[i * w + band + k - i] - sum;
            rows[i * w + band + k - i] = if k == i { v.max(1e-12).sqrt() } else { v / rows[k * w + band] };
        }
        let row = &rows[i * w..(i + 1) * w];
        let sum = (first..i).fold(Xy::default(), |s, k| s + b[k] * row[band + k - i]);
        b[i] = (b[i] - sum) * (1.0 / row[band]);
    }
    for i in (0..n).rev() {
        let row = &rows[i * w..(i + 1) * w];
        b[i] = b[i] * (1.0 / row[band]);
        for k in i.saturating_sub(band)..i {
            b[k] = b[k] - b[i] * row[band + k - i];
        }
    }
}

/// Four sums side by side, so that the processor need not wait for each.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (wide_a, rest_a) = a.as_chunks::<4>();
    let (wide_b, rest_b) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (a, b) in wide_a.iter().zip(wide_b) {
        (0..4).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(bend: impl Fn(Xy<f64>) -> Xy<f64>, noise: f64) -> Vec<Pair> {
        let mut state = 12345u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1u32 << 24) - 0.5
        };
        let cells = (0..15usize).flat_map(|r| (0..15usize).map(move |c| (c, r)));
        cells
            .map(|(c, r)| {
                let from = Xy::new(c as f64 * 64.0 + 30.0, r as f64 * 64.0 + 30.0);
                // Sum of two uniform numbers of unit width, sd 0.41.
                let to = bend(from) + Xy::new(random() + random(), random() + random()) * (noise / 0.41);
                Pair { from, to, weight: 1.0, fold: (c / 2 + r / 2 * 2) % FOLDS }
            })
            .collect()
    }

    fn axis() -> Vec<f64> {
        (0..=16).map(|i| f64::from(i) * 64.0 - 32.0).collect()
    }

    #[test]
    fn stiff_data_stay_affine_and_bent_data_bend() {
        let turned = Affine { rows: [[1.01, 0.05, 20.0], [-0.04, 0.99, -7.0]] };
        let stiff = elastic(&pairs(|p| turned.apply(p), 1.0), &axis(), &axis(), None).expect("determined");
        assert!(stiff.stiffness.is_infinite(), "{}", stiff.stiffness);
        let bend = |p: Xy<f64>| turned.apply(p) + Xy::new(6.0 * (p.y / 130.0).sin(), 6.0 * (p.x / 130.0).cos());
        let bent = elastic(&pairs(bend, 1.0), &axis(), &axis(), None).expect("determined");
        let inside: Vec<Xy<f64>> =
            (1..14).flat_map(|r| (1..14).map(move |c| Xy::new(f64::from(c) * 68.0, f64::from(r) * 68.0))).collect();
        let square = inside.iter().map(|p| (bent.map.apply(*p) - bend(*p)).norm().powi(2)).sum::<f64>();
        // Noise of 1.4 px a point; the field has about 80 degrees of freedom a component for 225 points.
        assert!((square / inside.len() as f64).sqrt() < 1.0);
    }

    #[test]
    fn a_fifth_of_wild_matches_does_not_bend_the_map() {
        let mut data = pairs(|p| p, 0.3);
        for (i, p) in data.iter_mut().enumerate().filter(|(i, _)| i % 5 == 0) {
            p.to = p.to + Xy::new(25.0 * (i as f64).sin(), 25.0 * (i as f64 * 1.7).cos());
        }
        let solved = elastic(&data, &axis(), &axis(), None).expect("determined");
        let worst = data.iter().map(|p| (solved.map.apply(p.from) - p.from).norm()).fold(0.0, f64::max);
        assert!(worst < 1.0, "{worst}");
    }

    #[test]
    fn votes_find_the_map_that_most_agree_on() {
        let turned = Affine::rotation(0.1, Xy::new(300.0, 300.0));
        let mut data = pairs(|p| turned.apply(p), 0.5);
        for (i, p) in data.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
            p.to = p.from + Xy::new((i * 37 % 200) as f64 - 100.0, (i * 61 % 200) as f64 - 100.0);
        }
        let (found, votes) = vote(&data, 3.0).expect("half agree");
        assert!(votes.len() >= 112 && votes.len() < 125, "{}", votes.len());
        assert!((found.apply(Xy::new(900.0, 900.0)) - turned.apply(Xy::new(900.0, 900.0))).norm() < 1.0);
    }
}
