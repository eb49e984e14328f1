//! The ledger with many tiles: `cargo bench -p kinesin-stream --bench ledger -- ten-million` (without the word: 200 thousand).
//!
//! Sections of 100 mFOVs of 61 beams, each tile with a name, a hash, a place and what inspection measures; every mFOV is sent,
//! settled, placed and published as in a run. Wanted (issue 3) of ten million: memory bounded, open in under 5 s, a section in
//! under 50 ms. Opening is measured of a closed file and of one as a crash leaves it.

use std::path::Path;
use std::time::{Duration, Instant};

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::ledger::{ContentHash, Filter, Ledger, LedgerError, Outcome, Place, PlanDigest, State};
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};
use kinesin_stream::tile::Reason;

const BEAMS: u16 = 61;
const MFOVS: u32 = 100;
const DIGEST: PlanDigest = PlanDigest([1; 32]);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let many = std::env::args().any(|a| a == "ten-million");
    let tiles: u64 = if many { 10_000_000 } else { 200_000 };
    let sections = tiles.div_ceil(u64::from(MFOVS) * u64::from(BEAMS)) as u32;
    let dir = tempfile::tempdir()?;

    let (ledger, began) = (Ledger::open(dir.path(), DIGEST)?, Instant::now());
    for section in 0..sections {
        enter(&ledger, section)?;
    }
    let written = began.elapsed();
    let tiles = ledger.counts()?.promised();
    let per_mfov = written / (sections * MFOVS);
    println!("{tiles} tiles of {sections} sections, every state entered: {written:.1?}, {per_mfov:.2?} an mFOV");

    // As a crash leaves it: copied while it is open.
    let crashed = tempfile::tempdir()?;
    std::fs::copy(ledger.path(), crashed.path().join(Ledger::FILE))?;
    let ((), took) = timed(|| {
        drop(ledger);
        Ok(())
    })?;
    println!("close: {took:.2?}");
    let bytes = std::fs::metadata(dir.path().join(Ledger::FILE))?.len();
    println!("file: {:.1} MiB, {} bytes a tile", bytes as f64 / f64::from(1 << 20), bytes / tiles);

    let (after, took) = timed(|| Ledger::open(crashed.path(), DIGEST))?;
    println!("open after a crash: {took:.2?} (wanted < 5 s)");
    assert_eq!(after.counts()?.promised(), tiles);
    drop(after);
    drop(crashed);
    ask(dir.path(), sections)?;
    println!("peak resident: {:.0} MiB, of which the store's cache may take {}", peak_mib(), Ledger::CACHE);
    Ok(())
}

/// One section, from its promise to the volume.
fn enter(ledger: &Ledger, section: u32) -> Result<(), LedgerError> {
    let plan = plan(section);
    ledger.expect_section(&plan)?;
    for mfov in &plan.mfovs {
        ledger.advance(mfov.id, State::Sent, 1_700_000_000_000)?;
        ledger.settle(mfov.id, &outcomes(mfov), &[])?;
    }
    ledger.advance_section(plan.section, State::Placed, 1_700_000_100_000)?;
    ledger.advance_section(plan.section, State::Published, 1_700_000_200_000)?;
    Ok(())
}

fn ask(dir: &Path, sections: u32) -> Result<(), LedgerError> {
    let (ledger, took) = timed(|| Ledger::open(dir, DIGEST))?;
    println!("open: {took:.2?} (wanted < 5 s)");
    let mut longest = Duration::ZERO;
    for i in 0..20 {
        let section = SectionId(sections * i / 20);
        let filter = Filter { section: Some(section), ..Filter::default() };
        let (rows, took) = timed(|| ledger.query(&filter)?.try_fold(0, |n, row| row.map(|_| n + 1)))?;
        assert_eq!(rows, MFOVS * u32::from(BEAMS));
        longest = longest.max(took);
    }
    println!("every row of a section: {longest:.2?} at most of 20 (wanted < 50 ms)");
    let key = |i: u32| TileKey {
        mfov: MfovId::new(SectionId(i * 7919 % sections), RegionId(0), i % MFOVS),
        beam: BeamId((i % u32::from(BEAMS)) as u16),
    };
    let (_, took) = timed(|| (0..1000).try_for_each(|i| ledger.stored(key(i)).map(|found| assert!(found.is_some()))))?;
    println!("place and hash of a tile: {:.2?}", took / 1000);
    let (_, took) = timed(|| ledger.counts())?;
    println!("counts of the run: {took:.2?}");
    let filter = Filter { state: Some(State::Lost), ..Filter::default() };
    let (lost, took) = timed(|| ledger.query(&filter)?.try_fold(0u64, |n, row| row.map(|_| n + 1)))?;
    println!("all {lost} lost tiles of the run: {took:.2?}");
    let (recount, took) = timed(|| ledger.recount())?;
    println!("all tiles counted anew: {took:.2?}");
    assert_eq!(recount, ledger.counts()?);
    Ok(())
}

fn plan(section: u32) -> SectionPlan {
    let mfov = |mfov| {
        let id = MfovId::new(SectionId(section), RegionId(0), mfov);
        let tile = |beam: u16| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("{section:06}/000/{mfov:06}/{section:06}_{mfov:06}_{:03}.bmp", beam + 1),
            nominal: Xy::new(f64::from(beam) * 2750.25, f64::from(mfov) * 19_000.5),
            size: Xy::new(3128, 2724),
        };
        MfovPlan { id, revision: 0, tiles: (0..BEAMS).map(tile).collect() }
    };
    let mfovs = (0..MFOVS).map(mfov).collect();
    SectionPlan {
        section: SectionId(section),
        serial: SerialIndex(section),
        name: format!("{section}"),
        version: 0,
        mfovs,
    }
}

fn outcomes(mfov: &MfovPlan) -> Vec<(TileKey, Outcome)> {
    let outcome = |(i, tile): (usize, &PlannedTile)| {
        if mfov.id.mfov == 50 && i == 7 {
            return (tile.key, Outcome::Lost(Reason::NotAcquired("beam off".into())));
        }
        let hash = *blake3::hash(tile.name.as_bytes()).as_bytes();
        // Digits as measured ones have them.
        let measured = |k: usize| f64::from(u32::from_le_bytes([hash[k], hash[k + 1], hash[k + 2], 0])) / 65_537.0;
        let quality = serde_json::json!({
            "mean": measured(0), "contrast": measured(3), "structure": measured(6), "sharpness": measured(9),
            "saturated": 0.0, "blank_lines": 0, "blank": false, "verdict": "good",
        });
        let place = Place { offset: 64 + i as u64 * 8_520_736, width: 3128, height: 2724 };
        (tile.key, Outcome::Durable { hash: ContentHash(hash), place, quality: Some(quality) })
    };
    mfov.tiles.iter().enumerate().map(outcome).collect()
}

fn timed<R>(act: impl FnOnce() -> Result<R, LedgerError>) -> Result<(R, Duration), LedgerError> {
    let began = Instant::now();
    act().map(|r| (r, began.elapsed()))
}

/// Linux' `VmHWM`, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|k| k.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
