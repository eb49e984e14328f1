//! Promises of `kinesin ledger`.

use super::*;
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{MfovId, RegionId, SerialIndex, TileKey};
use kinesin_stream::ledger::{ContentHash, Outcome as Ended, Place, PlanDigest};
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};
use kinesin_stream::tile::Reason;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

/// Two sections of two mFOVs of three beams; in the first mFOV one tile is lost.
fn run(dir: &Path) {
    let ledger = Ledger::open(dir, PlanDigest([3; 32])).expect("new");
    for section in [SectionId(4), SectionId(5)] {
        let mfov = |mfov| {
            let id = MfovId::new(section, RegionId(0), mfov);
            let tile = |beam| PlannedTile {
                key: TileKey { mfov: id, beam: BeamId(beam) },
                name: format!("a, \"b\" {mfov} {beam}"),
                nominal: Xy::default(),
                size: Xy::new(8, 4),
            };
            MfovPlan { id, revision: 0, tiles: (0..3).map(tile).collect() }
        };
        let mfovs = (0..2).map(mfov).collect();
        let plan = SectionPlan {
            section,
            serial: SerialIndex(section.0),
            name: format!("S{section}", section = section.0),
            version: 0,
            mfovs,
        };
        ledger.expect_section(&plan).expect("new");
        let tiles = &plan.mfovs[0].tiles;
        let place = Place { offset: 0, width: 8, height: 4 };
        let mut outcomes: Vec<_> = tiles
            .iter()
            .map(|t| (t.key, Ended::Durable { hash: ContentHash([1; 32]), place, quality: None }))
            .collect();
        outcomes[1].1 = Ended::Lost(Reason::NotAcquired("beam off".into()));
        ledger.settle(plan.mfovs[0].id, &outcomes, &[]).expect("expected");
    }
}

fn args(dir: &Path) -> LedgerArgs {
    LedgerArgs { dir: dir.into(), section: None, beam: None, state: None, reason: None, csv: None, parquet: None }
}

fn entries(dir: &Path, filter: &Filter) -> Vec<Entry> {
    let ledger = Ledger::inspect(dir).expect("a ledger");
    let rows = ledger.query(filter).expect("reads");
    rows.map(|row| row.map(|(key, row)| Entry::new(key, &row)).expect("reads")).collect()
}

#[test]
fn csv_reads_back_as_the_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    run(dir.path());
    let path = dir.path().join("tiles.csv");
    let asked = LedgerArgs { section: Some("5".into()), csv: Some(path.clone()), ..args(dir.path()) };
    assert_eq!(ledger(&asked, true).expect("answers"), Outcome::WithLosses);
    let read: Vec<Entry> =
        csv::Reader::from_path(&path).expect("opens").deserialize().map(|e| e.expect("an entry")).collect();
    assert_eq!(read, entries(dir.path(), &Filter { section: Some(SectionId(5)), ..Filter::default() }));
    assert_eq!(read.len(), 6);
    assert!(!path.with_added_extension("part").exists());
}

#[test]
fn parquet_reads_back_as_the_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    run(dir.path());
    let path = dir.path().join("tiles.parquet");
    ledger(&LedgerArgs { parquet: Some(path.clone()), ..args(dir.path()) }, true).expect("answers");
    let file = SerializedFileReader::new(std::fs::File::open(&path).expect("opens")).expect("a parquet file");
    let expected = entries(dir.path(), &Filter::default());
    let mut rows = 0;
    for (row, entry) in file.get_row_iter(None).expect("rows").zip(&expected) {
        let row = row.expect("a row");
        let number = |n: u32| Field::Int(n as i32);
        let text = |t: Option<&str>| t.map_or(Field::Null, |t| Field::Str(t.into()));
        let mut wanted = vec![
            number(entry.section),
            number(entry.region.into()),
            number(entry.mfov),
            number(entry.attempt.into()),
            number(entry.beam),
            text(Some(&entry.name)),
            text(Some(entry.state.name())),
            text(entry.reason.as_deref()),
            text(entry.hash.as_deref()),
        ];
        wanted.extend(entry.times().map(|t| t.map_or(Field::Null, |ms| Field::TimestampMillis(ms as i64))));
        let found: Vec<Field> = row.get_column_iter().map(|(_, field)| field.clone()).collect();
        assert_eq!(found, wanted);
        rows += 1;
    }
    assert_eq!((rows, file.metadata().file_metadata().num_rows()), (12, 12));
}

#[test]
fn the_summary_adds_up_and_rows_are_those_that_the_filter_admits() {
    let dir = tempfile::tempdir().expect("a folder");
    run(dir.path());
    let book = Ledger::inspect(dir.path()).expect("a ledger");
    let mut out = Vec::new();
    assert_eq!(summary(&book, &mut out, true).expect("writes"), 2);
    let told: serde_json::Value = serde_json::from_slice(&out).expect("one document");
    assert_eq!(told["total"]["promised"], 12);
    assert_eq!(told["sections"][1]["tiles"]["durable"], 2);
    let mut out = Vec::new();
    summary(&book, &mut out, false).expect("writes");
    let table = String::from_utf8(out).expect("text");
    let sum: Vec<&str> = table.lines().nth(3).expect("a sum").split_whitespace().collect();
    assert_eq!(sum, ["sum", "12", "=", "6", "4", "2"], "{table}");

    // Beam 002 is the second.
    let asked = LedgerArgs { beam: Some(2), reason: Some("OFF".into()), ..args(dir.path()) };
    let asked = filter(&asked, &book).expect("good");
    let mut out = Vec::new();
    assert_eq!(rows(&book, &asked, &mut out, true).expect("writes"), 2);
    let lines: Vec<Entry> = out
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("a line"))
        .collect();
    assert_eq!(lines, entries(dir.path(), &asked));
    assert!(lines.iter().all(|e| e.beam == 2 && e.state == State::Lost));
    let mut out = Vec::new();
    rows(&book, &asked, &mut out, false).expect("writes");
    let table = String::from_utf8(out).expect("text");
    assert!(table.contains(" 002  lost") && table.contains("not acquired: beam off") && table.ends_with("2 tiles\n"));
}

#[test]
fn what_cannot_be_asked_is_one_clear_message() {
    let dir = tempfile::tempdir().expect("a folder");
    let refusal = |asked: &LedgerArgs| match ledger(asked, true) {
        Err(Failure::Input(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(refusal(&args(dir.path())).contains("no ledger"));
    run(dir.path());
    let text = refusal(&LedgerArgs { section: Some("9".into()), ..args(dir.path()) });
    assert!(text.contains("section 9") && text.contains("4 to 5") && text.contains("\"S4\""), "{text}");
    for meant in ["5", "005", "section 5", "S5"] {
        let book = Ledger::inspect(dir.path()).expect("a ledger");
        assert_eq!(section(meant, &book).expect("known"), SectionId(5), "{meant}");
    }
    let _running = Ledger::open(dir.path(), PlanDigest([3; 32])).expect("the same run");
    assert!(refusal(&args(dir.path())).contains("in use"));
}

#[test]
fn times_are_told_in_the_calendar() {
    assert_eq!(utc(0), "1970-01-01 00:00:00");
    assert_eq!(utc(951_827_696_000), "2000-02-29 12:34:56");
    assert_eq!(utc(1_798_761_599_999), "2026-12-31 23:59:59");
}
