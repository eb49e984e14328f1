//! **publish**: the small files of a run, written whole or not at all. Pixels and labels are written by
//! [`kinesin_stream::volume`].
//!
//! ```text
//! DIR/sections/<z>/montage.json      Render TileSpec list with the solved transforms
//! DIR/sections/<z>/placements.json   {"tiles": {NAME: MAP}}: tile pixel to section pixel
//! DIR/sections/<z>/alignment.json    transform into the volume, residuals, verdict
//! DIR/sections/<z>/quality.json      per tile metrics and verdicts, doubtful overlaps
//! DIR/sections/<z>/matches.json      point matches, grey values of overlaps, measures: what a later version is solved from
//! DIR/sections/<z>/v<n>/..           those files after retakes, and revision.json: what changed against the version before
//! DIR/alignment.json                 {"direction": "forward", "sections": {NAME: MAP}}: section pixel to volume pixel
//! ```

mod files;
mod matches;
mod tilespec;

pub use files::{FileError, SectionFiles, read_json, write_json};
pub use matches::{RenderMatches, RenderPoints, render_matches};
pub use tilespec::{affine_of, tile_specs};
