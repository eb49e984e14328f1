//! `kinesin segment` and `kinesin mask`: a volume that is there already, through the same stages as the live line.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kinesin_backpressure::Budget;
use kinesin_stages::flood::{FloodConfig, Schedule, SeedPolicy};
use kinesin_stages::mask::MaskConfig;
use kinesin_stages::model::Model;
use kinesin_stages::pipeline::{
    Exclusion, FloodMeter, Moment, Telemetry, VolumeJob, flood_faults, flood_volume, mask_volume,
};
use kinesin_stages::publish::{read_json, write_json};
use kinesin_stages::runtime::{ChosenProvider, Runtime};
use kinesin_stream::geometry::{VoxelSize, Zyx};
use kinesin_stream::runner::Runner;
use kinesin_stream::volume::{self, VolumeSource};
use serde_json::{Value, json};

use crate::cli::{ScheduleArg, SegmentArgs, Tune, VolumeArgs};
use crate::flooding;
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
    let on = &args.on;
    let source = Input::open(on, "ffn-sim-16nm")?;
    let shape = source.part.info().shape;
    let config = flood_config(args, shape, &source.model)?;
    let faults = flood_faults(&config, &source.model, shape);
    if !faults.is_empty() {
        return Err(Failure::Input(faults.join("\n")));
    }
    let mask = args.mask.as_deref().map(|path| mask_of(path, &source.part)).transpose()?;
    let read: Vec<&Path> = [&args.mask, &args.initial].into_iter().flatten().map(PathBuf::as_path).collect();
    let opened = source.claim(on, "segment", &read, flood_identity(args, &config)?)?;
    let (telemetry, meter) = (opened.job.telemetry.clone(), Arc::new(FloodMeter::default()));
    let progress = {
        let (telemetry, meter, window) = (telemetry.clone(), meter.clone(), config.window.unwrap_or(shape.z));
        Progress::start(as_json, move || {
            flooding::line(
                &meter,
                telemetry.elapsed().as_secs_f64(),
                telemetry.reached(Moment::Labels),
                (shape, window),
            )
        })
    };
    let fed = flood_volume(opened.job, &config, mask, &meter, (&opened.runner, &opened.budget));
    let ended = opened.runner.join();
    drop(progress);
    // The cause is where the stage stopped; the feeder only found its edge closed.
    ended.map_err(Failure::fault)?;
    fed.map_err(Failure::input)?;
    let n = |v: &AtomicU64| v.load(Relaxed);
    let seconds = telemetry.elapsed().as_secs_f64();
    let report = json!({
        "volume": on.volume,
        "shape_zyx": shape,
        "schedule": config.schedule,
        "seconds": seconds,
        "evaluations": n(&meter.evaluations),
        "evaluations_per_second": n(&meter.evaluations) as f64 / seconds,
        "floods_kept": n(&meter.objects),
        "floods_lost_not_finite": n(&meter.not_finite),
        "labelled_voxels": n(&meter.labelled),
        "labelled_fraction": n(&meter.labelled) as f64 / n(&meter.voxels).max(1) as f64,
        "network_thread_seconds": n(&meter.network_ns) as f64 / 1e9,
        "provider": opened.chosen,
        "settings": config,
        "stages": telemetry.rows(),
        "memory": crate::report::memory(&opened.budget),
    });
    finish(&on.out, &report, as_json)?;
    Ok(if n(&meter.not_finite) == 0 { Outcome::Complete } else { Outcome::WithLosses })
}

/// The settings file, with what the command line says in their place.
fn flood_config(args: &SegmentArgs, shape: Zyx<usize>, model: &Model) -> Result<FloodConfig, Failure> {
    let mut config: FloodConfig = args.settings.as_deref().map(read_settings).transpose()?.unwrap_or_default();
    let one = shape.z <= ONE_WINDOW && shape.z >= model.manifest().shape.z;
    config.window = args.window.or(config.window).or(one.then_some(shape.z));
    config.batch = args.on.tune.batch.or(config.batch);
    config.schedule = match args.schedule {
        None => config.schedule,
        Some(ScheduleArg::Reference) => Schedule::Reference,
        Some(ScheduleArg::Thrifty) => Schedule::Thrifty,
    };
    if let Some(file) = &args.seeds {
        config.seeds = vec![SeedPolicy::List { file: file.clone(), reverse: false, points: None }];
    }
    config.initial = args.initial.clone().or(config.initial);
    Ok(config)
}

/// A TOML file of settings; all its mistakes at once.
pub fn read_settings<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::Input(format!("cannot read the settings {}: {e}", path.display())))?;
    let (value, problems) = crate::faults::read::<T>(&text);
    match value.filter(|_| problems.is_empty()) {
        Some(value) => Ok(value),
        None => {
            let told: String = problems.iter().map(ToString::to_string).collect();
            Err(Failure::Input(format!("{} problems in {}\n\n{told}", problems.len(), path.display())))
        }
    }
}

/// What of a flood's settings changes a byte of what comes out, with the content of the lists it reads.
fn flood_identity(args: &SegmentArgs, config: &FloodConfig) -> Result<Value, Failure> {
    let (batch, checkpoint_seconds) = (None, 0.0);
    let settings = FloodConfig { batch, checkpoint_seconds, ..config.clone() };
    let mut lists = Vec::new();
    for policy in &config.seeds {
        if let SeedPolicy::List { file, .. } = policy {
            let text =
                std::fs::read(file).map_err(|e| Failure::Input(format!("cannot read {}: {e}", file.display())))?;
            lists.push(blake3::hash(&text).to_hex().to_string());
        }
    }
    Ok(json!({"mask": args.mask, "flood": settings, "lists": lists}))
}

/// `kinesin mask`.
pub fn mask(args: &VolumeArgs, as_json: bool) -> Result<Outcome, Failure> {
    let opened = Input::open(args, "mask-sim-32nm")?.claim(args, "mask", &[], Value::Null)?;
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

/// The volume and the network, before anything is written.
pub(crate) struct Input {
    pub(crate) part: Part,
    pub(crate) model: Arc<Model>,
    pub(crate) voxel_size: VoxelSize,
    pub(crate) runtime: Arc<Runtime>,
}

impl Input {
    pub(crate) fn open(args: &VolumeArgs, default_model: &str) -> Result<Self, Failure> {
        let model = prepare::model(args.model.as_deref().unwrap_or(default_model))?;
        let whole = volume::open(&args.volume).map_err(Failure::input)?;
        let part = Part::new(whole, args.part, args.reduce).map_err(Failure::Input)?;
        let voxel_size = voxel_size(args, &part, &model)?;
        let runtime = Arc::new(prepare::runtime(&compute(&args.tune))?);
        Ok(Self { part, model, voxel_size, runtime })
    }

    /// What says whose results a folder holds.
    pub(crate) fn identity(&self, args: &VolumeArgs, command: &str, more: Value) -> Value {
        let chosen = self.runtime.chosen();
        json!({
            "command": command,
            "volume": args.volume,
            "box": args.part,
            "reduce": args.reduce,
            "voxel_nm": self.voxel_size,
            "model": self.model.digest(),
            "arithmetic": (chosen.provider, chosen.precision, chosen.version.clone()),
            "settings": more,
        })
    }

    /// Makes the folder of the results ready. `read` is what else must not lie in it.
    fn claim(self, args: &VolumeArgs, command: &str, read: &[&Path], more: Value) -> Result<Opened, Failure> {
        let identity = self.identity(args, command, more);
        for path in std::iter::once(args.volume.as_path()).chain(read.iter().copied()) {
            prepare::apart(path, &args.out)?;
        }
        prepare::folder(&args.out, args.overwrite)?;
        claim(&args.out, &identity)?;
        let budget = Budget::new();
        let chosen = self.runtime.chosen().clone();
        let job = VolumeJob {
            image: Box::new(self.part),
            voxel_size: self.voxel_size,
            factory: self.runtime.factory(&self.model),
            model: self.model,
            workers: crate::site::workers(args.tune.workers),
            out: args.out.clone(),
            telemetry: Arc::new(Telemetry::default()),
        };
        Ok(Opened { job, chosen, runner: Runner::new(&budget), budget })
    }
}

/// What the volume says, else `--voxel-nm`, else that of the model.
fn voxel_size(args: &VolumeArgs, part: &Part, model: &Model) -> Result<VoxelSize, Failure> {
    match (args.voxel_nm, part.info().voxel_size) {
        (Some(given), _) => {
            let n = args.reduce as f64;
            Ok(VoxelSize(Zyx::new(given.z, given.y * n, given.x * n)))
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
fn mask_of(path: &Path, image: &Part) -> Result<Exclusion, Failure> {
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
        let of = |key: &str| report["provider"][key].as_str().unwrap_or_default().to_owned();
        let why = Some(of("reason")).filter(|r| !r.is_empty()).map_or(String::new(), |r| format!(" ({r})"));
        println!("  computed by          {} {}, ONNX Runtime {}{why}", of("provider"), of("precision"), of("version"));
        for key in ["seconds", "evaluations", "floods_kept", "floods_lost_not_finite", "labelled_fraction"] {
            if let Some(value) = report.get(key) {
                println!("  {key:<20} {value}");
            }
        }
        println!("look at it: kinesin view {}", out.display());
    }
    Ok(Outcome::Complete)
}
