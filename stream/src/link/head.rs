//! The head's side: listens, checks who calls, and puts what comes into an edge.
//!
//! One scope at a time; a new connection of the scope replaces the old one, which may be a connection whose loss was not
//! noticed yet. Each tile passes into the edge once, however often its mFOV is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kinesin_backpressure::{Budget, Pool, Sender};
use quinn::{Connection, ConnectionError, Endpoint, ServerConfig, TokioRuntime};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::desk::Desk;
use super::shared::{Shared, lock};
use super::status::ScopeStatus;
use super::wire::{ToHead, ToScope, read_message, write_message};
use super::{
    BEAT, CODE_DONE, CODE_PROTOCOL, CODE_REPLACED, CODE_STOPPED, End, Keys, LinkError, LinkSettings, Role, peer_said,
    read,
};
use crate::ids::{MfovId, TileKey};
use crate::ledger::{ContentHash, Ledger, PlanDigest};
use crate::plan::SectionPlan;
use crate::runner::Runner;
use crate::stage::{Flow, StopError};
use crate::tile::Tile;

/// What the head needs to listen.
#[derive(Clone, Debug)]
pub struct HeadConfig {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Keys of the role `Head`.
    pub keys: Keys,
    /// Identity of the run; a scope with another is refused.
    pub digest: PlanDigest,
    /// Sizes and times.
    pub settings: LinkSettings,
}

/// A listening head.
#[derive(Debug)]
pub struct Head {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// Tells the scope what is durable. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct Receipts(Arc<Desk>);

/// What came over the link.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HeadSummary {
    /// Tiles that went into the edge.
    pub tiles: u64,
    /// Losses that went into the edge.
    pub losses: u64,
    /// Bytes of those tiles.
    pub bytes: u64,
    /// Tiles that were sent once more after a lost connection or damage, and dropped.
    pub sent_again: u64,
    /// mFOVs that arrived damaged.
    pub damaged: u64,
    /// Connections of the scope.
    pub connections: u64,
    /// Connections that were given up because the scope did not go on.
    pub stalls: u64,
    /// Callers that were refused because they are not of this link or run.
    pub refused: u64,
    /// Why the last of them was.
    pub last_refusal: Option<String>,
}

/// Callers whose keys are being checked at a time.
const HANDSHAKES: usize = 8;

impl Head {
    /// Listens. Tiles and losses go into `tiles`, which ends when the scope says that it is done; `on_section` is called once
    /// for each section, on a thread that may wait, after its promise is in the ledger. A fault stops the run of `runner`.
    pub fn bind(
        runtime: &Handle,
        runner: &Runner,
        budget: &Budget,
        config: HeadConfig,
        ledger: Ledger,
        tiles: Sender<Flow<Tile>>,
        on_section: impl Fn(Arc<SectionPlan>) + Send + Sync + 'static,
    ) -> Result<Self, LinkError> {
        let [(windows, bytes), (messages, most)] = config.settings.budget_lines(Role::Head);
        budget.fixed(windows, bytes);
        let control = Pool::new(budget, messages, most);
        let endpoint = listen(runtime, &config)?;
        let bound = |source| LinkError::Bind { addr: config.bind, source };
        let addr = endpoint.local_addr().map_err(bound)?;
        let run = runner.token("link");
        let desk = Arc::new(Desk::new());
        let shared = Arc::new(Shared::new(config, ledger, desk, control, run, Box::new(on_section)));
        let (serving, stop) = (shared.clone(), runner.stop_handle());
        let task = runtime.spawn(async move {
            // `tiles` lives in here: when serving ends, the edge ends. The fault is entered first.
            let result = serve(&serving, &endpoint, &tiles).await;
            if let Err(error) = result {
                let error = match error {
                    LinkError::Closed(closed) => StopError::from(closed),
                    other => StopError::from(other),
                };
                stop.fault("link", error);
            }
            drop(tiles);
            endpoint.close(CODE_STOPPED, b"the head is down");
            endpoint.wait_idle().await;
        });
        Ok(Self { addr, shared, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the scope said of itself last; `None` while it is not there.
    pub fn scope_status(&self) -> Option<ScopeStatus> {
        *lock(&self.shared.status)
    }

    /// Tells [`Self::scope_status`] from anywhere.
    pub fn status_reader(&self) -> impl Fn() -> Option<ScopeStatus> + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || *lock(&shared.status)
    }

    /// Where the archive tells what is durable.
    pub fn receipts(&self) -> Receipts {
        Receipts(self.shared.desk.clone())
    }

    /// What came so far.
    pub fn summary(&self) -> HeadSummary {
        lock(&self.shared.summary).clone()
    }

    /// Waits until the scope is done or the run is stopped; a fault is in [`Runner::join`].
    pub async fn join(self) -> HeadSummary {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the head's task failed");
        }
        lock(&self.shared.summary).clone()
    }
}

impl Receipts {
    /// Every tile of this mFOV is durable or lost in the ledger: the scope may forget its bytes.
    pub fn durable(&self, mfov: MfovId) {
        self.0.settle(mfov);
    }
}

fn listen(runtime: &Handle, config: &HeadConfig) -> Result<Endpoint, LinkError> {
    let mut server = ServerConfig::with_crypto(Arc::new(config.keys.server()?));
    server.transport_config(config.settings.transport(config.settings.streams, 1));
    let bound = |source| LinkError::Bind { addr: config.bind, source };
    let _context = runtime.enter();
    let (socket, endpoint) = config.settings.socket(config.bind).map_err(bound)?;
    Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime)).map_err(bound)
}

async fn serve(shared: &Arc<Shared>, endpoint: &Endpoint, tiles: &Sender<Flow<Tile>>) -> Result<(), LinkError> {
    let mut handshakes: JoinSet<(SocketAddr, Result<Connection, ConnectionError>)> = JoinSet::new();
    let mut scope: Option<Connection> = None;
    // At most one serving task is alive; a replaced one is aborted and waited for.
    let mut serving: JoinSet<(SocketAddr, End)> = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.run.stopped() => {
                endpoint.close(CODE_STOPPED, b"the head was stopped");
                return Ok(());
            }
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return Ok(()) };
                if handshakes.len() >= HANDSHAKES {
                    incoming.refuse();
                    continue;
                }
                let peer = incoming.remote_address();
                handshakes.spawn(async move { (peer, incoming.await) });
            }
            Some(done) = handshakes.join_next() => match done {
                Ok((_, Ok(connection))) => {
                    if let Some(old) = scope.replace(connection.clone()) {
                        old.close(CODE_REPLACED, b"the scope has called again");
                    }
                    serving.shutdown().await;
                    lock(&shared.summary).connections += 1;
                    let (shared, tiles) = (shared.clone(), tiles.clone());
                    serving.spawn(async move { (connection.remote_address(), converse(&shared, &connection, &tiles).await) });
                }
                Ok((peer, Err(error))) => shared.refused(peer, &error),
                Err(_panicked) => {}
            },
            Some(done) = serving.join_next() => {
                let Ok((peer, end)) = done else { continue };
                *lock(&shared.status) = None;
                match end {
                    End::Done if shared.desk.has_ended() => return Ok(()),
                    End::Done => tracing::info!(%peer, "the scope hung up; waiting for it to call again"),
                    End::Lost(why) => tracing::info!(%peer, %why, "connection to the scope lost; waiting for it to call again"),
                    End::Protocol(what) => {
                        shared.note_refusal(LinkError::Protocol { peer, what }.to_string());
                    }
                    End::Refused(why) => shared.note_refusal(format!("{peer}: {why}")),
                    End::Stalled(what) => {
                        tracing::warn!(%peer, what, "the scope does not go on; hung up, waiting for it to call again");
                        lock(&shared.summary).stalls += 1;
                    }
                    End::Damaged(_) => {}
                    End::Closed(closed) => return Err(closed.into()),
                    End::Fatal(error) => return Err(error),
                }
            }
        }
    }
}

/// Talks to an authenticated scope until the connection ends.
async fn converse(shared: &Arc<Shared>, connection: &Connection, tiles: &Sender<Flow<Tile>>) -> End {
    let end = match greet_and_serve(shared, connection, tiles).await {
        Err(end) => end,
        Ok(()) => return End::Done,
    };
    match &end {
        End::Protocol(what) => connection.close(CODE_PROTOCOL, what.as_bytes()),
        _ => connection.close(CODE_STOPPED, b"the head hangs up"),
    }
    end
}

async fn greet_and_serve(shared: &Arc<Shared>, connection: &Connection, tiles: &Sender<Flow<Tile>>) -> Result<(), End> {
    let hello = async {
        let (send, mut recv) = connection.accept_bi().await?;
        let hello: ToHead = read_message(&mut recv, &shared.control).await?;
        Ok::<_, End>((send, recv, hello))
    };
    let hello = timeout(Duration::from_secs(3), hello).await;
    let (mut send, mut recv, hello) = hello.map_err(|_elapsed| peer_said("no hello within 3 s"))??;
    let ToHead::Hello { protocol, digest } = hello else { return Err(peer_said("something else than a hello")) };
    if let Some(why) = shared.objection(protocol, digest) {
        write_message(&mut send, &ToScope::Refused { why: why.clone() }).await?;
        // Whether it reads the refusal or hangs up: either way this call is over.
        send.finish().ok();
        timeout(Duration::from_secs(3), connection.closed()).await.ok();
        return Err(End::Refused(why));
    }
    let epoch = shared.desk.connect();
    write_message(&mut send, &ToScope::Welcome).await?;
    // Three tasks, so that none waits for another: a promise may wait for the disk while pixels and receipts flow.
    let mut tasks = JoinSet::new();
    let (for_hear, for_read, for_speak) = (shared.clone(), shared.clone(), shared.clone());
    let (line, tiles) = (connection.clone(), tiles.clone());
    tasks.spawn(async move { Err(hear(&for_hear, &mut recv).await) });
    tasks.spawn(async move { Err(read::mfovs(&for_read, &line, &tiles).await) });
    tasks.spawn(async move { speak(&for_speak, epoch, &mut send).await });
    let first = tasks.join_next().await;
    first.unwrap_or(Ok(Err(End::Done))).unwrap_or_else(|e| Err(peer_said(format!("a message that failed: {e}"))))?;
    // The last word is said; the scope hangs up once it has read it.
    timeout(Duration::from_secs(3), connection.closed()).await.ok();
    connection.close(CODE_DONE, b"done");
    Ok(())
}

/// Reads control messages until something ends it.
async fn hear(shared: &Arc<Shared>, recv: &mut quinn::RecvStream) -> End {
    loop {
        let stall = shared.config.settings.stall();
        let message = match timeout(stall, read_message(recv, &shared.control)).await {
            Ok(Ok(message)) => message,
            Ok(Err(end)) => return end,
            Err(_elapsed) => {
                let seconds = stall.as_secs_f64();
                return End::Stalled(format!("no word for {seconds:.0} s, although the connection is open"));
            }
        };
        let heard = match message {
            ToHead::Hello { .. } => Err(peer_said("a second hello")),
            ToHead::Section(plan) => shared.promise(plan).await,
            ToHead::Reached { step, mfovs } => shared.reached(mfovs, step).await,
            ToHead::Status(status) => {
                *lock(&shared.status) = Some(status);
                Ok(())
            }
            ToHead::Again { key, hash } => again(shared, key, hash).await,
            ToHead::Foreign { key } => shared.with_ledger(move |ledger| ledger.count_foreign(key)).await,
            // Known to a head that is killed from now on: it need not wait for a scope that has gone home.
            ToHead::End => shared.with_ledger(Ledger::note_end).await.map(|()| shared.desk.end()),
        };
        if let Err(end) = heard {
            return end;
        }
    }
}

/// Counts a tile that came again after its mFOV was sent, or keeps it until that is settled.
async fn again(shared: &Arc<Shared>, key: TileKey, hash: ContentHash) -> Result<(), End> {
    let settled = || tokio::task::block_in_place(|| shared.ledger.is_settled(key.mfov));
    if shared.desk.came_again(key, hash, settled).map_err(|e| End::Fatal(e.into()))? {
        shared.count_again(vec![(key, hash)]).await?;
    }
    Ok(())
}

/// Writes what the desk has for the scope, and that the head lives, until the last word is said.
async fn speak(shared: &Arc<Shared>, epoch: u64, send: &mut quinn::SendStream) -> Result<(), End> {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        let message = tokio::select! {
            message = shared.desk.next(epoch) => message,
            _ = beat.tick() => Some(ToScope::Beat { waiting: shared.is_waiting() }),
        };
        let Some(message) = message else { return Err(peer_said("two calls at once")) };
        if let ToScope::Durable(mfov) = message {
            shared.count_again(shared.desk.take_late(mfov)).await?;
        }
        write_message(send, &message).await?;
        if matches!(message, ToScope::Ended) {
            // A stream that is already closed says the same.
            send.finish().ok();
            return Ok(());
        }
    }
}
