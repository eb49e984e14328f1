//! Start points in visiting order, policy after policy; a policy that looks at what is still empty waits for its turn.

use std::collections::VecDeque;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::seeds::empty_peaks;

/// One policy's share of a block.
#[derive(Clone, Debug, PartialEq)]
pub enum SeedRound {
    /// Start points that are known beforehand.
    List(Vec<Zyx<usize>>),
    /// The voxels farthest from everything labelled or closed when the turn comes (see `seeds`).
    FillEmpty {
        /// Of a voxel.
        size: VoxelSize,
        /// Distance kept from every border, voxels.
        margin: Zyx<usize>,
        /// Last one first.
        reverse: bool,
    },
}

/// Start points of a block.
#[derive(Clone, Debug, Default)]
pub(super) struct SeedQueue {
    rounds: VecDeque<SeedRound>,
    list: Vec<[usize; 3]>,
    next: usize,
}

/// Where a queue stands, for a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SeedState {
    rounds_left: usize,
    next: usize,
    list: Vec<[usize; 3]>,
}

impl From<Vec<Zyx<usize>>> for SeedQueue {
    fn from(list: Vec<Zyx<usize>>) -> Self {
        Self { rounds: VecDeque::from([SeedRound::List(list)]), ..Self::default() }
    }
}

impl SeedQueue {
    pub(super) fn push(&mut self, round: SeedRound) {
        self.rounds.push_back(round);
    }

    /// The next start point, and how many were listed to get there. `labels` and `closed` are the block's, of this shape.
    pub(super) fn next(&mut self, labels: &[i32], closed: &[bool], shape: [usize; 3]) -> (Option<[usize; 3]>, u64) {
        let mut listed = 0;
        loop {
            if let Some(at) = self.list.get(self.next) {
                self.next += 1;
                return (Some(*at), listed);
            }
            let Some(round) = self.rounds.pop_front() else { return (None, listed) };
            self.list = made(round, labels, closed, shape);
            self.next = 0;
            listed += self.list.len() as u64;
        }
    }

    /// Where the queue stands.
    pub(super) fn state(&self) -> SeedState {
        SeedState { rounds_left: self.rounds.len(), next: self.next, list: self.list.clone() }
    }

    /// Puts a queue that was just made where another one stood.
    pub(super) fn restore(&mut self, state: SeedState) {
        self.rounds.drain(..self.rounds.len().saturating_sub(state.rounds_left));
        self.list = state.list;
        self.next = state.next;
    }
}

fn made(round: SeedRound, labels: &[i32], closed: &[bool], shape: [usize; 3]) -> Vec<[usize; 3]> {
    let points = match round {
        SeedRound::List(list) => list,
        SeedRound::FillEmpty { size, margin, reverse } => {
            let taken: Vec<bool> = labels.iter().zip(closed).map(|(&l, &c)| l > 0 || c).collect();
            let taken = Array3::from_shape_vec(shape, taken).expect("one value per voxel");
            let mut found = empty_peaks(&taken, size, margin);
            if reverse {
                found.reverse();
            }
            found
        }
    };
    points.iter().map(|s| [s.z, s.y, s.x]).collect()
}
