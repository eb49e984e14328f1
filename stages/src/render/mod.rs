//! Warped and blended pixels of any rectangle of a section or of the volume plane.
//!
//! ```text
//! block of the target plane ── plan ──► keys of the tiles it needs ──► caller reads those only
//!         │                                                                │ pixels
//!         └─► strips of rows ─► per tile, in key order: inverse lattice ─► bilinear sample ─► tone ─► weighted sum ─► u8
//! ```
//! *Units.* A block is given in pixels of the target reduced `s` times; pixel `i` stands for full-resolution pixels
//! `s i .. s (i + 1)` ([`reduced_to_full`](kinesin_stream::geometry::reduced_to_full)). Maps are in full-resolution pixels.
//! 0 means that no tile covers the pixel; tissue is clamped to 1..=255.
//!
//! *Method.* The way back from target to tile is solved at the nodes of a lattice of [`RenderConfig::lattice_px`] output pixels that is
//! anchored at the target's origin, never at the block, and is bilinear between the nodes. Reduced output samples a tile
//! that was first averaged over s x s boxes, so no detail folds back. In overlaps each tile weighs by its distance to
//! its own border raised to [`RenderConfig::seam_sharpness`]; sums run in key order. Hence a pixel has the same byte whatever
//! the block, the number of threads and the order of the tiles.
//!
//! *Cost.* One block holds a byte a pixel of output plus, at `s > 1`, the reduced parts of its tiles; threads split a block into
//! strips of 64 rows. Runs of samples on neighbouring pixels are taken as vectors, weights only where tiles meet.
//!
//! *Contrast.* [`ClaheConfig`], off by default, equalises what is drawn; a block then draws a rim around itself.

mod clahe;
mod compose;
pub mod intensity;
mod lattice;
mod sample;
mod warp;

use std::collections::BTreeSet;

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::TileKey;
use kinesin_stream::pixels::Pixels;
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use clahe::ClaheConfig;
pub use compose::{PlacedTile, compose};
pub use intensity::Tone;

use crate::wide::wide;

/// How tiles become an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenderConfig {
    /// Spacing of the nodes at which the way back from target to tile is solved, output pixels, 4 to 64. Default 16: a field
    /// of 6 px on a 400 px grid is then off by 0.01 px, and solving costs a tenth of sampling.
    pub lattice_px: u32,
    /// Power of the distance to the tile's border that weighs a tile in an overlap: 1, 2 or 4. Default 2: in an overlap of
    /// 80 px the change from one tile to the other takes 40 px, wide enough to hide a tone step, and ghosts stay inside it.
    pub seam_sharpness: u32,
    /// Whether grey 0 in a *tile* means "no data" there. Default false: in a camera image 0 is a dark pixel. Set it where whole
    /// section images with an empty rim take the place of tiles.
    pub zero_is_empty: bool,
    /// Whether and how the contrast of the published image is evened out; sections are aligned without.
    pub clahe: ClaheConfig,
}

impl Default for RenderConfig {
    fn default() -> Self {
        Self { lattice_px: 16, seam_sharpness: 2, zero_is_empty: false, clahe: ClaheConfig::default() }
    }
}

/// An image that cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A setting is out of its range.
    #[error("render: {key} = {got} is not allowed; use {wanted}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Its value.
        got: u32,
        /// What is allowed.
        wanted: &'static str,
    },
    /// The image handed in is not the tile that was placed.
    #[error("render: {key} came with {got_width} x {got_height} px but was placed as {width} x {height} px")]
    WrongSize {
        /// The tile.
        key: TileKey,
        /// Columns of the image.
        got_width: usize,
        /// Rows of the image.
        got_height: usize,
        /// Columns placed.
        width: u32,
        /// Rows placed.
        height: u32,
    },
    /// Two images for one key.
    #[error("render: {key} was handed in twice; hand in one image a tile")]
    Twice {
        /// The tile.
        key: TileKey,
    },
    /// The map is flat, so that a target pixel has no single source.
    #[error(
        "render: the map of {key} cannot be inverted near target pixel ({x}, {y}); solve its section again or leave it out"
    )]
    NotInvertible {
        /// The tile.
        key: TileKey,
        /// Full-resolution target column.
        x: i64,
        /// Full-resolution target row.
        y: i64,
    },
}

/// Makes blocks of images; holds nothing but its settings.
#[derive(Clone, Debug)]
pub struct Renderer {
    config: RenderConfig,
}

impl Renderer {
    /// A renderer with these settings.
    ///
    /// # Errors
    /// Where a setting is out of range.
    pub fn new(config: RenderConfig) -> Result<Self, RenderError> {
        if !(4..=64).contains(&config.lattice_px) {
            return Err(RenderError::Config { key: "lattice_px", got: config.lattice_px, wanted: "4 .. 64" });
        }
        if ![1, 2, 4].contains(&config.seam_sharpness) {
            return Err(RenderError::Config { key: "seam_sharpness", got: config.seam_sharpness, wanted: "1, 2 or 4" });
        }
        if !(16..=4096).contains(&config.clahe.cell_px) {
            return Err(RenderError::Config { key: "clahe.cell_px", got: config.clahe.cell_px, wanted: "16 .. 4096" });
        }
        if !config.clahe.clip.is_finite() || config.clahe.clip < 1.0 {
            let got = config.clahe.clip as u32;
            return Err(RenderError::Config { key: "clahe.clip", got, wanted: "1 or more" });
        }
        Ok(Self { config })
    }

    /// The same without equalised contrast.
    #[must_use]
    pub fn plain(&self) -> Self {
        let clahe = ClaheConfig { enabled: false, ..self.config.clahe.clone() };
        Self { config: RenderConfig { clahe, ..self.config.clone() } }
    }

    /// What of the reduced target decides about the pixels of `block`: the block, or more where contrast is equalised.
    pub fn reach(&self, block: BoxXy, reduction: u32) -> BoxXy {
        let clahe = &self.config.clahe;
        if clahe.enabled { clahe.reach(block, reduction) } else { block }
    }

    /// Keys, sorted, of the tiles that may cover a part of `block` (pixels of the target reduced `reduction` times).
    pub fn plan_tiles(&self, block: BoxXy, reduction: u32, placed: &[PlacedTile]) -> Vec<TileKey> {
        let block = self.reach(block, reduction);
        let touched = placed.iter().filter(|p| p.bounds(reduction).intersect(&block).is_some());
        touched.map(|p| p.key).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The rectangle of the reduced target that `placed` may cover, `None` where there is no tile.
    pub fn extent(&self, reduction: u32, placed: &[PlacedTile]) -> Option<BoxXy> {
        placed.iter().map(|p| p.bounds(reduction)).reduce(|a, b| a.union(&b))
    }

    /// The image of `block`, rows first, from the tiles that [`plan_tiles`](Self::plan_tiles) names (more do no harm).
    ///
    /// `block` is in pixels of the target reduced `reduction` (1 or more) times. 0 where no tile covers.
    ///
    /// # Errors
    /// Where an image does not fit its tile, a tile comes twice, or a map folds.
    pub fn render_block(
        &self,
        block: BoxXy,
        reduction: u32,
        tiles: &[(PlacedTile, Pixels)],
    ) -> Result<Array2<u8>, RenderError> {
        let reduction = reduction.max(1);
        if !self.config.clahe.enabled {
            return self.drawn(block, reduction, tiles);
        }
        let drawn = self.drawn(self.reach(block, reduction), reduction, tiles)?;
        Ok(self.config.clahe.equalise(drawn.view(), block, reduction))
    }

    /// A block as the tiles show it.
    fn drawn(&self, block: BoxXy, reduction: u32, tiles: &[(PlacedTile, Pixels)]) -> Result<Array2<u8>, RenderError> {
        let size = block.size();
        let mut out = Array2::<u8>::zeros((size.y, size.x));
        let mut order: Vec<&(PlacedTile, Pixels)> = tiles.iter().collect();
        order.sort_by_key(|(p, _)| p.key);
        check(&order)?;
        if size.x == 0 || size.y == 0 {
            return Ok(out);
        }
        let sources: Result<Vec<Option<warp::Source<'_>>>, RenderError> = order
            .into_par_iter()
            .map(|(p, pixels)| warp::Source::new(p, pixels, block, reduction, &self.config))
            .collect();
        let sources = sources?;
        let values = out.as_slice_mut().expect("a new array is contiguous");
        values.par_chunks_mut(size.x * warp::STRIP_ROWS).enumerate().for_each(|(i, rows)| {
            let top = block.min.y + (i * warp::STRIP_ROWS) as i64;
            let bottom = top + (rows.len() / size.x) as i64;
            let strip = BoxXy { min: Xy::new(block.min.x, top), max: Xy::new(block.max.x, bottom) };
            wide(warp::Strip { area: strip, sources: &sources, out: rows });
        });
        Ok(out)
    }
}

/// Refuses images that do not fit and keys that come twice; `order` is sorted by key.
fn check(order: &[&(PlacedTile, Pixels)]) -> Result<(), RenderError> {
    for (p, pixels) in order {
        if (pixels.width(), pixels.height()) != (p.size.x as usize, p.size.y as usize) {
            return Err(RenderError::WrongSize {
                key: p.key,
                got_width: pixels.width(),
                got_height: pixels.height(),
                width: p.size.x,
                height: p.size.y,
            });
        }
    }
    match order.windows(2).find(|w| w[0].0.key == w[1].0.key) {
        Some(w) => Err(RenderError::Twice { key: w[0].0.key }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
