//! Promises of the link, on loopback, with a stand-in for the archive that settles an mFOV when its last tile is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kinesin_backpressure::{Budget, Pool, edge};
use tokio::runtime::Runtime;

use super::shared::lock;
use super::wire::{FrameHead, Kind, MAX_CONTROL, PROTOCOL, ToHead, ToScope, opening, read_message, write_message};
use super::*;
use crate::geometry::Xy;
use crate::ids::{BeamId, RegionId, SectionId, SerialIndex, TileKey};
use crate::ledger::{ContentHash, Counts, Ledger, Outcome, Place, PlanDigest};
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

/// Beam 3 is lost, beam 1 came twice.
fn shipment(mfov: &MfovPlan) -> Shipment {
    let mut frames = Vec::new();
    for tile in &mfov.tiles {
        let (key, pixels) = (tile.key, pixels(tile.key));
        let hash = ContentHash(pixels.hash());
        match key.beam.0 {
            3 => frames.push(Frame::Lost { key, reason: Reason::NotAcquired("beam off".into()) }),
            1 => {
                frames.insert(0, Frame::Again { key, same: true });
                frames.push(Frame::Tile { key, pixels, hash });
            }
            _ => frames.push(Frame::Tile { key, pixels, hash }),
        }
    }
    Shipment { mfov: mfov.id, frames, credits: Vec::new() }
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

    fn with_keys(runtime: &Arc<Runtime>, dir: &Path, bind: SocketAddr, capacity: Bytes, keys: Keys) -> Self {
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let ledger = Ledger::open(dir, DIGEST).expect("the same run");
        let (tx, rx) = edge::<Flow<crate::tile::Tile>>(&budget, "tiles", capacity);
        let store = Arc::new(Store { most: AtomicUsize::new(usize::MAX), ..Store::default() });
        let config = HeadConfig { bind, keys, digest: DIGEST, settings: settings() };
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

    fn call(&self) -> (Scope, BTreeSet<MfovId>) {
        self.try_call(self.config()).expect("the head answers")
    }

    fn try_call(&self, config: ScopeConfig) -> Result<(Scope, BTreeSet<MfovId>), LinkError> {
        call(&self.runtime, config)
    }

    /// Ends the run as a power cut would: nothing is waited for but the end of the threads.
    fn kill(self) {
        self.runner.stop_handle().stop("killed");
        self.runtime.block_on(self.head.join());
        assert!(self.runner.join().is_err());
    }

    /// Waits for the end and checks that all came and nothing is held.
    fn join(self) -> (HeadSummary, Vec<TileKey>, Ledger) {
        let summary = self.runtime.block_on(self.head.join());
        self.runner.join().expect("no fault");
        // What stays are the windows.
        assert_eq!(self.budget.leased_now(), settings().window());
        assert!(self.budget.peak_leased() <= self.budget.total(), "{:?}", self.budget.lines());
        let came = lock(&self.store.came).clone();
        (summary, came, self.ledger)
    }
}

fn scope_config(dir: &Path, head: SocketAddr) -> ScopeConfig {
    ScopeConfig { head, keys: Keys::load(dir, Role::Scope).expect("made"), digest: DIGEST, settings: settings() }
}

fn call(runtime: &Runtime, config: ScopeConfig) -> Result<(Scope, BTreeSet<MfovId>), LinkError> {
    let budget = Budget::new();
    let token = Runner::new(&budget).token("scope");
    runtime.block_on(Scope::connect(runtime.handle(), &budget, token, config))
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

fn finish(runtime: &Runtime, scope: Scope) -> Result<ScopeSummary, LinkError> {
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), scope.finish()).await.expect("in time") })
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

#[test]
fn every_promised_tile_arrives_once_whatever_the_order_and_repetition() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    // Room for two tiles: most of what is sent waits on the line.
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(2 * u64::from(SIDE * SIDE)));
    let (scope, durable) = site.call();
    assert!(durable.is_empty());
    let plans = [plan(0, 7, 7), plan(1, 7, 7)];
    // The plan of section 1 is announced after its first mFOVs are shipped: messages and pixels overtake each other.
    scope.section(plans[0].clone(), &durable);
    for i in 0..14 {
        let nth = (i * 5) % 14;
        scope.ship(shipment(&plans[nth % 2].mfovs[nth / 2]));
        if i == 3 {
            scope.section(plans[1].clone(), &durable);
        }
    }
    let again = plans[0].mfovs[0].tiles[0].key;
    scope.came_again(again, ContentHash(pixels(again).hash()));
    scope.came_again(again, ContentHash([0; 32]));
    let foreign = plan(9, 1, 1).mfovs[0].tiles[0].key;
    scope.foreign(foreign);
    let sent = finish(&runtime, scope).expect("all durable");
    assert_eq!((sent.tiles, sent.losses, sent.mfovs, sent.sent_again, sent.reconnects), (84, 14, 14, 0, 0));
    assert_eq!(sent.bytes, 84 * 4096);

    let (summary, mut came, ledger) = site.join();
    assert_eq!((summary.tiles, summary.losses, summary.bytes), (84, 14, 84 * 4096));
    came.sort();
    let promised: Vec<_> = plans.iter().flat_map(|p| p.tiles()).map(|t| t.key).collect();
    assert_eq!(came, promised);
    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 0, durable: 84, lost: 14, ..Counts::default() });
    let duplicates = ledger.duplicates().expect("reads");
    assert_eq!(duplicates.iter().map(|(_, d)| d.same).sum::<u64>(), 14 + 1);
    assert_eq!(duplicates.iter().map(|(_, d)| d.other).sum::<u64>(), 1);
    assert_eq!(ledger.foreign().expect("reads"), vec![(foreign, 1)]);
}

#[test]
fn the_scope_keeps_its_bytes_until_the_archive_has_them() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    site.store.most.store(0, Ordering::SeqCst);
    let (scope, durable) = site.call();
    let plan = plan(0, 1, 7);
    scope.section(plan.clone(), &durable);
    let budget = Budget::new();
    let pool = Pool::new(&budget, "kept", Bytes::mib(1));
    let credits = vec![pool.try_lease(Bytes(6 * 4096)).expect("room")];
    scope.ship(Shipment { credits, ..shipment(&plan.mfovs[0]) });
    wait_until(&runtime, "all tiles", || lock(&site.store.withheld).len() == 1);
    // Everything is at the head, nothing is durable: nothing may be forgotten.
    assert_eq!((scope.outstanding(), budget.leased_now()), (1, Bytes(6 * 4096)));
    assert!(!site.ledger.is_settled(plan.mfovs[0].id).expect("reads"));
    let outcomes: Vec<_> = plan.tiles().map(|t| (t.key, Outcome::Lost(Reason::SectionMissing))).collect();
    site.ledger.settle(plan.mfovs[0].id, &outcomes, &[]).expect("expected");
    site.head.receipts().durable(plan.mfovs[0].id);
    wait_until(&runtime, "the receipt", || scope.outstanding() == 0);
    assert_eq!(budget.leased_now(), Bytes(0));
    finish(&runtime, scope).expect("all settled");
    site.join();
}

#[test]
fn a_call_that_is_cut_again_and_again_loses_nothing_and_doubles_nothing() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let (scope, durable) = site.call();
    let plan = plan(0, 12, 19);
    scope.section(plan.clone(), &durable);
    plan.mfovs.iter().for_each(|m| scope.ship(shipment(m)));
    for cut in 1..=5 {
        // Another call with the same keys takes the head's line away from the scope, in the middle of its mFOVs.
        wait_until(&runtime, "some tiles", || lock(&site.store.came).len() >= cut * 30);
        let (endpoint, connection) = runtime.block_on(stranger(&site, client(&site.dir)));
        runtime
            .block_on(async {
                tokio::time::timeout(Duration::from_secs(5), connection.expect("trusted").closed()).await
            })
            .expect("the scope calls again and takes it back");
        drop(endpoint);
    }
    let sent = finish(&runtime, scope).expect("all durable");
    assert!(sent.reconnects >= 1, "{sent:?}");
    let (summary, mut came, ledger) = site.join();
    // The first call, five others, and after each of them the scope again.
    assert!(summary.connections >= 11, "{summary:?}");
    came.sort();
    assert_eq!(came, plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    assert_eq!(
        ledger.counts().expect("reads"),
        Counts { expected: 0, durable: 12 * 18, lost: 12, ..Counts::default() }
    );
    // One tile an mFOV came twice from the instrument; being sent again is not that.
    assert_eq!(ledger.duplicates().expect("reads").iter().map(|(_, d)| d.same).sum::<u64>(), 12);
}

#[test]
fn a_dead_line_is_noticed_and_the_transfer_goes_on_where_it_was() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let relay = Relay::start(&runtime, site.head.local_addr());
    let mut config = scope_config(&site.dir, relay.addr);
    // The shorter of the two sides' counts.
    config.settings.idle_seconds = 0.5;
    let (scope, durable) = site.try_call(config).expect("through the relay");
    let plan = plan(0, 8, 19);
    scope.section(plan.clone(), &durable);
    plan.mfovs[..4].iter().for_each(|m| scope.ship(shipment(m)));
    wait_until(&runtime, "some tiles", || lock(&site.store.came).len() >= 20);
    relay.dead.store(true, Ordering::SeqCst);
    // More comes from the instrument while the line is dead.
    plan.mfovs[4..].iter().for_each(|m| scope.ship(shipment(m)));
    wait_until(&runtime, "a new call", || relay.called.load(Ordering::SeqCst));
    relay.dead.store(false, Ordering::SeqCst);
    let sent = finish(&runtime, scope).expect("all durable");
    assert!(sent.reconnects >= 1, "{sent:?}");
    let (_, mut came, ledger) = site.join();
    came.sort();
    assert_eq!(came, plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    assert_eq!(ledger.counts().expect("reads").durable, 8 * 18);
}

#[test]
fn a_head_that_is_killed_and_started_again_gets_only_what_it_has_not() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let addr = site.head.local_addr();
    // Two are settled; of the others some are whole and some are not when the head dies.
    site.store.most.store(2, Ordering::SeqCst);
    let (scope, durable) = site.call();
    let plan = plan(0, 12, 19);
    scope.section(plan.clone(), &durable);
    plan.mfovs.iter().for_each(|m| scope.ship(shipment(m)));
    let book = site.ledger.clone();
    wait_until(&runtime, "two settled", || book.settled_mfovs().expect("reads").len() == 2);
    wait_until(&runtime, "one more that is whole", || !lock(&site.store.withheld).is_empty());
    drop(book);
    site.kill();

    let site = Site::new(&runtime, dir.path(), addr, Bytes(3 * 4096));
    let before: BTreeSet<_> = site.ledger.settled_mfovs().expect("reads").into_iter().collect();
    assert_eq!(before.len(), 2);
    finish(&runtime, scope).expect("all durable");
    let (_, mut came, ledger) = site.join();
    came.sort();
    let missing = plan.tiles().map(|t| t.key).filter(|k| !before.contains(&k.mfov));
    assert_eq!(came, missing.collect::<Vec<_>>());
    assert_eq!(
        ledger.counts().expect("reads"),
        Counts { expected: 0, durable: 12 * 18, lost: 12, ..Counts::default() }
    );
}

#[test]
fn a_scope_that_starts_again_is_told_what_it_need_not_send() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let plan = plan(0, 3, 7);
    let (scope, durable) = site.call();
    scope.section(plan.clone(), &durable);
    scope.ship(shipment(&plan.mfovs[1]));
    wait_until(&runtime, "a receipt", || scope.outstanding() == 0);
    drop(scope);
    let (scope, durable) = site.call();
    assert_eq!(durable, BTreeSet::from([plan.mfovs[1].id]));
    scope.section(plan.clone(), &durable);
    scope.ship(shipment(&plan.mfovs[0]));
    scope.ship(shipment(&plan.mfovs[2]));
    finish(&runtime, scope).expect("all durable");
    let sections = lock(&site.store.sections).clone();
    let (summary, came, _) = site.join();
    assert_eq!((came.len(), summary.connections, sections), (21, 2, vec![SectionId(0)]));
}

#[test]
fn strangers_get_one_clear_error_on_both_sides_and_no_byte() {
    let (runtime, dir, other) = (Arc::new(runtime()), folder(), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let mut seen = 0;
    let mut refused = |what: &str| {
        seen += 1;
        wait_until(&runtime, what, || site.head.summary().refused == seen);
        let summary = site.head.summary();
        assert_eq!(summary.connections, 0, "{what}");
        let text = summary.last_refusal.expect("a reason");
        assert!(text.contains("do not trust each other"), "{what}: {text}");
    };
    let addr = site.head.local_addr();

    let wrong_authority =
        ScopeConfig { keys: Keys::load(other.path(), Role::Scope).expect("made"), ..scope_config(dir.path(), addr) };
    assert_not_trusted(site.try_call(wrong_authority));
    refused("keys of another making");

    let wrong_role =
        ScopeConfig { keys: Keys::load(dir.path(), Role::Head).expect("made"), ..scope_config(dir.path(), addr) };
    assert_not_trusted(site.try_call(wrong_role));
    refused("the head's keys on the scope");

    // Trusts the head, but shows nothing itself.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(Keys::load(dir.path(), Role::Scope).expect("made").authority().clone()).expect("adds");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"kinesin/1".to_vec()];
    let nobody = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, nobody).await;
        // The handshake may seem done on this side; the first thing asked of the head fails.
        if let Ok(connection) = connection {
            let error = connection.closed().await;
            assert!(LinkError::not_trusted(addr, &error).is_some(), "{error}");
        }
    });
    refused("no certificate");
    assert!(lock(&site.store.came).is_empty());
    site.kill();

    let swapped = Site::with_keys(
        &runtime,
        dir.path(),
        loopback(),
        Bytes::mib(1),
        Keys::load(dir.path(), Role::Scope).expect("made"),
    );
    assert_not_trusted(swapped.try_call(swapped.config()));
    wait_until(&runtime, "the scope's keys on the head", || swapped.head.summary().refused == 1);
    swapped.kill();
}

#[test]
fn another_run_is_refused_with_both_digests() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let other = ScopeConfig { digest: PlanDigest([6; 32]), ..site.config() };
    let text = site.try_call(other).expect_err("another plan").to_string();
    for part in ["0505050505050505", "0606060606060606", "same site file"] {
        assert!(text.contains(part), "{text}");
    }
    // It goes on listening.
    finish(&runtime, site.call().0).expect("nothing to send");
    assert_eq!(site.join().0.refused, 1);
}

#[test]
fn a_damaged_frame_is_asked_for_again_and_the_rest_of_it_is_not_passed_on() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let plan = plan(0, 1, 3);
    let mfov = plan.mfovs[0].id;
    runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, client(&site.dir)).await;
        let connection = connection.expect("trusted");
        let pool = Pool::new(&Budget::new(), "control", MAX_CONTROL);
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        let hello = ToHead::Hello { protocol: PROTOCOL, digest: ContentHash(DIGEST.0) };
        write_message(&mut send, &hello).await.expect("writes");
        write_message(&mut send, &ToHead::Section(plan.clone())).await.expect("writes");
        for (damaged, expected) in [(Some(1), "Again"), (None, "Durable")] {
            let mut stream = connection.open_uni().await.expect("open");
            stream.write_all(&opening(mfov)).await.expect("writes");
            for (i, tile) in plan.tiles().enumerate() {
                let mut body = pixels(tile.key).data().to_vec();
                let hash = ContentHash(*blake3::hash(&body).as_bytes());
                if damaged == Some(i) {
                    body[77] ^= 16;
                }
                let head =
                    FrameHead { kind: Kind::Tile, key: tile.key, width: SIDE, height: SIDE, body: SIDE * SIDE, hash };
                // The head may stop the stream after the damaged frame.
                if stream.write_all(&head.encode()).await.is_err() || stream.write_all(&body).await.is_err() {
                    break;
                }
            }
            let first = plan.mfovs[0].tiles[0].key;
            let end =
                FrameHead { kind: Kind::End, key: first, width: 0, height: 0, body: 0, hash: ContentHash([0; 32]) };
            stream.write_all(&end.encode()).await.ok();
            stream.finish().ok();
            loop {
                let said: ToScope = read_message(&mut recv, &pool).await.expect("the head lives");
                match said {
                    ToScope::Welcome { .. } | ToScope::Promised(_) => continue,
                    ToScope::Again(id) => assert_eq!((id, expected), (mfov, "Again")),
                    ToScope::Durable(id) => assert_eq!((id, expected), (mfov, "Durable")),
                    other => panic!("{other:?}"),
                }
                break;
            }
        }
    });
    let summary = site.head.summary();
    assert_eq!((summary.tiles, summary.sent_again, summary.damaged), (3, 1, 1));
    assert_eq!(*lock(&site.store.came), plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    site.kill();
}

#[test]
fn an_mfov_that_is_always_damaged_is_one_error_and_no_endless_loop() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let (scope, durable) = site.call();
    let plan = plan(0, 1, 3);
    scope.section(plan.clone(), &durable);
    let mut bad = shipment(&plan.mfovs[0]);
    if let Some(Frame::Tile { hash, .. }) = bad.frames.last_mut() {
        hash.0[0] ^= 1;
    }
    scope.ship(bad);
    let error = finish(&runtime, scope).expect_err("damaged");
    assert!(matches!(error, LinkError::Damaged { times: 3, .. }), "{error}");
    site.kill();
}

#[test]
fn keys_are_private_and_never_overwritten_unasked() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let before = std::fs::read(dir.path().join("head.pem")).expect("made");
    let error = make_keys(dir.path(), false).expect_err("there already");
    assert!(error.to_string().contains("--overwrite"), "{error}");
    for key in ["head.key", "scope.key"] {
        let mode = std::fs::metadata(dir.path().join(key)).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    make_keys(dir.path(), true).expect("asked");
    assert_ne!(std::fs::read(dir.path().join("head.pem")).expect("made"), before);
    std::fs::write(dir.path().join("scope.key"), "not a key").expect("writes");
    let error = Keys::load(dir.path(), Role::Scope).expect_err("not a key").to_string();
    assert!(error.contains("scope.key") && error.contains("kinesin keys"), "{error}");
}

fn assert_not_trusted(result: Result<(Scope, BTreeSet<MfovId>), LinkError>) {
    let error = result.expect_err("strangers");
    assert!(matches!(error, LinkError::NotTrusted { .. }), "{error}");
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

/// Passes datagrams between the scope and the head until it is dead.
struct Relay {
    addr: SocketAddr,
    dead: Arc<AtomicBool>,
    /// Whether the scope has begun a new handshake while it was dead.
    called: Arc<AtomicBool>,
}

impl Relay {
    fn start(runtime: &Runtime, head: SocketAddr) -> Self {
        let (dead, called) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let socket = runtime.block_on(tokio::net::UdpSocket::bind(loopback())).expect("binds");
        let relay = Self { addr: socket.local_addr().expect("bound"), dead, called };
        let (dead, called) = (relay.dead.clone(), relay.called.clone());
        runtime.spawn(async move {
            let mut scope = None;
            let mut datagram = vec![0; 65536];
            loop {
                // The port of a peer that is gone may answer with an error; there is nothing to pass on then.
                let Ok((n, from)) = socket.recv_from(&mut datagram).await else { continue };
                if from != head {
                    scope = Some(from);
                }
                if dead.load(Ordering::SeqCst) {
                    // Packets of a handshake have the long header.
                    called.fetch_or(from != head && datagram[0] & 0x80 != 0, Ordering::SeqCst);
                } else if let Some(to) = if from == head { scope } else { Some(head) } {
                    socket.send_to(&datagram[..n], to).await.ok();
                }
            }
        });
        relay
    }
}
