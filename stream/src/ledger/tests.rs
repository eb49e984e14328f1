//! Promises of the ledger.

mod fuzz;

use std::collections::BTreeSet;

use super::*;
use crate::geometry::Xy;
use crate::ids::{Attempt, BeamId, RegionId, SectionId, SerialIndex};
use crate::plan::{MfovPlan, PlannedTile, SectionPlan};
use crate::tile::Reason;

const DIGEST: PlanDigest = PlanDigest([7; 32]);

fn plan(section: u32, mfovs: u32, beams: u16) -> SectionPlan {
    let mfov = |mfov| {
        let id = MfovId::new(SectionId(section), RegionId(0), mfov);
        let tile = |beam| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("{section}_{mfov}_{beam}.tif"),
            nominal: Xy::default(),
            size: Xy::new(8, 4),
        };
        MfovPlan { id, revision: 0, tiles: (0..beams).map(tile).collect() }
    };
    SectionPlan {
        section: SectionId(section),
        serial: SerialIndex(section),
        name: format!("s{section}"),
        version: 0,
        mfovs: (0..mfovs).map(mfov).collect(),
    }
}

fn durable(n: u8) -> Outcome {
    let place = Place { offset: 64, width: 8, height: 4 };
    Outcome::Durable { hash: ContentHash([n; 32]), place, quality: Some(serde_json::json!({ "mean": n })) }
}

fn settle_all(ledger: &Ledger, mfov: &MfovPlan) {
    let outcomes: Vec<_> = mfov.tiles.iter().map(|t| (t.key, durable(t.key.beam.0 as u8))).collect();
    ledger.settle(mfov.id, &outcomes, &[]).expect("all expected");
}

#[test]
fn every_promised_tile_is_in_exactly_one_state_and_the_sums_agree() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let (a, b) = (plan(3, 2, 7), plan(256, 1, 7));
    assert!(ledger.expect_section(&a).expect("new") && ledger.expect_section(&b).expect("new"));
    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 21, durable: 0, lost: 0, ..Counts::default() });

    let mut outcomes: Vec<_> = a.mfovs[1].tiles.iter().map(|t| (t.key, durable(1))).collect();
    outcomes[4].1 = Outcome::Lost(Reason::NotAcquired("beam off".into()));
    let twice = (outcomes[0].0, Duplicates { same: 2, other: 0 });
    ledger.settle(a.mfovs[1].id, &outcomes, &[twice]).expect("all expected");

    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 14, durable: 6, lost: 1, ..Counts::default() });
    let by_section = ledger.counts_by_section().expect("reads");
    assert_eq!(by_section[0], (SectionId(3), Counts { expected: 7, durable: 6, lost: 1, ..Counts::default() }));
    let rows = ledger.section(SectionId(3)).expect("reads");
    assert_eq!(rows.iter().map(|(k, _)| *k).collect::<Vec<_>>(), a.tiles().map(|t| t.key).collect::<Vec<_>>());
    assert_eq!(rows[11].1.reason, Some(Reason::NotAcquired("beam off".into())));
    assert_eq!(rows[7].1.hash, Some(ContentHash([1; 32])));
    assert_eq!(ledger.settled_mfovs().expect("reads"), vec![a.mfovs[1].id]);
    assert_eq!(ledger.duplicates().expect("reads"), vec![twice]);
}

#[test]
fn what_was_settled_is_still_there_after_opening_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let promise = plan(0, 2, 3);
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    ledger.expect_section(&promise).expect("new");
    settle_all(&ledger, &promise.mfovs[0]);
    ledger.count_foreign(plan(9, 1, 1).mfovs[0].tiles[0].key).expect("counts");
    let rows = ledger.section(SectionId(0)).expect("reads");
    drop(ledger);

    let ledger = Ledger::open(dir.path(), DIGEST).expect("the same run");
    assert!(!ledger.expect_section(&promise).expect("the same promise"));
    assert_eq!(ledger.section(SectionId(0)).expect("reads"), rows);
    assert_eq!(ledger.section_plan(SectionId(0)).expect("reads"), Some(promise.clone()));
    assert_eq!(ledger.section_ids().expect("reads"), vec![SectionId(0)]);
    assert!(ledger.is_settled(promise.mfovs[0].id).expect("reads"));
    assert!(!ledger.is_settled(promise.mfovs[1].id).expect("reads"));
    assert_eq!(ledger.foreign().expect("reads").len(), 1);
}

#[test]
fn the_ledger_of_another_run_is_refused_with_both_digests_and_the_remedy() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(Ledger::open(dir.path(), DIGEST).expect("new"));
    let text = Ledger::open(dir.path(), PlanDigest([8; 32])).expect_err("another plan").to_string();
    for part in ["0707070707070707", "0808080808080808", "--overwrite", "--out", "ledger.redb"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_ledger_whose_making_was_cut_short_at_any_byte_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let digest = PlanDigest([9; 32]);
    drop(Ledger::open(dir.path(), digest).unwrap());
    let whole = std::fs::read(dir.path().join(Ledger::FILE)).unwrap();
    for left in [0, 1, 64, 4096, whole.len() / 2] {
        std::fs::remove_file(dir.path().join(Ledger::FILE)).unwrap();
        std::fs::write(dir.path().join("ledger.redb.part"), &whole[..left]).unwrap();
        assert_eq!(Ledger::open(dir.path(), digest).unwrap().counts().unwrap(), Counts::default(), "cut at {left}");
        assert!(!dir.path().join("ledger.redb.part").exists());
    }
}

#[test]
fn that_the_scope_is_done_is_known_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = || Ledger::open(dir.path(), DIGEST).expect("ours");
    let ledger = open();
    assert!(!ledger.has_ended().expect("reads"));
    ledger.note_end().expect("writes");
    drop(ledger);
    assert!(open().has_ended().expect("reads"));
}

#[test]
fn a_ledger_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let _first = Ledger::open(dir.path(), DIGEST).expect("new");
    assert!(matches!(Ledger::open(dir.path(), DIGEST), Err(LedgerError::InUse { .. })));
}

#[test]
fn a_promise_cannot_change_and_an_outcome_is_entered_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let promise = plan(0, 1, 3);
    ledger.expect_section(&promise).expect("new");
    assert!(matches!(ledger.expect_section(&plan(0, 1, 4)), Err(LedgerError::PlanChanged { .. })));

    settle_all(&ledger, &promise.mfovs[0]);
    let before = ledger.counts().expect("reads");
    let again = [(promise.mfovs[0].tiles[0].key, Outcome::Lost(Reason::SectionMissing))];
    let error = ledger.settle(promise.mfovs[0].id, &again, &[]).expect_err("already durable");
    assert!(error.to_string().contains("durable"), "{error}");
    assert_eq!(ledger.counts().expect("reads"), before);
}

#[test]
fn repeated_tiles_are_counted_once_however_often_their_mfov_is_sent() {
    let dir = tempfile::tempdir().expect("a folder");
    let promise = plan(0, 1, 3);
    let key = promise.mfovs[0].tiles[1].key;
    let twice = vec![(key, Duplicates { same: 1, other: 0 })];
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    ledger.expect_section(&promise).expect("new");
    ledger.note_repeated(promise.mfovs[0].id, twice.clone());
    // A crash before the mFOV is settled: nothing was entered, and the mFOV is sent again.
    drop(ledger);
    let ledger = Ledger::open(dir.path(), DIGEST).expect("the same run");
    assert!(ledger.duplicates().expect("reads").is_empty());
    ledger.note_repeated(promise.mfovs[0].id, twice.clone());
    ledger.note_repeated(promise.mfovs[0].id, twice.clone());
    settle_all(&ledger, &promise.mfovs[0]);
    assert_eq!(ledger.duplicates().expect("reads"), twice);
}

/// The promise with a retake of some beams of its first mFOV.
fn amended(plan: &SectionPlan, beams: &[u16], attempt: u16) -> SectionPlan {
    let mut plan = SectionPlan { version: plan.version + 1, ..plan.clone() };
    let first = plan.mfovs[0].clone();
    let id = first.id.at(Attempt(attempt));
    let tiles = first.tiles.into_iter().filter(|t| beams.contains(&t.key.beam.0));
    let retaken =
        |t: PlannedTile| PlannedTile { key: TileKey { mfov: id, ..t.key }, name: format!("again_{}", t.name), ..t };
    plan.mfovs.push(MfovPlan { id, revision: 1, tiles: tiles.map(retaken).collect() });
    plan.mfovs.sort_by_key(|m| m.id);
    plan
}

fn state(ledger: &Ledger, key: TileKey) -> State {
    ledger.tile(key).expect("reads").expect("promised").state
}

#[test]
fn a_tile_goes_forward_only_and_keeps_the_time_of_each_state() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let promise = plan(0, 2, 3);
    let (mfov, key) = (promise.mfovs[0].id, promise.mfovs[0].tiles[1].key);
    ledger.expect_section(&promise).expect("new");
    assert_eq!(ledger.advance(mfov, State::Spooled, 20).expect("known"), 3);
    // What comes late adds its time and takes nothing back.
    assert_eq!(ledger.advance(mfov, State::Seen, 10).expect("known"), 0);
    assert_eq!(ledger.advance(mfov, State::Sent, 30).expect("known"), 3);
    assert_eq!(ledger.advance(mfov, State::Sent, 40).expect("known"), 0);
    let early = ledger.advance_section(SectionId(0), State::Placed, 5).expect("none is durable");
    assert_eq!((early, ledger.counts().expect("reads").sent), (0, 3));
    let tiles = BTreeSet::from([key]);
    let error = ledger.advance_tiles(SectionId(0), &tiles, State::Placed, 5).expect_err("not durable").to_string();
    assert!(error.contains("is sent") && error.contains("placed"), "{error}");
    settle_all(&ledger, &promise.mfovs[0]);
    assert_eq!(ledger.advance_tiles(SectionId(0), &tiles, State::Placed, 50).expect("durable"), 1);
    assert_eq!(ledger.advance_section(SectionId(0), State::Published, 60).expect("placed"), 1);
    assert_eq!(ledger.advance_section(SectionId(0), State::Placed, 70).expect("durable"), 2);
    let times = ledger.tile(key).expect("reads").expect("promised").times;
    let at = [State::Seen, State::Spooled, State::Sent, State::Placed, State::Published].map(|s| times.at(s));
    assert_eq!(at, [Some(10), Some(20), Some(30), Some(50), Some(60)]);
    assert!(times.at(State::Durable).is_some() && times.at(State::Lost).is_none());
    let counts = Counts { expected: 3, placed: 2, published: 1, ..Counts::default() };
    assert_eq!(ledger.counts().expect("reads"), counts);
    assert!(matches!(ledger.advance(mfov, State::Durable, 1), Err(LedgerError::OtherCall { .. })));
    assert!(matches!(ledger.advance(plan(8, 1, 1).mfovs[0].id, State::Seen, 1), Err(LedgerError::UnknownMfov { .. })));
}

#[test]
fn an_amendment_adds_its_tiles_and_a_placed_retake_supersedes_what_came_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let first = plan(0, 1, 4);
    let second = amended(&first, &[1, 2], 1);
    ledger.expect_section(&first).expect("new");
    settle_all(&ledger, &first.mfovs[0]);
    ledger.advance_section(SectionId(0), State::Placed, 1).expect("durable");
    ledger.advance_section(SectionId(0), State::Published, 2).expect("placed");
    assert!(ledger.expect_section(&second).expect("an amendment"));
    assert!(!ledger.expect_section(&second).expect("the same again"));
    assert!(!ledger.expect_section(&first).expect("an older version, as after a restart of the scope"));
    assert_eq!(ledger.settled_in(SectionId(0)).expect("reads"), vec![(first.mfovs[0].id, 0)]);

    let retake = &second.mfovs[1];
    let (kept, gone) = (retake.tiles[0].key, retake.tiles[1].key);
    let outcomes = [(kept, durable(9)), (gone, Outcome::Lost(Reason::NotAcquired("beam off".into())))];
    ledger.settle(retake.id, &outcomes, &[]).expect("expected");
    assert_eq!(ledger.settled_in(SectionId(0)).expect("reads")[1], (retake.id, 1));
    // Durable is not enough: the earlier one stays until the later one is placed.
    assert_eq!(state(&ledger, kept.first()), State::Published);
    ledger.advance_section(SectionId(0), State::Placed, 3).expect("durable");
    assert_eq!(state(&ledger, kept), State::Placed);
    assert_eq!(state(&ledger, kept.first()), State::Superseded);
    assert_eq!(state(&ledger, gone.first()), State::Published, "its retake is lost: it stays current");
    let counts = Counts { published: 3, placed: 1, superseded: 1, lost: 1, ..Counts::default() };
    assert_eq!(ledger.counts().expect("reads"), counts);
    assert_eq!(ledger.recount().expect("reads"), counts);
    // Published at once, as a restart may find it, is placed too.
    let third = amended(&second, &[0], 2);
    ledger.expect_section(&third).expect("an amendment");
    let again = third.mfov(first.mfovs[0].id.at(Attempt(2))).expect("promised");
    ledger.settle(again.id, &[(again.tiles[0].key, durable(9))], &[]).expect("expected");
    let tiles = BTreeSet::from([again.tiles[0].key]);
    ledger.advance_tiles(SectionId(0), &tiles, State::Published, 4).expect("durable");
    assert_eq!(state(&ledger, again.tiles[0].key), State::Published);
    assert_eq!(state(&ledger, again.tiles[0].key.first()), State::Superseded);
    // The superseded one does not come back.
    let old = BTreeSet::from([kept.first()]);
    assert_eq!(ledger.advance_tiles(SectionId(0), &old, State::Placed, 4).expect("no fault"), 0);
    assert_eq!(state(&ledger, kept.first()), State::Superseded);
}

#[test]
fn an_amendment_may_only_add() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let first = plan(0, 2, 3);
    ledger.expect_section(&first).expect("new");
    let good = amended(&first, &[0], 1);
    let mut fewer = good.clone();
    fewer.mfovs.pop();
    let mut renamed = good.clone();
    renamed.mfovs[0].tiles[0].name.push('x');
    let same_version = SectionPlan { version: 0, ..good.clone() };
    for bad in [fewer, renamed, same_version] {
        assert!(matches!(ledger.expect_section(&bad), Err(LedgerError::PlanChanged { .. })));
    }
    assert_eq!(ledger.counts().expect("reads").expected, 6);
    assert!(ledger.expect_section(&good).expect("an amendment"));
    assert_eq!(ledger.counts().expect("reads").expected, 7);
}

#[test]
fn a_power_cut_takes_back_no_promise_and_no_outcome() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let promise = plan(0, 3, 5);
    ledger.expect_section(&promise).expect("new");
    settle_all(&ledger, &promise.mfovs[0]);
    ledger.advance_section(SectionId(0), State::Placed, 1).expect("durable");
    ledger.advance(promise.mfovs[1].id, State::Sent, 1).expect("known");
    // The disk as a power cut would leave it now: nothing was closed, nothing after the last sync counts.
    let cut = tempfile::tempdir().expect("a folder");
    std::fs::copy(ledger.path(), cut.path().join(Ledger::FILE)).expect("copies");
    let after = Ledger::open(cut.path(), DIGEST).expect("puts itself in order");
    let counts = after.counts().expect("reads");
    assert_eq!((counts.safe(), counts.open(), counts.lost), (5, 10, 0));
    assert_eq!(after.recount().expect("reads"), counts);
    assert!(after.is_settled(promise.mfovs[0].id).expect("reads"));
    // What was taken back is entered again.
    after.advance_section(SectionId(0), State::Placed, 1).expect("durable");
    assert_eq!(after.counts().expect("reads").placed, 5);
    // Closed or synced, nothing is taken back.
    ledger.sync().expect("syncs");
    std::fs::copy(ledger.path(), cut.path().join("later.redb")).expect("copies");
    drop(after);
    std::fs::rename(cut.path().join("later.redb"), cut.path().join(Ledger::FILE)).expect("renames");
    let after = Ledger::inspect(cut.path()).expect("puts itself in order");
    assert_eq!(after.counts().expect("reads"), ledger.counts().expect("reads"));
}

#[test]
fn a_ledger_of_another_version_and_what_is_no_ledger_are_refused_with_one_message() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = Ledger::inspect(dir.path()).expect_err("none");
    assert!(matches!(missing, LedgerError::Missing { .. }));
    drop(Ledger::open(dir.path(), DIGEST).expect("new"));
    let path = dir.path().join(Ledger::FILE);
    let store = redb::Database::open(&path).expect("opens");
    let t = store.begin_write().expect("writes");
    t.open_table(META).expect("is there").insert("version", b"1".as_slice()).expect("writes");
    t.commit().expect("writes");
    drop(store);
    for refused in [Ledger::open(dir.path(), DIGEST), Ledger::inspect(dir.path())] {
        let text = refused.expect_err("another version").to_string();
        assert!(text.contains("version 1") && text.contains("writes 2") && text.contains("--out"), "{text}");
    }
    std::fs::write(&path, "not a store at all").expect("writes");
    let text = Ledger::inspect(dir.path()).expect_err("text").to_string();
    assert!(text.contains("ledger.redb"), "{text}");
}

#[test]
fn a_filter_admits_what_meets_all_its_conditions() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let (a, b) = (plan(1, 2, 3), plan(2, 2, 3));
    ledger.expect_section(&a).expect("new");
    ledger.expect_section(&b).expect("new");
    let mut outcomes: Vec<_> = b.mfovs[1].tiles.iter().map(|t| (t.key, durable(1))).collect();
    outcomes[2].1 = Outcome::Lost(Reason::NotAcquired("Beam off".into()));
    ledger.settle(b.mfovs[1].id, &outcomes, &[]).expect("expected");
    let keys = |filter: Filter| -> Vec<TileKey> {
        ledger.query(&filter).expect("reads").map(|row| row.expect("reads").0).collect()
    };
    assert_eq!(keys(Filter::default()).len(), 12);
    assert_eq!(keys(Filter { section: Some(SectionId(1)), ..Filter::default() }).len(), 6);
    let third = Filter { beam: Some(BeamId(2)), ..Filter::default() };
    assert_eq!(keys(third.clone()).len(), 4);
    let lost = vec![outcomes[2].0];
    assert_eq!(keys(Filter { state: Some(State::Lost), ..third }), lost);
    assert_eq!(keys(Filter { reason: Some("bEAM".into()), ..Filter::default() }), lost);
    assert!(keys(Filter { state: Some(State::Lost), section: Some(SectionId(1)), ..Filter::default() }).is_empty());
}

/// What a call may do to the plain model: a state a tile.
#[derive(Clone, Debug)]
enum Step {
    Advance(usize, State),
    Settle(usize, Vec<bool>),
    Section(State),
    Amend(Vec<u16>),
    Reopen,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let on_the_way = prop_oneof![Just(State::Seen), Just(State::Spooled), Just(State::Sent)];
    let of_section = prop_oneof![Just(State::Placed), Just(State::Published)];
    let step = prop_oneof![
        4 => (0..6usize, on_the_way).prop_map(|(m, s)| Step::Advance(m, s)),
        4 => (0..6usize, proptest::collection::vec(any::<bool>(), 3)).prop_map(|(m, l)| Step::Settle(m, l)),
        3 => of_section.prop_map(Step::Section),
        1 => proptest::sample::subsequence(vec![0u16, 1, 2], 1..3).prop_map(Step::Amend),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What `Section` does to the model, written from the rules rather than from the code.
fn model_section(model: &mut BTreeMap<TileKey, State>, to: State) {
    for key in model.keys().copied().collect::<Vec<_>>() {
        let later = |s: State| model.iter().any(|(k, v)| k.first() == key.first() && *k > key && *v == s);
        let durable_counts = (to == State::Placed).then_some(State::Durable);
        let mut later_ones = [State::Placed, State::Published].into_iter().chain(durable_counts);
        let next = match (model[&key], to) {
            (State::Durable | State::Placed | State::Published, _) if later_ones.any(later) => State::Superseded,
            (State::Durable, State::Placed) => State::Placed,
            (State::Placed, State::Published) => State::Published,
            (same, _) => same,
        };
        model.insert(key, next);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]
    #[test]
    fn whatever_is_entered_each_tile_is_in_one_state_goes_forward_and_is_counted(steps in steps()) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut ledger = Ledger::open(dir.path(), DIGEST).expect("new");
        let mut promise = plan(0, 2, 3);
        ledger.expect_section(&promise).expect("new");
        let mut model: BTreeMap<TileKey, State> = promise.tiles().map(|t| (t.key, State::Expected)).collect();
        for step in steps {
            let before = model.clone();
            match step {
                Step::Advance(at, to) => {
                    let mfov = promise.mfovs[at % promise.mfovs.len()].id;
                    ledger.advance(mfov, to, 1).expect("known");
                    model.iter_mut().filter(|(k, s)| k.mfov == mfov && **s < to).for_each(|(_, s)| *s = to);
                }
                Step::Settle(at, lost) => {
                    let mfov = promise.mfovs[at % promise.mfovs.len()].clone();
                    let end = |(t, lost): (&PlannedTile, &bool)| {
                        (t.key, if *lost { Outcome::Lost(Reason::SectionMissing) } else { durable(1) })
                    };
                    let outcomes: Vec<_> = mfov.tiles.iter().zip(&lost).map(end).collect();
                    let open = model[&mfov.tiles[0].key] < State::Durable;
                    proptest::prop_assert_eq!(ledger.settle(mfov.id, &outcomes, &[]).is_ok(), open);
                    for (key, outcome) in outcomes.iter().filter(|_| open) {
                        let lost = matches!(outcome, Outcome::Lost(_));
                        model.insert(*key, if lost { State::Lost } else { State::Durable });
                    }
                }
                Step::Section(to) => {
                    ledger.advance_section(SectionId(0), to, 1).expect("known");
                    model_section(&mut model, to);
                }
                Step::Amend(beams) => {
                    promise = amended(&promise, &beams, promise.version as u16 + 1);
                    proptest::prop_assert!(ledger.expect_section(&promise).expect("an amendment"));
                    promise.tiles().for_each(|t| { model.entry(t.key).or_insert(State::Expected); });
                }
                Step::Reopen => {
                    drop(ledger);
                    ledger = Ledger::open(dir.path(), DIGEST).expect("the same run");
                }
            }
            let rows: BTreeMap<TileKey, State> =
                ledger.section(SectionId(0)).expect("reads").into_iter().map(|(k, r)| (k, r.state)).collect();
            proptest::prop_assert_eq!(&rows, &model);
            let counts = ledger.counts().expect("reads");
            proptest::prop_assert_eq!(counts.promised(), model.len() as u64);
            proptest::prop_assert_eq!(ledger.recount().expect("reads"), counts);
            for (key, was) in before {
                proptest::prop_assert!(was == model[&key] || was.may_become(model[&key]), "{was} became {}", model[&key]);
            }
        }
    }
}

#[test]
fn lost_repeated_and_foreign_tiles_are_told_by_name_and_one_that_keeps_coming_ever_more_rarely() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let told: Arc<Mutex<Vec<News>>> = Arc::default();
    let to = told.clone();
    ledger.on_news(move |news| to.lock().expect("no panic").push(news.clone()));
    let promise = plan(3, 1, 3);
    ledger.expect_section(&promise).expect("new");
    let mfov = &promise.mfovs[0];
    let reason = Reason::NotAcquired("beam off".into());
    let outcomes: Vec<_> = mfov.tiles.iter().map(|t| (t.key, Outcome::Lost(reason.clone()))).take(2).collect();
    let twice = (mfov.tiles[2].key, Duplicates { same: 1, other: 0 });
    ledger.settle(mfov.id, &outcomes, &[twice]).expect("expected");
    (0..100).for_each(|_| ledger.count_duplicates(&[twice]).expect("counts"));
    let foreign = plan(9, 1, 1).mfovs[0].tiles[0].key;
    (0..100).for_each(|_| ledger.count_foreign(foreign).expect("counts"));

    let told = told.lock().expect("no panic");
    let name = |beam: usize| mfov.tiles[beam].name.clone();
    assert_eq!(told[0], News::Lost { mfov: mfov.id, tiles: vec![name(0), name(1)], reason: reason.to_string() });
    let times = |news: &News| match news {
        News::Repeated { tiles, times, .. } if *tiles == [name(2)] => times.same,
        News::Foreign { key, times } if *key == foreign => *times,
        other => panic!("{other:?}"),
    };
    let rarely = [1, 2, 4, 8, 16, 32, 64];
    assert_eq!(told[1..].iter().map(times).collect::<Vec<_>>(), [rarely, rarely].concat());
}
