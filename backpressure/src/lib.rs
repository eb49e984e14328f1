//! Everything that may say "not yet".
//!
//! | module | holds |
//! |---|---|
//! | [`size`] | [`Bytes`] and [`Cost`]: how much memory an item keeps alive |
//! | [`budget`] | [`Budget`]: the sheet of named lines, what each holds now and held at most |
//! | [`credit`] | [`Pool`] and [`Credit`]: leases on memory, granted first come first served |
//! | [`disk`] | [`DiskLimits`]: a share of a disk, or a slower one, for fault scenarios |
//! | [`edge`](mod@edge) | [`edge()`]: a queue bounded in bytes between two boxes of the picture |
//! | [`governor`] | [`Governor`]: from depths and rates to how much is done and how fast the instrument goes |
//! | [`spool`] | [`Spool`](spool::Spool): what waits on disk, checksummed and crash-safe, bounded in bytes |
//!
//! ```text
//!  Sender ──lease──► │ waiting │ ──► Receiver ──► Metered<T> ── last clone drops ──► bytes return to the edge
//!                    └──────── capacity covers both ────────┘
//! ```
//!
//! # Why nothing can deadlock
//! 1. The forward path of the picture has no cycle: a box waits only for boxes after it.
//! 2. An item larger than its edge is granted when the edge holds nothing else. A single item therefore never waits for
//!    more than the box after it to finish what it has; the overshoot shows in the report as a peak above the capacity.
//! 3. No box keeps a [`Metered`] between two calls, and none leases twice before it gives back: nobody holds and waits,
//!    except for the edge in front of him.
//! 4. Leases are granted in the order of asking, so a large request is not passed over for ever by small ones.
//!
//! Hence the last box can always finish its item; then the one before it can send; and so on back to the instrument.
//!
//! # Stopping
//! *Drain*: the source ends, senders drop, each `recv` returns `None` once its edge is empty. *Abort*: [`Budget::stop`]
//! closes every edge and pool at once; each waiting call returns. Who must tell the two apart asks [`Budget::is_stopped`].
//!
//! Absent on purpose: threads and tasks (the runner in `stream` makes them), microscopy.

mod block;
pub mod budget;
pub mod credit;
pub mod disk;
pub mod edge;
pub mod governor;
pub mod size;
pub mod spool;

pub use budget::{Budget, LineReport};
pub use credit::{Credit, Pool};
pub use disk::DiskLimits;
pub use edge::{Closed, Metered, Receiver, Sender, Slot, edge};
pub use governor::Governor;
pub use size::{Bytes, Cost, ParseBytesError};
