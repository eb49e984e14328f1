//! The governor: from how full the buffers are and how fast they fill, to how much work is done now and how fast the
//! instrument goes.
//!
//! ```text
//!            at the head                                       at the scope
//!  Full ─ LighterSegmentation ─ StitchOnly ─ SpoolOnly      Full ─ Slow(f) ─ Hold
//!    labels wait   no labels     no new tiles                 spool fills more slowly, not at all
//! ```
//! The same ladder runs in two places. The head gives up labels first, then any segmentation, then tiles: they wait in the
//! scope's spool. At `SpoolOnly` the head still takes tiles while its line is less than half full, so that it always has work and
//! what was spooled is worked off without the ladder swinging with the link. Only what fills that spool slows the instrument, and only imminent overflow holds it.
//!
//! # The rule
//! * *Prediction.* A buffer overflows in `room / (in - out)` seconds. Each rung has a number of seconds from which on it is
//!   asked for; a buffer asks for no rung deeper than the deepest one that helps it ([`Reading::deepest`]).
//! * *Falling* goes straight to the rung that is asked for. A second fall within `episode_seconds` goes to the deepest rung
//!   that helps: what did not stop the filling is not refined. So a load that falls short costs at most two changes.
//! * *Rising* needs every buffer below its low water, a prediction `leave_factor` times better than for falling, and the
//!   dwell; it goes to the gentlest rung and from there to Full. So the return costs at most two changes as well. A rise
//!   that was taken back within `episode_seconds` doubles the dwell of the next (at most 32 times): a load that stays too
//!   high does not make the ladder swing.
//! * *Dwell.* A rung is kept for `dwell_seconds`, unless a buffer is about to overflow, or to run empty where the rung cut
//!   its flow off.
//! * *Slow(f).* `f = (out + (target - held) / T) / free`, `T` at most `slow_seconds`, where `free` is what the instrument delivers when left
//!   alone: the spool fills up to a little more than its reserve of room and stays there, so that the head has something to do all the time. The scope
//!   then loses what the head lacks, less what the spool takes, and no more.
//!
//! # Time
//! No clock is read: the caller says what time it is. A time that goes backward or leaps moves no rate and ends no dwell.
//!
//! Absent on purpose: what a rung means to the pipeline (the `Gate` in `stages`), how an instrument obeys (`acquire`).

mod config;
mod decision;
mod rates;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use config::GovernConfig;
pub use decision::{Change, ComingLoss, Control, Decision, Figures, Pace, Reading, Rung};
use rates::Buffer;

/// Reserves of room at which slowing begins and ends up: a quarter of a reserve above holding, so that a burst does not hold.
const SLOW_FROM: f64 = 1.25;
/// Reserves of room at which a held instrument goes on.
const GO_FROM: f64 = 1.5;

/// The ladder and where it stands.
#[derive(Clone, Debug)]
pub struct Governor {
    config: GovernConfig,
    /// The rungs of this ladder, from the top.
    steps: Vec<Rung>,
    /// Of the instrument, where this ladder drives one.
    control: Option<Control>,
    buffers: BTreeMap<String, Buffer>,
    last: Option<Duration>,
    /// Seconds of believable time since the start.
    lived: f64,
    rung: Rung,
    pace: Pace,
    cause: String,
    entered: f64,
    fell: Option<f64>,
    rose: Option<f64>,
    /// Rises that were taken back, one after the other.
    relapses: i32,
}

impl Governor {
    /// The head's ladder: `Full` to `SpoolOnly`.
    pub fn head(config: GovernConfig) -> Self {
        let steps = vec![Rung::Full, Rung::LighterSegmentation, Rung::StitchOnly, Rung::SpoolOnly];
        Self::with(config, steps, None)
    }

    /// The scope's ladder: `Full`, `Slow`, `Hold`, as far as the instrument obeys.
    pub fn scope(config: GovernConfig, control: Control) -> Self {
        Self::with(config, scope_steps(control), Some(control))
    }

    fn with(config: GovernConfig, steps: Vec<Rung>, control: Option<Control>) -> Self {
        Self {
            config,
            steps,
            control,
            buffers: BTreeMap::new(),
            last: None,
            lived: 0.0,
            rung: Rung::Full,
            pace: Pace::Go,
            cause: String::new(),
            entered: f64::NEG_INFINITY,
            fell: None,
            rose: None,
            relapses: 0,
        }
    }

    /// What the instrument turned out to obey.
    pub fn control(&mut self, control: Control) {
        if self.control.is_some_and(|before| before != control) {
            (self.steps, self.control) = (scope_steps(control), Some(control));
            // A rung that the instrument refuses is not one to stand on.
            if !self.steps.contains(&self.rung) {
                (self.rung, self.pace) = (Rung::Full, Pace::Go);
            }
        }
    }

    /// The rung now.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// The instrument's pace now.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// What is known of a buffer's rates; for the metrics.
    pub fn figures(&self, reading: &Reading) -> Figures {
        let Some(buffer) = self.buffers.get(&reading.name) else {
            return Figures { held: reading.held, capacity: reading.capacity, ..Figures::default() };
        };
        let overflow = buffer.overflow_in(reading);
        Figures {
            held: reading.held,
            capacity: reading.capacity,
            in_per_second: buffer.in_rate(),
            out_per_second: buffer.out_rate(),
            overflow_seconds: overflow.is_finite().then_some(overflow),
        }
    }

    /// Takes the readings of `now` in and decides. `now` is any steady clock's time.
    pub fn step(&mut self, now: Duration, readings: &[Reading]) -> Decision {
        let dt = self.elapse(now);
        for reading in readings {
            let buffer = self.buffers.entry(reading.name.clone()).or_insert_with(|| Buffer::new(reading));
            buffer.observe(reading, dt, self.config.rate_seconds);
            if self.pace == Pace::Go {
                buffer.note_free();
            }
        }
        let worst = readings.iter().map(|r| (self.asked(r), r)).max_by_key(|(rung, _)| *rung);
        let change = match worst {
            Some((rung, cause)) if rung > self.rung => self.fall(rung, cause),
            _ => self.rise(worst.map_or(Rung::Full, |(rung, _)| rung), readings),
        };
        self.pace = self.paced(readings);
        let coming_loss = readings.iter().find_map(|r| self.coming_loss(r));
        let takes = self.rung < Rung::SpoolOnly || readings.iter().all(|r| self.has_room(r));
        Decision { rung: self.rung, takes, pace: self.pace, change, coming_loss }
    }

    /// Whether a buffer that taking fewer tiles helps may get more of them.
    fn has_room(&self, reading: &Reading) -> bool {
        reading.deepest < Rung::SpoolOnly || (reading.held as f64) < self.config.intake_below * reading.capacity as f64
    }

    /// Seconds since the last step; `None` where the clock cannot be believed.
    fn elapse(&mut self, now: Duration) -> Option<f64> {
        let before = self.last.replace(now)?;
        let dt = now.checked_sub(before)?.as_secs_f64();
        let believable = dt > 0.0 && dt <= self.config.longest_gap_seconds;
        self.lived += if believable { dt } else { 0.0 };
        believable.then_some(dt)
    }

    /// Bytes that the spool keeps free for what the instrument delivers before it obeys.
    fn reserve(&self, reading: &Reading) -> f64 {
        let free = self.buffers.get(&reading.name).map_or(0.0, Buffer::free_rate);
        let capacity = reading.capacity as f64;
        (free * self.config.reaction_seconds).clamp(0.02 * capacity, 0.4 * capacity)
    }

    /// The rung that a buffer asks for.
    fn asked(&self, reading: &Reading) -> Rung {
        let Some(buffer) = self.buffers.get(&reading.name) else { return Rung::Full };
        let held = reading.held as f64;
        let within = |rung: &&Rung| **rung <= reading.deepest;
        let steps = || self.steps.iter().filter(within).copied();
        if self.is_quiet(buffer, reading) {
            return Rung::Full;
        }
        if reading.held >= reading.capacity {
            return steps().next_back().unwrap_or(Rung::Full);
        }
        let reserve = self.reserve(reading);
        let by_fill = |rung: Rung| match rung {
            Rung::Slow => held > reading.capacity as f64 - SLOW_FROM * reserve,
            Rung::Hold => held > reading.capacity as f64 - reserve,
            _ => false,
        };
        let filled = held >= self.config.act_above * reading.capacity as f64;
        let overflow = if filled && buffer.is_warm() { buffer.overflow_in(reading) } else { f64::INFINITY };
        // A prediction does not hold an instrument that can be slowed: slowing changes the prediction.
        let guess = |rung: Rung| rung != Rung::Hold || !self.steps.contains(&Rung::Slow);
        let asks = |rung: &Rung| (guess(*rung) && overflow <= self.config.enter_seconds(*rung)) || by_fill(*rung);
        steps().rfind(asks).unwrap_or(Rung::Full)
    }

    fn fall(&mut self, asked: Rung, cause: &Reading) -> Option<Change> {
        let imminent = {
            let overflow = self.buffers.get(&cause.name).map_or(f64::INFINITY, |b| b.overflow_in(cause));
            overflow <= self.config.hold_seconds || asked == Rung::Hold
        };
        if !imminent && self.lived - self.entered < self.config.dwell_seconds {
            return None;
        }
        let recent = |at: Option<f64>| at.is_some_and(|at| self.lived - at < self.config.episode_seconds);
        let again = self.rung != Rung::Full && recent(self.fell);
        let relapsed = recent(self.rose);
        // Holding is decided by fill alone: a scope is never held because slowing it was tried before.
        let deepest = self.steps.iter().rfind(|r| **r <= cause.deepest.min(Rung::SpoolOnly)).copied();
        let to = if again { deepest.unwrap_or(asked).max(asked) } else { asked };
        self.relapses = if relapsed { (self.relapses + 1).min(5) } else { 0 };
        self.fell = Some(self.lived);
        self.rose = None;
        self.cause.clone_from(&cause.name);
        Some(self.go(to, cause))
    }

    fn rise(&mut self, asked: Rung, readings: &[Reading]) -> Option<Change> {
        let gentlest = *self.steps.get(1)?;
        if self.rung == Rung::Full || asked == self.rung {
            return None;
        }
        if self.lived - self.entered < self.patience(readings) || !readings.iter().all(|r| self.is_well(r)) {
            return None;
        }
        let first = !self.rose.is_some_and(|at| self.lived - at < self.config.episode_seconds);
        let to = if self.rung > gentlest && first { gentlest.max(asked) } else { asked };
        let cause = readings.iter().find(|r| r.name == self.cause).or(readings.first())?;
        self.rose = Some(self.lived);
        if to == Rung::Full {
            self.fell = None;
        }
        Some(self.go(to, cause))
    }

    /// Shortest stay on this rung. Where it cuts the flow off, a buffer that runs empty ends it: idling is lost time too.
    fn patience(&self, readings: &[Reading]) -> f64 {
        let config = &self.config;
        match self.rung {
            Rung::Hold => config.reaction_seconds,
            Rung::SpoolOnly => {
                let empties = |r: &Reading| (r.held as f64) < 0.5 * config.low_water * r.capacity as f64;
                let empty = readings.iter().filter(|r| r.name == self.cause).any(empties);
                if empty { 0.0 } else { config.dwell_seconds }
            }
            _ => config.dwell_seconds * 2f64.powi(self.relapses),
        }
    }

    /// Whether a buffer lets the ladder leave its rung.
    fn is_well(&self, reading: &Reading) -> bool {
        let Some(buffer) = self.buffers.get(&reading.name) else { return true };
        let (held, capacity) = (reading.held as f64, reading.capacity as f64);
        if self.rung == Rung::Hold {
            // What holding cannot help keeps nobody held: tiles of mFOVs that only the instrument can end.
            return reading.deepest < Rung::Hold || held <= capacity - GO_FROM * self.reserve(reading);
        }
        // What this rung does not help cannot keep it; above all a spool that fills because no tiles are taken.
        if reading.deepest < self.rung || self.is_quiet(buffer, reading) {
            return true;
        }
        let wanted = self.config.leave_factor * self.config.enter_seconds(self.rung.min(reading.deepest));
        held < self.config.low_water * capacity && buffer.overflow_in(reading) > wanted
    }

    /// What only the flood drains does not empty while the flood is paused: enough that nothing more comes in.
    fn is_quiet(&self, buffer: &Buffer, reading: &Reading) -> bool {
        let coming = buffer.in_rate() * self.config.lighter_seconds;
        reading.deepest == Rung::LighterSegmentation && coming < 0.01 * reading.capacity as f64
    }

    fn go(&mut self, to: Rung, cause: &Reading) -> Change {
        let stayed_seconds = if self.entered.is_finite() { self.lived - self.entered } else { self.lived };
        let from = std::mem::replace(&mut self.rung, to);
        self.entered = self.lived;
        Change { from, to, cause: cause.name.clone(), figures: self.figures(cause), stayed_seconds }
    }

    /// The pace of the rung; a small change of `f` is not worth a command.
    fn paced(&self, readings: &[Reading]) -> Pace {
        let share = match self.rung {
            Rung::Hold => return Pace::Hold,
            Rung::Slow => readings.iter().map(|r| self.share(r)).fold(1.0, f64::min),
            _ => return Pace::Go,
        };
        match self.pace {
            Pace::Slow(before) if share < 1.0 && (share / before - 1.0).abs() < 0.05 => self.pace,
            _ => Pace::Slow(share),
        }
    }

    /// Share of its own speed at which the instrument fills a buffer up to a little above its reserve and no further.
    fn share(&self, reading: &Reading) -> f64 {
        let Some(buffer) = self.buffers.get(&reading.name).filter(|_| reading.deepest >= Rung::Slow) else {
            return 1.0;
        };
        let free = buffer.free_rate();
        let target = reading.capacity as f64 - SLOW_FROM * self.reserve(reading);
        if free <= 0.0 {
            return 1.0;
        }
        let approach = self.config.slow_seconds.min(0.4 * reading.capacity as f64 / free);
        let wanted = buffer.out_rate() + (target - reading.held as f64) / approach;
        (wanted / free).clamp(self.config.slowest_pace, 1.0)
    }

    fn coming_loss(&self, reading: &Reading) -> Option<ComingLoss> {
        let control = self.control.filter(|c| !c.hold)?;
        let buffer = self.buffers.get(&reading.name).filter(|b| b.is_warm() && reading.deepest >= Rung::Slow)?;
        let in_seconds = buffer.overflow_in(reading);
        let slowest = self.pace.share() <= self.config.slowest_pace * 1.01;
        let helpless = !control.slow || (self.rung == Rung::Slow && slowest);
        let net = (buffer.in_rate() - buffer.out_rate()).max(0.0);
        (helpless && net > 0.0 && in_seconds <= self.config.announce_seconds).then(|| ComingLoss {
            buffer: reading.name.clone(),
            in_seconds,
            bytes_per_minute: (60.0 * net) as u64,
            figures: self.figures(reading),
        })
    }
}

/// The scope's ladder, as far as the instrument obeys.
fn scope_steps(control: Control) -> Vec<Rung> {
    let rungs = [(Rung::Full, true), (Rung::Slow, control.slow), (Rung::Hold, control.hold)];
    rungs.into_iter().filter(|(_, can)| *can).map(|(rung, _)| rung).collect()
}
