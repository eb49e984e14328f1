//! What the line does now, as the governor says, and the sections that wait for their full labels meanwhile.
//!
//! ```text
//!  masked ──► provisional ──► waiting sections ──► flood
//!              labels_light      (z only)       goes on while the gate is at Full,
//!             at LighterSegmentation            or once no section is to come
//! ```
//! A gate delays work, it never changes what work is done: the full flood sees the same sections in the same order, so the
//! bytes of `volume/labels` do not depend on load. A section that waits is one number; its pixels are in the volume.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kinesin_backpressure::governor::Rung;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;

/// How often a waiting box looks whether the run was stopped.
const LOOK: Duration = Duration::from_millis(100);

/// Set by the governor's thread, obeyed by the boxes. At `Full` from the start, so that a line without a governor never waits.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rung: Rung,
    /// At `SpoolOnly`: that tiles are taken all the same, because the line has room.
    takes: bool,
    /// For drills: from this z on, this rung.
    script: Vec<(u32, Rung)>,
    /// For drills: from this z on, drawing a section takes this many milliseconds longer.
    slow_ms: Vec<(u32, u64)>,
    waiting: VecDeque<u32>,
    /// No section is to come: what was left out is done now.
    ended: bool,
}

impl Gate {
    /// The rung from now on.
    pub fn set(&self, rung: Rung) {
        self.lock().rung = rung;
        self.changed.notify_all();
    }

    /// Whether tiles are taken at `SpoolOnly` from now on.
    pub fn takes(&self, takes: bool) {
        self.lock().takes = takes;
        self.changed.notify_all();
    }

    /// The rung now; `Full` once no section is to come.
    pub fn rung(&self) -> Rung {
        let state = self.lock();
        if state.ended { Rung::Full } else { state.rung }
    }

    /// For drills: sections from each z on are segmented as if the governor were at this rung then, whenever they come.
    pub fn rehearse(&self, script: Vec<(u32, Rung)>) {
        self.lock().script = script;
    }

    /// For drills: drawing a section takes this many milliseconds longer, from each z on.
    pub fn slow_down(&self, slow_ms: Vec<(u32, u64)>) {
        self.lock().slow_ms = slow_ms;
    }

    /// Whether every section has come through, so that nothing is held back any more.
    pub fn is_ended(&self) -> bool {
        self.lock().ended
    }

    /// Sections that wait for their full labels.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The rung that counts for section `z`: that of the script where there is one.
    pub(super) fn rung_of(&self, z: u32) -> Rung {
        let state = self.lock();
        let scripted = state.script.iter().rfind(|(from, _)| *from <= z).map(|(_, rung)| *rung);
        scripted.unwrap_or(state.rung)
    }

    /// Lets a section wait for the full flood.
    pub(super) fn defer(&self, z: u32) {
        self.lock().waiting.push_back(z);
        self.changed.notify_all();
    }

    /// No section is to come: everything left out is done now.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The next section for the full flood, once it may go on; `None` when there are no more.
    pub(super) fn next(&self, run: &RunToken) -> Result<Option<u32>, StopError> {
        let mut state = self.lock();
        loop {
            run.check()?;
            if state.ended || state.rung == Rung::Full {
                match state.waiting.pop_front() {
                    Some(z) => return Ok(Some(z)),
                    None if state.ended => return Ok(None),
                    None => {}
                }
            }
            state = self.wait(state);
        }
    }

    /// Waits while the full flood is to pause; gives the time spent here.
    pub(super) fn pause(&self, run: &RunToken) -> Duration {
        let mut state = self.lock();
        if state.ended || state.rung == Rung::Full {
            return Duration::ZERO;
        }
        let began = Instant::now();
        while !(state.ended || state.rung == Rung::Full || run.is_stopped()) {
            state = self.wait(state);
        }
        began.elapsed()
    }

    /// For drills: takes the time that drawing section `z` takes longer.
    pub(super) fn linger(&self, z: u32, run: &RunToken) {
        let began = Instant::now();
        let mut state = self.lock();
        let Some((_, ms)) = state.slow_ms.iter().rfind(|(from, _)| *from <= z).copied() else { return };
        while began.elapsed() < Duration::from_millis(ms) && !run.is_stopped() {
            state = self.wait(state);
        }
    }

    /// Waits while the head is to take no tiles.
    pub(super) fn take_tiles(&self, run: &RunToken) {
        let mut state = self.lock();
        while state.rung >= Rung::SpoolOnly && !state.takes && !run.is_stopped() {
            state = self.wait(state);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// A poisoned lock still guards good data: each critical section is one assignment or push.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kinesin_backpressure::Budget;
    use kinesin_stream::runner::Runner;

    use super::*;

    #[test]
    fn paused_sections_come_in_order_once_the_line_has_ended() {
        let (gate, runner) = (Arc::new(Gate::default()), Runner::new(&Budget::new()));
        gate.set(Rung::StitchOnly);
        (0..4).for_each(|z| gate.defer(z));
        assert_eq!(gate.waiting(), 4);
        let (seen, at) = (Arc::new(Mutex::new(Vec::new())), gate.clone());
        let sink = seen.clone();
        runner.spawn("flood", move |run| {
            while let Some(z) = at.next(run)? {
                sink.lock().unwrap().push((z, at.is_ended()));
            }
            Ok(())
        });
        gate.end();
        runner.join().expect("ended");
        assert_eq!(*seen.lock().unwrap(), [(0, true), (1, true), (2, true), (3, true)]);
        assert_eq!(gate.rung(), Rung::Full);
    }

    #[test]
    fn a_stopped_run_wakes_whoever_waits_at_the_gate() {
        let (gate, runner) = (Arc::new(Gate::default()), Runner::new(&Budget::new()));
        gate.set(Rung::SpoolOnly);
        let (a, b, c) = (gate.clone(), gate.clone(), gate);
        runner.spawn("flood", move |run| a.next(run).map(drop));
        runner.spawn("network", move |run| {
            b.pause(run);
            Ok(run.check()?)
        });
        runner.spawn("archive", move |run| {
            c.take_tiles(run);
            Ok(run.check()?)
        });
        runner.stop_handle().stop("enough");
        assert!(runner.join().is_err(), "the stop is told");
    }

    #[test]
    fn a_script_says_what_counts_for_each_section() {
        let gate = Gate::default();
        gate.rehearse(vec![(3, Rung::LighterSegmentation), (5, Rung::Full)]);
        let rungs: Vec<Rung> = (2..6).map(|z| gate.rung_of(z)).collect();
        assert_eq!(rungs, [Rung::Full, Rung::LighterSegmentation, Rung::LighterSegmentation, Rung::Full]);
    }
}
