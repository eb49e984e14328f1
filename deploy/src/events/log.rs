//! The file of events, and what of it an operator is told on the terminal.
//!
//! *Bounded.* Of each kind of event, [`BURST`] lines are written at once and one a second after that. What is beyond is counted,
//! and told as `held_back` when the kind is written again, and at the end. Tiles are in the ledger in any case.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kinesin_stream::fault_points::WallClock;
use serde::{Deserialize, Serialize};

use super::{Event, Weight};

/// Lines of one kind that are written at once.
const BURST: f64 = 600.0;
/// Between two lines of one kind on the terminal, where they ask for somebody.
const TERMINAL: Duration = Duration::from_secs(60);

/// The file, shared by whoever has something to tell.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: Mutex<Lines>,
    clock: WallClock,
    began: Instant,
}

#[derive(Debug)]
struct Lines {
    file: File,
    kinds: BTreeMap<&'static str, Kind>,
}

/// What was told of one kind of event. Times since the log was opened.
#[derive(Debug)]
struct Kind {
    room: f64,
    at: Duration,
    held_back: u64,
    shown: Option<Duration>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) at_unix_ms: u64,
    #[serde(flatten)]
    pub(super) event: Event,
}

impl EventLog {
    /// Name of the file in the results' folder.
    pub const FILE: &str = "events.jsonl";

    /// Name of the scope's file, for a spool in the results' folder: see [`Self::beside`].
    pub const SCOPE_FILE: &str = "spool.events.jsonl";

    /// Opens or begins the log of the results in `out`.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn open(out: &Path, clock: WallClock) -> std::io::Result<Self> {
        Self::at(out.join(Self::FILE), clock)
    }

    /// Opens or begins the log of a scope without a head: `NAME.events.jsonl` beside its spool, which goes when it is empty.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn beside(spool: &Path, clock: WallClock) -> std::io::Result<Self> {
        let mut name = spool.file_name().unwrap_or("spool".as_ref()).to_owned();
        name.push(".");
        name.push(Self::FILE);
        let path = spool.with_file_name(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Self::at(path, clock)
    }

    fn at(path: PathBuf, clock: WallClock) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(&path)?;
        let text = std::fs::read(&path)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        let file = Mutex::new(Lines { file, kinds: BTreeMap::new() });
        Ok(Self { path, file, clock, began: Instant::now() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes an event. A log that cannot be written is told in the program's log; the run goes on, since its results do not
    /// depend on it.
    pub fn note(&self, event: Event) {
        let now = self.began.elapsed();
        let mut lines = self.lock();
        let kind = lines.kinds.entry(event.kind()).or_insert_with(|| Kind::new(now));
        let (weight, held_back) = (event.weight(), kind.write(now));
        match weight {
            Weight::Counted if kind.shown.is_some() => tracing::debug!("{event}"),
            Weight::Counted => tracing::warn!("{event}; more of these are only counted, see {}", self.path.display()),
            Weight::Action if !kind.is_due(now) => tracing::debug!("{event}"),
            Weight::Action => tracing::warn!("{event}"),
            Weight::Loss if !kind.is_due(now) => tracing::debug!("{event}"),
            Weight::Loss => tracing::error!("{event}"),
            Weight::Course => tracing::info!("{event}"),
        }
        if weight != Weight::Course && kind.is_due(now) {
            kind.shown = Some(now);
        }
        let Some(held_back) = held_back else { return };
        if held_back > 0 {
            self.write(&mut lines, Event::HeldBack { kind: event.kind().into(), lines: held_back });
        }
        self.write(&mut lines, event);
    }

    fn write(&self, lines: &mut Lines, event: Event) {
        let row = Row { at_unix_ms: self.clock.unix_ms(), event };
        let mut line = serde_json::to_vec(&row).expect("plain numbers and text");
        line.push(b'\n');
        // One write a line: a kill cuts the last line at most.
        if let Err(error) = lines.file.write_all(&line) {
            tracing::error!("cannot write {}: {error}; the event is only here: {:?}", self.path.display(), row.event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EventLog {
    /// Tells what was held back last.
    fn drop(&mut self) {
        let mut lines = self.lock();
        let left: Vec<_> = lines.kinds.iter().map(|(kind, k)| (*kind, k.held_back)).filter(|(_, n)| *n > 0).collect();
        for (kind, n) in left {
            self.write(&mut lines, Event::HeldBack { kind: kind.into(), lines: n });
        }
    }
}

impl Kind {
    fn new(now: Duration) -> Self {
        Self { room: BURST, at: now, held_back: 0, shown: None }
    }

    /// Whether a line may be written: then how many were held back before it.
    fn write(&mut self, now: Duration) -> Option<u64> {
        self.room = (self.room + now.saturating_sub(self.at).as_secs_f64()).min(BURST);
        self.at = now;
        if self.room < 1.0 {
            self.held_back += 1;
            return None;
        }
        self.room -= 1.0;
        Some(std::mem::take(&mut self.held_back))
    }

    /// Whether the terminal shows it again.
    fn is_due(&self, now: Duration) -> bool {
        self.shown.is_none_or(|at| now.saturating_sub(at) >= TERMINAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<Event> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| serde_json::from_str::<Row>(l).unwrap().event).collect()
    }

    fn loss(n: u64) -> Event {
        Event::TileLost { mfov: format!("mFOV {n}"), tiles: vec!["a.bmp".into()], reason: "beam off".into() }
    }

    #[test]
    fn events_are_lines_that_read_back_and_a_restart_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let open = || EventLog::open(dir.path(), WallClock::default()).unwrap();
        open().note(loss(2));
        let path = dir.path().join(EventLog::FILE);
        let torn = [std::fs::read(&path).unwrap(), b"{\"at_un".to_vec()].concat();
        std::fs::write(&path, torn).unwrap();
        open().note(Event::LinkLost);
        assert_eq!(read(&path), [loss(2), Event::LinkLost]);
    }

    #[test]
    fn a_flood_of_one_kind_is_counted_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("deep/spool");
        let log = EventLog::beside(&spool, WallClock::default()).unwrap();
        (0..5000).for_each(|n| log.note(loss(n)));
        log.note(Event::LinkLost);
        drop(log);
        let events = read(&dir.path().join("deep/spool.events.jsonl"));
        let lost = events.iter().filter(|e| e.kind() == "tile_lost").count();
        let held = events.iter().map(|e| if let Event::HeldBack { lines, .. } = e { *lines } else { 0 }).sum::<u64>();
        assert_eq!(lost as u64 + held, 5000);
        assert!(lost >= 600 && held > 0, "{lost} written, {held} held back");
        assert!(events.contains(&Event::LinkLost));
    }

    #[test]
    fn lines_come_back_one_a_second_and_the_terminal_shows_one_a_minute() {
        let s = Duration::from_secs;
        let mut kind = Kind::new(s(0));
        assert_eq!((0..1000).filter(|_| kind.write(s(0)).is_some()).count(), 600);
        assert_eq!((kind.write(s(1)), kind.write(s(1)), kind.write(s(2))), (Some(400), None, Some(1)));
        assert!(kind.is_due(s(2)));
        kind.shown = Some(s(2));
        assert!(!kind.is_due(s(61)) && kind.is_due(s(62)));
    }
}
