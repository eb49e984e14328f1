//! The scope's side: calls, sends from the spool, and calls again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use kinesin_backpressure::spool::NoRoom;
use kinesin_backpressure::{Budget, Pool};
use quinn::{ClientConfig, Endpoint, TokioRuntime};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, block_in_place};

use super::line::Line;
use super::outbox::Outbox;
use super::sending::Buffers;
use super::status::{Asked, ScopeStatus};
use super::tile_spool::{Shipment, TileSpool};
use super::wire::ToHead;
use super::{End, Keys, LinkError, LinkSettings, Role};
use crate::ids::{MfovId, SectionId, TileKey};
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
    pub(super) task: JoinHandle<()>,
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
    /// Connections that were given up because the head did not go on.
    pub stalls: u64,
    /// Tiles that the spool's disk gave back damaged: losses now.
    pub damaged_at_rest: u64,
    /// Receipts for mFOVs that were never promised here: bugs of the head.
    pub strange_receipts: u64,
    /// Repeated and foreign tiles of which the head could not be told, because too many others waited.
    pub untold: u64,
}

/// How often a damaged mFOV is sent.
pub(super) const TRIES: u32 = 3;

impl Scope {
    /// Begins to call the head, and goes on calling in the background. `whole` are mFOVs that a run before left in the spool;
    /// their sections' plans are there too, and are told.
    pub fn start(
        runtime: &Handle,
        budget: &Budget,
        run: RunToken,
        config: ScopeConfig,
        tiles: TileSpool,
        whole: &[Shipment],
    ) -> Result<Self, LinkError> {
        let [(windows, bytes), (messages, most)] = config.settings.budget_lines(Role::Scope);
        budget.fixed(windows, bytes);
        let control = Pool::new(budget, messages, most);
        let mut client = ClientConfig::new(Arc::new(config.keys.client()?));
        client.transport_config(config.settings.transport(0, 0));
        let any: SocketAddr = if config.head.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let bound = |source| LinkError::Bind { addr: any, source };
        let mut endpoint = {
            let _context = runtime.enter();
            let (socket, endpoint) = config.settings.socket(any).map_err(bound)?;
            Endpoint::new(endpoint, None, socket, Arc::new(TokioRuntime)).map_err(bound)?
        };
        endpoint.set_default_client_config(client);
        let outbox = Arc::new(Outbox::new(tiles, Buffers::new(bytes.0)));
        for section in whole.iter().map(|s| s.mfov.section).collect::<BTreeSet<_>>() {
            if let Some(plan) = outbox.tiles.plan(section)? {
                outbox.announce(&plan);
                outbox.announced(section);
            }
        }
        for shipment in whole {
            outbox.ship(*shipment).map_err(failed)?;
        }
        let line = Line::new(endpoint, config, control, run, outbox.clone());
        let task = runtime.spawn(async move {
            let result = line.drive().await;
            line.close(result.err()).await;
        });
        Ok(Self { outbox, task })
    }

    /// Announces a section, or its next version; keeps its plan in the spool. `Some` says why there is no room for that: then
    /// nothing was announced. Blocks.
    pub fn section(&self, plan: &SectionPlan) -> Result<Option<NoRoom>, LinkError> {
        self.outbox.announce(plan);
        let full = self.outbox.tiles.put_plan(plan)?;
        if full.is_none() {
            self.outbox.announced(plan.section);
        }
        Ok(full)
    }

    /// Says that the instrument has begun an mFOV.
    pub fn seen(&self, mfov: MfovId) {
        self.outbox.seen(mfov);
    }

    /// Sends an mFOV that is whole in the spool and synced. Never waits for the head. Blocks.
    pub fn ship(&self, shipment: Shipment) -> Result<(), LinkError> {
        self.outbox.ship(shipment).map_err(failed)
    }

    /// Says that a tile came again after its mFOV was shipped.
    pub fn came_again(&self, key: TileKey, hash: ContentHash) {
        self.outbox.note(ToHead::Again { key, hash });
    }

    /// Says that a tile came that no plan promised.
    pub fn foreign(&self, key: TileKey) {
        self.outbox.note(ToHead::Foreign { key });
    }

    /// Says what the instrument is asked, for the status.
    pub fn asked(&self, asked: Asked) {
        self.outbox.ask(asked);
    }

    /// What the head is told of this side.
    pub fn status(&self) -> ScopeStatus {
        self.outbox.status()
    }

    /// Tells the status from anywhere, also after the link has ended.
    pub fn status_reader(&self) -> impl Fn() -> ScopeStatus + Send + Sync + 'static {
        let outbox = self.outbox.clone();
        move || outbox.status()
    }

    /// mFOVs without a receipt.
    pub fn outstanding(&self) -> usize {
        self.outbox.outstanding()
    }

    /// mFOVs of which the head has said that it has them although they were not shipped; waits for some. Cancel-safe.
    pub async fn already_durable(&self) -> Vec<MfovId> {
        self.outbox.news().await
    }

    /// Sections with mFOVs that are neither durable nor shipped, and those mFOVs.
    pub fn unfinished(&self) -> Vec<(SectionId, BTreeSet<MfovId>)> {
        self.outbox.unfinished()
    }

    /// Waits until the head is there. Cancel-safe.
    pub async fn connected(&self) {
        self.outbox.wait_connected().await;
    }

    /// Waits until the head has answered for a section; not while it is not there. Cancel-safe.
    pub async fn answered(&self, section: SectionId) {
        self.outbox.wait_answered(section).await;
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
            None => {
                block_in_place(|| self.outbox.tiles.spool().remove_if_empty());
                Ok(self.outbox.summary())
            }
        }
    }
}

impl Drop for Scope {
    /// Hangs up at once; what has no receipt is sent by whoever calls next. After [`Scope::finish`] this does nothing.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Only the spool can fail where no peer is asked.
fn failed(end: End) -> LinkError {
    match end {
        End::Fatal(error) => error,
        other => unreachable!("{other:?}"),
    }
}
