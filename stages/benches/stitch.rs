//! Accuracy and speed of match and montage: on sections with known truth, of drawn and of recorded tissue, and on real tiles
//! where `KINESIN_DATA` has them.
//!
//! `cargo bench -p kinesin-stages --bench stitch` prints a table of errors first, then timings; with `-- NAME` only the cases
//! whose names hold NAME. Rates of the table are millions of pixels of all tiles per second that the thread had a core, so
//! that other load does not count.
//!
//! With `KINESIN_TILES=DIR` the tiles of the cases go to `DIR`, where `peers/stitch.py DIR` runs other programs on them.

mod synthetic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_stages::inspect::{InspectConfig, inspect};
use kinesin_stages::montage::{KnownLenses, Montage, MontageConfig, solve};
use kinesin_stages::pointmatch::{MatchConfig, Matcher, PairMatches, Verdict, pairs};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};
use synthetic::{Recipe, Section, Tissue, cut, export, max, nominal, places, rms, section};

/// The cases, each with what it is to show.
fn cases() -> Vec<(&'static str, Recipe)> {
    let msem = Recipe::default();
    let real = recorded();
    let stiff = Recipe { affine: 0.0, lens_px: 0.0, ..msem.clone() };
    let hard = Recipe {
        rings: 2,
        mfovs: 3,
        overlap: 0.06,
        noise: 45.0,
        affine: 2e-3,
        lens_px: 3.0,
        blank: vec![(0, 3), (1, 11), (2, 7)],
        lost: vec![(0, 14), (2, 1)],
        ..msem.clone()
    };
    let nineteen = Recipe { rings: 2, ..real.clone() };
    let small = Recipe {
        size: (150, 132),
        overlap: 0.12,
        stage_px: 3.0,
        lens_px: 0.5,
        tissue: Tissue::Drawn(25.0),
        ..msem.clone()
    };
    vec![
        ("msem61", real.clone()),
        ("msem61_drawn", msem.clone()),
        ("msem61_rigid", Recipe { affine: 0.0, lens_px: 0.0, ..real.clone() }),
        ("msem61_rigid_drawn", stiff.clone()),
        ("msem_hard", Recipe { tissue: real.tissue.clone(), ..hard.clone() }),
        ("msem_hard_drawn", hard),
        // Half of a tenth each way: two neighbours may be off by a tenth.
        ("stage_tenth", Recipe { stage_px: 51.0, overlap: 0.2, ..nineteen.clone() }),
        // The same with narrow overlaps: neighbours may be apart nominally or in truth.
        ("stage_apart", Recipe { stage_px: 51.0, overlap: 0.06, ..nineteen.clone() }),
        ("scan_start", Recipe { scan: (4.0, 80.0), ..nineteen.clone() }),
        ("camera", Recipe { vignette: 0.6, camera: 60.0, ..nineteen.clone() }),
        ("periodic", Recipe { tissue: Tissue::Periodic(23.0, 0.3), ..nineteen.clone() }),
        ("large7", Recipe { size: (3072, 2688), rings: 1, overlap: 0.06, lens_px: 4.0, ..real.clone() }),
        ("small61", small.clone()),
        ("small61_rigid", Recipe { lens_px: 0.0, affine: 0.0, ..small }),
    ]
}

/// 61 beams over recorded tissue where there is some, else over drawn one.
fn recorded() -> Recipe {
    let Some(folder) = data("kasthuri_ac4/raw") else { return Recipe::default() };
    let images = (0..100).step_by(3).map(|z| png_image(&folder.join(format!("z{z:03}.png"))));
    Recipe { tissue: Tissue::Recorded(Arc::new(images.collect())), ..Recipe::default() }
}

/// A folder of `KINESIN_DATA`, where it is there.
fn data(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KINESIN_DATA").map_or_else(|| "../../shared/data".into(), PathBuf::from);
    Some(root.join(name)).filter(|f| f.is_dir())
}

/// Seconds that this thread has had a core: other load does not count.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    if asked("temca") {
        real_tiles();
    }
    cases().into_iter().filter(|(name, _)| asked(name)).for_each(|(name, recipe)| report(name, &recipe));
    if asked("ten_thousand") {
        ten_thousand();
    }
    divan::main();
}

/// Matches and places one drawn section and says how well, against its truth.
fn report(name: &str, recipe: &Recipe) {
    let section = section(recipe);
    if let Some(folder) = std::env::var_os("KINESIN_TILES") {
        export(&section, name, Path::new(&folder)).expect("a folder to write to");
    }
    let mut matcher = Matcher::new(MatchConfig::default());
    let start = cpu_seconds();
    let matches = section.matches(&mut matcher);
    let matching = cpu_seconds() - start;
    let good: Vec<_> = matches.iter().filter(|m| m.verdict == Verdict::Matched).collect();
    let errors: Vec<f64> = good.iter().flat_map(|m| section.point_errors(m)).collect();
    println!(
        "{name}: {} pairs, {} matched, {} points, error rms {:.3} max {:.2} px; match {:.0} Mpx per CPU-s",
        matches.len(),
        good.len(),
        errors.len(),
        rms(&errors),
        max(&errors),
        section.mpx() / matching
    );
    placed(&section, &matches, matching);
}

/// Solves and says how well; `matching` is the time spent so far, seconds.
fn placed(section: &Section, matches: &[PairMatches], matching: f64) {
    let start = cpu_seconds();
    let montage = solve(&section.plan, &section.present(), matches, &KnownLenses::default(), &MontageConfig::default());
    let solving = cpu_seconds() - start;
    let map = |key, x| montage.tile(key).expect("placed").0.apply(x);
    let by_pair = section.seams_by_pair(map);
    let torn = by_pair.iter().filter(|p| max(p) > 1.0).count();
    let mut seams = by_pair.concat();
    seams.sort_by(f64::total_cmp);
    println!(
        "   seam rms {:.3} p95 {:.2} max {:.2} px, {torn} of {} pairs above 1 px (nominal {:.1}); place rms {:.3} px; {} tiles without matches",
        rms(&seams),
        seams[seams.len() * 95 / 100],
        max(&seams),
        by_pair.len(),
        rms(&section.seams(|key, x| nominal(&section.plan, key, x))),
        rms(&section.places(map)),
        montage.unconnected().count(),
    );
    println!(
        "   {:?}, held out {:?}; solve {:.3} s; match and solve {:.0} Mpx per CPU-s",
        montage.stiffness,
        held_out(&montage),
        solving,
        section.mpx() / (matching + solving)
    );
}

/// A section of ten thousand tiles: only the solve, from points that are off by a tenth of a pixel.
fn ten_thousand() {
    let section = places(&Recipe { rings: 58, ..Recipe::default() });
    let matches = section.simulated_matches(0.1);
    println!("ten_thousand: {} tiles, {} pairs", section.present().len(), matches.len());
    let before = resident();
    placed(&section, &matches, 0.0);
    println!("   memory above that of the matches {:.0} MiB at most", peak() - before);
}

/// Resident memory now and at most, MiB.
fn resident() -> f64 {
    status("VmRSS:")
}

fn peak() -> f64 {
    status("VmHWM:")
}

fn status(line: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next()?.parse::<f64>().ok());
    found.unwrap_or(0.0) / 1024.0
}

fn held_out(montage: &Montage) -> Vec<String> {
    montage.trials.iter().map(|t| format!("{:.3}", t.held_out_px)).collect()
}

/// Seven full-size beams: pixels of all tiles a second.
#[divan::bench(sample_count = 10)]
fn match_seven_beams(bencher: divan::Bencher<'_, '_>) {
    let section = section(&Recipe { rings: 1, ..Recipe::default() });
    let mut matcher = Matcher::new(MatchConfig::default());
    bencher
        .counter(divan::counter::ItemsCount::new((section.mpx() * 1e6) as usize))
        .bench_local(|| section.matches(&mut matcher));
}

#[divan::bench(sample_count = 10)]
fn montage_of_61_beams(bencher: divan::Bencher<'_, '_>) {
    let section = section(&Recipe { size: (256, 224), overlap: 0.12, stage_px: 5.0, ..Recipe::default() });
    let matches = section.matches(&mut Matcher::new(MatchConfig::default()));
    let present = section.present();
    bencher
        .bench_local(|| solve(&section.plan, &present, &matches, &KnownLenses::default(), &MontageConfig::default()));
}

#[divan::bench(sample_count = 10)]
fn inspect_one_tile(bencher: divan::Bencher<'_, '_>) {
    let section = section(&Recipe { rings: 0, ..Recipe::default() });
    let tile = section.tiles.values().next().expect("one beam");
    let config = InspectConfig::default();
    bencher.counter(divan::counter::ItemsCount::new(tile.data().len())).bench_local(|| inspect(tile, &config));
}

/// Four real tiles: the residual at the checked correspondences that come with them, which nothing here was fitted to.
fn real_tiles() {
    let Some(folder) = data("temca_tiles_2x2") else {
        println!("temca: no tiles; point KINESIN_DATA at the data folder");
        return;
    };
    let text = std::fs::read_to_string(folder.join("tiles.json")).expect("tiles.json");
    let listed: serde_json::Value = serde_json::from_str(&text).expect("tiles.json");
    let mut specs: Vec<&serde_json::Value> = listed["tiles"].as_array().expect("a list").iter().collect();
    specs.sort_by_key(|s| s["name"].as_str().map(str::to_owned));
    let id = MfovId::new(SectionId(0), RegionId(0), 0);
    let (mut tiles, mut images) = (Vec::new(), BTreeMap::new());
    for (beam, spec) in specs.into_iter().enumerate() {
        let key = TileKey { mfov: id, beam: BeamId(beam as u16) };
        let pixels = png_image(&folder.join(spec["file"].as_str().expect("a name")));
        let nominal = Xy::new(spec["x"].as_f64().expect("x"), spec["y"].as_f64().expect("y"));
        let size = Xy::new(pixels.width() as u32, pixels.height() as u32);
        tiles.push(PlannedTile { key, name: spec["name"].as_str().expect("a name").into(), nominal, size });
        images.insert(key, pixels);
    }
    let mfovs = vec![MfovPlan { id, revision: 0, tiles }];
    let plan = SectionPlan { section: SectionId(0), serial: SerialIndex(0), name: "temca".into(), version: 0, mfovs };
    let present = images.keys().copied().collect();
    let mut matcher = Matcher::new(MatchConfig::default());
    let start = cpu_seconds();
    let matches: Vec<_> = pairs(&plan, &present, matcher.config())
        .iter()
        .map(|pair| {
            let rects = matcher.rects(pair);
            matcher
                .match_pair(pair, &cut(&images[&pair.p], &rects.p), &cut(&images[&pair.q], &rects.q))
                .expect("strips")
        })
        .collect();
    let matching = cpu_seconds() - start;
    let montage = solve(&plan, &present, &matches, &KnownLenses::default(), &MontageConfig::default());
    let seconds = cpu_seconds() - start;
    let text = std::fs::read_to_string(folder.join("matches.json")).expect("matches.json");
    let checked: serde_json::Value = serde_json::from_str(&text).expect("matches.json");
    let placed = montage.placements();
    let mut errors = Vec::new();
    for pair in checked["pairs"].as_array().expect("a list") {
        let side = |name: &str, points: &str| -> Vec<Xy<f64>> {
            let map = &placed.tiles[pair[name].as_str().expect("a name")].0;
            let points = pair[points].as_array().expect("points").iter();
            points.map(|p| map.apply(Xy::new(p[0].as_f64().expect("x"), p[1].as_f64().expect("y")))).collect()
        };
        let e: Vec<f64> =
            side("a", "points_a").iter().zip(side("b", "points_b")).map(|(a, b)| (*a - b).norm()).collect();
        println!("   {} {} rms {:.3} max {:.2}", pair["a"], pair["b"], rms(&e), max(&e));
        errors.extend(e);
    }
    errors.sort_by(f64::total_cmp);
    let mpx = images.values().map(|t| t.data().len() as f64 / 1e6).sum::<f64>();
    println!(
        "temca: {} points, residual rms {:.3} p95 {:.2} max {:.2} px; {:?}; match {:.0}, match and solve {:.0} Mpx per CPU-s",
        errors.len(),
        rms(&errors),
        errors[errors.len() * 95 / 100],
        max(&errors),
        montage.stiffness,
        mpx / matching,
        mpx / seconds
    );
}

fn png_image(path: &Path) -> Pixels {
    let file = std::io::BufReader::new(std::fs::File::open(path).expect("a file"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut data = vec![0; width * height];
    reader.next_frame(&mut data).expect("8-bit grey");
    Pixels::new(width, height, data)
}
