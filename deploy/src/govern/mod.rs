//! The head's governor at work: a thread that reads the buffers, steps the ladder of `backpressure` and sets the line's gate.
//!
//! ```text
//!  budget lines ─┐                       ┌─► gate of the line: flood, provisional labels, archive
//!  line, labels ─┼─► Governor::step ─────┼─► DIR/events.jsonl, log
//!  scope's spool ┘     every tick        └─► metrics, report
//! ```
//! Decisions, and why:
//! * The memory edges (`ingest`, `inspected`) are watched and ask for nothing: they are full whenever the link is faster than
//!   the disk, which is no fault. What counts is where bytes pile up for long: the scope's spool and the line.
//! * The scope's spool asks for `StitchOnly` at most: compute is then free to take tiles. Taking none would fill it.
//! * Whatever ends this thread, the gate is left open.

mod config;
mod line;
mod scope;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kinesin_backpressure::Budget;
use kinesin_backpressure::governor::{Change, Figures, Governor, Reading, Rung};
use kinesin_stages::pipeline::{Gate, Telemetry};
use serde::Serialize;

pub use config::{Drill, GovernSection};
pub(crate) use line::LineProgress;
pub use scope::ScopeReport;
pub(crate) use scope::{ScopeGovernor, spool_reading};

use crate::events::{Event, EventLog};
use crate::metrics;

/// More changes than this are counted, not listed, in the report; `events.jsonl` has them all.
const LISTED: usize = 200;

/// What the thread reads and moves.
pub(crate) struct Governed {
    pub(crate) config: GovernSection,
    /// Whether the ladder moves; else it is only watched.
    pub(crate) on: bool,
    pub(crate) sections: u32,
    /// Bytes of a section's tiles, and of its labels.
    pub(crate) section_bytes: (u64, u64),
    pub(crate) budget: Budget,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) events: Arc<EventLog>,
    /// The scope's spool as it last said, where it did.
    pub(crate) spool: Box<dyn Fn() -> Option<Reading> + Send>,
    /// Everything else that the metrics show, each tick.
    pub(crate) sample: Box<dyn Fn() + Send>,
}

/// The governor's part of the report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GovernorReport {
    /// Whether the ladder could move.
    pub on: bool,
    /// Changes of mode.
    pub changes_total: u64,
    /// The first of them.
    pub changes: Vec<ModeChange>,
    /// Seconds in each mode.
    pub seconds: BTreeMap<String, f64>,
    /// Sections that got provisional labels.
    pub provisional_sections: u64,
    /// Most bytes that waited in each buffer.
    pub most_held: BTreeMap<String, u64>,
    /// The scope's side, where it ran in this process.
    pub scope: Option<ScopeReport>,
}

/// A change of mode.
#[derive(Clone, Debug, Serialize)]
pub struct ModeChange {
    /// Seconds since the start.
    pub at_seconds: f64,
    /// Before.
    pub from: Rung,
    /// After.
    pub to: Rung,
    /// The buffer that asked for it.
    pub cause: String,
    /// That buffer.
    pub figures: Figures,
}

/// The running thread.
pub(crate) struct GovernThread {
    done: Arc<AtomicBool>,
    thread: JoinHandle<GovernorReport>,
}

impl GovernThread {
    /// Starts the thread.
    pub(crate) fn start(governed: Governed) -> std::io::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let thread = std::thread::Builder::new().name("govern".into()).spawn(move || Loop::new(governed).run(&seen))?;
        Ok(Self { done, thread })
    }

    /// Ends it; gives what it did.
    pub(crate) fn end(self) -> GovernorReport {
        self.done.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_else(|_panic| {
            tracing::error!("the governor's thread panicked; the line went on at full");
            GovernorReport::default()
        })
    }
}

/// Opens the gate when the thread ends, however it ends.
struct Opened(Arc<Gate>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.set(Rung::Full);
    }
}

struct Loop {
    governed: Governed,
    governor: Governor,
    line: LineProgress,
    report: GovernorReport,
    rung: Rung,
    /// Whether the scope was there at the last look, and since when it is gone.
    scope_there: bool,
    scope_gone: Option<Instant>,
    started: Instant,
    ticked: Instant,
}

impl Loop {
    fn new(governed: Governed) -> Self {
        let governor = Governor::head(governed.config.ladder.clone());
        let report = GovernorReport { on: governed.on, ..GovernorReport::default() };
        let now = Instant::now();
        Self {
            governed,
            governor,
            line: LineProgress::default(),
            report,
            rung: Rung::Full,
            scope_there: false,
            scope_gone: None,
            started: now,
            ticked: now,
        }
    }

    fn run(mut self, done: &AtomicBool) -> GovernorReport {
        let _open = Opened(self.governed.gate.clone());
        let tick = Duration::from_secs_f64(self.governed.config.tick_seconds);
        while !done.load(Ordering::Relaxed) {
            self.tick();
            std::thread::park_timeout(tick);
        }
        self.count_time();
        self.report.provisional_sections = self.governed.telemetry.provisional_sections();
        self.report
    }

    fn tick(&mut self) {
        self.count_time();
        let spool = (self.governed.spool)();
        self.watch_link(spool.is_some());
        let governed = &self.governed;
        self.line.advance(&governed.telemetry, governed.sections);
        let readings = self.readings(spool);
        for reading in &readings {
            let most = self.report.most_held.entry(reading.name.clone()).or_default();
            *most = (*most).max(reading.held);
        }
        let decision = self.governor.step(self.started.elapsed(), &readings);
        let change = if governed.config.drill.script.is_empty() { decision.change } else { self.rehearsed() };
        for reading in &readings {
            metrics::buffer(&reading.name, &self.governor.figures(reading));
        }
        // In a drill that is what has come and can be drawn: it must not wait for itself.
        let drill = !self.governed.config.drill.script.is_empty();
        self.governed.gate.takes(if drill { self.line.complete == self.line.drawn } else { decision.takes });
        if let Some(change) = change.filter(|_| self.governed.on) {
            self.change(change);
        }
        metrics::mode(self.rung);
        (self.governed.sample)();
    }

    /// Time in the mode since the last look; all of it at full once the input has ended.
    fn count_time(&mut self) {
        let now = Instant::now();
        let rung = if self.governed.gate.is_ended() { Rung::Full } else { self.rung };
        let seconds = now.duration_since(self.ticked).as_secs_f64();
        *self.report.seconds.entry(rung.name().into()).or_default() += seconds;
        self.ticked = now;
    }

    fn watch_link(&mut self, there: bool) {
        if there == std::mem::replace(&mut self.scope_there, there) {
            return;
        }
        if there {
            if let Some(since) = self.scope_gone.take() {
                self.governed.events.note(Event::LinkBack { after_seconds: since.elapsed().as_secs_f64() });
            }
        } else if self.line.complete < self.governed.sections {
            self.scope_gone = Some(Instant::now());
            self.governed.events.note(Event::LinkLost);
        }
    }

    fn readings(&self, spool: Option<Reading>) -> Vec<Reading> {
        let governed = &self.governed;
        let (tiles, labels) = governed.section_bytes;
        let mut readings: Vec<Reading> = governed
            .budget
            .lines()
            .into_iter()
            .filter(|line| ["ingest", "inspected"].contains(&line.name.as_str()))
            .map(|line| Reading {
                held: line.held.0,
                capacity: line.capacity.0,
                in_total: line.in_bytes_total,
                out_total: line.out_bytes_total,
                lump: 0,
                deepest: Rung::Full,
                name: line.name,
            })
            .collect();
        readings.push(self.line.line(tiles, governed.config.backlog(tiles)));
        if labels > 0 {
            readings.push(self.line.labels(labels, governed.config.labels_backlog.map(|b| b.0.max(2 * labels))));
        }
        readings.extend(spool);
        readings
    }

    /// The mode of the drill.
    fn rehearsed(&self) -> Option<Change> {
        let script = &self.governed.config.drill.script;
        let to = script.iter().rfind(|(from, _)| *from <= self.line.drawn)?.1;
        let stayed_seconds = 0.0;
        let figures = Figures::default();
        (to != self.rung).then(|| Change { from: self.rung, to, cause: "drill".into(), figures, stayed_seconds })
    }

    fn change(&mut self, change: Change) {
        let Change { from, to, cause, figures, stayed_seconds } = change;
        self.rung = to;
        self.governed.gate.set(to);
        metrics::changed(to);
        self.report.changes_total += 1;
        if self.report.changes.len() < LISTED {
            let at_seconds = self.started.elapsed().as_secs_f64();
            self.report.changes.push(ModeChange { at_seconds, from, to, cause: cause.clone(), figures });
        }
        self.governed.events.note(Event::Mode { from, to, cause, figures, stayed_seconds });
    }
}

impl GovernorReport {
    /// One line for people; none where nothing happened.
    pub fn line(&self) -> Option<String> {
        let scope = self.scope.as_ref().filter(|s| s.changes_total > 0).map_or(String::new(), |s| {
            let (lost, slowest) = (s.seconds_lost, 100.0 * s.slowest);
            format!("; the scope gave up {lost:.0} s of its speed, slowest {slowest:.0} %")
        });
        if self.changes_total == 0 && scope.is_empty() {
            return None;
        }
        let modes: Vec<String> = Rung::ALL
            .iter()
            .filter_map(|r| Some((r, self.seconds.get(r.name())?)))
            .map(|(r, s)| format!("{s:.0} s {}", r.name().replace('_', " ")))
            .collect();
        let (changes, light) = (self.changes_total, self.provisional_sections);
        Some(format!(
            "modes      {changes} changes: {}; {light} sections with provisional labels{scope}",
            modes.join(", ")
        ))
    }
}
