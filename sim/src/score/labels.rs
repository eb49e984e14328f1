//! Scores of a segmentation, from the table of how many voxels have each pair of labels.
//!
//! With `n(t, r)` voxels of truth `t` and result `r`, and `n` of them in all, in bits:
//!
//! ```text
//! VOI split = H(R|T) = - sum n(t,r)/n log2( n(t,r) / n(t) )      one true object in several pieces
//! VOI merge = H(T|R) = - sum n(t,r)/n log2( n(t,r) / n(r) )      several true objects in one piece
//! S = sum n(t,r)^2 - n,  T = sum n(t)^2 - n,  R = sum n(r)^2 - n      twice the number of voxel pairs of one object
//! precision = S / R,  recall = S / T,  adapted Rand error = 1 - 2 S / (T + R)
//! ```
//! (Meila 2007; Arganda-Carreras et al. 2015.) The sums are those of scikit-image's `variation_of_information(truth, result)`
//! and `adapted_rand_error(truth, result)`; where those name what is divided by `T` precision, this is its recall. Truth 0 is
//! never scored. A voxel of result 0 is left out in [`LabelScores::both`] and counts as one object in [`LabelScores::all`].

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// How many voxels have each pair of true and found label. Memory grows with the number of different pairs, not of voxels.
#[derive(Clone, Debug, Default)]
pub struct Contingency {
    pairs: HashMap<(u64, u64), u64>,
    unlabelled: u64,
}

/// One scoring convention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    /// Voxels scored.
    pub voxels: u64,
    /// Bits.
    pub voi_split: f64,
    /// Bits.
    pub voi_merge: f64,
    /// 0 for a perfect result.
    pub adapted_rand_error: f64,
    /// Share of the voxel pairs joined by the result that belong together.
    pub rand_precision: f64,
    /// Share of the voxel pairs that belong together that the result joins.
    pub rand_recall: f64,
    /// True objects among them.
    pub true_objects: usize,
    /// Objects of the result among them.
    pub found_objects: usize,
}

/// Both conventions, and how much of the truth the result labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelScores {
    /// Voxels that both label.
    pub both: LabelScore,
    /// All voxels that the truth labels; those without a label in the result are one object.
    pub all: LabelScore,
    /// Share of the voxels labelled in the truth that the result labels.
    pub coverage: f64,
}

impl Contingency {
    /// Adds voxels, in step. Blocks may be added in any order.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn add<'a>(&mut self, truth: impl IntoIterator<Item = &'a u64>, found: impl IntoIterator<Item = &'a u64>) {
        let (mut truth, mut found) = (truth.into_iter(), found.into_iter());
        // Neighbours mostly have the same labels: look up runs, not voxels.
        let mut run = ((0, 0), 0);
        loop {
            match (truth.next(), found.next()) {
                (Some(&t), Some(&f)) if run.0 == (t, f) => run.1 += 1,
                (Some(&t), Some(&f)) => {
                    self.count(run);
                    run = ((t, f), 1);
                }
                (None, None) => return self.count(run),
                _ => panic!("truth and result have as many voxels"),
            }
        }
    }

    fn count(&mut self, (pair, voxels): ((u64, u64), u64)) {
        if pair.0 == 0 {
            self.unlabelled += voxels;
        } else if voxels > 0 {
            *self.pairs.entry(pair).or_default() += voxels;
        }
    }

    /// Adds the counts of another part of the same volume.
    pub fn merge(&mut self, other: Self) {
        self.unlabelled += other.unlabelled;
        other.pairs.into_iter().for_each(|(pair, voxels)| *self.pairs.entry(pair).or_default() += voxels);
    }

    /// Voxels that the truth does not label; they are not scored.
    pub fn unlabelled(&self) -> u64 {
        self.unlabelled
    }

    /// The scores.
    pub fn scores(&self) -> LabelScores {
        let mut pairs: Vec<((u64, u64), u64)> = self.pairs.iter().map(|(p, n)| (*p, *n)).collect();
        pairs.sort_unstable();
        let all = score(&pairs);
        pairs.retain(|(pair, _)| pair.1 != 0);
        let both = score(&pairs);
        LabelScores { both, all, coverage: ratio(both.voxels as f64, all.voxels as f64) }
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Twice the number of pairs among groups of these sizes.
fn joined(sizes: impl Iterator<Item = u64>) -> u128 {
    sizes.map(|n| u128::from(n) * u128::from(n.saturating_sub(1))).sum()
}

fn score(pairs: &[((u64, u64), u64)]) -> LabelScore {
    let (mut truth, mut found) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
    for ((t, f), n) in pairs {
        *truth.entry(*t).or_default() += n;
        *found.entry(*f).or_default() += n;
    }
    let voxels: u64 = truth.values().sum();
    let entropy = |whole: &dyn Fn(&(u64, u64)) -> u64| -> f64 {
        let bits = pairs.iter().map(|(pair, n)| *n as f64 * (whole(pair) as f64 / *n as f64).log2());
        ratio(bits.sum::<f64>(), voxels as f64)
    };
    let together = joined(pairs.iter().map(|p| p.1)) as f64;
    let (by_truth, by_found) = (joined(truth.values().copied()) as f64, joined(found.values().copied()) as f64);
    // Where nothing could be joined and nothing was, nothing is wrong.
    let share = |whole: f64| if whole > 0.0 { together / whole } else { 1.0 };
    LabelScore {
        voxels,
        voi_split: entropy(&|pair| truth[&pair.0]),
        voi_merge: entropy(&|pair| found[&pair.1]),
        adapted_rand_error: 1.0 - share((by_truth + by_found) / 2.0),
        rand_precision: share(by_found),
        rand_recall: share(by_truth),
        true_objects: truth.len(),
        found_objects: found.keys().filter(|f| **f != 0).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(truth: &[u64], found: &[u64]) -> LabelScores {
        let mut table = Contingency::default();
        table.add(truth, found);
        table.scores()
    }

    #[test]
    fn a_perfect_result_has_no_error_whatever_its_names() {
        let s = scores(&[0, 1, 1, 2, 2, 2], &[9, 5, 5, 7, 7, 7]);
        assert_eq!((s.both, s.coverage), (s.all, 1.0));
        assert_eq!((s.all.voxels, s.all.true_objects, s.all.found_objects), (5, 2, 2));
        assert_eq!((s.all.voi_split, s.all.voi_merge, s.all.adapted_rand_error), (0.0, 0.0, 0.0));
    }

    #[test]
    fn halves_cost_one_bit_of_split_and_a_union_one_bit_of_merge() {
        let split = scores(&[1, 1, 1, 1], &[1, 1, 2, 2]).all;
        assert_eq!((split.voi_split, split.voi_merge), (1.0, 0.0));
        // Of the 12 ordered pairs that belong together 4 are joined; all joined ones belong together.
        assert_eq!((split.rand_precision, split.rand_recall), (1.0, 4.0 / 12.0));
        assert!((split.adapted_rand_error - (1.0 - 8.0 / 16.0)).abs() < 1e-12);
        let merge = scores(&[1, 1, 2, 2], &[3, 3, 3, 3]).all;
        assert_eq!((merge.voi_split, merge.voi_merge), (0.0, 1.0));
        assert_eq!((merge.rand_precision, merge.rand_recall), (4.0 / 12.0, 1.0));
    }

    #[test]
    fn what_the_result_leaves_out_lowers_coverage_and_counts_as_one_object() {
        let s = scores(&[1, 1, 2, 2, 0], &[4, 0, 0, 5, 5]);
        assert_eq!((s.coverage, s.both.voxels, s.all.voxels, s.both.adapted_rand_error), (0.5, 2, 4, 0.0));
        assert_eq!((s.all.voi_split, s.all.voi_merge, s.all.found_objects), (1.0, 0.5, 2));
    }

    #[test]
    fn blocks_in_any_order_give_the_same_scores() {
        let truth: Vec<u64> = (0..4000).map(|i| i / 7 % 13).collect();
        let found: Vec<u64> = (0..4000).map(|i| i / 5 % 17).collect();
        let mut backwards = Contingency::default();
        for (t, f) in truth.chunks(300).zip(found.chunks(300)).rev() {
            let mut part = Contingency::default();
            part.add(t, f);
            backwards.merge(part);
        }
        assert_eq!(backwards.scores(), scores(&truth, &found));
    }

    fn volume(path: &std::path::Path) -> Vec<u64> {
        use tiff::decoder::{Decoder, DecodingResult, Limits};
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut decoder = Decoder::new(file).unwrap().with_limits(Limits::unlimited());
        let mut all = Vec::new();
        loop {
            match decoder.read_image().unwrap() {
                DecodingResult::U16(page) => all.extend(page.into_iter().map(u64::from)),
                DecodingResult::U32(page) => all.extend(page.into_iter().map(u64::from)),
                _ => panic!("16 or 32 bit labels"),
            }
            if !decoder.more_images() {
                return all;
            }
            decoder.next_image().unwrap();
        }
    }

    /// The published result's scores, computed with scikit-image 0.26.
    #[test]
    fn the_published_fib25_result_scores_as_published() {
        let near = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
        let folder = std::path::PathBuf::from(std::env::var_os("KINESIN_DATA").unwrap_or(near.into())).join("fib25");
        if !folder.is_dir() {
            println!("skipped: no {}; set KINESIN_DATA to the folder of test data", folder.display());
            return;
        }
        let (truth, found) =
            (volume(&folder.join("groundtruth_u32.tif")), volume(&folder.join("google_result_u16.tif")));
        let s = scores(&truth, &found);
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 6e-5, "{value} is not {wanted}");
        near(s.all.voi_split, 0.8987);
        near(s.all.voi_merge, 0.9184);
        near(s.all.adapted_rand_error, 0.1574);
        near(s.all.rand_precision, 0.8379);
        near(s.all.rand_recall, 0.8475);
        near(s.both.voi_split, 0.6126);
        near(s.both.voi_merge, 0.2632);
        near(s.both.adapted_rand_error, 0.0557);
        assert_eq!((s.all.true_objects, s.all.found_objects), (525, 254));
    }
}
