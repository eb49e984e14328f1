//! `kinesin segment` and `kinesin mask`: a volume that is there already, through the same stages as the live line.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kinesin_backpressure::Budget;
use kinesin_stages::flood::FloodConfig;
use kinesin_stages::mask::MaskConfig;
use kinesin_stages::model::Model;
use kinesin_stages::pipeline::{Exclusion, FloodMeter, Moment, Telemetry, VolumeJob, flood_volume, mask_volume};
use kinesin_stages::publish::{read_json, write_json};
use kinesin_stages::runtime::ChosenProvider;
use kinesin_stream::geometry::VoxelSize;
use kinesin_stream::runner::Runner;
use kinesin_stream::volume::{self, VolumeSource};
use serde_json::{Value, json};

use crate::cli::{SegmentArgs, Tune};
use crate::outcome::{Failure, Outcome};
use crate::part::Part;
use crate::prepare;
use crate::progress::Progress;
use crate::site::ComputeConfig;

/// Volumes of up to this many sections are one window, unless `--window` says otherwise.
const ONE_WINDOW: usize = 256;

struct Opened {
    job: VolumeJob,
    chosen: ChosenProvider,
    runner: Runner,
    budget: Budget,
}

/// `kinesin segment`.
pub fn segment(args: &SegmentArgs, as_json: bool) -> Result<Outcome, Failure> {
    let opened = open(args, "ffn-sim-16nm", "segment")?;
    let shape = opened.job.image.info().shape;
    let window = args.window.or((shape.z <= ONE_WINDOW).then_some(shape.z));
    let config = FloodConfig { window, batch: args.tune.batch, ..FloodConfig::default() };
    let mask = args.mask.as_deref().map(|path| mask_of(path, &*opened.job.image)).transpose()?;
    let (telemetry, meter) = (opened.job.telemetry.clone(), Arc::new(FloodMeter::default()));
    let progress = {
        let (telemetry, meter) = (telemetry.clone(), meter.clone());
        Progress::start(as_json, move || {
            let (evaluations, seconds) = (meter.evaluations.load(Relaxed), telemetry.elapsed().as_secs_f64());
            format!(
                "{} objects · {evaluations} evaluations ({:.0}/s) · labels of {} of {} sections",
                meter.objects.load(Relaxed),
                evaluations as f64 / seconds,
                telemetry.reached(Moment::Labels),
                shape.z
            )
        })
    };
    let fed = flood_volume(opened.job, &config, mask, &meter, (&opened.runner, &opened.budget));
    let ended = opened.runner.join();
    drop(progress);
    // The cause is where the stage stopped; the feeder only found its edge closed.
    ended.map_err(Failure::fault)?;
    fed.map_err(Failure::input)?;
    let n = |v: &std::sync::atomic::AtomicU64| v.load(Relaxed);
    let report = json!({
        "volume": args.volume,
        "shape_zyx": shape,
        "seconds": telemetry.elapsed().as_secs_f64(),
        "evaluations": n(&meter.evaluations),
        "floods_kept": n(&meter.objects),
        "labelled_fraction": n(&meter.labelled) as f64 / n(&meter.voxels).max(1) as f64,
        "network_thread_seconds": n(&meter.network_ns) as f64 / 1e9,
        "provider": opened.chosen,
        "stages": telemetry.rows(),
        "memory": crate::report::memory(&opened.budget),
    });
    finish(&args.out, &report, as_json)
}

/// `kinesin mask`.
pub fn mask(args: &SegmentArgs, as_json: bool) -> Result<Outcome, Failure> {
    let opened = open(args, "mask-sim-32nm", "mask")?;
    let shape = opened.job.image.info().shape;
    let telemetry = opened.job.telemetry.clone();
    let progress = {
        let telemetry = telemetry.clone();
        Progress::start(as_json, move || {
            let done = telemetry.items(kinesin_stages::pipeline::StageName::Mask);
            format!("{done} of {} sections classified", shape.z)
        })
    };
    let fed = mask_volume(opened.job, &MaskConfig::default(), (&opened.runner, &opened.budget));
    let ended = opened.runner.join();
    drop(progress);
    // The cause is where the stage stopped; the feeder only found its edge closed.
    ended.map_err(Failure::fault)?;
    fed.map_err(Failure::input)?;
    let report = json!({
        "volume": args.volume,
        "shape_zyx": shape,
        "seconds": telemetry.elapsed().as_secs_f64(),
        "provider": opened.chosen,
        "stages": telemetry.rows(),
        "memory": crate::report::memory(&opened.budget),
    });
    finish(&args.out, &report, as_json)
}

fn open(args: &SegmentArgs, default_model: &str, command: &str) -> Result<Opened, Failure> {
    let model = prepare::model(args.model.as_deref().unwrap_or(default_model))?;
    let whole = volume::open(&args.volume).map_err(Failure::input)?;
    let part = Part::new(whole, args.part, args.reduce).map_err(Failure::Input)?;
    let voxel_size = voxel_size(args, &part, &model)?;
    let compute = compute(&args.tune);
    let runtime = Arc::new(prepare::runtime(&compute)?);
    let chosen = runtime.chosen().clone();
    let identity = json!({
        "command": command,
        "volume": args.volume,
        "box": args.part,
        "reduce": args.reduce,
        "voxel_nm": voxel_size,
        "window": args.window,
        "mask": args.mask,
        "model": model.digest(),
        "arithmetic": (chosen.provider, chosen.precision, chosen.version.clone()),
    });
    prepare::apart(&args.volume, &args.out)?;
    if let Some(mask) = &args.mask {
        prepare::apart(mask, &args.out)?;
    }
    prepare::folder(&args.out, args.overwrite)?;
    claim(&args.out, &identity)?;
    let budget = Budget::new();
    let job = VolumeJob {
        image: Box::new(part),
        voxel_size,
        factory: runtime.factory(&model),
        model,
        workers: crate::site::workers(args.tune.workers),
        out: args.out.clone(),
        telemetry: Arc::new(Telemetry::default()),
    };
    Ok(Opened { job, chosen, runner: Runner::new(&budget), budget })
}

/// What the volume says, else `--voxel-nm`, else that of the model.
fn voxel_size(args: &SegmentArgs, part: &Part, model: &Model) -> Result<VoxelSize, Failure> {
    match (args.voxel_nm, part.info().voxel_size) {
        (Some(given), _) => {
            let n = args.reduce as f64;
            Ok(VoxelSize(kinesin_stream::geometry::Zyx::new(given.z, given.y * n, given.x * n)))
        }
        (None, Some(said)) => Ok(said),
        (None, None) => Ok(model.voxel_size()),
    }
}

fn compute(tune: &Tune) -> ComputeConfig {
    use clap::ValueEnum;
    let mut compute = ComputeConfig::default();
    if let Some(value) = tune.provider.and_then(|p| p.to_possible_value()) {
        compute.provider = value.get_name().into();
    }
    if let Some(value) = tune.precision.and_then(|p| p.to_possible_value()) {
        compute.precision = value.get_name().into();
    }
    compute
}

/// A class map over `image`; every class but 0 is kept out.
fn mask_of(path: &Path, image: &dyn VolumeSource) -> Result<Exclusion, Failure> {
    let path = if path.join("volume/mask").is_dir() { path.join("volume/mask") } else { path.to_path_buf() };
    let mask = volume::open(&path).map_err(Failure::input)?;
    let (there, wanted) = (mask.info().shape, image.info().shape);
    let scale = wanted.x as f64 / there.x as f64;
    let fits = (wanted.y as f64 / there.y as f64 / scale - 1.0).abs() < 0.02;
    if there.z != wanted.z || !fits {
        return Err(Failure::Input(format!(
            "the mask {} has {} x {} x {} voxels, the volume {} x {} x {}; give a mask of the same sections and the same field",
            path.display(),
            there.z,
            there.y,
            there.x,
            wanted.z,
            wanted.y,
            wanted.x
        )));
    }
    Ok(Exclusion { classes: mask, scale, excluded: vec![false] })
}

/// The same command goes on in the folder, another is refused.
pub fn claim(out: &Path, identity: &Value) -> Result<(), Failure> {
    let path = out.join("run.json");
    match read_json::<Value>(&path).map_err(Failure::input)? {
        None => write_json(&path, identity).map_err(Failure::fault),
        Some(there) if there == *identity => Ok(()),
        Some(_) => Err(Failure::Input(format!(
            "{} holds an interrupted run of another command or other settings; give --overwrite to replace it or another --out",
            out.display()
        ))),
    }
}

fn finish(out: &Path, report: &Value, as_json: bool) -> Result<Outcome, Failure> {
    write_json(&out.join("report.json"), report).map_err(Failure::fault)?;
    if as_json {
        println!("{report}");
    } else {
        println!("results in {}", out.display());
        for key in ["seconds", "evaluations", "floods_kept", "labelled_fraction"] {
            if let Some(value) = report.get(key) {
                println!("  {key:<20} {value}");
            }
        }
        println!("look at it: kinesin view {}", out.display());
    }
    Ok(Outcome::Complete)
}
