//! What the line will publish and hold, worked out before anything moves: the volume's frame, resolutions, models, memory.

use std::path::PathBuf;
use std::sync::Arc;

use kinesin_backpressure::{Budget, Bytes};
use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use kinesin_stream::ledger::Ledger;
use kinesin_stream::plan::RunPlan;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::{ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce};

use super::checkpoints::Checkpoints;
use super::commits::Commits;
use super::config::StagesConfig;
use super::extras::FloodExtras;
use super::gaps::Gaps;
use super::gate::Gate;
use super::provisional::{Light, ProvisionalBox, SKIP_EXPLORED, lent};
use super::rendering::BAND_PX;
use super::segmenting::{Exclusion, FloodBox, FloodMeter, MaskBox, Reduced, chunk_thickness, level_of, reduction};
use super::telemetry::Telemetry;
use crate::align::Aligner;
use crate::flood::{FloodConfig, FloodPlan, FloodRules, RollingFlood};
use crate::mask::Masker;
use crate::model::{Model, ModelKind};
use crate::runtime::NetworkFactory;

/// Stages that are replaced by their nominal input, to see what each earns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nominal {
    /// Tiles stay where the scope believed them to be.
    pub stitch: bool,
    /// Sections stay as they were montaged.
    pub align: bool,
    /// Nothing is masked.
    pub mask: bool,
}

/// One run of the line.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// Settings of the stages.
    pub stages: StagesConfig,
    /// What the instrument promises.
    pub plan: RunPlan,
    /// Folder of the results.
    pub out: PathBuf,
    /// Threads of each stage that has several.
    pub workers: usize,
    /// Stages left out.
    pub nominal: Nominal,
    /// Model of the mask stage; `None` where it does not run.
    pub mask: Option<Arc<Model>>,
    /// Model of the flood stage; `None` where it does not run.
    pub flood: Option<Arc<Model>>,
    /// Whether sections get provisional labels while the full flood is paused.
    pub light: bool,
}

/// See the module.
pub struct Layout {
    pub(super) config: LineConfig,
    /// Section pixel of the first volume pixel, where a section's map is the identity.
    pub origin: Xy<i64>,
    /// The published image.
    pub image: ImageSpec,
    /// Scope pixels of one pixel of the class map.
    pub mask_reduction: Option<usize>,
    /// Scope pixels of one voxel of the labels.
    pub label_reduction: Option<usize>,
    flood: Option<FloodPlan>,
}

/// Memory of one network session, about: weights, activations and the runtime's own buffers.
const SESSION: Bytes = Bytes::mib(160);

impl Layout {
    /// Works everything out, or says all that does not fit.
    pub fn of(config: LineConfig) -> Result<Self, Vec<String>> {
        let (stages, plan) = (&config.stages, &config.plan);
        let mut faults = Vec::new();
        let mut keep = |r: Result<usize, String>| r.map_err(|e| faults.push(e)).ok();
        let size =
            |wanted: Zyx<f64>, model: &Model| if wanted.y > 0.0 { VoxelSize(wanted) } else { model.voxel_size() };
        let pixel = plan.pixel_size_nm;
        let mask_reduction = config.mask.as_ref().and_then(|m| keep(reduction("stages.mask", pixel, m.voxel_size())));
        let label_reduction = config
            .flood
            .as_ref()
            .and_then(|m| keep(reduction("stages.segment", pixel, size(stages.segment.voxel_nm, m))));
        for (key, model, kind) in [
            ("stages.mask.model", &config.mask, ModelKind::Mask),
            ("stages.segment.model", &config.flood, ModelKind::Ffn),
        ] {
            if let Some(model) = model.as_ref().filter(|m| m.manifest().kind != kind) {
                faults.push(format!(
                    "{key}: {} is a model of kind {:?}, wanted {kind:?}",
                    model.name(),
                    model.manifest().kind
                ));
            }
        }
        let flood = match (&config.flood, label_reduction) {
            (Some(model), Some(_)) => FloodRules::of(model)
                .map_err(|e| vec![e.to_string()])
                .and_then(|rules| stages.segment.flood.resolve(&rules))
                .map_err(|e| faults.extend(e.iter().map(|e| format!("stages.segment.{e}"))))
                .ok(),
            _ => None,
        };
        // Leases are whole pages.
        let tile = (u64::from(plan.tile_px.x) * u64::from(plan.tile_px.y)).next_multiple_of(4096);
        for (key, has) in [("ingest", stages.edges.ingest), ("inspected", stages.edges.inspected)] {
            if has.0 < 2 * tile {
                let wanted = Bytes(2 * tile);
                faults.push(format!("stages.edges.{key} = {has}: two tiles must fit; raise it to at least {wanted}"));
            }
        }
        let record = 1024 * u64::from(plan.beams) * u64::from(plan.mfovs_per_section) + (64 << 10);
        if stages.edges.records.0 < record {
            let (has, wanted) = (stages.edges.records, Bytes(record));
            faults.push(format!(
                "stages.edges.records = {has}: the record of a section must fit; raise it to at least {wanted}"
            ));
        }
        if stages.edges.open_sections == 0 {
            faults.push("stages.edges.open_sections = 0: no section could begin; use 1 or more, default 16".into());
        }
        if stages.edges.tiles.0 < 9 * tile {
            let wanted = Bytes(9 * tile);
            faults.push(format!(
                "stages.edges.tiles = {}: a block needs up to nine tiles at once; raise it to at least {wanted}",
                stages.edges.tiles
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let level = |r: Option<usize>| r.map_or(0, usize::trailing_zeros);
        // Too small a volume would be found only when the network starts.
        let (origin, image) = frame(stages, plan, level(mask_reduction).max(level(label_reduction)));
        if let (Some(model), Some(r)) = (&config.flood, label_reduction) {
            let (fov, has) = (model.manifest().shape, image.shape);
            if has.z < fov.z || has.y / r < fov.y || has.x / r < fov.x {
                return Err(vec![format!(
                    "the volume has {} sections of {} x {} voxels, fewer than the {} x {} x {} that {} sees at a time; give more sections or set stages.segment.enabled = false",
                    has.z,
                    has.y / r,
                    has.x / r,
                    fov.z,
                    fov.y,
                    fov.x,
                    model.name()
                )]);
            }
        }
        Ok(Self { origin, image, mask_reduction, label_reduction, flood, config })
    }

    fn workers(&self) -> usize {
        self.config.workers.max(1)
    }

    /// Height and width at a reduction.
    fn plane(&self, reduction: usize) -> Xy<usize> {
        Xy::new(self.image.shape.x.div_ceil(reduction), self.image.shape.y.div_ceil(reduction))
    }

    /// Shape and voxel size of the labels.
    pub fn labels(&self) -> Option<(Zyx<usize>, VoxelSize)> {
        let r = self.label_reduction?;
        let (plane, nm) = (self.plane(r), self.config.plan.pixel_size_nm * r as f64);
        let shape = Zyx::new(self.image.shape.z, plane.y, plane.x);
        Some((shape, VoxelSize(Zyx::new(self.config.plan.thickness_nm, nm, nm))))
    }

    /// The lines of the budget that are not edges or pools: what each stage holds while it works.
    pub(super) fn enter(&self, budget: &Budget) {
        let (shape, stages) = (self.image.shape, &self.config.stages);
        let area = (shape.y * shape.x) as u64;
        let fixed = |name: &str, bytes: u64| budget.fixed(name, Bytes(bytes));
        let plan = &self.config.plan;
        let tiles = u64::from(plan.beams) * u64::from(plan.mfovs_per_section);
        let tile = u64::from(plan.tile_px.x) * u64::from(plan.tile_px.y);
        fixed("ledger cache", Ledger::CACHE.0);
        // Measures, matches and places; as many sections again may wait for an earlier one to be aligned, and a few for later ones.
        let open = u64::from(stages.edges.open_sections.min(plan.sections));
        let held = u64::from(stages.align.lag) + 1;
        fixed("records of open sections", (2 * open + held) * tiles * 4096);
        // One more pair at a time where retakes are matched.
        fixed("match working", (self.workers() as u64 + 1) * 2 * tile);
        fixed("align references", Aligner::held_bytes(&stages.align, area));
        fixed("align working", Aligner::working_bytes(&stages.align, area));
        // Nine bytes a pixel of a band, the band itself, and one row of chunks at every level.
        let band = shape.x as u64 * (512 * 10 + 2 * u64::from(stages.volume.chunk_px));
        // Blocks of equalised contrast draw a rim of cells around themselves.
        let clahe = &stages.render.clahe;
        let rim = if clahe.enabled { (BAND_PX as u64 + 3 * u64::from(clahe.cell_px)).pow(2) } else { 0 };
        fixed("render bands", band + rim);
        if let Some(r) = self.mask_reduction.filter(|_| !self.config.nominal.mask) {
            let plane = self.plane(r);
            fixed("mask working", mask_bytes(plane, self.config.mask.as_deref()) + SESSION.0);
        }
        if let (Some(plan), Some((shape, _))) = (&self.flood, self.labels()) {
            fixed("flood window and blocks", plan.bytes(shape, self.workers()));
            fixed("flood networks", SESSION.0 * self.workers() as u64);
        }
        if let Some((plan, window, workers)) = self.light() {
            fixed("provisional labels", plan.bytes(window, workers) + SESSION.0 * workers as u64);
        }
    }

    /// Of the provisional labels: plan, window, threads. `None` where there are none, or the coarser volume is smaller than
    /// what the network sees at a time.
    fn light(&self) -> Option<(FloodPlan, Zyx<usize>, usize)> {
        let (model, r) = (self.config.flood.as_ref().filter(|_| self.config.light)?, self.label_reduction?);
        let (fov, plane) = (model.manifest().shape, self.plane(2 * r));
        let fits = plane.y >= fov.y && plane.x >= fov.x && self.image.shape.z >= fov.z;
        let rules = FloodRules::of(model).ok().filter(|_| fits)?;
        let plan = self.light_config(fov.z).resolve(&rules).ok()?;
        // Half the side and a quarter of the fields of view: an eighth of the work, for a quarter of the threads.
        Some((plan, Zyx::new(fov.z, plane.y, plane.x), self.workers().div_ceil(4)))
    }

    fn light_config(&self, window: usize) -> FloodConfig {
        let full = &self.config.stages.segment.flood;
        let skip_explored = full.skip_explored.max(SKIP_EXPLORED);
        FloodConfig {
            window: Some(window),
            skip_explored,
            join: full.join.clone(),
            batch: full.batch,
            ..Default::default()
        }
    }

    pub(super) fn provisional_box(
        &self,
        factory: &NetworkFactory,
        commits: &Arc<Commits>,
        telemetry: &Arc<Telemetry>,
        gate: &Arc<Gate>,
    ) -> Result<ProvisionalBox, StopError> {
        let light = match (self.light(), &self.config.flood, self.label_reduction) {
            (Some((_, window, workers)), Some(model), Some(r)) => {
                let nm = self.config.plan.pixel_size_nm * 2.0 * r as f64;
                let voxel_size = VoxelSize(Zyx::new(self.config.plan.thickness_nm, nm, nm));
                let shape = Zyx::new(self.image.shape.z, window.y, window.x);
                let chunk = Zyx::new(1, 64, 64);
                Some(Light {
                    config: self.light_config(window.z),
                    model: model.clone(),
                    voxel_size,
                    window,
                    workers,
                    factory: lent(factory),
                    image: Reduced::open(&self.config.out.join("volume/image"), 2 * r)?,
                    gaps: self.gaps(),
                    mask: self.exclusion(2 * r)?,
                    labels: LabelSpec { shape, voxel_size, origin: Zyx::new(0, 0, 0), chunk },
                    path: self.config.out.join("volume/labels_light"),
                })
            }
            _ => None,
        };
        let (gate, commits, telemetry) = (gate.clone(), commits.clone(), telemetry.clone());
        Ok(ProvisionalBox { gate, light, commits, telemetry, held: Vec::new(), begin: 0 })
    }

    fn gaps(&self) -> Gaps {
        Gaps::new(self.config.stages.segment.flood.bridge, Some(self.config.out.clone()))
    }

    /// What is kept out of a segmentation at this reduction.
    fn exclusion(&self, r: usize) -> Result<Option<Exclusion>, StopError> {
        let Some(m) = self.mask_reduction.filter(|_| !self.config.nominal.mask) else { return Ok(None) };
        self.mask_writer(m)?;
        let classes = level_of(&self.config.out.join("volume/mask"), 0)?;
        Ok(Some(Exclusion { classes, scale: m as f64 / r as f64, excluded: self.excluded() }))
    }

    pub(super) fn image_writer(&self) -> Result<ImageWriter, StopError> {
        Ok(ImageWriter::create(&self.config.out.join("volume/image"), self.image.clone())?)
    }

    pub(super) fn mask_box(
        &self,
        factory: &NetworkFactory,
        commits: &Arc<Commits>,
        telemetry: &Arc<Telemetry>,
    ) -> Result<MaskBox, StopError> {
        let (model, r) = match (&self.config.mask, self.mask_reduction) {
            (Some(model), Some(r)) => (model, r),
            _ => return Err(std::io::Error::other("the mask stage has no model").into()),
        };
        let masker = Masker::new(
            &self.config.stages.mask.network,
            model,
            self.config.plan.pixel_size_nm * r as f64,
            factory()?,
        )?;
        let image = Reduced::open(&self.config.out.join("volume/image"), r)?;
        let (commits, telemetry) = (commits.clone(), telemetry.clone());
        Ok(MaskBox { masker, image, mask: self.mask_writer(r)?, commits, telemetry })
    }

    fn mask_writer(&self, r: usize) -> Result<ImageWriter, StopError> {
        let plane = self.plane(r);
        let nm = self.config.plan.pixel_size_nm * r as f64;
        let spec = ImageSpec {
            shape: Zyx::new(self.image.shape.z, plane.y, plane.x),
            voxel_size: VoxelSize(Zyx::new(self.config.plan.thickness_nm, nm, nm)),
            levels: 1,
            chunk: self.image.chunk,
            reduce: Reduce::Mode,
        };
        Ok(ImageWriter::create(&self.config.out.join("volume/mask"), spec)?)
    }

    /// By class of the mask's model, whether it is kept out of the segmentation.
    fn excluded(&self) -> Vec<bool> {
        let rules = self.config.mask.as_ref().and_then(|m| m.mask().ok());
        let classes = rules.map(|r| r.classes.clone()).unwrap_or_default();
        let named = self.config.stages.mask.network.exclude.clone();
        classes.iter().enumerate().map(|(i, c)| named.as_ref().map_or(i > 0, |n| n.contains(c))).collect()
    }

    pub(super) fn flood_box(
        &self,
        factory: &NetworkFactory,
        commits: &Arc<Commits>,
        (telemetry, gate): (&Arc<Telemetry>, &Arc<Gate>),
        meter: &Arc<FloodMeter>,
    ) -> Result<FloodBox, StopError> {
        let (Some(model), Some(r), Some((shape, voxel_size)), Some(plan)) =
            (&self.config.flood, self.label_reduction, self.labels(), &self.flood)
        else {
            return Err(std::io::Error::other("the flood stage has no model").into());
        };
        let workers = self.workers();
        let (config, mut extras) = FloodExtras::open(&self.config.stages.segment.flood, &self.config.out, shape)
            .map_err(|faults| std::io::Error::other(faults.join("; ")))?;
        if config.probability {
            extras = extras.with_probability(shape, voxel_size)?;
        }
        let mut flood = RollingFlood::new(&config, model, voxel_size, shape, workers, factory)?;
        if let Some(store) = Checkpoints::every(&self.config.out, config.checkpoint_seconds) {
            flood = flood.kept_in(store);
        }
        let first = plan.span(0, usize::MAX);
        let second = plan.span(first.commit, usize::MAX);
        let thickness = chunk_thickness(first.commit - first.open, second.commit - second.open);
        let spec = LabelSpec { shape, voxel_size, origin: Zyx::new(0, 0, 0), chunk: Zyx::new(thickness, 64, 64) };
        Ok(FloodBox {
            flood,
            workers,
            image: Reduced::open(&self.config.out.join("volume/image"), r)?,
            gaps: self.gaps(),
            mask: self.exclusion(r)?,
            extras,
            labels: LabelWriter::create(&self.config.out.join("volume/labels"), spec)?,
            out: self.config.out.clone(),
            commits: commits.clone(),
            telemetry: telemetry.clone(),
            meter: meter.clone(),
            gate: gate.clone(),
        })
    }
}

/// What the mask stage holds for a section of this many pixels: its image, and a float a class and one more for each.
pub(super) fn mask_bytes(plane: Xy<usize>, model: Option<&Model>) -> u64 {
    let classes = model.and_then(|m| m.mask().ok()).map_or(0, |r| r.classes.len());
    (plane.x * plane.y * (4 * (classes + 1) + 6)) as u64
}

/// First pixel and shape of the published volume: the planned extent and its margin, rounded up so that every level divides.
fn frame(stages: &StagesConfig, plan: &RunPlan, coarsest: u32) -> (Xy<i64>, ImageSpec) {
    let margin = i64::from(stages.volume.margin_px);
    let (min, size) = (plan.extent.min, plan.extent.size());
    let levels = (stages.volume.levels as usize).max(coarsest as usize + 1);
    let step = 1 << (levels - 1);
    let side = |n: usize| (n + 2 * margin as usize).next_multiple_of(step);
    let nm = plan.pixel_size_nm;
    let image = ImageSpec {
        shape: Zyx::new(plan.sections as usize, side(size.y), side(size.x)),
        voxel_size: VoxelSize(Zyx::new(plan.thickness_nm, nm, nm)),
        levels,
        chunk: Xy::new(stages.volume.chunk_px as usize, stages.volume.chunk_px as usize),
        reduce: Reduce::Mean,
    };
    (Xy::new(min.x - margin, min.y - margin), image)
}
