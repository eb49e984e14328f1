//! Key sections: what a section shows of one many sections before it ties the low frequencies of the volume.
//!
//! Errors of neighbours add up as a walk; a key section is met again every section until the next one, at the scale of the coarse step, where
//! tissue is still alike after half a micrometre. Blocks of the section are looked for in the key, one affine map must explain
//! half of those that are trusted, and a part of that map is taken back, by the section and all after it. So a
//! single wrong tie moves little, and a lasting difference goes.

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Map, SectionToVolume};
use serde::{Deserialize, Serialize};

use super::blocks::{Search, match_blocks};
use super::drift::rounded;
use super::filled::Summed;
use super::fit::{self, Pair};
use super::links::{Link, Links, near_inverse};
use super::plane::Plane;
use super::state::{AlignerState, Pending};
use super::{AlignConfig, Alignment, Reference, fine};

/// How far blocks are looked for, thumbnail pixels: four times the drift that is allowed, at the default scale.
const REACH: usize = 4;
/// Blocks within this many thumbnail pixels of the affine map agree with it.
const TOLERANCE: f64 = 1.5;
/// Blocks that must agree at least.
const LEAST_VOTES: usize = 8;
/// Weight of the newest section in the mean confidence.
const NEWEST: f64 = 0.2;

/// What the last key section said of a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTie {
    /// The key section.
    pub serial: SerialIndex,
    /// Share of the trusted blocks that agree on one affine map.
    pub agreement: f64,
    /// How far that map moves the section's corners, root mean square, pixels, before a part of it was taken back.
    pub off_px: f64,
}

/// The last key section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyState {
    /// Its z.
    pub serial: SerialIndex,
    /// Section pixel to volume pixel, for good.
    pub map: SectionToVolume,
    /// Running mean confidence of accepted sections.
    pub confidence: f64,
}

/// The blocks of a drawn section that the key shows too, as own pixel and volume pixel.
pub(super) fn seen_again(
    serial: SerialIndex,
    key: &Plane,
    drawn: &Reference,
    map: &Map,
    config: &AlignConfig,
) -> Links {
    let own = fine::thumbnail(&drawn.image, drawn.origin, config, Some(key.scale));
    let patch = (own.width.min(own.height) / 4).clamp(16, 40) & !1;
    let search = Search {
        patch,
        stride: patch / 2,
        reach: REACH,
        least_score: config.least_score,
        least_distinctness: config.least_distinctness / 2.0,
        again: 0,
    };
    let margin = (REACH + patch / 2 + 1) as i64;
    let both = own.area.union(&key.area);
    let area = BoxXy {
        min: Xy::new(both.min.x - margin, both.min.y - margin),
        max: Xy::new(both.max.x + margin, both.max.y + margin),
    };
    let found = match_blocks(&Summed::new(&own.within(area)), &Summed::new(&key.within(area)), &search);
    let guess = near_inverse(map);
    let matches = found.iter().filter(|m| m.trusted).filter_map(|m| {
        let from = map.invert_at(m.at, guess.apply(m.at))?;
        Some(Link { from: rounded(from), to: rounded(m.to), score: (m.score * 1024.0).round() / 1024.0 })
    });
    Links { reference: serial, tried: found.len() as u32, weight: f64::from(key.scale), matches: matches.collect() }
}

impl AlignerState {
    /// What the key says of a section, and the move of a volume pixel that takes the set part of it back.
    pub(super) fn key_pull(
        &self,
        section: &Pending,
        config: &AlignConfig,
    ) -> (Option<KeyTie>, impl Fn(Xy<f64>) -> Xy<f64> + use<>) {
        let found = section.key.as_ref().and_then(|links| judged(section, links, config));
        let (tie, map) = match found {
            Some((tie, map)) => (Some(tie), Some(map)),
            None => (None, None),
        };
        let part = config.key_pull;
        (tie, move |q: Xy<f64>| map.map_or(Xy::default(), |m| (m.apply(q) - q) * part))
    }

    /// Makes a section that was frozen the key, where it is time and it is a good one.
    pub(super) fn elect_key(&mut self, section: &Pending, config: &AlignConfig) {
        let Alignment { serial, map: Some(map), confidence, kept_as_reference: true, .. } = &section.record else {
            return;
        };
        let (age, mean) = match &self.key {
            Some(key) => (serial.0 - key.serial.0, key.confidence + NEWEST * (confidence - key.confidence)),
            None => (u32::MAX, *confidence),
        };
        let due = age >= config.key_every && (*confidence >= mean || age >= 2 * config.key_every);
        if due {
            self.key = Some(KeyState { serial: *serial, map: map.clone(), confidence: mean });
        } else if let Some(key) = &mut self.key {
            key.confidence = mean;
        }
    }
}

/// The affine move that the blocks agree on, where they do.
fn judged(section: &Pending, links: &Links, config: &AlignConfig) -> Option<(KeyTie, kinesin_stream::map::Affine)> {
    let map = &section.record.map.as_ref()?.0;
    let pair = |l: &Link| Pair { from: map.apply(l.from), to: l.to, weight: l.score, fold: 0 };
    let pairs: Vec<Pair> = links.matches.iter().map(pair).collect();
    let (affine, votes) = fit::vote(&pairs, TOLERANCE * links.weight)?;
    let agreement = votes.len() as f64 / pairs.len() as f64;
    if votes.len() < LEAST_VOTES || agreement < config.coarse_agreement {
        return None;
    }
    let [low, high] = section.extent;
    let corners = [low, high, Xy::new(low.x, high.y), Xy::new(high.x, low.y)].map(|p| map.apply(p));
    let square = corners.iter().map(|q| (affine.apply(*q) - *q).norm().powi(2)).sum::<f64>() / 4.0;
    let hundredths = |v: f64| (v * 100.0).round() / 100.0;
    let tie = KeyTie { serial: links.reference, agreement: hundredths(agreement), off_px: hundredths(square.sqrt()) };
    Some((tie, affine))
}
