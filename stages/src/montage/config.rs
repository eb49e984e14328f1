//! The settings of the montage.

use serde::{Deserialize, Serialize};

/// How the tiles of a section are placed. Lengths are pixels of the tile as acquired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MontageConfig {
    /// A pair whose mean shift disagrees with the rigid placement of all others by more than this is dropped, pixels; the
    /// larger of this and the next counts. Default 3.
    pub link_tolerance_px: f64,
    /// The same as a part of the longer tile side. Default 0.01: lenses and tilts make honest pairs disagree by up to that.
    pub link_tolerance_fraction: f64,
    /// Residual from which on a point pulls no harder (Huber), pixels. Default 1.0: five times the spread of good points.
    pub huber_px: f64,
    /// Standard deviation of one good point match, pixels; only its ratio to the next four counts. Default 0.2.
    pub point_sd_px: f64,
    /// Expected spread of scale, shear and rotation between tiles, and of what all share, as a part of one. Default 1e-3,
    /// the order of what calibrated beams and cameras show.
    pub affine_sd: f64,
    /// Expected size of a tile's own bending (each polynomial term) at its sides, as a part of half a side. Default 1.4e-3: 0.7 px
    /// of 1024.
    pub bend_sd: f64,
    /// Expected size of each term of a lens that tiles share, and of a start of scan, as a part of half a side. Default 2e-3:
    /// 1 px of 1024; lenses in use bend by 1 to 3 px there in all.
    pub lens_sd: f64,
    /// Expected error of the stage, pixels; 0 takes it from the data. Default 0.
    pub stage_sd_px: f64,
    /// A softer model is taken only where it lowers the error at held-out points by more than this part. Default 0.05: less is
    /// within the chance of the test, and every softer model lets the section as a whole drift more.
    pub min_gain: f64,
    /// Into how many parts the points are dealt for the held-out test. Default 4.
    pub folds: usize,
    /// Number of nodes along each side of the grid that a bent tile's map is written as. Default 9: a cubic lens of 2 px is
    /// then met to 0.03 px.
    pub grid_nodes: usize,
}

impl Default for MontageConfig {
    fn default() -> Self {
        Self {
            link_tolerance_px: 3.0,
            link_tolerance_fraction: 0.01,
            huber_px: 1.0,
            point_sd_px: 0.2,
            affine_sd: 1e-3,
            bend_sd: 1.4e-3,
            lens_sd: 2e-3,
            stage_sd_px: 0.0,
            min_gain: 0.05,
            folds: 4,
            grid_nodes: 9,
        }
    }
}
