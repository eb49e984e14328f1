//! Flood filling: a network grows one object at a time from a start point, block by block in a window that rolls along z.
//!
//! Method: Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
//! Methods 2018, doi 10.1038/s41592-018-0049-4. In f32 the walk of one block equals the published implementation voxel for
//! voxel (tested on a crop of FIB-25). Axes z, y, x.
//!
//! | file, in the order of the flow | holds |
//! |---|---|
//! | `config` | windows, blocks and options ([`FloodConfig`]); `rules` thresholds and moves ([`FloodRules`]) |
//! | `sections` | a section as it comes ([`FloodSection`]): `histogram` matches its grey values, `masks` keep voxels out |
//! | `window` | the window that rolls ([`RollingFlood`]); `blocks` cuts it and puts it together again |
//! | `policies` | where objects may start ([`SeedPolicy`]): `seeds` (with `filters`, `distance`, `noise`), in the order of `queue` |
//! | `canvas` | one block as a state machine ([`Canvas`]); `entries` finds where known objects go on; `checkpoint` keeps it half done |
//! | `schedule` | which positions are run through the network ([`Schedule`]) |
//! | `drive` | canvases through a network ([`drive`]) |
//! | `counters`, `ids` | what was counted; label ids that say where they were made |
//! | `store` | where half-done blocks are kept ([`BlockStore`]) |

mod blocks;
mod canvas;
mod config;
mod counters;
mod distance;
mod drive;
mod entries;
mod filters;
mod histogram;
pub mod ids;
mod masks;
mod noise;
mod policies;
mod queue;
mod rules;
mod schedule;
mod sections;
mod seeds;
mod store;
mod window;

pub use self::canvas::{Canvas, CanvasInput, CanvasResult, CheckpointError, Keeper, KnownOverlap, NO_MOVE, NO_START};
pub use self::config::{FloodConfig, FloodPlan, Span};
pub use self::counters::{FloodCounters, Origin};
pub(crate) use self::distance::distance;
pub use self::drive::{DriveError, Watch, drive};
pub use self::histogram::HistogramRule;
pub use self::masks::{KeptFrom, MaskRule, ShiftRule};
pub use self::policies::SeedPolicy;
pub use self::queue::SeedRound;
pub use self::rules::{FloodRules, RuleConfig};
pub use self::schedule::{Schedule, ThriftyRule};
pub use self::sections::{FloodSection, LabelledSection};
pub use self::seeds::{empty_peaks, peaks, section_peaks};
pub use self::store::{BlockKey, BlockStore};
pub use self::window::{FloodError, ObjectOrigin, RollingFlood, WindowResult};

#[cfg(test)]
mod tests;
