//! The driver: starts both sides, does to them from outside what a scenario says, starts again what died, and waits for the end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kinesin_sim::scenario::{Event, Log, Scenario, Side, Store, Weather, When};

use super::acquisition::Acquisition;
use super::disk::Disk;
use super::verdict;
use super::wire::Wire;
use crate::harness::{command, kinesin, text};

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

/// One side: its process, its disk, what it still does to itself.
struct Process {
    side: Side,
    child: Option<Child>,
    code: Option<i32>,
    starts: u32,
    /// When it was started last.
    started: Option<Instant>,
    start_at: Option<Instant>,
    inside: Vec<Event>,
    disk: Option<Disk>,
    freed: bool,
    home: PathBuf,
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

    fn start_when_due(&mut self, side: Side) -> Result<(), String> {
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

    fn see_whether_ended(&mut self, side: Side) -> Result<(), String> {
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

    fn full_disk(&self, side: Side) -> Option<u64> {
        self.scenario.events.iter().find_map(|e| match e {
            Event::FullDisk { side: s, freed_ms, .. } if *s == side => Some(*freed_ms),
            _ => None,
        })
    }

    /// What happens to bytes at rest before a side starts again.
    fn spoil(&mut self, side: Side) -> Result<(), String> {
        for event in std::mem::take(&mut self.at_rest) {
            let done = match &event {
                Event::Damage { store: Store::Archive, flips } if side == Side::Head => {
                    self.flip(&self.out().join("archive"), "tiles", *flips)
                }
                Event::Damage { store: Store::Spool, flips } if side == Side::Scope => {
                    let spool = self.sides[1].home.join("disk/spool");
                    let done = self.flip(&spool, "segment", *flips);
                    self.spoiled |= done;
                    done
                }
                Event::Torn { log, bytes } if side == Side::Head => self.tear(*log, *bytes),
                _ => false,
            };
            if !done {
                self.at_rest.push(event);
            }
        }
        Ok(())
    }

    /// Flips bits in one of the files; `false` where there is none yet.
    fn flip(&mut self, folder: &Path, extension: &str, flips: u32) -> bool {
        let mut there = files(folder, extension);
        there.sort();
        let mut chance = self.scenario.seed.wrapping_mul(6_364_136_223_846_793_005) | 1;
        let mut draw = |n: usize| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) as usize % n.max(1)
        };
        if there.is_empty() {
            return false;
        }
        let path = there.swap_remove(draw(there.len()));
        let right = fs::read(&path).expect("readable");
        let mut wrong = right.clone();
        for _ in 0..flips {
            let at = draw(wrong.len());
            wrong[at] ^= 1 << draw(8);
        }
        self.tell(format!("{flips} bits of {} flip", path.display()));
        fs::write(&path, &wrong).expect("writable");
        if wrong != right && extension == "tiles" {
            self.damaged.push((path, right));
        }
        true
    }

    fn tear(&mut self, log: Log, bytes: u64) -> bool {
        let path = match log {
            Log::Commits => self.out().join("commits.jsonl"),
            Log::Equivalences => self.out().join("volume/equivalences.jsonl"),
        };
        let Ok(text) = fs::read(&path) else { return false };
        // A power cut takes from what was not synced: of the last line.
        let last = text.split_inclusive(|b| *b == b'\n').next_back().map_or(0, <[u8]>::len);
        let left = text.len() - last.min(bytes as usize);
        self.tell(format!("{} loses its last {} bytes", path.display(), text.len() - left));
        fs::write(&path, &text[..left]).expect("writable");
        last > 0
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

    /// The site file of a side.
    fn site(&self, side: Side) -> PathBuf {
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

impl Process {
    fn new(side: Side, folder: &Path, inside: &[Event], scenario: &Scenario) -> Self {
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

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill -9");
            child.wait().expect("reaped");
        }
    }

    /// What it said on standard error, from all its starts.
    fn said(&self) -> String {
        (1..=self.starts).map(|n| fs::read_to_string(self.home.join(format!("{n}.err"))).unwrap_or_default()).collect()
    }

    fn last_said(&self) -> String {
        fs::read_to_string(self.home.join(format!("{}.err", self.starts))).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn other(side: Side) -> Side {
    if side == Side::Head { Side::Scope } else { Side::Head }
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Scope)
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    all.filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
}
