//! The last boxes of the line: mask, and flood with agglomeration and publishing. Both read sections back from the published
//! volume, so no pixels wait between them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kinesin_backpressure::{Receiver, Sender};
use kinesin_stream::geometry::{BoxZyx, VoxelSize, Zyx};
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::{self, CommitLog, Equivalence, ImageWriter, LabelWriter, VolumeSource};
use ndarray::{Array2, Axis};

use super::commits::{Commit, Commits};
use super::extras::FloodExtras;
use super::gaps::Gaps;
use super::gate::Gate;
use super::rendering::Rendered;
use super::telemetry::{Moment, StageName, Telemetry};
use crate::flood::{FloodCounters, FloodSection, LabelledSection, RollingFlood, Watch, WindowResult};
use crate::mask::{Masker, reduce};

/// One section of a volume, axes y, x.
fn section(volume: &dyn VolumeSource, z: usize) -> Result<Array2<u8>, StopError> {
    let shape = volume.info().shape;
    let at = z as i64;
    let bounds = BoxZyx { min: Zyx::new(at, 0, 0), max: Zyx::new(at + 1, shape.y as i64, shape.x as i64) };
    Ok(volume.read_u8(bounds)?.index_axis_move(Axis(0), 0))
}

/// A level of a published volume.
pub(super) fn level_of(path: &Path, level: usize) -> Result<Box<dyn VolumeSource>, StopError> {
    Ok(volume::open(&path.join(level.to_string()))?)
}

pub(super) struct MaskBox {
    pub(super) masker: Masker,
    pub(super) image: Reduced,
    pub(super) mask: ImageWriter,
    pub(super) commits: Arc<Commits>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl MaskBox {
    pub(super) fn work(
        &mut self,
        (rendered, masked): (Receiver<Rendered>, Sender<Rendered>),
        run: &RunToken,
    ) -> Result<(), StopError> {
        while let Some(message) = rendered.recv_blocking() {
            let Rendered { z, present } = *message;
            drop(message);
            run.working_on(format!("section z = {z}"));
            if !self.commits.has(&Commit::Mask { z }) {
                if present {
                    let image = self.image.section(z as usize)?;
                    let classes = self
                        .telemetry
                        .time(StageName::Mask, image.len() as u64, || self.masker.classes(image.view()))?;
                    self.mask.write_section(z as usize, classes.view())?;
                }
                self.commits.add(&Commit::Mask { z })?;
            }
            masked.send_blocking(Rendered { z, present })?;
        }
        Ok(run.check()?)
    }
}

/// Counts of the flood so far, for progress and the report.
#[derive(Debug, Default)]
pub struct FloodMeter {
    /// Fields of view run through the network.
    pub evaluations: AtomicU64,
    /// Objects kept.
    pub objects: AtomicU64,
    /// Objects lost because the network's answer was no finite number.
    pub not_finite: AtomicU64,
    /// Start points listed and looked at, for the time that is left.
    pub listed: AtomicU64,
    /// See `listed`.
    pub seeds: AtomicU64,
    /// Voxels labelled in blocks, halos included, also of windows that are not committed.
    pub flooded: AtomicU64,
    /// Voxels labelled.
    pub labelled: AtomicU64,
    /// Voxels of committed sections.
    pub voxels: AtomicU64,
    /// Thread-nanoseconds inside the network.
    pub network_ns: AtomicU64,
}

impl FloodMeter {
    /// Adds what was counted since the last call.
    pub fn add(&self, counted: &FloodCounters, network_seconds: f64) {
        self.evaluations.fetch_add(counted.evaluations, Relaxed);
        self.objects.fetch_add(counted.kept, Relaxed);
        self.not_finite.fetch_add(counted.not_finite, Relaxed);
        self.listed.fetch_add(counted.listed, Relaxed);
        self.seeds.fetch_add(counted.seeds, Relaxed);
        self.flooded.fetch_add(counted.voxels, Relaxed);
        self.network_ns.fetch_add((network_seconds * 1e9) as u64, Relaxed);
    }
}

/// Voxels that a class map keeps from being segmented.
pub struct Exclusion {
    /// Class map.
    pub classes: Box<dyn VolumeSource>,
    /// Voxels of the segmentation along one pixel of the map.
    pub scale: f64,
    /// By class, whether it is kept out; unknown classes are.
    pub excluded: Vec<bool>,
}

impl Exclusion {
    /// Of section `z`, at the shape of the segmentation.
    pub(super) fn section(&self, z: usize, shape: (usize, usize)) -> Result<Array2<bool>, StopError> {
        let classes = section(&*self.classes, z)?;
        let at = |i: usize, n: usize| (((i as f64 + 0.5) / self.scale) as usize).min(n - 1);
        let (rows, columns) = classes.dim();
        let out = |class: u8| self.excluded.get(usize::from(class)).copied().unwrap_or(true);
        Ok(Array2::from_shape_fn(shape, |(y, x)| out(classes[(at(y, rows), at(x, columns))])))
    }
}

pub(super) struct FloodBox {
    pub(super) flood: RollingFlood,
    /// Threads that flood.
    pub(super) workers: usize,
    pub(super) image: Reduced,
    /// Sections that it cannot rely on.
    pub(super) gaps: Gaps,
    /// What is not to be segmented.
    pub(super) mask: Option<Exclusion>,
    /// What else is read and written.
    pub(super) extras: FloodExtras,
    pub(super) labels: LabelWriter,
    pub(super) out: PathBuf,
    pub(super) commits: Arc<Commits>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) meter: Arc<FloodMeter>,
    /// Pauses the work, never changes it.
    pub(super) gate: Arc<Gate>,
}

impl FloodBox {
    /// Floods the sections that `next` gives, until it gives none.
    pub(super) fn work(
        &mut self,
        next: impl Fn(&Gate, &RunToken) -> Result<Option<u32>, StopError>,
        run: &RunToken,
    ) -> Result<(), StopError> {
        let (mut log, rows) = CommitLog::<Equivalence>::open(&self.out.join("volume/equivalences.jsonl"))?;
        let mut table = Table { written: 0, kept: rows.len() as u64 };
        let done = self.resume(&mut table)?;
        while let Some(z) = next(&self.gate, run)? {
            if z < done {
                self.telemetry.mark(z, Moment::Labels);
                continue;
            }
            run.working_on(format!("section z = {z}"));
            let section = self.section(z as usize)?;
            if let Some(result) = self.push(Some(section), run)? {
                self.publish(&result, &mut log, &mut table)?;
            }
        }
        run.check()?;
        while let Some(result) = self.push(None, run)? {
            self.publish(&result, &mut log, &mut table)?;
        }
        Ok(())
    }

    /// Brings back the sections that the next window sees; gives the first z without labels.
    fn resume(&mut self, table: &mut Table) -> Result<u32, StopError> {
        let mut done = 0;
        for commit in self.commits.before() {
            if let Commit::Labels { z1, equivalences, .. } = commit
                && *z1 > done
            {
                (done, table.written) = (*z1, *equivalences);
            }
        }
        if done == 0 {
            return Ok(0);
        }
        let labels = volume::open(&self.out.join("volume/labels"))?;
        let shape = labels.info().shape;
        let mut context = Vec::new();
        for z in self.flood.context_from(done as usize)..done as usize {
            let at = z as i64;
            let bounds = BoxZyx { min: Zyx::new(at, 0, 0), max: Zyx::new(at + 1, shape.y as i64, shape.x as i64) };
            let written = labels.read_labels(bounds)?.index_axis_move(Axis(0), 0);
            context.push(LabelledSection { section: self.section(z)?, labels: written });
        }
        self.flood.resume(done as usize, context)?;
        Ok(done)
    }

    fn section(&mut self, z: usize) -> Result<FloodSection, StopError> {
        let mut section = self.gaps.section(&self.image, self.mask.as_ref(), z)?;
        self.extras.add(z, &mut section)?;
        Ok(section)
    }

    fn push(&mut self, section: Option<FloodSection>, run: &RunToken) -> Result<Option<WindowResult>, StopError> {
        let started = Instant::now();
        let (meter, gate) = (self.meter.clone(), self.gate.clone());
        let paused_ns = AtomicU64::new(0);
        let progress = |counted: &FloodCounters, seconds: f64| {
            meter.add(counted, seconds);
            paused_ns.fetch_add(gate.pause(run).as_nanos() as u64, Relaxed);
            !run.is_stopped()
        };
        let watch = Watch { progress: &progress, seconds: &|| started.elapsed().as_secs_f64() };
        let result = match section {
            Some(section) => self.flood.push_section(section, &watch)?,
            None => self.flood.finish(&watch)?,
        };
        if let Some(result) = &result {
            let busy = started.elapsed() * self.workers as u32;
            let busy = busy.saturating_sub(Duration::from_nanos(paused_ns.load(Relaxed)));
            self.telemetry.count(StageName::Flood, 1, result.labels.len() as u64, busy);
        }
        Ok(result)
    }

    fn publish(
        &self,
        result: &WindowResult,
        log: &mut CommitLog<Equivalence>,
        table: &mut Table,
    ) -> Result<(), StopError> {
        let started = Instant::now();
        let span = result.span;
        self.labels.write_box(Zyx::new(span.open, 0, 0), result.labels.view())?;
        let rows: Vec<Equivalence> = result.equivalences.iter().map(|&(a, b)| Equivalence { a, b }).collect();
        log.append_all(table.missing(&rows))?;
        self.extras.publish(result)?;
        let (z0, z1) = (span.open as u32, span.commit as u32);
        self.commits.add(&Commit::Labels { z0, z1, equivalences: table.written })?;
        let labelled = result.labels.iter().filter(|l| **l != 0).count() as u64;
        self.meter.labelled.fetch_add(labelled, Relaxed);
        self.meter.voxels.fetch_add(result.labels.len() as u64, Relaxed);
        (z0..z1).for_each(|z| self.telemetry.mark(z, Moment::Labels));
        self.telemetry.count(StageName::Publish, 1, result.labels.len() as u64, started.elapsed());
        Ok(())
    }
}

/// The table of merges on disk: a run that was killed may have written rows of a window that it did not commit.
struct Table {
    /// Rows that belong to committed windows.
    written: u64,
    /// Rows in the file.
    kept: u64,
}

impl Table {
    /// The rows of a window that are not in the file yet; the same window gives the same rows again.
    fn missing<'a>(&mut self, rows: &'a [Equivalence]) -> &'a [Equivalence] {
        let there = (self.kept.saturating_sub(self.written) as usize).min(rows.len());
        self.written += rows.len() as u64;
        self.kept = self.kept.max(self.written);
        &rows[there..]
    }
}

/// Thickness of label chunks that every window fills: a divisor of each window's share.
pub(super) fn chunk_thickness(first: usize, step: usize) -> usize {
    let (mut a, mut b) = (first, step);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a.clamp(1, 64)
}

/// Farthest that a multiple of the scope's pixel may be from what the network was trained at.
const TOLERANCE: f64 = 0.2;

/// How many scope pixels make one pixel of about `wanted` nm, or what is wrong and what to do.
pub(super) fn reduction(key: &str, pixel_nm: f64, wanted: VoxelSize) -> Result<usize, String> {
    let Zyx { y, x, .. } = wanted.0;
    let nearest = (x / pixel_nm).round().max(1.0);
    if [y, x].iter().all(|e| (nearest * pixel_nm / e - 1.0).abs() <= TOLERANCE) {
        return Ok(nearest as usize);
    }
    Err(format!(
        "{key}: {y} x {x} nm cannot be had from pixels of {pixel_nm} nm, the nearest multiple is {} nm; set voxel_nm or use another model",
        nearest * pixel_nm
    ))
}

/// Sections of a published volume at any whole reduction: the nearest finer level, then means over the rest.
pub(super) struct Reduced {
    volume: Box<dyn VolumeSource>,
    rest: usize,
}

impl Reduced {
    /// Of the image at `path`, `reduction` scope pixels to one.
    pub(super) fn open(path: &Path, reduction: usize) -> Result<Self, StopError> {
        let level = reduction.trailing_zeros();
        Ok(Self { volume: level_of(path, level as usize)?, rest: reduction >> level })
    }

    /// A volume as it is.
    pub(super) fn whole(volume: Box<dyn VolumeSource>) -> Self {
        Self { volume, rest: 1 }
    }

    /// Section `z`, axes y, x.
    pub(super) fn section(&self, z: usize) -> Result<Array2<u8>, StopError> {
        let full = section(&*self.volume, z)?;
        Ok(if self.rest == 1 { full } else { reduce(full.view(), self.rest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thickness_of_chunks_divides_every_window() {
        assert_eq!(chunk_thickness(30, 18), 6);
        assert_eq!(chunk_thickness(30, 0), 30);
        assert_eq!(chunk_thickness(7, 3), 1);
    }

    #[test]
    fn the_nearest_multiple_is_taken_and_one_too_far_is_told() {
        let size = |v| VoxelSize(Zyx::new(30.0, v, v));
        assert_eq!(reduction("stages.segment", 6.0, size(12.0)), Ok(2));
        assert_eq!(reduction("stages.segment", 8.0, size(8.0)), Ok(1));
        assert_eq!(reduction("stages.segment", 4.0, size(12.0)), Ok(3));
        assert!(reduction("stages.segment", 20.0, size(12.0)).expect_err("too coarse").contains("is 20 nm"));
    }

    #[test]
    fn rows_of_an_uncommitted_window_are_written_once() {
        let rows = [Equivalence { a: 1, b: 2 }, Equivalence { a: 1, b: 3 }];
        let mut table = Table { written: 5, kept: 6 };
        assert_eq!(table.missing(&rows), &rows[1..]);
        assert_eq!(table.missing(&rows), &rows[..]);
        assert_eq!((table.written, table.kept), (9, 9));
    }
}
