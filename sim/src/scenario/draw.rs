//! Random scenarios: from one to four faults of any kind, of a seed. The same seed gives the same scenario on any machine.

use kinesin_backpressure::Bytes;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::{Event, Log, Scenario, Side, Start, Store, Weather, When};

/// Longest that anything drawn lasts, ms: schedules are to be many.
const LONGEST_MS: u64 = 900;
/// Stages that a drawn scenario slows or lets panic.
const STAGES: [&str; 7] = ["inspect", "archive", "gather", "match", "montage", "align", "render"];

impl Scenario {
    /// The scenario of this seed.
    pub fn drawn(seed: u64) -> Self {
        let mut dice = Dice(Pcg64Mcg::seed_from_u64(seed));
        let first = dice.side();
        let later_ms = if dice.one_in(3) { dice.ms() } else { 0 };
        let count = 1 + dice.below(4);
        let events = (0..count).map(|_| dice.event()).collect();
        Self { name: format!("drawn from seed {seed}"), seed, start: Start { first, later_ms }, events }
    }
}

struct Dice(Pcg64Mcg);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0.random_range(0..n)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn side(&mut self) -> Side {
        if self.one_in(2) { Side::Head } else { Side::Scope }
    }

    /// Short ones more often than long ones.
    fn ms(&mut self) -> u64 {
        let most = 1 + self.below(LONGEST_MS);
        self.below(most)
    }

    /// In steps of a hundredth, so that it is short to write.
    fn chance(&mut self, most: f64) -> f64 {
        let hundredths = (most * 100.0) as u64;
        self.below(hundredths + 1) as f64 / 100.0
    }

    fn stage(&mut self) -> String {
        let at = self.below(STAGES.len() as u64) as usize;
        STAGES[at].to_owned()
    }

    fn when(&mut self) -> When {
        match self.below(8) {
            0..=2 => When::Ms(self.ms()),
            3..=5 => When::Durable(1 + self.below(4)),
            6 => When::Published(1 + self.below(3)),
            _ => {
                let names = ["report.json.part", "solved.json.part", "ledger.redb", "alignment.json", "commits.jsonl"];
                let at = self.below(names.len() as u64) as usize;
                When::Appears(names[at].to_owned())
            }
        }
    }

    fn weather(&mut self) -> Weather {
        let mut weather = Weather::default();
        for _ in 0..1 + self.below(2) {
            match self.below(5) {
                0 => weather.loss = self.chance(0.3),
                1 => weather.reorder = self.chance(0.3),
                2 => weather.duplicate = self.chance(0.5),
                3 => weather.corrupt = self.chance(0.1),
                _ => (weather.delay_ms, weather.jitter_ms) = (self.below(20) as f64, self.below(10) as f64),
            }
        }
        weather
    }

    fn event(&mut self) -> Event {
        let side = self.side();
        match self.below(20) {
            0..=4 => {
                let moved = side == Side::Head && self.one_in(4);
                Event::Kill { side, at: self.when(), down_ms: self.ms(), moved }
            }
            5..=7 => Event::PowerCut { side, at: self.when(), down_ms: self.ms() / 4 },
            8 => Event::Freeze { side, at: self.when(), ms: self.ms() },
            9 | 10 => Event::Cut { at: self.when(), ms: self.ms() },
            11 | 12 => Event::Weather { at: self.when(), ms: self.ms(), weather: self.weather() },
            13 => Event::SlowStage { stage: self.stage(), item_ms: 1 + self.below(8) },
            14 => Event::SlowDisk { side, write_ms: self.below(3), sync_ms: self.below(30) },
            15 => Event::FullDisk { side, bytes: Bytes::kib(256 + 64 * self.below(24)), freed_ms: self.ms() / 4 },
            16 => {
                let seconds = (self.below(200_001) as f64 - 100_000.0) * 10.0;
                Event::ClockStep { side, after_ms: self.ms(), seconds }
            }
            17 => {
                let store = if self.one_in(2) { Store::Archive } else { Store::Spool };
                Event::Damage { store, flips: 1 + self.below(3) as u32 }
            }
            18 => {
                let log = if self.one_in(3) { Log::Equivalences } else { Log::Commits };
                Event::Torn { log, bytes: 1 + self.below(40) }
            }
            _ => Event::Panic { stage: self.stage(), item: 1 + self.below(20) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::mem::discriminant;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_scenario_and_a_thousand_hold_every_kind_of_event() {
        let all: Vec<Event> = (0..1000).flat_map(|seed| Scenario::drawn(seed).events).collect();
        assert_eq!(Scenario::drawn(11), Scenario::drawn(11));
        let kinds: BTreeSet<String> = all.iter().map(|e| format!("{:?}", discriminant(e))).collect();
        assert_eq!(kinds.len(), 12, "kinds of events");
        assert!((0..1000).all(|seed| Scenario::drawn(seed).faults().is_empty()));
    }
}
