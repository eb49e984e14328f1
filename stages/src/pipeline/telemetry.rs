//! What the run did, counted where it happens: per stage the items, pixels and busy time; per section the moments that an
//! operator waits for. Nothing here decides anything: results do not depend on it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The stages that are counted, in flow order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Tile quality.
    Inspect,
    /// Tiles made durable.
    Archive,
    /// Point matches between overlapping tiles.
    Match,
    /// Tile transforms of a section.
    Montage,
    /// Section into the volume.
    Align,
    /// Aligned pixels.
    Render,
    /// Vessels, cell bodies, resin.
    Mask,
    /// Flood filling and agglomeration.
    Flood,
    /// Labels, equivalences, commits.
    Publish,
}

impl StageName {
    /// All, in flow order.
    pub const ALL: [Self; 9] = [
        Self::Inspect,
        Self::Archive,
        Self::Match,
        Self::Montage,
        Self::Align,
        Self::Render,
        Self::Mask,
        Self::Flood,
        Self::Publish,
    ];

    /// As shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Archive => "archive",
            Self::Match => "match",
            Self::Montage => "montage",
            Self::Align => "align",
            Self::Render => "render",
            Self::Mask => "mask",
            Self::Flood => "flood",
            Self::Publish => "publish",
        }
    }
}

#[derive(Debug, Default)]
struct Meter {
    items: AtomicU64,
    pixels: AtomicU64,
    busy_ns: AtomicU64,
}

/// Moments of one section, from the start of the run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SectionTimes {
    /// Its last tile was durable or declared lost.
    pub last_tile: Option<Duration>,
    /// Its aligned image was published.
    pub image: Option<Duration>,
    /// Its labels were published.
    pub labels: Option<Duration>,
}

/// Which moment of a section.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// Last tile in.
    LastTile,
    /// Image out.
    Image,
    /// Labels out.
    Labels,
}

/// One stage's row of the report.
#[derive(Clone, Debug, Serialize)]
pub struct StageRow {
    /// Which stage.
    pub stage: StageName,
    /// Tiles, pairs, sections or windows.
    pub items: u64,
    /// Input in millions of pixels or voxels.
    pub megapixels: f64,
    /// Thread-seconds at work, waiting not counted.
    pub busy_seconds: f64,
    /// Millions of pixels or voxels for each thread-second at work.
    pub megapixels_per_second_per_core: f64,
}

/// Shared by all threads of a run.
#[derive(Debug)]
pub struct Telemetry {
    started: Instant,
    meters: [Meter; StageName::ALL.len()],
    sections: Mutex<BTreeMap<u32, SectionTimes>>,
    provisional: AtomicU64,
    faults: AtomicU64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            meters: Default::default(),
            sections: Mutex::default(),
            provisional: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }
}

impl Telemetry {
    /// Runs `work` and counts it as one item of `pixels` for `stage`.
    pub fn time<R>(&self, stage: StageName, pixels: u64, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.count(stage, 1, pixels, start.elapsed());
        result
    }

    /// Counts work that was timed elsewhere; `busy` is in thread-seconds.
    pub fn count(&self, stage: StageName, items: u64, pixels: u64, busy: Duration) {
        let meter = &self.meters[stage as usize];
        meter.items.fetch_add(items, Relaxed);
        meter.pixels.fetch_add(pixels, Relaxed);
        meter.busy_ns.fetch_add(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Items done by `stage` so far.
    pub fn items(&self, stage: StageName) -> u64 {
        self.meters[stage as usize].items.load(Relaxed)
    }

    /// Notes that section `z` reached `moment` now; a later note of the same moment replaces the earlier one.
    pub fn mark(&self, z: u32, moment: Moment) {
        let now = self.started.elapsed();
        let mut sections = self.sections.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let times = sections.entry(z).or_default();
        match moment {
            Moment::LastTile => times.last_tile = Some(now),
            Moment::Image => times.image = Some(now),
            Moment::Labels => times.labels = Some(now),
        }
    }

    /// Notes sections that got provisional labels.
    pub(super) fn provisional(&self, sections: u32) {
        self.provisional.fetch_add(u64::from(sections), Relaxed);
    }

    /// Sections that got provisional labels in this run.
    pub fn provisional_sections(&self) -> u64 {
        self.provisional.load(Relaxed)
    }

    /// Notes faults that were recorded as they were seen.
    pub(super) fn faults(&self, more: u64) {
        self.faults.fetch_add(more, Relaxed);
    }

    /// Lines of `faults.jsonl` written in this run.
    pub fn quality_faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    /// Moments of section `z` so far.
    pub fn times(&self, z: u32) -> SectionTimes {
        let sections = self.sections.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sections.get(&z).copied().unwrap_or_default()
    }

    /// Since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many sections reached `moment`.
    pub fn reached(&self, moment: Moment) -> usize {
        self.sections().values().filter(|t| t.at(moment).is_some()).count()
    }

    /// Moments of every section so far, by z.
    pub fn sections(&self) -> BTreeMap<u32, SectionTimes> {
        self.sections.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The report's rows in flow order.
    pub fn rows(&self) -> Vec<StageRow> {
        let row = |stage: StageName| {
            let meter = &self.meters[stage as usize];
            let megapixels = meter.pixels.load(Relaxed) as f64 / 1e6;
            let busy_seconds = meter.busy_ns.load(Relaxed) as f64 / 1e9;
            let rate = if busy_seconds > 0.0 { megapixels / busy_seconds } else { 0.0 };
            StageRow {
                stage,
                items: meter.items.load(Relaxed),
                megapixels,
                busy_seconds,
                megapixels_per_second_per_core: rate,
            }
        };
        StageName::ALL.into_iter().map(row).collect()
    }
}

impl SectionTimes {
    /// The moment, where it has come.
    pub fn at(&self, moment: Moment) -> Option<Duration> {
        match moment {
            Moment::LastTile => self.last_tile,
            Moment::Image => self.image,
            Moment::Labels => self.labels,
        }
    }

    /// From the last tile to `moment`.
    pub fn lag(&self, moment: Moment) -> Option<Duration> {
        Some(self.at(moment)?.saturating_sub(self.last_tile?))
    }
}
