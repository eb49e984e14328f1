//! What happens to bytes on a disk while nobody looks: bits flip, and a power cut takes what was not synced.

use std::fs;
use std::path::{Path, PathBuf};

use kinesin_sim::scenario::{Event, Log, Side, Store};

use super::Driver;

impl Driver<'_> {
    /// What happens to bytes at rest before a side starts again.
    pub(super) fn spoil(&mut self, side: Side) -> Result<(), String> {
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
        // A run writes its report after every record is synced: nothing is left to tear then.
        if self.out().join("report.json").exists() {
            return false;
        }
        let Ok(text) = fs::read(&path) else { return false };
        // A power cut takes from what was not synced: of the last line.
        let last = text.split_inclusive(|b| *b == b'\n').next_back().map_or(0, <[u8]>::len);
        let left = text.len() - last.min(bytes as usize);
        self.tell(format!("{} loses its last {} bytes", path.display(), text.len() - left));
        fs::write(&path, &text[..left]).expect("writable");
        last > 0
    }
}

pub(super) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    all.filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
}
