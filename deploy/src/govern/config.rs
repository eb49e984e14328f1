//! `[govern]` of a site file.

use kinesin_backpressure::Bytes;
use kinesin_backpressure::governor::{GovernConfig, Rung};
use kinesin_stream::plan::RunPlan;
use serde::{Deserialize, Serialize};

use crate::faults::Problem;

/// What happens when compute falls behind. Results depend on none of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GovernSection {
    /// Whether the ladder moves. Default: for an instrument with a pace of its own. Recorded data and a simulator without a
    /// pace wait by themselves; giving up labels for them would gain nothing.
    pub enabled: Option<bool>,
    /// Seconds between two looks at the buffers. Default 1: much shorter than every threshold.
    pub tick_seconds: f64,
    /// Bytes of complete sections that may wait to be drawn ("line"). Default: eight sections of the plan; two at least.
    pub backlog: Option<Bytes>,
    /// Bytes of drawn voxels that may wait for their labels ("labels"), at the resolution of the labels. Default: any. They
    /// wait on disk and hurt nobody; a bound asks for quick labels instead when the full ones lag.
    pub labels_backlog: Option<Bytes>,
    /// Whether sections get quick provisional labels while the full flood is paused. Default true; false saves the memory
    /// of their network.
    pub light_labels: bool,
    /// Thresholds of the ladder.
    pub ladder: GovernConfig,
    /// To rehearse what happens. Default: nothing.
    pub drill: Drill,
}

/// `[govern.drill]`: the modes by order instead of by load, and a line that is slow on purpose. Results are those of any other
/// run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drill {
    /// From each number of drawn sections on, this mode: `[[3, "stitch_only"], [9, "full"]]`. The ladder then does not decide.
    pub script: Vec<(u32, Rung)>,
    /// From each z on, drawing a section takes this many milliseconds longer: `[[10, 2000], [20, 0]]`.
    pub slow_render_ms: Vec<(u32, u64)>,
}

impl Default for GovernSection {
    fn default() -> Self {
        Self {
            enabled: None,
            tick_seconds: 1.0,
            backlog: None,
            labels_backlog: None,
            light_labels: true,
            ladder: GovernConfig::default(),
            drill: Drill::default(),
        }
    }
}

impl GovernSection {
    /// Whether the ladders move in a run of this plan.
    pub fn moves(&self, plan: &RunPlan) -> bool {
        self.enabled.unwrap_or(plan.peak_tiles_per_second > 0.0)
    }

    /// Whether anything can change the head's mode in a run of this plan.
    pub fn is_on(&self, plan: &RunPlan) -> bool {
        self.moves(plan) || !self.drill.script.is_empty()
    }

    /// Whether provisional labels may be made.
    pub fn makes_light_labels(&self, plan: &RunPlan) -> bool {
        self.light_labels && self.is_on(plan)
    }

    /// Bytes that may wait to be drawn, given those of one section.
    pub fn backlog(&self, section: u64) -> u64 {
        self.backlog.map_or(8 * section, |b| b.0.max(2 * section))
    }

    /// What cannot be used.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.ladder.problems().into_iter().map(ladder).collect();
        let mut say = |place: &str, text: String| problems.push(Problem { place: place.into(), text });
        if !(self.tick_seconds >= 0.01 && self.tick_seconds <= 60.0) {
            say("govern.tick_seconds", format!("{}\nuse 0.01 to 60, default 1", self.tick_seconds));
        }
        if !self.drill.script.is_sorted_by(|a, b| a.0 < b.0) {
            say("govern.drill.script", "sections out of order\ngive ascending section numbers, each once".into());
        }
        if let Some((_, rung)) = self.drill.script.iter().find(|(_, rung)| *rung > Rung::SpoolOnly) {
            let known = "full, lighter_segmentation, stitch_only or spool_only";
            say("govern.drill.script", format!("{:?} is not a mode of the head\nuse {known}", rung.name()));
        }
        if !self.drill.slow_render_ms.is_sorted_by(|a, b| a.0 < b.0) {
            say(
                "govern.drill.slow_render_ms",
                "sections out of order\ngive ascending section numbers, each once".into(),
            );
        }
        problems
    }
}

fn ladder((key, text): (&'static str, String)) -> Problem {
    Problem { place: format!("govern.ladder.{key}"), text }
}
