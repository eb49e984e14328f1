//! What is kept out of a flood: voxels by their value in the image or in another volume, and places where sections jump.
//!
//! Several rules are joined with "or". A voxel that is kept out of `labels` holds no centre of a field of view and gets no
//! label; one kept out of `centres` may still be labelled from beside it; one kept out of `starts` only begins no object.

use std::path::PathBuf;

use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};

use super::canvas::{NO_MOVE, NO_START};

/// One rule, `[[flood.masks]]`. A voxel is kept out where any of its conditions holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskRule {
    /// A volume of the same sections and the same field, perhaps at another resolution in the plane. Without it the image
    /// itself.
    pub volume: Option<PathBuf>,
    /// Values that are kept out.
    pub values: Vec<u64>,
    /// Values below this one are.
    pub below: Option<u64>,
    /// Values above this one are.
    pub above: Option<u64>,
    /// Keep out what meets none of the conditions instead.
    pub invert: bool,
    /// What it is kept out of. Default `labels`.
    pub from: KeptFrom,
}

/// What a masked voxel may not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptFrom {
    /// Part of an object, or the centre of a field of view.
    #[default]
    Labels,
    /// The centre of a field of view.
    Centres,
    /// The start of an object.
    Starts,
}

impl MaskRule {
    /// Whether a voxel of this value is kept out.
    pub fn keeps_out(&self, value: u64) -> bool {
        let met = self.values.contains(&value)
            || self.below.is_some_and(|b| value < b)
            || self.above.is_some_and(|a| value > a);
        met != self.invert
    }

    pub(super) fn faults(&self, key: &str, want: &mut dyn FnMut(bool, String)) {
        let some = !self.values.is_empty() || self.below.is_some() || self.above.is_some();
        want(some, format!("{key} says no value; give values, below or above"));
        if let (Some(below), Some(above)) = (self.below, self.above) {
            want(below <= above + 1, format!("{key}: below {below} and above {above} together are every value"));
        }
    }

    /// Marks what the rule keeps out, for voxels of which `value` is known.
    pub fn mark(
        &self,
        value: impl Fn(usize, usize) -> u64,
        closed: &mut Array2<bool>,
        barred: &mut Option<Array2<u8>>,
    ) {
        let bit = match self.from {
            KeptFrom::Labels => {
                closed.indexed_iter_mut().for_each(|((y, x), c)| *c |= self.keeps_out(value(y, x)));
                return;
            }
            KeptFrom::Centres => NO_MOVE,
            KeptFrom::Starts => NO_START,
        };
        let bits = barred.get_or_insert_with(|| Array2::zeros(closed.dim()));
        bits.indexed_iter_mut().filter(|((y, x), _)| self.keeps_out(value(*y, *x))).for_each(|(_, b)| *b |= bit);
    }
}

/// `[flood.shift]`: no field of view may lie across a jump from one section to the next.
///
/// The displacement of a section against the one before is found in patches, by correlation at half resolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShiftRule {
    /// Displacement, voxels, from which on a patch counts as a jump. Default 8: a thin neurite's width at 12 nm.
    pub limit: f64,
    /// Side of a patch, voxels. Default 64.
    pub patch: usize,
    /// Largest displacement that is looked for, voxels. Default 16.
    pub search: usize,
}

impl Default for ShiftRule {
    fn default() -> Self {
        Self { limit: 8.0, patch: 64, search: 16 }
    }
}

/// A patch where a section lies displaced against the one before, voxels, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    pub(super) y: (usize, usize),
    pub(super) x: (usize, usize),
}

/// Least standard deviation of grey for a patch to have a place.
const FLAT: f64 = 2.0;

impl ShiftRule {
    pub(super) fn faults(&self, want: &mut dyn FnMut(bool, String)) {
        let Self { limit, patch, search } = *self;
        want(patch >= 8, format!("flood.shift.patch = {patch}, use 8 voxels or more"));
        want(search >= 2, format!("flood.shift.search = {search}, use 2 voxels or more"));
        want(
            limit >= 0.0 && limit < search as f64,
            format!("flood.shift.limit = {limit} cannot be seen with search = {search}; use 0 to less than it"),
        );
    }

    /// The patches of `section` that lie displaced against `before` by more than the limit.
    pub(super) fn jumps(&self, before: ArrayView2<'_, u8>, section: ArrayView2<'_, u8>) -> Vec<Jump> {
        let (a, b) = (halved(before), halved(section));
        let (rows, columns) = section.dim();
        let mut jumps = Vec::new();
        for y in (0..rows).step_by(self.patch) {
            for x in (0..columns).step_by(self.patch) {
                let (y1, x1) = ((y + self.patch).min(rows), (x + self.patch).min(columns));
                let patch = (y / 2, y1 / 2, x / 2, x1 / 2);
                if displacement(&a, &b, patch, self.search / 2).is_some_and(|d| 2.0 * d > self.limit) {
                    jumps.push(Jump { y: (y, y1), x: (x, x1) });
                }
            }
        }
        jumps
    }
}

fn halved(section: ArrayView2<'_, u8>) -> Array2<f32> {
    let (rows, columns) = section.dim();
    Array2::from_shape_fn((rows / 2, columns / 2), |(y, x)| {
        section.slice(s![2 * y..2 * y + 2, 2 * x..2 * x + 2]).iter().map(|&v| f32::from(v)).sum::<f32>() / 4.0
    })
}

/// How far the patch `(y0, y1, x0, x1)` of `b` has moved against `a`, pixels: the shift with the highest correlation, the
/// smaller one where two are equal. `None` where the patch is flat.
fn displacement(a: &Array2<f32>, b: &Array2<f32>, patch: (usize, usize, usize, usize), reach: usize) -> Option<f64> {
    let (y0, y1, x0, x1) = patch;
    let (rows, columns) = a.dim();
    let ours = b.slice(s![y0..y1, x0..x1]);
    let (mean, sd) = moments(ours)?;
    let reach = reach as i64;
    let mut shifts: Vec<(i64, i64)> =
        (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx))).collect();
    shifts.sort_by_key(|(dy, dx)| (dy * dy + dx * dx, *dy, *dx));
    let mut best = (f64::NEG_INFINITY, 0.0);
    for (dy, dx) in shifts {
        let (top, left) = (y0 as i64 + dy, x0 as i64 + dx);
        if top < 0 || left < 0 || top + (y1 - y0) as i64 > rows as i64 || left + (x1 - x0) as i64 > columns as i64 {
            continue;
        }
        let (top, left) = (top as usize, left as usize);
        let theirs = a.slice(s![top..top + y1 - y0, left..left + x1 - x0]);
        let Some((other_mean, other_sd)) = moments(theirs) else { continue };
        let product: f64 =
            ours.iter().zip(theirs).map(|(&p, &q)| (f64::from(p) - mean) * (f64::from(q) - other_mean)).sum();
        let correlation = product / (ours.len() as f64 * sd * other_sd);
        if correlation > best.0 {
            best = (correlation, ((dy * dy + dx * dx) as f64).sqrt());
        }
    }
    best.0.is_finite().then_some(best.1)
}

fn moments(patch: ArrayView2<'_, f32>) -> Option<(f64, f64)> {
    let n = patch.len() as f64;
    let mean = patch.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = patch.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (variance.sqrt() >= FLAT).then(|| (mean, variance.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_join_values_and_ranges_and_can_be_turned_round() {
        let rule = MaskRule { values: vec![3], above: Some(200), ..MaskRule::default() };
        assert_eq!([2, 3, 200, 201].map(|v| rule.keeps_out(v)), [false, true, false, true]);
        let turned = MaskRule { invert: true, ..rule };
        assert_eq!([2, 3, 200, 201].map(|v| turned.keeps_out(v)), [true, false, true, false]);
        let mut faults = Vec::new();
        MaskRule::default().faults("flood.masks.0", &mut |ok, f| faults.extend((!ok).then_some(f)));
        assert!(faults[0].contains("flood.masks.0 says no value"), "{faults:?}");
        assert!(toml::from_str::<MaskRule>("channel = 3").is_err(), "options that do not exist are refused");
    }

    #[test]
    fn each_kind_of_mask_marks_its_own_bit() {
        let (mut closed, mut barred) = (Array2::from_elem((1, 4), false), None);
        let rule = |value: u64, from: KeptFrom| MaskRule { values: vec![value], from, ..MaskRule::default() };
        let value = |_: usize, x: usize| x as u64;
        rule(0, KeptFrom::Labels).mark(value, &mut closed, &mut barred);
        assert!(barred.is_none() && closed[[0, 0]] && !closed[[0, 1]]);
        rule(1, KeptFrom::Centres).mark(value, &mut closed, &mut barred);
        rule(2, KeptFrom::Starts).mark(value, &mut closed, &mut barred);
        rule(1, KeptFrom::Starts).mark(value, &mut closed, &mut barred);
        assert_eq!(barred.unwrap().into_raw_vec_and_offset().0, [0, NO_MOVE | NO_START, NO_START, 0]);
    }

    #[test]
    fn a_patch_that_jumps_is_found_and_its_neighbour_is_not() {
        let texture = |y: i64, x: i64| {
            let n = (y.wrapping_mul(7919) ^ x.wrapping_mul(104_729)).wrapping_mul(2_654_435_761);
            (80 + (n >> 7).rem_euclid(120)) as u8
        };
        let smooth = |y: i64, x: i64| {
            let sum: u32 = (0..4)
                .flat_map(|a| (0..4).map(move |b| (a, b)))
                .map(|(a, b)| u32::from(texture((y + a) / 4, (x + b) / 4)))
                .sum();
            (sum / 16) as u8
        };
        let before = Array2::from_shape_fn((64, 128), |(y, x)| smooth(y as i64 + 100, x as i64 + 100));
        // the right half has moved by 12 along x, which the rule's limit of 8 forbids
        let after =
            Array2::from_shape_fn((64, 128), |(y, x)| smooth(y as i64 + 100, x as i64 + if x < 64 { 100 } else { 88 }));
        let jumps = ShiftRule::default().jumps(before.view(), after.view());
        assert_eq!(jumps, [Jump { y: (0, 64), x: (64, 128) }]);
        let flat = Array2::from_elem((64, 128), 7u8);
        assert!(ShiftRule::default().jumps(before.view(), flat.view()).is_empty(), "a flat section has no place");
    }
}
