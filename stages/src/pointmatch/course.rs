//! The smooth course of the shift along one overlap, and which blocks follow it.

use kinesin_stream::geometry::Xy;

/// A shift found at a place of p.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Xy<f64>,
    pub(super) shift: Xy<f64>,
}

/// Spread of blocks about the course below which nobody is an outlier, pixels: the Cauchy scale of the fit.
const SCALE: f64 = 0.5;
/// What slope and curvature may add at the ends of an overlap, pixels; the ridge that keeps few blocks from bending the course.
const BEND: f64 = 4.0;

/// Distance of every sample from a polynomial course (constant, linear or quadratic by number of samples), fitted by least
/// squares with Cauchy weights from the median on. The order of samples does not matter beyond rounding.
pub(super) fn distances(samples: &[Sample]) -> Vec<f64> {
    if samples.is_empty() {
        return Vec::new();
    }
    let terms = match samples.len() {
        0..4 => 1,
        4..12 => 3,
        _ => 6,
    };
    let rows = basis(samples);
    let median = |of: fn(&Sample) -> f64| {
        let mut v: Vec<f64> = samples.iter().map(of).collect();
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let middle = Xy::new(median(|s| s.shift.x), median(|s| s.shift.y));
    let mut off: Vec<Xy<f64>> = samples.iter().map(|s| s.shift - middle).collect();
    let mut scale = 4.0 * SCALE;
    for _ in 0..12 {
        let weights: Vec<f64> = off.iter().map(|o| 1.0 / (1.0 + (o.norm() / scale).powi(2))).collect();
        let along = |part: fn(Xy<f64>) -> f64| {
            fit(&rows, terms, &weights, samples.iter().map(|s| part(s.shift - middle)), SCALE / BEND)
        };
        let (cx, cy) = (along(|v| v.x), along(|v| v.y));
        for ((o, s), row) in off.iter_mut().zip(samples).zip(&rows) {
            let value = |c: &[f64; 6]| row.iter().zip(c).map(|(a, b)| a * b).sum::<f64>();
            *o = s.shift - middle - Xy::new(value(&cx), value(&cy));
        }
        scale = (scale * 0.7).max(SCALE);
    }
    off.iter().map(|o| o.norm()).collect()
}

/// 1, u, v, u^2, uv, v^2 of the places scaled to -1..1 by the longer side of what they span.
fn basis(samples: &[Sample]) -> Vec<[f64; 6]> {
    let bound = |of: fn(&Sample) -> f64| {
        let values = samples.iter().map(of);
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
    };
    let ((x0, x1), (y0, y1)) = (bound(|s| s.at.x), bound(|s| s.at.y));
    let half = ((x1 - x0).max(y1 - y0) / 2.0).max(1.0);
    let scaled = |s: &Sample| ((s.at.x - (x0 + x1) / 2.0) / half, (s.at.y - (y0 + y1) / 2.0) / half);
    samples.iter().map(scaled).map(|(u, v)| [1.0, u, v, u * u, u * v, v * v]).collect()
}

/// Weighted ridge regression on the first `terms` columns; the constant is free.
fn fit(rows: &[[f64; 6]], terms: usize, weights: &[f64], values: impl Iterator<Item = f64>, ridge: f64) -> [f64; 6] {
    let mut normal = [[0.0f64; 7]; 6];
    for ((row, &w), value) in rows.iter().zip(weights).zip(values) {
        for i in 0..terms {
            for j in 0..terms {
                normal[i][j] += w * row[i] * row[j];
            }
            normal[i][6] += w * row[i] * value;
        }
    }
    for (i, n) in normal.iter_mut().enumerate().take(terms) {
        n[i] += if i == 0 { 1e-9 } else { ridge * ridge };
    }
    // Positive definite: elimination needs no pivoting.
    for i in 0..terms {
        let pivot = normal[i];
        for row in &mut normal[i + 1..terms] {
            let factor = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(r, p)| *r -= factor * p);
        }
    }
    let mut solution = [0.0; 6];
    for i in (0..terms).rev() {
        let known: f64 = (i + 1..terms).map(|j| normal[i][j] * solution[j]).sum();
        solution[i] = (normal[i][6] - known) / normal[i][i];
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_blocks_stand_out_from_a_bent_course() {
        let wrong = [2, 7, 8, 14];
        let samples: Vec<Sample> = (0..18)
            .map(|i| {
                let t = f64::from(i) * 60.0;
                let bent = Xy::new(3.0 + 0.002 * t + 4e-6 * t * t, -0.003 * t);
                let miss = if wrong.contains(&i) { Xy::new(f64::from(i % 5) + 3.0, -4.0) } else { Xy::default() };
                Sample { at: Xy::new(20.0, t), shift: bent + miss }
            })
            .collect();
        for (i, off) in distances(&samples).into_iter().enumerate() {
            assert_eq!(off > 1.5, wrong.contains(&(i as i32)), "block {i} is {off} px off");
        }
    }

    #[test]
    fn one_block_is_its_own_course() {
        assert_eq!(distances(&[Sample { at: Xy::new(1.0, 2.0), shift: Xy::new(9.0, 9.0) }]), [0.0]);
    }
}
