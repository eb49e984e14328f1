//! What a flood counts, of a block and of each object.

use serde::{Deserialize, Serialize};

/// What one block's flood counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodCounters {
    /// Fields of view run through the network.
    pub evaluations: u64,
    /// Start points that were listed; those of a later policy once its turn comes.
    pub listed: u64,
    /// Start points looked at.
    pub seeds: u64,
    /// Start points from which a flood began.
    pub started: u64,
    /// Floods that became objects.
    pub kept: u64,
    /// Objects of earlier sections that were continued.
    pub continued: u64,
    /// Floods given up because their start point turned out to be outside.
    pub weak: u64,
    /// Floods that stayed too small.
    pub small: u64,
    /// Floods lost because the network answered with what is no finite number.
    pub not_finite: u64,
    /// Positions dropped because the activation there had fallen.
    pub skipped_low: u64,
    /// Positions dropped because they lie too near the border or in another object.
    pub skipped_taken: u64,
    /// Positions dropped because a mask or a shift between sections bars them.
    pub skipped_barred: u64,
    /// Positions dropped because nearly all of the field of view was explored already.
    pub skipped_explored: u64,
    /// Voxels that were inside an object once and that a later answer put outside again.
    pub deleted: u64,
    /// Voxels labelled.
    pub voxels: u64,
}

impl FloodCounters {
    /// Adds another block's counts.
    pub fn add(&mut self, o: &Self) {
        self.combine(o, u64::saturating_add);
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub);
        self
    }

    fn combine(&mut self, o: &Self, f: fn(u64, u64) -> u64) {
        let pairs = [
            (&mut self.evaluations, o.evaluations),
            (&mut self.listed, o.listed),
            (&mut self.seeds, o.seeds),
            (&mut self.started, o.started),
            (&mut self.kept, o.kept),
            (&mut self.continued, o.continued),
            (&mut self.weak, o.weak),
            (&mut self.small, o.small),
            (&mut self.not_finite, o.not_finite),
            (&mut self.skipped_low, o.skipped_low),
            (&mut self.skipped_taken, o.skipped_taken),
            (&mut self.skipped_barred, o.skipped_barred),
            (&mut self.skipped_explored, o.skipped_explored),
            (&mut self.deleted, o.deleted),
            (&mut self.voxels, o.voxels),
        ];
        for (mine, other) in pairs {
            *mine = f(*mine, other);
        }
    }
}

/// Where an object of a block came from and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its label in the block.
    pub label: i32,
    /// Where its flood began: z, y, x in the block. Of a continued object the first entry.
    pub start: [usize; 3],
    /// Whether it is an object of earlier sections that went on.
    pub continued: bool,
    /// Fields of view that were run.
    pub evaluations: u64,
    /// Voxels it got.
    pub voxels: u64,
}
