//! The driver: starts both sides, does to them from outside what a scenario says, starts again what died, and waits for the end.

mod at_rest;
mod life;
mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use kinesin_sim::scenario::{Event, Scenario, Side, Weather, When};

use super::acquisition::Acquisition;
use super::verdict;
use super::wire::Wire;
use crate::harness::{kinesin, text};
use at_rest::files;
use process::Process;

/// A promise that did not hold, with what led to it.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

/// What happened, for tests that ask for more than the promises.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// What was done and what ended, in order.
    pub(crate) told: Vec<String>,
    /// Everything that the sides said on standard error.
    pub(crate) said: String,
    /// Packets that went through the link.
    pub(crate) packets: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Longest that a schedule may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(240);

/// Drives the acquisition through the scenario over the relay on loopback, and holds the outcome against the promises.
pub(crate) fn drive(acquisition: &Acquisition, scenario: &Scenario) -> Result<Story, Broken> {
    drive_over(Wire::loopback(scenario.seed), acquisition, scenario)
}

/// The same over any wire.
pub(crate) fn drive_over(wire: Wire, acquisition: &Acquisition, scenario: &Scenario) -> Result<Story, Broken> {
    let began = Instant::now();
    let mut driver = Driver::new(wire, acquisition, scenario);
    let done = driver.run(began).and_then(|()| driver.judge());
    driver.story.said = driver.said();
    driver.story.packets = driver.wire.passed();
    driver.story.took = began.elapsed();
    let story = std::mem::take(&mut driver.story);
    match done {
        Ok(()) => Ok(story),
        Err(what) => {
            let Story { told, said, .. } = story;
            Err(Broken(format!("{what}\n--- what happened\n{}\n--- what the sides said\n{said}", told.join("\n"))))
        }
    }
}

struct Driver<'a> {
    wire: Wire,
    acquisition: &'a Acquisition,
    scenario: &'a Scenario,
    head_address: std::net::SocketAddr,
    /// Before the folder: their disks are mounted in it.
    sides: [Process; 2],
    folder: tempfile::TempDir,
    /// Events from outside that are still to come.
    coming: Vec<Event>,
    /// When the weather clears, the cable is back, the frozen go on.
    until: Vec<(Instant, Relief)>,
    /// What happens while a side is down.
    at_rest: Vec<Event>,
    /// Damaged files with their right bytes.
    damaged: Vec<(PathBuf, Vec<u8>)>,
    /// Tiles on the scope's disk are spoiled: some may be lost.
    spoiled: bool,
    story: Story,
    began: Instant,
    /// Since when the head runs without a scope.
    alone_since: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Relief {
    Weather,
    Cable,
    Thaw(Side),
}

impl<'a> Driver<'a> {
    fn new(wire: Wire, acquisition: &'a Acquisition, scenario: &'a Scenario) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = folder.path().join("keys");
        kinesin(&["keys", text(&keys)]).expect(0);
        let (inside, outside): (Vec<Event>, Vec<Event>) = scenario.events.iter().cloned().partition(Event::is_inside);
        let (at_rest, coming) =
            outside.into_iter().partition(|e| matches!(e, Event::Damage { .. } | Event::Torn { .. }));
        let sides = [Side::Head, Side::Scope].map(|side| Process::new(side, folder.path(), &inside, scenario));
        let head_address = wire.head_address();
        let began = Instant::now();
        let (until, damaged, story) = (Vec::new(), Vec::new(), Story::default());
        Self {
            wire,
            acquisition,
            scenario,
            folder,
            head_address,
            sides,
            coming,
            until,
            at_rest,
            damaged,
            story,
            began,
            alone_since: None,
            spoiled: false,
        }
    }

    fn run(&mut self, began: Instant) -> Result<(), String> {
        self.began = began;
        let later = Duration::from_millis(self.scenario.start.later_ms);
        let first = self.scenario.start.first;
        self.process(first).start_at = Some(began);
        self.process(other(first)).start_at = Some(began + later);
        loop {
            self.relieve();
            self.strike()?;
            for side in [Side::Head, Side::Scope] {
                self.start_when_due(side)?;
                self.see_whether_ended(side)?;
            }
            if self.sides.iter().all(|p| p.child.is_none() && p.start_at.is_none()) {
                return Ok(());
            }
            self.nudge();
            self.free_the_scope();
            self.dismiss();
            if began.elapsed() > PATIENCE {
                let codes = self.sides.each_ref().map(|p| (p.side.name(), p.child.is_some(), p.code));
                self.sides.iter_mut().for_each(Process::kill);
                return Err(format!("nothing ended within {PATIENCE:?}: (side, runs, last status) {codes:?}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends what has lasted long enough.
    fn relieve(&mut self) {
        let now = Instant::now();
        let (over, still): (Vec<_>, Vec<_>) = self.until.drain(..).partition(|(at, _)| *at <= now);
        self.until = still;
        for (_, relief) in over {
            match relief {
                Relief::Weather => self.wire.weather(Weather::default()),
                Relief::Cable => self.wire.cut(false),
                Relief::Thaw(side) => self.signal(side, "CONT"),
            }
        }
    }

    /// Does what is due.
    fn strike(&mut self) -> Result<(), String> {
        for event in std::mem::take(&mut self.coming) {
            let due = match &event {
                Event::Kill { at, .. }
                | Event::PowerCut { at, .. }
                | Event::Freeze { at, .. }
                | Event::Cut { at, .. }
                | Event::Weather { at, .. } => self.has_come(at),
                _ => true,
            };
            if due {
                self.tell(format!("{event:?}"));
                self.act(&event)?;
            } else {
                self.coming.push(event);
            }
        }
        Ok(())
    }

    fn has_come(&self, when: &When) -> bool {
        let out = self.out();
        match when {
            When::Ms(ms) => self.began.elapsed() >= Duration::from_millis(*ms),
            When::Durable(n) => files(&out.join("archive"), "tiles").len() as u64 >= *n,
            When::Published(n) => {
                let lines = fs::read_to_string(out.join("commits.jsonl")).unwrap_or_default();
                lines.lines().count() as u64 >= *n
            }
            When::Appears(name) => {
                let sections = fs::read_dir(out.join("sections")).into_iter().flatten().flatten().map(|e| e.path());
                std::iter::once(out.clone()).chain(sections).any(|folder| folder.join(name).exists())
            }
        }
    }

    fn act(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Kill { side, down_ms, moved, .. } => {
                self.down(*side, Duration::from_millis(*down_ms))?;
                if *moved {
                    self.head_address = self.wire.head_address();
                }
            }
            Event::PowerCut { side, down_ms, .. } => {
                let was_up = self.down(*side, Duration::from_millis(*down_ms))?;
                if was_up {
                    if let Some(disk) = &mut self.process(*side).disk {
                        disk.cut_power();
                    } else {
                        self.tell("(a kill only: no disk that can lose power)".into());
                    }
                    if *side == Side::Head {
                        self.check_receipts()?;
                    }
                }
            }
            Event::Freeze { side, ms, .. } => {
                self.signal(*side, "STOP");
                self.for_a_while(*ms, Relief::Thaw(*side));
            }
            Event::Cut { ms, .. } => {
                self.wire.cut(true);
                self.for_a_while(*ms, Relief::Cable);
            }
            Event::Weather { ms, weather, .. } => {
                self.wire.weather(*weather);
                if *ms > 0 {
                    self.for_a_while(*ms, Relief::Weather);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a side down with kill -9; `false` where it was not up.
    fn down(&mut self, side: Side, pause: Duration) -> Result<bool, String> {
        let process = self.process(side);
        if process.child.is_none() {
            return Ok(false);
        }
        process.kill();
        process.start_at = Some(Instant::now() + pause);
        if side == Side::Head {
            self.check_receipts()?;
            self.wake_the_scope();
        }
        Ok(true)
    }

    /// A head that died before it noted the goodbye of a scope waits for one that has ended: it is to be started again.
    fn nudge(&mut self) {
        let [head, scope] = &self.sides;
        let waits = head.child.is_some() && scope.child.is_none() && scope.start_at.is_none();
        // One that was started after the head has already been there.
        let waits = waits && scope.started < head.started && !head.last_said().contains("going on without it");
        let since = *self.alone_since.get_or_insert_with(Instant::now);
        if !waits {
            self.alone_since = None;
        } else if since.elapsed() > Duration::from_secs(3) {
            self.alone_since = None;
            self.tell("the scope is started again for a head that waits for it".into());
            self.process(Side::Scope).start_at = Some(Instant::now());
        }
    }

    /// A scope whose disk is full waits; someone makes room.
    fn free_the_scope(&mut self) {
        let Some(freed_ms) = self.full_disk(Side::Scope) else { return };
        let now = self.began.elapsed() > Duration::from_millis(400 + freed_ms);
        let scope = self.process(Side::Scope);
        if now && !scope.freed {
            scope.freed = true;
            if let Some(disk) = &scope.disk {
                disk.free();
                self.tell("the scope's disk is freed".into());
            }
        }
    }

    /// A scope that was started for a head which then found that all was done calls nobody: whoever sees the report stops it.
    fn dismiss(&mut self) {
        let [head, scope] = &self.sides;
        let late = scope.started.is_some_and(|at| at.elapsed() > Duration::from_secs(8));
        if late && head.child.is_none() && self.is_finished() && !scope.last_said().contains("the head is there") {
            self.tell("the scope is stopped: all is done, and the head has left".into());
            let scope = self.process(Side::Scope);
            scope.kill();
            scope.code = Some(0);
        }
    }

    /// A scope that had not ended well is started again with the head.
    fn wake_the_scope(&mut self) {
        let at = self.process(Side::Head).start_at;
        let scope = self.process(Side::Scope);
        // One that ended without an answer to its goodbye, or died: the head still waits for its word.
        let unheard = scope.code.is_none_or(|code| code > 1) || scope.last_said().contains("before it answered");
        if scope.child.is_none() && scope.start_at.is_none() && unheard {
            (scope.start_at, scope.code) = (at, None);
        }
    }

    /// I3: what the scope was told is durable can be read from the head's disk after a kill or a power cut.
    fn check_receipts(&mut self) -> Result<(), String> {
        let receipts = self.receipts();
        let checked = verdict::receipts(&self.out(), &receipts, &self.damaged)?;
        self.tell(format!("{checked} receipts hold"));
        Ok(())
    }

    /// mFOVs that the scope was told are durable.
    fn receipts(&self) -> BTreeSet<String> {
        let said = self.sides[1].said();
        let durable = said.lines().filter_map(|line| line.split_once("durable at the head mfov=")?.1.split('"').next());
        durable.map(|m| m.trim().to_owned()).collect()
    }

    fn judge(&mut self) -> Result<(), String> {
        self.check_receipts()?;
        let codes = self.sides.each_ref().map(|p| p.code);
        verdict::promises(&self.out(), self.acquisition, codes, self.spoiled)
    }

    fn for_a_while(&mut self, ms: u64, relief: Relief) {
        self.until.push((Instant::now() + Duration::from_millis(ms), relief));
    }

    fn signal(&self, side: Side, name: &str) {
        if let Some(child) = &self.sides[index(side)].child {
            let id = child.id().to_string();
            Command::new("kill").args([&format!("-{name}"), &id]).status().ok();
        }
    }

    fn is_finished(&self) -> bool {
        self.out().join("report.json").is_file()
    }

    fn out(&self) -> PathBuf {
        self.sides[0].home.join("disk/out")
    }

    fn process(&mut self, side: Side) -> &mut Process {
        &mut self.sides[index(side)]
    }

    fn tell(&mut self, what: String) {
        self.story.told.push(format!("{:>6} ms  {what}", self.began.elapsed().as_millis()));
    }

    fn said(&self) -> String {
        self.sides.iter().map(|p| format!("[{}]\n{}", p.side.name(), p.said())).collect()
    }
}

fn other(side: Side) -> Side {
    if side == Side::Head { Side::Scope } else { Side::Head }
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Scope)
}
