//! Promises of the spool, with a model of what it must remember.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

const RUN: [u8; 32] = [7; 32];

fn config(folder: &Path) -> SpoolConfig {
    SpoolConfig {
        folder: folder.join("spool"),
        capacity: Bytes::mib(1),
        segment: Bytes::kib(4),
        identity: RUN,
        disk: DiskLimits::default(),
    }
}

fn group(n: u64) -> Group {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&n.to_be_bytes());
    Group(name)
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed * 97) >> 3) as u8).collect()
}

fn record<'a>(n: u64, head: &'a [u8], payload: &'a [u8]) -> Record<'a> {
    Record { group: group(n), head, payload, hash: *blake3::hash(payload).as_bytes() }
}

fn put(spool: &Spool, n: u64, seed: u64, len: usize) -> Position {
    match spool.append(&record(n, &seed.to_be_bytes(), &bytes(seed, len))).expect("writes") {
        Put::At(position) => position,
        other => panic!("{other:?}"),
    }
}

fn end(spool: &Spool, n: u64) -> Position {
    match spool.end(&record(n, b"", b"the end")).expect("writes") {
        Put::At(position) => position,
        other => panic!("{other:?}"),
    }
}

fn content(spool: &Spool, at: Position) -> Option<Vec<u8>> {
    spool.reader().whole(at).expect("not damaged")
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("there").ino()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder.join("spool")).expect("there").map(|e| e.expect("reads").path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "segment"));
    files.sort();
    files
}

#[test]
fn what_is_appended_reads_back_in_any_order_and_by_pieces() {
    let dir = tempfile::tempdir().expect("a folder");
    let (spool, restored) = Spool::open(config(dir.path())).expect("opens");
    assert!(restored.whole.is_empty() && restored.open.is_empty());
    // One is larger than a segment.
    let lengths = [0, 1, 4096, 70_000, 63, 64, 65];
    let at: Vec<_> = (0..7).map(|i| put(&spool, i % 2, i, lengths[i as usize])).collect();
    assert!(at.is_sorted());
    for i in [5, 0, 3, 6, 2, 1, 4_usize] {
        assert_eq!(content(&spool, at[i]), Some(bytes(i as u64, lengths[i])));
        let mut reader = spool.reader();
        let mut buffer = vec![0; 1000];
        let opened = reader.open(at[i], &mut buffer).expect("whole").expect("there");
        let mut all = buffer[Opened::START..Opened::START + opened.read].to_vec();
        while all.len() < opened.head + opened.payload {
            let got = reader.next(&opened, all.len(), &mut buffer[..999]).expect("whole").expect("there");
            all.extend(&buffer[..got]);
        }
        assert_eq!(all, [&(i as u64).to_be_bytes()[..], &bytes(i as u64, lengths[i])].concat());
    }
}

#[test]
fn a_restart_gives_back_whole_groups_in_order_and_the_items_of_open_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    let (spool, _) = Spool::open(config(dir.path())).expect("opens");
    let late = put(&spool, 1, 10, 3000);
    put(&spool, 2, 20, 3000);
    let ended = [end(&spool, 2), {
        put(&spool, 3, 30, 3000);
        end(&spool, 3)
    }];
    spool.put_note(b"plan", b"of them all").expect("writes");
    spool.sync().expect("syncs");
    drop(spool);
    let (spool, restored) = Spool::open(config(dir.path())).expect("opens");
    let whole: Vec<_> = restored.whole.iter().map(|w| (w.group, w.end)).collect();
    assert_eq!(whole, vec![(group(2), ended[0]), (group(3), ended[1])]);
    assert_eq!(restored.open.len(), 1);
    let item = &restored.open[0].items[0];
    assert_eq!((item.position, &item.head[..], item.payload), (late, &10_u64.to_be_bytes()[..], 3000));
    assert_eq!((restored.cut, restored.damage.len()), (Bytes(0), 0));
    assert_eq!(spool.note(b"plan").expect("reads").as_deref(), Some(&b"of them all"[..]));
    assert_eq!(spool.notes().expect("reads"), vec![b"plan".to_vec()]);
    // It goes on behind what is there.
    assert!(put(&spool, 1, 11, 5) > ended[1]);
}

#[test]
fn released_segments_are_deleted_and_their_room_is_given_back() {
    let dir = tempfile::tempdir().expect("a folder");
    // Eight segments of 4 KiB; a record takes 96 + 8 + 3992 = 4096 bytes.
    let config = SpoolConfig { capacity: Bytes::kib(32), ..config(dir.path()) };
    let (spool, _) = Spool::open(config.clone()).expect("opens");
    for i in 0..8 {
        put(&spool, i, i, 3992);
    }
    assert_eq!((spool.held(), segments(dir.path()).len()), (Bytes::kib(32), 8));
    let full = spool.append(&record(8, b"", b"more")).expect("no fault");
    assert_eq!(full, Put::NoRoom(NoRoom::Capacity));
    // The end of a group may pass the capacity by its own length.
    end(&spool, 0);
    let mut releases = spool.releases();
    assert!(spool.release(group(3)).expect("deletes"));
    assert!(releases.has_changed().expect("alive"));
    releases.mark_unchanged();
    assert!(!spool.release(group(3)).expect("nothing to do"));
    assert_eq!(segments(dir.path()).len(), 8);
    put(&spool, 9, 9, 3000);
    for i in 0..8 {
        spool.release(group(i)).expect("deletes");
    }
    spool.release(group(9)).expect("deletes");
    assert_eq!(spool.held(), Bytes(0), "nothing is live, so no file is");
    let (went_in, came_out) = spool.totals();
    assert_eq!(went_in, came_out);
    spool.remove_if_empty();
    assert!(!config.folder.exists());
}

#[test]
fn a_released_segment_is_written_over_and_what_was_in_it_is_neither_read_nor_restored() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = SpoolConfig { capacity: Bytes::kib(32), ..config(dir.path()) };
    let (spool, _) = Spool::open(config.clone()).expect("opens");
    // A record takes 96 + 8 + 1944 = 2048 bytes, two a segment.
    let old = [1, 2].map(|seed| put(&spool, 1, seed, 1944));
    end(&spool, 1);
    let mut reader = spool.reader();
    let mut buffer = vec![0; 1000];
    let opened = reader.open(old[1], &mut buffer).expect("whole").expect("there");
    let first = inode(&segments(dir.path())[0]);
    spool.release(group(1)).expect("gives back");
    // Behind the end there is room for one.
    put(&spool, 2, 4, 1944);
    let new = put(&spool, 2, 3, 1944);
    assert!(segments(dir.path()).iter().any(|p| inode(p) == first), "the same file");
    // Of the second old record every byte is still there.
    assert_eq!(reader.next(&opened, 100, &mut buffer).expect("no damage"), None, "released while it was read");
    assert!(reader.open(old[1], &mut buffer).expect("no damage").is_none());
    drop(spool);
    let (spool, restored) = Spool::open(config.clone()).expect("opens");
    assert_eq!((restored.open.len(), restored.whole.len(), restored.damage.len()), (1, 0, 0), "{restored:?}");
    assert_eq!(content(&spool, new), Some(bytes(3, 1944)));
    // A full spool is as long as its capacity, the spare included, however often segments are written over.
    for i in 10..60 {
        while spool.append(&record(i, b"", &bytes(i, 3000))).expect("no fault") == Put::NoRoom(NoRoom::Capacity) {
            let oldest = (2..i).find(|n| spool.release(group(*n)).expect("gives back"));
            assert!(oldest.is_some(), "nothing is held, and there is no room");
        }
        let files = fs::read_dir(&config.folder).expect("there").map(|e| e.expect("reads"));
        let files = files.filter(|f| f.file_name() != "spool.head");
        let on_disk: u64 = files.map(|f| f.metadata().expect("there").len()).sum();
        assert!(on_disk <= 32 << 10, "{on_disk} bytes");
    }
}

#[test]
fn a_spool_of_another_run_or_version_or_in_use_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().expect("a folder");
    let (spool, _) = Spool::open(config(dir.path())).expect("opens");
    let refused = |config: SpoolConfig| Spool::open(config).map(drop).expect_err("refused").to_string();
    let said = refused(config(dir.path()));
    assert!(said.contains("in use"), "{said}");
    put(&spool, 1, 1, 10);
    drop(spool);
    let before = fs::read(&segments(dir.path())[0]).expect("reads");
    let said = refused(SpoolConfig { identity: [8; 32], ..config(dir.path()) });
    for part in ["another run", "0707070707070707", "0808080808080808", "another spool folder", "spool"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let head = dir.path().join("spool/spool.head");
    let good = fs::read(&head).expect("reads");
    fs::write(&head, [&good[..8], &9_u32.to_le_bytes(), &good[12..]].concat()).expect("writes");
    let said = refused(config(dir.path()));
    assert!(said.contains("version 9") && said.contains("writes 1"), "{said}");
    fs::write(&head, &good[..20]).expect("writes");
    assert!(refused(config(dir.path())).contains("spool.head"));
    fs::write(&head, good).expect("writes");
    assert_eq!(fs::read(&segments(dir.path())[0]).expect("reads"), before, "refusing changes nothing");
    let (spool, restored) = Spool::open(config(dir.path())).expect("opens");
    assert_eq!(restored.open.len(), 1);
    // Empty, it is anybody's.
    spool.release(group(1)).expect("deletes");
    drop(spool);
    Spool::open(SpoolConfig { identity: [8; 32], ..config(dir.path()) }).map(drop).expect("empty");
}

#[test]
fn a_flipped_bit_at_rest_costs_its_record_and_is_named() {
    for (byte, in_header) in [(30, true), (100, true), (2000, false)] {
        let dir = tempfile::tempdir().expect("a folder");
        let (spool, _) = Spool::open(config(dir.path())).expect("opens");
        let at = [1_u64, 2, 3].map(|i| put(&spool, 1, i, 1000));
        end(&spool, 1);
        spool.sync().expect("syncs");
        // The mark that all before was synced.
        put(&spool, 2, 9, 10);
        spool.sync().expect("syncs");
        drop(spool);
        let path = &segments(dir.path())[0];
        let mut file = fs::read(path).expect("reads");
        // Each record takes 96 + 8 + 1000 bytes, up to a multiple of 64: 1152.
        let hit = at.iter().rposition(|p| p.offset() <= byte).expect("in one of them");
        file[byte as usize] ^= 4;
        fs::write(path, file).expect("writes");
        let (spool, restored) = Spool::open(config(dir.path())).expect("opens");
        assert_eq!(restored.whole.len(), 1, "its end was synced");
        if in_header {
            assert_eq!(restored.damage.len(), 1, "{restored:?}");
            assert_eq!((restored.damage[0].offset, restored.damage[0].bytes), (at[hit].offset(), Bytes(1152)));
        } else {
            assert!(restored.damage.is_empty(), "found when it is read");
        }
        for (i, position) in at.iter().enumerate() {
            let read = spool.reader().verify(*position);
            assert_eq!(read.is_ok(), i != hit, "{read:?}");
            if let Err(error) = read {
                let said = error.to_string();
                assert!(said.contains("0000000000.segment") && said.contains("damaged at rest"), "{said}");
            }
        }
    }
}

#[test]
fn an_item_that_is_given_back_does_not_keep_its_segment() {
    let dir = tempfile::tempdir().expect("a folder");
    let (spool, _) = Spool::open(config(dir.path())).expect("opens");
    let worse = put(&spool, 1, 1, 3992);
    let better = put(&spool, 1, 2, 3992);
    spool.discard(group(1), worse, 8, 3992).expect("deletes");
    end(&spool, 1);
    spool.sync().expect("syncs");
    assert_eq!(content(&spool, worse), None);
    assert_eq!(content(&spool, better), Some(bytes(2, 3992)));
}

#[test]
fn a_full_disk_is_told_like_a_full_spool_and_leaves_no_half_record() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("spool");
    fs::create_dir(&folder).expect("makes");
    let mount =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&folder).output();
    if !mount.is_ok_and(|m| m.status.success()) {
        println!("skipped: a small file system can only be mounted by root");
        return;
    }
    let (spool, _) = Spool::open(config(dir.path())).expect("opens");
    let mut last = Put::NoRoom(NoRoom::Capacity);
    let mut written = 0;
    for i in 0..100 {
        last = spool.append(&record(i, b"", &bytes(i, 10_000))).expect("no fault");
        written += u64::from(matches!(last, Put::At(_)));
        if last == Put::NoRoom(NoRoom::Disk) {
            break;
        }
    }
    // A segment that was begun is made for the next try; what is released makes room for it.
    let again = spool.release(group(0)).and_then(|_| spool.append(&record(200, b"", &bytes(200, 9_000))));
    drop(spool);
    let reopened = Spool::open(config(dir.path())).map(|(_, restored)| restored.open.len() as u64);
    let gone = std::process::Command::new("umount").arg(&folder).output();
    assert!(gone.is_ok_and(|g| g.status.success()));
    assert_eq!(last, Put::NoRoom(NoRoom::Disk));
    assert!(matches!(again, Ok(Put::At(_))), "{again:?}");
    assert!(written > 5);
    assert_eq!(reopened.expect("opens"), written);
}

#[derive(Clone, Debug)]
enum Act {
    Append {
        group: u64,
        len: usize,
    },
    End {
        group: u64,
    },
    Release {
        group: u64,
    },
    Sync,
    /// Power cut: files keep at least what was synced; of the rest some part, with some bytes changed.
    Crash {
        keep: u64,
        garble: u64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let group = 0..6_u64;
    prop_oneof![
        6 => (group.clone(), 0..3000_usize).prop_map(|(group, len)| Act::Append { group, len }),
        2 => group.clone().prop_map(|group| Act::End { group }),
        2 => group.prop_map(|group| Act::Release { group }),
        2 => Just(Act::Sync),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(keep, garble)| Act::Crash { keep, garble }),
    ]
}

/// What the model knows of a group.
#[derive(Default, Clone, Debug)]
struct Known {
    items: BTreeMap<Position, Vec<u8>>,
    synced: BTreeSet<Position>,
    ended: bool,
    end_synced: bool,
}

#[derive(Default)]
struct Model {
    groups: BTreeMap<u64, Known>,
    /// The files when they were last synced, by inode: a segment may be written over another.
    at_rest: BTreeMap<u64, Vec<u8>>,
    /// Names are used once.
    names: [u64; 6],
    fresh: u64,
    released: BTreeSet<u64>,
    seed: u64,
}

impl Model {
    fn name(&mut self, slot: u64) -> u64 {
        let name = &mut self.names[slot as usize];
        if *name == 0 || self.groups.get(name).is_some_and(|g| g.ended) || self.released.contains(name) {
            self.fresh += 1;
            *name = self.fresh;
        }
        *name
    }

    fn synced(&mut self, dir: &Path) {
        let spare = dir.join("spool/spare");
        let files = segments(dir).into_iter().chain(spare.exists().then_some(spare));
        self.at_rest = files.map(|p| (inode(&p), fs::read(p).expect("reads"))).collect();
        for known in self.groups.values_mut() {
            known.synced = known.items.keys().copied().collect();
            known.end_synced = known.ended;
        }
    }

    /// Of what was written since the last sync each block, and the length, may have reached the disk or not; one byte of it changed.
    fn crash(&self, dir: &Path, keep: u64, garble: u64) {
        const BLOCK: usize = 512;
        for (i, path) in segments(dir).into_iter().enumerate() {
            let now = fs::read(&path).expect("reads");
            let old = self.at_rest.get(&inode(&path)).map_or(&[][..], Vec::as_slice);
            let may = |n: usize| (keep >> (n % 61)) & 1 == 1;
            let mut file = now.clone();
            if now.len() < old.len() && may(i) {
                file.extend(&old[now.len()..]);
            } else if now.len() > old.len() {
                file.truncate(old.len() + ((keep >> (i % 16)) as usize) % (now.len() - old.len() + 1));
            }
            for at in (0..file.len().min(old.len())).step_by(BLOCK).filter(|at| may(i + at / BLOCK)) {
                let end = (at + BLOCK).min(file.len()).min(old.len());
                file[at..end].copy_from_slice(&old[at..end]);
            }
            let loose: Vec<_> = (0..file.len()).filter(|&b| old.get(b) != Some(&file[b])).collect();
            if !loose.is_empty() {
                file[loose[(garble as usize >> (i % 8)) % loose.len()]] ^= 1 << (garble % 8);
            }
            if file.is_empty() && old.is_empty() && keep.is_multiple_of(3) {
                fs::remove_file(&path)
            } else {
                fs::write(&path, file)
            }
            .expect("writes");
        }
    }

    /// Nothing synced is lost, nothing else is there than what was appended.
    fn check(&mut self, spool: &Spool, restored: &Restored) {
        let mut found: BTreeMap<u64, (bool, BTreeSet<Position>)> = BTreeMap::new();
        let name = |g: Group| u64::from_be_bytes(g.0[..8].try_into().expect("8 bytes"));
        for open in &restored.open {
            let positions = open.items.iter().map(|i| i.position).collect();
            found.insert(name(open.group), (false, positions));
        }
        for whole in &restored.whole {
            found.insert(name(whole.group), (true, BTreeSet::new()));
        }
        for (n, known) in &self.groups {
            if self.released.contains(n) {
                continue;
            }
            let whole = found.get(n).is_some_and(|f| f.0);
            assert!(!known.end_synced || whole, "group {n} had ended for certain");
            assert!(!whole || known.ended, "group {n} never ended");
            for (position, content) in &known.items {
                let there = whole || found.get(n).is_some_and(|f| f.1.contains(position));
                assert!(there || !known.synced.contains(position), "group {n} {position:?} was synced");
                if there {
                    assert_eq!(spool.reader().whole(*position).expect("intact").expect("there"), *content);
                }
            }
        }
        for (n, (_, positions)) in &found {
            let known = self.groups.get(n);
            assert!(known.is_some_and(|k| positions.iter().all(|p| k.items.contains_key(p))), "group {n} was invented");
        }
        // From here on the model is what came back.
        let groups = std::mem::take(&mut self.groups);
        for (n, mut known) in groups {
            let Some((whole, positions)) = found.get(&n) else { continue };
            known.ended = *whole;
            known.items.retain(|p, _| *whole || positions.contains(p));
            self.groups.insert(n, known);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_nothing_synced_is_lost_and_nothing_is_invented(acts in prop::collection::vec(act(), 1..60)) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut model = Model::default();
        let mut spool = Some(Spool::open(config(dir.path())).expect("opens").0);
        for act in acts {
            let open = spool.as_ref().expect("open");
            match act {
                Act::Append { group: slot, len } => {
                    model.seed += 1;
                    let (n, seed) = (model.name(slot), model.seed);
                    let at = put(open, n, seed, len);
                    model.groups.entry(n).or_default().items.insert(at, bytes(seed, len));
                }
                Act::End { group: slot } => {
                    let n = model.names[slot as usize];
                    if let Some(known) = model.groups.get_mut(&n).filter(|g| !g.ended) {
                        known.ended = true;
                        end(open, n);
                    }
                }
                Act::Release { group: slot } => {
                    let n = model.names[slot as usize];
                    open.release(group(n)).expect("deletes");
                    model.released.insert(n);
                }
                Act::Sync => {
                    open.sync().expect("syncs");
                    model.synced(dir.path());
                }
                Act::Crash { keep, garble } => {
                    drop(spool.take());
                    model.crash(dir.path(), keep, garble);
                    let (again, restored) = Spool::open(config(dir.path())).expect("opens");
                    model.check(&again, &restored);
                    model.synced(dir.path());
                    spool = Some(again);
                }
            }
        }
    }
}
