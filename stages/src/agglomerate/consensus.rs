//! Two segmentations of the same voxels made into one that splits wherever either of them does.
//!
//! For merge errors, which are dearer to repair than splits: an object of the result lies in one object of each run. Runs that
//! differ in the order of start points, in resolution or in weights make different mistakes. Voxels that either run left
//! empty stay empty; fragments below a least size are dropped.

use std::collections::BTreeMap;

use crate::flood::{FloodError, ids};

/// Counts the voxels of each pair of labels; any number of sections, in any order.
#[derive(Clone, Debug, Default)]
pub struct PairCounts {
    pairs: BTreeMap<(u64, u64), u64>,
}

/// Names of the pairs that are kept.
#[derive(Clone, Debug, Default)]
pub struct ConsensusLabels {
    names: BTreeMap<(u64, u64), u64>,
    /// Fragments below the least size.
    pub dropped: u64,
    /// Their voxels.
    pub dropped_voxels: u64,
}

impl PairCounts {
    /// Adds voxels, label by label; 0 is none.
    pub fn add<'a>(&mut self, a: impl IntoIterator<Item = &'a u64>, b: impl IntoIterator<Item = &'a u64>) {
        let mut run = ((0, 0), 0);
        for pair in a.into_iter().copied().zip(b.into_iter().copied()) {
            if pair == run.0 {
                run.1 += 1;
            } else {
                self.count(run);
                run = (pair, 1);
            }
        }
        self.count(run);
    }

    fn count(&mut self, ((a, b), n): ((u64, u64), u64)) {
        if a != 0 && b != 0 && n > 0 {
            *self.pairs.entry((a, b)).or_default() += n;
        }
    }

    /// Names the pairs with at least `least` voxels, in order of their labels.
    ///
    /// # Errors
    /// Where there are more than the layout of ids holds.
    pub fn labels(self, least: u64) -> Result<ConsensusLabels, FloodError> {
        let mut labels = ConsensusLabels::default();
        for (pair, voxels) in self.pairs {
            if voxels < least {
                labels.dropped += 1;
                labels.dropped_voxels += voxels;
                continue;
            }
            let n = labels.names.len();
            let id = ids::base_id(0, 0, n / ids::MOST_OBJECTS, 1 + n % ids::MOST_OBJECTS)?;
            labels.names.insert(pair, id);
        }
        Ok(labels)
    }
}

impl ConsensusLabels {
    /// The label of a voxel with these two; 0 where either is 0 or the fragment was dropped.
    pub fn of(&self, a: u64, b: u64) -> u64 {
        self.names.get(&(a, b)).copied().unwrap_or(0)
    }

    /// Objects.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_the_consensus_lies_in_one_object_of_each_run() {
        let a = [1, 1, 1, 1, 2, 2, 2, 0, 3];
        let b = [5, 5, 6, 6, 6, 6, 0, 6, 7];
        let mut counts = PairCounts::default();
        counts.add(&a[..4], &b[..4]);
        counts.add(&a[4..], &b[4..]);
        let labels = counts.labels(2).unwrap();
        // pairs (1,5) x 2, (1,6) x 2, (2,6) x 2; (3,7) has one voxel
        let got: Vec<u64> = a.iter().zip(&b).map(|(a, b)| labels.of(*a, *b) & 0xff).collect();
        assert_eq!(got, [1, 1, 2, 2, 3, 3, 0, 0, 0]);
        assert_eq!((labels.len(), labels.dropped, labels.dropped_voxels), (3, 1, 1));
        assert!(ids::is_base(labels.of(1, 5)));
    }
}
