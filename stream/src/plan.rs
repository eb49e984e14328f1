//! What an acquisition promises, before any pixel moves.
//!
//! ```text
//! RunPlan ── optics, planned extent, number of sections          known when the instrument opens
//!   SectionPlan ── serial index (z), regions' mFOVs               known when the section begins
//!     MfovPlan ── the promised tiles
//!       PlannedTile ── key, file name, nominal place in the section
//! ```
//! Whoever gathers counts to these totals; a tile that will never come is a [`Loss`](crate::tile::Loss), never a silence.

use serde::{Deserialize, Serialize};

use crate::geometry::{BoxXy, Xy};
use crate::ids::{MfovId, SectionId, SerialIndex, TileKey};

/// What the budget sheet and the volume need to know before the first tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// Name of the acquisition.
    pub name: String,
    /// Beams per mFOV.
    pub beams: u16,
    /// Tile width and height in pixels.
    pub tile_px: Xy<u32>,
    /// Side of a pixel, nm.
    pub pixel_size_nm: f64,
    /// Section thickness, nm.
    pub thickness_nm: f64,
    /// Planned number of sections; serial indexes run from 0 to this.
    pub sections: u32,
    /// Most mFOVs in one section.
    pub mfovs_per_section: u32,
    /// Where nominal tiles of any section may lie, in section pixels.
    pub extent: BoxXy,
    /// Tiles per second at full speed; 0 where the instrument cannot say.
    pub peak_tiles_per_second: f64,
}

/// One section's promise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SectionPlan {
    /// The cut.
    pub section: SectionId,
    /// Its place along z.
    pub serial: SerialIndex,
    /// Name as the instrument gives it.
    pub name: String,
    /// Raised by one with every amendment: a plan that promises retakes beside all that was promised before.
    #[serde(default)]
    pub version: u32,
    /// All stage stops, sorted by id.
    pub mfovs: Vec<MfovPlan>,
}

/// The promised tiles of one stage stop, sorted by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MfovPlan {
    /// The stage stop.
    pub id: MfovId,
    /// One tile a beam.
    pub tiles: Vec<PlannedTile>,
    /// How often its section had ended when this stop was promised. A section ends when every stop promised so far has ended.
    /// What is promised before its first end (0) makes one result together; what is promised later makes the next version
    /// of a result that is there already.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_first(revision: &u32) -> bool {
    *revision == 0
}

/// One promised tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedTile {
    /// Who it is.
    pub key: TileKey,
    /// File name or TileSpec id: the name in `placements.json`.
    pub name: String,
    /// Nominal place of the centre of tile pixel (0, 0), in section pixels.
    pub nominal: Xy<f64>,
    /// Width and height, pixels.
    pub size: Xy<u32>,
}

impl SectionPlan {
    /// All promised tiles in key order.
    pub fn tiles(&self) -> impl Iterator<Item = &PlannedTile> {
        self.mfovs.iter().flat_map(|m| m.tiles.iter())
    }

    /// The stage stop with this id.
    pub fn mfov(&self, id: MfovId) -> Option<&MfovPlan> {
        self.mfovs.binary_search_by_key(&id, |m| m.id).ok().map(|i| &self.mfovs[i])
    }

    /// The promise with more stops beside all that were promised before, one version on.
    pub fn amended(&self, more: impl IntoIterator<Item = MfovPlan>) -> Self {
        let mut mfovs = self.mfovs.clone();
        mfovs.extend(more);
        mfovs.sort_by_key(|m| m.id);
        Self { version: self.version + 1, mfovs, ..self.clone() }
    }

    /// The promise as far as version `revision` of the section's result counts it, as if whatever was promised between two
    /// ends of the section had been promised at once.
    pub fn as_of(&self, revision: u32) -> Self {
        let mfovs = self.mfovs.iter().filter(|m| m.revision <= revision).cloned().collect();
        Self { mfovs, version: revision.min(self.version), name: self.name.clone(), ..*self }
    }

    /// The newest version of the section's result that is promised.
    pub fn last_revision(&self) -> u32 {
        self.mfovs.iter().map(|m| m.revision).max().unwrap_or(0)
    }

    /// The promised tile with this key.
    pub fn tile(&self, key: TileKey) -> Option<&PlannedTile> {
        let tiles = &self.mfov(key.mfov)?.tiles;
        tiles.binary_search_by_key(&key, |t| t.key).ok().map(|i| &tiles[i])
    }
}
