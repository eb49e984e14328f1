//! The picture, wired: the only place where stages are joined.
//!
//! ```text
//! link ─ingest─► inspect ─inspected─► archive ─stored─► gather ─pairs─► match ─matched─► montage ─montaged─► align
//!        pixels            pixels              records          records         records           records      │ aligned
//!                                                                                                              ▼ records
//!                 publish ◄──── flood, agglomerate ◄─masked─ mask ◄─rendered─ render ◄─────────────────────────┘
//! ```
//! Pixels are on the two first edges only. From the archive on, edges carry ids and records; whoever needs pixels reads them
//! back by id, within the bytes of its own pool. No edge leads back, every edge takes one item when it is empty, and no
//! box keeps a metered item between calls: so the last box can always finish, hence the one before it, hence all.
//!
//! Each box skips what `DIR` already holds, so the same wiring serves a new run, a restart and recorded data.

mod commits;
mod config;
mod front;
mod gather;
mod matching;
mod montaging;
mod rendering;
mod telemetry;
mod tiles;

pub use commits::{Commit, Commits};
pub use config::{EdgesConfig, MaskStage, SegmentStage, StagesConfig, VolumeConfig};
pub use front::Receipt;
pub use gather::{Closed, Gather, MfovDone};
pub use telemetry::{Moment, SectionTimes, StageName, StageRow, Telemetry};
pub use tiles::{SectionError, StoreError, TileStore, crop};
