//! One side of the link as a process: its disk, what it does to itself, what it said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use kinesin_sim::scenario::{Event, Scenario, Side};

use super::super::disk::Disk;

/// One side: its process, its disk, what it still does to itself.
pub(super) struct Process {
    pub(super) side: Side,
    pub(super) child: Option<Child>,
    pub(super) code: Option<i32>,
    pub(super) starts: u32,
    /// When it was started last.
    pub(super) started: Option<Instant>,
    pub(super) start_at: Option<Instant>,
    pub(super) inside: Vec<Event>,
    pub(super) disk: Option<Disk>,
    pub(super) freed: bool,
    pub(super) home: PathBuf,
}

impl Process {
    pub(super) fn new(side: Side, folder: &Path, inside: &[Event], scenario: &Scenario) -> Self {
        let home = folder.join(side.name());
        let disk = home.join("disk");
        fs::create_dir_all(&disk).expect("a temporary folder");
        let concerns = |e: &&Event| match e {
            Event::SlowDisk { side: s, .. } | Event::FullDisk { side: s, .. } | Event::ClockStep { side: s, .. } => {
                *s == side
            }
            _ => side == Side::Head,
        };
        let mut inside: Vec<Event> = inside.iter().filter(concerns).cloned().collect();
        let cuts = |e: &Event| matches!(e, Event::PowerCut { side: s, .. } if *s == side);
        let full = inside.iter().find_map(|e| match e {
            Event::FullDisk { bytes, .. } => Some(bytes.0),
            _ => None,
        });
        let disk = if scenario.events.iter().any(cuts) && Disk::can_lose_power() {
            Disk::losing_power(&home, "disk")
        } else if let Some(bytes) = full.filter(|_| Disk::can_be_small()) {
            // Really full, for every file on it; else the archive alone is told that it is.
            inside.retain(|e| !matches!(e, Event::FullDisk { .. }));
            Disk::small(&home, "disk", bytes)
        } else {
            None
        };
        if side == Side::Scope {
            // A spool that is told that it has less room than two mFOVs is refused at its start: another promise.
            inside.retain(|e| !matches!(e, Event::FullDisk { .. }));
        }
        Self {
            side,
            child: None,
            code: None,
            starts: 0,
            started: None,
            start_at: None,
            inside,
            disk,
            freed: false,
            home,
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill -9");
            child.wait().expect("reaped");
        }
    }

    /// What it said on standard error, from all its starts.
    pub(super) fn said(&self) -> String {
        (1..=self.starts).map(|n| fs::read_to_string(self.home.join(format!("{n}.err"))).unwrap_or_default()).collect()
    }

    pub(super) fn last_said(&self) -> String {
        fs::read_to_string(self.home.join(format!("{}.err", self.starts))).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
