//! Accuracy and speed of match and montage on drawn sections with known truth, and on real tiles where `KINESIN_DATA` has them.
//!
//! `cargo bench -p kinesin-stages --bench stitch` prints a table of errors first, then timings (of all tiles' pixels).
//! Rates of the table are per second that the thread had a core, so that other load does not count.

mod synthetic;

use kinesin_stages::inspect::{InspectConfig, inspect};
use kinesin_stages::montage::{Montage, MontageConfig, solve};
use std::collections::BTreeMap;

use kinesin_stages::pointmatch::{MatchConfig, Matcher, Verdict, pairs};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};
use synthetic::{Recipe, cut, max, nominal, rms, section};

fn cases() -> Vec<(&'static str, Recipe)> {
    let msem = Recipe::default();
    vec![
        ("msem61", msem.clone()),
        ("msem61_rigid", Recipe { affine: 0.0, lens_px: 0.0, ..msem.clone() }),
        (
            "msem_hard",
            Recipe {
                rings: 2,
                overlap: 0.06,
                noise: 45.0,
                affine: 2e-3,
                lens_px: 3.0,
                blank: vec![3, 11],
                ..msem.clone()
            },
        ),
        (
            "small61",
            Recipe { size: (150, 132), overlap: 0.12, stage_px: 3.0, lens_px: 0.5, cell_px: 25.0, ..msem.clone() },
        ),
        (
            "small61_rigid",
            Recipe { size: (150, 132), overlap: 0.12, stage_px: 3.0, lens_px: 0.0, affine: 0.0, cell_px: 25.0, ..msem },
        ),
    ]
}

/// Seconds that this thread has had a core: other load does not count.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn main() {
    real_tiles();
    cases().into_iter().for_each(|(name, recipe)| report(name, &recipe));
    divan::main();
}

/// Matches and places one drawn section and says how well, against its truth.
fn report(name: &str, recipe: &Recipe) {
    let section = section(recipe);
    let mut matcher = Matcher::new(MatchConfig::default());
    let start = cpu_seconds();
    let matches = section.matches(&mut matcher);
    let seconds = cpu_seconds() - start;
    let good: Vec<_> = matches.iter().filter(|m| m.verdict == Verdict::Matched).collect();
    let errors: Vec<f64> = good.iter().flat_map(|m| section.point_errors(m)).collect();
    println!(
        "{name}: {} pairs, {} matched, {} points, error rms {:.3} max {:.2} px; match {:.0} Mpx per CPU-s",
        matches.len(),
        good.len(),
        errors.len(),
        rms(&errors),
        max(&errors),
        section.mpx() / seconds
    );
    let start = cpu_seconds();
    let montage = solve(&section.plan, &section.present(), &matches, &MontageConfig::default());
    let solved = cpu_seconds() - start;
    let map = |key, x| montage.tile(key).expect("placed").0.apply(x);
    let seams = section.seams(map);
    println!(
        "   seam rms {:.3} max {:.2} px (nominal {:.1}); place rms {:.3} px; {} tiles without matches; match and solve {:.0} Mpx per CPU-s",
        rms(&seams),
        max(&seams),
        rms(&section.seams(|key, x| nominal(&section.plan, key, x))),
        rms(&section.places(map)),
        montage.unconnected().count(),
        section.mpx() / (seconds + solved)
    );
    println!("   {:?}, held out {:?}", montage.stiffness, held_out(&montage));
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
    bencher.bench_local(|| solve(&section.plan, &present, &matches, &MontageConfig::default()));
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
    let folder = std::env::var("KINESIN_DATA").unwrap_or_else(|_| "../../shared/data".into());
    let folder = std::path::Path::new(&folder).join("temca_tiles_2x2");
    let Ok(text) = std::fs::read_to_string(folder.join("tiles.json")) else {
        println!("temca: no tiles in {}; point KINESIN_DATA at the data folder", folder.display());
        return;
    };
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
    let montage = solve(&plan, &present, &matches, &MontageConfig::default());
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
    println!(
        "temca: {} points, residual rms {:.3} p95 {:.2} max {:.2} px; {:?}; {:.0} Mpx per CPU-s",
        errors.len(),
        rms(&errors),
        errors[errors.len() * 95 / 100],
        max(&errors),
        montage.stiffness,
        images.values().map(|t| t.data().len() as f64 / 1e6).sum::<f64>() / seconds
    );
}

fn png_image(path: &std::path::Path) -> Pixels {
    let file = std::io::BufReader::new(std::fs::File::open(path).expect("a file"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut data = vec![0; width * height];
    reader.next_frame(&mut data).expect("8-bit grey");
    Pixels::new(width, height, data)
}
