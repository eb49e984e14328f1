//! No bytes make a parser panic, hang, take much memory, or refuse without a word: every format that is read from a disk, an
//! instrument or a peer, fed with damaged good files. See [`harness`] for the settings and the counts.
//!
//! Private forms of the link and the ledger are fuzzed beside their code (`stream/src/{link,ledger}/tests/fuzz.rs`), site files in
//! `tests/tests/fuzz.rs`, with the same harness.

mod harness;
mod stored;

use std::path::{Path, PathBuf};

use harness::fuzz;
use kinesin_acquire::dataset::Dataset;
use kinesin_acquire::decode::decode;
use kinesin_acquire::throttle::ThrottleConfig;
use kinesin_acquire::throttle::sbem::{ObjectEnd, Progress, State};
use kinesin_stream::ids::SectionId;
use kinesin_stream::map::{Affine, Grid, Map};
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::tile::Reason;

/// In memory where the machine has it: many small files are written.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

fn png_file(width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let grey: Vec<u8> = (0..width * height).map(|i| (i * 7) as u8).collect();
    encoder.write_header().expect("writes").write_image_data(&grey).expect("writes");
    file
}

fn tiff_file(width: u32, height: u32, squeeze: bool) -> Vec<u8> {
    use tiff::encoder::{Compression, DeflateLevel, TiffEncoder, colortype};
    let how = if squeeze { Compression::Deflate(DeflateLevel::Fast) } else { Compression::Uncompressed };
    let mut file = std::io::Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).expect("writes").with_compression(how);
    let grey: Vec<u8> = (0..width * height).map(|i| (i * 5) as u8).collect();
    encoder.write_image::<colortype::Gray8>(width, height, &grey).expect("writes");
    file.into_inner()
}

/// 8-bit with a grey palette, bottom up, rows filled to 4 bytes.
fn bmp_file(width: u32, height: u32) -> Vec<u8> {
    let row = width.div_ceil(4) * 4;
    let start = 14 + 40 + 1024;
    let mut file = b"BM".to_vec();
    let mut put = |v: u32, n: usize| file.extend(&v.to_le_bytes()[..n]);
    put(start + row * height, 4);
    put(0, 4);
    put(start, 4);
    put(40, 4);
    put(width, 4);
    put(height, 4);
    put(1, 2);
    put(8, 2);
    [0, row * height, 2835, 2835, 256, 256].into_iter().for_each(|v| put(v, 4));
    (0..256).for_each(|v| put(v * 0x01_0101, 4));
    (0..row * height).for_each(|i| put(i % 251, 1));
    file
}

#[test]
fn image_files() {
    let seeds = [png_file(16, 12), tiff_file(16, 12, false), tiff_file(16, 12, true), bmp_file(15, 12)];
    fuzz("image files (PNG, TIFF, BMP)", 16.0, &seeds, |bytes| decode(bytes).map(drop).map_err(|e| e.to_string()));
}

#[test]
fn sbemimage_messages() {
    let seeds = [
        br#"{"paused": true, "z_depth": 7.85, "overviews": {"number_ov": 1, "ov_coords": [[-12.5, 3.0]], "ov_dirs": ["D:\\data\\\"{"]}, "slice_thickness": 25}"#.to_vec(),
        br#"{"overviews": {"number_ov": [0, 1]}, "z_depth": null}"#.to_vec(),
    ];
    fuzz("SBEMimage states", 256.0, &seeds, |bytes| {
        let mut end = ObjectEnd::default();
        let ends = bytes.iter().position(|b| end.take(*b) != Progress::Open);
        State::parse(&bytes[..ends.map_or(bytes.len(), |i| i + 1)]).map(drop)
    });
}

#[test]
fn maps() {
    let affine = Map::Affine(Affine::rotation(0.25, kinesin_stream::geometry::Xy::new(7.0, -3.5)));
    let grid = Grid::from_fn(vec![0.0, 10.0, 25.0], vec![-1.0, 8.0], |p| p).expect("increasing");
    let seeds: Vec<_> = [affine, Map::Grid(grid)].iter().map(|m| serde_json::to_vec(m).expect("writes")).collect();
    fuzz("map JSON", 256.0, &seeds, |bytes| {
        let map: Map = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        // What is taken can be used.
        let at = kinesin_stream::geometry::Xy::new(3.0, 4.0);
        std::hint::black_box((map.apply(at), map.jacobian(at), map.invert_at(at, at)));
        Ok(())
    });
}

fn plan() -> SectionPlan {
    use kinesin_stream::geometry::Xy;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SerialIndex, TileKey};
    use kinesin_stream::plan::{MfovPlan, PlannedTile};
    let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
    let tile = |beam: u16| PlannedTile {
        key: TileKey { mfov, beam: BeamId(beam) },
        name: format!("b{beam}.png"),
        nominal: Xy::new(f64::from(beam) * 14.0, 0.0),
        size: Xy::new(16, 12),
    };
    let mfovs = vec![MfovPlan { id: mfov, revision: 0, tiles: (0..2).map(tile).collect() }];
    SectionPlan { section: SectionId(0), serial: SerialIndex(0), name: "s".into(), version: 0, mfovs }
}

#[test]
fn section_plans() {
    let seeds = [serde_json::to_vec(&plan()).expect("writes")];
    fuzz("section plans", 64.0, &seeds, |bytes| {
        serde_json::from_slice::<SectionPlan>(bytes).map(drop).map_err(|e| e.to_string())
    });
}

/// Writes the bytes where the data set has this file, and opens the data set.
fn dataset(file: &Path, open: &Path) -> impl Fn(&[u8]) -> Result<(), String> + use<> {
    let (file, open) = (file.to_path_buf(), open.to_path_buf());
    move |bytes| {
        std::fs::write(&file, bytes).expect("writes");
        Dataset::open(&open).map(drop).map_err(|e| e.to_string())
    }
}

#[test]
fn tile_specs() {
    let dir = folder();
    std::fs::write(dir.path().join("a.png"), png_file(16, 12)).expect("writes");
    let seeds = [
        br#"[{"tileId": "a", "z": 3.0, "width": 16.0, "height": 12.0, "layout": {"sectionId": "3.0", "pixelsize": 4.0}, "mipmapLevels": {"0": {"imageUrl": "file:a.png"}}, "transforms": {"type": "list", "specList": [{"type": "leaf", "className": "mpicbg.trakem2.transform.AffineModel2D", "dataString": "1.0 0.0 0.0 1.0 14.0 0.0"}]}}]"#.to_vec(),
        br#"{"resolution_nm": 4, "tiles": [{"name": "a", "file": "a.png", "x": 0, "y": 0, "width": 16, "height": 12}]}"#.to_vec(),
    ];
    let file = dir.path().join("spec.json");
    fuzz("TileSpec JSON", 8.0, &seeds, dataset(&file, &file));
}

#[test]
fn feabas_texts() {
    let dir = folder();
    for name in ["a.png", "b.png"] {
        std::fs::write(dir.path().join(name), png_file(16, 12)).expect("writes");
    }
    let seeds = [b"{ROOT_DIR}\t.\n{RESOLUTION}\t4\n{TILE_SIZE}\t12\t16\na.png\t0\t0\nb.png\t14\t0\n".to_vec()];
    let file = dir.path().join("s0001.txt");
    fuzz("FEABAS texts", 8.0, &seeds, dataset(&file, &file));
}

#[test]
fn multisem_coordinates() {
    let dir = folder();
    let region = dir.path().join("013_S48R1");
    let mfov = region.join("000001");
    std::fs::create_dir_all(&mfov).expect("makes");
    let name = |beam: u32| format!("013_000001_{beam:03}_2024-05-11T0931227604512.bmp");
    for beam in 1..=3 {
        std::fs::write(mfov.join(name(beam)), bmp_file(16, 12)).expect("writes");
    }
    let line = |beam: u32| format!("000001\\{}\t{}\t0.0\t0\r\n", name(beam), f64::from(beam) * 14.0);
    let seeds = [(1..=3).map(line).collect::<String>().into_bytes()];
    fuzz("MultiSEM coordinates", 4.0, &seeds, dataset(&region.join("full_image_coordinates.txt"), &region));
}

#[test]
fn recorded_runs() {
    let dir = folder();
    let section = dir.path().join("sections/0000");
    std::fs::create_dir_all(section.join("tiles")).expect("makes");
    for beam in 0..2 {
        std::fs::write(section.join(format!("tiles/b{beam}.png")), png_file(16, 12)).expect("writes");
    }
    let run = br#"{"name": "r", "beams": 2, "tile_px": {"x": 16, "y": 12}, "pixel_size_nm": 4.0, "thickness_nm": 30.0, "sections": 1, "mfovs_per_section": 1, "extent": {"min": {"x": 0, "y": 0}, "max": {"x": 30, "y": 12}}, "peak_tiles_per_second": 0.0}"#.to_vec();
    let plan = serde_json::to_vec(&plan()).expect("writes");
    let lost =
        serde_json::to_vec(&std::collections::BTreeMap::from([("b1.png", Reason::NotAcquired("beam off".into()))]))
            .expect("writes");
    let file = |name: &str| -> PathBuf { dir.path().join(name) };
    std::fs::write(file("run.json"), &run).expect("writes");
    std::fs::write(file("sections/0000/plan.json"), &plan).expect("writes");
    fuzz("run.json", 4.0, std::slice::from_ref(&run), dataset(&file("run.json"), dir.path()));
    std::fs::write(file("run.json"), &run).expect("writes");
    fuzz("plan.json", 4.0, std::slice::from_ref(&plan), dataset(&file("sections/0000/plan.json"), dir.path()));
    std::fs::write(file("sections/0000/plan.json"), &plan).expect("writes");
    let lists = dataset(&file("sections/0000/lost.json"), dir.path());
    fuzz("lost.json", 4.0, &[b"{}".to_vec(), lost], lists);
}

#[test]
fn throttle_tables() {
    let seeds = [
        b"timeout_seconds = 5\nhttp.url = \"http://scope:8080/throttle\"\n".to_vec(),
        b"command = { program = \"scopectl\", args = [\"-q\"] }\n".to_vec(),
        b"hold_file.path = \"D:/scope/kinesin.hold\"\n".to_vec(),
    ];
    fuzz("throttle tables", 32.0, &seeds, |bytes| {
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let config: ThrottleConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        let told = |faults: Vec<kinesin_acquire::throttle::config::OpenError>| {
            faults.iter().map(ToString::to_string).collect::<String>()
        };
        config.hook().map(drop).map_err(told)
    });
}
