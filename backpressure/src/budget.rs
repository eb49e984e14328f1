//! The budget sheet: every bounded thing has a named line, and the sum of the lines is what the run may hold.
//!
//! `held` counts whole pages of 4 KiB, as leased. `peak_leased` never exceeds `total` unless a single item was larger than
//! its line (see the crate's deadlock argument); the line's own peak then shows it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::size::Bytes;

/// All lines of a run. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Sheet>);

#[derive(Debug, Default)]
struct Sheet {
    lines: Mutex<Vec<Arc<Line>>>,
    stoppers: Mutex<Vec<Weak<dyn Stop>>>,
    leased: AtomicU64,
    peak: AtomicU64,
    stopped: AtomicBool,
}

/// What [`Budget::stop`] closes.
pub(crate) trait Stop: Send + Sync + std::fmt::Debug {
    /// Wakes every waiter; later calls fail at once.
    fn stop(&self);
}

/// One named amount and its counters.
#[derive(Debug)]
pub(crate) struct Line {
    name: String,
    capacity: Bytes,
    budget: Weak<Sheet>,
    held: AtomicU64,
    peak: AtomicU64,
    in_bytes: AtomicU64,
    out_bytes: AtomicU64,
    in_items: AtomicU64,
    out_items: AtomicU64,
    wait_nanos: AtomicU64,
}

/// A line as the report and the metrics show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineReport {
    /// Name of the edge, pool or fixed amount.
    pub name: String,
    /// What it may hold.
    pub capacity: Bytes,
    /// What it holds now.
    pub held: Bytes,
    /// The most it held. Above `capacity` only where a single item was larger.
    pub peak: Bytes,
    /// Bytes that ever went in.
    pub in_bytes_total: u64,
    /// Bytes that ever left the queue towards a consumer.
    pub out_bytes_total: u64,
    /// Items that ever went in.
    pub in_items_total: u64,
    /// Items that ever left the queue; the difference to the above is the depth.
    pub out_items_total: u64,
    /// Time that senders waited for room, summed over them, seconds: the back-pressure.
    pub wait_seconds_total: f64,
}

impl Budget {
    /// An empty sheet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an amount that is taken for the whole run: a receive window, a cache, a model session.
    pub fn fixed(&self, name: impl Into<String>, bytes: Bytes) {
        let line = self.line(name, bytes);
        line.hold(bytes);
    }

    /// Sum of all lines: what `kinesin check` prints and what the run never exceeds.
    pub fn total(&self) -> Bytes {
        lock(&self.0.lines).iter().map(|l| l.capacity).sum()
    }

    /// Bytes leased now, over all lines.
    pub fn leased_now(&self) -> Bytes {
        Bytes(self.0.leased.load(Ordering::Acquire))
    }

    /// The most that was ever leased at one time, over all lines.
    pub fn peak_leased(&self) -> Bytes {
        Bytes(self.0.peak.load(Ordering::Acquire))
    }

    /// Every line, in the order in which they were entered.
    pub fn lines(&self) -> Vec<LineReport> {
        lock(&self.0.lines).iter().map(|l| l.report()).collect()
    }

    /// Aborts: closes every edge and pool of this budget. Waiting senders get `Closed`, receivers `None`; what waits in the
    /// edges is dropped.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let stoppers = std::mem::take(&mut *lock(&self.0.stoppers));
        stoppers.iter().filter_map(Weak::upgrade).for_each(|s| s.stop());
    }

    /// Whether [`Self::stop`] was called: the end of an edge is then no drain.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Enters a line. The capacity is rounded up to whole pages.
    pub(crate) fn line(&self, name: impl Into<String>, capacity: Bytes) -> Arc<Line> {
        let line = Arc::new(Line {
            name: name.into(),
            capacity: Bytes(capacity.0.div_ceil(PAGE) * PAGE),
            budget: Arc::downgrade(&self.0),
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            in_bytes: AtomicU64::new(0),
            out_bytes: AtomicU64::new(0),
            in_items: AtomicU64::new(0),
            out_items: AtomicU64::new(0),
            wait_nanos: AtomicU64::new(0),
        });
        lock(&self.0.lines).push(line.clone());
        line
    }

    /// Has `stopper` called on [`Self::stop`], at once where that already happened.
    pub(crate) fn on_stop(&self, stopper: Weak<dyn Stop>) {
        {
            let mut stoppers = lock(&self.0.stoppers);
            stoppers.retain(|s| s.strong_count() > 0);
            stoppers.push(stopper.clone());
        }
        if self.is_stopped()
            && let Some(s) = stopper.upgrade()
        {
            s.stop();
        }
    }
}

/// Unit of leases: a `u32` of pages is 16 TiB, a `u32` of bytes would be 4 GiB.
pub(crate) const PAGE: u64 = 4096;

impl Line {
    pub(crate) fn capacity(&self) -> Bytes {
        self.capacity
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Counts a lease. Called after the pages were granted.
    pub(crate) fn hold(&self, bytes: Bytes) {
        add_with_peak(&self.held, &self.peak, bytes.0);
        if let Some(sheet) = self.budget.upgrade() {
            add_with_peak(&sheet.leased, &sheet.peak, bytes.0);
        }
    }

    /// Takes a lease off. Called before the pages are given back, so that `held` is never too high.
    pub(crate) fn release(&self, bytes: Bytes) {
        self.held.fetch_sub(bytes.0, Ordering::AcqRel);
        if let Some(sheet) = self.budget.upgrade() {
            sheet.leased.fetch_sub(bytes.0, Ordering::AcqRel);
        }
    }

    pub(crate) fn entered(&self, bytes: Bytes) {
        self.in_bytes.fetch_add(bytes.0, Ordering::Relaxed);
        self.in_items.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn left(&self, bytes: Bytes) {
        self.out_bytes.fetch_add(bytes.0, Ordering::Relaxed);
        self.out_items.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.wait_nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn report(&self) -> LineReport {
        LineReport {
            name: self.name.clone(),
            capacity: self.capacity,
            held: Bytes(self.held.load(Ordering::Acquire)),
            peak: Bytes(self.peak.load(Ordering::Acquire)),
            in_bytes_total: self.in_bytes.load(Ordering::Relaxed),
            out_bytes_total: self.out_bytes.load(Ordering::Relaxed),
            in_items_total: self.in_items.load(Ordering::Relaxed),
            out_items_total: self.out_items.load(Ordering::Relaxed),
            wait_seconds_total: self.wait_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

fn add_with_peak(held: &AtomicU64, peak: &AtomicU64, bytes: u64) {
    let now = held.fetch_add(bytes, Ordering::AcqRel) + bytes;
    peak.fetch_max(now, Ordering::AcqRel);
}

/// A poisoned lock still guards good data here: each critical section is a single assignment or push.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
