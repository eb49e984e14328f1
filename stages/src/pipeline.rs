//! The picture, wired: the only place where stages are joined.
//!
//! ```text
//! link ─ingest─► inspect ─inspected─► archive ─stored─► gather ─pairs─► match ─matched─► montage ─montaged─► align
//!        pixels            pixels              records          records         records           records      │ aligned
//!                                                                                                              ▼ records
//!                 publish ◄──── flood, agglomerate ◄─masked─ mask ◄─rendered─ render ◄─────────────────────────┘
//! ```
//! Pixels are on the two first edges only. From the archive on, edges carry ids and records; whoever needs pixels reads them
//! back by id, within the bytes of its own pool. No edge leads back, every edge takes one item when it is empty, and no
//! box keeps a metered item between calls: so the last box can always finish, hence the one before it, hence all.
//!
//! Retakes of a section that has ended go from gather to render on the same edge: they make a version of their own there,
//! beside the one that was published. That edge leads forward too.
//!
//! The [`Gate`] is where the governor makes them wait: the archive takes no tiles, the flood pauses and its sections wait as
//! numbers, with provisional labels where there is time for those.
//!
//! Each box skips what `DIR` already holds, so the same wiring serves a new run, a restart and recorded data.

mod aligning;
mod cells;
mod checkpoints;
mod commits;
mod config;
mod extras;
mod faults;
mod front;
mod gaps;
mod gate;
mod gather;
mod gathering;
mod late;
mod layout;
mod matching;
mod montaging;
mod offline;
mod provisional;
mod quality;
mod rendering;
mod reslice;
mod revising;
mod segmenting;
mod telemetry;
mod tiles;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kinesin_backpressure::{Budget, Bytes, Cost, Pool, Receiver, Sender, edge};
use kinesin_stream::ledger::Ledger;
use kinesin_stream::runner::Runner;
use kinesin_stream::stage::{Flow, StopError};
use kinesin_stream::tile::Tile;

pub use aligning::{AlignmentFile, FlowFile, VolumeAlignment};
pub use commits::{Commit, Commits};
pub use config::{EdgesConfig, MaskStage, SegmentStage, StagesConfig, VolumeConfig};
pub use extras::{KnownLabels, labels_at};
pub use front::Receipt;
pub use gate::Gate;
pub use gather::{Closed, Gather, MfovDone};
pub use layout::{Layout, LineConfig, Nominal};
pub use offline::{VolumeJob, flood_faults, flood_volume, mask_volume};
pub use revising::RevisionFile;
pub use segmenting::{Exclusion, FloodMeter};
pub use telemetry::{Moment, SectionTimes, StageName, StageRow, Telemetry};
pub use tiles::{SectionError, StoreError, TileStore, crop};

use crate::archive::Archive;
use crate::pointmatch::Matcher;
use crate::render::Renderer;
use crate::runtime::NetworkFactory;
use aligning::AlignBox;
use faults::FaultLog;
use front::{InspectStage, Inspected};
use late::Late;
use matching::{MontageInput, PairJob};
use montaging::{MontageBox, Montaged, SectionSolver};
use rendering::{RenderBox, RenderInput, Rendered};
use reslice::Reslice;
use revising::Reviser;
use tiles::TileCache;

type Edge<T> = (Sender<T>, Receiver<T>);

/// Every edge and pool of the line, on the budget sheet; nothing runs yet and nothing is written.
pub struct Line {
    layout: Layout,
    ingest: Edge<Flow<Tile>>,
    inspected: Edge<Flow<Inspected>>,
    stored: Edge<MfovDone>,
    pairs: Edge<PairJob>,
    matched: Edge<MontageInput>,
    montaged: Edge<Montaged>,
    aligned: Edge<RenderInput>,
    rendered: Edge<Rendered>,
    masked: Edge<Rendered>,
    align_tiles: Pool,
    render_tiles: Pool,
    gate: Arc<Gate>,
}

/// Where durable tiles come from.
pub enum Source {
    /// From the link, through inspect and archive.
    Live {
        /// Pixels.
        archive: Archive,
        /// States.
        ledger: Ledger,
        /// Told of every durable mFOV.
        receipt: Receipt,
    },
    /// They are there already; the caller feeds [`Line::stored`].
    Recorded(Arc<dyn TileStore>),
}

/// What the networks of the line are made with; `None` where the stage does not run.
#[derive(Clone, Default)]
pub struct Factories {
    /// Of the mask stage.
    pub mask: Option<NetworkFactory>,
    /// Of the flood stage, one network a worker.
    pub flood: Option<NetworkFactory>,
}

impl Line {
    /// Makes the edges. Their lines, and the fixed ones of each stage, go onto `budget`.
    pub fn open(config: LineConfig, budget: &Budget) -> Result<Self, Vec<String>> {
        let layout = Layout::of(config)?;
        let edges = layout.config.stages.edges.clone();
        layout.enter(budget);
        fn small<T: Cost + Send + Sync + 'static>(budget: &Budget, name: &'static str, capacity: Bytes) -> Edge<T> {
            edge(budget, name, capacity)
        }
        Ok(Self {
            ingest: small(budget, "ingest", edges.ingest),
            inspected: small(budget, "inspected", edges.inspected),
            stored: small(budget, "stored", edges.records),
            pairs: small(budget, "pairs", edges.records),
            matched: small(budget, "matched", edges.records),
            montaged: small(budget, "montaged", edges.records),
            aligned: small(budget, "aligned", edges.records),
            rendered: small(budget, "rendered", edges.records),
            masked: small(budget, "masked", edges.records),
            align_tiles: Pool::new(budget, "align tiles", edges.tiles),
            render_tiles: Pool::new(budget, "render tiles", edges.tiles),
            layout,
            gate: Arc::default(),
        })
    }

    /// Where the link puts tiles and losses.
    pub fn ingest(&self) -> Sender<Flow<Tile>> {
        self.ingest.0.clone()
    }

    /// Where recorded data and restarts put mFOVs whose tiles are durable already.
    pub fn stored(&self) -> Sender<MfovDone> {
        self.stored.0.clone()
    }

    /// Where the governor says what the line does now.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Shape and resolution of what will be published.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts every box, from the last to the first. The line ends when all senders of its first edges are gone.
    ///
    /// # Errors
    /// Where a volume or a network cannot be opened.
    pub fn start(
        self,
        runner: &Runner,
        source: Source,
        factories: &Factories,
        telemetry: &Arc<Telemetry>,
        meter: &Arc<FloodMeter>,
    ) -> Result<(), StopError> {
        let layout = &self.layout;
        let config = &layout.config;
        let out: PathBuf = config.out.clone();
        let commits = Arc::new(Commits::open(&out)?);
        let renderer = Renderer::new(config.stages.render.clone())?;
        let image = layout.image_writer()?;
        let store: Arc<dyn TileStore> = match &source {
            Source::Live { archive, .. } => Arc::new(archive.clone()),
            Source::Recorded(store) => store.clone(),
        };

        let masked = if let Some(factory) = &factories.flood {
            let mut flood = layout.flood_box(factory, &commits, (telemetry, &self.gate), meter)?;
            runner.spawn("flood", move |run| flood.work(Gate::next, run));
            let mut provisional = layout.provisional_box(factory, &commits, telemetry, &self.gate)?;
            let masked = self.masked.1;
            runner.spawn("provisional", move |run| provisional.work(masked, run));
            self.masked.0
        } else {
            runner.spawn("flood", move |run| drain(&self.masked.1, run));
            self.masked.0
        };

        let rendered = self.rendered.1;
        match &factories.mask {
            Some(factory) => {
                let mut mask = layout.mask_box(factory, &commits, telemetry)?;
                runner.spawn("mask", move |run| mask.work((rendered, masked), run));
            }
            None => runner.spawn("mask", move |run| pass(&rendered, &masked, run)),
        }

        let tiles = TileCache::new(store.clone(), self.render_tiles);
        let telemetry = telemetry.clone();
        let ledger = match &source {
            Source::Live { ledger, .. } => Some(ledger.clone()),
            Source::Recorded(_) => None,
        };
        let solver = SectionSolver {
            config: config.stages.montage.clone(),
            nominal: config.nominal.stitch,
            pixel_nm: config.plan.pixel_size_nm,
        };
        let desk = Arc::new(Mutex::new(()));
        let late = Late {
            config: config.stages.align.clone(),
            nominal: config.nominal.align,
            origin: layout.origin,
            desk: desk.clone(),
        };
        let reviser = Reviser {
            late,
            solver: solver.clone(),
            inspect: config.stages.inspect.clone(),
            matcher: Matcher::new(config.stages.pointmatch.clone()),
            renderer: renderer.clone(),
            image: image.spec().clone(),
            out: out.clone(),
            commits: commits.clone(),
            ledger: ledger.clone(),
            telemetry: telemetry.clone(),
        };
        let mut render = RenderBox {
            renderer: renderer.clone(),
            tiles,
            reslice: Reslice::open(&out.join("volume"), image.spec().shape)?,
            image,
            commits,
            ledger: ledger.clone(),
            reviser,
            telemetry: telemetry.clone(),
            gate: self.gate.clone(),
        };
        let (aligned, rendered) = (self.aligned.1, self.rendered.0);
        runner.spawn("render", move |run| render.work((aligned, rendered), run));

        let mut align = AlignBox {
            config: config.stages.align.clone(),
            nominal: config.nominal.align,
            sections: config.plan.sections,
            origin: layout.origin,
            desk,
            renderer: renderer.plain(),
            tiles: TileCache::new(store.clone(), self.align_tiles),
            out: out.clone(),
            telemetry: telemetry.clone(),
        };
        let (montaged, aligned, revisions) = (self.montaged.1, self.aligned.0.clone(), self.aligned.0);
        runner.spawn("align", move |run| align.work((montaged, aligned), run));

        let montage = MontageBox {
            open_sections: 2 * config.stages.edges.open_sections as usize,
            solver,
            out: out.clone(),
            ledger,
            telemetry: telemetry.clone(),
        };
        let (matched, montaged) = (self.matched.1, self.montaged.0);
        runner.spawn("montage", move |run| montage.work((matched, montaged), run));

        let faults = Arc::new(FaultLog::new(out.clone(), config.plan.pixel_size_nm));
        for _ in 0..config.workers.max(1) {
            let (store, telemetry, faults) = (store.clone(), telemetry.clone(), faults.clone());
            let matcher = Matcher::new(config.stages.pointmatch.clone());
            let edges = (self.pairs.1.clone(), self.matched.0.clone());
            runner.spawn("match", move |run| matching::work(matcher, &*store, (&telemetry, &faults), edges, run));
        }

        let open_sections = config.stages.edges.open_sections;
        let gather = Gather::new(config.stages.inspect.clone(), config.stages.pointmatch.clone());
        let (stored, pairs, matched) = (self.stored.1, self.pairs.0, self.matched.0);
        let counted = telemetry.clone();
        let edges = (stored, pairs, matched, revisions);
        runner.spawn("gather", move |run| {
            gathering::work((gather, open_sections), (&out, &faults), &counted, edges, run)
        });

        if let Source::Live { archive, ledger, receipt } = source {
            let earlier = gathering::earlier(&ledger)?;
            let (tiles, stored) = (self.inspected.1, self.stored.0.clone());
            let (known, recalled) = (ledger.clone(), self.stored.0);
            runner.spawn("recall", move |run| gathering::recall(&known, earlier, &recalled, run));
            let (counted, gate) = (telemetry.clone(), self.gate.clone());
            runner.spawn("archive", move |run| {
                front::archive((&archive, &ledger), &receipt, (&counted, &gate), (tiles, stored), run)
            });
            let inspect = config.stages.inspect.clone();
            let make = || InspectStage { config: inspect.clone(), telemetry: telemetry.clone() };
            runner.stage("inspect", config.workers, make, self.ingest.1, self.inspected.0);
        }
        Ok(())
    }
}

/// The flood stage does not run: sections end here.
fn drain(rendered: &Receiver<Rendered>, run: &kinesin_stream::runner::RunToken) -> Result<(), StopError> {
    while rendered.recv_blocking().is_some() {}
    Ok(run.check()?)
}

/// The mask stage does not run: sections go on unmasked.
fn pass(
    rendered: &Receiver<Rendered>,
    masked: &Sender<Rendered>,
    run: &kinesin_stream::runner::RunToken,
) -> Result<(), StopError> {
    while let Some(section) = rendered.recv_blocking() {
        masked.send_blocking(*section)?;
    }
    Ok(run.check()?)
}
