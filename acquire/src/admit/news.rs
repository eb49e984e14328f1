//! What admission names: tiles that are lost, that came again, that nobody promised, that the spool's disk spoiled.
//!
//! *Bounded.* At the end of an mFOV there is one event for each reason and one for its repeated tiles. Of tiles that come again
//! after that, and of tiles that nobody promised, the first thousand of a run are told, and then those at 1024, 2048, 4096, ...

use std::collections::BTreeMap;

use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::{ContentHash, Duplicates};
use kinesin_stream::link::Manifest;
use kinesin_stream::plan::MfovPlan;

use super::AdmitEvent;
use super::admission::Admission;

/// So many are told one by one.
const FIRST: u64 = 1000;

/// Whether the `n`th of its kind is told, from 1.
fn is_told(n: u64) -> bool {
    n <= FIRST || n.is_power_of_two()
}

impl Admission {
    /// Names what is missing in an mFOV that has ended, and what came again.
    pub(super) fn tell_ended(&self, mfov: &MfovPlan, manifest: &Manifest) {
        let name = |key: TileKey| mfov.tiles.iter().find(|t| t.key == key).map(|t| t.name.clone());
        let mut lost: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, tile) in &manifest.tiles {
            if let Err(reason) = tile {
                lost.entry(reason.to_string()).or_default().extend(name(*key));
            }
        }
        for (reason, tiles) in lost {
            self.config.on_event.tell(&AdmitEvent::TilesLost { mfov: mfov.id, tiles, reason });
        }
        if !manifest.repeated.is_empty() {
            let tiles = manifest.repeated.iter().filter_map(|(key, _)| name(*key)).collect();
            let mut times = Duplicates::default();
            for (_, count) in &manifest.repeated {
                (times.same, times.other) = (times.same + count.same, times.other + count.other);
            }
            self.config.on_event.tell(&AdmitEvent::Repeated { mfov: mfov.id, tiles, times });
        }
    }

    /// A tile came again after its mFOV had ended. Whether it is the same is known at the head.
    pub(super) fn came_again(&mut self, key: TileKey, name: String, hash: ContentHash) {
        self.summary.duplicates += 1;
        self.again += 1;
        self.scope.came_again(key, hash);
        if is_told(self.again) {
            self.config.on_event.tell(&AdmitEvent::CameAgain { key, name, times: self.again });
        }
    }

    /// A tile came that no plan promised.
    pub(super) fn foreign(&mut self, key: TileKey) {
        tracing::debug!(%key, "a tile that no plan promised; not sent");
        self.summary.foreign += 1;
        self.scope.foreign(key);
        if is_told(self.summary.foreign) {
            self.config.on_event.tell(&AdmitEvent::Foreign { key, times: self.summary.foreign });
        }
    }

    /// Tells how many tiles the spool's disk has spoiled, where they are more than at the last look.
    pub(super) fn look_for_damage(&mut self, now: u64) {
        if now > std::mem::replace(&mut self.damaged, now) {
            self.config.on_event.tell(&AdmitEvent::Damaged { tiles: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_told;

    #[test]
    fn however_many_come_the_lines_stay_few() {
        let told = (1..=1_000_000).filter(|n| is_told(*n)).count();
        assert_eq!(told, 1000 + 10, "a thousand, and 1024 to 524288");
    }
}
