//! Blocks of a window that share the one network of an accelerator.

use super::*;
use crate::runtime::shared;

/// A rule network that records the items of its calls.
struct Counting(RuleNetwork, Arc<Mutex<Vec<usize>>>);

impl Network for Counting {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        self.1.lock().unwrap().push(items);
        self.0.run(inputs, items, out)
    }
}

/// Labels of the volume by `workers` that share one network, and the calls it got.
fn flooded(workers: usize, batch: usize) -> (Vec<WindowResult>, Vec<usize>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (seen, made) = (calls.clone(), AtomicUsize::new(0));
    let inner: NetworkFactory = Arc::new(move || {
        assert_eq!(made.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0, "one network for all workers");
        Ok(Box::new(Counting(RuleNetwork::new([7, 13, 13], 0.0), seen.clone())))
    });
    let config = FloodConfig { batch: Some(batch), ..config() };
    let norm = Normalisation::Fixed { mean: 128.0, sd: 33.0 };
    let mut flood =
        RollingFlood::with_rules(&config, rules(), norm, CUBE, SHAPE, workers, &shared(inner, batch)).unwrap();
    let mut results = Vec::new();
    run_from(&mut flood, &mut results, usize::MAX);
    drop(flood);
    let calls = calls.lock().unwrap().clone();
    (results, calls)
}

#[test]
fn blocks_that_share_one_network_ask_together_and_get_the_labels_each_would_get_alone() {
    let alone = run(&config(), 1);
    let evaluations: u64 = alone.iter().map(|r| r.counters.evaluations).sum();
    // four blocks: two rows by two columns
    for (workers, batch) in [(1, 3), (1, 16), (2, 4), (4, 16)] {
        let (results, calls) = flooded(workers, batch);
        assert_eq!(results, alone, "{workers} workers, batch {batch}");
        assert_eq!(calls.iter().sum::<usize>() as u64, evaluations);
        assert!(calls.iter().all(|items| *items <= batch), "{calls:?}");
        if workers == 1 {
            assert_eq!(calls[0], batch.min(4), "every block it may ask for is in the first call");
        }
    }
}
