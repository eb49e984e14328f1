//! The settings of point matching.

use serde::{Deserialize, Serialize};

/// How overlaps are matched. Lengths are pixels of the tile as acquired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MatchConfig {
    /// Two tiles are expected to match where the shorter side of their nominal overlap has at least this many pixels. Default 8:
    /// less holds too little texture to tell places apart. Tiles that would reach it were the stage off by twice the margin are
    /// tried too; that they do not match is no fault.
    pub min_overlap_px: usize,
    /// ... and its longer side at least this part of the tile there. Default 0.15: keeps half-shifted hexagon rows and drops
    /// the corners of square grids, which say nothing that the sides do not say better.
    pub min_overlap_fraction: f64,
    /// Largest error of the nominal shift looked for at first, pixels. The larger of this and the next counts. Default 8.
    pub margin_px: f64,
    /// The same as a part of the longer tile side. Default 0.05: 50 px of 1024, stage errors in use are 5 to 40 px. Where
    /// nothing is found twice the margin is tried.
    pub margin_fraction: f64,
    /// Sigma of the Gaussian that takes noise away before matching, pixels. Default 1.5: at less the noise of fast scans
    /// leads, at more the edges of membranes soften.
    pub smooth_px: f64,
    /// Radius of the local mean that is taken away (vignetting, charging, slow shading), pixels. Default 12: a few times the
    /// width of a membrane.
    pub background_px: f64,
    /// Confidence from which on the first shift of a pair is believed, 0 to 1: one less the ratio of the best score that
    /// cannot be real (mirrored image, or second peak) to the best one. Default 0.3, near what practice with the mirrored
    /// measure has settled on.
    pub min_confidence: f64,
    /// Confidence from which on blocks may still confirm a first shift. Default 0.08: below, chance gives as much.
    pub doubtful_confidence: f64,
    /// Largest side of a block, pixels; narrower overlaps make longer blocks of about the same area, and what is clearly seen
    /// makes smaller ones. Default 96: large enough for noise as strong as the tissue.
    pub block_px: usize,
    /// How far a block may lie off the first shift of its pair, pixels. Default 8: what lenses bend along one overlap.
    pub search_px: usize,
    /// Least normalised score of a block, 0 to 1. Default 0.1: what two tiles share is then a tenth of what they show.
    pub min_score: f64,
    /// ... and least score in units of its spread by chance, which falls with the root of the area. Default 3.5: the largest
    /// of the 300 lags of a block reaches that by chance about once in a hundred times.
    pub min_over_chance: f64,
    /// A block further than this off the smooth course of its pair is dropped, pixels. Default 1.5.
    pub outlier_px: f64,
    /// Share of blocks that must agree for a pair to count as matched. Default 0.4: resin often fills half an overlap.
    pub min_agreeing: f64,
}

impl MatchConfig {
    /// Largest error of a nominal shift looked for at first, for tiles with this longest side, pixels.
    pub(super) fn margin(&self, side: u32) -> f64 {
        self.margin_px.max(self.margin_fraction * f64::from(side))
    }
}

impl Default for MatchConfig {
    fn default() -> Self {
        Self {
            min_overlap_px: 8,
            min_overlap_fraction: 0.15,
            margin_px: 8.0,
            margin_fraction: 0.05,
            smooth_px: 1.5,
            background_px: 12.0,
            min_confidence: 0.3,
            doubtful_confidence: 0.08,
            block_px: 96,
            search_px: 8,
            min_score: 0.1,
            min_over_chance: 3.5,
            outlier_px: 1.5,
            min_agreeing: 0.4,
        }
    }
}
