//! What every command that runs the line needs first: models, networks, the folder of the results, the identity of the run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_acquire::admit::mfov_bytes;
use kinesin_backpressure::Bytes;
use kinesin_stages::model::{Model, shipped, shipped_names};
use kinesin_stages::pipeline::{Factories, LineConfig, Nominal as Without};
use kinesin_stages::runtime::{ChosenProvider, Precision, Provider, Runtime, RuntimeSettings};
use kinesin_stream::ledger::{Ledger, LedgerError, PlanDigest};
use kinesin_stream::plan::RunPlan;

use crate::cli::Nominal;
use crate::events::EventLog;
use crate::outcome::Failure;
use crate::site::{ComputeConfig, SiteFile};

/// A shipped model's name, a model folder or an ONNX file.
pub fn model(name: &str) -> Result<Arc<Model>, Failure> {
    let path = Path::new(name);
    let loaded = if shipped_names().contains(&name) {
        shipped(name)
    } else if path.exists() {
        Model::load(path)
    } else {
        let known = shipped_names().join(", ");
        return Err(Failure::Input(format!(
            "model {name:?} is neither a shipped model ({known}) nor a folder or ONNX file that exists"
        )));
    };
    loaded.map(Arc::new).map_err(Failure::input)
}

/// The line as the site file wants it.
pub fn line(site: &SiteFile, plan: &RunPlan, out: &Path, nominal: &[Nominal]) -> Result<LineConfig, Failure> {
    let without = Without {
        stitch: nominal.contains(&Nominal::Stitch),
        align: nominal.contains(&Nominal::Align),
        mask: nominal.contains(&Nominal::Mask),
    };
    let mut stages = site.stages.clone();
    stages.segment.flood.batch = stages.segment.flood.batch.or(Some(site.compute.batch));
    let wanted = |enabled: bool, name: &str| enabled.then(|| model(name)).transpose();
    Ok(LineConfig {
        mask: wanted(stages.mask.enabled && !without.mask, &stages.mask.model)?,
        flood: wanted(stages.segment.enabled, &stages.segment.model)?,
        stages,
        plan: plan.clone(),
        out: out.to_path_buf(),
        workers: site.workers(),
        nominal: without,
        light: site.govern.makes_light_labels(plan),
    })
}

/// Whether the spool can hold the mFOVs that are open at a time.
pub fn room(site: &SiteFile, plan: &RunPlan) -> Result<(), Failure> {
    let wanted = Bytes(2 * mfov_bytes(plan).0);
    if site.spool.capacity < wanted {
        let has = site.spool.capacity;
        return Err(Failure::Input(format!(
            "spool.capacity = {has}: two mFOVs of {} beams must fit; raise it to at least {wanted}",
            plan.beams
        )));
    }
    Ok(())
}

/// Opens the runtime that the settings ask for.
pub fn runtime(compute: &ComputeConfig) -> Result<Runtime, Failure> {
    let provider = match compute.provider.as_str() {
        "cpu" => Provider::Cpu,
        "openvino" => Provider::OpenVino,
        "cuda" => Provider::Cuda,
        "tensorrt" => Provider::TensorRt,
        _ => Provider::Auto,
    };
    let precision = match compute.precision.as_str() {
        "f32" => Some(Precision::F32),
        "bf16" => Some(Precision::Bf16),
        _ => None,
    };
    Runtime::open(&RuntimeSettings { provider, precision, cache: None }).map_err(Failure::input)
}

/// The networks of the line, and what computes them; nothing is opened where no stage has one.
pub fn factories(line: &LineConfig, compute: &ComputeConfig) -> Result<(Factories, Option<ChosenProvider>), Failure> {
    if line.mask.is_none() && line.flood.is_none() {
        return Ok((Factories::default(), None));
    }
    let runtime = Arc::new(runtime(compute)?);
    let of = |model: &Option<Arc<Model>>| model.as_ref().map(|m| runtime.factory(m));
    let chosen = runtime.chosen().clone();
    Ok((Factories { mask: of(&line.mask), flood: of(&line.flood) }, Some(chosen)))
}

/// Identity of a run: everything that changes a byte of what comes out. Worker counts and edge sizes do not.
pub fn digest(site: &SiteFile, line: &LineConfig, chosen: Option<&ChosenProvider>) -> PlanDigest {
    let mut stages = line.stages.clone();
    stages.edges = Default::default();
    stages.segment.flood.batch = None;
    stages.segment.flood.checkpoint_seconds = 0.0;
    let model = |m: &Option<Arc<Model>>| m.as_ref().map(|m| m.digest().to_owned());
    let of = serde_json::json!({
        "plan": line.plan,
        "instrument": site.instrument.imaged(),
        "stages": stages,
        "without": [line.nominal.stitch, line.nominal.align, line.nominal.mask],
        "models": [model(&line.mask), model(&line.flood)],
        "arithmetic": chosen.map(|c| (c.provider, c.precision, c.version.clone())),
    });
    PlanDigest(*blake3::hash(of.to_string().as_bytes()).as_bytes())
}

/// Identity of the acquisition: what both sides of a link must agree on. How the head computes is not the scope's business.
pub fn acquisition(site: &SiteFile, plan: &RunPlan) -> PlanDigest {
    let of = serde_json::json!({"plan": plan, "instrument": site.instrument.imaged()});
    PlanDigest(*blake3::hash(of.to_string().as_bytes()).as_bytes())
}

/// What is read must not lie in the folder that is written: `--overwrite` would remove it.
pub fn apart(input: &Path, out: &Path) -> Result<(), Failure> {
    let (Ok(input), Ok(out)) = (input.canonicalize(), out.canonicalize()) else { return Ok(()) };
    if input.starts_with(&out) {
        let (input, out) = (input.display(), out.display());
        return Err(Failure::Input(format!("the input {input} lies in --out {out}; give another --out")));
    }
    Ok(())
}

/// Files and folders that a run makes in its folder: what `--overwrite` removes, and nothing else.
/// What tells whose results they are goes last, so that a removal cut short never leaves results of another run.
const MADE: [&str; 16] = [
    "spool",
    "volume",
    "checkpoints",
    "decisions.jsonl",
    "sections",
    "archive",
    "truth",
    "alignment.json",
    "aligning.json",
    "commits.jsonl",
    "faults.jsonl",
    EventLog::FILE,
    EventLog::SCOPE_FILE,
    "run.json",
    Ledger::FILE,
    "report.json",
];

/// Makes the folder of the results ready: an interrupted run is continued, a finished one refused.
pub fn folder(out: &Path, overwrite: bool) -> Result<(), Failure> {
    let failed =
        |path: PathBuf| move |e: std::io::Error| Failure::Fault(format!("cannot prepare {}: {e}", path.display()));
    if overwrite {
        if let Err(error @ LedgerError::InUse { .. }) = Ledger::inspect(out) {
            return Err(Failure::input(error));
        }
        for name in MADE {
            let path = out.join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(path)(e)),
                _ => {}
            }
        }
    } else if out.join("report.json").is_file() {
        return Err(Failure::Input(format!(
            "{} holds a finished run; give --overwrite to replace it or another --out",
            out.display()
        )));
    }
    std::fs::create_dir_all(out).map_err(failed(out.to_path_buf()))
}

/// The folder of the results: `--out`, else the site file's.
pub fn out(given: Option<&Path>, site: &SiteFile) -> Result<PathBuf, Failure> {
    given.map(Path::to_path_buf).or_else(|| site.out.clone()).ok_or_else(|| {
        Failure::Input("no folder for the results; give --out DIR or `out = \"DIR\"` in the site file".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwriting_removes_what_was_told_of_the_run_before_and_nothing_of_others() {
        let out = tempfile::tempdir().expect("a folder");
        let of = |name: &str| out.path().join(name);
        ["report.json", "faults.jsonl", "notes.txt"]
            .iter()
            .for_each(|name| std::fs::write(of(name), "{}\n").expect("writes"));
        assert!(folder(out.path(), false).is_err(), "a finished run");
        folder(out.path(), true).expect("made ready");
        assert!(!of("report.json").exists() && !of("faults.jsonl").exists() && of("notes.txt").exists());
    }
}
