//! Grey values of a section matched to those of a reference: the same share of voxels lies below a value before and after.
//!
//! For sections whose brightness and contrast differ from what the network was trained on by more than a mean and a standard
//! deviation. Voxels without data (0) and voxels kept out of the segmentation do not count.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[flood.histogram]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistogramRule {
    /// A grey volume with the grey values that the network knows: a part of its training data, say.
    pub reference: PathBuf,
    /// Least number of voxels with data in a section for it to be matched. Default 10 000: fewer say little of the tissue.
    #[serde(default = "default_least")]
    pub min_voxels: u64,
    /// Voxels of each grey value of the reference, once read.
    #[serde(skip)]
    pub counts: Option<Vec<u64>>,
}

fn default_least() -> u64 {
    10_000
}

/// What each grey value becomes, when a section with these counts takes on the reference's histogram. Value 0 stays 0.
pub(super) fn matched(counts: &[u64; 256], reference: &[u64]) -> [f64; 256] {
    let ours = shares(counts.iter().copied());
    let theirs = shares(reference.iter().copied());
    std::array::from_fn(|v| if v == 0 { 0.0 } else { value_at(&theirs, ours[v]) })
}

/// Of each value from 0 the share of voxels below its middle; 0 does not count.
fn shares(counts: impl Iterator<Item = u64>) -> Vec<f64> {
    let mut counts: Vec<u64> = counts.collect();
    counts.resize(256, 0);
    counts[0] = 0;
    let total = counts.iter().sum::<u64>().max(1) as f64;
    let mut below = 0.0;
    counts
        .into_iter()
        .map(|n| {
            let middle = (below + n as f64 / 2.0) / total;
            below += n as f64;
            middle
        })
        .collect()
}

/// The value below which the share `wanted` lies, between whole values where needed. Shares do not fall.
fn value_at(shares: &[f64], wanted: f64) -> f64 {
    let next = shares.partition_point(|s| *s < wanted).clamp(1, 255);
    let (low, high) = (shares[next - 1], shares[next]);
    let between = if high > low { ((wanted - low) / (high - low)).clamp(0.0, 1.0) } else { 1.0 };
    (next - 1) as f64 + between
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(usize, u64)]) -> [u64; 256] {
        let mut counts = [0; 256];
        of.iter().for_each(|(v, n)| counts[*v] = *n);
        counts
    }

    #[test]
    fn a_section_takes_on_the_values_of_the_reference_in_order() {
        let ours = counts(&[(0, 500), (10, 100), (20, 100)]);
        let theirs = counts(&[(0, 9), (100, 40), (180, 40)]);
        let got = matched(&ours, &theirs);
        assert_eq!(got[0], 0.0, "no data stays no data");
        assert!((got[10] - 100.0).abs() < 1e-9 && (got[20] - 180.0).abs() < 1e-9, "{} {}", got[10], got[20]);
        assert!(got[1..].is_sorted());
    }

    #[test]
    fn a_section_matched_to_itself_stays() {
        let ours: [u64; 256] = std::array::from_fn(|v| 1 + (v as u64 * 7) % 13);
        let got = matched(&ours, &ours);
        assert!((1..256).all(|v| (got[v] - v as f64).abs() < 1e-9));
    }
}
