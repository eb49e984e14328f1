//! Where two objects may be one: the places at which they come close.
//!
//! Labels grow into unlabelled voxels up to a distance, as water would; where two then touch (in the 26-neighbourhood) is
//! their contact, and the contact voxel nearest to its centre of mass is the decision point (after Januszewski et al., Nature
//! Methods 2018). Distances in nm.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

/// A place where two objects come close.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionPoint {
    /// The object with the smaller id.
    pub a: u64,
    /// The other.
    pub b: u64,
    /// Where: a voxel of the grown labels.
    pub at: Zyx<usize>,
    /// Pairs of neighbouring voxels that touch.
    pub contact: u64,
}

/// All pairs that touch when labels grow by up to `reach_nm`, ordered by ids. Holds about 24 bytes a voxel.
pub fn decision_points(labels: &Array3<u64>, size: VoxelSize, reach_nm: f64) -> Vec<DecisionPoint> {
    let grown = grow(labels, size, reach_nm);
    let mut contacts = BTreeMap::<(u64, u64), (u64, [u64; 3])>::new();
    touching(&grown, |pair, at| {
        let (n, sum) = contacts.entry(pair).or_default();
        *n += 1;
        (0..3).for_each(|i| sum[i] += at[i] as u64);
    });
    let mut best = BTreeMap::<(u64, u64), (f64, [usize; 3])>::new();
    touching(&grown, |pair, at| {
        let (n, sum) = contacts[&pair];
        let steps = [size.0.z, size.0.y, size.0.x];
        let away: f64 = (0..3).map(|i| ((at[i] as f64 - sum[i] as f64 / n as f64) * steps[i]).powi(2)).sum();
        let found = best.entry(pair).or_insert((f64::INFINITY, at));
        if away < found.0 {
            *found = (away, at);
        }
    });
    let point = |((a, b), (_, at)): ((u64, u64), (f64, [usize; 3]))| DecisionPoint {
        a,
        b,
        at: at.into(),
        contact: contacts[&(a, b)].0,
    };
    best.into_iter().map(point).collect()
}

/// Every pair of neighbouring voxels of different labels: the pair, smaller id first, and the first voxel.
fn touching(labels: &Array3<u64>, mut visit: impl FnMut((u64, u64), [usize; 3])) {
    let (nz, ny, nx) = labels.dim();
    let forward: Vec<(usize, i64, i64)> = (0..=1usize)
        .flat_map(|dz| (-1..=1).flat_map(move |dy| (-1..=1).map(move |dx| (dz, dy, dx))))
        .filter(|&(dz, dy, dx)| (dz as i64, dy, dx) > (0, 0, 0))
        .collect();
    for ((z, y, x), &label) in labels.indexed_iter().filter(|(_, l)| **l != 0) {
        for &(dz, dy, dx) in &forward {
            let (z2, y2, x2) = (z + dz, y as i64 + dy, x as i64 + dx);
            if z2 >= nz || y2 < 0 || x2 < 0 || y2 >= ny as i64 || x2 >= nx as i64 {
                continue;
            }
            let other = labels[[z2, y2 as usize, x2 as usize]];
            if other != 0 && other != label {
                visit((label.min(other), label.max(other)), [z, y, x]);
            }
        }
    }
}

/// Labels grown along faces into voxels of label 0, by path length; of two that arrive together the smaller id wins.
fn grow(labels: &Array3<u64>, size: VoxelSize, reach_nm: f64) -> Array3<u64> {
    let shape: [usize; 3] = labels.dim().into();
    let stride = [shape[1] * shape[2], shape[2], 1];
    let steps = [size.0.z, size.0.y, size.0.x];
    let mut grown: Vec<u64> = labels.iter().copied().collect();
    let mut front = BinaryHeap::new();
    // lengths in whole thousandths of a nm, so that the order is exact
    let whole = |nm: f64| (nm * 1000.0).round() as u64;
    let reach = whole(reach_nm);
    let spread = |i: usize, away: u64, label: u64, grown: &[u64], front: &mut BinaryHeap<_>| {
        for axis in 0..3 {
            let place = i / stride[axis] % shape[axis];
            let next = away + whole(steps[axis]);
            let sides = [(place > 0).then(|| i - stride[axis]), (place + 1 < shape[axis]).then(|| i + stride[axis])];
            for j in sides.into_iter().flatten().filter(|j| grown[*j] == 0 && next <= reach) {
                front.push(Reverse((next, label, j)));
            }
        }
    };
    for i in 0..grown.len() {
        if grown[i] != 0 {
            spread(i, 0, grown[i], &grown, &mut front);
        }
    }
    while let Some(Reverse((away, label, i))) = front.pop() {
        if grown[i] == 0 {
            grown[i] = label;
            spread(i, away, label, &grown, &mut front);
        }
    }
    Array3::from_shape_vec(shape, grown).expect("one label per voxel")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: VoxelSize = VoxelSize(Zyx::new(30.0, 10.0, 10.0));

    /// Two bars along y, 4 voxels of x apart, in one section.
    fn bars() -> Array3<u64> {
        Array3::from_shape_fn((1, 9, 12), |(_, _, x)| match x {
            0..4 => 7,
            8..12 => 3,
            _ => 0,
        })
    }

    #[test]
    fn objects_within_reach_have_one_decision_point_in_the_middle_of_their_contact() {
        let points = decision_points(&bars(), SIZE, 20.0);
        assert_eq!(points.len(), 1);
        let p = points[0];
        assert_eq!((p.a, p.b), (3, 7));
        // each grows by 2 voxels: they meet between x = 5 and 6, in the middle of 9 rows
        assert_eq!(p.at, Zyx::new(0, 4, 5));
        // faces 9, and two edges of every row but one each: 9 + 8 + 8
        assert_eq!(p.contact, 25);
    }

    #[test]
    fn objects_out_of_reach_have_none() {
        assert!(decision_points(&bars(), SIZE, 10.0).is_empty());
        let far = Array3::from_shape_fn((3, 2, 2), |(z, _, _)| [1, 0, 2][z]);
        assert!(decision_points(&far, SIZE, 20.0).is_empty(), "a section is 30 nm");
        assert_eq!(decision_points(&far, SIZE, 30.0).len(), 1);
    }
}
