//! Promises of admission, against a real head on loopback and a stand-in for the archive.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use kinesin_backpressure::edge;
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, RegionId, SerialIndex};
use kinesin_stream::ledger::{Counts, Ledger, Outcome, Place, PlanDigest};
use kinesin_stream::link::{Head, HeadConfig, Keys, LinkSettings, Receipts, Role, make_keys};
use kinesin_stream::plan::MfovPlan;
use kinesin_stream::runner::Runner;
use kinesin_stream::stage::Flow;
use kinesin_stream::tile::Tile;

use super::*;

const DIGEST: PlanDigest = PlanDigest([2; 32]);
const SIDE: u32 = 64;
/// One page a tile.
const TILE: u64 = 4096;

/// Gives a script, and notes what it is told.
struct Script {
    plan: RunPlan,
    events: VecDeque<Event>,
    told: Arc<Mutex<Vec<Command>>>,
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
    (Script { plan, events: events.into(), told: told.clone() }, told)
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
}

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
        runner.spawn("store", move |_| {
            let mut partial: BTreeMap<MfovId, Vec<(TileKey, Outcome)>> = BTreeMap::new();
            while let Some(flow) = rx.recv_blocking() {
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
                if outcomes.len() == 7 {
                    let outcomes = partial.remove(&key.mfov).expect("whole");
                    shelf.lock().expect("no panic").push(Whole(key.mfov, outcomes));
                    if gate.load(Ordering::SeqCst) {
                        settle(&shelf, &book, &receipts);
                    }
                }
            }
            Ok(())
        });
        Self { runtime, dir, budget, runner, ledger, head, open, waiting }
    }

    fn admit(&self, script: Script, unacknowledged: u64) -> tokio::task::JoinHandle<Result<AdmitSummary, AdmitError>> {
        let keys = Keys::load(self.dir.path(), Role::Scope).expect("made");
        let settings = LinkSettings::default();
        let link = ScopeConfig { head: self.head.local_addr(), keys, digest: DIGEST, settings };
        let config = AdmitConfig { link, unacknowledged: Bytes(unacknowledged) };
        let (handle, budget, run) = (self.runtime.handle().clone(), self.budget.clone(), self.runner.token("admit"));
        self.runtime.spawn(async move { admit(script, &handle, &budget, run, config).await })
    }

    fn run(&self, script: Script, unacknowledged: u64) -> Result<AdmitSummary, AdmitError> {
        let admitted = self.admit(script, unacknowledged);
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

    fn join(self) -> Ledger {
        self.runtime.block_on(self.head.join());
        self.runner.join().expect("no fault");
        assert!(self.budget.peak_leased() <= self.budget.total(), "{:?}", self.budget.lines());
        self.ledger
    }
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
    let sent = site.run(script(events).0, 100 * TILE).expect("all settled");
    assert_eq!((sent.link.tiles, sent.link.losses, sent.link.mfovs), (10, 11, 3));
    assert_eq!((sent.duplicates, sent.foreign, sent.already_durable, sent.holds), (2, 1, 0, 0));

    let ledger = site.join();
    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 0, durable: 10, lost: 11, ..Counts::default() });
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
fn without_receipts_the_instrument_is_held_and_not_asked_for_more() {
    let site = Site::new();
    site.open.store(false, Ordering::SeqCst);
    let plan = plan(8);
    let (script, told) = script(whole(&plan));
    // Two mFOVs of seven tiles, and no more.
    let admitted = site.admit(script, 14 * TILE);
    site.wait_until("the hold", || told.lock().expect("no panic").contains(&Command::Hold));
    site.wait_until("two mFOVs", || site.waiting.lock().expect("no panic").len() == 2);
    // Nothing else can come: the third mFOV has no room for a single tile.
    assert_eq!(*told.lock().expect("no panic"), vec![Command::Hold]);
    assert_eq!(site.head.summary().tiles, 14);
    let line = |name: &str| site.budget.lines().into_iter().find(|l| l.name == name).expect("a line");
    assert_eq!(line("unacknowledged mFOVs").held, Bytes(14 * TILE));
    site.open.store(true, Ordering::SeqCst);
    settle(&site.waiting, &site.ledger, &site.head.receipts());
    let sent = site.runtime.block_on(admitted).expect("no panic").expect("all durable");
    assert_eq!((sent.link.tiles, sent.link.losses), (56, 0));
    assert!(sent.holds >= 1 && sent.hold_seconds > 0.0);
    assert_eq!(told.lock().expect("no panic").len() as u64, 2 * sent.holds);
    assert_eq!(line("unacknowledged mFOVs").peak, Bytes(14 * TILE));
    assert_eq!(site.join().counts().expect("reads"), Counts { expected: 0, durable: 56, lost: 0, ..Counts::default() });
}

#[test]
fn open_mfovs_that_fill_all_memory_are_an_error_with_the_remedy_and_no_endless_wait() {
    let site = Site::new();
    let plan = plan(3);
    let mut events = vec![Event::SectionBegins(plan.clone())];
    // Beam 6 of every mFOV is late.
    (0..3).for_each(|m| events.extend((0..6).map(|b| tile(&plan, m, b))));
    let error = site.run(script(events).0, 14 * TILE).expect_err("too little");
    assert!(
        matches!(&error, AdmitError::TooLittleMemory { open: 3, needed, .. } if *needed == Bytes(28 * TILE)),
        "{error}"
    );
    site.runner.stop_handle().stop("the scope gave up");
    site.runtime.block_on(site.head.join());
    assert!(site.runner.join().is_err());
}

#[test]
fn what_is_durable_is_skipped_when_the_scope_starts_again() {
    let site = Site::new();
    let plan = plan(3);
    let mut first = whole(&plan);
    // Ends after the first mFOV, as if killed: the link is dropped without a goodbye.
    first.truncate(2 + 7 + 1);
    let (mut script_one, _) = script(first);
    script_one.events.push_back(Event::MfovBegins(MfovId { section: SectionId(77), ..plan.mfovs[0].id }));
    let admitted = site.admit(script_one, 100 * TILE);
    let error = site.runtime.block_on(admitted).expect("no panic").expect_err("an event out of order");
    assert!(error.to_string().contains("section 77"), "{error}");
    // Whether the first mFOV got through before the end is a race; send it for certain.
    let before = site.ledger.settled_mfovs().expect("reads").len();

    let (script_two, told) = script(whole(&plan));
    let sent = site.run(script_two, 100 * TILE).expect("all durable");
    let skipped: Vec<_> = told.lock().expect("no panic").clone();
    assert!(skipped.len() >= before && skipped.iter().all(|c| *c == Command::Skip(plan.mfovs[0].id)));
    // The script does not obey: what it gives all the same is not sent again.
    assert_eq!(sent.already_durable, 7 * skipped.len() as u64);
    assert_eq!(sent.link.tiles, 21 - sent.already_durable);
    let ledger = site.join();
    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 0, durable: 21, lost: 0, ..Counts::default() });
    assert!(ledger.duplicates().expect("reads").is_empty());
}
