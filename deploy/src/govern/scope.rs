//! The scope's ladder at work: reads how full the spool is and says how fast the instrument shall go.
//!
//! A task on the scope's runtime. What it changes is told to `tell`; a full spool holds the instrument whatever it says.

use std::time::Duration;

use kinesin_acquire::admit::AdmitEvent;
use kinesin_backpressure::governor::{Control, Figures, GovernConfig, Governor, Pace, Reading, Rung};
use kinesin_stream::link::ScopeStatus;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::events::Event;

/// Ends with this.
#[derive(Debug)]
pub(crate) struct ScopeGovernor {
    /// How fast the instrument shall go: for admission.
    pub(crate) pace: watch::Receiver<Pace>,
    /// Where admission puts the status.
    pub(crate) status: watch::Sender<ScopeStatus>,
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
        let task = runtime.spawn(async move {
            let mut governor = Governor::scope(config, Control { slow: true, hold: true });
            let (start, mut every) = (Instant::now(), tokio::time::interval(tick));
            let mut announced: Option<String> = None;
            loop {
                every.tick().await;
                let now = *seen.borrow();
                if now.spool_capacity == 0 {
                    continue;
                }
                governor.control(Control { slow: now.slowable, hold: now.holdable });
                let before = governor.pace();
                let reading = spool_reading(&now, mfov, Rung::Hold);
                let decision = governor.step(start.elapsed(), std::slice::from_ref(&reading));
                let figures = governor.figures(&reading);
                if decision.pace != before {
                    let (from, to) = (before.share(), decision.pace.share());
                    if decision.change.is_some() {
                        tell(Event::Pace { from, to, cause: reading.name.clone(), figures });
                    }
                    to_pace.send_replace(decision.pace);
                }
                match (&decision.coming_loss, announced.take()) {
                    (Some(loss), None) => tell(Event::ComingLoss {
                        buffer: loss.buffer.clone(),
                        in_seconds: loss.in_seconds,
                        bytes_per_minute: loss.bytes_per_minute,
                        figures: loss.figures,
                    }),
                    (None, Some(buffer)) => tell(Event::LossAverted { buffer }),
                    _ => {}
                }
                announced = decision.coming_loss.map(|loss| loss.buffer);
            }
        });
        Self { pace, status, task }
    }
}

/// What admission announces, as an event of the run; `None` for what is of no interest to an operator.
pub(crate) fn announced(event: &AdmitEvent) -> Option<Event> {
    Some(match event {
        AdmitEvent::Held { why, held, capacity } => {
            Event::ScopeHeld { why: why.to_string(), held: *held, capacity: *capacity }
        }
        AdmitEvent::Going { seconds } => Event::ScopeGoes { after_seconds: *seconds },
        AdmitEvent::LossComing { held, capacity, .. } => Event::ComingLoss {
            buffer: "spool".into(),
            in_seconds: 0.0,
            bytes_per_minute: 0,
            figures: Figures { held: *held, capacity: *capacity, ..Figures::default() },
        },
        AdmitEvent::Lost(key) => Event::TileLost { tile: key.to_string(), reason: "no room in the spool".into() },
        AdmitEvent::Spool(_) => return None,
    })
}

impl Drop for ScopeGovernor {
    fn drop(&mut self) {
        self.task.abort();
    }
}
