//! How the volume is cut into windows and blocks for flooding, resolved against the network's field of view.

use kinesin_stream::geometry::Zyx;
use serde::{Deserialize, Serialize};

use super::rules::FloodRules;
use crate::agglomerate::JoinRule;

/// `[flood]` of a site file. Lengths in voxels of the segmentation. Every default follows from the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Share of a field of view that must be unexplored for it to be run. Default 0 (always run), 0.05 halves the work and
    /// loses some coverage.
    pub skip_explored: f64,
    /// When two floods are one object.
    pub join: JoinRule,
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
}

impl FloodConfig {
    /// Fills in what follows from the network.
    ///
    /// # Errors
    /// All settings that contradict the network or each other.
    pub fn resolve(&self, rules: &FloodRules) -> Result<FloodPlan, Vec<String>> {
        let (fov, step) = (rules.fov(), rules.deltas());
        let plan = FloodPlan {
            window: self.window.unwrap_or(2 * fov.z),
            head: self.head.unwrap_or(fov.z / 2 + step.z.max(1)),
            tail: self.tail.unwrap_or(step.z.max(1)),
            core: self.core.unwrap_or(256),
            halo: self.halo.unwrap_or(fov.y.max(fov.x) / 2 + step.y.max(step.x)),
            batch: self.batch.unwrap_or(1),
            join: self.join.clone(),
        };
        let mut faults = Vec::new();
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
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
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
        2 * window * 10 + block * blocks * 4 + block * workers as u64 * (14 * self.batch as u64 + 42)
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
        FloodPlan { window: 34, head: 12, tail: 4, core: 256, halo: 24, batch: 1, join: JoinRule::default() }
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
