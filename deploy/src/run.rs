//! `kinesin run`, `send`, `receive`, `keys`: the live line, on one machine or two.
//!
//! `run` is both sides in one process, joined by the same QUIC link over loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kinesin_acquire::admit::{self, AdmitConfig, AdmitSummary, OnEvent};
use kinesin_acquire::throttle::Throttled;
use kinesin_backpressure::spool::SpoolError;
use kinesin_backpressure::{Budget, DiskLimits};
use kinesin_sim::scenario::Side;
use kinesin_stream::ledger::PlanDigest;
use kinesin_stream::link::{Keys, LinkError, Role, ScopeConfig, make_keys};
use kinesin_stream::plan::RunPlan;
use kinesin_stream::runner::Runner;
use tokio::runtime::Runtime as Tokio;

use crate::cli::{KeysArgs, RunArgs, SideArgs};
use crate::events::{self, Event, EventLog, Sides};
use crate::govern::ScopeGovernor;
use crate::head::{HeadSide, interrupts, tokio};
use crate::instrument::Opened;
use crate::outcome::{Failure, Outcome};
use crate::prepare;
use crate::progress::Progress;
use crate::scenario;
use crate::site::SiteFile;

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
    let mut head = HeadSide::open(&site, args, &out, &instrument.plan(), &[Side::Head, Side::Scope])?;
    let keys = link_keys(&site, &out)?;
    let address = head.listen(&site, Keys::load(&keys, Role::Head).map_err(Failure::input)?)?;
    let mut scope = scope_config(address, &keys, head.acquisition, &site, (Some(&out), head.scope_disk))?;
    let to = head.events.clone();
    scope.on_event = events::admission(head.events.clone(), Sides::Both);
    let governor = govern(&site, &instrument.plan(), &head.tokio, &mut scope, move |event| to.note(event));
    let instrument =
        instrument.throttled(&site, &head.budget, head.tokio.handle(), events::hook(head.events.clone()))?;
    head.start()?;
    let admitted = head.admit(instrument, scope);
    let progress = head.progress(as_json);
    let ended = head.end();
    drop(progress);
    let admitted = head.tokio.block_on(admitted);
    let sent = match (ended, admitted) {
        (_, Ok(Err(error))) if is_input(&error) => return Err(Failure::input(error)),
        // The cause is where the line stopped; the scope only lost its link.
        (Err(error), _) => return Err(Failure::fault(error)),
        (Ok(()), Ok(Ok(sent))) => sent,
        (Ok(()), Ok(Err(error))) => return Err(Failure::fault(error)),
        (Ok(()), Err(error)) => return Err(Failure::fault(error)),
    };
    head.scope_was(governor.map(|g| g.report()));
    head.report(scene.as_ref(), Some(&sent), as_json)
}

/// `kinesin receive`.
pub fn receive(args: &RunArgs, as_json: bool) -> Result<Outcome, Failure> {
    let site = SiteFile::load(&args.site, &args.tune)?;
    let out = prepare::out(args.out.as_deref(), &site)?;
    let instrument = Opened::open(&site)?;
    let keys = configured_keys(&site)?;
    let mut head = HeadSide::open(&site, args, &out, &instrument.plan(), &[Side::Head])?;
    let scene = instrument.scene();
    let keys = Keys::load(&keys, Role::Head).map_err(Failure::input)?;
    if head.scope_has_ended()? {
        site.link
            .settings
            .budget_lines(Role::Head)
            .into_iter()
            .for_each(|(name, bytes)| head.budget.fixed(name, bytes));
        eprintln!("the scope has sent everything; going on without it");
    } else {
        let address = head.listen(&site, keys)?;
        eprintln!("listening on {address}; start `kinesin send` with the same site file on the microscope's machine");
    }
    head.start()?;
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
    prepare::room(&site, &plan)?;
    let inside = scenario::inside(args.scenario.as_deref(), &[Side::Scope])?;
    let disk = (site.out.as_deref(), inside.scope_disk);
    let mut scope = scope_config(address, &keys, prepare::acquisition(&site, &plan), &site, disk)?;
    let clock = inside.points.clock.clone();
    let log = EventLog::beside(&scope.spool.folder, clock).map_err(|e| no_log(&scope.spool.folder, &e))?;
    let log = Arc::new(log);
    scope.on_event = events::admission(log.clone(), Sides::Scope);
    let budget = Budget::new();
    let runner = Runner::with_points(&budget, inside.points);
    let tokio = tokio()?;
    interrupts(&tokio, runner.stop_handle());
    let to = log.clone();
    let _governor = govern(&site, &plan, &tokio, &mut scope, move |event| to.note(event));
    let instrument = instrument.throttled(&site, &budget, tokio.handle(), events::hook(log.clone()))?;
    let sent = tokio.block_on(ship(instrument, &tokio, &budget, &runner, scope));
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

fn no_log(spool: &Path, error: &std::io::Error) -> Failure {
    Failure::Fault(format!("cannot write the log of events beside the spool {}: {error}", spool.display()))
}

/// Trust and addresses are the user's to mend; the rest is a fault.
fn is_input(error: &admit::AdmitError) -> bool {
    use admit::AdmitError as E;
    let spool = |e: &SpoolError| !matches!(e, SpoolError::Io { .. } | SpoolError::Damaged { .. });
    match error {
        E::Link(
            LinkError::Keys { .. } | LinkError::NotTrusted { .. } | LinkError::Refused { .. } | LinkError::Bind { .. },
        )
        | E::SpoolTooSmall { .. } => true,
        E::Spool(error) | E::Link(LinkError::Spool(error)) => spool(error),
        _ => false,
    }
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

fn scope_config(
    head: SocketAddr,
    keys: &Path,
    digest: PlanDigest,
    site: &SiteFile,
    (out, disk): (Option<&Path>, DiskLimits),
) -> Result<AdmitConfig, Failure> {
    let keys = Keys::load(keys, Role::Scope).map_err(Failure::input)?;
    let link = ScopeConfig { head, keys, digest, settings: site.link.settings.clone() };
    let spool = site.spool.open(out, digest, disk)?;
    Ok(AdmitConfig { link, spool, on_event: OnEvent::default(), pace: None, status: None })
}

/// Has the spool's fill decide how fast the instrument goes, where the ladder is on.
fn govern(
    site: &SiteFile,
    plan: &RunPlan,
    tokio: &Tokio,
    scope: &mut AdmitConfig,
    tell: impl Fn(Event) + Send + 'static,
) -> Option<ScopeGovernor> {
    if !site.govern.moves(plan) {
        return None;
    }
    let tick = Duration::from_secs_f64(site.govern.tick_seconds);
    let mfov = admit::mfov_bytes(plan).0;
    let governor = ScopeGovernor::start(tokio.handle(), site.govern.ladder.clone(), tick, mfov, tell);
    (scope.pace, scope.status) = (Some(governor.pace.clone()), Some(governor.status.clone()));
    Some(governor)
}

async fn ship(
    instrument: Throttled<Opened>,
    tokio: &Tokio,
    budget: &Budget,
    runner: &Runner,
    config: AdmitConfig,
) -> Result<AdmitSummary, admit::AdmitError> {
    let (handle, run) = (tokio.handle(), runner.token("admit"));
    let hook = instrument.monitor();
    let sent = admit::admit(instrument, handle, budget, run, config).await;
    hook.released().await;
    sent
}
