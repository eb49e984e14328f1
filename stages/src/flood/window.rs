//! Flooding a volume that arrives section by section: a window that rolls along z, cut into blocks in y and x.
//!
//! ```text
//!  z ──►   first        open                commit      end
//!           │ head (labels known) │  new labels  │ tail (seen, left to the next window) │
//!  y, x:   block = own area + halo; every voxel is written by the one block that owns it
//! ```
//!
//! In each window a block first continues the objects of the head from their own voxels, then starts new ones. Blocks of a
//! window know nothing of each other, so any number of workers gives the same bytes. Labels that blocks found in parallel are
//! joined where they coincide in the halos (see `agglomerate`); labels written once never change. A window depends on the
//! labels, images and masks of the sections before it and on nothing else, which is what a restart brings back.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::blocks::{BlockOptions, Flooded, HeldSections};
use super::canvas::CheckpointError;
use super::config::{FloodConfig, Span};
use super::counters::FloodCounters;
use super::drive::{DriveError, Watch};
use super::ids::{MOST_BLOCKS, window_of};
use super::policies::SeedPolicy;
use super::rules::FloodRules;
use super::sections::{FloodSection, LabelledSection, SectionRules};
use super::store::{BlockKey, BlockStore};
use crate::agglomerate::resolve;
use crate::model::{Model, ModelError, Normalisation};
use crate::runtime::{Network, NetworkError, NetworkFactory, RuntimeError};

/// Why a volume cannot be flooded.
#[derive(Debug, thiserror::Error)]
pub enum FloodError {
    /// Settings that contradict the network or the volume; all of them.
    #[error("flood settings: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The model is of another kind.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No network for a worker.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A section that does not fit the volume.
    #[error("section {z}: {what}")]
    Section {
        /// Its place in the volume.
        z: usize,
        /// What is wrong.
        what: String,
    },
    /// A number that the layout of label ids does not hold.
    #[error(
        "label ids run out at block y {block_y}, x {block_x}, window {window}, object {count}; use larger blocks or windows"
    )]
    Ids {
        /// Block row.
        block_y: usize,
        /// Block column.
        block_x: usize,
        /// Window.
        window: usize,
        /// Object.
        count: usize,
    },
    /// The network gives no numbers.
    #[error(
        "the network answered 16 times in a row with what is no finite number, in block y {block_y}, x {block_x} of window {window}; check the model file and its normalisation, or use --precision f32"
    )]
    NotFinite {
        /// Block row.
        block_y: usize,
        /// Block column.
        block_x: usize,
        /// Window.
        window: usize,
    },
    /// A half-done block cannot be taken up.
    #[error("checkpoint of {key}: {source}")]
    Checkpoint {
        /// The block.
        key: BlockKey,
        /// What is wrong.
        source: CheckpointError,
    },
    /// The place of half-done blocks cannot be read.
    #[error("checkpoints: {0}")]
    Store(#[from] std::io::Error),
    /// The watch asked for it.
    #[error("stopped on request")]
    Stopped,
}

impl From<DriveError> for FloodError {
    fn from(e: DriveError) -> Self {
        match e {
            DriveError::Network(e) => Self::Network(e),
            DriveError::Stopped => Self::Stopped,
        }
    }
}

/// The labels of one window: final, to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowResult {
    /// Which sections were seen; labels are those of `open..commit`.
    pub span: Span,
    /// `[z, y, x]`, first section `span.open`; 0 is no object.
    pub labels: Array3<u64>,
    /// Merges of labels of earlier windows that this one brought to light; rows for the table, smaller id first.
    pub equivalences: Vec<(u64, u64)>,
    /// Counts over all blocks (their halos included, so some voxels count twice).
    pub counters: FloodCounters,
    /// Where the objects began, in order of blocks and floods.
    pub origins: Vec<ObjectOrigin>,
    /// Where asked for: of each voxel the probability in its object, 1 to 255 for (0, 1], 0 where there is none.
    pub probability: Option<Array3<u8>>,
}

/// Where an object of a window began and what it took; a row of `volume/origins.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectOrigin {
    /// The id under which its voxels are written.
    pub id: u64,
    /// The id of this very flood; another one where it was joined to an object of another block or window.
    pub found: u64,
    /// The window.
    pub window: usize,
    /// Where the flood began, voxels of the volume.
    pub start: Zyx<usize>,
    /// Whether it went on with an object of earlier sections.
    pub continued: bool,
    /// Fields of view that were run for it.
    pub evaluations: u64,
    /// Voxels it got, the block's halo included.
    pub voxels: u64,
}

/// See the module.
pub struct RollingFlood {
    networks: Vec<Box<dyn Network>>,
    held: HeldSections,
    total: usize,
    committed: usize,
}

impl RollingFlood {
    /// A flood of a volume of this planned shape with `workers` threads, each with a network of its own.
    ///
    /// # Errors
    /// Where settings, model and shape contradict each other, or a network cannot be made.
    pub fn new(
        config: &FloodConfig,
        model: &Model,
        size: VoxelSize,
        shape: Zyx<usize>,
        workers: usize,
        factory: &NetworkFactory,
    ) -> Result<Self, FloodError> {
        Self::with_rules(config, FloodRules::of(model)?, model.manifest().normalisation, size, shape, workers, factory)
    }

    /// As [`RollingFlood::new`] for rules of any source (tests, benches).
    ///
    /// # Errors
    /// As there.
    pub fn with_rules(
        config: &FloodConfig,
        rules: FloodRules,
        normalisation: Normalisation,
        size: VoxelSize,
        shape: Zyx<usize>,
        workers: usize,
        factory: &NetworkFactory,
    ) -> Result<Self, FloodError> {
        let plan = config.resolve(&rules).map_err(FloodError::Config)?;
        let fov = plan.rules.fov();
        let mut faults = unread(config);
        let options = BlockOptions {
            sections: SectionRules {
                normalisation,
                histogram: config.histogram.clone(),
                masks: config.masks.clone(),
                shift: config.shift.clone(),
            },
            seeds: config.seeds.clone(),
            probability: config.probability,
            split_pieces: config.split_pieces,
            store: None,
        };
        let held = HeldSections::new(plan, options, size, shape);
        if shape.z < fov.z || shape.y < fov.y || shape.x < fov.x {
            faults.push(format!("the volume {shape:?} is smaller than the network's field of view {fov:?}"));
        }
        if held.blocks.iter().any(|b| b.place.x >= MOST_BLOCKS || b.place.y >= MOST_BLOCKS) {
            faults.push(format!(
                "more than {MOST_BLOCKS} blocks along an axis, raise flood.core above {}",
                held.plan.core
            ));
        }
        if workers == 0 {
            faults.push("0 workers, use 1 or more".into());
        }
        if !faults.is_empty() {
            return Err(FloodError::Config(faults));
        }
        let networks = (0..workers.min(held.blocks.len())).map(|_| factory()).collect::<Result<_, _>>()?;
        Ok(Self { networks, held, total: shape.z, committed: 0 })
    }

    /// With a place where half-done blocks are kept, so that a killed run goes on within its window.
    #[must_use]
    pub fn kept_in(mut self, store: Arc<dyn BlockStore>) -> Self {
        self.held.options.store = Some(store);
        self
    }

    /// Sections whose labels are final.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// The section wanted next.
    pub fn next_section(&self) -> usize {
        self.held.end()
    }

    /// First section that a restart must bring when the labels of the sections before `committed` are written.
    pub fn context_from(&self, committed: usize) -> usize {
        committed.saturating_sub(self.held.plan.context())
    }

    /// Goes on where an earlier run stopped: `written` are the sections from [`RollingFlood::context_from`]`(committed)` up to
    /// `committed`, which must be the end of a window. Sections from `committed` on are pushed again.
    ///
    /// # Errors
    /// Where a section does not fit, or their number does not.
    pub fn resume(&mut self, committed: usize, written: Vec<LabelledSection>) -> Result<(), FloodError> {
        let first = self.context_from(committed);
        if committed - first != written.len() || self.held.end() > self.held.first {
            let what = format!(
                "{} sections of context given, {} wanted before anything is pushed",
                written.len(),
                committed - first
            );
            return Err(FloodError::Section { z: committed, what });
        }
        self.held.first = first;
        self.committed = committed;
        for w in written {
            let z = self.next_section();
            self.held.fits(z, w.labels.dim())?;
            self.held.push(w.section, Some(w.labels))?;
        }
        Ok(())
    }

    /// Takes the next section; runs a window when its last section has come.
    ///
    /// # Errors
    /// Where the section does not fit, the network fails, or the watch says stop. After an error of the network the same
    /// state can be reached again with [`RollingFlood::resume`].
    pub fn push_section(
        &mut self,
        section: FloodSection,
        watch: &Watch<'_>,
    ) -> Result<Option<WindowResult>, FloodError> {
        if self.next_section() >= self.total {
            return Err(FloodError::Section {
                z: self.next_section(),
                what: format!("the volume was planned with {} sections", self.total),
            });
        }
        self.held.push(section, None)?;
        let span = self.held.plan.span(self.committed, self.total);
        if self.next_section() == span.end { self.run(span, watch).map(Some) } else { Ok(None) }
    }

    /// Labels what is left when the volume ends early; `None` where nothing is.
    ///
    /// # Errors
    /// As [`RollingFlood::push_section`].
    pub fn finish(&mut self, watch: &Watch<'_>) -> Result<Option<WindowResult>, FloodError> {
        let total = self.next_section();
        if self.committed >= total {
            self.held.options.store.as_ref().map_or(Ok(()), |s| s.forget_before(usize::MAX))?;
            return Ok(None);
        }
        let span = self.held.plan.span(self.committed, total);
        self.run(span, watch).map(Some)
    }

    fn run(&mut self, span: Span, watch: &Watch<'_>) -> Result<WindowResult, FloodError> {
        // windows before this one are written
        self.held.options.store.as_ref().map_or(Ok(()), |s| s.forget_before(span.window))?;
        let flooded = self.flood_blocks(span, watch)?;
        let mut joins = self.held.joins_of_halos(span, &flooded);
        joins.extend(self.held.joins_with_known(&flooded));
        let resolution = resolve(&joins, |id| window_of(id) < span.window);
        let labels = self.held.compose(span, &flooded, &resolution.written);
        let origins = self.held.origins(span, &flooded, &resolution.written);
        let probability = self.held.compose_probability(span, &flooded);
        let mut counters = FloodCounters::default();
        flooded.iter().for_each(|f| counters.add(&f.result.counters));
        self.held.write(span.open, &labels);
        self.committed = span.commit;
        self.held.forget_before(self.context_from(self.committed));
        Ok(WindowResult { span, labels, equivalences: resolution.rows, counters, origins, probability })
    }

    /// Floods every block of a window; the order of results is that of the blocks.
    fn flood_blocks(&mut self, span: Span, watch: &Watch<'_>) -> Result<Vec<Flooded>, FloodError> {
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for network in &mut self.networks {
                let (held, next, done) = (&self.held, &next, &done);
                scope.spawn(move || {
                    let result = held.work(span, next, network.as_mut(), watch);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                });
            }
        });
        let mut flooded = BTreeMap::new();
        for result in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            flooded.extend(result?);
        }
        Ok(flooded.into_values().collect())
    }
}

/// Files that the settings name and nobody has read.
fn unread(config: &FloodConfig) -> Vec<String> {
    let lists = config.seeds.iter().filter_map(|p| match p {
        SeedPolicy::List { file, points: None, .. } => Some(file),
        _ => None,
    });
    let reference = config.histogram.iter().filter(|h| h.counts.is_none()).map(|h| &h.reference);
    lists.chain(reference).map(|path| format!("{} was not read", path.display())).collect()
}

#[cfg(test)]
mod tests;
