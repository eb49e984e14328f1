//! Labels whose voxels fall apart: each piece its own label, small pieces gone.

use std::collections::BTreeMap;

use ndarray::Array3;

/// Splits every label above `fixed` into its 6-connected pieces. The largest piece (the first in order of z, y, x among
/// equals) keeps the label; others get new labels from `next` on in order of their first voxel; pieces below `least` voxels
/// become 0, the largest too. Gives the next free label.
pub fn split_pieces(labels: &mut Array3<i32>, fixed: i32, least: u64, next: i32) -> i32 {
    let shape: [usize; 3] = labels.dim().into();
    let step = [shape[1] * shape[2], shape[2], 1];
    let mut piece = vec![0u32; labels.len()];
    // of each piece: label and size, from 1 in order of first voxels
    let mut pieces = vec![(0i32, 0u64)];
    let flat = labels.as_slice_mut().expect("labels of a block lie in order");
    let mut stack = Vec::new();
    for first in 0..flat.len() {
        let label = flat[first];
        if label <= fixed || piece[first] != 0 {
            continue;
        }
        let number = pieces.len() as u32;
        let mut size = 0;
        piece[first] = number;
        stack.push(first);
        while let Some(i) = stack.pop() {
            size += 1;
            for axis in 0..3 {
                let place = i / step[axis] % shape[axis];
                let neighbours =
                    [(place > 0).then(|| i - step[axis]), (place + 1 < shape[axis]).then(|| i + step[axis])];
                for j in neighbours.into_iter().flatten() {
                    if flat[j] == label && piece[j] == 0 {
                        piece[j] = number;
                        stack.push(j);
                    }
                }
            }
        }
        pieces.push((label, size));
    }
    let (names, next) = names(&pieces, least, next);
    for (l, p) in flat.iter_mut().zip(piece).filter(|(_, p)| *p > 0) {
        *l = names[p as usize];
    }
    next
}

/// Name of each piece, and the next free one.
fn names(pieces: &[(i32, u64)], least: u64, mut next: i32) -> (Vec<i32>, i32) {
    let mut largest = BTreeMap::<i32, (u64, usize)>::new();
    for (i, &(label, size)) in pieces.iter().enumerate().skip(1) {
        let best = largest.entry(label).or_insert((0, 0));
        if size > best.0 {
            *best = (size, i);
        }
    }
    let mut names = vec![0];
    for (i, &(label, size)) in pieces.iter().enumerate().skip(1) {
        names.push(if size < least {
            0
        } else if largest[&label].1 == i {
            label
        } else {
            next += 1;
            next - 1
        });
    }
    (names, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_objects_of_their_own_and_dust_goes() {
        // one row: label 5 in pieces of 2, 4 and 1 voxels; label 6 of 1; label 2 is fixed and stays in two pieces
        let row = [5, 5, 0, 5, 5, 5, 5, 0, 5, 6, 2, 0, 2];
        let mut labels = Array3::from_shape_vec((1, 1, 13), row.to_vec()).unwrap();
        let next = split_pieces(&mut labels, 2, 2, 7);
        assert_eq!(labels.into_raw_vec_and_offset().0, [7, 7, 0, 5, 5, 5, 5, 0, 0, 0, 2, 0, 2]);
        assert_eq!(next, 8);
    }

    #[test]
    fn voxels_that_touch_by_a_face_are_one_piece_and_by_an_edge_two() {
        let mut labels = Array3::zeros((2, 2, 2));
        for at in [[0, 0, 0], [1, 0, 0], [1, 1, 1]] {
            labels[at] = 1;
        }
        assert_eq!(split_pieces(&mut labels, 0, 1, 2), 3);
        assert_eq!((labels[[0, 0, 0]], labels[[1, 0, 0]], labels[[1, 1, 1]]), (1, 1, 2));
    }
}
