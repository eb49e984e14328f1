//! The site file: one TOML for the whole line, read by both sides of the link.
//!
//! ```toml
//! name = "demo"                  # of the acquisition
//! out = "runs/demo"              # where results go, unless --out says otherwise
//! [instrument.sim]               # or [instrument.recorded] path = "..."
//! [link]                         # address, keys
//! [spool]                        # folder, capacity
//! [stages.match] [stages.montage] [stages.align] [stages.render] [stages.mask] [stages.segment] ...
//! ```
//! Every key has a default that is documented at its field; unknown keys are refused; all mistakes are told at once.

use std::path::{Path, PathBuf};

use kinesin_acquire::throttle::ThrottleConfig;
use kinesin_backpressure::spool::SpoolConfig;
use kinesin_backpressure::{Bytes, DiskLimits};
use kinesin_sim::scope::SimConfig;
use kinesin_stages::pipeline::StagesConfig;
use kinesin_stream::ledger::PlanDigest;
use kinesin_stream::link::{LARGEST_DATAGRAM, LinkSettings};
use serde::{Deserialize, Serialize};

use crate::cli::Tune;
use crate::faults::{self, Problem};
use crate::govern::GovernSection;
use crate::metrics::MetricsConfig;
use crate::outcome::Failure;

/// What a site file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteFile {
    /// Name of the acquisition.
    pub name: String,
    /// Folder of the results, relative to the working folder. No default: `--out` or this is needed.
    pub out: Option<PathBuf>,
    /// Where tiles come from.
    pub instrument: InstrumentConfig,
    /// The link between microscope and head.
    pub link: LinkConfig,
    /// Where the microscope's side keeps tiles until the head has them.
    pub spool: SpoolSettings,
    /// What the head does with them.
    pub stages: StagesConfig,
    /// Threads and providers.
    pub compute: ComputeConfig,
    /// What happens when compute falls behind.
    pub govern: GovernSection,
    /// What a monitoring system reads.
    pub metrics: MetricsConfig,
}

/// `[instrument]`: exactly one of `sim` and `recorded`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstrumentConfig {
    /// The simulated scope.
    pub sim: Option<SimConfig>,
    /// A recorded data set.
    pub recorded: Option<RecordedConfig>,
    /// What asks the instrument to wait. Default none: the instrument itself is asked, where it obeys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleConfig>,
}

impl InstrumentConfig {
    /// What decides which tiles come: how the instrument is held does not.
    pub fn imaged(&self) -> Self {
        Self { throttle: None, ..self.clone() }
    }
}

/// `[instrument.recorded]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedConfig {
    /// Render TileSpec JSON, FEABAS text, MultiSEM region folder, or a recorded run.
    pub path: PathBuf,
}

/// `[link]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// Where the head listens and the scope connects. Default 127.0.0.1:0, a free port, which serves `kinesin run` alone.
    pub address: String,
    /// Folder of the keys that `kinesin keys` makes. Default: `keys` in the results' folder, made when missing (by `run` only).
    pub keys: Option<PathBuf>,
    /// Windows, streams and times.
    pub settings: LinkSettings,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:0".into(), keys: None, settings: LinkSettings::default() }
    }
}

/// `[spool]`: tiles on the disk of the microscope's computer, from the moment they are taken to their durable receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolSettings {
    /// A folder of its own, on a local disk. Default: `spool` in the results' folder (`out`; `run` also takes `--out`).
    pub folder: Option<PathBuf>,
    /// Bytes that it may take on that disk. Default 8 GiB, which any disk has: set it to the outage to be survived times the
    /// rate of the scope; `kinesin check` prints the time. When it is full the scope is held.
    pub capacity: Bytes,
    /// Bytes of a file of it. Default 256 MiB: what was sent is deleted file by file, and a file is long enough to be written
    /// and read at the disk's full speed. At most an eighth of the capacity is used.
    pub segment: Bytes,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self { folder: None, capacity: Bytes::gib(8), segment: Bytes::mib(256) }
    }
}

impl SpoolSettings {
    /// The spool of this run; `out` is the folder of the results, where there is one.
    pub fn open(&self, out: Option<&Path>, digest: PlanDigest, disk: DiskLimits) -> Result<SpoolConfig, Failure> {
        let folder = self.folder.clone().or_else(|| Some(out?.join("spool")));
        let folder = folder.ok_or_else(|| {
            Failure::Input("spool.folder: tiles must be kept on this machine until the head has them; set spool.folder = \"DIR\" or out = \"DIR\" in the site file".into())
        })?;
        let capacity = disk.capacity.map_or(self.capacity, |least| least.min(self.capacity));
        Ok(SpoolConfig { folder, capacity, segment: self.segment, identity: digest.0, disk })
    }
}

/// `[compute]`. Results depend on none of these but `precision`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComputeConfig {
    /// Worker threads of each stage that has several. Default 0: one a core.
    pub workers: usize,
    /// Where networks run: auto, cpu, openvino, cuda, tensorrt. Default auto: the fastest that is present; it is reported.
    pub provider: String,
    /// Arithmetic of the networks: auto, f32 or bf16. Default auto: bf16 where the processor has AMX, else f32.
    pub precision: String,
    /// Requests given to a network at once. Default 1: a processor gains nothing from more.
    pub batch: usize,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        Self { workers: 0, provider: "auto".into(), precision: "auto".into(), batch: 1 }
    }
}

impl SiteFile {
    /// Reads a site file and applies what the command line overrides; tells all mistakes at once.
    pub fn load(path: &Path, tune: &Tune) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::Input(format!(
                "cannot read the site file {}: {e}; give a TOML file such as deploy/sites/demo.toml",
                path.display()
            ))
        })?;
        let (site, mut problems) = faults::read::<Self>(&text);
        if let Some(mut site) = site {
            site.apply(tune);
            if let Some(sim) = site.instrument.sim.as_mut().filter(|_| !site.name.is_empty()) {
                sim.name.clone_from(&site.name);
            }
            problems.extend(site.problems());
            if problems.is_empty() {
                return Ok(site);
            }
        }
        Err(Failure::Input(told(path, &problems)))
    }

    fn apply(&mut self, tune: &Tune) {
        use clap::ValueEnum;
        let name = |v: clap::builder::PossibleValue| v.get_name().to_owned();
        if let Some(workers) = tune.workers {
            self.compute.workers = workers;
        }
        if let Some(batch) = tune.batch {
            self.compute.batch = batch;
        }
        if let Some(provider) = tune.provider.and_then(|p| p.to_possible_value()) {
            self.compute.provider = name(provider);
        }
        if let Some(precision) = tune.precision.and_then(|p| p.to_possible_value()) {
            self.compute.precision = name(precision);
        }
        if let (Some(seed), Some(sim)) = (tune.seed, &mut self.instrument.sim) {
            sim.seed = seed;
        }
    }

    /// Worker threads, resolved.
    pub fn workers(&self) -> usize {
        workers(Some(self.compute.workers))
    }

    /// What cannot be used, although each entry alone has the right form.
    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut say = |place: &str, text: String| problems.push(Problem { place: place.into(), text });
        match (&self.instrument.sim, &self.instrument.recorded) {
            (None, None) => say("instrument", "missing\nadd [instrument.sim] or [instrument.recorded]".into()),
            (Some(_), Some(_)) => {
                say("instrument", "two instruments\nkeep one of [instrument.sim], [instrument.recorded]".into())
            }
            _ => {}
        }
        if let Some(Err(faults)) = self.instrument.throttle.as_ref().map(ThrottleConfig::hook) {
            for fault in faults {
                say(format!("instrument.throttle.{}", fault.key).trim_end_matches('.'), fault.text);
            }
        }
        let one_of = |value: &str, known: &[&str]| known.contains(&value);
        if !one_of(&self.compute.provider, &["auto", "cpu", "openvino", "cuda", "tensorrt"]) {
            say(
                "compute.provider",
                format!("{:?} is not a provider\nuse auto, cpu, openvino, cuda or tensorrt", self.compute.provider),
            );
        }
        if !one_of(&self.compute.precision, &["auto", "f32", "bf16"]) {
            say(
                "compute.precision",
                format!("{:?} is not an arithmetic\nuse auto, f32 or bf16", self.compute.precision),
            );
        }
        if self.compute.batch == 0 {
            say("compute.batch", "0 requests at once is no work\nuse 1 or more".into());
        }
        if self.link.address.parse::<std::net::SocketAddr>().is_err() {
            say(
                "link.address",
                format!("{:?} is not an address\nuse IP:PORT such as 127.0.0.1:4433", self.link.address),
            );
        }
        if self.link.settings.streams == 0 {
            say("link.settings.streams", "0 lets no tile through\nuse 1 or more, default 4".into());
        }
        let settings = &self.link.settings;
        if !(1200..=LARGEST_DATAGRAM).contains(&settings.datagram) {
            let text =
                format!("{} bytes\nuse 1200 to {LARGEST_DATAGRAM}, default {LARGEST_DATAGRAM}", settings.datagram);
            say("link.settings.datagram", text);
        }
        if settings.stall_seconds.is_nan() || settings.stall_seconds <= 0.0 {
            say("link.settings.stall_seconds", "no time to answer in\nuse seconds above 0, default 30".into());
        }
        if self.spool.segment.0 == 0 {
            say("spool.segment", "0 bytes\nuse \"1 MiB\" or more, default \"256 MiB\"".into());
        }
        if let Some(sim) = &self.instrument.sim {
            sim.faults().into_iter().for_each(|text| say("instrument.sim", text));
        }
        let volume = &self.stages.volume;
        if !(1..=12).contains(&volume.levels) {
            say("stages.volume.levels", format!("{} levels\nuse 1 to 12, default 4", volume.levels));
        }
        if volume.chunk_px == 0 {
            say("stages.volume.chunk_px", "0 px\nuse 64 to 2048, default 512".into());
        }
        problems.extend(self.govern.problems());
        problems
    }
}

/// As many as asked for; one a core where that is 0 or nothing.
pub fn workers(asked: Option<usize>) -> usize {
    asked.filter(|n| *n > 0).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// All problems of a file as shown to people.
pub fn told(path: &Path, problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
    format!("{count} in {}\n\n{}", path.display(), list.join("\n"))
}
