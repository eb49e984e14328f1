//! Normal equations in blocks, and their Cholesky solution.
//!
//! Residuals along x and y have the same design, so one factor serves two right-hand sides. Where the equations are solved
//! again with other weights, only the numbers of the factor are made anew.

use std::collections::BTreeMap;

use faer::linalg::solvers::Solve;
use faer::sparse::linalg::solvers::{Llt, SymbolicLlt};
use faer::sparse::{SparseColMat, SymbolicSparseColMat};
use faer::{Mat, Side};

/// Sums of weighted outer products, in blocks of unknowns.
pub(super) struct Normal {
    /// First unknown of each block, and one past the last.
    starts: Vec<usize>,
    /// Dense lower blocks by (column block, row block), row block >= column block; row by row.
    blocks: BTreeMap<(usize, usize), Vec<f64>>,
    right: Vec<[f64; 2]>,
}

/// What a factorisation needs to know of the places of the numbers, and not of the numbers.
#[derive(Default)]
pub(super) struct Pattern(Option<(Vec<usize>, Vec<usize>, SymbolicLlt<usize>)>);

/// Weighted sums over points that all touch the same blocks, with the blocks' values side by side.
pub(super) struct Local {
    /// Blocks with their numbers of unknowns, all different.
    parts: Vec<(usize, usize)>,
    width: usize,
    /// Lower triangle, row by row, in a square.
    square: Vec<f64>,
    right: Vec<[f64; 2]>,
}

impl Local {
    /// Zero for these blocks.
    pub(super) fn new(parts: Vec<(usize, usize)>) -> Self {
        let width = parts.iter().map(|p| p.1).sum();
        Self { parts, width, square: vec![0.0; width * width], right: vec![[0.0; 2]; width] }
    }

    /// Adds `weight * |row . c - target|^2`.
    pub(super) fn add(&mut self, row: &[f64], weight: f64, target: [f64; 2]) {
        for (i, &x) in row.iter().enumerate().take(self.width) {
            let wx = weight * x;
            let line = &mut self.square[i * self.width..i * self.width + i + 1];
            line.iter_mut().zip(row).for_each(|(m, &y)| *m += wx * y);
            self.right[i][0] += wx * target[0];
            self.right[i][1] += wx * target[1];
        }
    }
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

    /// Adds what was summed.
    pub(super) fn add(&mut self, local: &Local) {
        let mut r0 = 0;
        for (k, &(row, height)) in local.parts.iter().enumerate() {
            let mut c0 = 0;
            for &(column, width) in &local.parts[..=k] {
                // The smaller block is the column, whichever of them came first.
                let key = (row.min(column), row.max(column));
                let block = self.blocks.entry(key).or_insert_with(|| vec![0.0; width * height]);
                for i in 0..height {
                    for j in 0..width.min(if row == column { i + 1 } else { width }) {
                        let value = local.square[(r0 + i) * local.width + c0 + j];
                        block[if column <= row { i * width + j } else { j * height + i }] += value;
                    }
                }
                c0 += width;
            }
            let start = self.starts[row];
            for (to, from) in self.right[start..start + height].iter_mut().zip(&local.right[r0..]) {
                to[0] += from[0];
                to[1] += from[1];
            }
            r0 += height;
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

    /// Adds a quadratic form of a block: `c . square . c - 2 right . c`.
    pub(super) fn form(&mut self, block: usize, square: &[f64], right: &[[f64; 2]]) {
        let size = self.size(block);
        let dense = self.blocks.entry((block, block)).or_insert_with(|| vec![0.0; size * size]);
        dense.iter_mut().zip(square).for_each(|(d, s)| *d += s);
        for (to, from) in self.right[self.starts[block]..].iter_mut().zip(right) {
            to[0] += from[0];
            to[1] += from[1];
        }
    }

    /// A block of the inverse of the equations.
    pub(super) fn variance(&self, pattern: &mut Pattern, block: usize) -> Option<Mat<f64>> {
        let (start, size) = (self.starts[block], self.size(block));
        let factor = self.factor(pattern)?;
        let found = factor.solve(&Mat::from_fn(self.right.len(), size, |i, j| f64::from(u8::from(i == start + j))));
        Some(Mat::from_fn(size, size, |i, j| found[(start + i, j)]))
    }

    /// The minimum, or `None` where the equations are not positive definite. `pattern` is one that equations of the same blocks
    /// were solved with before, or new.
    pub(super) fn solve(&self, pattern: &mut Pattern) -> Option<Vec<[f64; 2]>> {
        let n = self.right.len();
        if n == 0 {
            return Some(Vec::new());
        }
        let factor = self.factor(pattern)?;
        let right = Mat::from_fn(n, 2, |i, j| self.right[i][j]);
        let found = factor.solve(&right);
        let solution: Vec<[f64; 2]> = (0..n).map(|i| [found[(i, 0)], found[(i, 1)]]).collect();
        solution.iter().flatten().all(|v| v.is_finite()).then_some(solution)
    }

    fn factor(&self, pattern: &mut Pattern) -> Option<Llt<usize, f64>> {
        let n = self.right.len();
        let (columns, rows, values) = self.columns();
        if pattern.0.as_ref().is_none_or(|(c, r, _)| *c != columns || *r != rows) {
            let places = SymbolicSparseColMat::new_checked(n, n, columns.clone(), None, rows.clone());
            let symbolic = SymbolicLlt::try_new(places.as_ref(), Side::Lower).ok()?;
            pattern.0 = Some((columns.clone(), rows.clone(), symbolic));
        }
        let symbolic = pattern.0.as_ref().map(|p| p.2.clone())?;
        let matrix = SparseColMat::new(SymbolicSparseColMat::new_checked(n, n, columns, None, rows), values);
        Llt::try_new_with_symbolic(symbolic, matrix.as_ref(), Side::Lower).ok()
    }

    /// The lower triangle by compressed columns: where each begins, rows, values.
    fn columns(&self) -> (Vec<usize>, Vec<usize>, Vec<f64>) {
        let n = self.right.len();
        let held: usize = self.blocks.values().map(Vec::len).sum();
        let (mut starts, mut rows, mut values) =
            (Vec::with_capacity(n + 1), Vec::with_capacity(held), Vec::with_capacity(held));
        starts.push(0);
        let mut blocks = self.blocks.iter().peekable();
        for column in 0..self.starts.len() - 1 {
            let mut below = Vec::new();
            while let Some((&(_, row), dense)) = blocks.next_if(|((c, _), _)| *c == column) {
                below.push((row, dense));
            }
            let width = self.size(column);
            for j in 0..width {
                for &(row, dense) in &below {
                    for i in (if row == column { j } else { 0 })..self.size(row) {
                        rows.push(self.starts[row] + i);
                        values.push(dense[i * width + j]);
                    }
                }
                starts.push(rows.len());
            }
        }
        (starts, rows, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_system_is_solved_exactly_and_again_with_other_weights() {
        // c0 + 2 c1 = (5, 1), c1 - c2 = (1, 0), c0 = (1, 1), c2 = (1, 0), each with some weight: consistent.
        let mut pattern = Pattern::default();
        for weights in [[2.0, 1.0, 3.0, 4.0], [0.5, 7.0, 1.0, 2.0]] {
            let mut normal = Normal::new([2, 1]);
            // The blocks in either order.
            let mut local = Local::new(vec![(1, 1), (0, 2)]);
            local.add(&[0.0, 1.0, 2.0], weights[0], [5.0, 1.0]);
            local.add(&[-1.0, 0.0, 1.0], weights[1], [1.0, 0.0]);
            normal.add(&local);
            normal.pull(0, 0, weights[2], [1.0, 1.0]);
            normal.pull(1, 0, weights[3], [1.0, 0.0]);
            let found = normal.solve(&mut pattern).expect("positive definite");
            for (got, want) in found.iter().zip([[1.0, 1.0], [2.0, 0.0], [1.0, 0.0]]) {
                assert!((got[0] - want[0]).abs() < 1e-9 && (got[1] - want[1]).abs() < 1e-9, "{found:?}");
            }
        }
    }
}
