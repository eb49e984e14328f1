//! The scope's side: calls, sends, keeps what has no receipt, and calls again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinesin_backpressure::{Budget, Pool};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::keys::HEAD_NAME;
use super::outbox::Outbox;
use super::shipment::{Shipment, send_mfov};
use super::wire::{PROTOCOL, ToHead, ToScope, read_message, write_message};
use super::{CODE_DONE, CODE_PROTOCOL, CODE_STOPPED, End, Keys, LinkError, LinkSettings, Role, peer_said};
use crate::ids::{MfovId, TileKey};
use crate::ledger::{ContentHash, PlanDigest};
use crate::plan::SectionPlan;
use crate::runner::RunToken;

/// What the scope needs to call.
#[derive(Clone, Debug)]
pub struct ScopeConfig {
    /// Where the head listens.
    pub head: SocketAddr,
    /// Keys of the role `Scope`.
    pub keys: Keys,
    /// Identity of the run; the head must have the same.
    pub digest: PlanDigest,
    /// Sizes and times.
    pub settings: LinkSettings,
}

/// A link to the head.
#[derive(Debug)]
pub struct Scope {
    outbox: Arc<Outbox>,
    task: JoinHandle<()>,
}

/// What went over the link.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ScopeSummary {
    /// Tiles that the head has durable.
    pub tiles: u64,
    /// Losses that the head has entered.
    pub losses: u64,
    /// Bytes of those tiles.
    pub bytes: u64,
    /// mFOVs with a receipt.
    pub mfovs: u64,
    /// mFOVs that were sent once more.
    pub sent_again: u64,
    /// Connections after the first.
    pub reconnects: u64,
}

/// How often a damaged mFOV is sent.
pub(super) const TRIES: u32 = 3;

impl Scope {
    /// Calls the head, for as long as the settings say. Returns the link and the mFOVs that the head already has durable.
    pub async fn connect(
        runtime: &Handle,
        budget: &Budget,
        run: RunToken,
        config: ScopeConfig,
    ) -> Result<(Self, BTreeSet<MfovId>), LinkError> {
        let [(windows, bytes), (messages, most)] = config.settings.budget_lines(Role::Scope);
        budget.fixed(windows, bytes);
        let control = Pool::new(budget, messages, most);
        let mut client = ClientConfig::new(Arc::new(config.keys.client()?));
        client.transport_config(config.settings.transport(0, 0));
        let any: SocketAddr = if config.head.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let mut endpoint = {
            let _context = runtime.enter();
            Endpoint::client(any).map_err(|source| LinkError::Bind { addr: any, source })?
        };
        endpoint.set_default_client_config(client);
        let outbox = Arc::new(Outbox::default());
        let line = Line { endpoint, config, control, run, outbox: outbox.clone() };
        let first = match line.call().await {
            Ok(first) => first,
            Err(error) => {
                line.endpoint.wait_idle().await;
                return Err(error);
            }
        };
        let durable: BTreeSet<MfovId> = first.durable.iter().copied().collect();
        let task = runtime.spawn(async move {
            let result = line.drive(first).await;
            line.outbox.over(result.err());
            line.endpoint.wait_idle().await;
        });
        Ok((Self { outbox, task }, durable))
    }

    /// Announces a section; its mFOVs may be shipped from now on. Those in `durable` are not waited for.
    pub fn section(&self, plan: Arc<SectionPlan>, durable: &BTreeSet<MfovId>) {
        self.outbox.announce(plan, durable);
    }

    /// Sends an mFOV and keeps it until its receipt. Never waits: what bounds it are its credits.
    pub fn ship(&self, shipment: Shipment) {
        self.outbox.ship(shipment);
    }

    /// Says that a tile came again after its mFOV was shipped.
    pub fn came_again(&self, key: TileKey, hash: ContentHash) {
        self.outbox.note(ToHead::Again { key, hash });
    }

    /// Says that a tile came that no plan promised.
    pub fn foreign(&self, key: TileKey) {
        self.outbox.note(ToHead::Foreign { key });
    }

    /// mFOVs without a receipt.
    pub fn outstanding(&self) -> usize {
        self.outbox.outstanding()
    }

    /// What has its receipt so far.
    pub fn summary(&self) -> ScopeSummary {
        self.outbox.summary()
    }

    /// Waits until the link has failed or is finished. Cancel-safe.
    pub async fn closed(&self) {
        self.outbox.wait_over().await;
    }

    /// Waits for every receipt, says goodbye, and returns what was sent.
    ///
    /// # Errors
    /// What made the link fail, also earlier.
    pub async fn finish(mut self) -> Result<ScopeSummary, LinkError> {
        self.outbox.end();
        self.outbox.wait_over().await;
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the scope's link task failed");
        }
        match self.outbox.take_failure() {
            Some(error) => Err(error),
            None => Ok(self.outbox.summary()),
        }
    }
}

impl Drop for Scope {
    /// Hangs up at once; what has no receipt is sent by whoever calls next. After [`Scope::finish`] this does nothing.
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Line {
    endpoint: Endpoint,
    config: ScopeConfig,
    control: Pool,
    run: RunToken,
    outbox: Arc<Outbox>,
}

struct Call {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    durable: Vec<MfovId>,
}

impl Line {
    /// Serves one connection after the other until all is said.
    async fn drive(&self, first: Call) -> Result<(), LinkError> {
        let mut call = first;
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
            self.outbox.count_reconnect();
        }
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
        match read_message(&mut recv, &self.control).await? {
            ToScope::Welcome { durable } => Ok(Call { connection, send, recv, durable }),
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
        let Call { connection, mut send, mut recv, durable } = call;
        let epoch = self.outbox.connect(&durable);
        let mut tasks: JoinSet<Result<(), End>> = JoinSet::new();
        let (for_hear, for_speak, for_send) = (self.outbox.clone(), self.outbox.clone(), self.outbox.clone());
        let control = self.control.clone();
        let streams = self.config.settings.streams as usize;
        tasks.spawn(async move { hear(&for_hear, &control, &mut recv).await });
        tasks.spawn(async move { speak(&for_speak, epoch, &mut send).await });
        tasks.spawn(async move { send_all(&for_send, epoch, connection, streams).await });
        match tasks.join_next().await {
            Some(Ok(Err(end))) => end,
            Some(Ok(Ok(()))) | None => End::Done,
            Some(Err(error)) => peer_said(format!("a message that failed: {error}")),
        }
    }
}

/// Reads what the head says; returns after its last word.
async fn hear(outbox: &Outbox, control: &Pool, recv: &mut RecvStream) -> Result<(), End> {
    loop {
        match read_message(recv, control).await? {
            ToScope::Durable(mfov) => outbox.receipt(mfov),
            ToScope::Again(mfov) => outbox.again(mfov)?,
            ToScope::Promised(section) => tracing::debug!(%section, "promised"),
            ToScope::Ended => {
                outbox.done();
                return Ok(());
            }
            ToScope::Welcome { .. } | ToScope::Refused { .. } => return Err(peer_said("a second welcome")),
        }
    }
}

/// Writes plans, notes and the end; then waits for the reader to hear the answer.
async fn speak(outbox: &Outbox, epoch: u64, send: &mut SendStream) -> Result<(), End> {
    while let Some(message) = outbox.next_message(epoch).await {
        write_message(send, &message).await?;
    }
    Err(peer_said("two calls at once"))
}

/// Sends what waits, some mFOVs at a time.
async fn send_all(outbox: &Outbox, epoch: u64, connection: Connection, streams: usize) -> Result<(), End> {
    let mut sending: JoinSet<Result<(), End>> = JoinSet::new();
    loop {
        tokio::select! {
            shipment = outbox.next_shipment(epoch), if sending.len() < streams.max(1) => {
                let Some(shipment) = shipment else { return Err(peer_said("two calls at once")) };
                let connection = connection.clone();
                sending.spawn(async move { send_mfov(&connection, &shipment).await });
            }
            Some(done) = sending.join_next() => {
                done.unwrap_or_else(|e| Err(peer_said(format!("an mFOV that failed: {e}"))))?;
            }
        }
    }
}
