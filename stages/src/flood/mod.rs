//! Flood filling: a network grows one object at a time from a start point, block by block in a window that rolls along z.
//!
//! Method: Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
//! Methods 2018, doi 10.1038/s41592-018-0049-4. In f32 the walk of one block equals the published implementation voxel for
//! voxel (tested on a crop of FIB-25). Axes z, y, x.
//!
//! | file | holds |
//! |---|---|
//! | `seeds` | where objects may start ([`peaks`]); `filters`, `distance`, `noise` are its parts |
//! | `rules` | thresholds and moves ([`FloodRules`]) |
//! | `canvas` | one block as a state machine ([`Canvas`]); `entries` finds where known objects go on |
//! | `drive` | canvases through a network ([`drive`]) |
//! | `config` | windows and blocks ([`FloodConfig`]) |
//! | `window` | the rolling window ([`RollingFlood`]); `blocks` cuts it and puts it together again |
//! | `ids` | label ids that say where they were made |

mod blocks;
mod canvas;
mod config;
mod distance;
mod drive;
mod entries;
mod filters;
pub mod ids;
mod noise;
mod rules;
mod seeds;
mod window;

pub use self::canvas::{Canvas, CanvasInput, CanvasResult, FloodCounters, KnownOverlap};
pub use self::config::{FloodConfig, FloodPlan, Span};
pub use self::drive::{DriveError, Watch, drive};
pub use self::rules::FloodRules;
pub use self::seeds::peaks;
pub use self::window::{FloodError, FloodSection, LabelledSection, RollingFlood, WindowResult};

#[cfg(test)]
mod tests;
