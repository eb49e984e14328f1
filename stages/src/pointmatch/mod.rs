//! **match**: where the same tissue lies in two overlapping tiles of a section.
//!
//! ```text
//!        tile p                       1 pairs          which tiles overlap or might, from nominal places; any layout
//!  ┌───────────────┐                  2 rects          only the strips that may overlap are read
//!  │            ┌──┼────────────┐     3 first shift    strips, reduced, band-passed, correlated within the margin;
//!  │            │▒▒│            │                      confidence against the mirrored image and the second peak;
//!  │            │▒▒│   tile q   │                      else parts of the strip, else twice the margin
//!  │            │▒▒│            │     4 blocks         along the strip at full scale, sub-pixel peak each
//!  └────────────┼──┘            │     5 course         blocks that leave the smooth course of their pair are dropped
//!               └───────────────┘     6 verdict        matched, doubtful (a hint, not used in the solve), failed
//! ```
//!
//! Coordinates are pixels of the tile as acquired, pixel centres at whole numbers. The band-pass with a correlation that is
//! compared with the mirrored one, and blocks along the overlap, follow feabas (Y. Wu et al.), the second peak follows
//! SOFIMA (Januszewski et al.); the normalised score over a partial overlap is that of Padfield (IEEE TIP 21, 2012), with
//! summed areas in place of its mask transforms because our masks are rectangles.
//!
//! # Cost and floor
//! A pair of strips of `n` pixels each in all (overlap and margin), of which `m` overlap:
//! first shift: reduce `2 n` bytes; `2 n / s^2` pixels through the band-pass (about 30 operations each) and four real FFTs of
//! `n / s^2` padded by the margin. Blocks: `2 m` pixels through the band-pass and three FFTs of about `1.4 m` in all.
//! At 500 to 800 Mpx/s of FFT and 250 Mpx/s of band-pass on one core, 61 tiles of 1024 x 896 at 8 % overlap (156 pairs, `n`
//! = 0.2 Mpx, `m` = 0.08 Mpx, `s` = 2) have a floor of about 2 ms a pair: 180 Mpx of input a second. The bytes are no limit.
//! `benches/stitch.rs` says what is reached: 120 to 290 Mpx/s on one shared core.
//!
//! Pure and independent of threads: one [`Matcher`] a worker holds plans and scratch space and nothing else.

mod config;
mod correlate;
mod course;
mod energy;
mod filter;
mod matcher;
mod pairs;
mod peak;
mod rects;
mod rows;

#[cfg(test)]
#[path = "../../benches/synthetic/mod.rs"]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;

pub use config::MatchConfig;
pub use matcher::{MatchError, Matcher};
pub use pairs::{Neighbours, Pair, StripRects, overlap_rects, pairs};
pub use rows::RowDrift;

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::TileKey;
use serde::{Deserialize, Serialize};

/// The same point of tissue in two tiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointMatch {
    /// In p, pixels.
    pub p: Xy<f64>,
    /// In q, pixels.
    pub q: Xy<f64>,
    /// The normalised score of the block, 0 to 1.
    pub weight: f64,
}

/// How much a pair's matches are worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "reason")]
pub enum Verdict {
    /// Used in the montage.
    Matched,
    /// Something was found, but chance may have done it: kept for the record, not used in the montage.
    Doubtful(String),
    /// Nothing found; no points.
    Failed(String),
    /// Nothing found where nothing was expected: the nominal places do not overlap, but a stage error could have made them.
    Apart,
}

/// What matching one pair gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairMatches {
    /// First tile, the smaller key.
    pub p: TileKey,
    /// Second tile.
    pub q: TileKey,
    /// Matches, in the order of the blocks (rows of p, then columns).
    pub points: Vec<PointMatch>,
    /// Of the first shift, 0 (chance) to 1.
    pub confidence: f64,
    /// Whether to use them.
    pub verdict: Verdict,
    /// How the first rows of the overlap lie; `None` where they are too short or unclear.
    #[serde(default)]
    pub rows: Option<RowDrift>,
}

impl PairMatches {
    /// A pair that was tried in case the stage is wrong, and is not.
    pub fn apart(pair: &Pair) -> Self {
        Self { verdict: Verdict::Apart, ..Self::failed(pair, 0.0, "") }
    }

    /// A pair that gave nothing.
    pub fn failed(pair: &Pair, confidence: f64, reason: impl Into<String>) -> Self {
        Self {
            p: pair.p,
            q: pair.q,
            points: Vec::new(),
            confidence,
            verdict: Verdict::Failed(reason.into()),
            rows: None,
        }
    }
}
