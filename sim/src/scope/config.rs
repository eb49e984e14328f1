//! Settings of the simulated scope: what a site file says under `sim`. Unknown keys are refused.
//!
//! Lengths are in pixels of the scope unless the key names another unit. "sd" is a standard deviation. The defaults are those
//! of an ordinary 61-beam acquisition with nothing broken; damage and faults are asked for by name.

use kinesin_stream::geometry::Xy;
use serde::{Deserialize, Serialize};

use super::source::TissueSource;

/// The whole of a simulated acquisition. The same settings give the same tiles, byte by byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimConfig {
    /// Name of the acquisition. Default `simulated`.
    pub name: String,
    /// Seed of everything random. Default 1: any number does, it only has to be written down.
    pub seed: u64,
    /// What lies under the scope: `{ procedural = {..} }` or `{ recorded = {..} }`. Default procedural with its own defaults.
    pub tissue: TissueSource,
    /// How the scope looks at it.
    pub layout: LayoutConfig,
    /// Errors of stage and optics.
    pub optics: OpticsConfig,
    /// Grey values: gain, offset, noise, focus.
    pub exposure: ExposureConfig,
    /// What cutting and mounting did to each section.
    pub sections: SectionsConfig,
    /// Broken sections.
    pub damage: DamageConfig,
    /// What goes wrong between detector and receiver.
    pub faults: FaultsConfig,
    /// Pace and look-ahead.
    pub pace: PaceConfig,
}

/// Beams, tiles, mFOVs, sections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayoutConfig {
    /// Beams of an mFOV: 1, 7, 19, 37, 61 or 91. Default 61, the commonest instrument.
    pub beams: u16,
    /// Tile width and height, px. Default 1024 x 896: a third of a real tile, so that tests stay small.
    pub tile_px: Xy<u32>,
    /// Side of a pixel, nm. Default 0: that of the tissue's voxels in the plane.
    pub pixel_size_nm: f64,
    /// Overlap of neighbouring tiles as a fraction of the tile side. Default 0.08: usual for such scopes.
    pub overlap: f64,
    /// Least overlap, px; raises `overlap` where tiles are small. Default 20: below that a strip holds too little to match.
    pub min_overlap_px: f64,
    /// Where above 0, `tile_px` is replaced by the smallest tile (height 0.87 of the width, like real ones) with which this
    /// fraction of the tissue's plane is imaged. Default 0: `tile_px` is used.
    pub cover: f64,
    /// mFOVs of a section, placed in a hexagonal spiral like the beams. Default 1.
    pub mfovs: u32,
    /// Sections. Default 0: as many as the tissue has from `first_z` on.
    pub sections: u32,
    /// Section of the tissue that is the first one cut. Default 0.
    pub first_z: usize,
    /// Whether sections are imaged in another order than they were cut. Default false.
    pub shuffle_sections: bool,
}

/// Errors of stage, beams, lens and scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpticsConfig {
    /// Error of each stage stop, sd along x and y, px. Default 8: seams off by tens of pixels, as measured on real stages.
    pub stage_sd_px: f64,
    /// Fixed offset of each beam from the ideal hexagon, sd, px. Default 3.
    pub beam_offset_sd_px: f64,
    /// Offset of each tile on top, sd, px. Default 1.
    pub beam_jitter_sd_px: f64,
    /// Lens distortion at the corner of a tile, px; a cubic, mostly shared by the beams, the same in all sections. Default 2.
    pub lens_px: f64,
    /// Error of each of the four numbers of a tile's affine map, sd. Default 0.001: 0.5 px at the rim of a 1024 px tile.
    pub affine_sd: f64,
    /// Drift at the first row of a tile, px along x; it decays with the rows. Default 2.
    pub scan_start_px: f64,
    /// Rows after which that drift has fallen to 1/e. Default 20.
    pub scan_start_rows: f64,
}

/// What the detectors make of the electrons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExposureConfig {
    /// Gain of each beam about 1, sd. Default 0.06.
    pub gain_sd: f64,
    /// Offset of each beam, sd, grey levels. Default 5.
    pub offset_sd: f64,
    /// Noise of each pixel, sd, grey levels. Default 8.
    pub noise_sd: f64,
    /// Probability that a tile is out of focus. Default 0: no faults unless asked for.
    pub focus_loss: f64,
    /// Blur of a tile out of focus, sd, px. Default 3: membranes vanish.
    pub focus_blur_px: f64,
    /// Grey value where there is no tissue (bare resin). Default 205: resin is bright and empty.
    pub fill: u8,
}

/// Place and shape of each section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SectionsConfig {
    /// Largest rotation either way, degrees. Default 1.5: what is left after a scope has rotated its scan.
    pub rotation_deg: f64,
    /// Largest shift either way, along x and along y, px. Default 20.
    pub shift_px: f64,
    /// Smooth deformation, sd along x and y, px. Default 4.
    pub deformation_sd_px: f64,
    /// Distance over which the deformation changes, px. Default 400.
    pub deformation_grid_px: f64,
    /// Gain of each section about 1, sd. Default 0.05.
    pub gain_sd: f64,
    /// Offset of each section, sd, grey levels. Default 6.
    pub offset_sd: f64,
}

/// Broken sections: those listed and those drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DamageConfig {
    /// Damage at known places. Default none.
    pub list: Vec<Damage>,
    /// Probability that a section is missing. Default 0.
    pub missing: f64,
    /// Probability of a fold in a section. Default 0.
    pub fold: f64,
    /// Probability of a crack. Default 0.
    pub crack: f64,
    /// Probability of dirt. Default 0.
    pub dirt: f64,
    /// Tissue that a drawn fold swallows, px. Default 24.
    pub fold_px: f64,
    /// Width of a drawn crack, px. Default 30.
    pub crack_px: f64,
    /// Radius of drawn dirt, px. Default 60.
    pub dirt_px: f64,
}

/// One damage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// Serial index of the section, from 0.
    pub section: u32,
    /// What happened to it.
    pub kind: DamageKind,
    /// Tissue swallowed by the fold, width of the crack, radius of the dirt, px. Default that of drawn damage.
    pub size_px: Option<f64>,
    /// Direction of the fold's or crack's line from the x axis, degrees. Default drawn.
    pub angle_deg: Option<f64>,
    /// A point of the line, or the middle of the dirt, section px. Default drawn within the tissue.
    pub at: Option<Xy<f64>>,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// The section was lost.
    Missing,
    /// A straight line along which tissue lies double: it is dark, and what lies beneath is not seen.
    Fold,
    /// A straight gap through which the empty tape shows.
    Crack,
    /// Dark dirt on top.
    Dirt,
}

/// Probabilities, a tile each, of what can happen between detector and receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultsConfig {
    /// Never acquired. Default 0.
    pub lost: f64,
    /// The beam was off: dark and empty. Default 0.
    pub blank: f64,
    /// Sent twice. Default 0.
    pub duplicated: f64,
    /// Sent `late_mfovs` stage stops later, before the end of its own mFOV is told. Default 0.
    pub late: f64,
    /// How many stage stops late. Default 1.
    pub late_mfovs: u32,
    /// Whether the tiles of a stage stop come in a drawn order instead of by beam. Default true: detectors promise none.
    pub shuffle: bool,
    /// Spoiled, and taken again: good the second time. Default 0.
    pub retaken: f64,
    /// When those are taken again: 0 before their section ends, else that many sections later, or after the last one.
    /// Default 0: while the stage is still there.
    pub retake_after_sections: u32,
    /// Tiles that are spoiled and taken again for certain. Default none.
    pub retakes: Vec<Retake>,
}

/// Tiles of one stage stop that are spoiled and taken again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retake {
    /// Serial index of the section, from 0. Default 0.
    pub section: u32,
    /// The stage stop, from 0. Default 0.
    pub mfov: u32,
    /// Which beams, from 0. Default none: all of them.
    pub beams: Vec<u16>,
    /// 0 before the section ends, else so many sections later, or after the last one. Default 0.
    pub after_sections: u32,
    /// What spoiled them. Default drawn.
    pub spoiled: Option<Spoiled>,
}

/// What spoils an exposure so that it is taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spoiled {
    /// The beam was off.
    Blank,
    /// Out of focus by `exposure.focus_blur_px`.
    Blurred,
}

/// Pace and look-ahead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaceConfig {
    /// Net rate of a scope at speed 1, megapixels a second. Default 300: 61 beams, stage moves included.
    pub scope_mpx_per_s: f64,
    /// Multiple of that rate; 0 is as fast as tiles are taken. Default 0.
    pub speed: f64,
    /// Whether it slows and holds when it is asked. Default true; false is a scope that goes on whatever anybody says.
    pub obeys: bool,
    /// Tiles made ahead of the one asked for, MiB; one tile is always made. Default 16.
    pub look_ahead_mib: u32,
    /// Tissue kept between tiles, MiB. Default 64: the borders that neighbouring tiles share, and more.
    pub tissue_cache_mib: u32,
    /// Threads that make tiles. Default 0: one a core.
    pub threads: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            name: "simulated".into(),
            seed: 1,
            tissue: TissueSource::default(),
            layout: LayoutConfig::default(),
            optics: OpticsConfig::default(),
            exposure: ExposureConfig::default(),
            sections: SectionsConfig::default(),
            damage: DamageConfig::default(),
            faults: FaultsConfig::default(),
            pace: PaceConfig::default(),
        }
    }
}

impl Default for LayoutConfig {
    fn default() -> Self {
        Self {
            beams: 61,
            tile_px: Xy::new(1024, 896),
            pixel_size_nm: 0.0,
            overlap: 0.08,
            min_overlap_px: 20.0,
            cover: 0.0,
            mfovs: 1,
            sections: 0,
            first_z: 0,
            shuffle_sections: false,
        }
    }
}

impl Default for OpticsConfig {
    fn default() -> Self {
        Self {
            stage_sd_px: 8.0,
            beam_offset_sd_px: 3.0,
            beam_jitter_sd_px: 1.0,
            lens_px: 2.0,
            affine_sd: 1e-3,
            scan_start_px: 2.0,
            scan_start_rows: 20.0,
        }
    }
}

impl OpticsConfig {
    /// Perfect optics on a perfect stage.
    pub const IDEAL: Self = Self {
        stage_sd_px: 0.0,
        beam_offset_sd_px: 0.0,
        beam_jitter_sd_px: 0.0,
        lens_px: 0.0,
        affine_sd: 0.0,
        scan_start_px: 0.0,
        scan_start_rows: 20.0,
    };
}

impl Default for ExposureConfig {
    fn default() -> Self {
        Self { gain_sd: 0.06, offset_sd: 5.0, noise_sd: 8.0, focus_loss: 0.0, focus_blur_px: 3.0, fill: 205 }
    }
}

impl ExposureConfig {
    /// Grey values as they are in the tissue.
    pub const IDEAL: Self =
        Self { gain_sd: 0.0, offset_sd: 0.0, noise_sd: 0.0, focus_loss: 0.0, focus_blur_px: 3.0, fill: 205 };
}

impl Default for SectionsConfig {
    fn default() -> Self {
        Self {
            rotation_deg: 1.5,
            shift_px: 20.0,
            deformation_sd_px: 4.0,
            deformation_grid_px: 400.0,
            gain_sd: 0.05,
            offset_sd: 6.0,
        }
    }
}

impl SectionsConfig {
    /// Sections that lie as they were cut.
    pub const IDEAL: Self = Self {
        rotation_deg: 0.0,
        shift_px: 0.0,
        deformation_sd_px: 0.0,
        deformation_grid_px: 400.0,
        gain_sd: 0.0,
        offset_sd: 0.0,
    };
}

impl Default for DamageConfig {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            missing: 0.0,
            fold: 0.0,
            crack: 0.0,
            dirt: 0.0,
            fold_px: 24.0,
            crack_px: 30.0,
            dirt_px: 60.0,
        }
    }
}

impl Default for FaultsConfig {
    fn default() -> Self {
        Self {
            lost: 0.0,
            blank: 0.0,
            duplicated: 0.0,
            late: 0.0,
            late_mfovs: 1,
            shuffle: true,
            retaken: 0.0,
            retake_after_sections: 0,
            retakes: Vec::new(),
        }
    }
}

impl Default for PaceConfig {
    fn default() -> Self {
        Self { scope_mpx_per_s: 300.0, speed: 0.0, obeys: true, look_ahead_mib: 16, tissue_cache_mib: 64, threads: 0 }
    }
}
