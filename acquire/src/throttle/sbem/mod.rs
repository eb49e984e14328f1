//! SBEMimage held by its own exchange: it calls before it images a slice, says its state, and waits without a time-out for a
//! reply. The later the reply, the later the slice and the cut after it.
//!
//! ```text
//!  SBEMimage                                     Kinesin
//!  cut n ─► connect ─► {"z_depth": ...} ────────► Hold: no reply        Slow(f): reply after busy * (1/f - 1)
//!           image n+1, cut ◄── {"commands": []} ◄─ Go
//! ```
//! What SBEMimage does when something breaks (read from its source, May 2026), and so what we do:
//!
//! | event | SBEMimage | here |
//! |---|---|---|
//! | connection refused: Kinesin is not running | pauses before the slice; a person must start it again | - |
//! | connection closed without a reply: Kinesin killed while it held | its acquisition ends with an exception in its log; a person must start it again | a Kinesin that ends in order answers first |
//! | a reply that is no JSON, an unknown command | the same | commands are a type, checked against the state |
//! | "Test connection" in its dialogue | sends the same message, and its window waits for the reply | answered at once while a slice waits already |
//!
//! Whatever cannot be read is answered at once with no commands: better an instrument that is not throttled than one that hangs.

mod message;
mod server;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinesin_backpressure::Bytes;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{HookEvent, Request, Tell, Throttle, ThrottleError, Wish};
pub use message::{LONGEST_STATE, ObjectEnd, PauseWhen, Progress, SbemCommand, State, reply};

const NAME: &str = "SBEMimage";
/// Slices of which the time is remembered.
const SLICES: usize = 9;
/// Longest that a slow slice waits: what takes longer is a hold, which is asked for by itself. Bounds what a measured time that
/// was a pause of the operator can do.
const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);
/// Commands that wait for the next slice.
const QUEUE: usize = 64;

/// `sbemimage` of a site file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SbemConfig {
    /// Where Kinesin listens, IPv4 and port: what is entered in SBEMimage's TCP settings, with "Use TCP" ticked. Default
    /// 127.0.0.1:8888, which is where SBEMimage calls when nobody changed it.
    pub listen: String,
    /// A hold or slow that SBEMimage has not called in for this long is told as without effect, seconds. Default 1800: longer
    /// than nearly every slice takes.
    pub silence_seconds: f64,
}

impl Default for SbemConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8888".into(), silence_seconds: 1800.0 }
    }
}

impl SbemConfig {
    /// Checks it; says what to do.
    pub fn address(&self) -> Result<SocketAddr, String> {
        if !(1.0..=1e6).contains(&self.silence_seconds) {
            return Err(format!("silence_seconds = {}\nuse 1 to 1000000, default 1800", self.silence_seconds));
        }
        match self.listen.parse() {
            Ok(SocketAddr::V4(at)) => Ok(SocketAddr::V4(at)),
            Ok(SocketAddr::V6(at)) => {
                Err(format!("{at}: SBEMimage calls over IPv4 only\ngive one such as 127.0.0.1:8888"))
            }
            Err(_no) => Err(format!("{:?} is not an address\ngive IP:PORT such as 127.0.0.1:8888", self.listen)),
        }
    }
}

/// The hook: the listening side. Dropping it answers whoever waits and stops listening.
pub struct SbemImage {
    handle: SbemHandle,
    wish: watch::Sender<Wish>,
    local: SocketAddr,
    server: AbortHandle,
}

/// SBEMimage as seen from here. Cheap to clone.
#[derive(Clone)]
pub struct SbemHandle {
    shared: Arc<Mutex<Shared>>,
}

/// What is seen of SBEMimage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sight {
    /// Its state at its last call.
    pub state: Option<State>,
    /// Slices that it called in for.
    pub slices: u64,
    /// Whether a slice waits for its reply now.
    pub waiting: bool,
    /// Time since its last call, seconds.
    pub silent_seconds: Option<f64>,
    /// Time that it takes for a slice by itself, seconds; the median of the last few.
    pub slice_seconds: Option<f64>,
}

#[derive(Default)]
struct Shared {
    state: Option<State>,
    slices: u64,
    called: Option<Instant>,
    replied: Option<Instant>,
    busy: VecDeque<Duration>,
    waiting: Option<Waiting>,
    queue: VecDeque<SbemCommand>,
    /// What could not be read last was told; told again only after something that could.
    unreadable_told: bool,
}

/// The conversation that holds a slice.
struct Waiting {
    number: u64,
    z_depth_um: Option<f64>,
    /// Ends it: its SBEMimage is gone.
    give_up: Arc<tokio::sync::Notify>,
}

impl SbemImage {
    /// States being read, and commands that wait.
    pub const MEMORY: Bytes = Bytes(16 << 20);

    /// Listens at `at`; `patience` is how long a message may take to come whole.
    pub fn listen(
        config: &SbemConfig,
        at: SocketAddr,
        patience: Duration,
        runtime: &Handle,
        tell: Tell,
    ) -> Result<Self, String> {
        let busy = |e: std::io::Error| {
            format!("cannot listen at {at}: {e}; give another port here and in SBEMimage's TCP settings")
        };
        let listener = std::net::TcpListener::bind(at).map_err(busy)?;
        listener.set_nonblocking(true).map_err(busy)?;
        let local = listener.local_addr().map_err(busy)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(busy)?
        };
        let handle = SbemHandle { shared: Arc::default() };
        let (wish, wishes) = watch::channel(Wish::Go);
        let silence = Duration::from_secs_f64(config.silence_seconds);
        let text =
            format!("listens at {local}; SBEMimage's TCP settings need this host and port, and \"Use TCP\" a tick");
        tell(HookEvent::Seen { hook: NAME, text });
        let desk = server::Desk { handle: handle.clone(), wishes, tell, patience, silence };
        let server = runtime.spawn(server::serve(listener, desk)).abort_handle();
        Ok(Self { handle, wish, local, server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Its state, and commands for the next slice.
    pub fn handle(&self) -> SbemHandle {
        self.handle.clone()
    }
}

impl Drop for SbemImage {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl SbemHandle {
    /// What is seen now.
    pub fn sight(&self) -> Sight {
        let shared = self.lock();
        Sight {
            state: shared.state.clone(),
            slices: shared.slices,
            waiting: shared.waiting.is_some(),
            silent_seconds: shared.called.map(|at| at.elapsed().as_secs_f64()),
            slice_seconds: shared.slice_time().map(|d| d.as_secs_f64()),
        }
    }

    /// Sends a command with the reply to the next slice; refused when it cannot be right or too many wait.
    pub fn queue(&self, command: SbemCommand) -> Result<(), String> {
        let mut shared = self.lock();
        command.check(shared.state.as_ref())?;
        if shared.queue.len() >= QUEUE {
            return Err(format!(
                "{QUEUE} commands wait for SBEMimage's next slice already; see whether it still calls"
            ));
        }
        shared.queue.push_back(command);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn slice_time(&self) -> Option<Duration> {
        let mut busy: Vec<_> = self.busy.iter().copied().collect();
        busy.sort_unstable();
        busy.get(busy.len().saturating_sub(1) / 2).copied()
    }
}

/// How long the reply to a slice waits. `busy`: what SBEMimage takes for a slice by itself. `None`: until something else is
/// wanted.
pub fn delay(wish: Wish, busy: Option<Duration>) -> Option<Duration> {
    match wish {
        Wish::Go => Some(Duration::ZERO),
        Wish::Hold => None,
        Wish::Slow(fraction) => {
            let factor = (1.0 / fraction - 1.0).clamp(0.0, 1e6);
            let seconds = busy.unwrap_or_default().as_secs_f64() * factor;
            Some(Duration::from_secs_f64(seconds.min(LONGEST_DELAY.as_secs_f64())))
        }
    }
}

impl Throttle for SbemImage {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn ask(&mut self, request: &Request) -> Result<String, ThrottleError> {
        self.wish.send_replace(request.wish);
        if self.server.is_finished() {
            let why = format!("nobody listens at {} any more; start Kinesin again", self.local);
            return Err(ThrottleError::Failed { hook: NAME, wish: request.wish, why });
        }
        let sight = self.handle.sight();
        let seen = match &sight.state {
            Some(State { z_depth_um: Some(z), .. }) => format!("last seen at z {z} um"),
            Some(_) => "z not known".into(),
            None => "it has not called yet".into(),
        };
        Ok(match request.wish {
            Wish::Go => format!("slices go on ({seen})"),
            Wish::Hold if sight.waiting => format!("a slice waits ({seen})"),
            Wish::Hold => format!("it will wait before its next slice ({seen})"),
            Wish::Slow(_) => match delay(request.wish, sight.slice_seconds.map(Duration::from_secs_f64)) {
                Some(d) if !d.is_zero() => format!("each slice waits {:.1} s ({seen})", d.as_secs_f64()),
                _ => format!("each slice waits once its time is measured ({seen})"),
            },
        })
    }

    fn sbem(&self) -> Option<SbemHandle> {
        Some(self.handle())
    }
}
