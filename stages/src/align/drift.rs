//! Keeps the volume from bending, slowly, away from the shape of its sections.
//!
//! Each section bends the volume frame back to its own rest shape by `u = F - R`, `R` the rigid part of its map `F`. Single sections' own
//! deformation averages out along z; what stays in the running mean of `u` is a deformation of the volume (that of the first section,
//! or a walk of small errors). Only its low frequencies are kept, a cubic polynomial over the frame, and each section takes a
//! small part of it back. Neighbours differ by that part alone, and the mean scale of the volume stays 1.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Affine;
use serde::{Deserialize, Serialize};

use super::fit::{self, Pair};

/// Terms of a cubic polynomial in two variables.
const TERMS: usize = 10;
/// Samples of a map along each side of a section.
const SAMPLES: u32 = 8;
/// The polynomial is held beyond this many half sides from the centre.
const OUTERMOST: f64 = 1.2;

/// The running mean after a section; part of its record, so that a restart continues exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// Centre of the frame, volume pixels.
    pub centre: Xy<f64>,
    /// Half the longer side of the frame, volume pixels.
    pub half_side: f64,
    /// Coefficients, pixels, of `1, x, y, x^2, xy, y^2, x^3, x^2 y, x y^2, y^3` with coordinates in half sides from the centre.
    pub terms: Vec<Xy<f64>>,
}

impl Drift {
    /// No drift yet, in the frame of a section whose full-resolution pixels reach from `low` to `high`.
    pub(super) fn none(low: Xy<f64>, high: Xy<f64>) -> Self {
        let half_side = ((high.x - low.x).max(high.y - low.y) / 2.0).max(1.0);
        Self { centre: (low + high) * 0.5, half_side, terms: vec![Xy::default(); TERMS] }
    }

    /// The mean after one more section of extent `low` to `high` whose map is `map`.
    pub(super) fn with(&self, map: impl Fn(Xy<f64>) -> Xy<f64>, low: Xy<f64>, high: Xy<f64>, window: u32) -> Self {
        let mut pairs = vec![];
        for r in 0..SAMPLES {
            for c in 0..SAMPLES {
                let at = |i: u32| f64::from(i) / f64::from(SAMPLES - 1);
                let from = Xy::new(low.x + at(c) * (high.x - low.x), low.y + at(r) * (high.y - low.y));
                pairs.push(Pair { from, to: map(from), weight: 1.0, fold: 0 });
            }
        }
        let Some(rigid) = fit::affine(&pairs).map(|a| rigid_part(&a, &pairs)) else { return self.clone() };
        let mut matrix = [[0.0; TERMS]; TERMS];
        let mut wanted = vec![Xy::default(); TERMS];
        for p in &pairs {
            let basis = self.basis(p.to);
            let u = p.to - rigid.apply(p.from);
            for i in 0..TERMS {
                wanted[i] = wanted[i] + u * basis[i];
                for j in 0..TERMS {
                    matrix[i][j] += basis[i] * basis[j];
                }
            }
        }
        let now = fit::solve_dense(&matrix.map(|r| r.to_vec()), wanted);
        let share = 1.0 / f64::from(window);
        let terms = self.terms.iter().zip(now).map(|(old, new)| rounded(*old + (new - *old) * share)).collect();
        Self { terms, ..self.clone() }
    }

    /// The mean deformation at a volume pixel.
    pub(super) fn at(&self, q: Xy<f64>) -> Xy<f64> {
        self.terms.iter().zip(self.basis(q)).fold(Xy::default(), |s, (t, b)| s + *t * b)
    }

    fn basis(&self, q: Xy<f64>) -> [f64; TERMS] {
        let p = (q - self.centre) * (1.0 / self.half_side);
        let (x, y) = (p.x.clamp(-OUTERMOST, OUTERMOST), p.y.clamp(-OUTERMOST, OUTERMOST));
        [1.0, x, y, x * x, x * y, y * y, x * x * x, x * x * y, x * y * y, y * y * y]
    }
}

/// The rotation and shift closest to `a` over the pairs.
fn rigid_part(a: &Affine, pairs: &[Pair]) -> Affine {
    let [[p, q, _], [r, s, _]] = a.rows;
    let angle = (r - q).atan2(p + s);
    let n = pairs.len().max(1) as f64;
    let centre = pairs.iter().fold(Xy::default(), |m, p| m + p.from * (1.0 / n));
    Affine::rotation(angle, centre).then(&Affine::translation(a.apply(centre) - centre))
}

/// To a multiple of 1/1024 px, which short decimals hold exactly.
pub(super) fn rounded(p: Xy<f64>) -> Xy<f64> {
    Xy::new((p.x * 1024.0).round() / 1024.0, (p.y * 1024.0).round() / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_deformation_is_learned_and_a_turn_is_not() {
        let (low, high) = (Xy::new(0.0, 0.0), Xy::new(1000.0, 800.0));
        let mut drift = Drift::none(low, high);
        let turn = Affine::rotation(0.05, Xy::new(400.0, 300.0));
        let learned = drift.with(|p| turn.apply(p), low, high, 1);
        assert!(learned.terms.iter().all(|t| t.norm() < 0.01), "{:?}", learned.terms);
        let bend = |p: Xy<f64>| p + Xy::new(5.0 * ((p.x - 500.0) / 500.0).powi(2), 0.0);
        for _ in 0..100 {
            drift = drift.with(bend, low, high, 16);
        }
        let (rim, middle) = (drift.at(Xy::new(1000.0, 400.0)).x, drift.at(Xy::new(500.0, 400.0)).x);
        // The parabola less its mean shift: 5 px between rim and middle.
        assert!((rim - middle - 5.0).abs() < 0.2, "{rim} {middle}");
    }
}
