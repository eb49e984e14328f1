//! Faults as data: what goes wrong when, in one TOML file (`sim/scenarios/*.toml`).
//!
//! ```toml
//! name = "the head is killed while it makes the second mFOV durable"
//! seed = 7                                        # of all chance in it
//! start = { first = "scope", later_ms = 200 }     # which side is started first, and how long before the other
//! [[event]]
//! what = "kill"                                   # any of Event
//! side = "head"
//! at = { durable = 2 }                            # or { ms = 300 }, { published = 1 }, { appears = "report.json.part" }
//! down_ms = 100
//! ```
//! Who does it: what a process does to itself ([`Event::is_inside`]) is done by `kinesin run | send | receive --scenario FILE`;
//! what is done to processes, network and disks from outside is done by whoever runs them, here the test driver. A
//! scenario is never part of a run's identity: the same command without it goes on.
//!
//! | module | holds |
//! |---|---|
//! | [`draw`] | a random scenario of a seed |
//! | [`shrink`] | simpler ones that may still fail |

pub mod draw;
pub mod shrink;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kinesin_backpressure::{Bytes, DiskLimits};
use kinesin_stream::fault_points::{FaultPoints, StagePoint, WallClock};
use serde::{Deserialize, Serialize};

/// A fault scenario. The default is a run in which nothing goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// What happens, in a few words. No default use.
    pub name: String,
    /// Seed of every chance in it: which packets are lost, which bits flip. Default 0.
    pub seed: u64,
    /// Which side is started first. Default the head, and the scope right after.
    pub start: Start,
    /// What goes wrong. Default nothing.
    #[serde(rename = "event", skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
}

/// The order in which the two sides are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Start {
    /// The side that is started first. Default the head.
    pub first: Side,
    /// How much later the other one is, ms. Default 0.
    pub later_ms: u64,
}

/// One of the two processes, with its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// `kinesin receive`.
    #[default]
    Head,
    /// `kinesin send`.
    Scope,
}

/// When something happens. Counted anew for every event; one whose moment never comes does not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum When {
    /// So many milliseconds after the first start.
    Ms(u64),
    /// Once so many mFOVs are in the head's archive.
    Durable(u64),
    /// Once so many lines are in the head's `commits.jsonl`.
    Published(u64),
    /// Once a file of this name, below the head's results, is there.
    Appears(String),
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// `kill -9`; the side is started again.
    Kill {
        /// Which.
        side: Side,
        /// When.
        at: When,
        /// How long it stays down, ms. Default 0.
        #[serde(default)]
        down_ms: u64,
        /// Whether a killed head comes back at another port. Default false.
        #[serde(default)]
        moved: bool,
    },
    /// As a kill, and everything that was not synced to disk is gone.
    PowerCut {
        /// Which.
        side: Side,
        /// When.
        at: When,
        /// How long it stays down, ms. Default 0.
        #[serde(default)]
        down_ms: u64,
    },
    /// The process stands still, as one does that is swapped out, and goes on.
    Freeze {
        /// Which.
        side: Side,
        /// When.
        at: When,
        /// How long, ms.
        ms: u64,
    },
    /// Nothing passes the link.
    Cut {
        /// When.
        at: When,
        /// How long, ms.
        ms: u64,
    },
    /// The link is bad.
    Weather {
        /// When.
        at: When,
        /// How long, ms; 0 is to the end.
        ms: u64,
        /// In which way.
        #[serde(flatten)]
        weather: Weather,
    },
    /// Each item takes a stage longer: a slow consumer.
    SlowStage {
        /// Name of the stage as in the report.
        stage: String,
        /// How much longer, ms.
        item_ms: u64,
    },
    /// The disk of a side is slow.
    SlowDisk {
        /// Which.
        side: Side,
        /// What each write takes on top, ms.
        write_ms: u64,
        /// What each sync takes on top, ms.
        sync_ms: u64,
    },
    /// The disk of a side is so small, until someone frees it.
    FullDisk {
        /// Which.
        side: Side,
        /// Its size.
        bytes: Bytes,
        /// How long after the side has stopped because of it the disk is freed, and the side started again, ms.
        freed_ms: u64,
    },
    /// The wall clock of a side jumps.
    ClockStep {
        /// Which.
        side: Side,
        /// How long after the start of the process, ms.
        after_ms: u64,
        /// By how much, seconds; negative goes back.
        seconds: f64,
    },
    /// Bits at rest flip while the side is down: at its next start, however it went down.
    Damage {
        /// What is hit.
        store: Store,
        /// How many bits.
        flips: u32,
    },
    /// The end of a log is missing, as after a power cut: at the next start of the head.
    Torn {
        /// Which.
        log: Log,
        /// Bytes that are missing, at most the last line.
        bytes: u64,
    },
    /// A stage panics; the side is started again without that bug.
    Panic {
        /// Name of the stage as in the report.
        stage: String,
        /// At which of its items, from 1.
        item: u64,
    },
}

/// What the link does to packets. Probabilities are a packet's, either way. The default is a good link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weather {
    /// Lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub loss: f64,
    /// Held back so long that later ones overtake it.
    #[serde(skip_serializing_if = "is_zero")]
    pub reorder: f64,
    /// Comes twice.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicate: f64,
    /// One of its bits flips.
    #[serde(skip_serializing_if = "is_zero")]
    pub corrupt: f64,
    /// How long each takes, ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_ms: f64,
    /// How much longer at most, drawn for each, ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub jitter_ms: f64,
}

/// Bytes at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// A file of the head's archive.
    Archive,
    /// A segment of the scope's spool.
    Spool,
}

/// A log of the head that is written line by line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// `commits.jsonl`.
    Commits,
    /// `volume/equivalences.jsonl`.
    Equivalences,
}

/// What a process does to itself.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// Stages and clock.
    pub points: FaultPoints,
    /// The disk with the results, at the head.
    pub head_disk: DiskLimits,
    /// The disk with the spool, at the scope.
    pub scope_disk: DiskLimits,
}

/// Why a scenario cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// No such file.
    #[error("cannot read the scenario {path}: {source}; give a TOML file such as those in sim/scenarios")]
    Read {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no scenario.
    #[error("{0}")]
    Content(String),
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// Where there is none, or it says what no scenario can.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ScenarioError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text).map_err(|what| ScenarioError::Content(format!("{}: {what}", path.display())))
    }

    /// Reads a scenario.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        let faults = scenario.faults();
        if faults.is_empty() { Ok(scenario) } else { Err(faults.join("\n")) }
    }

    /// As a file that [`Self::load`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be written: {e}\n# {self:?}\n"))
    }

    /// What no scenario can say.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (i, event) in self.events.iter().enumerate() {
            let mut say = |text: String| faults.push(format!("event {}: {text}", i + 1));
            match event {
                Event::Weather { weather: w, .. } => {
                    for (key, chance) in
                        [("loss", w.loss), ("reorder", w.reorder), ("duplicate", w.duplicate), ("corrupt", w.corrupt)]
                    {
                        if !(0.0..=1.0).contains(&chance) {
                            say(format!("{key} = {chance} is no probability; use 0 to 1"));
                        }
                    }
                    if !(0.0..=60_000.0).contains(&w.delay_ms) || !(0.0..=60_000.0).contains(&w.jitter_ms) {
                        say("delay_ms and jitter_ms: use 0 to 60000".into());
                    }
                }
                Event::Kill { side: Side::Scope, moved: true, .. } => {
                    say("only a head has an address that can move; leave moved out".into());
                }
                Event::Panic { item: 0, .. } => say("item = 0: items are counted from 1".into()),
                Event::ClockStep { seconds, .. } if !seconds.is_finite() || seconds.abs() >= 1e10 => {
                    say(format!("seconds = {seconds}: use less than 1e10 either way"));
                }
                _ => {}
            }
        }
        faults
    }

    /// Stages that it names: whoever knows the stages checks them.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(|event| match event {
            Event::SlowStage { stage, .. } | Event::Panic { stage, .. } => Some(stage.as_str()),
            _ => None,
        })
    }

    /// What the processes of these sides do to themselves; the clock starts now.
    pub fn inside(&self, sides: &[Side]) -> Inside {
        let mut inside = Inside::default();
        let mut stages: BTreeMap<String, StagePoint> = BTreeMap::new();
        let mut steps = Vec::new();
        for event in &self.events {
            match event {
                Event::SlowStage { stage, item_ms } => {
                    stages.entry(stage.clone()).or_default().pause += Duration::from_millis(*item_ms);
                }
                Event::Panic { stage, item } => stages.entry(stage.clone()).or_default().panic_at = Some(*item),
                Event::SlowDisk { side, write_ms, sync_ms } if sides.contains(side) => {
                    let disk = inside.disk(*side);
                    disk.write += Duration::from_millis(*write_ms);
                    disk.sync += Duration::from_millis(*sync_ms);
                }
                Event::FullDisk { side, bytes, .. } if sides.contains(side) => {
                    inside.disk(*side).capacity = Some(*bytes);
                }
                Event::ClockStep { side, after_ms, seconds } if sides.contains(side) => {
                    steps.push((Duration::from_millis(*after_ms), (seconds * 1e3) as i64));
                }
                _ => {}
            }
        }
        inside.points = FaultPoints { stages, clock: WallClock::with_steps(steps) };
        inside
    }
}

impl Inside {
    fn disk(&mut self, side: Side) -> &mut DiskLimits {
        match side {
            Side::Head => &mut self.head_disk,
            Side::Scope => &mut self.scope_disk,
        }
    }
}

impl Event {
    /// Whether a process does it to itself.
    pub fn is_inside(&self) -> bool {
        matches!(
            self,
            Self::SlowStage { .. }
                | Self::SlowDisk { .. }
                | Self::FullDisk { .. }
                | Self::ClockStep { .. }
                | Self::Panic { .. }
        )
    }
}

impl Side {
    /// For people, and names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Scope => "scope",
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_that_is_written_is_read_back_and_every_kind_of_event_can_be_written() {
        for seed in 0..500 {
            let drawn = Scenario::drawn(seed);
            assert_eq!(Scenario::parse(&drawn.to_toml()).as_ref(), Ok(&drawn), "{}", drawn.to_toml());
        }
    }

    #[test]
    fn unknown_keys_and_impossible_numbers_are_refused_by_name() {
        let refused = |text: &str| Scenario::parse(text).expect_err(text);
        assert!(refused("sead = 3").contains("sead"));
        assert!(
            refused("[[event]]\nwhat = \"kill\"\nside = \"head\"\nat = { ms = 3 }\ndwon_ms = 4").contains("dwon_ms")
        );
        assert!(refused("[[event]]\nwhat = \"explode\"").contains("explode"));
        assert!(refused("[[event]]\nwhat = \"kill\"\nside = \"head\"\nat = { sometime = 3 }").contains("sometime"));
        let weather = "[[event]]\nwhat = \"weather\"\nat = { ms = 0 }\nms = 0\n";
        assert!(refused(&format!("{weather}loss = 1.5")).contains("probability"));
        assert!(refused("[[event]]\nwhat = \"panic\"\nstage = \"match\"\nitem = 0").contains("from 1"));
    }

    #[test]
    fn each_side_does_only_what_concerns_it() {
        let text = "[[event]]\nwhat = \"slow_disk\"\nside = \"head\"\nwrite_ms = 1\nsync_ms = 2\n
            [[event]]\nwhat = \"full_disk\"\nside = \"scope\"\nbytes = \"1 MiB\"\nfreed_ms = 5\n
            [[event]]\nwhat = \"clock_step\"\nside = \"scope\"\nafter_ms = 0\nseconds = -30.0";
        let scenario = Scenario::parse(text).expect("right");
        let head = scenario.inside(&[Side::Head]);
        assert_eq!((head.head_disk.sync, head.scope_disk.capacity), (Duration::from_millis(2), None));
        let scope = scenario.inside(&[Side::Scope]);
        assert_eq!((scope.head_disk.sync, scope.scope_disk.capacity), (Duration::ZERO, Some(Bytes::mib(1))));
        assert!(scope.points.clock.unix_ms() < head.points.clock.unix_ms());
    }
}
