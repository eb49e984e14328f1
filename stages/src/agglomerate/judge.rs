//! Several pairs at once, one network a thread; results in the order of the pairs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::decide::DecisionPoint;
use super::resegment::{ResegmentRule, Resegmented, Surroundings};
use crate::flood::{DriveError, FloodRules, Watch};
use crate::runtime::Network;

impl ResegmentRule {
    /// [`ResegmentRule::judge`] for each point; the number of networks changes nothing but time.
    ///
    /// # Errors
    /// Where a network fails.
    pub fn judge_all(
        &self,
        rules: &FloodRules,
        volume: &Surroundings<'_>,
        points: &[DecisionPoint],
        networks: &mut [Box<dyn Network>],
    ) -> Result<Vec<Option<Resegmented>>, DriveError> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for network in networks {
                let (next, found) = (&next, &found);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(point) = points.get(i) else { break };
                        let result = self.judge(rules, volume, *point, network.as_mut(), &Watch::nothing());
                        let failed = result.is_err();
                        found.lock().unwrap_or_else(PoisonError::into_inner).insert(i, result);
                        if failed {
                            break;
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }
}
