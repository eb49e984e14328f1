//! Leases on memory, granted in the order of asking (tokio's fair semaphore, in pages of 4 KiB).

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::block::block_on;
use crate::budget::{Budget, Line, PAGE, Stop};
use crate::edge::Closed;
use crate::size::Bytes;

/// A bounded amount of memory that many may lease from. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    line: Arc<Line>,
    pages: Arc<Semaphore>,
    capacity: u32,
}

/// A lease. Dropping it gives the bytes back to whoever has waited longest.
#[must_use]
#[derive(Debug)]
pub struct Credit {
    line: Arc<Line>,
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// A pool of `capacity`, entered as a line of the budget.
    pub fn new(budget: &Budget, name: impl Into<String>, capacity: Bytes) -> Self {
        let line = budget.line(name, capacity);
        let capacity = u32::try_from(line.capacity().0 / PAGE).unwrap_or(u32::MAX).max(1);
        let pages = Arc::new(Semaphore::new(capacity as usize));
        let pool = Self(Arc::new(Inner { line, pages, capacity }));
        let as_stop: Arc<dyn Stop> = pool.0.clone();
        budget.on_stop(Arc::downgrade(&as_stop));
        pool
    }

    /// Waits for room. More than the whole pool is granted once nothing else is leased, and counted in full.
    ///
    /// Cancel safety: a dropped call leases nothing and loses its place in the queue.
    pub async fn lease(&self, bytes: Bytes) -> Result<Credit, Closed> {
        let (asked, pages) = self.pages(bytes);
        if let Ok(permit) = self.0.pages.clone().try_acquire_many_owned(pages) {
            return Ok(self.credit(asked, permit));
        }
        let since = Instant::now();
        let permit = self.0.pages.clone().acquire_many_owned(pages).await;
        self.0.line.waited(since.elapsed());
        match permit {
            Ok(permit) => Ok(self.credit(asked, permit)),
            Err(_closed) => Err(self.closed()),
        }
    }

    /// As [`Self::lease`], on a plain thread. Never call it from a task.
    pub fn lease_blocking(&self, bytes: Bytes) -> Result<Credit, Closed> {
        block_on(self.lease(bytes))
    }

    /// Leases without waiting; `None` where there is no room now.
    pub fn try_lease(&self, bytes: Bytes) -> Option<Credit> {
        let (asked, pages) = self.pages(bytes);
        let permit = self.0.pages.clone().try_acquire_many_owned(pages).ok()?;
        Some(self.credit(asked, permit))
    }

    /// What it may hold.
    pub fn capacity(&self) -> Bytes {
        self.0.line.capacity()
    }

    pub(crate) fn close(&self) {
        self.0.pages.close();
    }

    pub(crate) fn line(&self) -> &Line {
        &self.0.line
    }

    fn closed(&self) -> Closed {
        Closed { name: self.0.line.name().to_owned() }
    }

    /// Whole pages, at least one (so that items without a body are bounded too), and how many of them are leased.
    fn pages(&self, bytes: Bytes) -> (Bytes, u32) {
        let pages = bytes.0.div_ceil(PAGE).max(1);
        (Bytes(pages * PAGE), u32::try_from(pages).unwrap_or(u32::MAX).min(self.0.capacity))
    }

    fn credit(&self, bytes: Bytes, permit: OwnedSemaphorePermit) -> Credit {
        self.0.line.hold(bytes);
        Credit { line: self.0.line.clone(), bytes, _permit: permit }
    }
}

impl Stop for Inner {
    fn stop(&self) {
        self.pages.close();
    }
}

impl Credit {
    /// What is leased, in whole pages.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        // Runs before the permit drops: the count never shows more than the semaphore granted.
        self.line.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_pool_is_granted_only_when_nothing_else_is_leased() {
        let budget = Budget::new();
        let pool = Pool::new(&budget, "pool", Bytes(2 * PAGE));
        let small = pool.try_lease(Bytes(1)).expect("a page is free");
        assert!(pool.try_lease(Bytes(9 * PAGE)).is_none());
        drop(small);
        let large = pool.try_lease(Bytes(9 * PAGE)).expect("the pool is empty");
        assert!(pool.try_lease(Bytes(1)).is_none());
        drop(large);
        let line = &budget.lines()[0];
        assert_eq!((line.capacity, line.held, line.peak), (Bytes(2 * PAGE), Bytes(0), Bytes(9 * PAGE)));
    }

    #[test]
    fn a_waiting_lease_returns_when_the_budget_is_stopped() {
        let budget = Budget::new();
        let pool = Pool::new(&budget, "pool", Bytes(PAGE));
        let held = pool.try_lease(Bytes(PAGE)).expect("empty");
        let waiter = std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.lease_blocking(Bytes(PAGE)).map(drop));
            budget.stop();
            waiter.join().expect("no panic")
        });
        assert_eq!(waiter, Err(Closed { name: "pool".into() }));
        drop(held);
        assert_eq!(budget.leased_now(), Bytes(0));
    }
}
