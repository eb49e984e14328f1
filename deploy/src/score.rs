//! `kinesin score`: a result against truth, as a table and as JSON.
//!
//! A run is scored with what `kinesin sim` leaves (`truth/sim.json`: every true map and label is a function of those
//! settings); a label volume against another one voxel by voxel. Conventions are stated in [`CONVENTIONS`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kinesin_sim::scope::{Scene, SimConfig};
use kinesin_sim::score::alignment::{self, AlignedSection, AlignmentScore, Side};
use kinesin_sim::score::labels::{Contingency, LabelScores};
use kinesin_sim::score::placement::{PlacementErrors, PlacementScore, nominal};
use kinesin_sim::score::{Placements, Spread};
use kinesin_sim::truth::Truth;
use kinesin_sim::truth::shown::{OutputGrid, SectionTruth, classes_in_result, labels_in_result};
use kinesin_stages::pipeline::{AlignmentFile, KnownLabels, labels_at};
use kinesin_stages::publish::{SectionFiles, read_json};
use kinesin_stream::geometry::{BoxXy, BoxZyx, VoxelSize, Xy, Zyx};
use kinesin_stream::ids::{SerialIndex, TileKey};
use kinesin_stream::map::{Affine, Map, SectionToVolume, TileToSection};
use kinesin_stream::plan::{PlannedTile, SectionPlan};
use kinesin_stream::volume::{self, VolumeSource};
use ndarray::Axis;
use serde_json::{Value, json};

use crate::cli::ScoreArgs;
use crate::outcome::{Failure, Outcome};
use crate::part::Part;

/// What the numbers mean.
pub const CONVENTIONS: &str = "placement: tile-grid points against truth after a turn and a shift of each section (affine: after an affine map); \
seam: distance between the two places given to one tissue point seen in two tiles; alignment: distance between the aligned places of one tissue \
point in neighbouring sections; labels: VOI in bits (split = H(found|true), merge = H(true|found)) and adapted Rand error where both are labelled; \
`all` counts what is not segmented as one label; \
mask: pixels kept out of the segmentation against cell body, vessel and resin; coverage: share of truly labelled voxels that are labelled";

/// `kinesin score`.
pub fn score(args: &ScoreArgs, as_json: bool) -> Result<Outcome, Failure> {
    let sim = [args.truth.join("sim.json"), args.truth.join("truth/sim.json")].into_iter().find(|p| p.is_file());
    let scores = match sim {
        Some(path) => {
            let config: SimConfig =
                read_json(&path).map_err(Failure::input)?.ok_or_else(|| Failure::Input("the truth vanished".into()))?;
            of_run(&args.result, &Scene::open(config).map_err(Failure::input)?)?
        }
        None => json!({"labels": labels_json(&of_labels(args)?), "conventions": CONVENTIONS}),
    };
    if as_json {
        println!("{scores}");
    } else {
        println!("{}", table(&scores));
    }
    Ok(Outcome::Complete)
}

/// All scores of a run's folder against the scene that it imaged.
pub fn of_run(out: &Path, scene: &Arc<Scene>) -> Result<Value, Failure> {
    let truth = Truth::of(scene.clone());
    let (mut solved, mut believed) = (PlacementErrors::default(), PlacementErrors::default());
    let (mut aligned, mut unaligned) = (Vec::new(), Vec::new());
    let mut found = BTreeMap::new();
    for serial in (0..scene.plan().sections).map(SerialIndex) {
        let files = SectionFiles::new(out, serial.0);
        let Some(Placements { tiles: first }) = read_json(&files.placements()).map_err(Failure::input)? else {
            continue;
        };
        // Places are those of the newest version, labels those of the first.
        let newest = (1..).take_while(|v| files.clone().version(*v).revision().is_file()).last().unwrap_or(0);
        let files = files.version(newest);
        let Some(Placements { tiles }) = read_json(&files.placements()).map_err(Failure::input)? else { continue };
        let plan = counted(&scene.whole_plan(serial), &tiles);
        let true_places = truth.placements(serial);
        // Nominal places only of tiles that came: both are scored on the same points.
        let mut nominal = nominal(&plan);
        nominal.retain(|name, _| tiles.contains_key(name));
        solved.extend(&PlacementErrors::of(&plan, &tiles, &true_places));
        believed.extend(&PlacementErrors::of(&plan, &nominal, &true_places));
        let file: Option<AlignmentFile> = read_json(&files.alignment()).map_err(Failure::input)?;
        if let Some(map) = file.and_then(|f| f.map) {
            let true_side = Side { placements: &true_places, alignment: &truth.alignment(serial) };
            let identity = SectionToVolume(Map::Affine(Affine::IDENTITY));
            let side = |alignment| Side { placements: &tiles, alignment };
            aligned.push(AlignedSection::new(&plan, side(&map), true_side));
            unaligned.push(AlignedSection::new(&plan, side(&identity), true_side));
            found.insert(serial, (first, map));
        }
    }
    let mut scores = json!({
        "placement": {"solved": placement_json(&solved.score()), "nominal": placement_json(&believed.score())},
        "alignment": {"solved": alignment_json(&alignment::score(&aligned)), "nominal": alignment_json(&alignment::score(&unaligned))},
        "conventions": CONVENTIONS,
    });
    if let Some(labels) = labels_of_run(out, scene, &found)? {
        scores["labels"] = labels_json(&labels);
    }
    if let Some(mask) = mask_of_run(out, scene, &found)? {
        scores["mask"] = mask;
    }
    Ok(scores)
}

/// Of each place the exposure that the result uses, or the first.
fn counted(plan: &SectionPlan, found: &BTreeMap<String, TileToSection>) -> SectionPlan {
    let used = |t: &&PlannedTile| found.contains_key(&t.name);
    let of_place: BTreeMap<TileKey, TileKey> = plan.tiles().filter(used).map(|t| (t.key.first(), t.key)).collect();
    let mut plan = plan.clone();
    for mfov in &mut plan.mfovs {
        mfov.tiles.retain(|t| *of_place.get(&t.key.first()).unwrap_or(&t.key.first()) == t.key);
    }
    plan
}

/// Precision and recall of what is kept out of the segmentation, of any class; `None` where the run has no mask or the
/// tissue no classes. Without the stage nothing is kept out: recall 0.
fn mask_of_run(out: &Path, scene: &Arc<Scene>, found: &Found) -> Result<Option<Value>, Failure> {
    let path = out.join("volume/mask");
    if !path.is_dir() {
        return Ok(None);
    }
    let mask = volume::open(&path).map_err(Failure::input)?;
    let shape = mask.info().shape;
    let Some(VoxelSize(size)) = mask.info().voxel_size else { return Ok(None) };
    let grid = grid(shape, size.x / scene.plan().pixel_size_nm);
    let (mut both, mut kept_out, mut wanted) = (0_u64, 0_u64, 0_u64);
    for (serial, (placements, alignment)) in found {
        let Some(truth) = classes_in_result(scene, *serial, placements, alignment, &grid) else { return Ok(None) };
        let classes = mask.read_u8(plane(shape, serial.0)).map_err(Failure::input)?.index_axis_move(Axis(0), 0);
        let seen = SectionTruth::of(scene, *serial).seen(placements, alignment, &grid);
        for ((truth, class), _) in truth.iter().zip(&classes).zip(&seen).filter(|(_, seen)| on_tissue(scene, **seen)) {
            both += u64::from(*truth > 0 && *class > 0);
            kept_out += u64::from(*class > 0);
            wanted += u64::from(*truth > 0);
        }
    }
    let share = |of: u64| if of == 0 { 0.0 } else { both as f64 / of as f64 };
    Ok(Some(json!({"precision": share(kept_out), "recall": share(wanted), "pixels_to_keep_out": wanted})))
}

/// Whether a voxel shows tissue; beside it the scope sees bare resin, which no truth has.
fn on_tissue(scene: &Scene, seen: Option<Xy<f64>>) -> bool {
    let shape = scene.tissue().shape();
    seen.is_some_and(|p| p.x >= 0.0 && p.y >= 0.0 && p.x < shape.x as f64 && p.y < shape.y as f64)
}

/// All of a result's plane.
fn grid(shape: Zyx<usize>, reduction: f64) -> OutputGrid {
    OutputGrid {
        rect: BoxXy { min: Xy::new(0, 0), max: Xy::new(shape.x as i64, shape.y as i64) },
        reduction,
        // Voxel 0 begins where volume pixel 0 does.
        origin: Xy::new(0.0, 0.0),
    }
}

/// One section of a volume.
fn plane(shape: Zyx<usize>, z: u32) -> BoxZyx {
    let z = i64::from(z);
    BoxZyx { min: Zyx::new(z, 0, 0), max: Zyx::new(z + 1, shape.y as i64, shape.x as i64) }
}

type Found = BTreeMap<SerialIndex, (BTreeMap<String, TileToSection>, SectionToVolume)>;

/// Labels scored at the tissue that each voxel shows; `None` where the run has no labels or the tissue no true ones.
fn labels_of_run(out: &Path, scene: &Arc<Scene>, found: &Found) -> Result<Option<LabelScores>, Failure> {
    let Some((labels, merges)) = open_labels(out)? else { return Ok(None) };
    let shape = labels.info().shape;
    let Some(VoxelSize(size)) = labels.info().voxel_size else { return Ok(None) };
    let grid = grid(shape, size.x / scene.plan().pixel_size_nm);
    let mut table = Contingency::default();
    for (serial, (placements, alignment)) in found {
        let Some(truth) = labels_in_result(scene, *serial, placements, alignment, &grid) else { return Ok(None) };
        let mut section =
            labels.read_labels(plane(shape, serial.0)).map_err(Failure::input)?.index_axis_move(Axis(0), 0);
        section.mapv_inplace(|l| merges.root(l));
        table.add(truth.iter(), section.iter());
    }
    Ok(Some(table.scores()))
}

/// Those of a run's folder with their table of merges; `None` where it has none.
fn open_labels(out: &Path) -> Result<Option<KnownLabels>, Failure> {
    let there = out.join("volume/labels").is_dir();
    there.then(|| labels_at(out).map_err(Failure::input)).transpose()
}

/// A label volume, or a run's labels, against a label volume.
fn of_labels(args: &ScoreArgs) -> Result<LabelScores, Failure> {
    let (result, merges) = labels_at(&args.result).map_err(Failure::input)?;
    let truth = Part::new(volume::open(&args.truth).map_err(Failure::input)?, args.part, args.reduce)
        .map_err(Failure::Input)?;
    let wanted = truth.info().shape;
    // A result of the same box is taken as it is, one of the whole volume is cut.
    let part = if result.info().shape == wanted { None } else { args.part };
    let result = Part::new(result, part, 1).map_err(Failure::Input)?;
    let got = result.info().shape;
    if got != wanted {
        return Err(Failure::Input(format!(
            "the result has {} x {} x {} voxels, the truth {} x {} x {}; give --box and --reduce as for the result",
            got.z, got.y, got.x, wanted.z, wanted.y, wanted.x
        )));
    }
    let mut table = Contingency::default();
    for z in 0..wanted.z as i64 {
        let bounds = BoxZyx { min: Zyx::new(z, 0, 0), max: Zyx::new(z + 1, wanted.y as i64, wanted.x as i64) };
        let truth = truth.read_labels(bounds).map_err(Failure::input)?;
        let mut found = result.read_labels(bounds).map_err(Failure::input)?;
        found.mapv_inplace(|l| merges.root(l));
        table.add(truth.iter(), found.iter());
    }
    Ok(table.scores())
}

fn spread(s: &Spread) -> Value {
    json!({"rms_px": s.rms, "median_px": s.median, "p95_px": s.p95, "p99_px": s.p99, "max_px": s.max})
}

fn with(mut of: Value, more: Value) -> Value {
    if let (Some(of), Value::Object(more)) = (of.as_object_mut(), more) {
        of.extend(more);
    }
    of
}

fn placement_json(s: &PlacementScore) -> Value {
    let more = json!({"affine": spread(&s.affine), "seam": spread(&s.seam), "tiles": s.placed, "promised": s.promised});
    with(spread(&s.rigid), more)
}

fn alignment_json(s: &AlignmentScore) -> Value {
    with(
        spread(&s.residual),
        json!({"volume_rigid": spread(&s.rigid), "volume_affine": spread(&s.affine), "sections": s.sections}),
    )
}

fn labels_json(s: &LabelScores) -> Value {
    json!({
        "voi_split": s.both.voi_split,
        "voi_merge": s.both.voi_merge,
        "adapted_rand_error": s.both.adapted_rand_error,
        "rand_precision": s.both.rand_precision,
        "rand_recall": s.both.rand_recall,
        "coverage": s.coverage,
        "true_objects": s.both.true_objects,
        "found_objects": s.both.found_objects,
        "all": s.all,
    })
}

/// For people.
pub fn table(scores: &Value) -> String {
    let mut t = vec![format!("{:<28} {:>9} {:>9} {:>9} {:>9}", "against truth, px", "rms", "p95", "p99", "max")];
    let mut row = |name: &str, s: &Value| {
        if s.is_object() {
            let n = |key: &str| s[key].as_f64().unwrap_or(f64::NAN);
            t.push(format!(
                "{name:<28} {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
                n("rms_px"),
                n("p95_px"),
                n("p99_px"),
                n("max_px")
            ));
        }
    };
    for (which, word) in [("solved", ""), ("nominal", ", nominal")] {
        let (p, a) = (&scores["placement"][which], &scores["alignment"][which]);
        row(&format!("tile placement{word}"), p);
        row(&format!("tile placement, affine{word}"), &p["affine"]);
        row(&format!("seam{word}"), &p["seam"]);
        row(&format!("section alignment{word}"), a);
    }
    let labels = &scores["labels"];
    if labels.is_object() {
        let n = |v: &Value, key: &str| v[key].as_f64().unwrap_or(f64::NAN);
        t.push(format!(
            "labels   VOI split {:.3} + merge {:.3} bits, adapted Rand error {:.4}, coverage {:.3}; {} found of {} true objects (where both are labelled)",
            n(labels, "voi_split"), n(labels, "voi_merge"), n(labels, "adapted_rand_error"), n(labels, "coverage"), labels["found_objects"], labels["true_objects"]
        ));
        let all = &labels["all"];
        t.push(format!(
            "         with unsegmented as one label: VOI split {:.3} + merge {:.3} bits, adapted Rand error {:.4}",
            n(all, "voi_split"),
            n(all, "voi_merge"),
            n(all, "adapted_rand_error")
        ));
    }
    let mask = &scores["mask"];
    if let (Some(precision), Some(recall)) = (mask["precision"].as_f64(), mask["recall"].as_f64()) {
        t.push(format!("mask     of what is kept out {precision:.3} is right, of what should be {recall:.3} is (without the stage: nothing)"));
    }
    t.join("\n")
}
