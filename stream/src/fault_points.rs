//! Where a fault scenario touches the program: a pause or a panic before an item of a named stage, and steps of the wall clock.
//!
//! All of it is data that a run is given; the default holds nothing and costs one comparison an item. Nothing that comes out
//! depends on it: stages see neither the clock nor the pauses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What is to go wrong inside a process.
#[derive(Clone, Debug, Default)]
pub struct FaultPoints {
    /// By the name of a stage.
    pub stages: BTreeMap<String, StagePoint>,
    /// Steps of the wall clock.
    pub clock: WallClock,
}

/// What happens before an item of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagePoint {
    /// Waits this long before each.
    pub pause: Duration,
    /// Panics at this one, counted from 1 over all threads of the stage.
    pub panic_at: Option<u64>,
}

/// The wall clock of records: the system's, with the steps of a scenario. Never read by a stage.
#[derive(Clone, Debug)]
pub struct WallClock {
    since: Instant,
    /// After how long, by how many milliseconds.
    steps: Vec<(Duration, i64)>,
}

/// One stage's point, shared by its threads.
#[derive(Debug)]
pub(crate) struct Armed {
    point: StagePoint,
    items: AtomicU64,
}

impl FaultPoints {
    pub(crate) fn arm(&self, stage: &str) -> Option<Arc<Armed>> {
        let point = *self.stages.get(stage)?;
        Some(Arc::new(Armed { point, items: AtomicU64::new(0) }))
    }
}

impl Armed {
    /// Before an item.
    pub(crate) fn strike(&self) {
        let item = self.items.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.point.pause.is_zero() {
            std::thread::sleep(self.point.pause);
        }
        if self.point.panic_at == Some(item) {
            panic!("a panic that the fault scenario asks for");
        }
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self { since: Instant::now(), steps: Vec::new() }
    }
}

impl WallClock {
    /// The system's clock, which from now on jumps by so many milliseconds each time that so much time has passed.
    pub fn with_steps(steps: Vec<(Duration, i64)>) -> Self {
        Self { since: Instant::now(), steps }
    }

    /// Milliseconds since 1970; 0 before.
    pub fn unix_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        if self.steps.is_empty() {
            return now as u64;
        }
        let passed = self.since.elapsed();
        let stepped: i64 = self.steps.iter().filter(|(after, _)| *after <= passed).map(|(_, by)| by).sum();
        now.saturating_add(stepped).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stepped_clock_jumps_and_never_goes_below_1970() {
        let hour = 3_600_000;
        let plain = WallClock::default().unix_ms();
        let ahead = WallClock::with_steps(vec![(Duration::ZERO, hour), (Duration::from_secs(3600), hour)]).unix_ms();
        assert!(ahead >= plain + hour as u64 && ahead < plain + 2 * hour as u64, "{plain} and {ahead}");
        assert_eq!(WallClock::with_steps(vec![(Duration::ZERO, i64::MIN / 2)]).unix_ms(), 0);
    }

    #[test]
    fn a_stage_without_a_point_is_not_armed_and_one_with_it_panics_at_its_item() {
        let point = StagePoint { pause: Duration::ZERO, panic_at: Some(2) };
        let points = FaultPoints { stages: BTreeMap::from([("match".to_owned(), point)]), ..FaultPoints::default() };
        assert!(points.arm("align").is_none());
        let armed = points.arm("match").expect("named");
        armed.strike();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| armed.strike())).is_err());
        armed.strike();
    }
}
