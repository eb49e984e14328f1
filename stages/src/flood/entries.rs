//! Where objects of labelled sections enter the new ones.
//!
//! For each object one position per lattice cell (deltas of y and x) in the last labelled sections that still hold a centre
//! of a field of view: the voxel farthest inside the object there. Cells where the object is thin compared with its thickest
//! place are left out: they are its rim or a leak, and a true branch is found again by a start point of its own. Larger
//! objects first, as they decide the most voxels.
//!
//! Two objects of the labelled sections may turn out to be one beyond them: arms of a U. The first to be continued then comes
//! down on the other and takes the place where that would go on; [`taken_over`] finds these.

use std::collections::BTreeMap;

use ndarray::{Array3, ArrayView2, Axis};

use super::canvas::{Continuation, KnownOverlap};
use super::distance::distance;
use super::rules::FloodRules;

/// Share of the thickest place below which an object does not enter.
const THIN: f32 = 0.4;

/// Objects of `known` (sections before `open`) in the order in which they are continued.
pub(super) fn entries(rules: &FloodRules, known: &Array3<i32>, open: usize) -> Vec<Continuation> {
    let (nz, ny, nx) = known.dim();
    let half = rules.fov.map(|n| n / 2);
    let first = half[0].max(open.saturating_sub(rules.deltas[0].max(1)));
    let last = open.min(nz.saturating_sub(half[0]));
    let mut chosen = BTreeMap::<(i32, usize, usize), (f32, [usize; 3])>::new();
    for z in (first..last).rev() {
        let section = known.index_axis(Axis(0), z);
        let depth = inside(section);
        let mut here = BTreeMap::<(i32, usize, usize), (f32, [usize; 3])>::new();
        for y in half[1]..ny.saturating_sub(half[1]) {
            for x in half[2]..nx.saturating_sub(half[2]) {
                let label = section[[y, x]];
                if label > 0 {
                    let key = (label, y / rules.deltas[1].max(1), x / rules.deltas[2].max(1));
                    let best = here.entry(key).or_insert((-1.0, [z, y, x]));
                    if depth[[0, y, x]] > best.0 {
                        *best = (depth[[0, y, x]], [z, y, x]);
                    }
                }
            }
        }
        for (key, found) in here {
            chosen.entry(key).or_insert(found);
        }
    }
    let mut sizes = BTreeMap::<i32, u64>::new();
    for &label in known.iter().filter(|&&l| l > 0) {
        *sizes.entry(label).or_default() += 1;
    }
    let mut thickest = BTreeMap::<i32, f32>::new();
    for ((label, _, _), (depth, _)) in &chosen {
        let most = thickest.entry(*label).or_insert(0.0);
        *most = most.max(*depth);
    }
    let mut objects = BTreeMap::<i32, Vec<[usize; 3]>>::new();
    for ((label, _, _), (depth, at)) in chosen {
        if depth >= THIN * thickest[&label] {
            objects.entry(label).or_default().push(at);
        }
    }
    let mut list: Vec<Continuation> =
        objects.into_iter().map(|(label, entries)| Continuation { label, entries }).collect();
    list.sort_by_key(|c| (std::cmp::Reverse(sizes[&c.label]), c.label));
    list
}

/// Objects up to `known` that end at section `open` because another one of them lies on their last profile instead: they keep
/// less than a fifth of it. `shared` is in voxels of the profile, `labelled` all of it.
pub(super) fn taken_over(labels: &Array3<i32>, open: usize, known: i32) -> Vec<KnownOverlap> {
    if open == 0 || open >= labels.dim().0 {
        return Vec::new();
    }
    let (mut profile, mut goes_on) = (BTreeMap::<i32, u64>::new(), BTreeMap::<i32, u64>::new());
    let mut shared = BTreeMap::<(i32, i32), u64>::new();
    let (last, first) = (labels.index_axis(Axis(0), open - 1), labels.index_axis(Axis(0), open));
    for (&before, &after) in last.iter().zip(first) {
        *profile.entry(before).or_default() += 1;
        *goes_on.entry(after).or_default() += 1;
        if before > 0 && after > 0 && after != before && after <= known {
            *shared.entry((after, before)).or_default() += 1;
        }
    }
    let ends = |label: &i32| 5 * goes_on.get(label).copied().unwrap_or(0) < profile[label];
    let found = shared.into_iter().filter(|((_, ended), _)| ends(ended));
    found.map(|((label, known), shared)| KnownOverlap { label, known, shared, labelled: profile[&known] }).collect()
}

/// Distance to the nearest voxel of the section that touches another label; shape `[1, y, x]`.
fn inside(section: ArrayView2<'_, i32>) -> Array3<f32> {
    let (ny, nx) = section.dim();
    let rim = Array3::from_shape_fn((1, ny, nx), |(_, y, x)| {
        let label = section[[y, x]];
        (y > 0 && section[[y - 1, x]] != label)
            || (x > 0 && section[[y, x - 1]] != label)
            || (y + 1 < ny && section[[y + 1, x]] != label)
            || (x + 1 < nx && section[[y, x + 1]] != label)
    });
    distance(&rim, [1.0; 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_whose_place_another_took_is_found_and_one_that_goes_on_is_not() {
        // profiles of 10 voxels each in the last labelled section; 1, 2 and 3 are from before, 4 is new
        let row = |of: [(i32, usize); 4]| of.into_iter().flat_map(|(label, n)| std::iter::repeat_n(label, n));
        let last = row([(1, 10), (2, 10), (3, 10), (0, 0)]);
        let first = row([(1, 19), (2, 1), (1, 2), (3, 8)]);
        let labels = Array3::from_shape_vec((2, 1, 30), last.chain(first).collect()).unwrap();
        assert_eq!(taken_over(&labels, 1, 3), [KnownOverlap { label: 1, known: 2, shared: 9, labelled: 10 }]);
        let new = labels.mapv(|l| if l == 1 { 4 } else { l });
        assert!(taken_over(&new, 1, 3).is_empty(), "a new object is judged by its voxels in the sections before");
        assert!(taken_over(&labels, 0, 3).is_empty() && taken_over(&labels, 2, 3).is_empty());
    }
}
