//! A volume that is there already, through the flood and mask boxes of the line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_backpressure::{Budget, Bytes, edge};
use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use kinesin_stream::runner::Runner;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::{ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce, VolumeSource};

use super::checkpoints::Checkpoints;
use super::commits::Commits;
use super::extras::FloodExtras;
use super::gaps::Gaps;
use super::layout::mask_bytes;
use super::rendering::Rendered;
use super::segmenting::{Exclusion, FloodBox, FloodMeter, MaskBox, Reduced, chunk_thickness};
use super::telemetry::Telemetry;
use crate::flood::{FloodConfig, FloodRules, RollingFlood};
use crate::mask::{MaskConfig, Masker};
use crate::model::Model;
use crate::runtime::NetworkFactory;

/// A volume to flood or to classify.
pub struct VolumeJob {
    /// Grey, at the resolution of the network.
    pub image: Box<dyn VolumeSource>,
    /// nm.
    pub voxel_size: VoxelSize,
    /// The network.
    pub model: Arc<Model>,
    /// Makes it.
    pub factory: NetworkFactory,
    /// Threads.
    pub workers: usize,
    /// Folder of the results.
    pub out: PathBuf,
    /// Counts.
    pub telemetry: Arc<Telemetry>,
}

/// Everything about the settings that does not fit a volume of this shape, the model, or the files they name; writes nothing.
pub fn flood_faults(config: &FloodConfig, model: &Model, shape: Zyx<usize>) -> Vec<String> {
    let rules = match FloodRules::of(model) {
        Ok(rules) => rules,
        Err(e) => return vec![e.to_string()],
    };
    let mut faults = config.resolve(&rules).err().unwrap_or_default();
    let fov = rules.fov();
    if shape.z < fov.z || shape.y < fov.y || shape.x < fov.x {
        faults.push(format!(
            "the volume has {} x {} x {} voxels, fewer than the {} x {} x {} that {} sees at a time; give a larger one or a smaller --reduce",
            shape.z, shape.y, shape.x, fov.z, fov.y, fov.x, model.name()
        ));
    }
    faults.extend(FloodExtras::open(config, Path::new(""), shape).err().unwrap_or_default());
    faults
}

/// Floods the volume into `DIR/volume/labels`; goes on where an earlier call stopped. `mask` keeps voxels out.
///
/// # Errors
/// Where settings and volume contradict each other, or reading, the network or writing fails.
pub fn flood_volume(
    job: VolumeJob,
    config: &FloodConfig,
    mask: Option<Exclusion>,
    meter: &Arc<FloodMeter>,
    (runner, budget): (&Runner, &Budget),
) -> Result<(), StopError> {
    let shape = job.image.info().shape;
    let rules = FloodRules::of(&job.model)?;
    let plan = config.resolve(&rules).map_err(|faults| std::io::Error::other(faults.join("; ")))?;
    budget.fixed("flood window and blocks", Bytes(plan.bytes(shape, job.workers)));
    let (config, mut extras) =
        FloodExtras::open(config, &job.out, shape).map_err(|faults| std::io::Error::other(faults.join("; ")))?;
    if config.probability {
        extras = extras.with_probability(shape, job.voxel_size)?;
    }
    let mut flood = RollingFlood::new(&config, &job.model, job.voxel_size, shape, job.workers, &job.factory)?;
    if let Some(store) = Checkpoints::every(&job.out, config.checkpoint_seconds) {
        flood = flood.kept_in(store);
    }
    let first = plan.span(0, usize::MAX);
    let second = plan.span(first.commit, usize::MAX);
    let thickness = chunk_thickness(first.commit - first.open, second.commit - second.open);
    let chunk = Zyx::new(thickness, 64, 64);
    let spec = LabelSpec { shape, voxel_size: job.voxel_size, origin: job.image.info().origin, chunk };
    let mut flood = FloodBox {
        flood,
        workers: job.workers,
        image: Reduced::whole(job.image),
        gaps: Gaps::new(config.bridge, None),
        mask,
        extras,
        labels: LabelWriter::create(&job.out.join("volume/labels"), spec)?,
        commits: Arc::new(Commits::open(&job.out)?),
        out: job.out,
        telemetry: job.telemetry,
        meter: meter.clone(),
        gate: Arc::default(),
    };
    let (tx, rx) = edge::<Rendered>(budget, "sections", Bytes::mib(1));
    runner.spawn("flood", move |run| flood.work(|_, _| Ok(rx.recv_blocking().map(|section| section.z)), run));
    (0..shape.z as u32).try_for_each(|z| tx.send_blocking(Rendered { z, present: true }))?;
    Ok(())
}

/// Classifies the volume into `DIR/volume/mask`; goes on where an earlier call stopped.
///
/// # Errors
/// As [`flood_volume`].
pub fn mask_volume(job: VolumeJob, config: &MaskConfig, (runner, budget): (&Runner, &Budget)) -> Result<(), StopError> {
    let shape = job.image.info().shape;
    let plane = Xy::new(shape.x, shape.y);
    budget.fixed("mask working", Bytes(mask_bytes(plane, Some(&job.model))));
    let masker = Masker::new(config, &job.model, job.voxel_size.0.x, (job.factory)()?)?;
    let n = masker.factor();
    let spec = ImageSpec {
        shape: Zyx::new(shape.z, shape.y.div_ceil(n), shape.x.div_ceil(n)),
        voxel_size: VoxelSize(Zyx::new(
            job.voxel_size.0.z,
            job.voxel_size.0.y * n as f64,
            job.voxel_size.0.x * n as f64,
        )),
        levels: 1,
        chunk: Xy::new(512, 512),
        reduce: Reduce::Mode,
    };
    let mut mask = MaskBox {
        masker,
        image: Reduced::whole(job.image),
        mask: ImageWriter::create(&job.out.join("volume/mask"), spec)?,
        commits: Arc::new(Commits::open(&job.out)?),
        telemetry: job.telemetry,
    };
    let (tx, rx) = edge(budget, "sections", Bytes::mib(1));
    let (done, ended) = edge(budget, "masked", Bytes::mib(1));
    runner.spawn("mask", move |run| mask.work((rx, done), run));
    runner.spawn("masked", move |run| super::drain(&ended, run));
    (0..shape.z as u32).try_for_each(|z| tx.send_blocking(Rendered { z, present: true }))?;
    Ok(())
}
