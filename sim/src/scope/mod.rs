//! The simulated many-beam scope: an instrument with known truth.
//!
//! ```text
//!   tile px ──────────► section px ─────────────────────────────► volume px ──────► tissue voxel ──► grey ──► tile
//!      lens, scan start,     fold, crack undone;                     pixel size      bilinear       focus, contrast,
//!      affine, beam, stage   rotation, shift, smooth deformation     over voxel size                noise
//!      [optics]              [section], [damage]                                     [plane]        [exposure]
//! ```
//! Tiles are sampled through the exact composed map, pixel by pixel. Frames: *section px* is where the scope believes things
//! to be (nominal positions lie in it); *volume px* is the tissue in pixels of the scope, origin at the tissue's first voxel
//! (at equal sizes the two are the same); a section without any error has volume px = section px. Pixel centres are whole
//! numbers throughout.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | every setting, with its reason |
//! | [`source`] | grown or recorded tissue; errors |
//! | [`layout`] | hexagons of beams and of mFOVs; plans and names |
//! | [`section`], [`damage`] | what cutting and mounting did |
//! | `retakes` | which tiles are taken again, when, and what spoiled them |
//! | [`scene`] | all of it as functions of the settings: any tile alone, in any order |
//! | [`instrument`] | the [`Instrument`](kinesin_acquire::instrument::Instrument): pace, hold, late and doubled tiles |

mod check;
pub mod config;
pub mod damage;
mod draw;
mod exposure;
pub mod instrument;
pub mod layout;
mod optics;
mod plane;
mod retakes;
pub mod scene;
pub mod section;
pub mod source;
mod transport;

pub use config::SimConfig;
pub use instrument::SimulatedScope;
pub use scene::Scene;
pub use source::{SimError, TissueSource};

#[cfg(test)]
pub(crate) mod tests;
