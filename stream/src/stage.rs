//! What a box of the picture is: synchronous, deterministic, one item in, some items out.
//!
//! ```text
//!  Receiver<Flow<In>> ─► [ process | lost ] ─► Outlet<Out> ─► Sender<Flow<Out>>
//! ```
//! An edge carries items *and* the news that a tile will never come ([`Flow`]), so that whoever gathers counts to the
//! promised total. Boxes that map one item to others implement [`Stage`] and are started with
//! [`Runner::stage`](crate::runner::Runner::stage); boxes that gather write their own loop and are started with
//! [`Runner::spawn`](crate::runner::Runner::spawn). Boxes that touch the disk are the same, on the same kind of thread; only
//! the network, timers and HTTP are asynchronous.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use kinesin_backpressure::{Bytes, Closed, Cost, Sender};

use crate::tile::{Loss, Reason, Tile};

/// What travels on an edge.
#[derive(Clone, Debug)]
pub enum Flow<T> {
    /// Something to work on.
    Item(T),
    /// A promised tile that will never come.
    Lost(Loss),
}

/// An item that can be named in a message and that knows what is missing if it is set aside.
pub trait Keyed: Cost + Send + Sync + 'static {
    /// Which one it is, for messages: `section 3 region 0 mFOV 2 beam 007`.
    fn label(&self) -> String;

    /// The promised tiles that will never come if this item is bad. Never empty for what carries a promised tile.
    fn losses(&self, reason: &Reason) -> Vec<Loss>;
}

/// A box that maps. Arrival order carries no meaning; identity is in the keys.
pub trait Stage: Send + 'static {
    /// What comes in.
    type In: Keyed;
    /// What goes out.
    type Out: Keyed;

    /// Takes one item. Keep ids and records if you must, never pixels. Emit from here, never from within a rayon job.
    fn process(&mut self, input: &Self::In, out: &mut Outlet<Self::Out>) -> Result<(), Fault>;

    /// Takes the news that a tile will never come. Mappers pass it on, as here; who knows more may do more.
    fn lost(&mut self, loss: &Loss, out: &mut Outlet<Self::Out>) -> Result<(), Fault> {
        out.lost(loss.clone())
    }

    /// The edge has ended and the run was not stopped: emit what is left. Called once for each worker.
    fn finish(&mut self, _out: &mut Outlet<Self::Out>) -> Result<(), Fault> {
        Ok(())
    }
}

/// What the runner should do about it. There is no third choice.
#[derive(Debug)]
pub enum Fault {
    /// This item is bad: its tiles are lost with this reason, the stage goes on.
    Item(Reason),
    /// The stage is bad: the run stops.
    Stop(StopError),
}

/// Why the run stops: any error. `?` makes one.
pub struct StopError(Box<dyn Error + Send + Sync>);

/// The run was stopped elsewhere; whoever gets this just returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run was stopped")]
pub struct Stopped;

/// An edge ended before everything that was promised had come. Whoever ended it has the cause, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfinished(pub String);

/// Where a stage puts what it made. May wait for room.
#[derive(Debug)]
pub struct Outlet<T> {
    sender: Sender<Flow<T>>,
    waited: Duration,
}

impl<T: Keyed> Outlet<T> {
    /// An outlet onto an edge.
    pub fn new(sender: Sender<Flow<T>>) -> Self {
        Self { sender, waited: Duration::ZERO }
    }

    /// Sends an item on.
    pub fn emit(&mut self, item: T) -> Result<(), Fault> {
        self.send(Flow::Item(item))
    }

    /// Passes a loss on.
    pub fn lost(&mut self, loss: Loss) -> Result<(), Fault> {
        self.send(Flow::Lost(loss))
    }

    fn send(&mut self, flow: Flow<T>) -> Result<(), Fault> {
        let since = Instant::now();
        let sent = self.sender.send_blocking(flow);
        self.waited += since.elapsed();
        Ok(sent?)
    }

    /// Time spent waiting since the last call.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl StopError {
    /// The error itself.
    pub fn inner(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }

    /// Whether this only says that somebody else stopped: such errors never hide the cause.
    pub(crate) fn is_echo(&self) -> bool {
        self.0.is::<Closed>() || self.0.is::<Stopped>() || self.0.is::<Unfinished>()
    }

    pub(crate) fn into_inner(self) -> Box<dyn Error + Send + Sync> {
        self.0
    }
}

impl fmt::Debug for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// StopError and Fault are not errors themselves, so that any error converts into them.
impl<E: Error + Send + Sync + 'static> From<E> for StopError {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Stop(error.into())
    }
}

impl From<StopError> for Fault {
    fn from(error: StopError) -> Self {
        Self::Stop(error)
    }
}

impl<T: Cost> Cost for Flow<T> {
    fn cost(&self) -> Bytes {
        match self {
            Self::Item(item) => item.cost(),
            Self::Lost(loss) => loss.cost(),
        }
    }
}

impl Cost for Loss {
    fn cost(&self) -> Bytes {
        Bytes(size_of::<Self>() as u64)
    }
}

impl Cost for Tile {
    fn cost(&self) -> Bytes {
        Bytes(self.pixels.data().len() as u64)
    }
}

impl Keyed for Tile {
    fn label(&self) -> String {
        self.key.to_string()
    }

    fn losses(&self, reason: &Reason) -> Vec<Loss> {
        vec![Loss { key: self.key, plan: self.plan.clone(), reason: reason.clone() }]
    }
}

impl<T: Keyed> Flow<T> {
    /// Which one it is, for messages.
    pub fn label(&self) -> String {
        match self {
            Self::Item(item) => item.label(),
            Self::Lost(loss) => format!("loss of {}", loss.key),
        }
    }
}
