//! Promises of the archive.

use super::*;
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, RegionId, SectionId, SerialIndex};
use kinesin_stream::ledger::{Counts, PlanDigest};
use kinesin_stream::plan::PlannedTile;

const DIGEST: PlanDigest = PlanDigest([1; 32]);

fn plan(mfovs: u32, beams: u16) -> Arc<SectionPlan> {
    let mfov = |mfov| {
        let id = MfovId::new(SectionId(5), RegionId(0), mfov);
        let tile = |beam| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(beam) },
            name: format!("{mfov}_{beam}"),
            nominal: Xy::default(),
            size: Xy::new(40, 10),
        };
        MfovPlan { id, revision: 0, tiles: (0..beams).map(tile).collect() }
    };
    let mfovs = (0..mfovs).map(mfov).collect();
    Arc::new(SectionPlan { section: SectionId(5), serial: SerialIndex(5), name: "s5".into(), version: 0, mfovs })
}

fn tile(plan: &Arc<SectionPlan>, mfov: usize, beam: usize, seed: u8) -> Tile {
    let key = plan.mfovs[mfov].tiles[beam].key;
    let data: Vec<u8> = (0..400).map(|i| (i * 7 + beam * 13 + mfov * 29) as u8 ^ seed).collect();
    let pixels = Pixels::new(40, 10, data);
    let hash = ContentHash(pixels.hash());
    Tile { key, plan: plan.clone(), pixels, hash }
}

fn open(dir: &Path) -> Archive {
    Archive::open(dir, Ledger::open(dir, DIGEST).expect("the same run")).expect("opens")
}

#[test]
fn what_was_put_reads_back_and_the_last_tile_settles_the_mfov() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(2, 3);
    let archive = open(dir.path());
    assert_eq!(archive.put(&tile(&plan, 0, 2, 0), Some(serde_json::json!({"mean": 3}))).expect("room"), Put::Waiting);
    assert_eq!(archive.put(&tile(&plan, 1, 0, 0), None).expect("room"), Put::Waiting);
    assert_eq!(archive.put(&tile(&plan, 0, 0, 0), None).expect("room"), Put::Waiting);
    let loss = Loss { key: plan.mfovs[0].tiles[1].key, plan: plan.clone(), reason: Reason::SectionMissing };
    assert_eq!(archive.lost(&loss).expect("enters"), Put::Settled(plan.mfovs[0].id));
    drop(archive);

    let archive = open(dir.path());
    let want = tile(&plan, 0, 2, 0);
    assert_eq!(archive.read(&want.key).expect("durable"), want.pixels);
    for rect in [BoxXy { min: Xy::new(3, 2), max: Xy::new(5, 9) }, BoxXy { min: Xy::new(1, 0), max: Xy::new(40, 10) }] {
        let part = archive.read_rect(&want.key, rect).expect("inside");
        for y in 0..part.height() {
            let row = &want.pixels.row(y + rect.min.y as usize)[rect.min.x as usize..rect.max.x as usize];
            assert_eq!(part.row(y), row);
        }
    }
    assert_eq!(archive.ledger().tile(want.key).expect("reads").expect("known").quality.expect("kept")["mean"], 3);
    assert!(archive.read(&loss.key).expect_err("lost").to_string().ends_with("it is lost"));
    assert!(archive.read(&plan.mfovs[1].tiles[0].key).expect_err("half").to_string().ends_with("still expected"));
    assert_eq!(
        archive.ledger().counts().expect("reads"),
        Counts { expected: 3, durable: 2, lost: 1, ..Counts::default() }
    );
}

#[test]
fn what_was_not_settled_is_dropped_and_can_be_sent_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(1, 2);
    let archive = open(dir.path());
    archive.put(&tile(&plan, 0, 0, 0), None).expect("room");
    drop(archive);
    let archive = open(dir.path());
    assert_eq!(fs::read_dir(dir.path().join("archive")).expect("lists").count(), 0);
    assert_eq!(archive.put(&tile(&plan, 0, 0, 0), None).expect("room"), Put::Waiting);
    assert_eq!(archive.put(&tile(&plan, 0, 1, 0), None).expect("room"), Put::Settled(plan.mfovs[0].id));
    assert!(archive.ledger().duplicates().expect("reads").is_empty());
}

#[test]
fn a_file_without_its_ledger_entry_is_overwritten() {
    // As after a power cut between the rename and the ledger transaction.
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(1, 1);
    let archive = open(dir.path());
    fs::write(archive.path(plan.mfovs[0].id), [9; 5000]).expect("writes");
    let tile = tile(&plan, 0, 0, 0);
    assert_eq!(archive.put(&tile, None).expect("room"), Put::Settled(plan.mfovs[0].id));
    assert_eq!(archive.read(&tile.key).expect("durable"), tile.pixels);
}

#[test]
fn the_order_in_which_two_contents_arrive_does_not_matter() {
    let mut kept = Vec::new();
    for seeds in [[1, 2], [2, 1]] {
        let dir = tempfile::tempdir().expect("a folder");
        let plan = plan(1, 2);
        let archive = open(dir.path());
        archive.put(&tile(&plan, 0, 0, seeds[0]), None).expect("room");
        assert_eq!(archive.put(&tile(&plan, 0, 0, seeds[0]), None).expect("room"), Put::Duplicate { same: true });
        assert_eq!(archive.put(&tile(&plan, 0, 0, seeds[1]), None).expect("room"), Put::Duplicate { same: false });
        archive.put(&tile(&plan, 0, 1, 0), None).expect("room");
        let key = plan.mfovs[0].tiles[0].key;
        assert_eq!(archive.put(&tile(&plan, 0, 0, 3), None).expect("room"), Put::Duplicate { same: false });
        kept.push(archive.read(&key).expect("durable"));
        let again = archive.ledger().duplicates().expect("reads");
        assert_eq!(again, vec![(key, Duplicates { same: 1, other: 2 })]);
    }
    assert_eq!(kept[0], kept[1]);
}

#[test]
fn a_foreign_tile_is_named_and_not_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(1, 1);
    let archive = open(dir.path());
    let mut foreign = tile(&plan, 0, 0, 0);
    foreign.key.beam = BeamId(60);
    assert_eq!(archive.put(&foreign, None).expect("counts"), Put::Foreign);
    assert_eq!(archive.ledger().foreign().expect("reads"), vec![(foreign.key, 1)]);
    assert_eq!(archive.used(), Bytes(0));
}

#[test]
fn a_changed_byte_at_rest_is_an_error_that_names_the_tile() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(1, 1);
    let archive = open(dir.path());
    let tile = tile(&plan, 0, 0, 0);
    archive.put(&tile, None).expect("room");
    let path = archive.path(tile.key.mfov);
    let good = fs::read(&path).expect("reads");
    for at in [2, 10, 20, 40, 100, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, bad).expect("writes");
        let error = archive.read(&tile.key).expect_err("damaged");
        assert!(matches!(&error, ArchiveError::Damaged { key, .. } if *key == tile.key), "{error}");
    }
    fs::write(&path, &good[..good.len() - 1]).expect("writes");
    assert!(archive.read(&tile.key).expect_err("short").to_string().contains("too short"));
}

#[test]
fn part_of_a_tile_that_changed_since_an_earlier_process_is_refused_although_the_part_itself_is_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(1, 1);
    let archive = open(dir.path());
    let tile = tile(&plan, 0, 0, 0);
    archive.put(&tile, None).expect("room");
    let path = archive.path(tile.key.mfov);
    drop(archive);
    let mut bytes = fs::read(&path).expect("reads");
    *bytes.last_mut().expect("pixels") ^= 1;
    fs::write(&path, &bytes).expect("writes");
    let part = BoxXy { min: Xy::new(0, 0), max: Xy::new(5, 5) };
    let archive = open(dir.path());
    let error = archive.read_rect(&tile.key, part).expect_err("damaged");
    assert!(matches!(&error, ArchiveError::Damaged { key, .. } if *key == tile.key), "{error}");
    *bytes.last_mut().expect("pixels") ^= 1;
    fs::write(&path, &bytes).expect("writes");
    assert_eq!(archive.read_rect(&tile.key, part).expect("restored").data().len(), 25);
}

#[test]
fn a_full_disk_is_one_clear_error_and_nothing_accepted_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(2, 2);
    // Room for one mFOV of two frames of 464 bytes, and for half of the next.
    let capacity = Some(Bytes(3 * 464 + 463));
    let ledger = Ledger::open(dir.path(), DIGEST).expect("new");
    let disk = DiskLimits { capacity, ..DiskLimits::default() };
    let archive = Archive::open_on(dir.path(), ledger, disk).expect("opens");
    archive.put(&tile(&plan, 0, 0, 0), None).expect("room");
    archive.put(&tile(&plan, 0, 1, 0), None).expect("room");
    archive.put(&tile(&plan, 1, 0, 0), None).expect("room");
    let error = archive.put(&tile(&plan, 1, 1, 0), None).expect_err("full");
    assert!(matches!(&error, ArchiveError::StorageFull { wanted: Bytes(464), .. }), "{error}");
    drop(archive);

    let archive = open(dir.path());
    assert_eq!(archive.read(&tile(&plan, 0, 1, 0).key).expect("durable"), tile(&plan, 0, 1, 0).pixels);
    assert_eq!(archive.ledger().settled_mfovs().expect("reads"), vec![plan.mfovs[0].id]);
    archive.put(&tile(&plan, 1, 0, 0), None).expect("room");
    assert_eq!(archive.put(&tile(&plan, 1, 1, 0), None).expect("room"), Put::Settled(plan.mfovs[1].id));
}

#[test]
fn many_writers_settle_every_mfov_exactly_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(4, 7);
    let archive = open(dir.path());
    let settled: usize = std::thread::scope(|s| {
        let writers: Vec<_> = (0..3)
            .map(|worker| {
                let (archive, plan) = (archive.clone(), plan.clone());
                s.spawn(move || {
                    // Every tile comes from every worker, in another order.
                    let all = (0..28).map(|i| (i * 5 + worker * 9) % 28);
                    let puts = all.map(|i| archive.put(&tile(&plan, i % 4, i / 4, 0), None).expect("room"));
                    puts.filter(|p| matches!(p, Put::Settled(_))).count()
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().expect("no panic")).sum()
    });
    assert_eq!(settled, 4);
    assert_eq!(
        archive.ledger().counts().expect("reads"),
        Counts { expected: 0, durable: 28, lost: 0, ..Counts::default() }
    );
    assert_eq!(archive.ledger().duplicates().expect("reads").iter().map(|(_, d)| d.same).sum::<u64>(), 56);
}
