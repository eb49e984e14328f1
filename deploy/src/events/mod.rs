//! `DIR/events.jsonl`: what an operator wants to know afterwards, one line an event, in the order in which it happened.
//!
//! ```text
//! {"at_unix_ms":1790000000000,"event":"mode","from":"full","to":"lighter_segmentation","cause":"line","figures":{...},...}
//! ```
//! Appended to, never rewritten; a restart takes off what a power cut left of the last line and goes on in the same file. Bytes,
//! bytes a second, seconds. A scope without a head (`kinesin send`) has its own, beside its spool.
//!
//! The terminal shows what asks for a person, at most once a minute for each kind (`Weight`); of what the report counts it
//! shows the first. Repeated events are held down in two places: whoever finds them tells a tile that comes again and again more
//! and more rarely, and `log` bounds the lines of each kind.

mod log;
mod sources;

use std::fmt;

use kinesin_backpressure::Bytes;
use kinesin_backpressure::governor::{Figures, Rung};
use serde::{Deserialize, Serialize};

pub use log::EventLog;
pub(crate) use sources::{Sides, admission, hook, ledger};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The head does more or less from now on.
    Mode {
        /// Before.
        from: Rung,
        /// From now on.
        to: Rung,
        /// The buffer that asked for it, or `drill`.
        cause: String,
        /// That buffer.
        figures: Figures,
        /// Seconds in the mode before.
        stayed_seconds: f64,
    },
    /// The instrument goes faster or slower from now on, as a share of its own speed; 0 is held.
    Pace {
        /// Before.
        from: f64,
        /// From now on.
        to: f64,
        /// The buffer that asked for it.
        cause: String,
        /// That buffer.
        figures: Figures,
    },
    /// The instrument obeys nobody, and data will be lost.
    ComingLoss {
        /// The buffer that will overflow.
        buffer: String,
        /// In how many seconds.
        in_seconds: f64,
        /// Bytes lost in the first minute from then on.
        bytes_per_minute: u64,
        /// The buffer.
        figures: Figures,
    },
    /// What was announced will not happen.
    LossAverted {
        /// The buffer.
        buffer: String,
    },
    /// The spool has no room, and the instrument was asked to hold.
    ScopeHeld {
        /// Its capacity, or the disk.
        why: String,
        /// Bytes in it.
        held: u64,
        /// Bytes that it may hold.
        capacity: u64,
    },
    /// There is room again.
    ScopeGoes {
        /// Seconds for which it was held.
        after_seconds: f64,
    },
    /// What the hook to a real instrument did.
    Hook {
        /// In words.
        said: String,
        /// Whether it worked.
        works: bool,
    },
    /// No scope is connected.
    LinkLost,
    /// A scope is connected.
    LinkBack {
        /// Seconds without.
        after_seconds: f64,
    },
    /// There has been no room in the spool for a minute, or another one.
    SpoolFull {
        /// Its capacity, or the disk.
        why: String,
        /// Where it is.
        folder: String,
        /// Bytes in it.
        held: u64,
        /// Bytes that it may hold.
        capacity: u64,
        /// Seconds without room.
        since_seconds: f64,
    },
    /// The spool's disk has given tiles back damaged; they are lost.
    SpoolDamaged {
        /// How many so far.
        tiles: u64,
    },
    /// What a run before left in the spool is not whole: the end of what had not been synced was cut off, or records are
    /// damaged.
    SpoolCut {
        /// The file; where an end was cut off, the spool's folder.
        file: String,
        /// From which byte; 0 where an end was cut off.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// Whether they had been safe: then it is damage at rest.
        damaged: bool,
    },
    /// Promised tiles of an mFOV will never come.
    TileLost {
        /// Whose.
        mfov: String,
        /// Their file names.
        tiles: Vec<String>,
        /// Why, of all of them.
        reason: String,
    },
    /// Tiles of an mFOV came more than once; one of each is kept.
    TileDuplicate {
        /// Whose.
        mfov: String,
        /// Their file names.
        tiles: Vec<String>,
        /// How often with the same content, in all.
        same: u64,
        /// How often with other content, in all.
        other: u64,
    },
    /// A tile came that nobody promised; it is not kept.
    TileForeign {
        /// What it says it is.
        tile: String,
        /// At the head, how often it has come; at the scope, how many foreign tiles have come.
        times: u64,
    },
    /// Lines of a kind that were not written, because there were too many at once.
    HeldBack {
        /// Which kind.
        kind: String,
        /// How many.
        lines: u64,
    },
}

/// What an event asks of people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Data will be lost.
    Loss,
    /// Somebody should look.
    Action,
    /// It is in the progress line or the report.
    Counted,
    /// The course of the run.
    Course,
}

impl Event {
    /// Its name in the file.
    fn kind(&self) -> &'static str {
        match self {
            Self::Mode { .. } => "mode",
            Self::Pace { .. } => "pace",
            Self::ComingLoss { .. } => "coming_loss",
            Self::LossAverted { .. } => "loss_averted",
            Self::ScopeHeld { .. } => "scope_held",
            Self::ScopeGoes { .. } => "scope_goes",
            Self::Hook { works: true, .. } => "hook",
            Self::Hook { works: false, .. } => "hook_fails",
            Self::LinkLost => "link_lost",
            Self::LinkBack { .. } => "link_back",
            Self::SpoolFull { .. } => "spool_full",
            Self::SpoolDamaged { .. } => "spool_damaged",
            Self::SpoolCut { .. } => "spool_cut",
            Self::TileLost { .. } => "tile_lost",
            Self::TileDuplicate { .. } => "tile_duplicate",
            Self::TileForeign { .. } => "tile_foreign",
            Self::HeldBack { .. } => "held_back",
        }
    }

    fn weight(&self) -> Weight {
        match self {
            Self::ComingLoss { .. } => Weight::Loss,
            Self::SpoolFull { .. }
            | Self::SpoolDamaged { .. }
            | Self::SpoolCut { damaged: true, .. }
            | Self::Hook { works: false, .. }
            | Self::LinkLost => Weight::Action,
            Self::TileLost { .. } | Self::TileForeign { .. } | Self::ScopeHeld { .. } => Weight::Counted,
            _ => Weight::Course,
        }
    }
}

/// The first names, and how many more.
fn some(tiles: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = tiles.len().saturating_sub(SHOWN);
    let shown = tiles[..tiles.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

impl fmt::Display for Event {
    /// One line for people: what, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: &u64| Bytes(*bytes);
        match self {
            Self::Mode { from, to, cause, .. } => {
                write!(f, "{} from now on, {} before (asked for by {cause})", to.name(), from.name())
            }
            Self::Pace { to, cause, .. } if *to == 0.0 => write!(f, "the instrument is asked to hold (by {cause})"),
            Self::Pace { to, cause, .. } => {
                write!(f, "the instrument is asked for {:.0} % of its speed (by {cause})", 100.0 * to)
            }
            Self::ComingLoss { buffer, in_seconds, bytes_per_minute, .. } => write!(
                f,
                "DATA WILL BE LOST in {in_seconds:.0} s, {} a minute: the instrument cannot be held and {buffer} overflows; stop the instrument by hand, or let the head take tiles faster",
                size(bytes_per_minute)
            ),
            Self::LossAverted { buffer } => write!(f, "{buffer} will not overflow after all"),
            Self::ScopeHeld { why, held, capacity } => {
                write!(f, "the instrument is held: {why} ({} of {})", size(held), size(capacity))
            }
            Self::ScopeGoes { after_seconds } => write!(f, "the instrument goes on after {after_seconds:.1} s"),
            Self::Hook { said, .. } => f.write_str(said),
            Self::LinkLost => f.write_str("no scope is connected; tiles wait there until it is back"),
            Self::LinkBack { after_seconds } => write!(f, "the scope is back after {after_seconds:.1} s"),
            Self::SpoolFull { why, folder, held, capacity, since_seconds } => write!(
                f,
                "no room for {since_seconds:.0} s, the instrument waits: {why} ({folder}, {} of {}); free space there, or see whether the head takes tiles. It goes on by itself",
                size(held),
                size(capacity)
            ),
            Self::SpoolDamaged { tiles } => {
                write!(f, "{tiles} tiles came back damaged from the spool's disk and are lost; check that disk")
            }
            Self::SpoolCut { file, offset, bytes, damaged: true } => {
                write!(f, "{file}, byte {offset}: {bytes} bytes damaged at rest; check that disk")
            }
            Self::SpoolCut { file, bytes, .. } => {
                write!(
                    f,
                    "{file}: {bytes} bytes behind the last record were cut off: torn, or left from before; nothing that was told kept is in them"
                )
            }
            Self::TileLost { mfov, tiles, reason } => write!(f, "{mfov}: {} lost: {reason}", some(tiles)),
            Self::TileDuplicate { mfov, tiles, same, other } => write!(
                f,
                "{mfov}: {} came more than once ({same} the same, {other} other); one of each is kept",
                some(tiles)
            ),
            Self::TileForeign { tile, .. } => {
                write!(f, "{tile} came and nobody promised it; see whether the site file is that of this acquisition")
            }
            Self::HeldBack { kind, lines } => write!(f, "{lines} lines of kind {kind} were not written"),
        }
    }
}
