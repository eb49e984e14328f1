//! How rows lie against each other in an overlap: what a stage that still shakes and a scan that still settles leave.
//!
//! Each of the first rows of the overlap (the first rows of the lower tile) is looked for along x in the other tile; the shift of
//! a row against the next is jitter, that of the first rows against the later ones is skew. Both as in operators' checks of
//! MultiSEM regions (drift from row to row, exponential drift of the first rows).

use kinesin_stream::geometry::Xy;
use serde::{Deserialize, Serialize};

use super::filter::window_sums;
use super::peak::products;
use crate::wide::{Kernel, wide};

/// Shifts of single rows against the other tile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowDrift {
    /// Rows that were seen clearly enough.
    pub rows: usize,
    /// Spread of the shift from row to row, pixels; noise of the image included.
    pub jitter_px: f64,
    /// Shift of the first rows against the later half, pixels.
    pub skew_px: f64,
}

/// Rows that are looked at, from the first of the overlap on.
pub(super) const ROWS: usize = 96;
/// How far a row may be off, pixels.
pub(super) const REACH: usize = 12;
/// Shorter rows show too little.
pub(super) const LEAST_COLUMNS: usize = 128;
/// Rows of a score below this say nothing.
const LEAST_SCORE: f32 = 0.3;
/// Fewer clear rows say nothing of all.
const LEAST_ROWS: usize = 16;
/// Rows taken as the first ones.
const FIRST: usize = 6;

/// From pairs of rows that show the same tissue but for drift; `None` where too few of them are clear.
pub(super) fn drift<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<RowDrift> {
    let mut signals = [Vec::new(), Vec::new()];
    let mut scratch = [Vec::new(), Vec::new()];
    let mut shifts: Vec<(usize, f64)> = Vec::new();
    for (y, (a, b)) in pairs.enumerate() {
        if let Some(shift) = wide(Seen { rows: [a, b], signals: &mut signals, scratch: &mut scratch }) {
            shifts.push((y, shift));
        }
    }
    if shifts.len() < LEAST_ROWS {
        return None;
    }
    let steps = shifts.windows(2).filter(|w| w[1].0 == w[0].0 + 1).map(|w| (w[1].1 - w[0].1).abs());
    let part = |rows: &[(usize, f64)]| median(rows.iter().map(|r| r.1).collect());
    Some(RowDrift {
        rows: shifts.len(),
        // Two rows differ by the root of two times the spread of one.
        jitter_px: 1.48 * median(steps.collect()) / 2.0f64.sqrt(),
        skew_px: (part(&shifts[..FIRST]) - part(&shifts[shifts.len() / 2..])).abs(),
    })
}

/// The shift of two rows of grey values, in space that is done with.
struct Seen<'a> {
    rows: [&'a [u8]; 2],
    signals: &'a mut [Vec<f32>; 2],
    scratch: &'a mut [Vec<f32>; 2],
}

impl Kernel for Seen<'_> {
    type Out = Option<f64>;

    #[inline(always)]
    fn run(self) -> Option<f64> {
        let [first, second] = self.signals;
        band(self.rows[0], first, self.scratch);
        band(self.rows[1], second, self.scratch);
        shift(first, second)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Sum of three less the mean of twenty-five.
#[inline(always)]
fn band(row: &[u8], out: &mut Vec<f32>, scratch: &mut [Vec<f32>; 2]) {
    let grey: Vec<f32> = row.iter().map(|&v| f32::from(v)).collect();
    let mut sums = |half: usize| {
        let mut sums = vec![0.0; grey.len()];
        scratch.iter_mut().for_each(|s| s.resize(grey.len() + 2 * half, 0.0));
        window_sums(&grey, half, &mut sums, scratch);
        sums
    };
    let (fine, slow) = (sums(1), sums(12));
    out.clear();
    out.extend(fine.iter().zip(&slow).map(|(f, s)| f / 3.0 - s / 25.0));
}

/// The lag at which `a(i)` looks like `b(i + lag)`, with its fraction.
#[inline(always)]
fn shift(a: &[f32], b: &[f32]) -> Option<f64> {
    // Where the window of the mean lies within the row for every lag.
    let (from, to) = (REACH + 12, a.len().min(b.len()).checked_sub(REACH + 12)?);
    let middle = a.get(from..to)?;
    let (own, _) = products(middle, middle);
    let square = |i: usize| f64::from(b[i]) * f64::from(b[i]);
    let (all, first) = (middle.len(), from - REACH);
    let part = &b[first..first + all];
    let mut energy = f64::from(products(part, part).0);
    let mut scores = [0.0f32; 2 * REACH + 1];
    for (lag, score) in scores.iter_mut().enumerate() {
        let start = first + lag;
        let (ab, _) = products(middle, &b[start..start + all]);
        if energy > 0.0 && own > 0.0 {
            *score = (f64::from(ab) / (f64::from(own) * energy).sqrt()) as f32;
        }
        // The window goes on by one.
        if lag < 2 * REACH {
            energy += square(start + all) - square(start);
        }
    }
    let best = (0..scores.len()).max_by(|&i, &j| scores[i].total_cmp(&scores[j]))?;
    if scores[best] < LEAST_SCORE || best == 0 || best + 1 == scores.len() {
        return None;
    }
    let [low, top, high] = [scores[best - 1], scores[best], scores[best + 1]].map(f64::from);
    let bend = low - 2.0 * top + high;
    let fraction = if bend < 0.0 { 0.5 * (low - high) / bend } else { 0.0 };
    Some(best as f64 - REACH as f64 + fraction)
}

/// Rows of the overlap in both tiles, from its first on; `by` is the whole shift.
pub(super) fn rows_of(first: i64, height: usize, by: Xy<i64>) -> impl Iterator<Item = (i64, i64)> {
    (0..height.min(ROWS) as i64).map(move |y| (first + y, first + y + by.y))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one texture, the second of each pair drawn from further right by `off(row)`.
    fn seen(off: impl Fn(usize) -> f64) -> RowDrift {
        let value = |x: f64, y: usize| {
            let y = y as f64;
            let v = (0.31 * x + 0.12 * y).sin() + (0.17 * x - 0.29 * y).sin() + (0.053 * x + 0.4 * y).cos();
            (120.0 + 25.0 * v) as u8
        };
        let rows: Vec<(Vec<u8>, Vec<u8>)> = (0..60)
            .map(|y| {
                let a = (0..300).map(|x| value(f64::from(x), y)).collect();
                (a, (0..300).map(|x| value(f64::from(x) - off(y), y)).collect())
            })
            .collect();
        drift(rows.iter().map(|(a, b)| (a.as_slice(), b.as_slice()))).expect("clear rows")
    }

    #[test]
    fn rows_that_lie_right_have_neither_jitter_nor_skew_whatever_the_shift_of_all() {
        for all in [0.0, 2.4] {
            let drift = seen(|_| all);
            assert!(drift.rows == 60 && drift.jitter_px < 0.05 && drift.skew_px < 0.1, "{drift:?}");
        }
    }

    #[test]
    fn shaking_rows_are_jitter_and_late_first_rows_are_skew() {
        let shaken = seen(|y| if y % 2 == 0 { 0.7 } else { -0.7 });
        // Steps of 1.4 px: 1.48 * 1.4 / sqrt(2).
        assert!((shaken.jitter_px - 1.465).abs() < 0.15 && shaken.skew_px < 1.5, "{shaken:?}");
        let late = seen(|y| 9.0 * (-(y as f64) / 8.0).exp());
        // The median of the first six rows: row 2 or 3 of the decay.
        assert!((5.5..8.0).contains(&late.skew_px) && late.jitter_px < 0.4, "{late:?}");
    }

    #[test]
    fn rows_without_texture_say_nothing() {
        let flat = vec![90u8; 300];
        assert_eq!(drift((0..60).map(|_| (flat.as_slice(), flat.as_slice()))), None);
    }
}
