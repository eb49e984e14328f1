//! What the head says of a run at its end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kinesin_acquire::admit::AdmitSummary;
use kinesin_sim::scope::Scene;
use kinesin_stream::ledger::{Filter, State};
use kinesin_stream::link::HeadSummary;

use super::HeadSide;
use crate::doubts;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use crate::report::{self, LinkCounts, Report, TileCounts};
use crate::score;

impl HeadSide {
    pub(crate) fn report(
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
            doubts: doubts::of(&self.out, self.config.plan.sections)?,
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
            governor: self.governed.clone(),
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
        let lost = Filter { state: Some(State::Lost), ..Filter::default() };
        for row in self.ledger.query(&lost).map_err(Failure::fault)? {
            let reason = row.map_err(Failure::fault)?.1.reason.map_or_else(String::new, |r| r.to_string());
            let listed = by_reason.len() < REASONS || by_reason.contains_key(&reason);
            *by_reason.entry(if listed { reason } else { "other reasons; see kinesin ledger".into() }).or_default() +=
                1;
        }
        let again = self.ledger.duplicate_sum().map_err(Failure::fault)?;
        let recount_agrees = self.ledger.recount().map_err(Failure::fault)? == counts;
        if !recount_agrees {
            tracing::error!("the ledger's counts do not agree with its tiles: a bug, please report it");
        }
        Ok(TileCounts {
            promised: counts.promised(),
            durable: counts.safe(),
            lost: counts.lost,
            lost_by_reason: by_reason,
            duplicates: again.same + again.other,
            states: counts,
            hops: report::hops(&counts),
            recount_agrees,
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

/// Different reasons that the report lists: their texts may name files.
const REASONS: usize = 50;

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
            Some(Verdict::NewStart { .. }) => "new start",
            Some(Verdict::Inserted) => "inserted",
            Some(Verdict::Missing) => "missing",
            Some(Verdict::Failed { .. }) => "failed",
        };
        *verdicts.entry(name.into()).or_default() += 1;
    }
    Ok(verdicts)
}
