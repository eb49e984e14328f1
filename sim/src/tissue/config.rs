//! Settings of the procedural tissue. Lengths in nm, sizes in voxels, shares of the volume between 0 and 1.

use kinesin_stream::geometry::{VoxelSize, Zyx};
use serde::{Deserialize, Serialize};

/// What to grow. Equal settings give equal voxels, on any machine and however they are asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TissueConfig {
    /// Which tissue; any number. Default 1.
    pub seed: u64,
    /// Sections, rows, columns. Default 24 x 1600 x 1800: a demonstration of a few seconds, 13 x 14 µm at 8 nm.
    pub shape: Zyx<usize>,
    /// Size of a voxel along z, y, x, nm. Default 30 x 8 x 8, a usual serial-section acquisition. The tissue is laid out in
    /// nm, so the same seed and extent show the same objects at another voxel size.
    pub voxel_size: VoxelSize,
    /// Share of the volume given to dendrites before axons fill the rest. Default 0.25: with what the cells gain from free
    /// space about a third, as in cortex.
    pub dendrites: f64,
    /// Spines along a dendrite, per µm. Default 1.0, as in cortex.
    pub spines_per_um: f64,
    /// Widest distance left between any point and the nearest neurite before another axon is started there, nm. Smaller
    /// packs thinner neurites. Default 70: most profiles are then 150 to 500 nm wide.
    pub gap: f64,
    /// Share of the volume inside cell bodies. Default 0.05: cortex has about 0.1, but a small volume should show mostly
    /// neuropil.
    pub cell_bodies: f64,
    /// Share of the volume inside blood vessels. Default 0.03, as in cortex.
    pub vessels: f64,
    /// Share of each section that is bare resin, cut off at one corner. Default 0.03.
    pub resin: f64,
    /// Half the width of the band between two cells that belongs to neither (label 0, drawn dark), nm. Default 12: two
    /// membranes and the cleft between.
    pub membrane: f64,
}

impl Default for TissueConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            shape: Zyx::new(24, 1600, 1800),
            voxel_size: VoxelSize(Zyx::new(30.0, 8.0, 8.0)),
            dendrites: 0.25,
            spines_per_um: 1.0,
            gap: 70.0,
            cell_bodies: 0.05,
            vessels: 0.03,
            resin: 0.03,
            membrane: 12.0,
        }
    }
}

/// Settings that no tissue can have.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("tissue: {key} = {got}; use {wanted}")]
pub struct TissueError {
    /// Which setting.
    pub key: &'static str,
    /// What it was.
    pub got: String,
    /// What it may be.
    pub wanted: &'static str,
}

impl TissueConfig {
    /// Extent along z, y, x, nm.
    pub fn extent_nm(&self) -> Zyx<f64> {
        let (n, v) = (self.shape, self.voxel_size.0);
        Zyx::new(n.z as f64 * v.z, n.y as f64 * v.y, n.x as f64 * v.x)
    }

    /// Every setting that cannot be used.
    pub fn faults(&self) -> Vec<TissueError> {
        let mut faults = Vec::new();
        let mut range = |key, v: f64, low: f64, high: f64, wanted| {
            if !(low..=high).contains(&v) {
                faults.push(TissueError { key, got: v.to_string(), wanted });
            }
        };
        for n in [self.shape.z, self.shape.y, self.shape.x] {
            range("shape", n as f64, 1.0, 1e6, "1 to 1000000 voxels along each axis");
        }
        for v in [self.voxel_size.0.z, self.voxel_size.0.y, self.voxel_size.0.x] {
            range("voxel_size", v, 1.0, 200.0, "1 to 200 nm along each axis");
        }
        range("dendrites", self.dendrites, 0.0, 0.4, "0 to 0.4 of the volume");
        range("spines_per_um", self.spines_per_um, 0.0, 4.0, "0 to 4 per µm");
        range("gap", self.gap, 50.0, 400.0, "50 to 400 nm");
        range("cell_bodies", self.cell_bodies, 0.0, 0.3, "0 to 0.3 of the volume");
        range("vessels", self.vessels, 0.0, 0.3, "0 to 0.3 of the volume");
        range("resin", self.resin, 0.0, 0.45, "0 to 0.45 of a section");
        range("membrane", self.membrane, 4.0, 30.0, "4 to 30 nm");
        faults
    }
}
