//! Promises of the ledger.

use super::*;
use crate::geometry::Xy;
use crate::ids::{BeamId, RegionId, SerialIndex};
use crate::plan::{MfovPlan, PlannedTile};
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
    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 21, durable: 0, lost: 0 });

    let mut outcomes: Vec<_> = a.mfovs[1].tiles.iter().map(|t| (t.key, durable(1))).collect();
    outcomes[4].1 = Outcome::Lost(Reason::NotAcquired("beam off".into()));
    let twice = (outcomes[0].0, Duplicates { same: 2, other: 0 });
    ledger.settle(a.mfovs[1].id, &outcomes, &[twice]).expect("all expected");

    assert_eq!(ledger.counts().expect("reads"), Counts { expected: 14, durable: 6, lost: 1 });
    let by_section = ledger.counts_by_section().expect("reads");
    assert_eq!(by_section[0], (SectionId(3), Counts { expected: 7, durable: 6, lost: 1 }));
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
    assert_eq!(ledger.section_plans().expect("reads"), vec![promise.clone()]);
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
