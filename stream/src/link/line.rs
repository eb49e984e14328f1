//! The scope's connections, one after the other: call, converse, call again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kinesin_backpressure::Pool;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

use super::keys::HEAD_NAME;
use super::outbox::Outbox;
use super::queue::Say;
use super::scope::{ScopeConfig, TRIES};
use super::sending::send_mfov;
use super::wire::{PROTOCOL, ToHead, ToScope, read_message, write_message};
use super::{BEAT, CODE_DONE, CODE_PROTOCOL, CODE_STOPPED, End, LinkError, peer_said};
use crate::ledger::ContentHash;
use crate::runner::RunToken;

/// The line to the head.
pub(super) struct Line {
    endpoint: Endpoint,
    config: ScopeConfig,
    control: Pool,
    run: RunToken,
    outbox: Arc<Outbox>,
    /// Connections in a row that were given up because no receipt came: each is given twice the time of the one before.
    barren: AtomicU32,
}

struct Call {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

/// Signs of life of the head, on one connection.
#[derive(Debug)]
struct Signs {
    since: Instant,
    /// Milliseconds since then, of its last word.
    heard: AtomicU64,
    /// Whether it said that tiles wait for room in it.
    waiting: AtomicBool,
    /// Whether it gave a receipt.
    receipts: AtomicBool,
}

impl Line {
    pub(super) fn new(
        endpoint: Endpoint,
        config: ScopeConfig,
        control: Pool,
        run: RunToken,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self { endpoint, config, control, run, outbox, barren: AtomicU32::new(0) }
    }

    /// Serves one connection after the other until all is said.
    pub(super) async fn drive(&self) -> Result<(), LinkError> {
        let mut call = self.call().await?;
        loop {
            let connection = call.connection.clone();
            // Closed before the streams drop: a dropped stream would look finished.
            let stopped = async {
                self.run.stopped().await;
                connection.close(CODE_STOPPED, b"the scope was stopped");
            };
            let end = tokio::select! {
                end = self.converse(call) => end,
                () = stopped => return Err(self.stopped()),
            };
            self.outbox.disconnect();
            let why = match end {
                End::Done if self.outbox.is_done() => {
                    connection.close(CODE_DONE, b"done");
                    return Ok(());
                }
                End::Protocol(what) => {
                    connection.close(CODE_PROTOCOL, what.as_bytes());
                    return self.verdict(End::Protocol(what)).map(drop);
                }
                other => self.verdict(other),
            };
            connection.close(CODE_STOPPED, b"calling again");
            let why = why?;
            tracing::info!(head = %self.config.head, why, "connection to the head lost; calling again");
            call = match self.call().await {
                Ok(call) => call,
                Err(LinkError::Unreachable { .. }) if self.outbox.has_said_end() => {
                    tracing::warn!("the head left before it answered the end; every receipt is here");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            self.outbox.count(|s| s.reconnects += 1);
        }
    }

    /// The link has ended.
    pub(super) async fn close(&self, failure: Option<LinkError>) {
        self.outbox.over(failure);
        self.endpoint.wait_idle().await;
    }

    /// Calls until the head welcomes us.
    async fn call(&self) -> Result<Call, LinkError> {
        let since = Instant::now();
        // Once all is said, a head that has left is no reason to wait.
        let patience = if self.outbox.has_said_end() { 5.0 } else { self.config.settings.give_up_seconds };
        let mut pause = Duration::from_millis(50);
        loop {
            let end = tokio::select! {
                call = self.call_once() => match call {
                    Ok(call) => return Ok(call),
                    Err(end) => end,
                },
                () = self.run.stopped() => return Err(self.stopped()),
            };
            let last = self.verdict(end)?;
            let seconds = since.elapsed().as_secs_f64();
            if seconds > patience {
                return Err(LinkError::Unreachable { peer: self.config.head, seconds, last });
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.run.stopped() => return Err(self.stopped()),
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn call_once(&self) -> Result<Call, End> {
        let connecting = self.endpoint.connect(self.config.head, HEAD_NAME);
        let connection = connecting.map_err(|e| peer_said(format!("an address that cannot be called: {e}")))?.await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let hello = ToHead::Hello { protocol: PROTOCOL, digest: ContentHash(self.config.digest.0) };
        write_message(&mut send, &hello).await?;
        let answer = timeout(self.config.settings.stall(), read_message(&mut recv, &self.control)).await;
        match answer.map_err(|_elapsed| End::Stalled("it answers calls but not the hello".into()))?? {
            ToScope::Welcome => {
                tracing::debug!("the head is there");
                Ok(Call { connection, send, recv })
            }
            ToScope::Refused { why } => {
                connection.close(CODE_DONE, b"understood");
                Err(End::Refused(why))
            }
            _ => Err(peer_said("no welcome")),
        }
    }

    /// `Ok` says why the call should be made again.
    fn verdict(&self, end: End) -> Result<String, LinkError> {
        let peer = self.config.head;
        match end {
            End::Lost(error) => match LinkError::not_trusted(peer, &error) {
                Some(fatal) => Err(fatal),
                None => Ok(error.to_string()),
            },
            End::Done => Ok("the head hung up".to_owned()),
            End::Stalled(what) => {
                tracing::warn!(head = %peer, what, "the head does not go on; hanging up and calling again");
                self.outbox.count(|s| s.stalls += 1);
                Ok(what)
            }
            End::Protocol(what) => Err(LinkError::Protocol { peer, what }),
            End::Refused(why) => Err(LinkError::Refused { peer, why }),
            End::Closed(closed) => Err(closed.into()),
            End::Damaged(mfov) => Err(LinkError::Damaged { mfov, times: TRIES }),
            End::Fatal(error) => Err(error),
        }
    }

    fn stopped(&self) -> LinkError {
        LinkError::Closed(kinesin_backpressure::Closed { name: format!("the link to {}", self.config.head) })
    }

    async fn converse(&self, call: Call) -> End {
        let Call { connection, mut send, mut recv } = call;
        let epoch = self.outbox.connect();
        let signs = Arc::new(Signs::new());
        let mut tasks: JoinSet<Result<(), End>> = JoinSet::new();
        let (for_hear, for_speak, for_send) = (self.outbox.clone(), self.outbox.clone(), self.outbox.clone());
        let (control, heard) = (self.control.clone(), signs.clone());
        let streams = self.config.settings.streams as usize;
        tasks.spawn(async move { hear(&for_hear, &heard, &control, &mut recv).await });
        tasks.spawn(async move { speak(&for_speak, epoch, &mut send).await });
        tasks.spawn(async move { send_all(&for_send, epoch, connection, streams).await });
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            end = self.watch(&signs) => Some(Ok(Err(end))),
        };
        match ended {
            Some(Ok(Err(end))) => end,
            Some(Ok(Ok(()))) | None => End::Done,
            Some(Err(error)) => peer_said(format!("a message that failed: {error}")),
        }
    }

    /// Returns once the head has gone silent, or owes us something and does not go on with it.
    async fn watch(&self, signs: &Signs) -> End {
        let stall = self.config.settings.stall();
        loop {
            tokio::time::sleep((stall / 4).min(BEAT)).await;
            if signs.receipts.load(Relaxed) {
                self.barren.store(0, Relaxed);
            }
            let silent = signs.heard_before();
            if silent > stall {
                return End::Stalled(format!(
                    "no word for {:.0} s, although the connection is open",
                    silent.as_secs_f64()
                ));
            }
            if signs.waiting.load(Relaxed) || !self.outbox.is_waiting() {
                self.outbox.moved();
            }
            let idle = self.outbox.moved_before();
            // Sending everything again is dear where the head is only slow: it gets longer each time.
            if idle > stall * 2_u32.saturating_pow(self.barren.load(Relaxed).min(5)) {
                self.barren.fetch_add(1, Relaxed);
                let seconds = idle.as_secs_f64();
                return End::Stalled(format!("no receipt for {seconds:.0} s, although it has room"));
            }
        }
    }
}

impl Signs {
    fn new() -> Self {
        let (heard, waiting, receipts) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Self { since: Instant::now(), heard, waiting, receipts }
    }

    fn heard(&self) {
        self.heard.store(self.since.elapsed().as_millis() as u64, Relaxed);
    }

    fn heard_before(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Relaxed)))
    }
}

/// Reads what the head says; returns after its last word.
async fn hear(outbox: &Outbox, signs: &Signs, control: &Pool, recv: &mut RecvStream) -> Result<(), End> {
    loop {
        let message = read_message(recv, control).await?;
        signs.heard();
        match message {
            ToScope::Durable(mfov) => {
                tracing::debug!(%mfov, "durable at the head");
                signs.receipts.store(true, Relaxed);
                block_in_place(|| outbox.receipt(mfov))?;
            }
            ToScope::Again(mfov) => outbox.again(mfov)?,
            ToScope::Promised { section, durable } => block_in_place(|| outbox.answered(section, &durable))?,
            ToScope::Beat { waiting } => signs.waiting.store(waiting, Relaxed),
            ToScope::Ended => {
                outbox.done();
                return Ok(());
            }
            ToScope::Welcome | ToScope::Refused { .. } => return Err(peer_said("a second welcome")),
        }
    }
}

/// Writes plans, notes, the status and the end; then waits for the reader to hear the answer.
async fn speak(outbox: &Outbox, epoch: u64, send: &mut SendStream) -> Result<(), End> {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        let say = tokio::select! {
            say = outbox.next_message(epoch) => say,
            _ = beat.tick() => Some(Say::Message(ToHead::Status(outbox.status()))),
        };
        let message = match say {
            None => return Err(peer_said("two calls at once")),
            Some(Say::Message(message)) => message,
            Some(Say::Plan(section)) => match block_in_place(|| outbox.tiles.plan(section))? {
                Some(plan) => ToHead::Section(Arc::new(plan)),
                // It was over in the meantime.
                None => continue,
            },
        };
        write_message(send, &message).await?;
    }
}

/// Sends what waits, some mFOVs at a time.
async fn send_all(outbox: &Arc<Outbox>, epoch: u64, connection: Connection, streams: usize) -> Result<(), End> {
    let mut sending: JoinSet<Result<(), End>> = JoinSet::new();
    loop {
        tokio::select! {
            job = outbox.next_shipment(epoch), if sending.len() < streams.max(1) => {
                let Some(job) = job else { return Err(peer_said("two calls at once")) };
                let (connection, outbox) = (connection.clone(), outbox.clone());
                sending.spawn(async move { send_mfov(&connection, &outbox.tiles, job, &outbox).await });
            }
            Some(done) = sending.join_next() => {
                done.unwrap_or_else(|e| Err(peer_said(format!("an mFOV that failed: {e}"))))?;
            }
        }
    }
}
