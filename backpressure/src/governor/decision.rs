//! What goes into the governor and what comes out: readings, rungs, paces, changes. Bytes, bytes a second, seconds.

use serde::{Deserialize, Serialize};

/// How much is done now, from everything to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Everything.
    #[default]
    Full,
    /// Quick provisional labels on coarser voxels instead of the full segmentation.
    LighterSegmentation,
    /// No labels: stitching, alignment and quality only.
    StitchOnly,
    /// The head takes tiles only as fast as it works them off; the others wait in the scope's spool.
    SpoolOnly,
    /// The instrument goes slower.
    Slow,
    /// The instrument stops at its next stopping point.
    Hold,
}

impl Rung {
    /// All, from the top.
    pub const ALL: [Self; 6] =
        [Self::Full, Self::LighterSegmentation, Self::StitchOnly, Self::SpoolOnly, Self::Slow, Self::Hold];

    /// As in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::LighterSegmentation => "lighter_segmentation",
            Self::StitchOnly => "stitch_only",
            Self::SpoolOnly => "spool_only",
            Self::Slow => "slow",
            Self::Hold => "hold",
        }
    }
}

/// One buffer, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which buffer; readings of the same name are the same buffer at different times.
    pub name: String,
    /// Bytes in it.
    pub held: u64,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes that ever went in.
    pub in_total: u64,
    /// Bytes that ever came out.
    pub out_total: u64,
    /// Bytes that come or go at once, 0 for a steady flow. Rates are taken over at least two such lumps.
    pub lump: u64,
    /// The deepest rung that helps this buffer; `Full` for one that is only watched.
    pub deepest: Rung,
}

/// How fast the instrument goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Pace {
    /// Full speed.
    #[default]
    Go,
    /// This share of full speed, above 0 and at most 1.
    Slow(f64),
    /// Not at all.
    Hold,
}

impl Pace {
    /// Share of full speed, 0 when held.
    pub fn share(self) -> f64 {
        match self {
            Self::Go => 1.0,
            Self::Slow(share) => share,
            Self::Hold => 0.0,
        }
    }
}

/// What an instrument can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// It can go slower.
    pub slow: bool,
    /// It can stop.
    pub hold: bool,
}

/// The state of a buffer that made a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes in it.
    pub held: u64,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes a second going in.
    pub in_per_second: f64,
    /// Bytes a second coming out.
    pub out_per_second: f64,
    /// Seconds until it overflows; none where it does not fill.
    pub overflow_seconds: Option<f64>,
}

/// A step on the ladder.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Rung that was left.
    pub from: Rung,
    /// Rung that was entered.
    pub to: Rung,
    /// The buffer that asked for it; for a rise, the one that had asked for the rung that was left.
    pub cause: String,
    /// That buffer, now.
    pub figures: Figures,
    /// Seconds spent on the rung that was left.
    pub stayed_seconds: f64,
}

/// Data that will be lost, because the instrument obeys nobody.
#[derive(Clone, Debug, PartialEq)]
pub struct ComingLoss {
    /// The buffer that will overflow.
    pub buffer: String,
    /// In how many seconds.
    pub in_seconds: f64,
    /// Bytes that will be lost in the first minute from then on, at the present rates.
    pub bytes_per_minute: u64,
    /// The buffer, now.
    pub figures: Figures,
}

/// What one step decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The rung from now on.
    pub rung: Rung,
    /// Whether the head takes tiles from now on; at `SpoolOnly` only while the line has room for them.
    pub takes: bool,
    /// The instrument's pace from now on.
    pub pace: Pace,
    /// Where the rung is new.
    pub change: Option<Change>,
    /// As long as data will be lost within `announce_seconds`.
    pub coming_loss: Option<ComingLoss>,
}
