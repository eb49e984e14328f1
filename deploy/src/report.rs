//! `DIR/report.json`, and the same as a table for people.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kinesin_backpressure::Budget;
use kinesin_stages::pipeline::{Moment, StageRow, Telemetry};
use kinesin_stream::ledger::Counts;
use serde::Serialize;

use crate::doubts::Doubt;
use crate::govern::GovernorReport;

/// Everything a finished run says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the acquisition.
    pub name: String,
    /// `complete` or `complete with losses`.
    pub status: String,
    /// Where the results are.
    pub out: PathBuf,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Tiles in each state.
    pub tiles: TileCounts,
    /// Sections by the verdict of their alignment.
    pub sections: BTreeMap<String, usize>,
    /// Sections whose alignment is not good, and why; at most 200, those that are lost first.
    pub(crate) doubts: Vec<Doubt>,
    /// Work of each stage, in flow order.
    pub stages: Vec<StageRow>,
    /// The stage with the most work for each of its threads: the one that limits.
    pub limiting_stage: String,
    /// From a section's last tile to what an operator waits for, seconds.
    pub latency: BTreeMap<String, Quantiles>,
    /// The link.
    pub link: LinkCounts,
    /// What was done less of when compute fell behind.
    pub governor: GovernorReport,
    /// Bytes.
    pub memory: Memory,
    /// Networks: name, provider, precision, library.
    pub models: BTreeMap<String, String>,
    /// Flood filling.
    pub segmentation: BTreeMap<String, f64>,
    /// Against truth, where there is one.
    pub scores: Option<serde_json::Value>,
}

/// Conservation in numbers: `promised = durable + lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TileCounts {
    /// Announced by section plans.
    pub promised: u64,
    /// Safe on disk.
    pub durable: u64,
    /// Will never come.
    pub lost: u64,
    /// Why, with counts.
    pub lost_by_reason: BTreeMap<String, u64>,
    /// Came again and were dropped.
    pub duplicates: u64,
    /// Tiles in each state of the ledger.
    pub states: Counts,
    /// The same tiles from hop to hop; what goes on from one comes in at the next.
    pub hops: Vec<Hop>,
    /// Whether the tiles, counted anew one by one, are as many in each state as the ledger has counted all along.
    pub recount_agrees: bool,
}

/// One hop: `came_in = went_on + held + lost + replaced`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Where.
    pub hop: &'static str,
    /// Tiles that came from the hop before.
    pub came_in: u64,
    /// Tiles that went further.
    pub went_on: u64,
    /// Tiles that are there still; none before the archive once a run is over.
    pub held: u64,
    /// Tiles lost up to here.
    pub lost: u64,
    /// Tiles whose later exposure is used.
    pub replaced: u64,
}

/// From the promise to the volume.
pub fn hops(tiles: &Counts) -> Vec<Hop> {
    let current = tiles.placed + tiles.published;
    let (waiting, promised) = (tiles.open() - tiles.sent, tiles.promised());
    let arrived = tiles.sent + tiles.safe() + tiles.lost;
    let hop = |hop, came_in, went_on, held| Hop { hop, came_in, went_on, held, ..Hop::default() };
    vec![
        hop("link", promised, arrived, waiting),
        Hop { lost: tiles.lost, ..hop("archive", arrived, tiles.safe(), tiles.sent) },
        Hop { replaced: tiles.superseded, ..hop("montage", tiles.safe(), current, tiles.durable) },
        hop("volume", current, tiles.published, tiles.placed),
    ]
}

/// What the scope side saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinkCounts {
    /// Tiles sent.
    pub tiles: u64,
    /// Bytes of pixels sent.
    pub bytes: u64,
    /// Seconds for which the scope was held because the head had no room.
    pub hold_seconds: f64,
    /// Connections made after the first.
    pub reconnects: u64,
}

/// Leased bytes against the budget of `kinesin check`.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Sum of all lines.
    pub budget_bytes: u64,
    /// Most that was leased at one moment.
    pub peak_leased_bytes: u64,
    /// Peak resident memory of the process, where the system tells.
    pub peak_resident_bytes: Option<u64>,
    /// Each line: capacity and peak, bytes, and seconds that senders waited.
    pub lines: Vec<kinesin_backpressure::LineReport>,
}

/// Of a set of durations, seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Half are below.
    pub p50: f64,
    /// 95 % are below.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

impl Quantiles {
    /// Of these durations; all zero where there are none.
    pub fn of(mut values: Vec<Duration>) -> Self {
        values.sort();
        let at = |q: f64| {
            let last = values.len().checked_sub(1)?;
            Some(values[(q * last as f64).round() as usize].as_secs_f64())
        };
        Self { p50: at(0.5).unwrap_or(0.0), p95: at(0.95).unwrap_or(0.0), max: at(1.0).unwrap_or(0.0) }
    }
}

/// From the last tile to the aligned image and to the labels.
pub fn latency(telemetry: &Telemetry) -> BTreeMap<String, Quantiles> {
    let sections = telemetry.sections();
    let lags = |moment| Quantiles::of(sections.values().filter_map(|t| t.lag(moment)).collect());
    BTreeMap::from([
        ("last tile to aligned image".into(), lags(Moment::Image)),
        ("last tile to labels".into(), lags(Moment::Labels)),
    ])
}

/// The memory part.
pub fn memory(budget: &Budget) -> Memory {
    Memory {
        budget_bytes: budget.total().0,
        peak_leased_bytes: budget.peak_leased().0,
        peak_resident_bytes: peak_resident(),
        lines: budget.lines(),
    }
}

/// Linux' `VmHWM`.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Lost sections that the table names; all are in the file.
const SHOWN: usize = 12;

const MIB: f64 = (1 << 20) as f64;

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut t = Vec::new();
        t.push(format!("{}: {} in {:.0} s, results in {}", self.name, self.status, self.seconds, self.out.display()));
        t.push(String::new());
        let tiles = &self.tiles;
        t.push(format!(
            "tiles      {} promised = {} durable + {} lost; {} duplicates dropped; {:.1} MiB over the link, {} reconnects, scope held {:.1} s",
            tiles.promised, tiles.durable, tiles.lost, tiles.duplicates, self.link.bytes as f64 / MIB, self.link.reconnects, self.link.hold_seconds
        ));
        for (reason, count) in &tiles.lost_by_reason {
            t.push(format!("             {count} lost: {reason}"));
        }
        let verdicts: Vec<String> = self.sections.iter().map(|(v, n)| format!("{n} {v}")).collect();
        t.push(format!("sections   {}", verdicts.join(", ")));
        t.extend(self.doubts.iter().filter(|d| d.is_loss()).take(SHOWN).map(|d| format!("             {d}")));
        for (what, q) in &self.latency {
            t.push(format!("latency    {what}: {:.1} s median, {:.1} s p95, {:.1} s longest", q.p50, q.p95, q.max));
        }
        t.extend(self.governor.line());
        let m = &self.memory;
        t.push(format!(
            "memory     {:.0} MiB leased at most, of {:.0} MiB budget{}",
            m.peak_leased_bytes as f64 / MIB,
            m.budget_bytes as f64 / MIB,
            m.peak_resident_bytes.map_or(String::new(), |b| format!("; {:.0} MiB resident at most", b as f64 / MIB)),
        ));
        for (stage, model) in &self.models {
            t.push(format!("network    {stage}: {model}"));
        }
        t.push(String::new());
        t.push(format!(
            "{:<10} {:>8} {:>12} {:>12} {:>18}",
            "stage", "items", "Mpx or Mvx", "busy s", "Mpx/s per core"
        ));
        for row in self.stages.iter().filter(|r| r.items > 0) {
            let mark = if row.stage.name() == self.limiting_stage { "  <- limits" } else { "" };
            t.push(format!(
                "{:<10} {:>8} {:>12.1} {:>12.1} {:>18.2}{mark}",
                row.stage.name(),
                row.items,
                row.megapixels,
                row.busy_seconds,
                row.megapixels_per_second_per_core
            ));
        }
        if !self.segmentation.is_empty() {
            let parts: Vec<String> = self
                .segmentation
                .iter()
                .map(|(k, v)| format!("{k} {v:.4}").trim_end_matches(".0000").to_owned())
                .collect();
            t.push(String::new());
            t.push(format!("segmentation   {}", parts.join(", ")));
        }
        if let Some(scores) = &self.scores {
            t.push(String::new());
            t.push(crate::score::table(scores));
        }
        t.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let q = Quantiles::of((0..=100).rev().map(Duration::from_secs).collect());
        assert_eq!((q.p50, q.p95, q.max), (50.0, 95.0, 100.0));
        assert_eq!(Quantiles::of(Vec::new()).max, 0.0);
    }
}
