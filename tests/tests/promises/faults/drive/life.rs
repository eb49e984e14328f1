//! Starting a side, and what its end means: over, excused by the scenario, or a broken promise.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kinesin_sim::scenario::{Event, Scenario, Side};

use super::{Driver, index};
use crate::harness::{command, text};

impl Driver<'_> {
    pub(super) fn start_when_due(&mut self, side: Side) -> Result<(), String> {
        if self.process(side).start_at.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        self.process(side).start_at = None;
        if side == Side::Scope && self.is_finished() {
            // Nobody is there to be called; the head's report says that all is done.
            return Ok(());
        }
        if self.process(side).starts > 0 {
            self.spoil(side)?;
        }
        let site = self.site(side);
        let process = self.process(side);
        process.starts += 1;
        process.started = Some(Instant::now());
        self.tell(format!("{} starts", side.name()));
        self.spawn(side, &site);
        Ok(())
    }

    fn spawn(&mut self, side: Side, site: &Path) {
        let out = self.out();
        let scenario = self.folder.path().join(format!("{}.scenario.toml", side.name()));
        let prefix = self.wire.prefix(side);
        let process = self.process(side);
        let mut arguments: Vec<String> = match side {
            Side::Head => vec!["receive".into(), text(site).into(), "--out".into(), text(&out).into(), "--json".into()],
            Side::Scope => vec!["send".into(), text(site).into(), "--json".into()],
        };
        if !process.inside.is_empty() {
            let inside = Scenario { events: process.inside.clone(), ..Scenario::default() };
            fs::write(&scenario, inside.to_toml()).expect("writable");
            arguments.extend(["--scenario".into(), text(&scenario).into()]);
        }
        let plain = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let mut started = match prefix {
            None => plain,
            Some([program, first @ ..]) => {
                let mut within = Command::new(program);
                within.args(first).arg(plain.get_program()).args(plain.get_args());
                within.current_dir(plain.get_current_dir().expect("set")).stdin(Stdio::null());
                within
            }
        };
        let said = File::create(process.home.join(format!("{}.err", process.starts))).expect("writable");
        started.env("KINESIN_LOG", "warn,kinesin_stream::link=debug").env("NO_COLOR", "1");
        let child = started.stdout(Stdio::null()).stderr(said).spawn().expect("the program starts");
        process.child = Some(child);
    }

    pub(super) fn see_whether_ended(&mut self, side: Side) -> Result<(), String> {
        let process = self.process(side);
        let Some(child) = &mut process.child else { return Ok(()) };
        let Some(status) = child.try_wait().expect("ours") else { return Ok(()) };
        process.child = None;
        process.code = status.code();
        self.tell(format!("{} ended with {:?}", side.name(), status.code()));
        match status.code() {
            Some(0 | 1) => Ok(()),
            Some(2) if side == Side::Head && self.is_finished() => Ok(()),
            Some(3) => self.excused(side),
            other => Err(format!("the {} ended with {other:?}", side.name())),
        }
    }

    /// A side stopped by a fault: only by one that the scenario made, which is then mended.
    fn excused(&mut self, side: Side) -> Result<(), String> {
        let said = self.process(side).last_said();
        let restart = |d: &mut Self, ms: u64| {
            d.process(side).start_at = Some(Instant::now() + Duration::from_millis(ms));
            if side == Side::Head {
                d.wake_the_scope();
            }
        };
        let process = self.process(side);
        if said.contains("the fault scenario asks for") {
            process.inside.retain(|e| !matches!(e, Event::Panic { .. }));
            restart(self, 0);
            return Ok(());
        }
        if ["no room", "os error 28", "No space left", "is full"].iter().any(|words| said.contains(words)) {
            let full = process.inside.iter().position(|e| matches!(e, Event::FullDisk { .. }));
            let freed_ms = match (full, self.full_disk(side)) {
                (Some(at), Some(ms)) => {
                    self.process(side).inside.remove(at);
                    ms
                }
                (None, Some(ms)) => {
                    if let Some(disk) = &self.process(side).disk {
                        disk.free();
                    }
                    ms
                }
                _ => return Err(format!("the {} says that its disk is full, and it is not", side.name())),
            };
            restart(self, freed_ms);
            return Ok(());
        }
        if said.contains("damaged") && !self.damaged.is_empty() {
            for (path, bytes) in std::mem::take(&mut self.damaged) {
                self.tell(format!("{} is restored", path.display()));
                fs::write(path, bytes).expect("writable");
            }
            restart(self, 0);
            return Ok(());
        }
        Err(format!("the {} was stopped by a fault that the scenario did not make", side.name()))
    }

    pub(super) fn full_disk(&self, side: Side) -> Option<u64> {
        self.scenario.events.iter().find_map(|e| match e {
            Event::FullDisk { side: s, freed_ms, .. } if *s == side => Some(*freed_ms),
            _ => None,
        })
    }

    /// The site file of a side.
    pub(super) fn site(&self, side: Side) -> PathBuf {
        let address = match side {
            Side::Head => self.head_address,
            Side::Scope => self.wire.scope_calls(),
        };
        let keys = self.folder.path().join("keys");
        let home = &self.sides[index(side)].home;
        let link = format!("[link]\naddress = \"{address}\"\nkeys = {:?}\n", text(&keys));
        let settings = "[link.settings]\nidle_seconds = 1.0\ngive_up_seconds = 60.0\n";
        let site = format!("{}\n{link}{settings}", self.acquisition.site(&home.join("disk")));
        let path = home.join("site.toml");
        fs::write(&path, site).expect("writable");
        path
    }
}
