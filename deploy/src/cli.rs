//! The command line: a contract that users script against (README, "Commands").

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kinesin_stream::geometry::{BoxZyx, Zyx};
use kinesin_stream::ledger::State;

/// In-situ streaming pipeline for connectomics: from the microscope's tiles to labelled neurons while it is still imaging.
#[derive(Debug, Parser)]
#[command(
    name = "kinesin",
    version,
    after_help = "exit status: 0 complete, 1 complete with losses, 2 bad input or configuration, 3 stopped by a fault"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Machine-readable output on standard output instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All faults of a site file at once, and the memory budget; no side effects.
    Check(CheckArgs),
    /// From the instrument to labels on this machine, over QUIC on loopback.
    Run(RunArgs),
    /// The microscope side alone; its events are in NAME.events.jsonl beside the spool's folder NAME.
    Send(SideArgs),
    /// The head alone.
    Receive(RunArgs),
    /// Make the private authority and the two certificates of a link.
    Keys(KeysArgs),
    /// Write the simulated acquisition as a recorded data set, with its truth.
    Sim(RunArgs),
    /// Stitch one or many sections of a recorded data set.
    Stitch(OfflineArgs),
    /// Align stitched sections, or a folder of images, one per section in name order.
    Align(OfflineArgs),
    /// Flood-fill a volume.
    Segment(SegmentArgs),
    /// Classify vessels, cell bodies and resin in a volume.
    Mask(VolumeArgs),
    /// Make one segmentation of two that splits wherever either of them does.
    Consensus(ConsensusArgs),
    /// Flood both objects anew where two come close, and merge those that turn out to be one.
    Agglomerate(AgglomerateArgs),
    /// Score a result against truth: stitch, alignment or labels.
    Score(ScoreArgs),
    /// Serve a run's results to neuroglancer, with a ready link.
    View(ViewArgs),
    /// Where every tile of a run stands: a table by section and state, or the tiles that a filter admits.
    Ledger(LedgerArgs),
}

/// `kinesin check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The site file.
    pub site: PathBuf,
    /// Overrides of the site file.
    #[command(flatten)]
    pub tune: Tune,
    /// As `kinesin run` would be given it.
    #[arg(long, value_enum)]
    pub nominal: Vec<Nominal>,
}

/// A site file and where its results go.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The site file.
    pub site: PathBuf,
    /// Folder of the results; by default the site file's `out`.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Replace a finished or different run in the same folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Overrides of the site file.
    #[command(flatten)]
    pub tune: Tune,
    /// Replace a stage by its nominal input, to see what it earns: `stitch`, `align`, `mask` (repeatable).
    #[arg(long, value_enum)]
    pub nominal: Vec<Nominal>,
    /// A fault scenario such as those in `sim/scenarios`: what this process does to itself. Never changes what comes out.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
}

/// `kinesin send`. What happens is in `NAME.events.jsonl` beside the spool's folder NAME, also after the spool has gone.
#[derive(Debug, Args)]
pub struct SideArgs {
    /// The site file.
    pub site: PathBuf,
    /// A fault scenario such as those in `sim/scenarios`: what this process does to itself. Never changes what comes out.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Overrides of the site file.
    #[command(flatten)]
    pub tune: Tune,
}

/// `kinesin keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// Folder for authority, head and scope keys.
    pub dir: PathBuf,
    /// Replace keys that are already there; peers with the old ones are then refused.
    #[arg(long)]
    pub overwrite: bool,
}

/// `kinesin stitch`, `kinesin align`.
#[derive(Debug, Args)]
pub struct OfflineArgs {
    /// Render TileSpec JSON, FEABAS section text, MultiSEM region folder or a recorded run; for `align` also a folder of images.
    pub input: PathBuf,
    /// Folder of the results.
    #[arg(long)]
    pub out: PathBuf,
    /// A site file whose `[stages]` are used; without it the defaults.
    #[arg(long)]
    pub site: Option<PathBuf>,
    /// Replace a finished or different result in the same folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Side of a pixel in nanometres, where the input does not say.
    #[arg(long)]
    pub pixel_nm: Option<f64>,
    /// Overrides.
    #[command(flatten)]
    pub tune: Tune,
}

/// A volume, the network for it, and where results go.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// Folder of images, multi-page TIFF, Zarr or OME-Zarr array, or neuroglancer precomputed volume.
    pub volume: PathBuf,
    /// Model folder, a bare ONNX file with the same interface, or the name of a shipped model.
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of the results.
    #[arg(long)]
    pub out: PathBuf,
    /// Part of the volume, half-open, voxels.
    #[arg(long = "box", value_name = "z0,y0,x0,z1,y1,x1", value_parser = parse_box, allow_hyphen_values = true)]
    pub part: Option<BoxZyx>,
    /// Reduce the volume this many times in y and x before use.
    #[arg(long, default_value_t = 1)]
    pub reduce: usize,
    /// Size of a voxel (z,y,x in nm), where the volume does not say.
    #[arg(long, value_name = "z,y,x", value_parser = parse_voxel)]
    pub voxel_nm: Option<Zyx<f64>>,
    /// Replace a finished or different result in the same folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Overrides.
    #[command(flatten)]
    pub tune: Tune,
}

/// `kinesin segment`.
#[derive(Debug, Args)]
pub struct SegmentArgs {
    /// The volume and the network.
    #[command(flatten)]
    pub on: VolumeArgs,
    /// Sections of the rolling window; by default the whole volume is one window.
    #[arg(long)]
    pub window: Option<usize>,
    /// Which fields of view are run through the network; by default those of the published runs.
    #[arg(long, value_enum)]
    pub schedule: Option<ScheduleArg>,
    /// Class map (from `kinesin mask`) whose cell bodies, vessels and resin are not flooded.
    #[arg(long)]
    pub mask: Option<PathBuf>,
    /// TOML with the keys of a site file's `[stages.segment.flood]`: start points, masks, rules, windows, blocks.
    #[arg(long, value_name = "TOML")]
    pub settings: Option<PathBuf>,
    /// Start points: CSV with columns z, y, x or JSON [[z, y, x], ...], voxels of the box; in place of those in the settings.
    #[arg(long, value_name = "CSV|JSON")]
    pub seeds: Option<PathBuf>,
    /// Labels to build on, a run's folder or a label volume of the same box: they stay, and what is left is filled.
    #[arg(long, value_name = "LABELS")]
    pub initial: Option<PathBuf>,
}

/// `kinesin consensus`.
#[derive(Debug, Args)]
pub struct ConsensusArgs {
    /// A run's folder, or a label volume.
    pub a: PathBuf,
    /// Another one of the same voxels.
    pub b: PathBuf,
    /// Folder of the result.
    #[arg(long)]
    pub out: PathBuf,
    /// Drop fragments with fewer voxels.
    #[arg(long, default_value_t = 1000)]
    pub min_voxels: u64,
    /// Replace a finished or different result in the same folder.
    #[arg(long)]
    pub overwrite: bool,
}

/// `kinesin agglomerate`.
#[derive(Debug, Args)]
pub struct AgglomerateArgs {
    /// The image and the network; memory for the whole box is needed, about 40 bytes a voxel.
    #[command(flatten)]
    pub on: VolumeArgs,
    /// The labels of the same box: a run's folder, or a label volume.
    #[arg(long)]
    pub labels: PathBuf,
    /// TOML with the keys of the rule: reach_nm, radius, zone_nm, attempts, min_voxels, min_iou, min_recovered, max_deleted.
    #[arg(long, value_name = "TOML")]
    pub settings: Option<PathBuf>,
}

/// `kinesin score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A run's folder, or a label volume.
    pub result: PathBuf,
    /// The truth: a `truth` folder as `kinesin sim` writes it, or a label volume.
    #[arg(long)]
    pub truth: PathBuf,
    /// Part of both volumes, half-open, voxels; the result may be exactly this part.
    #[arg(long = "box", value_name = "z0,y0,x0,z1,y1,x1", value_parser = parse_box, allow_hyphen_values = true)]
    pub part: Option<BoxZyx>,
    /// Sample the truth at every n-th pixel in y and x, where the result was reduced.
    #[arg(long, default_value_t = 1)]
    pub reduce: usize,
}

/// `kinesin view`.
#[derive(Debug, Args)]
pub struct ViewArgs {
    /// A run's folder.
    pub dir: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8990)]
    pub port: u16,
}

/// `kinesin ledger`. With `--json` the summary is one document, the tiles that a filter admits are JSON lines. Exit status 1 says that
/// there are lost tiles among what was asked for.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// A run's folder: finished, interrupted or of another program run, but not one that is running.
    pub dir: PathBuf,
    /// Tiles of this section: its number as the table prints it (3, or 013), or its name in the acquisition (013_S48R1).
    #[arg(long, value_name = "NUMBER|NAME")]
    pub section: Option<String>,
    /// Tiles of this beam, as the scope counts: from 001.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub beam: Option<u16>,
    /// Tiles in this state.
    #[arg(long, value_parser = parse_state)]
    pub state: Option<State>,
    /// Tiles that were lost for a reason that holds this text.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Write the tiles to this file as comma-separated values; times are milliseconds since 1970.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the tiles to this file as Parquet.
    #[arg(long, value_name = "FILE")]
    pub parquet: Option<PathBuf>,
}

/// What may be overridden from the command line.
#[derive(Clone, Debug, Default, Args)]
pub struct Tune {
    /// Worker threads; by default all cores. Results do not depend on it.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Where networks run.
    #[arg(long, value_enum)]
    pub provider: Option<ProviderArg>,
    /// Arithmetic of the networks.
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// Requests given to the network at once. Results do not depend on it.
    #[arg(long)]
    pub batch: Option<usize>,
    /// Seed of the simulation.
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Execution providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProviderArg {
    /// The fastest that is present; reported.
    Auto,
    /// ONNX Runtime's own.
    Cpu,
    /// Intel CPUs and GPUs.
    Openvino,
    /// NVIDIA GPUs.
    Cuda,
    /// NVIDIA GPUs, compiled.
    Tensorrt,
}

/// Arithmetic of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// 32-bit.
    F32,
    /// 16-bit brain floats, where the processor has them.
    Bf16,
}

/// Schedules of the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleArg {
    /// The published walk, voxel for voxel.
    Reference,
    /// About half the evaluations for labels nearly as good.
    Thrifty,
}

/// Stages that can be replaced by their nominal input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Nominal {
    /// Tiles stay where the scope believed they were.
    Stitch,
    /// Sections stay where they were montaged.
    Align,
    /// Nothing is masked.
    Mask,
}

fn parse_state(text: &str) -> Result<State, String> {
    let found = State::ALL.into_iter().find(|s| s.name() == text);
    found.ok_or_else(|| format!("got {text:?}, wanted one of {}", State::ALL.map(State::name).join(", ")))
}

fn numbers<const N: usize, T: std::str::FromStr + Copy + Default>(text: &str) -> Option<[T; N]> {
    let mut out = [T::default(); N];
    let mut parts = text.split(',');
    for o in &mut out {
        *o = parts.next()?.trim().parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

fn parse_box(text: &str) -> Result<BoxZyx, String> {
    let [z0, y0, x0, z1, y1, x1] =
        numbers(text).ok_or_else(|| format!("got {text:?}, wanted six whole numbers z0,y0,x0,z1,y1,x1"))?;
    if z0 < z1 && y0 < y1 && x0 < x1 {
        Ok(BoxZyx { min: Zyx::new(z0, y0, x0), max: Zyx::new(z1, y1, x1) })
    } else {
        Err(format!("the box {text} is empty; each of z1,y1,x1 must exceed z0,y0,x0"))
    }
}

fn parse_voxel(text: &str) -> Result<Zyx<f64>, String> {
    match numbers(text) {
        Some([z, y, x]) if z > 0.0 && y > 0.0 && x > 0.0 => Ok(Zyx::new(z, y, x)),
        _ => Err(format!("got {text:?}, wanted three positive lengths z,y,x in nanometres, such as 30,12,12")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_box_is_six_numbers_and_not_empty() {
        assert_eq!(parse_box("80,80,80,176,176,176").expect("valid").shape(), Zyx::new(96, 96, 96));
        assert!(parse_box("0,0,0,1,1").expect_err("five").contains("six"));
        assert!(parse_box("0,0,0,1,1,0").expect_err("empty").contains("empty"));
        assert!(parse_voxel("30,12").is_err());
    }
}
