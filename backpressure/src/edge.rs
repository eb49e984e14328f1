//! A queue between two boxes, bounded in bytes. The bound covers what waits and what the consumer is working on.
//!
//! Several senders and several receivers; each item goes to one receiver. The order is first in, first out, but carries no
//! meaning: identity is in the items.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use crate::block::block_on;
use crate::budget::{Budget, Stop, lock};
use crate::credit::{Credit, Pool};
use crate::size::{Bytes, Cost};

/// The other side is gone, or the run was stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is closed: its reader has ended or the run was stopped")]
pub struct Closed {
    /// The edge or pool.
    pub name: String,
}

/// An item and the bytes it holds. Cheap to clone; the bytes come back when the last clone drops.
pub struct Metered<T>(Arc<Held<T>>);

/// Field order matters: the item is dropped before its bytes are given back.
struct Held<T> {
    item: T,
    credit: Credit,
}

/// Puts items in. The edge ends when the last clone drops.
pub struct Sender<T>(Arc<Shared<T>>);

/// Takes items out. Clone it to put several workers on one edge.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Room for one item, leased before the item exists. Dropping it gives the room back.
#[must_use]
pub struct Slot<'a, T> {
    sender: &'a Sender<T>,
    credit: Credit,
}

struct Shared<T> {
    pool: Pool,
    queue: Mutex<VecDeque<Metered<T>>>,
    /// One permit an item in the queue. Closed when the last sender drops.
    items: Semaphore,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

/// A new edge, entered as a line of the budget. Choose the capacity for at least two of the largest items, so that the
/// producer makes one while the consumer works on the other.
pub fn edge<T: Cost + Send + Sync + 'static>(
    budget: &Budget,
    name: impl Into<String>,
    capacity: Bytes,
) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        pool: Pool::new(budget, name, capacity),
        queue: Mutex::new(VecDeque::new()),
        items: Semaphore::new(0),
        senders: AtomicUsize::new(1),
        receivers: AtomicUsize::new(1),
    });
    let as_stop: Arc<dyn Stop> = shared.clone();
    budget.on_stop(Arc::downgrade(&as_stop));
    (Sender(shared.clone()), Receiver(shared))
}

impl<T: Cost> Sender<T> {
    /// Waits for room, then puts the item in.
    ///
    /// Cancel safety: a dropped call drops the item unsent. Use [`Self::reserve`] where that matters.
    pub async fn send(&self, item: T) -> Result<(), Closed> {
        let slot = self.reserve(item.cost()).await?;
        slot.send(item)
    }

    /// As [`Self::send`], from a plain thread. Never call it from a task or from within a rayon job.
    pub fn send_blocking(&self, item: T) -> Result<(), Closed> {
        block_on(self.send(item))
    }

    /// Waits for room. Cancel-safe: nothing is sent until [`Slot::send`].
    pub async fn reserve(&self, bytes: Bytes) -> Result<Slot<'_, T>, Closed> {
        let credit = self.0.pool.lease(bytes).await?;
        Ok(Slot { sender: self, credit })
    }

    /// Name of the edge.
    pub fn name(&self) -> &str {
        self.0.pool.line().name()
    }
}

impl<T> Slot<'_, T> {
    /// Puts the item in; never waits.
    pub fn send(self, item: T) -> Result<(), Closed> {
        let shared = &self.sender.0;
        let mut queue = lock(&shared.queue);
        // Checked under the lock under which the last receiver empties the queue: no item can slip in after it.
        if shared.receivers.load(Ordering::SeqCst) == 0 {
            return Err(Closed { name: self.sender.0.pool.line().name().to_owned() });
        }
        shared.pool.line().entered(self.credit.bytes());
        queue.push_back(Metered(Arc::new(Held { item, credit: self.credit })));
        drop(queue);
        shared.items.add_permits(1);
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` once every sender is gone and the edge is empty, or the run was stopped
    /// ([`Budget::is_stopped`] tells).
    ///
    /// Cancel safety: a dropped call takes nothing.
    pub async fn recv(&self) -> Option<Metered<T>> {
        match self.0.items.acquire().await {
            Ok(permit) => permit.forget(),
            // Closed: what is left may be taken without a permit.
            Err(_closed) => {}
        }
        self.0.pop()
    }

    /// As [`Self::recv`], on a plain thread.
    pub fn recv_blocking(&self) -> Option<Metered<T>> {
        block_on(self.recv())
    }

    /// The next item if one waits now. `None` says nothing about the end of the edge.
    pub fn try_recv(&self) -> Option<Metered<T>> {
        match self.0.items.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(tokio::sync::TryAcquireError::NoPermits) => return None,
            Err(tokio::sync::TryAcquireError::Closed) => {}
        }
        self.0.pop()
    }

    /// Name of the edge.
    pub fn name(&self) -> &str {
        self.0.pool.line().name()
    }
}

impl<T> Shared<T> {
    fn pop(&self) -> Option<Metered<T>> {
        let item = lock(&self.queue).pop_front()?;
        self.pool.line().left(item.0.credit.bytes());
        Some(item)
    }
}

impl<T: Send + Sync> Stop for Shared<T> {
    fn stop(&self) {
        self.pool.close();
        // The queue is taken out first: dropping items may run any code.
        let waiting = std::mem::take(&mut *lock(&self.queue));
        self.items.close();
        drop(waiting);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.items.close();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.receivers.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        if self.0.receivers.fetch_sub(1, Ordering::SeqCst) == 1 {
            let waiting = std::mem::take(&mut *queue);
            drop(queue);
            self.0.pool.close();
            drop(waiting);
        }
    }
}

impl<T> Metered<T> {
    /// The item and its lease, where this is the last clone; otherwise itself. Moves pixels out without a copy.
    pub fn into_inner_if_last(self) -> Result<(T, Credit), Self> {
        Arc::try_unwrap(self.0).map(|held| (held.item, held.credit)).map_err(Self)
    }

    /// The bytes it holds, in whole pages.
    pub fn held(&self) -> Bytes {
        self.0.credit.bytes()
    }
}

impl<T> Deref for Metered<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.item
    }
}

impl<T> Clone for Metered<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Metered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metered").field(&self.0.item).field(&self.held()).finish()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.0.pool.line().name()).finish()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.0.pool.line().name()).finish()
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Edge").field(&self.pool.line().name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;
    use crate::budget::PAGE;

    #[derive(Debug, PartialEq)]
    struct Item {
        id: usize,
        pages: u64,
    }

    impl Cost for Item {
        fn cost(&self) -> Bytes {
            Bytes(self.pages * PAGE)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send(u64),
        Receive,
        Finish(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![(0u64..9).prop_map(Step::Send), Just(Step::Receive), (0usize..4).prop_map(Step::Finish)];
        prop::collection::vec(step, 0..80)
    }

    /// Polls once; `None` where it would wait.
    fn now<F: Future>(future: F) -> Option<F::Output> {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    proptest! {
        #[test]
        fn the_edge_does_what_its_model_does(steps in steps(), capacity in 1u64..6) {
            let budget = Budget::new();
            let (tx, rx) = edge::<Item>(&budget, "edge", Bytes(capacity * PAGE));
            // The model: what waits and what is worked on, with the pages that each leased.
            let (mut waiting, mut working) = (VecDeque::new(), Vec::new());
            let mut largest = 0;
            for (id, step) in steps.into_iter().enumerate() {
                let held: u64 = waiting.iter().chain(working.iter().map(|(i, _)| i)).map(|(_, pages)| *pages).sum();
                match step {
                    Step::Send(pages) => {
                        let leased = pages.max(1);
                        let fits = held + leased.min(capacity) <= capacity;
                        prop_assert_eq!(now(tx.send(Item { id, pages })).is_some(), fits);
                        if fits {
                            largest = largest.max(leased);
                            waiting.push_back((id, leased));
                        }
                    }
                    Step::Receive => {
                        let got = now(rx.recv()).map(|m| m.expect("the sender lives"));
                        prop_assert_eq!(got.as_ref().map(|m| m.id), waiting.front().map(|(id, _)| *id));
                        if let Some(got) = got {
                            working.push((waiting.pop_front().expect("equal fronts"), got));
                        }
                    }
                    Step::Finish(n) if n < working.len() => drop(working.swap_remove(n)),
                    Step::Finish(_) => {}
                }
                let held: u64 = waiting.iter().chain(working.iter().map(|(i, _)| i)).map(|(_, pages)| *pages).sum();
                prop_assert_eq!(budget.leased_now(), Bytes(held * PAGE));
                prop_assert!(budget.peak_leased() <= Bytes(capacity.max(largest) * PAGE));
            }
            drop(tx);
            while let Some(item) = rx.recv_blocking() {
                prop_assert_eq!(Some(item.id), waiting.pop_front().map(|(id, _)| id));
            }
            prop_assert!(waiting.is_empty());
            drop(working);
            prop_assert_eq!(budget.leased_now(), Bytes(0));
        }
    }

    #[test]
    fn many_senders_and_receivers_neither_lose_nor_double_an_item() {
        let budget = Budget::new();
        let (tx, rx) = edge::<Item>(&budget, "edge", Bytes(3 * PAGE));
        let got: Vec<usize> = std::thread::scope(|s| {
            for sender in 0..4 {
                let tx = tx.clone();
                s.spawn(move || {
                    for i in 0..500 {
                        let item = Item { id: sender * 500 + i, pages: (i % 5) as u64 };
                        tx.send_blocking(item).expect("the receivers live");
                    }
                });
            }
            drop(tx);
            let workers: Vec<_> = (0..3)
                .map(|_| {
                    let rx = rx.clone();
                    s.spawn(move || std::iter::from_fn(|| rx.recv_blocking().map(|m| m.id)).collect::<Vec<_>>())
                })
                .collect();
            workers.into_iter().flat_map(|w| w.join().expect("no panic")).collect()
        });
        assert_eq!(got.len(), 2000);
        assert_eq!(got.into_iter().collect::<BTreeSet<_>>().len(), 2000);
        let line = &budget.lines()[0];
        // The largest item has 4 pages and the edge 3.
        assert!(line.peak <= Bytes(4 * PAGE), "{line:?}");
        assert_eq!((line.in_items_total, line.out_items_total, line.held), (2000, 2000, Bytes(0)));
    }

    #[test]
    fn a_sender_learns_that_its_reader_is_gone() {
        let budget = Budget::new();
        let (tx, rx) = edge::<Item>(&budget, "matches", Bytes(PAGE));
        tx.send_blocking(Item { id: 0, pages: 1 }).expect("room");
        drop(rx);
        let error = tx.send_blocking(Item { id: 1, pages: 1 }).expect_err("nobody reads");
        assert!(error.to_string().starts_with("matches is closed"), "{error}");
        assert_eq!(budget.leased_now(), Bytes(0));
    }

    #[test]
    fn stopping_wakes_who_waits_on_either_side() {
        let budget = Budget::new();
        let (tx, rx) = edge::<Item>(&budget, "full", Bytes(PAGE));
        let (other_tx, empty) = edge::<Item>(&budget, "empty", Bytes(PAGE));
        tx.send_blocking(Item { id: 0, pages: 1 }).expect("room");
        std::thread::scope(|s| {
            let sender = s.spawn(|| tx.send_blocking(Item { id: 1, pages: 1 }));
            let receiver = s.spawn(|| empty.recv_blocking().is_none());
            budget.stop();
            assert!(sender.join().expect("no panic").is_err());
            assert!(receiver.join().expect("no panic"));
        });
        assert!(rx.recv_blocking().is_none() && budget.is_stopped());
        drop(other_tx);
    }

    #[test]
    fn the_last_clone_moves_its_pixels_out_without_a_copy() {
        let budget = Budget::new();
        let (tx, rx) = edge::<Vec<u8>>(&budget, "edge", Bytes(4 * PAGE));
        let image = vec![7; 5000];
        let address = image.as_ptr();
        tx.send_blocking(image).expect("room");
        let first = rx.recv_blocking().expect("one item");
        let second = first.clone();
        let first = first.into_inner_if_last().expect_err("there is a second clone");
        drop(second);
        let (image, credit) = first.into_inner_if_last().expect("the last");
        assert_eq!(image.as_ptr(), address);
        assert_eq!(budget.leased_now(), Bytes(2 * PAGE));
        drop(credit);
        assert_eq!(budget.leased_now(), Bytes(0));
    }
}
