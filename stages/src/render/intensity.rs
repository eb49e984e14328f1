//! One gain and offset a tile, so that a seam shows no step.
//!
//! From the mean `m` and deviation `s` of the strips that two tiles share, grey `v` becomes `g v + o` with
//! `ln g_a + ln s_a = ln g_b + ln s_b` and then `g_a m_a + o_a = g_b m_b + o_b`, each solved as least squares over all pairs of a section
//! with Huber weights. Weak ties (`ln g = 0`, and a mean grey that stays where it is) hold what the overlaps leave free,
//! so the section as a whole keeps its tone. Cost: a few conjugate gradient runs over one unknown a tile.

use std::collections::BTreeMap;

use kinesin_stream::ids::TileKey;
use serde::{Deserialize, Serialize};

/// Weight of the tie to "no change", against 1 for a large overlap.
const TIE: f64 = 0.02;
/// Overlaps of this many sampled pixels have half the weight that the largest have.
const HALF_WEIGHT_PX: f64 = 500.0;
/// Residuals in `ln g` beyond this count less: no beam changes its contrast by 10 % across a seam.
const HUBER_GAIN: f64 = 0.05;
/// Residuals in grey levels beyond this count less.
const HUBER_GREY: f64 = 4.0;
/// Gains are held within this factor of 1: a larger one is a broken tile, not a tone.
const MOST_GAIN: f64 = 3.0;
/// Strips flatter than this many grey levels say nothing about contrast.
const LEAST_SD: f64 = 2.0;

/// Grey `v` becomes `gain v + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tone {
    /// Factor.
    pub gain: f32,
    /// Summand, grey levels.
    pub offset: f32,
}

impl Tone {
    /// Leaves grey values as they are.
    pub const IDENTITY: Self = Self { gain: 1.0, offset: 0.0 };
}

impl Default for Tone {
    fn default() -> Self {
        Self::IDENTITY
    }
}

/// What two tiles show of the same tissue.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverlapStat {
    /// One tile.
    pub a: TileKey,
    /// The other.
    pub b: TileKey,
    /// Mean grey of the overlap in `a` and in `b`.
    pub mean: [f64; 2],
    /// Standard deviation of the overlap in `a` and in `b`, grey levels.
    pub sd: [f64; 2],
    /// Pixels compared.
    pub pixels: u32,
}

impl OverlapStat {
    /// Statistics of the same tissue in both tiles, value by value (any order, the same for both). `None` where there are fewer than 16 values.
    pub fn of(a: TileKey, in_a: &[u8], b: TileKey, in_b: &[u8]) -> Option<Self> {
        let n = in_a.len().min(in_b.len());
        if n < 16 {
            return None;
        }
        let ((mean_a, sd_a), (mean_b, sd_b)) = (moments(&in_a[..n]), moments(&in_b[..n]));
        Some(Self { a, b, mean: [mean_a, mean_b], sd: [sd_a, sd_b], pixels: n as u32 })
    }
}

fn moments(values: &[u8]) -> (f64, f64) {
    let (sum, square) =
        values.iter().fold((0u64, 0u64), |(s, q), &v| (s + u64::from(v), q + u64::from(v) * u64::from(v)));
    let n = values.len() as f64;
    let mean = sum as f64 / n;
    (mean, (square as f64 / n - mean * mean).max(0.0).sqrt())
}

/// Tone of every tile of one section; a tile without a usable overlap keeps its own.
///
/// Pairs that name a tile outside `tiles` are ignored. The order of both inputs does not matter.
pub fn solve(tiles: &[TileKey], overlaps: &[OverlapStat]) -> BTreeMap<TileKey, Tone> {
    let index: BTreeMap<TileKey, usize> = tiles.iter().map(|k| (*k, 0)).collect();
    let keys: Vec<TileKey> = index.into_keys().collect();
    let place = |k: &TileKey| keys.binary_search(k).ok();
    let mut pairs: Vec<(usize, usize, &OverlapStat)> =
        overlaps.iter().filter_map(|o| Some((place(&o.a)?, place(&o.b)?, o))).filter(|(a, b, _)| a != b).collect();
    pairs.sort_by(|(a, b, o), (c, d, p)| (a, b, o.pixels).cmp(&(c, d, p.pixels)).then(o.mean[0].total_cmp(&p.mean[0])));
    let weight = |o: &OverlapStat| f64::from(o.pixels) / (f64::from(o.pixels) + HALF_WEIGHT_PX);

    let textured = pairs.iter().filter(|(_, _, o)| o.sd[0] > LEAST_SD && o.sd[1] > LEAST_SD);
    let logs: Vec<Link> =
        textured.map(|&(a, b, o)| Link { a, b, difference: (o.sd[1] / o.sd[0]).ln(), weight: weight(o) }).collect();
    let most = MOST_GAIN.ln();
    let gains: Vec<f64> =
        robust(&logs, &vec![0.0; keys.len()], HUBER_GAIN).into_iter().map(|v| v.clamp(-most, most).exp()).collect();

    let greys = pairs.iter().flat_map(|(_, _, o)| o.mean);
    let section_mean = greys.clone().sum::<f64>() / greys.count().max(1) as f64;
    let levels: Vec<Link> = pairs
        .iter()
        .map(|&(a, b, o)| Link { a, b, difference: gains[b] * o.mean[1] - gains[a] * o.mean[0], weight: weight(o) })
        .collect();
    let rest: Vec<f64> = gains.iter().map(|g| section_mean * (1.0 - g)).collect();
    let offsets = robust(&levels, &rest, HUBER_GREY);
    let tones = gains.iter().zip(&offsets).map(|(g, o)| Tone { gain: *g as f32, offset: *o as f32 });
    keys.iter().copied().zip(tones).collect()
}

/// `x_a - x_b = difference`.
struct Link {
    a: usize,
    b: usize,
    difference: f64,
    weight: f64,
}

/// Minimises the Huber cost of the links plus [`TIE`] times the squared distance to `rest`, by reweighting five times.
fn robust(links: &[Link], rest: &[f64], knee: f64) -> Vec<f64> {
    let mut x = rest.to_vec();
    let mut weights: Vec<f64> = links.iter().map(|l| l.weight).collect();
    for _ in 0..5 {
        x = tied_least_squares(links, &weights, rest, x);
        for (w, l) in weights.iter_mut().zip(links) {
            let miss = (x[l.a] - x[l.b] - l.difference).abs();
            *w = l.weight * if miss > knee { knee / miss } else { 1.0 };
        }
    }
    x
}

/// Conjugate gradients on the normal equations, from `x`.
fn tied_least_squares(links: &[Link], weights: &[f64], rest: &[f64], mut x: Vec<f64>) -> Vec<f64> {
    let apply = |v: &[f64]| {
        let mut out: Vec<f64> = v.iter().map(|v| TIE * v).collect();
        for (l, w) in links.iter().zip(weights) {
            let d = w * (v[l.a] - v[l.b]);
            out[l.a] += d;
            out[l.b] -= d;
        }
        out
    };
    let mut wanted: Vec<f64> = rest.iter().map(|r| TIE * r).collect();
    for (l, w) in links.iter().zip(weights) {
        wanted[l.a] += w * l.difference;
        wanted[l.b] -= w * l.difference;
    }
    let mut residual: Vec<f64> = wanted.iter().zip(apply(&x)).map(|(b, a)| b - a).collect();
    let mut direction = residual.clone();
    let mut size = residual.iter().map(|r| r * r).sum::<f64>();
    for _ in 0..500 {
        if size < 1e-18 {
            break;
        }
        let along = apply(&direction);
        let step = size / direction.iter().zip(&along).map(|(d, a)| d * a).sum::<f64>();
        for ((x, r), (d, a)) in x.iter_mut().zip(&mut residual).zip(direction.iter().zip(&along)) {
            *x += step * d;
            *r -= step * a;
        }
        let next = residual.iter().map(|r| r * r).sum::<f64>();
        for (d, r) in direction.iter_mut().zip(&residual) {
            *d = r + next / size * *d;
        }
        size = next;
    }
    x
}

#[cfg(test)]
mod tests {
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId};

    use super::*;

    fn key(beam: u16) -> TileKey {
        let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
        TileKey { mfov, beam: BeamId(beam) }
    }

    /// Overlaps in a ring of `n` tiles that show tissue of mean 120, sd 30 through their own tones.
    fn ring(tones: &[(f64, f64)]) -> Vec<OverlapStat> {
        let n = tones.len();
        let see = |i: usize| (tones[i].0 * 120.0 + tones[i].1, tones[i].0 * 30.0);
        (0..n)
            .map(|i| {
                let (a, b) = (see(i), see((i + 1) % n));
                let (key_a, key_b) = (key(i as u16), key(((i + 1) % n) as u16));
                OverlapStat { a: key_a, b: key_b, mean: [a.0, b.0], sd: [a.1, b.1], pixels: 4000 }
            })
            .collect()
    }

    #[test]
    fn tiles_of_different_tone_show_the_same_grey_after_the_solve() {
        let tones = [(1.0, 0.0), (1.2, -10.0), (0.9, 5.0), (1.05, 12.0)];
        let keys: Vec<TileKey> = (0..4).map(key).collect();
        let solved = solve(&keys, &ring(&tones));
        let seen = |i: usize, v: f64| {
            let t = solved[&key(i as u16)];
            f64::from(t.gain) * (tones[i].0 * v + tones[i].1) + f64::from(t.offset)
        };
        for v in [60.0, 120.0, 180.0] {
            let all: Vec<f64> = (0..4).map(|i| seen(i, v)).collect();
            let (low, high) = all.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            // Uncorrected the four differ by up to 48 levels at grey 180.
            assert!(high - low < 1.5, "grey {v} is shown as {all:?}");
            assert!((all[0] - v).abs() < 12.0, "the section keeps its tone: {v} became {}", all[0]);
        }
    }

    #[test]
    fn one_wrong_overlap_does_not_spoil_the_others() {
        let mut stats = ring(&[(1.0, 0.0); 6]);
        stats.extend(ring(&[(1.0, 0.0); 6]));
        stats[2].mean[1] += 80.0;
        let solved = solve(&(0..6).map(key).collect::<Vec<_>>(), &stats);
        assert!(solved.values().all(|t| (t.gain - 1.0).abs() < 1e-3 && t.offset.abs() < 6.0), "{solved:?}");
    }

    #[test]
    fn the_order_of_tiles_and_overlaps_does_not_matter() {
        let mut stats = ring(&[(1.0, 3.0), (1.1, 0.0), (0.8, 7.0), (1.0, -9.0), (1.3, 0.0)]);
        let mut keys: Vec<TileKey> = (0..5).map(key).collect();
        let before = solve(&keys, &stats);
        stats.reverse();
        keys.reverse();
        assert_eq!(before, solve(&keys, &stats));
    }

    #[test]
    fn a_tile_without_overlaps_keeps_its_tone() {
        assert_eq!(solve(&[key(7)], &[])[&key(7)], Tone::IDENTITY);
    }
}
