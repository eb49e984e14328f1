//! Where objects of labelled sections enter the new ones.
//!
//! For each object one position per lattice cell (deltas of y and x) in the last labelled sections that still hold a centre
//! of a field of view: the voxel farthest inside the object there. Cells where the object is thin compared with its thickest
//! place are left out: they are its rim or a leak, and a true branch is found again by a start point of its own. Larger
//! objects first, as they decide the most voxels.

use std::collections::BTreeMap;

use ndarray::{Array3, ArrayView2, Axis};

use super::canvas::Continuation;
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
