//! `kinesin consensus` and `kinesin agglomerate`: segmentations that are there already, made into others.

use std::path::Path;

use kinesin_stages::agglomerate::{PairCounts, ResegmentRule, Resegmented, Surroundings, UnionFind, decision_points};
use kinesin_stages::flood::{FloodRules, RuleConfig};
use kinesin_stages::pipeline::labels_at;
use kinesin_stages::publish::write_json;
use kinesin_stages::runtime::Network;
use kinesin_stream::geometry::{BoxZyx, VoxelSize, Zyx};
use kinesin_stream::volume::{CommitLog, Equivalence, LabelSpec, LabelWriter, VolumeInfo, VolumeSource};
use ndarray::{Array3, s};
use serde_json::json;

use crate::cli::{AgglomerateArgs, ConsensusArgs};
use crate::outcome::{Failure, Outcome};
use crate::prepare;
use crate::progress::Progress;
use crate::segment::{Input, claim, read_settings};

/// Sections of a chunk of labels, and of what is held at a time.
const SLAB: usize = 16;

/// Labels with their table of merges.
struct Labels {
    volume: Box<dyn VolumeSource>,
    merges: UnionFind,
}

impl Labels {
    /// A run's folder, or a label volume.
    fn open(path: &Path) -> Result<Self, Failure> {
        let (volume, merges) = labels_at(path).map_err(Failure::input)?;
        Ok(Self { volume, merges })
    }

    fn info(&self) -> &VolumeInfo {
        self.volume.info()
    }

    fn read(&self, bounds: BoxZyx) -> Result<Array3<u64>, Failure> {
        let mut labels = self.volume.read_labels(bounds).map_err(Failure::input)?;
        labels.mapv_inplace(|l| self.merges.root(l));
        Ok(labels)
    }
}

fn said(s: Zyx<usize>) -> String {
    format!("{} x {} x {}", s.z, s.y, s.x)
}

/// Boxes of up to [`SLAB`] whole sections.
fn slabs(shape: Zyx<usize>) -> impl Iterator<Item = BoxZyx> {
    (0..shape.z).step_by(SLAB).map(move |z| BoxZyx {
        min: Zyx::new(z as i64, 0, 0),
        max: Zyx::new((z + SLAB).min(shape.z) as i64, shape.y as i64, shape.x as i64),
    })
}

fn writer(out: &Path, of: &VolumeInfo, voxel_size: VoxelSize) -> Result<LabelWriter, Failure> {
    let spec = LabelSpec { shape: of.shape, voxel_size, origin: of.origin, chunk: Zyx::new(SLAB, 64, 64) };
    LabelWriter::create(&out.join("volume/labels"), spec).map_err(Failure::fault)
}

/// `kinesin consensus`.
pub fn consensus(args: &ConsensusArgs, as_json: bool) -> Result<Outcome, Failure> {
    let (a, b) = (Labels::open(&args.a)?, Labels::open(&args.b)?);
    let shape = a.info().shape;
    if shape != b.info().shape {
        return Err(Failure::Input(format!(
            "{} has {} voxels, {} has {}; give two segmentations of the same box",
            args.a.display(),
            said(shape),
            args.b.display(),
            said(b.info().shape)
        )));
    }
    let Some(voxel_size) = a.info().voxel_size.or(b.info().voxel_size) else {
        return Err(Failure::Input(
            "neither segmentation says the size of its voxels; give at least one run's folder".into(),
        ));
    };
    prepare::apart(&args.a, &args.out)?;
    prepare::apart(&args.b, &args.out)?;
    prepare::folder(&args.out, args.overwrite)?;
    claim(&args.out, &json!({"command": "consensus", "a": args.a, "b": args.b, "min_voxels": args.min_voxels}))?;
    let _busy = Progress::start(as_json, || "comparing two segmentations".into());
    let mut counts = PairCounts::default();
    for bounds in slabs(shape) {
        counts.add(&a.read(bounds)?, &b.read(bounds)?);
    }
    let labels = counts.labels(args.min_voxels).map_err(Failure::input)?;
    let writer = writer(&args.out, a.info(), voxel_size)?;
    let mut voxels = 0_u64;
    for bounds in slabs(shape) {
        let mut both = a.read(bounds)?;
        both.zip_mut_with(&b.read(bounds)?, |a, b| *a = labels.of(*a, *b));
        voxels += both.iter().filter(|l| **l != 0).count() as u64;
        writer.write_box(Zyx::new(bounds.min.z as usize, 0, 0), both.view()).map_err(Failure::fault)?;
    }
    let report = json!({
        "objects": labels.len(),
        "labelled_fraction": voxels as f64 / (shape.z * shape.y * shape.x) as f64,
        "fragments_dropped": labels.dropped,
        "voxels_dropped": labels.dropped_voxels,
    });
    done(&args.out, &report, as_json)
}

/// A pair that came close, and what came of it; a row of `decisions.jsonl`.
#[derive(serde::Serialize, serde::Deserialize)]
struct Decision {
    /// `None` where one of them was too small there, or had no place to start.
    found: Option<Resegmented>,
}

/// `kinesin agglomerate`.
pub fn agglomerate(args: &AgglomerateArgs, as_json: bool) -> Result<Outcome, Failure> {
    let on = &args.on;
    let rule: ResegmentRule = args.settings.as_deref().map(read_settings).transpose()?.unwrap_or_default();
    let faults = rule.faults();
    if !faults.is_empty() {
        return Err(Failure::Input(faults.join("\n")));
    }
    let input = Input::open(on, "ffn-sim-16nm")?;
    let least = RuleConfig { min_segment_size: Some(1), ..RuleConfig::default() };
    let rules = FloodRules::of(&input.model).map_err(Failure::input)?;
    let rules = rules.with(&least).map_err(|faults| Failure::Input(faults.join("\n")))?;
    let known = Labels::open(&args.labels)?;
    let shape = input.part.info().shape;
    if known.info().shape != shape {
        return Err(Failure::Input(format!(
            "the labels {} have {} voxels, the volume {}; give --box and --reduce as for the labels",
            args.labels.display(),
            said(known.info().shape),
            said(shape)
        )));
    }
    prepare::apart(&on.volume, &on.out)?;
    prepare::apart(&args.labels, &on.out)?;
    prepare::folder(&on.out, on.overwrite)?;
    claim(&on.out, &input.identity(on, "agglomerate", json!({"labels": args.labels, "rule": rule})))?;

    let labels = copied(&known, &on.out, input.voxel_size)?;
    let image = input.part.read_u8(BoxZyx::from_shape(shape)).map_err(Failure::input)?;
    let normalisation = input.model.manifest().normalisation;
    let tables: Vec<_> = image.outer_iter().map(|section| normalisation.table(section)).collect();
    let volume = Surroundings { image: image.view(), tables: &tables, labels: labels.view(), size: input.voxel_size };
    let points = decision_points(&labels, input.voxel_size, rule.reach_nm);
    let factory = input.runtime.factory(&input.model);
    let mut networks: Vec<Box<dyn Network>> = (0..crate::site::workers(on.tune.workers))
        .map(|_| factory())
        .collect::<Result<_, _>>()
        .map_err(Failure::fault)?;

    let (mut log, mut decisions) =
        CommitLog::<Decision>::open(&on.out.join("decisions.jsonl")).map_err(Failure::fault)?;
    let (seen, total) = (std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(decisions.len())), points.len());
    let progress = {
        let seen = seen.clone();
        let line = move || format!("{} of {total} pairs looked at", seen.load(std::sync::atomic::Ordering::Relaxed));
        Progress::start(as_json, line)
    };
    let at_once = 4 * networks.len();
    while decisions.len() < total {
        let next = &points[decisions.len()..(decisions.len() + at_once).min(total)];
        let found = rule.judge_all(&rules, &volume, next, &mut networks).map_err(Failure::fault)?;
        let rows: Vec<Decision> = found.into_iter().map(|found| Decision { found }).collect();
        log.append_all(&rows).map_err(Failure::fault)?;
        decisions.extend(rows);
        seen.store(decisions.len(), std::sync::atomic::Ordering::Relaxed);
    }
    drop(progress);
    let judged: Vec<&Resegmented> = decisions.iter().filter_map(|d| d.found.as_ref()).collect();
    let merges: Vec<Equivalence> =
        judged.iter().filter(|r| r.merge).map(|r| Equivalence { a: r.point.a, b: r.point.b }).collect();
    let (mut table, rows) =
        CommitLog::<Equivalence>::open(&on.out.join("volume/equivalences.jsonl")).map_err(Failure::fault)?;
    table.append_all(&merges[rows.len().min(merges.len())..]).map_err(Failure::fault)?;
    let report = json!({
        "pairs": total,
        "judged": judged.len(),
        "merged": merges.len(),
        "evaluations": judged.iter().map(|r| r.evaluations).sum::<u64>(),
        "provider": input.runtime.chosen(),
        "rule": rule,
    });
    done(&on.out, &report, as_json)
}

/// The labels in memory, with merges applied, and as a volume of the result's folder.
fn copied(known: &Labels, out: &Path, voxel_size: VoxelSize) -> Result<Array3<u64>, Failure> {
    let shape = known.info().shape;
    let writer = writer(out, known.info(), voxel_size)?;
    let mut labels = Array3::zeros((shape.z, shape.y, shape.x));
    for bounds in slabs(shape) {
        let slab = known.read(bounds)?;
        let z = bounds.min.z as usize;
        writer.write_box(Zyx::new(z, 0, 0), slab.view()).map_err(Failure::fault)?;
        labels.slice_mut(s![z..z + slab.dim().0, .., ..]).assign(&slab);
    }
    Ok(labels)
}

fn done(out: &Path, report: &serde_json::Value, as_json: bool) -> Result<Outcome, Failure> {
    write_json(&out.join("report.json"), report).map_err(Failure::fault)?;
    if as_json {
        println!("{report}");
    } else {
        println!("results in {}", out.display());
        for (key, value) in report.as_object().into_iter().flatten().filter(|(_, v)| v.is_number()) {
            println!("  {key:<20} {value}");
        }
        println!("look at it: kinesin view {}", out.display());
    }
    Ok(Outcome::Complete)
}
