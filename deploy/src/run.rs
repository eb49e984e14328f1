//! `kinesin run`, `send`, `receive`, `keys`: the live line, on one machine or two.
//!
//! `run` is both sides in one process, joined by the same QUIC link over loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kinesin_acquire::admit::{self, AdmitConfig, AdmitSummary};
use kinesin_backpressure::{Budget, Bytes};
use kinesin_sim::scope::Scene;
use kinesin_stages::archive::Archive;
use kinesin_stages::pipeline::{FloodMeter, Line, LineConfig, Moment, Source, Telemetry};
use kinesin_stages::runtime::ChosenProvider;
use kinesin_stream::ledger::{Ledger, LedgerError, PlanDigest};
use kinesin_stream::link::{Head, HeadConfig, HeadSummary, Keys, LinkError, Role, ScopeConfig, make_keys};
use kinesin_stream::runner::{RunError, Runner, StopHandle};
use tokio::runtime::Runtime as Tokio;

use crate::cli::{KeysArgs, RunArgs, SideArgs};
use crate::instrument::Opened;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use crate::report::{self, LinkCounts, Report, TileCounts};
use crate::site::SiteFile;
use crate::{prepare, score};

/// `kinesin keys`.
pub fn keys(args: &KeysArgs, as_json: bool) -> Result<Outcome, Failure> {
    make_keys(&args.dir, args.overwrite).map_err(Failure::input)?;
    if as_json {
        println!("{}", serde_json::json!({"keys": args.dir}));
    } else {
        println!(
            "keys of both sides in {}; copy the folder to the other machine, and keep it private",
            args.dir.display()
        );
    }
    Ok(Outcome::Complete)
}

/// `kinesin run`.
pub fn run(args: &RunArgs, as_json: bool) -> Result<Outcome, Failure> {
    let site = SiteFile::load(&args.site, &args.tune)?;
    let out = prepare::out(args.out.as_deref(), &site)?;
    let instrument = {
        let _growing = Progress::start(as_json, || "opening the instrument".into());
        Opened::open(&site)?
    };
    let scene = instrument.scene();
    if site.link.keys.is_some() {
        Keys::load(&configured_keys(&site)?, Role::Head).map_err(Failure::input)?;
    }
    let mut head = HeadSide::open(&site, args, &out, &instrument.plan())?;
    let keys = link_keys(&site, &out)?;
    let address = head.listen(&site, Keys::load(&keys, Role::Head).map_err(Failure::input)?)?;
    let scope = scope_config(address, &keys, head.acquisition, &site)?;
    head.start()?;
    let admitted = head.admit(instrument, scope, site.link.unacknowledged);
    let progress = head.progress(as_json);
    let ended = head.end();
    drop(progress);
    let admitted = head.tokio.block_on(admitted);
    let sent = match (ended, admitted) {
        // The cause is where the line stopped; the scope only lost its link.
        (Err(error), _) => return Err(Failure::fault(error)),
        (Ok(()), Ok(Ok(sent))) => sent,
        (Ok(()), Ok(Err(error))) => return Err(Failure::fault(error)),
        (Ok(()), Err(error)) => return Err(Failure::fault(error)),
    };
    head.report(scene.as_ref(), Some(&sent), as_json)
}

/// `kinesin receive`.
pub fn receive(args: &RunArgs, as_json: bool) -> Result<Outcome, Failure> {
    let site = SiteFile::load(&args.site, &args.tune)?;
    let out = prepare::out(args.out.as_deref(), &site)?;
    let instrument = Opened::open(&site)?;
    let keys = configured_keys(&site)?;
    let mut head = HeadSide::open(&site, args, &out, &instrument.plan())?;
    let scene = instrument.scene();
    let address = head.listen(&site, Keys::load(&keys, Role::Head).map_err(Failure::input)?)?;
    head.start()?;
    eprintln!("listening on {address}; start `kinesin send` with the same site file on the microscope's machine");
    let progress = head.progress(as_json);
    let ended = head.end();
    drop(progress);
    ended.map_err(Failure::fault)?;
    head.report(scene.as_ref(), None, as_json)
}

/// `kinesin send`.
pub fn send(args: &SideArgs, as_json: bool) -> Result<Outcome, Failure> {
    let site = SiteFile::load(&args.site, &args.tune)?;
    let keys = configured_keys(&site)?;
    let instrument = Opened::open(&site)?;
    let plan = instrument.plan();
    let address: SocketAddr = site.link.address.parse().map_err(Failure::input)?;
    let scope = scope_config(address, &keys, prepare::acquisition(&site, &plan), &site)?;
    let budget = Budget::new();
    let runner = Runner::new(&budget);
    let tokio = tokio()?;
    interrupts(&tokio, runner.stop_handle());
    let sent = tokio.block_on(ship(instrument, &tokio, &budget, &runner, scope, site.link.unacknowledged));
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => return Err(if is_input(&error) { Failure::input(error) } else { Failure::fault(error) }),
    };
    if as_json {
        println!("{}", serde_json::to_string(&sent).map_err(Failure::fault)?);
    } else {
        println!(
            "{} tiles durable at the head, {} lost, scope held {:.1} s",
            sent.link.tiles, sent.link.losses, sent.hold_seconds
        );
    }
    Ok(if sent.link.losses == 0 { Outcome::Complete } else { Outcome::WithLosses })
}

fn tokio() -> Result<Tokio, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::fault)
}

/// Trust and addresses are the user's to mend; the rest is a fault.
fn is_input(error: &admit::AdmitError) -> bool {
    use admit::AdmitError as E;
    matches!(
        error,
        E::Link(
            LinkError::Keys { .. } | LinkError::NotTrusted { .. } | LinkError::Refused { .. } | LinkError::Bind { .. }
        )
    )
}

/// Keys where the site file says, or in the results' folder, made when missing.
fn link_keys(site: &SiteFile, out: &Path) -> Result<PathBuf, Failure> {
    if site.link.keys.is_some() {
        return configured_keys(site);
    }
    let keys = out.join("keys");
    // A kill may have left half of them; nobody else has seen these.
    let whole = |role| Keys::load(&keys, role).is_ok();
    if !whole(Role::Head) || !whole(Role::Scope) {
        make_keys(&keys, true).map_err(Failure::input)?;
    }
    Ok(keys)
}

fn configured_keys(site: &SiteFile) -> Result<PathBuf, Failure> {
    site.link.keys.clone().ok_or_else(|| {
        Failure::Input("link.keys: two processes need keys that both can read; make them with `kinesin keys DIR` and set link.keys = \"DIR\"".into())
    })
}

fn scope_config(head: SocketAddr, keys: &Path, digest: PlanDigest, site: &SiteFile) -> Result<ScopeConfig, Failure> {
    let keys = Keys::load(keys, Role::Scope).map_err(Failure::input)?;
    Ok(ScopeConfig { head, keys, digest, settings: site.link.settings.clone() })
}

async fn ship(
    instrument: Opened,
    tokio: &Tokio,
    budget: &Budget,
    runner: &Runner,
    scope: ScopeConfig,
    unacknowledged: Bytes,
) -> Result<AdmitSummary, admit::AdmitError> {
    let config = AdmitConfig { link: scope, unacknowledged };
    let (handle, run) = (tokio.handle(), runner.token("admit"));
    match instrument {
        Opened::Sim(scope) => admit::admit(*scope, handle, budget, run, config).await,
        Opened::Recorded(recorded) => admit::admit(*recorded, handle, budget, run, config).await,
    }
}

/// The first interrupt stops the run; what is durable stays, and the same command goes on from there.
fn interrupts(tokio: &Tokio, stop: StopHandle) {
    tokio.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.stop("interrupted; run the same command again to continue");
        }
    });
}

/// Everything the head holds while it runs.
struct HeadSide {
    config: LineConfig,
    chosen: Option<ChosenProvider>,
    factories: kinesin_stages::pipeline::Factories,
    acquisition: PlanDigest,
    out: PathBuf,
    budget: Budget,
    runner: Runner,
    tokio: Tokio,
    ledger: Ledger,
    archive: Archive,
    line: Option<Line>,
    head: Option<Head>,
    received: HeadSummary,
    telemetry: Arc<Telemetry>,
    meter: Arc<FloodMeter>,
}

impl HeadSide {
    fn open(
        site: &SiteFile,
        args: &RunArgs,
        out: &Path,
        plan: &kinesin_stream::plan::RunPlan,
    ) -> Result<Self, Failure> {
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
        let archive = Archive::open(out, ledger.clone()).map_err(Failure::fault)?;
        let runner = Runner::new(&budget);
        let tokio = tokio()?;
        interrupts(&tokio, runner.stop_handle());
        Ok(Self {
            config,
            chosen,
            factories,
            acquisition: prepare::acquisition(site, plan),
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

    fn listen(&mut self, site: &SiteFile, keys: Keys) -> Result<SocketAddr, Failure> {
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

    fn start(&mut self) -> Result<(), Failure> {
        let (Some(line), Some(head)) = (self.line.take(), &self.head) else {
            return Err(Failure::Fault("the link is not listening".into()));
        };
        let receipts = head.receipts();
        let source = Source::Live {
            archive: self.archive.clone(),
            ledger: self.ledger.clone(),
            receipt: Box::new(move |mfov| {
                receipts.durable(mfov);
                Ok(())
            }),
        };
        line.start(&self.runner, source, &self.factories, &self.telemetry, &self.meter).map_err(Failure::fault)
    }

    /// Starts the scope's side in this process.
    fn admit(
        &self,
        instrument: Opened,
        scope: ScopeConfig,
        unacknowledged: Bytes,
    ) -> tokio::task::JoinHandle<Result<AdmitSummary, admit::AdmitError>> {
        let (handle, budget) = (self.tokio.handle().clone(), self.budget.clone());
        let (run, stop) = (self.runner.token("admit"), self.runner.stop_handle());
        let config = AdmitConfig { link: scope, unacknowledged };
        self.tokio.spawn(async move {
            let sent = match instrument {
                Opened::Sim(scope) => admit::admit(*scope, &handle, &budget, run, config).await,
                Opened::Recorded(recorded) => admit::admit(*recorded, &handle, &budget, run, config).await,
            };
            if let Err(error) = &sent {
                stop.stop(error.to_string());
            }
            sent
        })
    }

    fn progress(&self, quiet: bool) -> Progress {
        let (telemetry, meter, budget, ledger) =
            (self.telemetry.clone(), self.meter.clone(), self.budget.clone(), self.ledger.clone());
        let plan = self.config.plan.clone();
        Progress::start(quiet, move || {
            let counts = ledger.counts().unwrap_or_default();
            let at = |moment| telemetry.reached(moment);
            let seconds = telemetry.elapsed().as_secs_f64();
            let tiles = counts.durable + counts.lost;
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

    fn end(&mut self) -> Result<(), RunError> {
        let ended = self.runner.join();
        if let Some(head) = self.head.take() {
            self.received = self.tokio.block_on(head.join());
        }
        ended
    }

    fn report(
        &self,
        scene: Option<&Arc<Scene>>,
        sent: Option<&AdmitSummary>,
        as_json: bool,
    ) -> Result<Outcome, Failure> {
        let counts = self.ledger.counts().map_err(Failure::fault)?;
        let status = if counts.lost == 0 { "complete" } else { "complete with losses" };
        let seconds = self.telemetry.elapsed().as_secs_f64();
        let scores = match scene {
            Some(scene) => {
                let _scoring = Progress::start(as_json, || "scoring against truth".into());
                Some(score::of_run(&self.out, scene)?)
            }
            None => None,
        };
        let stages = self.telemetry.rows();
        let workers =
            |name: &str| self.runner.reports().iter().find(|r| r.name == name).map_or(1, |r| r.workers.max(1));
        let load = |row: &kinesin_stages::pipeline::StageRow| row.busy_seconds / workers(row.stage.name()) as f64;
        let limiting = stages.iter().max_by(|a, b| load(a).total_cmp(&load(b))).map_or("", |r| r.stage.name());
        let report = Report {
            name: self.config.plan.name.clone(),
            status: status.into(),
            out: self.out.clone(),
            seconds,
            tiles: self.tiles()?,
            sections: sections(&self.out, self.config.plan.sections)?,
            limiting_stage: limiting.into(),
            stages,
            latency: report::latency(&self.telemetry),
            link: sent.map_or_else(
                || received(&self.received),
                |s| LinkCounts {
                    tiles: s.link.tiles,
                    bytes: s.link.bytes,
                    hold_seconds: s.hold_seconds,
                    reconnects: s.link.reconnects,
                },
            ),
            memory: report::memory(&self.budget),
            models: self.models(),
            segmentation: self.segmentation(),
            scores,
        };
        kinesin_stages::publish::write_json(&self.out.join("report.json"), &report).map_err(Failure::fault)?;
        if as_json {
            println!("{}", serde_json::to_string(&report).map_err(Failure::fault)?);
        } else {
            println!("{}", report.table());
            println!("\nlook at it: kinesin view {}", self.out.display());
        }
        Ok(if counts.lost == 0 { Outcome::Complete } else { Outcome::WithLosses })
    }

    fn tiles(&self) -> Result<TileCounts, Failure> {
        let counts = self.ledger.counts().map_err(Failure::fault)?;
        let mut by_reason: BTreeMap<String, u64> = BTreeMap::new();
        for plan in self.ledger.section_plans().map_err(Failure::fault)? {
            for (_, row) in self.ledger.section(plan.section).map_err(Failure::fault)? {
                if let Some(reason) = row.reason {
                    *by_reason.entry(reason.to_string()).or_default() += 1;
                }
            }
        }
        let duplicates = self.ledger.duplicates().map_err(Failure::fault)?;
        Ok(TileCounts {
            promised: counts.expected + counts.durable + counts.lost,
            durable: counts.durable,
            lost: counts.lost,
            lost_by_reason: by_reason,
            duplicates: duplicates.iter().map(|(_, d)| d.same + d.other).sum(),
        })
    }

    fn models(&self) -> BTreeMap<String, String> {
        let how = self
            .chosen
            .as_ref()
            .map_or(String::new(), |c| format!("{:?} {:?}, ONNX Runtime {}", c.provider, c.precision, c.version));
        let models = [("mask", &self.config.mask), ("flood", &self.config.flood)];
        let named =
            models.into_iter().filter_map(|(k, m)| Some((k.into(), format!("{} on {how}", m.as_ref()?.name()))));
        named.collect()
    }

    fn segmentation(&self) -> BTreeMap<String, f64> {
        if self.config.flood.is_none() {
            return BTreeMap::new();
        }
        let n = |v: &std::sync::atomic::AtomicU64| v.load(Relaxed) as f64;
        let (evaluations, voxels) = (n(&self.meter.evaluations), n(&self.meter.voxels));
        BTreeMap::from([
            ("evaluations".into(), evaluations),
            ("floods_kept".into(), n(&self.meter.objects)),
            ("labelled_megavoxels".into(), n(&self.meter.labelled) / 1e6),
            ("megavoxels".into(), voxels / 1e6),
            ("new_voxels_per_evaluation".into(), n(&self.meter.labelled) / evaluations.max(1.0)),
            ("network_thread_seconds".into(), n(&self.meter.network_ns) / 1e9),
        ])
    }
}

/// What the head alone can say of the link.
fn received(head: &HeadSummary) -> LinkCounts {
    let reconnects = head.connections.saturating_sub(1);
    LinkCounts { tiles: head.tiles, bytes: head.bytes, hold_seconds: 0.0, reconnects }
}

/// How many sections ended with each verdict.
fn sections(out: &Path, sections: u32) -> Result<BTreeMap<String, usize>, Failure> {
    use kinesin_stages::align::Verdict;
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for z in 0..sections {
        let path = kinesin_stages::publish::SectionFiles::new(out, z).alignment();
        let file: Option<kinesin_stages::pipeline::AlignmentFile> =
            kinesin_stages::publish::read_json(&path).map_err(Failure::fault)?;
        let name = match file.map(|f| f.record.verdict) {
            None => "never came",
            Some(Verdict::Reference) => "reference",
            Some(Verdict::Aligned) => "aligned",
            Some(Verdict::Bridged { .. }) => "bridged",
            Some(Verdict::Missing) => "missing",
            Some(Verdict::Failed { .. }) => "failed",
        };
        *verdicts.entry(name.into()).or_default() += 1;
    }
    Ok(verdicts)
}
