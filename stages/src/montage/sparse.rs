//! Normal equations in blocks, and their Cholesky solution.
//!
//! Residuals along x and y have the same design, so one factor serves two right-hand sides.

use std::collections::BTreeMap;

use faer::linalg::solvers::Solve;
use faer::sparse::{SparseColMat, Triplet};
use faer::{Mat, Side};

/// Sums of weighted outer products, in blocks of unknowns.
pub(super) struct Normal {
    /// First unknown of each block, and one past the last.
    starts: Vec<usize>,
    /// Dense lower blocks (row block >= column block), row by row.
    blocks: BTreeMap<(usize, usize), Vec<f64>>,
    right: Vec<[f64; 2]>,
}

impl Normal {
    /// Zero for blocks of these sizes.
    pub(super) fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        for size in sizes {
            starts.push(starts[starts.len() - 1] + size);
        }
        let right = vec![[0.0; 2]; starts[starts.len() - 1]];
        Self { starts, blocks: BTreeMap::new(), right }
    }

    fn size(&self, block: usize) -> usize {
        self.starts[block + 1] - self.starts[block]
    }

    /// First unknown of a block.
    pub(super) fn start(&self, block: usize) -> usize {
        self.starts[block]
    }

    /// Adds `weight * |sum_b parts_b . c_b - target|^2`; blocks are all different.
    pub(super) fn add(&mut self, parts: &[(usize, &[f64])], weight: f64, target: [f64; 2]) {
        for &(row, a) in parts {
            for &(column, b) in parts.iter().filter(|(column, _)| *column <= row) {
                let size = self.size(row) * self.size(column);
                let block = self.blocks.entry((row, column)).or_insert_with(|| vec![0.0; size]);
                for (line, &x) in block.chunks_mut(b.len()).zip(a) {
                    line.iter_mut().zip(b).for_each(|(m, &y)| *m += weight * x * y);
                }
            }
            let start = self.starts[row];
            for (r, &x) in self.right[start..].iter_mut().zip(a) {
                r[0] += weight * x * target[0];
                r[1] += weight * x * target[1];
            }
        }
    }

    /// Adds `weight * |c - target|^2` for unknown `k` of a block.
    pub(super) fn pull(&mut self, block: usize, k: usize, weight: f64, target: [f64; 2]) {
        let size = self.size(block);
        let dense = self.blocks.entry((block, block)).or_insert_with(|| vec![0.0; size * size]);
        dense[k * size + k] += weight;
        let right = &mut self.right[self.starts[block] + k];
        right[0] += weight * target[0];
        right[1] += weight * target[1];
    }

    /// The minimum, or `None` where the equations are not positive definite.
    pub(super) fn solve(&self) -> Option<Vec<[f64; 2]>> {
        let n = self.right.len();
        if n == 0 {
            return Some(Vec::new());
        }
        let mut triplets = Vec::new();
        for (&(row, column), dense) in &self.blocks {
            let (r0, c0, width) = (self.starts[row], self.starts[column], self.size(column));
            for (k, &value) in dense.iter().enumerate() {
                let (r, c) = (r0 + k / width, c0 + k % width);
                if r >= c {
                    triplets.push(Triplet::new(r, c, value));
                }
            }
        }
        let matrix = SparseColMat::<usize, f64>::try_new_from_triplets(n, n, &triplets).ok()?;
        let factor = matrix.sp_cholesky(Side::Lower).ok()?;
        let right = Mat::from_fn(n, 2, |i, j| self.right[i][j]);
        let found = factor.solve(&right);
        let solution: Vec<[f64; 2]> = (0..n).map(|i| [found[(i, 0)], found[(i, 1)]]).collect();
        solution.iter().flatten().all(|v| v.is_finite()).then_some(solution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_system_is_solved_exactly() {
        // c0 + 2 c1 = (5, 1), c1 - c2 = (1, 0), c0 = (1, 1), c2 = (1, 0), each once and with weight 2, 1, 3, 4: consistent.
        let mut normal = Normal::new([2, 1]);
        normal.add(&[(0, &[1.0, 2.0])], 2.0, [5.0, 1.0]);
        normal.add(&[(0, &[0.0, 1.0]), (1, &[-1.0])], 1.0, [1.0, 0.0]);
        normal.pull(0, 0, 3.0, [1.0, 1.0]);
        normal.pull(1, 0, 4.0, [1.0, 0.0]);
        let found = normal.solve().expect("positive definite");
        for (got, want) in found.iter().zip([[1.0, 1.0], [2.0, 0.0], [1.0, 0.0]]) {
            assert!((got[0] - want[0]).abs() < 1e-9 && (got[1] - want[1]).abs() < 1e-9, "{found:?}");
        }
    }
}
