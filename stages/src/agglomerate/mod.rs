//! Which labels are one object: floods of neighbouring blocks compared in the voxels both have seen, and the table of merges.
//!
//! Rule: two labels are one object where their intersection over union, counted in voxels that both floods labelled, reaches
//! [`JoinRule::min_iou`] and they share [`JoinRule::min_voxels`]. At 0.5 and above a label has at most one partner per block,
//! so one flood that leaked does not chain others together. A piece that lies wholly in sight of another block is one object with
//! what that block says it lies on ([`JoinRule::holds`]). Voxels are written once; merges of labels already written are
//! rows of an append-only table (the supervoxel/agglomeration split of CAVE), resolved with the smallest id as root.
//!
//! | file | holds |
//! |---|---|
//! | `components` | objects that fall apart ([`split_pieces`]) |
//! | `consensus` | two runs made into one that splits wherever either does ([`PairCounts`]) |
//! | `decide` | where two objects come close ([`decision_points`]) |
//! | `resegment` | both flooded anew there, and whether they are one ([`ResegmentRule`]) |

mod components;
mod consensus;
mod decide;
mod judge;
mod resegment;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::components::split_pieces;
pub use self::consensus::{ConsensusLabels, PairCounts};
pub use self::decide::{DecisionPoint, decision_points};
pub use self::resegment::{ResegmentRule, Resegmented, Surroundings};

/// When two floods are one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinRule {
    /// Least intersection over union in the voxels that both floods labelled. Default 0.5: the least value at which a label
    /// cannot have two partners.
    pub min_iou: f64,
    /// Least number of shared voxels. Default 100: below that chance decides.
    pub min_voxels: u64,
}

impl Default for JoinRule {
    fn default() -> Self {
        Self { min_iou: 0.5, min_voxels: 100 }
    }
}

/// How far two labels coincide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// A label of the first flood.
    pub a: u64,
    /// A label of the second.
    pub b: u64,
    /// Voxels that carry both.
    pub shared: u64,
    /// Voxels of `a` that the second flood labelled.
    pub of_a: u64,
    /// Voxels of `b` that the first flood labelled.
    pub of_b: u64,
}

impl JoinRule {
    /// Whether the two are one object.
    pub fn joins(&self, o: &Overlap) -> bool {
        let union = o.of_a + o.of_b - o.shared;
        o.shared >= self.min_voxels.max(1) && o.shared as f64 >= self.min_iou * union as f64
    }

    /// Whether a piece of `voxels`, all in sight of the other block, lies on one object there: the other block labelled half of it
    /// (`labelled`) and gave four fifths of that to the one (`shared`). For what lies in a halo, where a block sees an object's
    /// rim only and finds a piece of it: the other block, which saw more, says what it is a piece of.
    pub fn holds(&self, shared: u64, labelled: u64, voxels: u64) -> bool {
        2 * labelled >= voxels && self.continues(shared, labelled)
    }

    /// Whether an object found anew continues one from before: four fifths of its labelled voxels lie on that one. Stricter
    /// than between blocks, because the old object had its own chance to come here and did not.
    pub fn continues(&self, shared: u64, labelled: u64) -> bool {
        shared >= self.min_voxels.max(1) && shared as f64 >= self.min_iou.max(0.8) * labelled as f64
    }
}

/// Overlaps of two labellings of the same voxels, given voxel by voxel; 0 is no label. Ordered by labels.
pub fn overlaps(pairs: impl IntoIterator<Item = (u64, u64)>) -> Vec<Overlap> {
    let mut shared = BTreeMap::<(u64, u64), u64>::new();
    let mut last = ((0, 0), 0u64);
    for pair in pairs.into_iter().filter(|(a, b)| *a != 0 && *b != 0) {
        if pair == last.0 {
            last.1 += 1;
        } else {
            *shared.entry(last.0).or_default() += last.1;
            last = (pair, 1);
        }
    }
    *shared.entry(last.0).or_default() += last.1;
    shared.remove(&(0, 0));
    let (mut of_a, mut of_b) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
    for (&(a, b), n) in &shared {
        *of_a.entry(a).or_default() += n;
        *of_b.entry(b).or_default() += n;
    }
    shared.into_iter().map(|((a, b), shared)| Overlap { a, b, shared, of_a: of_a[&a], of_b: of_b[&b] }).collect()
}

/// Sets of ids; the smallest id of a set is its root.
#[derive(Clone, Debug, Default)]
pub struct UnionFind {
    parent: BTreeMap<u64, u64>,
}

impl UnionFind {
    /// Reads a table of merges.
    pub fn from_rows(rows: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut sets = Self::default();
        for (a, b) in rows {
            sets.join(a, b);
        }
        sets
    }

    /// Root of the set of `id`; `id` itself where it was never joined.
    pub fn root(&self, mut id: u64) -> u64 {
        while let Some(&parent) = self.parent.get(&id).filter(|&&p| p != id) {
            id = parent;
        }
        id
    }

    /// Makes one set of two.
    pub fn join(&mut self, a: u64, b: u64) {
        let (a_root, b_root) = (self.root(a), self.root(b));
        let root = a_root.min(b_root);
        for mut id in [a, b] {
            // point the whole path at the root
            while let Some(next) = self.parent.insert(id, root).filter(|&next| next != id) {
                id = next;
            }
        }
        self.parent.insert(a_root.max(b_root), root);
        self.parent.insert(root, root);
    }

    /// Every set with more than one member, members ascending.
    pub fn sets(&self) -> Vec<Vec<u64>> {
        let mut sets = BTreeMap::<u64, BTreeSet<u64>>::new();
        for &id in self.parent.keys() {
            sets.entry(self.root(id)).or_default().insert(id);
        }
        sets.into_values().filter(|s| s.len() > 1).map(|s| s.into_iter().collect()).collect()
    }
}

/// What the joins found in one window mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// New label to the label under which it is written.
    pub written: BTreeMap<u64, u64>,
    /// Merges of labels that were written before: rows for the table, smaller id first.
    pub rows: Vec<(u64, u64)>,
}

/// Each set of joined labels is written under its smallest label of earlier windows, or its smallest where it has none.
pub fn resolve(joins: &[(u64, u64)], written_before: impl Fn(u64) -> bool) -> Resolution {
    let mut resolution = Resolution::default();
    for set in UnionFind::from_rows(joins.iter().copied()).sets() {
        let (old, new): (Vec<u64>, Vec<u64>) = set.into_iter().partition(|&id| written_before(id));
        let target = *old.first().or(new.first()).expect("a set has members");
        resolution.rows.extend(old.iter().skip(1).map(|&id| (target, id)));
        resolution.written.extend(new.into_iter().filter(|&id| id != target).map(|id| (id, target)));
    }
    resolution
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlap_counts_only_voxels_that_both_floods_labelled() {
        let pairs = [(1, 5), (1, 5), (1, 0), (0, 5), (1, 6), (2, 6)];
        let got = overlaps(pairs);
        assert_eq!(got[0], Overlap { a: 1, b: 5, shared: 2, of_a: 3, of_b: 2 });
        assert_eq!(got.len(), 3);
        let rule = JoinRule { min_iou: 0.5, min_voxels: 2 };
        assert!(rule.joins(&got[0]), "2 of 3");
        assert!(!rule.joins(&got[1]), "1 voxel is below the least number");
    }

    #[test]
    fn a_piece_belongs_to_what_the_block_that_sees_all_of_it_says() {
        let rule = JoinRule { min_iou: 0.5, min_voxels: 100 };
        assert!(rule.holds(400, 500, 1000), "half of it labelled, four fifths of that as one");
        assert!(!rule.holds(399, 500, 1000) && !rule.holds(490, 499, 1000) && !rule.holds(99, 99, 99));
    }

    #[test]
    fn a_flood_that_leaked_over_two_objects_joins_neither() {
        let pairs = (0..200).map(|i| (1, 5 + i % 2));
        assert!(overlaps(pairs).iter().all(|o| !JoinRule { min_iou: 0.51, min_voxels: 10 }.joins(o)));
    }

    #[test]
    fn new_labels_take_the_oldest_name_and_old_ones_meet_in_the_table() {
        // 10 and 20 were written before; 31, 32, 41, 42 are new
        let got = resolve(&[(31, 20), (31, 10), (42, 41), (32, 31)], |id| id < 30);
        assert_eq!(got.rows, [(10, 20)]);
        assert_eq!(got.written, BTreeMap::from([(31, 10), (32, 10), (42, 41)]));
    }

    proptest! {
        #[test]
        fn roots_do_not_depend_on_the_order_of_rows(mut rows in prop::collection::vec((1u64..30, 1u64..30), 0..40), turn in 0usize..40) {
            let one = UnionFind::from_rows(rows.clone());
            let n = rows.len().max(1);
            rows.rotate_left(turn % n);
            let two = UnionFind::from_rows(rows.into_iter().map(|(a, b)| (b, a)));
            for id in 1..30 {
                prop_assert_eq!(one.root(id), two.root(id));
                prop_assert!(one.root(id) <= id);
            }
        }
    }
}
