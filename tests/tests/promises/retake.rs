//! Retakes: a later attempt supersedes an earlier one without deleting it and re-does only what it touches, also in a section
//! that is published already; which version it belongs to is decided by the instrument's order of events alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_backpressure::Budget;
use kinesin_sim::scope::{Scene, SimConfig};
use kinesin_sim::truth::Truth;
use kinesin_stages::archive::Archive;
use kinesin_stages::inspect::{InspectConfig, inspect};
use kinesin_stages::pipeline::{
    Factories, FloodMeter, Line, LineConfig, MfovDone, Nominal, RevisionFile, Source, StagesConfig, StoreError,
    Telemetry, TileStore,
};
use kinesin_stages::publish::{SectionFiles, read_json};
use kinesin_stream::geometry::{BoxXy, BoxZyx, Xy, Zyx};
use kinesin_stream::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::ledger::{Ledger, Row, State};
use kinesin_stream::map::TileToSection;
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::runner::Runner;
use kinesin_stream::volume;
use serde_json::{Value, json};

use crate::harness::{Place, SITE, kinesin, result_bytes, start, text};

/// Four sections; of section 1 a blank tile is taken again one section later and another after the last one, of section 2 one
/// before it ends.
fn scene() -> Arc<Scene> {
    let retake = |section: u32, beam: u16, after: u32, spoiled: &str| json!({"section": section, "mfov": 0, "beams": [beam], "after_sections": after, "spoiled": spoiled});
    let config = json!({
        "seed": 3,
        "tissue": {"procedural": {"seed": 3, "shape": [4, 360, 400]}},
        "layout": {"beams": 7, "tile_px": {"x": 176, "y": 160}, "overlap": 0.12},
        "optics": {"stage_sd_px": 4.0, "lens_px": 1.0},
        "sections": {"rotation_deg": 1.0, "shift_px": 8.0, "deformation_sd_px": 1.0},
        "faults": {"retakes": [
            retake(1, 3, 1, "blank"),
            retake(1, 6, 9, "blurred"),
            retake(2, 5, 0, "blank"),
        ]},
    });
    let config: SimConfig = serde_json::from_value(config).expect("known keys");
    Scene::open(config).expect("a scene")
}

struct Scope(Arc<Scene>);

impl TileStore for Scope {
    fn read(&self, key: TileKey) -> Result<Pixels, StoreError> {
        Ok(self.0.tile(key))
    }
}

/// Stage stops in some order, each with the promise that was known when it ended.
type Stops = Vec<(Arc<SectionPlan>, MfovId)>;

/// As the scope says them: retakes of an ended section after the next one.
fn stops(scene: &Scene) -> Stops {
    let plan = |z| Arc::new(scene.whole_plan(SerialIndex(z)));
    let of = |plan: &Arc<SectionPlan>, revision| -> Stops {
        let known = Arc::new(plan.as_of(revision));
        plan.mfovs.iter().filter(|m| m.revision == revision).map(|m| (known.clone(), m.id)).collect()
    };
    let order = [(0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (1, 2)];
    order.into_iter().flat_map(|(z, revision)| of(&plan(z), revision)).collect()
}

/// The line over these stops; pixels come from the scope itself.
fn run(scene: &Arc<Scene>, stops: Stops, workers: usize, out: &Path) {
    let mut stages = StagesConfig::default();
    stages.volume.chunk_px = 64;
    stages.volume.levels = 2;
    let config = LineConfig {
        stages,
        plan: scene.plan().clone(),
        out: out.to_path_buf(),
        workers,
        nominal: Nominal::default(),
        mask: None,
        flood: None,
        light: false,
    };
    let budget = Budget::new();
    let line = Line::open(config, &budget).expect("a line");
    let runner = Runner::new(&budget);
    let stored = line.stored();
    let source = Source::Recorded(Arc::new(Scope(scene.clone())));
    let meter = Arc::new(FloodMeter::default());
    std::fs::create_dir_all(out).expect("a folder");
    line.start(&runner, source, &Factories::default(), &Arc::new(Telemetry::default()), &meter).expect("it starts");
    let scene = scene.clone();
    runner.spawn("feed", move |_| {
        for (plan, mfov) in stops {
            let tiles = &plan.mfov(mfov).expect("promised").tiles;
            let tiles = tiles.iter().map(|t| (t.key, inspect(&scene.tile(t.key), &InspectConfig::default()))).collect();
            stored.send_blocking(MfovDone { plan, mfov, tiles, lost: BTreeMap::new() })?;
        }
        Ok(())
    });
    runner.join().expect("it ends well");
}

/// Everything that a run leaves, the log of publications with its lines sorted: sections are published as they come.
fn left(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = result_bytes(out);
    let log = std::fs::read_to_string(out.join("commits.jsonl")).expect("a log");
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    files.insert("commits.jsonl".into(), lines.join("\n").into_bytes());
    files
}

#[track_caller]
fn assert_same(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>) {
    let differ: BTreeSet<_> =
        a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).map(|n| n.display().to_string()).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

fn revision(out: &Path, z: u32, version: u32) -> RevisionFile {
    read_json(&SectionFiles::new(out, z).version(version).revision()).expect("readable").expect("there")
}

fn image(path: &Path, z: u32) -> ndarray::Array2<u8> {
    let volume = volume::open(path).expect("a volume");
    let shape = volume.info().shape;
    let (min, max) = (Zyx::new(i64::from(z), 0, 0), Zyx::new(i64::from(z) + 1, shape.y as i64, shape.x as i64));
    volume.read_u8(BoxZyx { min, max }).expect("readable").index_axis_move(ndarray::Axis(0), 0)
}

/// How far a tile lies from where it belongs among the others, px.
fn misplaced(scene: &Arc<Scene>, out: &Path, z: u32, version: u32, beam: u16) -> f64 {
    let file: Value =
        read_json(&SectionFiles::new(out, z).version(version).placements()).expect("readable").expect("there");
    let found: BTreeMap<String, TileToSection> = serde_json::from_value(file["tiles"].clone()).expect("placements");
    let truth = Truth::of(scene.clone()).placements(SerialIndex(z));
    let middle = Xy::new(87.5, 79.5);
    let off = |name: &String| found[name].0.apply(middle) - truth[name].0.apply(middle);
    let beam = format!("_000001_{:03}", beam + 1);
    let (mine, others): (Vec<_>, Vec<_>) = found.keys().partition(|name| name.contains(&beam));
    let mean = others.iter().fold(Xy::default(), |sum, name| sum + off(name)) * (1.0 / others.len() as f64);
    assert_eq!((mine.len(), others.len()), (1, 6), "{:?}", found.keys());
    (off(mine[0]) - mean).norm()
}

#[test]
fn a_retake_of_a_published_section_makes_a_version_beside_it_and_touches_nothing_else() {
    let scene = scene();
    let place = tempfile::tempdir().expect("a folder");
    let (with, without) = (place.path().join("with"), place.path().join("without"));
    run(&scene, stops(&scene), 2, &with);
    let first = |m: &MfovId, plan: &SectionPlan| plan.mfov(*m).is_some_and(|m| m.revision == 0);
    let early = stops(&scene).into_iter().filter(|(plan, m)| first(m, plan)).collect();
    run(&scene, early, 2, &without);

    // Nothing of what was there before is another.
    let (mut all, before) = (result_bytes(&with), result_bytes(&without));
    let added: Vec<PathBuf> = all.keys().filter(|name| !before.contains_key(*name)).cloned().collect();
    let ours = ["sections/1/v1/", "sections/1/v2/", "volume/revisions/1_v1/", "volume/revisions/1_v2/"];
    assert!(added.iter().all(|n| ours.iter().any(|o| n.starts_with(o))), "{added:?}");
    assert!(ours.iter().all(|o| added.iter().any(|n| n.starts_with(o))), "{added:?}");
    all.retain(|name, _| before.contains_key(name));
    assert_same(&all, &before);
    let log = |out: &Path| std::fs::read_to_string(out.join("commits.jsonl")).expect("a log");
    let lines: Vec<String> = log(&with).lines().filter(|l| !log(&without).contains(*l)).map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines.iter().all(|l| l.contains("revision") && l.contains("\"z\":1")), "{lines:?}");

    // What replaces what, and what it says of the labels.
    let (v1, v2) = (revision(&with, 1, 1), revision(&with, 1, 2));
    let replaced = |r: &RevisionFile| r.retaken.iter().map(|(n, o)| (n.clone(), o.clone())).collect::<Vec<_>>();
    let name = |beam: u16, end: &str| format!("002_000001_{:03}{end}.tif", beam + 1);
    assert_eq!(replaced(&v1), [(name(3, "_retake1"), Some(name(3, "")))]);
    assert_eq!(replaced(&v2), [(name(6, "_retake2"), Some(name(6, "")))]);
    assert_eq!((v1.labels_of_version, v2.labels_of_version), (0, 0));

    // A tile that shows nothing lies where its neighbours went; the retake lies where it is, and the others stay.
    let (blank, taken) = (misplaced(&scene, &with, 1, 0, 3), misplaced(&scene, &with, 1, 1, 3));
    assert!(taken < 1.0 && taken < blank, "{taken} px after, {blank} px before");
    // The one that is taken again before the end is in the first version.
    assert!(misplaced(&scene, &with, 2, 0, 5) < 1.0);

    // Outside the boxes each version shows what the one before showed; inside it shows more.
    let v0_image = image(&with.join("volume/image"), 1);
    for (record, path) in [(&v1, "volume/revisions/1_v1"), (&v2, "volume/revisions/1_v2")] {
        assert_eq!(record.image.as_deref(), Some(path));
        let shown = image(&with.join(path), 1);
        let changed = |x: usize, y: usize| {
            let inside = |b: &[i64; 4]| {
                let [x0, y0, x1, y1] = *b;
                let of = BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) };
                of.intersect(&BoxXy { min: Xy::new(x as i64, y as i64), max: Xy::new(x as i64 + 1, y as i64 + 1) })
            };
            record.boxes_since_first.iter().any(|b| inside(b).is_some())
        };
        let (mut same, mut other, mut left_out) = (0, 0, 0);
        for ((y, x), v) in shown.indexed_iter() {
            let was = v0_image[(y, x)];
            match changed(x, y) {
                true => other += usize::from(*v != was),
                false if *v == 0 => left_out += 1,
                false => {
                    assert_eq!(*v, was, "({x}, {y}) of {path} is outside every box");
                    same += 1;
                }
            }
        }
        assert!(other > 10_000 && same > 1000 && left_out > 1000, "{other} {same} {left_out}");
    }
    assert!(v2.boxes.len() < v2.boxes_since_first.len());
}

/// Six sections; every tile of section 2 is spoiled in some way and taken again, if at all, two sections later.
fn spoiled(spoiled: Option<&str>) -> Arc<Scene> {
    let retakes: Vec<Value> =
        spoiled.into_iter().map(|how| json!({"section": 2, "after_sections": 2, "spoiled": how})).collect();
    let config = json!({
        "seed": 5,
        "tissue": {"procedural": {"seed": 5, "shape": [6, 480, 520]}},
        "layout": {"beams": 7, "tile_px": {"x": 216, "y": 200}, "overlap": 0.12},
        "optics": {"stage_sd_px": 2.0, "lens_px": 0.5},
        "sections": {"rotation_deg": 1.0, "shift_px": 8.0, "deformation_sd_px": 1.0},
        "faults": {"retakes": retakes},
    });
    let config: SimConfig = serde_json::from_value(config).expect("known keys");
    Scene::open(config).expect("a scene")
}

/// Every section in turn, and the retakes where `with`.
fn in_turn(scene: &Scene, with: bool) -> Stops {
    let of = |z: u32, revision: u32| -> Stops {
        let plan = Arc::new(scene.whole_plan(SerialIndex(z)));
        let known = Arc::new(plan.as_of(revision));
        plan.mfovs.iter().filter(|m| m.revision == revision).map(|m| (known.clone(), m.id)).collect()
    };
    let mut all: Stops = (0..5).flat_map(|z| of(z, 0)).collect();
    all.extend(if with { of(2, 1) } else { Vec::new() });
    all.extend(of(5, 0));
    all
}

/// By how much `a` must be moved to look most like `b`, voxels to either side at most 6; where both show something.
fn shift(a: &ndarray::Array2<u8>, b: &ndarray::Array2<u8>) -> (i64, i64) {
    let (h, w) = (a.nrows() as i64, a.ncols() as i64);
    let alike = |dx: i64, dy: i64| {
        let (mut n, mut off) = (0u64, 0u64);
        for (y, x) in (8..h - 8).step_by(2).flat_map(|y| (8..w - 8).step_by(2).map(move |x| (y, x))) {
            let (p, q) = (a[((y - dy) as usize, (x - dx) as usize)], b[(y as usize, x as usize)]);
            if p > 0 && q > 0 {
                (n, off) = (n + 1, off + u64::from(p.abs_diff(q)).pow(2));
            }
        }
        assert!(n > 10_000, "{n} voxels in common");
        off as f64 / n as f64
    };
    let shifts = (-6..=6).flat_map(|y| (-6..=6).map(move |x| (x, y)));
    shifts.min_by(|p, q| alike(p.0, p.1).total_cmp(&alike(q.0, q.1))).expect("some")
}

#[test]
fn a_section_without_a_place_that_is_imaged_again_is_laid_between_its_neighbours_and_moves_nothing() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    let whole = spoiled(None);
    run(&whole, in_turn(&whole, false), 2, &at("whole"));
    for how in ["blank", "blurred"] {
        let scene = spoiled(Some(how));
        let (with, without) = (at(&format!("{how} with")), at(&format!("{how} without")));
        run(&scene, in_turn(&scene, true), 2, &with);
        run(&scene, in_turn(&scene, false), 2, &without);
        let (mut all, before) = (result_bytes(&with), result_bytes(&without));
        all.retain(|name, _| before.contains_key(name));
        assert_same(&all, &before);

        let record: Value =
            read_json(&SectionFiles::new(&with, 2).version(1).alignment()).expect("reads").expect("there");
        assert_eq!(record["record"]["verdict"]["kind"], "inserted", "{how}: {record}");
        assert_eq!(record["record"]["references"], json!([1, 3]), "{how}");
        let made = revision(&with, 2, 1);
        assert_eq!((made.retaken.len(), made.image.as_deref()), (7, Some("volume/revisions/2_v1")), "{how}");
        // Where it lies between its neighbours is where it would have lain among them: tissue moves by a voxel or two a section.
        let new = image(&with.join("volume/revisions/2_v1"), 2);
        let (x, y) = shift(&new, &image(&at("whole").join("volume/image"), 2));
        assert!(x.abs() <= 2 && y.abs() <= 2, "{how}: ({x}, {y})");

        // However it comes: another order, and a crash before it was published.
        let again = at(&format!("{how} again"));
        let mut shuffled = in_turn(&scene, true);
        shuffled.reverse();
        shuffled.iter_mut().for_each(|(plan, _)| *plan = Arc::new(scene.whole_plan(plan.serial)));
        run(&scene, shuffled, 1, &again);
        assert_same(&left(&again), &left(&with));
    }
}

#[test]
fn versions_do_not_depend_on_workers_order_or_a_crash_in_the_middle() {
    let scene = scene();
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    run(&scene, stops(&scene), 1, &at("ordered"));
    let wanted = left(&at("ordered"));
    // Retakes come before what they replace, as after a restart; all promises are known from the beginning.
    let mut shuffled: Stops =
        stops(&scene).into_iter().map(|(p, m)| (Arc::new(scene.whole_plan(p.serial)), m)).rev().collect();
    shuffled.swap(0, 3);
    run(&scene, shuffled, 2, &at("shuffled"));
    assert_same(&left(&at("shuffled")), &wanted);

    // As if killed between the files of the first new version and its publication, and again within the image of the second.
    let crashed = at("shuffled");
    let log = std::fs::read_to_string(crashed.join("commits.jsonl")).expect("a log");
    let kept: String = log.lines().filter(|l| !l.contains("revision")).map(|l| format!("{l}\n")).collect();
    std::fs::write(crashed.join("commits.jsonl"), kept).expect("writable");
    let files = SectionFiles::new(&crashed, 1);
    std::fs::remove_file(files.clone().version(1).solved()).expect("there");
    std::fs::remove_file(files.version(2).revision()).expect("there");
    std::fs::remove_dir_all(crashed.join("volume/revisions/1_v2/0/c")).expect("there");
    std::fs::write(crashed.join("volume/revisions/1_v1/0/c/1/2/2"), "torn").expect("writable");
    run(&scene, stops(&scene), 2, &crashed);
    assert_same(&left(&crashed), &wanted);
}

/// What is taken again, in four sections of the acquisition that the other promises use.
const RETAKES: &str = r#"
[[instrument.sim.faults.retakes]]
section = 1
beams = [3]
after_sections = 1
spoiled = "blank"
[[instrument.sim.faults.retakes]]
section = 1
beams = [6]
after_sections = 9
spoiled = "blurred"
[[instrument.sim.faults.retakes]]
section = 2
beams = [5]
spoiled = "blank"
[stages.mask]
enabled = false
[stages.segment]
enabled = false
"#;

fn site() -> String {
    let scope = SITE.split("[instrument.sim.faults]").next().expect("the first part");
    format!("{}{RETAKES}", scope.replace("[20, 360, 400]", "[4, 360, 400]"))
}

#[test]
fn the_ledger_keeps_what_was_superseded_and_the_sums_agree() {
    let place = Place::new();
    place.run(&site(), "out", &[]).expect(0);
    let ledger = Ledger::inspect(&place.path("out")).expect("a ledger");
    let rows: BTreeMap<TileKey, Row> = (0..4).flat_map(|s| ledger.section(SectionId(s)).expect("readable")).collect();
    let counts = ledger.counts().expect("readable");
    // Four sections of seven tiles, and three that were taken again.
    assert_eq!((rows.len() as u64, counts.promised(), counts.safe()), (31, 31, 31), "{counts:?}");
    assert_eq!((counts.published, counts.superseded), (28, 3), "{counts:?}");
    for (section, beam, attempt) in [(1, 3, 1), (1, 6, 2), (2, 5, 1)] {
        let id = MfovId::new(SectionId(section), RegionId(0), 0);
        let of = |attempt| rows[&TileKey { mfov: id.at(Attempt(attempt)), beam: BeamId(beam) }].state;
        assert_eq!((of(0), of(attempt)), (State::Superseded, State::Published), "section {section} beam {beam}");
    }
    // What was replaced can still be read.
    let archive = Archive::open(&place.path("out"), ledger).expect("an archive");
    for key in rows.keys() {
        archive.read(key).expect("still there");
    }
    let placement = &place.report("out")["scores"]["placement"]["solved"];
    assert_eq!((placement["tiles"].as_u64(), placement["promised"].as_u64()), (Some(28), Some(28)));
    let rms = placement["rms_px"].as_f64().expect("a number");
    assert!(rms <= 1.0, "{rms} px");
}

#[test]
fn a_run_killed_while_it_makes_a_version_and_started_again_leaves_the_same_bytes() {
    let place = Place::new();
    place.run(&site(), "whole", &["--workers", "1"]).expect(0);
    let (site, out) = (place.site(&site()), place.path("killed"));
    let args = ["run", text(&site), "--out", text(&out), "--workers", "2"];
    for begun in ["sections/1/v1/placements.json", "volume/revisions/1_v1/zarr.json", "sections/1/v2/montage.json"] {
        let mut child = start(&args);
        while !out.join(begun).is_file() && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        child.kill().expect("kill -9");
        child.wait().expect("reaped");
    }
    let last = kinesin(&args);
    // The last kill may have come after the end: then the folder holds a finished run, which is refused.
    assert!(last.code == Some(0) || last.stderr.contains("finished"), "{}", last.stderr);
    assert_same(&left(&out), &left(&place.path("whole")));
}
