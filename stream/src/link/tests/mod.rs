//! Promises of the link, on loopback, with a stand-in for the archive that settles an mFOV when its last tile is there.

mod fuzz;
mod peers;
mod transfer;
mod trust;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kinesin_backpressure::spool::SpoolConfig;
use kinesin_backpressure::{Budget, edge};
use tokio::runtime::Runtime;

use super::shared::lock;
use super::*;
use crate::geometry::Xy;
use crate::ids::{BeamId, RegionId, SectionId, SerialIndex, TileKey};
use crate::ledger::{ContentHash, Duplicates, Ledger, Outcome, Place, PlanDigest};
use crate::pixels::Pixels;
use crate::plan::{MfovPlan, PlannedTile, SectionPlan};
use crate::runner::Runner;
use crate::stage::Flow;
use crate::tile::Reason;

const DIGEST: PlanDigest = PlanDigest([5; 32]);
const SIDE: u32 = 64;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn settings() -> LinkSettings {
    LinkSettings { stream_window: Bytes::kib(64), give_up_seconds: 60.0, ..LinkSettings::default() }
}

fn plan(section: u32, mfovs: u32, beams: u16) -> Arc<SectionPlan> {
    let mfov = |mfov| {
        let id = MfovId::new(SectionId(section), RegionId(0), mfov);
        let tile = |beam| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("{section}_{mfov}_{beam}"),
            nominal: Xy::default(),
            size: Xy::new(SIDE, SIDE),
        };
        MfovPlan { id, revision: 0, tiles: (0..beams).map(tile).collect() }
    };
    let mfovs = (0..mfovs).map(mfov).collect();
    Arc::new(SectionPlan {
        section: SectionId(section),
        serial: SerialIndex(section),
        name: "s".into(),
        version: 0,
        mfovs,
    })
}

fn pixels(key: TileKey) -> Pixels {
    let seed = u64::from(key.mfov.section.0) * 7919 + u64::from(key.mfov.mfov) * 31 + u64::from(key.beam.0);
    let data: Vec<u8> = (0..u64::from(SIDE * SIDE)).map(|i| (i * 2654435761 + seed * 97) as u8).collect();
    Pixels::new(SIDE as usize, SIDE as usize, data)
}

/// A scope and its spool.
struct Sending {
    scope: Scope,
    tiles: TileSpool,
}

impl Sending {
    fn section(&self, plan: &SectionPlan) {
        assert_eq!(self.scope.section(plan).expect("writes"), None);
    }

    /// Spools an mFOV and sends it. Beam 3 is lost, beam 1 came twice.
    fn ship(&self, mfov: &MfovPlan) {
        let mut manifest = Manifest::default();
        for tile in &mfov.tiles {
            let key = tile.key;
            if key.beam.0 == 3 {
                manifest.tiles.push((key, Err(Reason::NotAcquired("beam off".into()))));
                continue;
            }
            if key.beam.0 == 1 {
                manifest.repeated.push((key, Duplicates { same: 1, other: 0 }));
            }
            let pixels = pixels(key);
            let kept = self.tiles.add(key, &pixels, ContentHash(pixels.hash())).expect("writes").expect("room");
            manifest.tiles.push((key, Ok(kept)));
        }
        let shipment = self.tiles.end(mfov.id, &manifest).expect("writes").expect("room");
        self.tiles.sync().expect("syncs");
        self.scope.ship(shipment).expect("no fault");
    }

    /// mFOVs that the spool holds.
    fn held(&self) -> usize {
        self.tiles.spool().ended_groups()
    }

    /// As a kill of the scope's process would; the spool stays.
    fn kill(self, runtime: &Runtime) {
        let Self { mut scope, tiles } = self;
        scope.task.abort();
        runtime.block_on(async { (&mut scope.task).await.expect_err("aborted") });
        drop((scope, tiles));
    }
}

/// A head with its stand-in archive.
struct Site {
    dir: PathBuf,
    runtime: Arc<Runtime>,
    budget: Budget,
    runner: Runner,
    ledger: Ledger,
    head: Head,
    store: Arc<Store>,
}

#[derive(Default)]
struct Store {
    /// Every item that came, in order of arrival.
    came: Mutex<Vec<TileKey>>,
    /// From this many on, whole mFOVs wait here instead of being settled.
    most: AtomicUsize,
    withheld: Mutex<Vec<MfovId>>,
    sections: Mutex<Vec<SectionId>>,
}

impl Site {
    fn new(runtime: &Arc<Runtime>, dir: &Path, bind: SocketAddr, capacity: Bytes) -> Self {
        Self::with_keys(runtime, dir, bind, capacity, Keys::load(dir, Role::Head).expect("made"))
    }

    fn with_settings(runtime: &Arc<Runtime>, dir: &Path, settings: LinkSettings) -> Self {
        let keys = Keys::load(dir, Role::Head).expect("made");
        Self::with(runtime, dir, Bytes::mib(1), HeadConfig { bind: loopback(), keys, digest: DIGEST, settings })
    }

    fn with_keys(runtime: &Arc<Runtime>, dir: &Path, bind: SocketAddr, capacity: Bytes, keys: Keys) -> Self {
        Self::with(runtime, dir, capacity, HeadConfig { bind, keys, digest: DIGEST, settings: settings() })
    }

    fn with(runtime: &Arc<Runtime>, dir: &Path, capacity: Bytes, config: HeadConfig) -> Self {
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let ledger = Ledger::open(dir, DIGEST).expect("the same run");
        let (tx, rx) = edge::<Flow<crate::tile::Tile>>(&budget, "tiles", capacity);
        let store = Arc::new(Store { most: AtomicUsize::new(usize::MAX), ..Store::default() });
        let sections = store.clone();
        let on_section = move |plan: Arc<SectionPlan>| lock(&sections.sections).push(plan.section);
        let head =
            Head::bind(runtime.handle(), &runner, &budget, config, ledger.clone(), tx, on_section).expect("binds");
        let (receipts, shelf, book) = (head.receipts(), store.clone(), ledger.clone());
        runner.spawn("store", move |_| {
            let mut open: BTreeMap<MfovId, BTreeMap<TileKey, Outcome>> = BTreeMap::new();
            let mut settled = 0;
            while let Some(flow) = rx.recv_blocking() {
                let (key, plan, outcome) = match &*flow {
                    Flow::Item(tile) => {
                        assert_eq!(tile.pixels, pixels(tile.key), "{}", tile.key);
                        let place = Place { offset: 0, width: SIDE, height: SIDE };
                        let hash = ContentHash(tile.pixels.hash());
                        (tile.key, &tile.plan, Outcome::Durable { hash, place, quality: None })
                    }
                    Flow::Lost(loss) => (loss.key, &loss.plan, Outcome::Lost(loss.reason.clone())),
                };
                lock(&shelf.came).push(key);
                let outcomes = open.entry(key.mfov).or_default();
                outcomes.insert(key, outcome);
                if outcomes.len() < plan.mfovs.iter().find(|m| m.id == key.mfov).expect("planned").tiles.len() {
                    continue;
                }
                if settled >= shelf.most.load(Ordering::SeqCst) {
                    lock(&shelf.withheld).push(key.mfov);
                    continue;
                }
                let outcomes: Vec<_> = open.remove(&key.mfov).expect("whole").into_iter().collect();
                book.settle(key.mfov, &outcomes, &[])?;
                settled += 1;
                receipts.durable(key.mfov);
            }
            Ok(())
        });
        Self { dir: dir.to_owned(), runtime: runtime.clone(), budget, runner, ledger, head, store }
    }

    fn config(&self) -> ScopeConfig {
        scope_config(&self.dir, self.head.local_addr())
    }

    fn call(&self) -> Sending {
        self.try_call(self.config()).expect("the head answers")
    }

    fn try_call(&self, config: ScopeConfig) -> Result<Sending, LinkError> {
        let sending = start(&self.runtime, &self.dir, config)?;
        let connected = async {
            tokio::select! {
                () = sending.scope.connected() => true,
                () = sending.scope.closed() => false,
            }
        };
        if self.runtime.block_on(connected) {
            return Ok(sending);
        }
        Err(self.runtime.block_on(sending.scope.finish()).expect_err("it ended"))
    }

    /// Ends the run as a power cut would: nothing is waited for but the end of the threads.
    fn kill(self) {
        self.runner.stop_handle().stop("killed");
        self.runtime.block_on(self.head.join());
        assert!(self.runner.join().is_err());
    }

    /// Waits for the end, without a look at the sizes of [`settings`].
    fn end(self) {
        self.runtime.block_on(self.head.join());
        self.runner.join().expect("no fault");
    }

    /// Waits for the end and checks that all came and nothing is held.
    fn join(self) -> (HeadSummary, Vec<TileKey>, Ledger) {
        let summary = self.runtime.block_on(self.head.join());
        self.runner.join().expect("no fault");
        // What stays are the windows.
        assert_eq!(self.budget.leased_now(), settings().budget_lines(Role::Head)[0].1);
        assert!(self.budget.peak_leased() <= self.budget.total(), "{:?}", self.budget.lines());
        let came = lock(&self.store.came).clone();
        (summary, came, self.ledger)
    }
}

fn scope_config(dir: &Path, head: SocketAddr) -> ScopeConfig {
    ScopeConfig { head, keys: Keys::load(dir, Role::Scope).expect("made"), digest: DIGEST, settings: settings() }
}

fn start(runtime: &Runtime, dir: &Path, config: ScopeConfig) -> Result<Sending, LinkError> {
    let (budget, folder) = (Budget::new(), dir.join("spool"));
    let (capacity, segment, identity) = (Bytes::mib(16), Bytes::kib(64), config.digest.0);
    let config_of = || SpoolConfig { folder: folder.clone(), capacity, segment, identity, disk: Default::default() };
    let (tiles, restored) = loop {
        match TileSpool::open(config_of()) {
            // Tasks of a scope that was killed before go down.
            Err(kinesin_backpressure::spool::SpoolError::InUse { .. }) => std::thread::yield_now(),
            opened => break opened?,
        }
    };
    let token = Runner::new(&budget).token("scope");
    let scope = Scope::start(runtime.handle(), &budget, token, config, tiles.clone(), &restored.whole)?;
    Ok(Sending { scope, tiles })
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A fresh folder with keys.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    make_keys(dir.path(), false).expect("makes");
    dir
}

fn finish(runtime: &Runtime, sending: Sending) -> Result<ScopeSummary, LinkError> {
    let finish = sending.scope.finish();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), finish).await.expect("in time") })
}

/// Polls until something holds.
fn wait_until(runtime: &Runtime, what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), wait).await.expect(what) });
}

fn client(dir: &Path) -> quinn::crypto::rustls::QuicClientConfig {
    Keys::load(dir, Role::Scope).expect("made").client().expect("usable")
}

/// Calls with a bare QUIC client.
async fn stranger(
    site: &Site,
    tls: quinn::crypto::rustls::QuicClientConfig,
) -> (quinn::Endpoint, Result<quinn::Connection, ConnectionError>) {
    let endpoint = quinn::Endpoint::client(loopback()).expect("binds");
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = endpoint.connect_with(config, site.head.local_addr(), keys::HEAD_NAME).expect("an address");
    let connection = connecting.await;
    (endpoint, connection)
}
