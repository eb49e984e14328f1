//! The only place where threads are made.
//!
//! Each thread runs `receive, process, emit` until its edge ends. A panic is caught at the thread boundary, named with the
//! stage and the item, and stops the run: a panic is a bug, not an input. The first fault stops everything: the budget's
//! edges close, waiting threads return, and [`Runner::join`] gives the cause. Errors that only echo the stop never hide it.

use std::any::Any;
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kinesin_backpressure::{Budget, Receiver, Sender};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::fault_points::{Armed, FaultPoints};
use crate::stage::{Fault, Flow, Keyed, Outlet, Stage, StopError, Stopped, Unfinished};

/// Starts threads and waits for them.
#[derive(Debug)]
pub struct Runner {
    run: Arc<Run>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Run {
    budget: Budget,
    token: CancellationToken,
    stages: Mutex<Vec<Arc<Counters>>>,
    faults: Mutex<Vec<RunError>>,
    points: FaultPoints,
}

#[derive(Debug)]
struct Counters {
    name: String,
    workers: AtomicUsize,
    items: AtomicU64,
    busy_nanos: AtomicU64,
    cpu_nanos: AtomicU64,
    /// What a fault scenario does to it.
    point: Option<Arc<Armed>>,
}

/// What a thread knows of the run: whether to go on, and where to count its work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RunToken {
    run: Arc<Run>,
    counters: Arc<Counters>,
    /// The item in work, for the message of a panic.
    item: Arc<Mutex<String>>,
}

/// Stops the run from outside: a second signal, a deadline, a lost link.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Run>);

/// One stage's work so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// Name of the stage.
    pub name: String,
    /// Threads that were started for it.
    pub workers: usize,
    /// Items and losses that it finished.
    pub items: u64,
    /// Wall time in work, without waiting for items or for room, summed over its threads, seconds.
    pub busy_seconds: f64,
    /// Processor time of its threads that have ended, seconds; 0 where the system does not tell. Work that a kernel hands
    /// to the shared thread pool is not in it.
    pub cpu_seconds: f64,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A stage gave up.
    #[error("{stage} stopped the run: {source}")]
    Fault {
        /// Which stage.
        stage: String,
        /// Its error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A bug: please report it with this text.
    #[error("{stage} panicked at {item}: {message}; this is a bug, please report it")]
    Panic {
        /// Which stage.
        stage: String,
        /// What it was working on.
        item: String,
        /// The message of the panic.
        message: String,
    },
    /// Stopped by [`StopHandle::stop`].
    #[error("stopped: {0}")]
    Aborted(String),
    /// The system gave no thread.
    #[error("cannot start a thread for {stage}: {source}")]
    Thread {
        /// Which stage.
        stage: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Runner {
    /// A runner whose stop closes every edge of `budget`.
    pub fn new(budget: &Budget) -> Self {
        Self::with_points(budget, FaultPoints::default())
    }

    /// As [`Self::new`], with what a fault scenario does to the stages.
    pub fn with_points(budget: &Budget, points: FaultPoints) -> Self {
        let run = Run {
            budget: budget.clone(),
            token: CancellationToken::new(),
            stages: Mutex::default(),
            faults: Mutex::default(),
            points,
        };
        Self { run: Arc::new(run), threads: Mutex::default() }
    }

    /// Starts `workers` threads `name-0 …` that share one edge in and one edge out. Each has its own stage from `make`.
    pub fn stage<S: Stage>(
        &self,
        name: &str,
        workers: usize,
        mut make: impl FnMut() -> S,
        rx: Receiver<Flow<S::In>>,
        tx: Sender<Flow<S::Out>>,
    ) {
        for worker in 0..workers.max(1) {
            let (stage, rx, tx) = (make(), rx.clone(), tx.clone());
            self.thread(name, format!("{name}-{worker}"), move |run| work(stage, &rx, tx, run));
        }
    }

    /// Starts one thread for a box that has its own loop. Call it again with the same name for more workers; they count
    /// as one stage. After its receiver returns `None` the box asks [`RunToken::check`] before it takes that for the end.
    pub fn spawn(&self, name: &str, body: impl FnOnce(&RunToken) -> Result<(), StopError> + Send + 'static) {
        self.thread(name, name.to_owned(), body);
    }

    /// A handle to stop the run from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.run.clone())
    }

    /// A token for a task or thread of the rim that was not started here; its work is counted under `name`.
    pub fn token(&self, name: &str) -> RunToken {
        RunToken { run: self.run.clone(), counters: self.run.counters(name), item: Arc::default() }
    }

    /// What each stage has done so far, in the order in which they were started.
    pub fn reports(&self) -> Vec<StageReport> {
        lock(&self.run.stages).iter().map(|c| c.report()).collect()
    }

    /// Waits for every thread, also for those that are started meanwhile.
    ///
    /// # Errors
    /// The first fault; with several, one that is not an echo of the stop.
    pub fn join(&self) -> Result<(), RunError> {
        loop {
            let threads = std::mem::take(&mut *lock(&self.threads));
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                thread.join().expect("panics are caught inside the thread");
            }
        }
        let mut faults = lock(&self.run.faults);
        if faults.is_empty() { Ok(()) } else { Err(faults.remove(0)) }
    }

    fn thread(
        &self,
        stage: &str,
        name: String,
        body: impl FnOnce(&RunToken) -> Result<(), StopError> + Send + 'static,
    ) {
        let token = self.token(stage);
        token.counters.workers.fetch_add(1, Ordering::Relaxed);
        let started = thread::Builder::new().name(name).spawn(move || guard(&token, body));
        match started {
            Ok(thread) => lock(&self.threads).push(thread),
            Err(source) => self.run.fault(RunError::Thread { stage: stage.to_owned(), source }),
        }
    }
}

/// The thread boundary. The body's edges drop before its error is entered: that of a neighbour may come first, which is why
/// there are echoes.
fn guard(token: &RunToken, body: impl FnOnce(&RunToken) -> Result<(), StopError>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| body(token)));
    let stage = token.counters.name.clone();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_echo() => token.run.echo(stage, error),
        Ok(Err(error)) => token.run.fault(RunError::Fault { stage, source: error.into_inner() }),
        Err(panic) => {
            let item = lock(&token.item).clone();
            let item = if item.is_empty() { "its start".to_owned() } else { item };
            token.run.fault(RunError::Panic { stage, item, message: panic_text(&*panic) });
        }
    }
    token.counters.cpu_nanos.fetch_add(thread_cpu_nanos(), Ordering::Relaxed);
}

fn work<S: Stage>(
    mut stage: S,
    rx: &Receiver<Flow<S::In>>,
    tx: Sender<Flow<S::Out>>,
    run: &RunToken,
) -> Result<(), StopError> {
    let mut out = Outlet::new(tx);
    while let Some(metered) = rx.recv_blocking() {
        run.working_on(metered.label());
        let since = Instant::now();
        let done = match &*metered {
            Flow::Item(item) => match stage.process(item, &mut out) {
                Err(Fault::Item(reason)) => set_aside(&mut stage, item, &reason, &mut out),
                other => other,
            },
            Flow::Lost(loss) => stage.lost(loss, &mut out),
        };
        done.map_err(into_stop)?;
        run.count(1, since.elapsed().saturating_sub(out.take_waited()));
    }
    run.check()?;
    run.working_on("the end of its edge".to_owned());
    let since = Instant::now();
    stage.finish(&mut out).map_err(into_stop)?;
    run.count(0, since.elapsed().saturating_sub(out.take_waited()));
    Ok(())
}

fn set_aside<S: Stage>(
    stage: &mut S,
    item: &S::In,
    reason: &crate::tile::Reason,
    out: &mut Outlet<S::Out>,
) -> Result<(), Fault> {
    tracing::warn!(item = item.label(), %reason, "set aside");
    item.losses(reason).iter().try_for_each(|loss| stage.lost(loss, out))
}

/// A reason where there is no item left to set aside (in `lost` or `finish`) is a fault of the stage.
fn into_stop(fault: Fault) -> StopError {
    match fault {
        Fault::Stop(error) => error,
        Fault::Item(reason) => io::Error::other(format!("no item to set aside: {reason}")).into(),
    }
}

impl RunToken {
    /// `Err` once the run is stopped: the end of an edge is then no drain.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }

    /// Whether the run is stopped.
    pub fn is_stopped(&self) -> bool {
        self.run.token.is_cancelled() || self.run.budget.is_stopped()
    }

    /// Waits until the run is stopped; for tasks of the rim. Cancel-safe.
    pub async fn stopped(&self) {
        self.run.token.cancelled().await;
    }

    /// Says what is in work, for the message of a panic; once an item. A fault scenario may strike here.
    pub fn working_on(&self, label: String) {
        *lock(&self.item) = label;
        if let Some(point) = &self.counters.point {
            point.strike();
        }
    }

    /// Counts finished items and the time that they took.
    pub fn count(&self, items: u64, busy: Duration) {
        self.counters.items.fetch_add(items, Ordering::Relaxed);
        let nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.counters.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Does a piece of work and counts it as `items`. Do not send within it: waiting is not work.
    pub fn busy<R>(&self, items: u64, work: impl FnOnce() -> R) -> R {
        let since = Instant::now();
        let result = work();
        self.count(items, since.elapsed());
        result
    }
}

impl StopHandle {
    /// Stops the run. The reason becomes its error unless there already is one.
    pub fn stop(&self, reason: impl Into<String>) {
        self.0.fault(RunError::Aborted(reason.into()));
    }

    /// Stops the run because of an error in a part that the runner did not start.
    pub fn fault(&self, stage: impl Into<String>, error: StopError) {
        let stage = stage.into();
        if error.is_echo() {
            self.0.echo(stage, error);
        } else {
            self.0.fault(RunError::Fault { stage, source: error.into_inner() });
        }
    }
}

impl Run {
    fn counters(&self, name: &str) -> Arc<Counters> {
        let mut stages = lock(&self.stages);
        if let Some(known) = stages.iter().find(|c| c.name == name) {
            return known.clone();
        }
        let counters = Arc::new(Counters {
            name: name.to_owned(),
            workers: AtomicUsize::new(0),
            items: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            point: self.points.arm(name),
        });
        stages.push(counters.clone());
        counters
    }

    fn fault(&self, error: RunError) {
        // Told by whoever joins; echoes of one fault are many.
        tracing::info!("{error}");
        let mut faults = lock(&self.faults);
        // Causes go before echoes, in the order of arrival.
        let at = faults.iter().position(RunError::is_echo).unwrap_or(faults.len());
        faults.insert(at, error);
        drop(faults);
        self.stop();
    }

    /// A closed edge is only a fault of its own where nothing else went wrong.
    fn echo(&self, stage: String, error: StopError) {
        lock(&self.faults).push(RunError::Fault { stage, source: error.into_inner() });
        self.stop();
    }

    fn stop(&self) {
        self.token.cancel();
        self.budget.stop();
    }
}

impl RunError {
    fn is_echo(&self) -> bool {
        use kinesin_backpressure::Closed;
        let Self::Fault { source, .. } = self else { return false };
        source.is::<Closed>() || source.is::<Stopped>() || source.is::<Unfinished>()
    }
}

impl Counters {
    fn report(&self) -> StageReport {
        let seconds = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
        StageReport {
            name: self.name.clone(),
            workers: self.workers.load(Ordering::Relaxed),
            items: self.items.load(Ordering::Relaxed),
            busy_seconds: seconds(&self.busy_nanos),
            cpu_seconds: seconds(&self.cpu_nanos),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// First field of Linux' `schedstat`: nanoseconds on a processor.
fn thread_cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The guarded data are single values, good also after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kinesin_backpressure::{Bytes, Cost, edge};

    use super::*;
    use crate::geometry::Xy;
    use crate::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
    use crate::plan::{MfovPlan, PlannedTile, SectionPlan};
    use crate::tile::{Loss, Reason};

    #[derive(Debug)]
    struct Number(u64, Arc<SectionPlan>);

    impl Cost for Number {
        fn cost(&self) -> Bytes {
            Bytes(4096)
        }
    }

    impl Keyed for Number {
        fn label(&self) -> String {
            format!("number {}", self.0)
        }
        fn losses(&self, reason: &Reason) -> Vec<Loss> {
            vec![Loss { key: self.1.mfovs[0].tiles[0].key, plan: self.1.clone(), reason: reason.clone() }]
        }
    }

    /// Passes numbers on; sets 13 aside, panics at 66, refuses 77.
    struct Superstitious;

    impl Stage for Superstitious {
        type In = Number;
        type Out = Number;
        fn process(&mut self, input: &Number, out: &mut Outlet<Number>) -> Result<(), Fault> {
            match input.0 {
                13 => Err(Fault::Item(Reason::Unreadable("thirteen".into()))),
                66 => panic!("not that one"),
                77 => Err(io::Error::other("the disk is gone").into()),
                n => out.emit(Number(n, input.1.clone())),
            }
        }
    }

    fn plan() -> Arc<SectionPlan> {
        let section = SectionId(0);
        let id = MfovId::new(section, RegionId(0), 0);
        let key = TileKey { mfov: id, beam: BeamId(0) };
        let tile = PlannedTile { key, name: "t".into(), nominal: Xy::default(), size: Xy::new(1, 1) };
        let mfovs = vec![MfovPlan { id, revision: 0, tiles: vec![tile] }];
        Arc::new(SectionPlan { section, serial: SerialIndex(0), name: "s".into(), version: 0, mfovs })
    }

    /// Runs numbers through two workers over edges that hold two items; returns the sum and the losses that arrived.
    fn run(numbers: Vec<u64>) -> (Result<(), RunError>, u64, usize, Vec<StageReport>, Budget) {
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let (in_tx, in_rx) = edge(&budget, "in", Bytes(8192));
        let (out_tx, out_rx) = edge(&budget, "out", Bytes(8192));
        runner.spawn("source", move |_| {
            let plan = plan();
            numbers.into_iter().try_for_each(|n| in_tx.send_blocking(Flow::Item(Number(n, plan.clone()))))?;
            Ok(())
        });
        runner.stage("superstitious", 2, || Superstitious, in_rx, out_tx);
        let seen = Arc::new(Mutex::new((0, 0)));
        let shared = seen.clone();
        runner.spawn("sum", move |run| {
            while let Some(flow) = out_rx.recv_blocking() {
                match &*flow {
                    Flow::Item(number) => lock(&shared).0 += number.0,
                    Flow::Lost(_) => lock(&shared).1 += 1,
                }
            }
            Ok(run.check()?)
        });
        let result = runner.join();
        let (sum, losses) = *lock(&seen);
        (result, sum, losses, runner.reports(), budget)
    }

    #[test]
    fn every_item_goes_through_and_a_bad_one_becomes_a_loss() {
        let (result, sum, losses, reports, budget) = run((0..50).collect());
        result.expect("no fault");
        assert_eq!((sum, losses), (49 * 50 / 2 - 13, 1));
        assert_eq!(budget.leased_now(), Bytes(0));
        assert!(budget.peak_leased() <= budget.total());
        let stage = reports.iter().find(|r| r.name == "superstitious").expect("it ran");
        assert_eq!((stage.workers, stage.items), (2, 50));
    }

    #[test]
    fn a_panic_is_caught_and_names_the_stage_and_the_item() {
        let (result, ..) = run((60..70).collect());
        let text = result.expect_err("66 panics").to_string();
        assert!(text.contains("superstitious panicked at number 66: not that one"), "{text}");
    }

    #[test]
    fn the_first_fault_stops_every_thread_and_is_the_one_reported() {
        let (result, _, _, _, budget) = run((70..1000).collect());
        let text = result.expect_err("77 stops").to_string();
        assert_eq!(text, "superstitious stopped the run: the disk is gone");
        assert_eq!(budget.leased_now(), Bytes(0));
    }

    #[test]
    fn whoever_misses_what_was_promised_never_hides_who_ended_the_edge() {
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let (tx, rx) = edge::<Flow<Number>>(&budget, "in", Bytes(8192));
        let (missed, told) = std::sync::mpsc::channel::<()>();
        runner.spawn("counter", move |_| {
            assert!(rx.recv_blocking().is_none());
            drop(missed);
            Err(Unfinished("tiles ended early".into()).into())
        });
        // Its edge drops long before its error is entered.
        runner.spawn("archive", move |_| {
            drop(tx);
            told.recv().expect_err("hung up");
            Err(io::Error::other("the disk is full").into())
        });
        assert_eq!(runner.join().expect_err("stopped").to_string(), "archive stopped the run: the disk is full");
    }

    #[test]
    fn a_run_can_be_stopped_from_outside_while_everything_waits() {
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let (tx, rx) = edge::<Flow<Number>>(&budget, "in", Bytes(8192));
        let (out_tx, out_rx) = edge::<Flow<Number>>(&budget, "out", Bytes(8192));
        runner.stage("superstitious", 2, || Superstitious, rx, out_tx);
        runner.stop_handle().stop("second interrupt");
        assert_eq!(runner.join().expect_err("stopped").to_string(), "stopped: second interrupt");
        drop((tx, out_rx));
    }
}
