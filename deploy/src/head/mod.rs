//! The head in one process: ledger, archive, link and line, from their opening to the report.

mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kinesin_acquire::admit::{self, AdmitConfig, AdmitSummary};
use kinesin_acquire::throttle::Throttled;
use kinesin_backpressure::governor::Rung;
use kinesin_backpressure::{Budget, DiskLimits};
use kinesin_sim::scenario::Side;
use kinesin_stages::archive::Archive;
use kinesin_stages::pipeline::{Factories, FloodMeter, Gate, Line, LineConfig, Moment, Source, Telemetry};
use kinesin_stages::runtime::ChosenProvider;
use kinesin_stream::ledger::{Ledger, LedgerError, PlanDigest};
use kinesin_stream::link::{Head, HeadConfig, HeadSummary, Keys};
use kinesin_stream::plan::RunPlan;
use kinesin_stream::runner::{RunError, Runner, StopHandle};
use tokio::runtime::Runtime as Tokio;

use crate::cli::RunArgs;
use crate::events::EventLog;
use crate::govern::{GovernSection, GovernThread, Governed, GovernorReport, ScopeReport, spool_reading};
use crate::instrument::Opened;
use crate::outcome::Failure;
use crate::progress::Progress;
use crate::site::SiteFile;
use crate::{events, metrics, prepare, scenario};

/// Everything the head holds while it runs.
pub(crate) struct HeadSide {
    config: LineConfig,
    chosen: Option<ChosenProvider>,
    factories: Factories,
    pub(crate) acquisition: PlanDigest,
    /// What a fault scenario makes of the scope's disk, where the scope is in this process.
    pub(crate) scope_disk: DiskLimits,
    out: PathBuf,
    pub(crate) budget: Budget,
    runner: Runner,
    pub(crate) tokio: Tokio,
    ledger: Ledger,
    archive: Archive,
    line: Option<Line>,
    head: Option<Head>,
    received: HeadSummary,
    telemetry: Arc<Telemetry>,
    meter: Arc<FloodMeter>,
    govern: GovernSection,
    gate: Arc<Gate>,
    pub(crate) events: Arc<EventLog>,
    thread: Option<GovernThread>,
    governed: GovernorReport,
}

impl HeadSide {
    /// `sides` are those that this process is, for the fault scenario.
    pub(crate) fn open(
        site: &SiteFile,
        args: &RunArgs,
        out: &Path,
        plan: &RunPlan,
        sides: &[Side],
    ) -> Result<Self, Failure> {
        let inside = scenario::inside(args.scenario.as_deref(), sides)?;
        if let Some(recorded) = &site.instrument.recorded {
            prepare::apart(&recorded.path, out)?;
        }
        prepare::room(site, plan)?;
        let config = prepare::line(site, plan, out, &args.nominal)?;
        let budget = Budget::new();
        let line = Line::open(config.clone(), &budget).map_err(|faults| Failure::Input(faults.join("\n")))?;
        let (factories, chosen) = prepare::factories(&config, &site.compute)?;
        let digest = prepare::digest(site, &config, chosen.as_ref());
        prepare::folder(out, args.overwrite)?;
        let ledger = Ledger::open(out, digest).map_err(|e| match e {
            LedgerError::InUse { .. } | LedgerError::OtherPlan { .. } | LedgerError::OtherVersion { .. } => {
                Failure::input(e)
            }
            other => Failure::fault(other),
        })?;
        let ledger = ledger.on_clock(inside.points.clock.clone());
        let archive = Archive::open_on(out, ledger.clone(), inside.head_disk).map_err(Failure::fault)?;
        let events = Arc::new(EventLog::open(out, inside.points.clock.clone()).map_err(Failure::fault)?);
        events::ledger(events.clone(), &ledger);
        let runner = Runner::with_points(&budget, inside.points);
        let tokio = tokio()?;
        interrupts(&tokio, runner.stop_handle());
        if let Some(address) = site.metrics.address {
            let address = metrics::serve(address, tokio.handle())?;
            tracing::info!("metrics at http://{address}/metrics");
        }
        Ok(Self {
            govern: site.govern.clone(),
            gate: line.gate(),
            events,
            thread: None,
            governed: GovernorReport::default(),
            config,
            chosen,
            factories,
            acquisition: prepare::acquisition(site, plan),
            scope_disk: inside.scope_disk,
            out: out.to_path_buf(),
            budget,
            runner,
            tokio,
            ledger,
            archive,
            line: Some(line),
            head: None,
            received: HeadSummary::default(),
            telemetry: Arc::new(Telemetry::default()),
            meter: Arc::new(FloodMeter::default()),
        })
    }

    pub(crate) fn listen(&mut self, site: &SiteFile, keys: Keys) -> Result<SocketAddr, Failure> {
        let Some(line) = &self.line else { return Err(Failure::Fault("the line has started already".into())) };
        let bind = site.link.address.parse().map_err(Failure::input)?;
        let config = HeadConfig { bind, keys, digest: self.acquisition, settings: site.link.settings.clone() };
        let head = Head::bind(
            self.tokio.handle(),
            &self.runner,
            &self.budget,
            config,
            self.ledger.clone(),
            line.ingest(),
            |_section| {},
        )
        .map_err(Failure::input)?;
        let address = head.local_addr();
        self.head = Some(head);
        Ok(address)
    }

    /// Whether an earlier process of this run heard that the scope is done. Then there is nobody to listen to.
    pub(crate) fn scope_has_ended(&self) -> Result<bool, Failure> {
        self.ledger.has_ended().map_err(Failure::fault)
    }

    /// Starts the line. Without a link it works off what is durable.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        let Some(line) = self.line.take() else { return Err(Failure::Fault("the line has started already".into())) };
        let receipts = self.head.as_ref().map(Head::receipts);
        let source = Source::Live {
            archive: self.archive.clone(),
            ledger: self.ledger.clone(),
            receipt: Box::new(move |mfov| {
                if let Some(receipts) = &receipts {
                    receipts.durable(mfov);
                }
                Ok(())
            }),
        };
        let labels = line.layout().labels().map_or(0, |(shape, _)| shape.y * shape.x);
        self.gate.rehearse(self.govern.drill.script.clone());
        self.gate.slow_down(self.govern.drill.slow_render_ms.clone());
        line.start(&self.runner, source, &self.factories, &self.telemetry, &self.meter).map_err(Failure::fault)?;
        self.thread = Some(GovernThread::start(self.governed(labels as u64)).map_err(Failure::fault)?);
        Ok(())
    }

    /// What the governor reads and moves.
    fn governed(&self, labels: u64) -> Governed {
        let plan = &self.config.plan;
        let tile = u64::from(plan.tile_px.x) * u64::from(plan.tile_px.y);
        let tiles = tile * u64::from(plan.beams) * u64::from(plan.mfovs_per_section);
        let (budget, telemetry, gate) = (self.budget.clone(), self.telemetry.clone(), self.gate.clone());
        let ledger = self.ledger.clone();
        let status = self.head.as_ref().map(Head::status_reader);
        let mfov = admit::mfov_bytes(plan).0;
        let spool = Box::new(move || Some(spool_reading(&status.as_ref()?()?, mfov, Rung::StitchOnly)));
        Governed {
            config: self.govern.clone(),
            on: self.govern.is_on(plan),
            sections: plan.sections,
            section_bytes: (tiles, labels),
            budget: self.budget.clone(),
            telemetry: self.telemetry.clone(),
            gate: self.gate.clone(),
            events: self.events.clone(),
            spool,
            sample: Box::new(move || {
                metrics::line(&budget, &telemetry, &gate);
                if let Ok(c) = ledger.counts() {
                    metrics::tiles(&c);
                }
            }),
        }
    }

    /// Starts the scope's side in this process.
    pub(crate) fn admit(
        &self,
        instrument: Throttled<Opened>,
        config: AdmitConfig,
    ) -> tokio::task::JoinHandle<Result<AdmitSummary, admit::AdmitError>> {
        let (handle, budget) = (self.tokio.handle().clone(), self.budget.clone());
        let (run, stop) = (self.runner.token("admit"), self.runner.stop_handle());
        self.tokio.spawn(async move {
            let hook = instrument.monitor();
            let sent = admit::admit(instrument, &handle, &budget, run, config).await;
            hook.released().await;
            if let Err(error) = &sent {
                stop.stop(error.to_string());
            }
            sent
        })
    }

    pub(crate) fn progress(&self, quiet: bool) -> Progress {
        let (telemetry, meter, budget, ledger) =
            (self.telemetry.clone(), self.meter.clone(), self.budget.clone(), self.ledger.clone());
        let plan = self.config.plan.clone();
        Progress::start(quiet, move || {
            let counts = ledger.counts().unwrap_or_default();
            let at = |moment| telemetry.reached(moment);
            let seconds = telemetry.elapsed().as_secs_f64();
            let tiles = counts.safe() + counts.lost;
            format!(
                "sections {}/{} · tiles {tiles} ({:.0}/s) · images {} (lag {}) · labels {} (lag {}) · {} objects, {:.0} evaluations/s · {} of {} leased",
                at(Moment::LastTile),
                plan.sections,
                tiles as f64 / seconds.max(1.0),
                at(Moment::Image),
                at(Moment::LastTile) - at(Moment::Image).min(at(Moment::LastTile)),
                at(Moment::Labels),
                at(Moment::Image) - at(Moment::Labels).min(at(Moment::Image)),
                meter.objects.load(Relaxed),
                meter.evaluations.load(Relaxed) as f64 / seconds.max(1.0),
                budget.leased_now(),
                budget.total(),
            )
        })
    }

    pub(crate) fn end(&mut self) -> Result<(), RunError> {
        let ended = self.runner.join();
        if let Some(thread) = self.thread.take() {
            self.governed = thread.end();
        }
        if let Some(head) = self.head.take() {
            self.received = self.tokio.block_on(head.join());
        }
        ended
    }

    /// What the scope's ladder did, where it ran in this process: for the report.
    pub(crate) fn scope_was(&mut self, report: Option<ScopeReport>) {
        self.governed.scope = report;
    }
}

/// Tasks of the rim: network, timers, signals.
pub(crate) fn tokio() -> Result<Tokio, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::fault)
}

/// The first interrupt stops the run; what is durable stays, and the same command goes on from there.
pub(crate) fn interrupts(tokio: &Tokio, stop: StopHandle) {
    tokio.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.stop("interrupted; run the same command again to continue");
        }
    });
}
