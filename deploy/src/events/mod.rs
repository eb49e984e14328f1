//! `DIR/events.jsonl`: what an operator wants to know afterwards, one line an event, in the order in which it happened.
//!
//! ```text
//! {"at_unix_ms":1790000000000,"event":"mode","from":"full","to":"lighter_segmentation","cause":"line","figures":{...},...}
//! ```
//! Appended to, never rewritten; a restart takes off what a power cut left of the last line and goes on in the same file. Bytes, bytes a second, seconds. The same events go to the
//! log of the program: losses as errors, what lowers the work or the pace as warnings, the rest as information.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kinesin_backpressure::governor::{Figures, Rung};
use kinesin_stream::fault_points::WallClock;
use serde::{Deserialize, Serialize};

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
    /// A promised tile will never come.
    TileLost {
        /// Which.
        tile: String,
        /// Why.
        reason: String,
    },
    /// A tile came again and was dropped.
    TileDuplicate {
        /// Which.
        tile: String,
        /// Whether it was the same image.
        same: bool,
    },
    /// A tile came that nobody promised.
    TileForeign {
        /// Which.
        tile: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    at_unix_ms: u64,
    #[serde(flatten)]
    event: Event,
}

/// The file, shared by whoever has something to tell.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: Mutex<File>,
    clock: WallClock,
}

impl EventLog {
    /// Name of the file in the results' folder.
    pub const FILE: &str = "events.jsonl";

    /// Opens or begins the log of the results in `out`.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn open(out: &Path, clock: WallClock) -> std::io::Result<Self> {
        let path = out.join(Self::FILE);
        let file = File::options().create(true).append(true).open(&path)?;
        let text = std::fs::read(&path)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        Ok(Self { path, file: Mutex::new(file), clock })
    }

    /// Notes an event. A log that cannot be written is told in the program's log; the run goes on, since its results do not
    /// depend on it.
    pub fn note(&self, event: Event) {
        tell(&event);
        let row = Row { at_unix_ms: self.clock.unix_ms(), event };
        let mut line = serde_json::to_vec(&row).expect("plain numbers and text");
        line.push(b'\n');
        // One write a line: a kill cuts the last line at most.
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        if let Err(error) = written {
            tracing::error!("cannot write {}: {error}; the event is only here: {:?}", self.path.display(), row.event);
        }
    }
}

/// Has it in the program's log.
pub(crate) fn tell(event: &Event) {
    match event {
        Event::ComingLoss { buffer, in_seconds, bytes_per_minute, .. } => tracing::error!(
            buffer,
            in_seconds,
            bytes_per_minute,
            "data will be lost: the instrument cannot be held and its buffer overflows; stop it by hand or free space"
        ),
        Event::TileLost { tile, reason } => tracing::error!(tile, reason, "tile lost"),
        Event::Mode { from, to, cause, figures, .. } if to > from => {
            tracing::warn!(from = from.name(), to = to.name(), cause, ?figures, "less is done");
        }
        Event::Mode { from, to, cause, figures, .. } => {
            tracing::info!(from = from.name(), to = to.name(), cause, ?figures, "more is done");
        }
        Event::Pace { from, to, cause, figures } if to < from => {
            tracing::warn!(from, to, cause, ?figures, "the instrument is slowed");
        }
        Event::ScopeHeld { why, held, capacity } => tracing::warn!(why, held, capacity, "the instrument is held"),
        Event::Hook { said, works: false } => tracing::warn!("{said}"),
        Event::LinkLost => tracing::warn!("no scope is connected"),
        Event::TileForeign { tile } => tracing::warn!(tile, "a tile came that nobody promised"),
        other => tracing::info!(?other, "event"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_that_read_back_and_a_restart_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let loss = Event::TileLost { tile: "s1 m2 b3".into(), reason: "stage".into() };
        let open = || EventLog::open(dir.path(), WallClock::default()).unwrap();
        open().note(loss.clone());
        let path = dir.path().join(EventLog::FILE);
        let torn = [std::fs::read(&path).unwrap(), b"{\"at_un".to_vec()].concat();
        std::fs::write(&path, torn).unwrap();
        open().note(Event::LinkLost);
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<Row> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(rows.into_iter().map(|r| r.event).collect::<Vec<_>>(), [loss, Event::LinkLost]);
    }
}
