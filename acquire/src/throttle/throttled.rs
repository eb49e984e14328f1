//! Any instrument with a hook: commands to wait go to the hook as well, all else passes through.
//!
//! [`Throttled::command`] only notes the wish; a task of its own asks the hook. So a hook that hangs never stops tiles from
//! being taken, and of several wishes that come while it works only the latest is asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinesin_stream::plan::RunPlan;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::sbem::{SbemHandle, Sight};
use super::{HookEvent, Known, Request, Tell, Throttle, ThrottleError, Wish};
use crate::instrument::{Command, Event, Instrument, InstrumentError};

/// Pause before the first further try; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between tries: an operator who mends the hook does not wait longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// An instrument with a hook, or without one: then everything passes through.
pub struct Throttled<I> {
    inner: I,
    desk: Option<Desk>,
}

/// The near side of the worker.
struct Desk {
    wish: watch::Sender<Asked>,
    monitor: Monitor,
}

#[derive(Clone, Debug)]
struct Asked {
    request: Request,
    /// The run is over: ask this once and end.
    last: bool,
}

/// What the hook is doing; for the governor, the log and the report. Cheap to clone.
#[derive(Clone, Default)]
pub struct Monitor {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    status: Option<Status>,
    reason: Option<Arc<str>>,
    sbem: Option<SbemHandle>,
    /// Closed once the worker has ended.
    worker: Option<watch::Receiver<()>>,
}

/// State of a hook.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Status {
    /// Which hook.
    pub hook: &'static str,
    /// What is wanted of the instrument.
    pub wanted: Wish,
    /// What is known of it.
    pub known: Known,
    /// Times in a row that the hook was asked in vain; 0 when it works.
    pub failures: u32,
    /// What it said last, or why it failed.
    pub said: String,
    /// What the hook sees of the instrument.
    pub sight: Option<Sight>,
}

impl Monitor {
    /// The state now; `None` without a hook.
    pub fn status(&self) -> Option<Status> {
        let (status, sbem) = {
            let shared = self.lock();
            (shared.status.clone(), shared.sbem.clone())
        };
        status.map(|status| Status { sight: sbem.map(|s| s.sight()), ..status })
    }

    /// SBEMimage, where it is the hook: its state, and commands for its next slice.
    pub fn sbem(&self) -> Option<SbemHandle> {
        self.lock().sbem.clone()
    }

    /// Returns once the hook was asked for the last time: after the instrument has ended or was dropped. Takes at most two
    /// time-outs; at once without a hook.
    ///
    /// Cancel safety: safe.
    pub async fn released(&self) {
        let worker = self.lock().worker.clone();
        if let Some(mut worker) = worker {
            while worker.changed().await.is_ok() {}
        }
    }

    /// The reason given with the next hold or slow: one line for people at the instrument.
    pub fn explain(&self, reason: &str) {
        self.lock().reason = Some(reason.into());
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        if let Some(status) = &mut self.lock().status {
            change(status);
        }
    }

    fn request(&self, wish: Wish) -> Request {
        let why = match wish {
            Wish::Go => None,
            _ => self.lock().reason.clone(),
        };
        let reason = why.unwrap_or_else(|| match wish {
            Wish::Go => "there is room again".into(),
            _ => "tiles come faster than they can be taken".into(),
        });
        Request { wish, reason }
    }
}

impl<I: Instrument> Throttled<I> {
    /// Without a hook.
    pub fn plain(inner: I) -> Self {
        Self { inner, desk: None }
    }

    /// With a hook, asked from a task on `runtime`. The first thing asked is to go: an earlier run that was killed may have
    /// left the instrument held. `timeout` bounds each asking.
    pub fn new<T: Throttle>(inner: I, mut hook: T, timeout: Duration, runtime: &Handle, tell: Tell) -> Self {
        let monitor = Monitor::default();
        monitor.lock().sbem = hook.sbem();
        monitor.lock().status = Some(Status {
            hook: hook.name(),
            wanted: Wish::Go,
            known: Known::Unknown,
            failures: 0,
            said: String::new(),
            sight: None,
        });
        let request = Request { wish: Wish::Go, reason: "a run begins".into() };
        let (wish, wishes) = watch::channel(Asked { request, last: false });
        let (working, worker) = watch::channel(());
        monitor.lock().worker = Some(worker);
        let seen = monitor.clone();
        runtime.spawn(async move {
            work(&mut hook, timeout, wishes, &seen, &tell).await;
            drop(working);
        });
        Self { inner, desk: Some(Desk { wish, monitor }) }
    }

    /// Looks at the hook from outside; says nothing without one.
    pub fn monitor(&self) -> Monitor {
        self.desk.as_ref().map(|d| d.monitor.clone()).unwrap_or_default()
    }

    /// The instrument behind.
    pub fn inner(&self) -> &I {
        &self.inner
    }
}

impl<I: Instrument> Instrument for Throttled<I> {
    fn plan(&self) -> &RunPlan {
        self.inner.plan()
    }

    /// At the end of the run the hook is asked to go, and has one time-out for it.
    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        let event = self.inner.next().await?;
        if event.is_none()
            && let Some(desk) = &self.desk
        {
            desk.finish();
            desk.monitor.released().await;
        }
        Ok(event)
    }

    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        let (Some(desk), Some(wish)) = (&self.desk, wish(command)?) else { return self.inner.command(command).await };
        desk.want(wish);
        match self.inner.command(command).await {
            // The hook does it.
            Err(InstrumentError::Refused { .. }) => Ok(()),
            other => other,
        }
    }
}

fn wish(command: Command) -> Result<Option<Wish>, InstrumentError> {
    match command {
        Command::Hold => Ok(Some(Wish::Hold)),
        Command::Go => Ok(Some(Wish::Go)),
        Command::Slow(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(Some(Wish::Slow(fraction))),
        Command::Slow(_) => Err(InstrumentError::Refused { instrument: "throttle", command }),
        Command::Skip(_) | Command::Kept(_) => Ok(None),
    }
}

impl Desk {
    fn want(&self, wish: Wish) {
        let request = self.monitor.request(wish);
        self.monitor.note(|status| status.wanted = wish);
        self.wish.send_if_modified(|asked| {
            let new = asked.request.wish != wish && !asked.last;
            if new {
                asked.request = request;
            }
            new
        });
    }

    fn finish(&self) {
        let request = Request { wish: Wish::Go, reason: "the run is over".into() };
        self.monitor.note(|status| status.wanted = Wish::Go);
        self.wish.send_if_modified(|asked| {
            let new = !asked.last;
            *asked = Asked { request, last: true };
            new
        });
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Asks the hook for whatever is wanted, until the last wish.
async fn work<T: Throttle>(
    hook: &mut T,
    timeout: Duration,
    mut wishes: watch::Receiver<Asked>,
    monitor: &Monitor,
    tell: &Tell,
) {
    let mut known = None;
    loop {
        let Asked { request, last } = wishes.borrow_and_update().clone();
        if known != Some(request.wish) {
            known = None;
            if !attempt(hook, timeout, &request, monitor, tell, last, &mut wishes).await {
                if last {
                    return;
                }
                continue;
            }
            known = Some(request.wish);
        }
        if last || wishes.changed().await.is_err() {
            return;
        }
        // Wishes that come and go within this time are not worth asking for.
        tokio::time::sleep(GAP).await;
    }
}

/// Least time between two askings of a hook that works.
const GAP: Duration = Duration::from_millis(200);

/// Asks until it is done (`true`) or something else is wanted; only once when it is the last wish.
async fn attempt<T: Throttle>(
    hook: &mut T,
    timeout: Duration,
    request: &Request,
    monitor: &Monitor,
    tell: &Tell,
    last: bool,
    wishes: &mut watch::Receiver<Asked>,
) -> bool {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = within(timeout, hook, request).await;
        let (hook_name, wish) = (hook.name(), request.wish);
        let error = match answer {
            Ok(said) => {
                let mut tries = 0;
                monitor.note(|status| {
                    tries = std::mem::take(&mut status.failures);
                    (status.known, status.said) = (wish.into(), said.clone());
                });
                if tries > 0 {
                    tell(HookEvent::Recovered { hook: hook_name, wish, tries });
                }
                tell(HookEvent::Done { hook: hook_name, wish, reason: request.reason.to_string(), said });
                return true;
            }
            Err(error) => error,
        };
        let mut tries = 0;
        monitor.note(|status| {
            status.failures += 1;
            tries = status.failures;
            if !matches!(error, ThrottleError::Refused { .. }) {
                status.known = Known::Unknown;
            }
            status.said = error.to_string();
        });
        if tries == 1 {
            tell(HookEvent::Failing { hook: hook_name, wish, error: error.to_string() });
        }
        if last {
            return false;
        }
        match tokio::time::timeout(pause, wishes.changed()).await {
            // Something else is wanted, or nobody is left to want anything; the caller sees which.
            Ok(_changed) => return false,
            Err(_elapsed) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

async fn within<T: Throttle>(timeout: Duration, hook: &mut T, request: &Request) -> Result<String, ThrottleError> {
    let (name, wish) = (hook.name(), request.wish);
    match tokio::time::timeout(timeout, hook.ask(request)).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(ThrottleError::TimedOut { hook: name, wish, after: timeout }),
    }
}
