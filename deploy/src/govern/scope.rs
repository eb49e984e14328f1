//! The scope's ladder at work: reads how full the spool is and says how fast the instrument shall go.
//!
//! A task on the scope's runtime. What it changes is told to `tell`; a full spool holds the instrument whatever it says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinesin_backpressure::governor::{Control, Decision, GovernConfig, Governor, Pace, Reading, Rung};
use kinesin_stream::link::ScopeStatus;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::events::Event;
use crate::metrics;

/// What the scope's ladder did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ScopeReport {
    /// Changes between full speed, slow and held.
    pub changes_total: u64,
    /// Seconds of the instrument's own speed that were given up: the integral of 1 - pace.
    pub seconds_lost: f64,
    /// The slowest pace, as a share of its own; 0 for held.
    pub slowest: f64,
    /// Losses that were announced.
    pub losses_announced: u64,
    /// Most bytes in the spool.
    pub spool_most: u64,
    /// Bytes that it may hold.
    pub spool_capacity: u64,
}

impl ScopeReport {
    fn count(&mut self, seconds: f64, status: &ScopeStatus, decision: &Decision) {
        self.changes_total += u64::from(decision.change.is_some());
        self.seconds_lost += seconds * (1.0 - status.pace);
        self.slowest = self.slowest.min(status.pace);
        self.spool_most = self.spool_most.max(status.spool_held);
        self.spool_capacity = status.spool_capacity;
    }
}

/// Ends with this.
#[derive(Debug)]
pub(crate) struct ScopeGovernor {
    /// How fast the instrument shall go: for admission.
    pub(crate) pace: watch::Receiver<Pace>,
    /// Where admission puts the status.
    pub(crate) status: watch::Sender<ScopeStatus>,
    report: Arc<Mutex<ScopeReport>>,
    task: JoinHandle<()>,
}

/// The reading of a spool, as a governor takes it. `mfov` is the bytes that come and go at once.
pub(crate) fn spool_reading(status: &ScopeStatus, mfov: u64, deepest: Rung) -> Reading {
    Reading {
        name: "spool".into(),
        held: status.spool_held,
        capacity: status.spool_capacity,
        in_total: status.in_bytes_total,
        out_total: status.out_bytes_total,
        lump: mfov,
        deepest,
    }
}

impl ScopeGovernor {
    /// Looks every `tick` from now on.
    pub(crate) fn start(
        runtime: &Handle,
        config: GovernConfig,
        tick: Duration,
        mfov: u64,
        tell: impl Fn(Event) + Send + 'static,
    ) -> Self {
        let (to_pace, pace) = watch::channel(Pace::Go);
        let (status, seen) = watch::channel(ScopeStatus::default());
        let report = Arc::new(Mutex::new(ScopeReport { slowest: 1.0, ..ScopeReport::default() }));
        let counted = report.clone();
        let task = runtime.spawn(async move {
            let mut governor = Governor::scope(config, Control { slow: true, hold: true });
            let (start, mut every) = (Instant::now(), tokio::time::interval(tick));
            let mut announced: Option<String> = None;
            let mut last = start;
            let mut told = 1.0;
            loop {
                every.tick().await;
                let now = *seen.borrow();
                if now.spool_capacity == 0 {
                    continue;
                }
                governor.control(Control { slow: now.slowable, hold: now.holdable });
                // Where no whole mFOV waits, nothing is sent while the instrument is held; admission holds it where all is full.
                let deepest = if now.oldest_ms > 0 { Rung::Hold } else { Rung::Slow };
                let reading = spool_reading(&now, mfov, deepest);
                let decision = governor.step(start.elapsed(), std::slice::from_ref(&reading));
                let figures = governor.figures(&reading);
                let seconds = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
                lock(&counted).count(seconds, &now, &decision);
                metrics::buffer(&reading.name, &figures);
                metrics::pace(now.pace);
                to_pace.send_if_modified(|before| std::mem::replace(before, decision.pace) != decision.pace);
                // The share moves on with every look: it is told where it stops, goes, or has moved by a tenth.
                let share = decision.pace.share();
                if (share - told).abs() >= 0.1 || (share != told && [0.0, 1.0].contains(&share)) {
                    let from = std::mem::replace(&mut told, share);
                    tell(Event::Pace { from, to: share, cause: reading.name.clone(), figures });
                }
                match (&decision.coming_loss, announced.take()) {
                    (Some(loss), None) => {
                        lock(&counted).losses_announced += 1;
                        tell(Event::ComingLoss {
                            buffer: loss.buffer.clone(),
                            in_seconds: loss.in_seconds,
                            bytes_per_minute: loss.bytes_per_minute,
                            figures: loss.figures,
                        })
                    }
                    (None, Some(buffer)) => tell(Event::LossAverted { buffer }),
                    _ => {}
                }
                announced = decision.coming_loss.map(|loss| loss.buffer);
            }
        });
        Self { pace, status, report, task }
    }

    /// What it did so far.
    pub(crate) fn report(&self) -> ScopeReport {
        lock(&self.report).clone()
    }
}

fn lock(report: &Mutex<ScopeReport>) -> MutexGuard<'_, ScopeReport> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ScopeGovernor {
    fn drop(&mut self) {
        self.task.abort();
    }
}
