//! How the volume is cut into windows and blocks for flooding, resolved against the network's field of view.

use std::path::PathBuf;

use kinesin_stream::geometry::Zyx;
use serde::{Deserialize, Serialize};

use super::histogram::HistogramRule;
use super::masks::{MaskRule, ShiftRule};
use super::policies::SeedPolicy;
use super::rules::{FloodRules, RuleConfig};
use super::schedule::{Schedule, ThriftyRule};
use crate::agglomerate::JoinRule;

/// `[flood]` of a site file. Lengths in voxels of the segmentation. Every default follows from the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FloodConfig {
    /// Sections held at a time. Default: two fields of view; more joins better and waits longer for labels.
    pub window: Option<usize>,
    /// Labelled sections a window sees again. Default: half a field of view and one step, so that a centre fits inside them.
    pub head: Option<usize>,
    /// Last sections of a window left to the next one. Default: one step, beyond which no centre of a field of view lies.
    pub tail: Option<usize>,
    /// Side of a block's own area. Default 256: blocks for several workers, and the halo costs less than half.
    pub core: Option<usize>,
    /// What a block sees on each side beyond its own area. Default: half a field of view and one step.
    pub halo: Option<usize>,
    /// Blocks per network call of one worker. Default 1: batches gain nothing on a CPU; 16 serves a GPU. Never changes results.
    pub batch: Option<usize>,
    /// Which positions of the field of view are run: `reference`, all as in the published runs, or `thrifty`, some six
    /// tenths for labels nearly as good. Default `reference`.
    pub schedule: Schedule,
    /// How thrifty; only with that schedule.
    pub thrifty: Option<ThriftyRule>,
    /// Coarser than any schedule: share of a field of view that must be unexplored for it to be run at all. Default 0 (off);
    /// 0.05 halves the evaluations and loses some coverage.
    pub skip_explored: f64,
    /// When two floods are one object.
    pub join: JoinRule,
    /// What is taken in place of the model's rules.
    pub rules: RuleConfig,
    /// Where objects start, one policy after the other. Default `[{ kind = "peaks" }]`, as in the published runs.
    pub seeds: Vec<SeedPolicy>,
    /// What is kept out, beside the class map of the mask stage. Default nothing.
    pub masks: Vec<MaskRule>,
    /// Keeps fields of view from lying across jumps between sections. Default off.
    pub shift: Option<ShiftRule>,
    /// Sections in a row without data, or laid where their neighbours do not confirm it, that objects are followed across: the network sees
    /// the section before the gap in their place, and nothing is labelled there. After a longer gap every object ends. Default 1.
    pub bridge: usize,
    /// Matches the grey values of each section to a reference before they are normalised. Default off.
    pub histogram: Option<HistogramRule>,
    /// Labels to build on, a run's folder or a label volume: its objects stay as they are, and new ones fill what is left. They
    /// keep their ids, those of an earlier run without the layer in their highest byte; other ids from 2^56 on are refused.
    /// Default none.
    pub initial: Option<PathBuf>,
    /// Whether `volume/probability` is written: of each voxel the probability that it belongs to its object, 1 to 255 for
    /// (0, 1], 0 where there is none. Default false.
    pub probability: bool,
    /// New objects that fall apart within a block become one each, down to this many voxels; smaller pieces are dropped.
    /// Default: off, an object keeps all its pieces.
    pub split_pieces: Option<u64>,
    /// Seconds between checkpoints of a block that is being flooded; 0 is off. Default 30: what a killed run loses at most.
    /// Never changes results.
    pub checkpoint_seconds: f64,
}

impl Default for FloodConfig {
    fn default() -> Self {
        Self {
            window: None,
            head: None,
            tail: None,
            core: None,
            halo: None,
            batch: None,
            schedule: Schedule::default(),
            thrifty: None,
            skip_explored: 0.0,
            join: JoinRule::default(),
            rules: RuleConfig::default(),
            seeds: vec![SeedPolicy::peaks()],
            masks: Vec::new(),
            shift: None,
            bridge: 1,
            histogram: None,
            initial: None,
            probability: false,
            split_pieces: None,
            checkpoint_seconds: 30.0,
        }
    }
}

/// [`FloodConfig`] with every number known.
#[derive(Clone, Debug, PartialEq)]
pub struct FloodPlan {
    pub(super) window: usize,
    pub(super) head: usize,
    pub(super) tail: usize,
    pub(super) core: usize,
    pub(super) halo: usize,
    pub(super) batch: usize,
    pub(super) join: JoinRule,
    pub(super) rules: FloodRules,
    /// Bytes a voxel that options add: to the window, to a worker's block.
    extra: (u64, u64),
}

impl FloodConfig {
    /// Fills in what follows from the network.
    ///
    /// # Errors
    /// All settings that contradict the network or each other.
    pub fn resolve(&self, rules: &FloodRules) -> Result<FloodPlan, Vec<String>> {
        let mut faults = Vec::new();
        let rules = rules.clone().skipping_explored(self.skip_explored).scheduled(self.thrifty_rule());
        let rules = rules.clone().with(&self.rules).unwrap_or_else(|found| {
            faults.extend(found);
            rules
        });
        let (fov, step) = (rules.fov(), rules.deltas());
        let plan = FloodPlan {
            window: self.window.unwrap_or(2 * fov.z),
            head: self.head.unwrap_or(fov.z / 2 + step.z.max(1)),
            tail: self.tail.unwrap_or(step.z.max(1)),
            core: self.core.unwrap_or(256),
            halo: self.halo.unwrap_or(fov.y.max(fov.x) / 2 + step.y.max(step.x)),
            batch: self.batch.unwrap_or(1),
            join: self.join.clone(),
            rules,
            extra: self.extra_bytes(),
        };
        let mut want = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        want(
            plan.window >= fov.z,
            format!("flood.window = {} is below the field of view's {} sections", plan.window, fov.z),
        );
        want(
            plan.head > fov.z / 2,
            format!("flood.head = {} holds no centre of a field of view, use {} or more", plan.head, fov.z / 2 + 1),
        );
        want(
            plan.window > plan.head + plan.tail,
            format!(
                "flood.window = {} leaves no new sections beside head {} and tail {}, use {} or more",
                plan.window,
                plan.head,
                plan.tail,
                plan.head + plan.tail + 1
            ),
        );
        want(
            plan.core >= fov.y.max(fov.x),
            format!("flood.core = {} is below the field of view's {}", plan.core, fov.y.max(fov.x)),
        );
        want(plan.batch >= 1, "flood.batch = 0, use 1 or more".into());
        let share = self.skip_explored;
        want((0.0..1.0).contains(&share), format!("flood.skip_explored = {share}, use 0 (off) to below 1"));
        want(
            (0.0..=1.0).contains(&plan.join.min_iou),
            format!("flood.join.min_iou = {}, use 0 to 1", plan.join.min_iou),
        );
        self.option_faults(&mut want);
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    fn option_faults(&self, want: &mut dyn FnMut(bool, String)) {
        want(
            !self.seeds.is_empty(),
            "flood.seeds is empty, no object could start; leave it out for the default".into(),
        );
        for (i, policy) in self.seeds.iter().enumerate() {
            policy.faults(&format!("flood.seeds.{i}"), want);
        }
        for (i, mask) in self.masks.iter().enumerate() {
            mask.faults(&format!("flood.masks.{i}"), want);
        }
        if let Some(shift) = &self.shift {
            shift.faults(want);
        }
        if let Some(thrifty) = &self.thrifty {
            thrifty.faults(want);
            want(
                self.schedule == Schedule::Thrifty,
                "flood.thrifty is given but schedule = \"reference\"; set schedule = \"thrifty\" or leave it out"
                    .into(),
            );
        }
        let seconds = self.checkpoint_seconds;
        want(seconds >= 0.0, format!("flood.checkpoint_seconds = {seconds}, use 0 (off) or more"));
    }

    fn thrifty_rule(&self) -> Option<ThriftyRule> {
        (self.schedule == Schedule::Thrifty).then(|| self.thrifty.clone().unwrap_or_default())
    }

    fn extra_bytes(&self) -> (u64, u64) {
        // Any gap may bar centres.
        let barred = 1;
        let probability = u64::from(self.probability);
        let initial = 8 * u64::from(self.initial.is_some());
        // a checkpoint holds activations and, in the worst case, a run for each label
        let checkpoint = if self.checkpoint_seconds > 0.0 { 12 } else { 0 };
        (2 * barred + 2 * initial + probability, barred + probability + checkpoint)
    }
}

/// One window: sections `[first, end)` are seen, `[open, commit)` get their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Number of the window.
    pub window: usize,
    /// First section seen.
    pub first: usize,
    /// First section without labels.
    pub open: usize,
    /// First section left to later windows.
    pub commit: usize,
    /// First section not seen.
    pub end: usize,
}

impl FloodPlan {
    /// The window that labels section `open` of a volume of `total` sections; depends on nothing else, hence restarts.
    pub fn span(&self, open: usize, total: usize) -> Span {
        let step = self.window - self.head - self.tail;
        let window = if open == 0 { 0 } else { 1 + open.saturating_sub(self.window - self.tail) / step };
        let first = if open == 0 { 0 } else { open.saturating_sub(self.head) };
        let end = first + self.window;
        if end >= total {
            Span { window, first: total.saturating_sub(self.window).min(first), open, commit: total, end: total }
        } else {
            Span { window, first, open, commit: end - self.tail, end }
        }
    }

    /// Sections before the first unlabelled one that may be seen again: what a restart must bring.
    pub fn context(&self) -> usize {
        self.window
    }

    /// Bytes held at most: per voxel of the window 10 (grey, closed, labels) + 4 for the results of all blocks, and per voxel of
    /// a worker's block 14 while flooding and 42 more while its start points are found.
    pub fn bytes(&self, plane: Zyx<usize>, workers: usize) -> u64 {
        let cut = |n: usize| n.div_ceil(blocks_along(n, self.core)) + 2 * self.halo;
        let block = (cut(plane.y).min(plane.y) * cut(plane.x).min(plane.x) * self.window) as u64;
        let blocks = (blocks_along(plane.y, self.core) * blocks_along(plane.x, self.core)) as u64;
        let window = (plane.y * plane.x * self.window) as u64;
        let (more, own) = self.extra;
        window * (20 + more) + block * blocks * 4 + block * workers as u64 * ((14 + own) * self.batch as u64 + 42)
    }
}

/// How many blocks share `n` voxels when a block's own area is about `core` wide.
pub(super) fn blocks_along(n: usize, core: usize) -> usize {
    ((n + core / 2) / core).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> FloodPlan {
        let ffn = crate::model::FfnRules {
            deltas: Zyx::new(4, 8, 8),
            init_activation: 0.95,
            pad_value: 0.05,
            move_threshold: 0.9,
            segment_threshold: 0.6,
            min_segment_size: 1,
            min_boundary_dist: Zyx::new(0, 0, 0),
            disco_seed_threshold: 0.0,
        };
        // windows of two fields of view, head of a half and a step, tail of a step
        FloodConfig::default().resolve(&FloodRules::new(Zyx::new(17, 33, 33), &ffn)).unwrap()
    }

    #[test]
    fn windows_cover_every_section_once_and_see_their_head_again() {
        for total in [5, 34, 35, 38, 100, 101, 117] {
            let (mut open, mut number) = (0, 0);
            while open < total {
                let s = plan().span(open, total);
                assert_eq!((s.open, s.window), (open, number));
                assert!(s.commit > open && s.end <= total && s.end - s.first <= 34);
                assert!(open == 0 || open - s.first >= 12, "head of {s:?}");
                open = s.commit;
                number += 1;
            }
            assert_eq!(open, total);
        }
    }

    #[test]
    fn the_last_window_reaches_back_to_full_depth() {
        // windows end at 34, 52 (first 18), ...: with 40 sections the second is the last and sees 6..40
        assert_eq!(plan().span(30, 40), Span { window: 1, first: 6, open: 30, commit: 40, end: 40 });
    }
}
