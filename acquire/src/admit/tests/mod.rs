//! Promises of admission, against a real head on loopback and a stand-in for the archive.

mod news;
mod room;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kinesin_backpressure::edge;
use kinesin_backpressure::spool::{NoRoom, SpoolEvent};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::ledger::{ContentHash, Counts, Duplicates, Ledger, Outcome, Place, PlanDigest};
use kinesin_stream::link::{Head, HeadConfig, Keys, LinkSettings, Receipts, Role, make_keys};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};
use kinesin_stream::runner::Runner;
use kinesin_stream::stage::Flow;
use kinesin_stream::tile::{Reason, Tile};

use super::*;
use crate::instrument::{Event, RawImage, RawTile};

const DIGEST: PlanDigest = PlanDigest([2; 32]);
const SIDE: u32 = 64;
/// One page a tile.
const TILE: u64 = 4096;

/// Gives a script, and notes what it is told.
struct Script {
    plan: RunPlan,
    events: VecDeque<Event>,
    told: Arc<Mutex<Vec<Command>>>,
    /// Whether it refuses to hold.
    stubborn: bool,
    /// Where everything that happens is noted in order.
    log: Log,
}

/// What happened, in order.
type Log = Arc<Mutex<Vec<Happened>>>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Happened {
    Synced,
    Kept(MfovId),
    Durable(MfovId),
    Released(MfovId),
}

impl Instrument for Script {
    fn plan(&self) -> &RunPlan {
        &self.plan
    }
    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        Ok(self.events.pop_front())
    }
    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        self.told.lock().expect("no panic").push(command);
        if let Command::Kept(mfov) = command {
            self.log.lock().expect("no panic").push(Happened::Kept(mfov));
        }
        if self.stubborn && command == Command::Hold {
            return Err(InstrumentError::Refused { instrument: "script", command });
        }
        Ok(())
    }
}

fn script(events: Vec<Event>) -> (Script, Arc<Mutex<Vec<Command>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let plan = RunPlan {
        name: "script".into(),
        beams: 7,
        tile_px: Xy::new(SIDE, SIDE),
        pixel_size_nm: 4.0,
        thickness_nm: 30.0,
        sections: 1,
        mfovs_per_section: 8,
        extent: BoxXy::default(),
        peak_tiles_per_second: 0.0,
    };
    (Script { plan, events: events.into(), told: told.clone(), stubborn: false, log: Log::default() }, told)
}

fn plan(mfovs: u32) -> Arc<SectionPlan> {
    let mfov = |mfov| {
        let id = MfovId::new(SectionId(0), RegionId(0), mfov);
        let tile = |beam| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("{mfov}_{beam}"),
            nominal: Xy::default(),
            size: Xy::new(SIDE, SIDE),
        };
        MfovPlan { id, revision: 0, tiles: (0..7).map(tile).collect() }
    };
    let mfovs = (0..mfovs).map(mfov).collect();
    Arc::new(SectionPlan { section: SectionId(0), serial: SerialIndex(0), name: "s".into(), version: 0, mfovs })
}

fn tile(plan: &SectionPlan, mfov: usize, beam: usize) -> Event {
    let key = plan.mfovs[mfov].tiles[beam].key;
    let pixels = Pixels::new(SIDE as usize, SIDE as usize, vec![(mfov * 7 + beam + 1) as u8; (SIDE * SIDE) as usize]);
    Event::Tile(RawTile { key, image: RawImage::Pixels(pixels) })
}

/// A section without incident.
fn whole(plan: &Arc<SectionPlan>) -> Vec<Event> {
    let mut events = vec![Event::SectionBegins(plan.clone())];
    for (i, mfov) in plan.mfovs.iter().enumerate() {
        events.push(Event::MfovBegins(mfov.id));
        events.extend((0..mfov.tiles.len()).map(|beam| tile(plan, i, beam)));
        events.push(Event::MfovEnds(mfov.id));
    }
    events.push(Event::SectionEnds(plan.section));
    events
}

/// A head that settles whole mFOVs while `open` is set.
struct Site {
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    budget: Budget,
    runner: Runner,
    ledger: Ledger,
    head: Head,
    open: Arc<AtomicBool>,
    waiting: Arc<Mutex<Vec<Whole>>>,
    log: Arc<Mutex<Option<Log>>>,
}

type Admitted = tokio::task::JoinHandle<Result<AdmitSummary, AdmitError>>;

/// An mFOV of which all is there.
struct Whole(MfovId, Vec<(TileKey, Outcome)>);

impl Site {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
        let dir = tempfile::tempdir().expect("a folder");
        make_keys(dir.path(), false).expect("makes");
        let budget = Budget::new();
        let runner = Runner::new(&budget);
        let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
        let (tx, rx) = edge::<Flow<Tile>>(&budget, "tiles", Bytes(3 * TILE));
        let keys = Keys::load(dir.path(), Role::Head).expect("made");
        let bind = ([127, 0, 0, 1], 0).into();
        let config = HeadConfig { bind, keys, digest: DIGEST, settings: LinkSettings::default() };
        let head = Head::bind(runtime.handle(), &runner, &budget, config, ledger.clone(), tx, |_| {}).expect("binds");
        let (open, waiting) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let (gate, shelf, book, receipts) = (open.clone(), waiting.clone(), ledger.clone(), head.receipts());
        let log: Arc<Mutex<Option<Log>>> = Arc::default();
        let noted = log.clone();
        runner.spawn("store", move |_| {
            let mut partial: BTreeMap<MfovId, Vec<(TileKey, Outcome)>> = BTreeMap::new();
            while let Some(flow) = rx.recv_blocking() {
                let plan = match &*flow {
                    Flow::Item(tile) => &tile.plan,
                    Flow::Lost(loss) => &loss.plan,
                };
                let (key, outcome) = match &*flow {
                    Flow::Item(tile) => {
                        let place = Place { offset: 0, width: SIDE, height: SIDE };
                        let hash = ContentHash(tile.pixels.hash());
                        (tile.key, Outcome::Durable { hash, place, quality: None })
                    }
                    Flow::Lost(loss) => (loss.key, Outcome::Lost(loss.reason.clone())),
                };
                let outcomes = partial.entry(key.mfov).or_default();
                outcomes.push((key, outcome));
                if outcomes.len() == plan.mfov(key.mfov).expect("promised").tiles.len() {
                    let outcomes = partial.remove(&key.mfov).expect("whole");
                    shelf.lock().expect("no panic").push(Whole(key.mfov, outcomes));
                    if let Some(log) = &*noted.lock().expect("no panic") {
                        log.lock().expect("no panic").push(Happened::Durable(key.mfov));
                    }
                    if gate.load(Ordering::SeqCst) {
                        settle(&shelf, &book, &receipts);
                    }
                }
            }
            Ok(())
        });
        Self { runtime, dir, budget, runner, ledger, head, open, waiting, log }
    }

    /// Room for so many whole mFOVs and no tile more.
    fn admit(&self, script: Script, mfovs: u64) -> Admitted {
        self.admit_telling(script, mfovs, OnEvent::default())
    }

    fn admit_telling(&self, script: Script, mfovs: u64, on_event: OnEvent) -> Admitted {
        self.admit_to(self.head.local_addr(), script, mfovs, on_event)
    }

    fn admit_to(&self, head: std::net::SocketAddr, script: Script, mfovs: u64, on_event: OnEvent) -> Admitted {
        let keys = Keys::load(self.dir.path(), Role::Scope).expect("made");
        let settings = LinkSettings::default();
        let link = ScopeConfig { head, keys, digest: DIGEST, settings };
        let (folder, capacity) = (self.dir.path().join("spool"), Bytes(mfovs * mfov_bytes(&script.plan).0));
        let spool =
            SpoolConfig { folder, capacity, segment: Bytes::mib(1), identity: DIGEST.0, disk: Default::default() };
        // A run before may still be going down.
        while matches!(TileSpool::open(spool.clone()), Err(SpoolError::InUse { .. })) {
            std::thread::yield_now();
        }
        let config = AdmitConfig { link, spool, on_event, pace: None, status: None };
        let (handle, budget, run) = (self.runtime.handle().clone(), self.budget.clone(), self.runner.token("admit"));
        self.runtime.spawn(async move { admit(script, &handle, &budget, run, config).await })
    }

    fn run(&self, script: Script, mfovs: u64) -> Result<AdmitSummary, AdmitError> {
        let admitted = self.admit(script, mfovs);
        self.runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), admitted).await })
            .expect("in time")
            .expect("no panic")
    }

    fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), wait).await }).expect(what);
    }

    fn kill(self) {
        self.runner.stop_handle().stop("the scope gave up");
        self.runtime.block_on(self.head.join());
        assert!(self.runner.join().is_err());
    }

    fn join(self) -> Ledger {
        self.runtime.block_on(self.head.join());
        self.runner.join().expect("no fault");
        assert!(self.budget.peak_leased() <= self.budget.total(), "{:?}", self.budget.lines());
        self.ledger
    }
}

/// A script that breaks off as a kill would.
fn cut(mut events: Vec<Event>, plan: &SectionPlan) -> Vec<Event> {
    events.push(Event::MfovBegins(MfovId { section: SectionId(77), ..plan.mfovs[0].id }));
    events
}

fn script_of(plan: &Arc<SectionPlan>) -> Script {
    script(whole(plan)).0
}

fn settle(waiting: &Mutex<Vec<Whole>>, ledger: &Ledger, receipts: &Receipts) {
    for Whole(mfov, outcomes) in std::mem::take(&mut *waiting.lock().expect("no panic")) {
        ledger.settle(mfov, &outcomes, &[]).expect("expected");
        receipts.durable(mfov);
    }
}

#[test]
fn every_promised_tile_ends_durable_or_lost_with_its_reason_whatever_the_instrument_gives() {
    let site = Site::new();
    let plan = plan(3);
    let key = |mfov: usize, beam: usize| plan.mfovs[mfov].tiles[beam].key;
    let raw = |mfov, beam, image| Event::Tile(RawTile { key: key(mfov, beam), image });
    let small = Pixels::new(8, 8, vec![1; 64]);
    let foreign = TileKey { beam: BeamId(60), ..key(0, 0) };
    let mut events = vec![Event::SectionBegins(plan.clone()), Event::MfovBegins(plan.mfovs[0].id)];
    events.extend([
        raw(0, 0, RawImage::File(bytes::Bytes::from_static(b"II*\0 cut short"))),
        raw(0, 1, RawImage::File(bytes::Bytes::new())),
        raw(0, 2, RawImage::Pixels(small)),
        Event::TileLost(key(0, 3), Reason::NotAcquired("beam off".into())),
        tile(&plan, 0, 5),
        tile(&plan, 0, 4),
        tile(&plan, 0, 5),
        Event::Tile(RawTile { key: foreign, image: RawImage::Pixels(Pixels::new(1, 1, vec![1])) }),
        // Beam 6 comes late, after the next mFOV has begun.
        Event::MfovBegins(plan.mfovs[1].id),
    ]);
    events.extend((0..7).rev().map(|beam| tile(&plan, 1, beam)));
    events.extend([
        tile(&plan, 0, 6),
        Event::MfovEnds(plan.mfovs[0].id),
        Event::MfovEnds(plan.mfovs[1].id),
        // Again, after its mFOV; and the third mFOV never comes at all.
        tile(&plan, 1, 2),
        Event::SectionEnds(plan.section),
    ]);
    let sent = site.run(script(events).0, 100).expect("all settled");
    assert_eq!((sent.link.tiles, sent.link.losses, sent.link.mfovs), (10, 11, 3));
    assert_eq!((sent.duplicates, sent.foreign, sent.already_durable, sent.holds), (2, 1, 0, 0));

    let ledger = site.join();
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 10, lost: 11, ..Counts::default() });
    let reason =
        |mfov, beam| ledger.tile(key(mfov, beam)).expect("reads").expect("promised").reason.expect("lost").to_string();
    assert!(reason(0, 0).starts_with("unreadable"), "{}", reason(0, 0));
    assert!(reason(0, 1).contains("0 bytes"), "{}", reason(0, 1));
    assert_eq!(reason(0, 2), "wrong shape: 0_2 is 8 x 8 px, promised were 64 x 64");
    assert_eq!(reason(0, 3), "not acquired: beam off");
    assert!(reason(2, 0).contains("without it"), "{}", reason(2, 0));
    let again: Vec<_> = ledger.duplicates().expect("reads").into_iter().map(|(k, d)| (k, d.same, d.other)).collect();
    assert_eq!(again, vec![(key(0, 5), 1, 0), (key(1, 2), 1, 0)]);
    assert_eq!(ledger.foreign().expect("reads"), vec![(foreign, 1)]);
}

#[test]
fn what_is_whole_or_durable_is_skipped_when_the_scope_starts_again() {
    let site = Site::new();
    let plan = plan(3);
    let mut first = whole(&plan);
    // Ends after the first mFOV, as if killed: the link is dropped without a goodbye.
    first.truncate(2 + 7 + 1);
    let (script_one, _) = script(cut(first, &plan));
    let error = site.run(script_one, 100).expect_err("an event out of order");
    assert!(error.to_string().contains("section 77"), "{error}");
    let (script_two, told) = script(whole(&plan));
    let sent = site.run(script_two, 100).expect("all durable");
    let skipped =
        told.lock().expect("no panic").iter().filter(|c| matches!(c, Command::Skip(_))).copied().collect::<Vec<_>>();
    // From the spool, or from the head where it had got through before the end.
    assert_eq!(skipped, vec![Command::Skip(plan.mfovs[0].id)]);
    // The script does not obey: what it gives all the same is not sent again.
    assert_eq!((sent.already_durable, sent.duplicates), (7, 0));
    let ledger = site.join();
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 21, ..Counts::default() });
    assert!(ledger.duplicates().expect("reads").is_empty());
}

#[test]
fn tiles_of_an_open_mfov_survive_the_scope_and_are_no_duplicates_when_they_come_again() {
    for again in [true, false] {
        let site = Site::new();
        let plan = plan(2);
        let mut first = whole(&plan);
        first.truncate(2 + 4);
        let error = site.run(script(cut(first, &plan)).0, 100).expect_err("an event out of order");
        assert!(error.to_string().contains("section 77"), "{error}");
        let mut second = whole(&plan);
        if !again {
            // A real scope goes on where it was.
            second.drain(2..2 + 4);
        }
        let sent = site.run(script(second).0, 100).expect("all durable");
        assert_eq!((sent.link.tiles, sent.link.losses, sent.duplicates, sent.already_durable), (14, 0, 0, 0));
        let ledger = site.join();
        assert_eq!(ledger.counts().expect("reads"), Counts { durable: 14, ..Counts::default() });
        assert!(ledger.duplicates().expect("reads").is_empty());
    }
}

#[test]
fn a_retake_that_was_under_way_when_the_scope_died_is_awaited_past_the_first_end_of_its_section() {
    let site = Site::new();
    let first = plan(2);
    let mut stop = first.mfovs[1].clone();
    (stop.id.attempt, stop.revision) = (Attempt(1), 1);
    stop.tiles.truncate(2);
    stop.tiles.iter_mut().for_each(|t| t.key.mfov = stop.id);
    let again = Arc::new(first.amended([stop.clone()]));
    let all = || {
        let mut events = whole(&first);
        events.extend([Event::SectionAmended(again.clone()), Event::MfovBegins(stop.id)]);
        events.extend([tile(&again, 2, 0), tile(&again, 2, 1), Event::MfovEnds(stop.id)]);
        events.push(Event::SectionEnds(first.section));
        events
    };
    assert_eq!(again.mfovs[2].id, stop.id);
    // It dies between the two tiles of the retake.
    let mut events = all();
    events.truncate(events.len() - 3);
    site.run(script(cut(events, &first)).0, 100).expect_err("an event out of order");
    site.run(script(all()).0, 100).expect("all durable");
    let ledger = site.join();
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 16, ..Counts::default() });
}

#[test]
fn the_instrument_starts_at_once_and_goes_on_without_a_head() {
    let site = Site::new();
    let plan = plan(3);
    let (script, told) = script(whole(&plan));
    // Nobody listens there.
    let nobody = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("binds").local_addr().expect("bound");
    let admitted = site.admit_to(nobody, script, 100, OnEvent::default());
    let kept = || told.lock().expect("no panic").iter().filter(|c| matches!(c, Command::Kept(_))).count();
    site.wait_until("all kept", || kept() == 3);
    admitted.abort();
    site.runtime.block_on(async { admitted.await.expect_err("aborted") });
    let sent = site.run(script_of(&plan), 100).expect("all durable");
    assert_eq!((sent.link.mfovs, sent.already_durable), (3, 21));
    assert_eq!(site.join().counts().expect("reads"), Counts { durable: 21, ..Counts::default() });
}
