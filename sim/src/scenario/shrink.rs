//! From a scenario that breaks a promise to the least that still does.

use super::{Event, Scenario, Start, Weather, When};

/// Runs of a scenario that shrinking may cost.
pub const MOST_TRIES: usize = 60;

impl Scenario {
    /// Scenarios that are simpler in one way each: an event less, something shorter, sooner or milder. The simplest first.
    pub fn simpler(&self) -> Vec<Self> {
        let mut simpler = Vec::new();
        for at in 0..self.events.len() {
            let mut less = self.clone();
            less.events.remove(at);
            simpler.push(less);
        }
        if self.start != Start::default() {
            simpler.push(Self { start: Start::default(), ..self.clone() });
        }
        for (at, event) in self.events.iter().enumerate() {
            for milder in milder(event) {
                let mut less = self.clone();
                less.events[at] = milder;
                simpler.push(less);
            }
        }
        simpler
    }

    /// The simplest scenario on the way down from this one that still `fails`; gives up after [`MOST_TRIES`].
    pub fn shrunk(&self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let (mut least, mut tries) = (self.clone(), 0);
        'down: loop {
            for candidate in least.simpler() {
                if tries == MOST_TRIES {
                    break 'down;
                }
                tries += 1;
                if fails(&candidate) {
                    least = candidate;
                    continue 'down;
                }
            }
            break;
        }
        least.name = format!("shrunk: {}", self.name);
        least
    }
}

fn milder(event: &Event) -> Vec<Event> {
    let mut milder = Vec::new();
    let mut change = |apply: &dyn Fn(&mut Event)| {
        let mut other = event.clone();
        apply(&mut other);
        if other != *event {
            milder.push(other);
        }
    };
    change(&|e| match e {
        Event::Kill { down_ms, moved, .. } => (*down_ms, *moved) = (0, false),
        Event::PowerCut { side, at, down_ms } => {
            *e = Event::Kill { side: *side, at: at.clone(), down_ms: *down_ms, moved: false };
        }
        Event::FullDisk { freed_ms, .. } => *freed_ms = 0,
        Event::Freeze { ms, .. } | Event::Cut { ms, .. } => *ms = halved(*ms),
        Event::SlowStage { item_ms, .. } => *item_ms = halved(*item_ms).max(1),
        Event::SlowDisk { write_ms, sync_ms, .. } => (*write_ms, *sync_ms) = (0, halved(*sync_ms)),
        Event::ClockStep { after_ms, .. } => *after_ms = 0,
        Event::Damage { flips, .. } => *flips = 1,
        Event::Torn { bytes, .. } => *bytes = 1,
        Event::Panic { item, .. } => *item = halved(*item).max(1),
        Event::Weather { .. } => {}
    });
    if let Event::Weather { weather, .. } = event {
        let without: [fn(&mut Weather); 5] = [
            |w| w.loss = 0.0,
            |w| w.reorder = 0.0,
            |w| w.duplicate = 0.0,
            |w| w.corrupt = 0.0,
            |w| (w.delay_ms, w.jitter_ms) = (0.0, 0.0),
        ];
        let several = without.iter().filter(|w| changed(weather, w)).count() > 1;
        for w in without.into_iter().filter(|_| several) {
            change(&|e| {
                if let Event::Weather { weather, .. } = e {
                    w(weather);
                }
            });
        }
    }
    change(&|e| match e {
        Event::Kill { at, .. }
        | Event::PowerCut { at, .. }
        | Event::Freeze { at, .. }
        | Event::Cut { at, .. }
        | Event::Weather { at, .. } => match at {
            When::Ms(n) => *n = halved(*n),
            When::Durable(n) | When::Published(n) => *n = halved(*n).max(1),
            When::Appears(_) => {}
        },
        _ => {}
    });
    milder
}

fn changed(weather: &Weather, without: &fn(&mut Weather)) -> bool {
    let mut other = *weather;
    without(&mut other);
    other != *weather
}

/// Coarser below 100, so that the way down is short.
fn halved(n: u64) -> u64 {
    if n < 20 { 0 } else { n / 2 }
}

#[cfg(test)]
mod tests {
    use super::super::Side;
    use super::*;

    #[test]
    fn what_fails_because_of_one_event_shrinks_to_that_event() {
        let cause = |e: &Event| matches!(e, Event::Kill { side: Side::Head, .. });
        let with_cause = (0..).map(Scenario::drawn).find(|s| s.events.len() > 2 && s.events.iter().any(cause));
        let drawn = with_cause.expect("there is one");
        let least = drawn.shrunk(|s| s.events.iter().any(cause));
        assert_eq!(least.events.len(), 1, "{}", least.to_toml());
        assert!(matches!(&least.events[0], Event::Kill { down_ms: 0, moved: false, .. }), "{}", least.to_toml());
        assert_eq!((least.start, least.seed), (Start::default(), drawn.seed));
    }

    #[test]
    fn shrinking_ends_also_where_everything_fails() {
        for seed in 0..50 {
            let mut tries = 0;
            let least = Scenario::drawn(seed).shrunk(|_| {
                tries += 1;
                true
            });
            assert!(least.events.is_empty() && tries <= MOST_TRIES);
        }
    }
}
