//! Grey values to network input, as a table per section: 256 entries, so a field of view is read with one look-up per voxel.

use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

/// How grey values reach the network. Grey 0 is "no data" where the model says so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Normalisation {
    /// `(v - mean) / sd` over the voxels of the section that hold data, clipped to [-4, 4]; voxels without data become 0.
    Section {},
    /// `(v - mean) / sd` with fixed numbers.
    Fixed {
        /// Grey.
        mean: f64,
        /// Grey.
        sd: f64,
    },
}

/// Normalised value of each grey value of one section.
#[derive(Clone, Debug, PartialEq)]
pub struct GreyTable(pub [f32; 256]);

const CLIP: f64 = 4.0;

impl Normalisation {
    /// The table of one section `[y, x]`. `valid` of a voxel is grey > 0; sums are exact integers, so order does not matter.
    pub fn table(&self, section: ArrayView2<'_, u8>) -> GreyTable {
        match *self {
            Self::Fixed { mean, sd } => GreyTable(std::array::from_fn(|v| (v as f32 - mean as f32) / sd as f32)),
            Self::Section {} => {
                let mut counts = [0u64; 256];
                for &v in section {
                    counts[usize::from(v)] += 1;
                }
                Self::of_counts(&counts)
            }
        }
    }

    /// As [`Normalisation::table`] of a section whose grey values were changed first: `grey[v]` stands for `v`, and `counts` are
    /// the voxels of each `v`.
    pub fn table_of(&self, counts: &[u64; 256], grey: &[f64; 256]) -> GreyTable {
        match *self {
            Self::Fixed { mean, sd } => GreyTable(std::array::from_fn(|v| ((grey[v] - mean) / sd) as f32)),
            Self::Section {} => Self::scaled(counts, grey),
        }
    }

    fn of_counts(counts: &[u64; 256]) -> GreyTable {
        Self::scaled(counts, &std::array::from_fn(|v| v as f64))
    }

    fn scaled(counts: &[u64; 256], grey: &[f64; 256]) -> GreyTable {
        let valid = || counts.iter().zip(grey).skip(1).map(|(&n, &v)| (v, n as f64));
        let n = valid().map(|(_, n)| n).sum::<f64>().max(1.0);
        let mean = valid().map(|(v, n)| v * n).sum::<f64>() / n;
        let variance = valid().map(|(v, n)| (v - mean).powi(2) * n).sum::<f64>() / n;
        let sd = variance.max(1e-6).sqrt();
        GreyTable(std::array::from_fn(|v| if v == 0 { 0.0 } else { ((grey[v] - mean) / sd).clamp(-CLIP, CLIP) as f32 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_section_is_scaled_by_its_data_alone() {
        // 0 is no data; of 10 and 20 the mean is 15, the standard deviation 5
        let table = Normalisation::Section {}.table(array![[0u8, 0, 10], [20, 10, 20]].view());
        assert_eq!((table.0[0], table.0[10], table.0[20]), (0.0, -1.0, 1.0));
        assert_eq!(table.0[255], 4.0, "clipped");
    }

    #[test]
    fn an_empty_or_flat_section_stays_finite() {
        for grey in [0u8, 7] {
            let table = Normalisation::Section {}.table(ndarray::Array2::from_elem((3, 3), grey).view());
            assert!(table.0.iter().all(|v| v.is_finite()));
            assert_eq!(table.0[usize::from(grey)], 0.0);
        }
    }

    #[test]
    fn fixed_numbers_apply_to_every_voxel() {
        let table = Normalisation::Fixed { mean: 128.0, sd: 33.0 }.table(array![[1u8]].view());
        assert_eq!(table.0[128], 0.0);
        assert_eq!(table.0[0], -128.0 / 33.0);
    }
}
