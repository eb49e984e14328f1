//! The settings of the whole line: one table a stage, and the sizes of the edges between them.

use kinesin_backpressure::Bytes;
use kinesin_stream::geometry::Zyx;
use serde::{Deserialize, Serialize};

use crate::align::AlignConfig;
use crate::flood::FloodConfig;
use crate::inspect::InspectConfig;
use crate::mask::MaskConfig;
use crate::montage::MontageConfig;
use crate::pointmatch::MatchConfig;
use crate::render::RenderConfig;

/// `[stages]` of a site file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StagesConfig {
    /// Tile quality.
    pub inspect: InspectConfig,
    /// Point matches of overlapping tiles.
    #[serde(rename = "match")]
    pub pointmatch: MatchConfig,
    /// Tile transforms of a section.
    pub montage: MontageConfig,
    /// Sections into the volume.
    pub align: AlignConfig,
    /// Aligned pixels.
    pub render: RenderConfig,
    /// The published volume.
    pub volume: VolumeConfig,
    /// Vessels, cell bodies, resin.
    pub mask: MaskStage,
    /// Neurons.
    pub segment: SegmentStage,
    /// Bytes that may wait between stages.
    pub edges: EdgesConfig,
}

/// The published image volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeConfig {
    /// Pixels added around the planned extent of the sections, for what rotation and shift move outside. Default 64.
    pub margin_px: u32,
    /// Levels of the in-plane pyramid. Default 4: eight times reduced is an overview.
    pub levels: u32,
    /// Side of a chunk, pixels. Default 512.
    pub chunk_px: u32,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self { margin_px: 64, levels: 4, chunk_px: 512 }
    }
}

/// `[stages.mask]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskStage {
    /// Whether the stage runs. Default true.
    pub enabled: bool,
    /// A shipped model's name, a model folder or an ONNX file. Default the network for simulated tissue.
    pub model: String,
    /// How the network is applied. The class map has the pixels of the model, or the nearest multiple of the scope's.
    pub network: MaskConfig,
}

impl Default for MaskStage {
    fn default() -> Self {
        Self { enabled: true, model: "mask-sim-32nm".into(), network: MaskConfig::default() }
    }
}

/// `[stages.segment]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentStage {
    /// Whether the stage runs. Default true.
    pub enabled: bool,
    /// A shipped model's name, a model folder or an ONNX file. Default the network for simulated tissue.
    pub model: String,
    /// Voxel size at which neurons are followed, z, y, x, nm. Default 0, 0, 0: that of the model. In the plane the
    /// nearest multiple of the scope's pixel is taken. Coarser is cheaper, in proportion to the number of voxels.
    pub voxel_nm: Zyx<f64>,
    /// How neurons are followed: blocks, rolling window, thresholds.
    pub flood: FloodConfig,
}

impl Default for SegmentStage {
    fn default() -> Self {
        Self {
            enabled: true,
            model: "ffn-sim-16nm".into(),
            voxel_nm: Zyx::new(0.0, 0.0, 0.0),
            flood: FloodConfig::default(),
        }
    }
}

/// `[stages.edges]`: every edge is bounded in bytes and makes its sender wait when it is full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgesConfig {
    /// Tiles received and not yet inspected. Default 64 MiB: a few hundred ms of a fast scope.
    pub ingest: Bytes,
    /// Tiles inspected and not yet durable. Default 64 MiB.
    pub inspected: Bytes,
    /// Every edge of ids and small records. Default 4 MiB: thousands of records.
    pub records: Bytes,
    /// Decoded tiles kept while a section is rendered, for each of the align and render stages. Default 128 MiB.
    pub tiles: Bytes,
    /// Sections of which mFOVs or matches are still to come, at a time; their records wait in memory. Default 16: a scope images one
    /// or two at a time, and late tiles keep a few open. A run that needs more is stopped and says so.
    pub open_sections: u32,
}

impl Default for EdgesConfig {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            ingest: Bytes(64 * MIB),
            inspected: Bytes(64 * MIB),
            records: Bytes(4 * MIB),
            tiles: Bytes(128 * MIB),
            open_sections: 16,
        }
    }
}
