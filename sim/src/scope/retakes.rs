//! Which tiles are taken again, when, and what spoiled the exposure before.
//!
//! ```text
//! first exposures of a section ──┬─ amended before its end ─► retakes ─► SectionEnds      revision 0
//!                                └─ SectionEnds ─► n sections later: amended ─► retakes ─► SectionEnds    revision 1, ..
//! ```
//! Every exposure that a later one replaces is blank or out of focus; the last one is good.

use std::collections::{BTreeMap, BTreeSet};

use kinesin_stream::ids::{Attempt, MfovId, TileKey};
use kinesin_stream::plan::MfovPlan;

use super::config::{FaultsConfig, Spoiled};
use super::draw::{Draws, What, Whose};
use super::layout::Layout;

/// What is taken again at one time, of one section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Amendment {
    /// 0 before the section ends, else so many sections later.
    pub(crate) after_sections: u32,
    pub(crate) stops: Vec<MfovPlan>,
}

/// All amendments of a section, in the order in which they come. `first` are its first stage stops.
pub(crate) fn amendments(config: &FaultsConfig, seed: u64, layout: &Layout, first: &[MfovPlan]) -> Vec<Amendment> {
    if !any(config) {
        return Vec::new();
    }
    let mut by_time: BTreeMap<u32, Vec<MfovPlan>> = BTreeMap::new();
    for stop in first {
        for (i, (after, beams)) in again(config, seed, stop.id, layout.beams).into_iter().enumerate() {
            by_time.entry(after).or_default().push(layout.stop(stop.id.at(Attempt(i as u16 + 1)), beams));
        }
    }
    let mut revision = 0;
    let numbered = by_time.into_iter().map(|(after_sections, mut stops)| {
        revision += u32::from(after_sections > 0);
        stops.iter_mut().for_each(|s| s.revision = revision);
        Amendment { after_sections, stops }
    });
    numbered.collect()
}

/// What is wrong with this exposure because a later one replaces it.
pub(crate) fn spoiled(config: &FaultsConfig, seed: u64, beams: u16, key: TileKey) -> Option<Spoiled> {
    let later = any(config) && {
        let mut later = again(config, seed, key.mfov, beams).into_values().skip(usize::from(key.mfov.attempt.0));
        later.any(|beams| beams.contains(&key.beam.0))
    };
    let listed = config.retakes.iter().filter(|r| (r.section, r.mfov) == (key.mfov.section.0, key.mfov.mfov));
    let listed = listed.filter(|r| r.beams.is_empty() || r.beams.contains(&key.beam.0)).find_map(|r| r.spoiled);
    later.then(|| {
        let mut draws = Draws::new(seed, What::Spoiled, Whose::of(key));
        listed.unwrap_or(if draws.chance(0.5) { Spoiled::Blank } else { Spoiled::Blurred })
    })
}

fn any(config: &FaultsConfig) -> bool {
    config.retaken > 0.0 || !config.retakes.is_empty()
}

/// The beams of one place that are taken again, by the time at which they are.
fn again(config: &FaultsConfig, seed: u64, mfov: MfovId, beams: u16) -> BTreeMap<u32, BTreeSet<u16>> {
    let mut again: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
    for r in config.retakes.iter().filter(|r| (r.section, r.mfov) == (mfov.section.0, mfov.mfov)) {
        let all = (0..beams).filter(|b| r.beams.is_empty() || r.beams.contains(b));
        again.entry(r.after_sections).or_default().extend(all);
    }
    let drawn = |beam: &u16| {
        let whose = Whose { section: mfov.section.0, mfov: mfov.mfov, beam: u32::from(*beam), attempt: 0 };
        Draws::new(seed, What::Retaken, whose).chance(config.retaken)
    };
    let drawn: BTreeSet<u16> = (0..beams).filter(|b| config.retaken > 0.0 && drawn(b)).collect();
    if !drawn.is_empty() {
        again.entry(config.retake_after_sections).or_default().extend(drawn);
    }
    again
}
