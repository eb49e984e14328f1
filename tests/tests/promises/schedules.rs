//! Random fault schedules: each drawn from a seed, driven, and held against the promises. A failure is shrunk to the least that
//! still fails and printed as a file for `sim/scenarios`.
//!
//! `KINESIN_SCHEDULES=1000` drives so many (default 24), from seed `KINESIN_SCHEDULES_SEED` on (default 1), on
//! `KINESIN_SCHEDULES_LANES` threads (default 3).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kinesin_sim::scenario::Scenario;

use crate::faults::acquisition::Acquisition;
use crate::faults::drive::{Broken, drive};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

#[test]
fn random_fault_schedules_break_no_promise() {
    let (count, first) = (setting("KINESIN_SCHEDULES", 24), setting("KINESIN_SCHEDULES_SEED", 1));
    let (next, began) = (AtomicU64::new(first), Instant::now());
    let broken: Mutex<BTreeMap<u64, String>> = Mutex::default();
    let took: Mutex<Vec<Duration>> = Mutex::default();
    std::thread::scope(|lanes| {
        for _ in 0..setting("KINESIN_SCHEDULES_LANES", 3) {
            lanes.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match drive(Acquisition::of(seed), &Scenario::drawn(seed)) {
                        Ok(story) => took.lock().expect("no panic").push(story.took),
                        Err(Broken(what)) => {
                            eprintln!("seed {seed} breaks a promise: {}", what.lines().next().unwrap_or_default());
                            broken.lock().expect("no panic").insert(seed, what);
                        }
                    }
                }
            });
        }
    });
    let mut took = took.into_inner().expect("no panic");
    took.sort();
    let at = |q: usize| took.get(took.len() * q / 100).copied().unwrap_or_default();
    println!(
        "{count} schedules from seed {first} on in {:.0?}: median {:.2?}, 95 % within {:.2?}, longest {:.2?}",
        began.elapsed(),
        at(50),
        at(95),
        took.last().copied().unwrap_or_default()
    );
    let broken = broken.into_inner().expect("no panic");
    let Some((seed, what)) = broken.first_key_value() else { return };
    let least = shrunk(*seed);
    panic!(
        "{} of {count} schedules broke a promise, seeds {:?}; the first, seed {seed}: {what}\n--- the least that still fails\n{}",
        broken.len(),
        broken.keys().collect::<Vec<_>>(),
        least.to_toml()
    );
}

/// The least of this seed's scenario that still fails. A failure may need luck, so each is tried three times.
fn shrunk(seed: u64) -> Scenario {
    let acquisition = Acquisition::of(seed);
    Scenario::drawn(seed).shrunk(|less| (0..3).any(|_| drive(acquisition, less).is_err()))
}
