//! What this program itself leaves on a disk: logs, volumes, the spool, the ledger.

use std::path::Path;

use kinesin_backpressure::Bytes;
use kinesin_backpressure::spool::{Group, Record, Spool, SpoolConfig};
use kinesin_stream::geometry::{VoxelSize, Zyx};
use kinesin_stream::ledger::{Ledger, PlanDigest};
use kinesin_stream::volume::commit_log::{CommitLog, read_log};
use kinesin_stream::volume::compressed_segmentation;
use kinesin_stream::volume::image_writer::{ImageSpec, ImageWriter, Reduce};
use kinesin_stream::volume::label_writer::{LabelSpec, LabelWriter};
use ndarray::{Array2, Array3};
use serde_json::Value;

use crate::harness::fuzz;
use crate::{folder, plan};

#[test]
fn commit_logs() {
    let dir = folder();
    let file = dir.path().join("commits.jsonl");
    let seeds = [b"{\"section\":0,\"at\":12}\n{\"section\":1,\"at\":13}\n".to_vec()];
    fuzz("commit logs", 4.0, &seeds, |bytes| {
        std::fs::write(&file, bytes).expect("writes");
        read_log::<Value>(&file).map_err(|e| e.to_string())?;
        let (_, records) = CommitLog::<Value>::open(&file).map_err(|e| e.to_string())?;
        // What was cut off once stays off.
        let again = read_log::<Value>(&file).map_err(|e| format!("after its repair: {e}"))?;
        assert_eq!(records, again);
        Ok(())
    });
}

#[test]
fn compressed_labels() {
    let labels = Array3::from_shape_fn((4, 10, 12), |(z, y, x)| (z / 3 + y / 5 + 2 * (x / 4)) as u64);
    let (shape, block) = (Zyx::new(4, 10, 12), Zyx::new(8, 8, 8));
    let seeds = [compressed_segmentation::encode(labels.view(), block)];
    fuzz("compressed segmentation", 64.0, &seeds, |bytes| {
        compressed_segmentation::decode(bytes, shape, block).map(drop).map_err(|e| e.to_string())
    });
}

fn read(path: &Path) -> Result<(), String> {
    let volume = kinesin_stream::volume::open(path).map_err(|e| e.to_string())?;
    let all = volume.info().bounds();
    let most = 1 << 20;
    let shape = all.shape();
    if shape.z.saturating_mul(shape.y).saturating_mul(shape.x) > most {
        return Err("larger than anyone would ask for here".into());
    }
    volume.read_labels(all).map(drop).map_err(|e| e.to_string())
}

fn voxels() -> VoxelSize {
    VoxelSize(Zyx::new(30.0, 4.0, 4.0))
}

#[test]
fn precomputed_volumes() {
    let dir = folder();
    let spec = LabelSpec {
        shape: Zyx::new(4, 10, 12),
        voxel_size: voxels(),
        origin: Zyx::default(),
        chunk: Zyx::new(4, 8, 8),
    };
    let writer = LabelWriter::create(dir.path(), spec).expect("makes");
    let labels = Array3::from_shape_fn((4, 10, 12), |(z, y, x)| (z / 3 + y / 5 + 2 * (x / 4)) as u64);
    writer.write_box(Zyx::default(), labels.view()).expect("writes");
    each_file(dir.path(), "precomputed", 4.0, read);
}

#[test]
fn zarr_volumes() {
    let dir = folder();
    let spec = ImageSpec {
        shape: Zyx::new(2, 10, 12),
        voxel_size: voxels(),
        chunk: kinesin_stream::geometry::Xy::new(8, 8),
        levels: 2,
        reduce: Reduce::Mean,
    };
    let writer = ImageWriter::create(dir.path(), spec).expect("makes");
    for z in 0..2 {
        let section = Array2::from_shape_fn((10, 12), |(y, x)| (y * 12 + x + 1) as u8);
        writer.write_section(z, section.view()).expect("writes");
    }
    each_file(dir.path(), "OME-Zarr", 2.0, read);
}

/// Damages each file of a folder in turn, and reads the whole.
fn each_file(root: &Path, what: &str, weight: f64, read: impl Fn(&Path) -> Result<(), String>) {
    let mut folders = vec![root.to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("reads") {
            let path = entry.expect("reads").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    // One file of each folder and extension is like the others.
    files.dedup_by_key(|f| (f.parent().map(Path::to_path_buf), f.file_stem().is_some_and(|s| s.len() > 6)));
    for file in files.iter().take(6) {
        let whole = std::fs::read(file).expect("reads");
        let name = format!("{what} {}", file.strip_prefix(root).expect("within").display());
        fuzz(&name, weight, std::slice::from_ref(&whole), |bytes| {
            std::fs::write(file, bytes).expect("writes");
            read(root)
        });
        std::fs::write(file, whole).expect("writes");
    }
}

#[test]
fn spools() {
    let dir = folder();
    let at = dir.path().join("spool");
    let config = || SpoolConfig {
        folder: at.clone(),
        capacity: Bytes::mib(1),
        segment: Bytes::kib(64),
        identity: [7; 32],
        disk: Default::default(),
    };
    let record = |group: u8, payload: &[u8], to: &Spool, end: bool| {
        let hash = *blake3::hash(payload).as_bytes();
        let record = Record { group: Group([group; 16]), head: b"head", payload, hash };
        if end { to.end(&record) } else { to.append(&record) }.expect("writes");
    };
    {
        let (spool, _) = Spool::open(config()).expect("opens");
        for group in 1..4 {
            record(group, &[group; 300], &spool, false);
            record(group, b"", &spool, group < 3);
        }
        spool.put_note(b"plan", b"of them all").expect("writes");
        spool.sync().expect("syncs");
    }
    let mut files: Vec<_> = std::fs::read_dir(&at).expect("reads").map(|e| e.expect("reads").path()).collect();
    files.sort();
    let whole: Vec<_> = files.iter().map(|f| (f.clone(), std::fs::read(f).expect("reads"))).collect();
    for (file, good) in &whole {
        let name = format!("spool {}", file.file_name().expect("named").to_string_lossy());
        fuzz(&name, 1.0, std::slice::from_ref(good), |bytes| {
            // A repair may have removed or renamed any of them.
            std::fs::remove_dir_all(&at).expect("removes");
            std::fs::create_dir(&at).expect("makes");
            whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).expect("writes"));
            std::fs::write(file, bytes).expect("writes");
            let (spool, restored) = Spool::open(config()).map_err(|e| e.to_string())?;
            let mut reader = spool.reader();
            let items = restored
                .whole
                .iter()
                .map(|w| w.end)
                .chain(restored.open.iter().flat_map(|o| o.items.iter().map(|i| i.position)));
            for position in items {
                reader.whole(position).map_err(|e| e.to_string())?;
            }
            spool.notes().map(drop).map_err(|e| e.to_string())
        });
    }
}

#[test]
fn ledgers() {
    let dir = folder();
    let file = dir.path().join(Ledger::FILE);
    Ledger::open(dir.path(), PlanDigest([3; 32])).expect("opens").expect_section(&plan()).expect("writes");
    let good = std::fs::read(&file).expect("reads");
    fuzz("ledger files", 0.25, &[good], |bytes| {
        std::fs::write(&file, bytes).expect("writes");
        let ledger = Ledger::open(dir.path(), PlanDigest([3; 32])).map_err(|e| e.to_string())?;
        ledger.section(plan().section).map_err(|e| e.to_string())?;
        ledger.recount().map(drop).map_err(|e| e.to_string())
    });
}
