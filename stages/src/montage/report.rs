//! What a montage says about itself.

use std::collections::{BTreeMap, BTreeSet};

use kinesin_stream::ids::{SectionId, SerialIndex, TileKey};
use kinesin_stream::map::TileToSection;
use kinesin_stream::plan::SectionPlan;
use serde::{Deserialize, Serialize};

use super::lens::KnownLenses;
use super::model::Stiffness;
use crate::pointmatch::{PairMatches, Verdict};

/// The placed tiles of one section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Montage {
    /// The cut.
    pub section: SectionId,
    /// Its z.
    pub serial: SerialIndex,
    /// The stiffness chosen; `None` where nothing matched.
    pub stiffness: Option<Stiffness>,
    /// All that were tried, with their errors at held-out points.
    pub trials: Vec<Trial>,
    /// What is known of lenses from this section and those before it: what the next one begins with.
    #[serde(default)]
    pub lenses: KnownLenses,
    /// Over all points of used pairs.
    pub residual: Residual,
    /// All pairs given, sorted.
    pub pairs: Vec<PairReport>,
    /// All tiles, sorted by key.
    pub tiles: Vec<PlacedTile>,
}

/// One tile's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacedTile {
    /// Who it is.
    pub key: TileKey,
    /// File name or TileSpec id.
    pub name: String,
    /// Tile pixel to section pixel.
    pub map: TileToSection,
    /// By what it is held.
    pub anchor: Anchor,
}

/// What a tile's place rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Matches that join it to most of the section.
    Matches,
    /// None of its matches lead to the rest: it goes where its neighbours went.
    Neighbours,
    /// Nothing matched in the whole section.
    Nominal,
}

/// A stiffness that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What was tried.
    pub stiffness: Stiffness,
    /// Root mean square at points that the fit did not see, pixels.
    pub held_out_px: f64,
}

/// Distances that are left between matched points, pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// Number of points.
    pub points: usize,
    /// Root mean square.
    pub rms: f64,
    /// 95th percentile.
    pub p95: f64,
    /// Largest.
    pub max: f64,
}

/// What became of a pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// First tile.
    pub p: TileKey,
    /// Second tile.
    pub q: TileKey,
    /// Confidence of the match.
    pub confidence: f64,
    /// Whether it pulls.
    pub used: bool,
    /// Why not; `None` where it pulls, and where nobody expected it to.
    pub fault: Option<String>,
    /// At its points; of unused pairs too, where both tiles are placed.
    pub residual: Residual,
}

/// The contents of `placements.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placements {
    /// Tile pixel to section pixel, by name.
    pub tiles: BTreeMap<String, TileToSection>,
}

impl Montage {
    /// The map of a tile.
    pub fn tile(&self, key: TileKey) -> Option<&TileToSection> {
        self.tiles.binary_search_by_key(&key, |t| t.key).ok().map(|i| &self.tiles[i].map)
    }

    /// The contents of `placements.json`.
    pub fn placements(&self) -> Placements {
        Placements { tiles: self.tiles.iter().map(|t| (t.name.clone(), t.map.clone())).collect() }
    }

    /// Pairs that were expected to overlap and do not pull: failed, doubtful, or dropped.
    pub fn faults(&self) -> impl Iterator<Item = &PairReport> {
        self.pairs.iter().filter(|p| p.fault.is_some())
    }

    /// Tiles that are not held by matches.
    pub fn unconnected(&self) -> impl Iterator<Item = &PlacedTile> {
        self.tiles.iter().filter(|t| t.anchor != Anchor::Matches)
    }
}

/// Puts the report together; `used` and `dropped` are indexes into `pairs`, which are sorted.
pub(super) fn report(
    plan: &SectionPlan,
    mut tiles: Vec<PlacedTile>,
    pairs: &[&PairMatches],
    (used, dropped): (BTreeSet<usize>, BTreeSet<usize>),
    (stiffness, trials, lenses): (Option<Stiffness>, Vec<Trial>, KnownLenses),
) -> Montage {
    tiles.sort_by_key(|t| t.key);
    let maps: BTreeMap<TileKey, &TileToSection> = tiles.iter().map(|t| (t.key, &t.map)).collect();
    let mut all = Vec::new();
    let pairs = pairs.iter().enumerate().map(|(k, m)| {
        let left: Vec<f64> = match (maps.get(&m.p), maps.get(&m.q)) {
            (Some(p), Some(q)) => m.points.iter().map(|x| (p.0.apply(x.p) - q.0.apply(x.q)).norm()).collect(),
            _ => Vec::new(),
        };
        let used = used.contains(&k);
        if used {
            all.extend_from_slice(&left);
        }
        let fault = match &m.verdict {
            _ if dropped.contains(&k) => Some("disagrees with the other pairs".into()),
            _ if used => None,
            Verdict::Matched => Some("one of its tiles is not placed".into()),
            Verdict::Apart => None,
            Verdict::Doubtful(why) | Verdict::Failed(why) => Some(why.clone()),
        };
        PairReport { p: m.p, q: m.q, confidence: m.confidence, used, fault, residual: Residual::of(left) }
    });
    let pairs = pairs.collect();
    let (section, serial) = (plan.section, plan.serial);
    Montage { section, serial, stiffness, trials, lenses, residual: Residual::of(all), pairs, tiles }
}

impl Residual {
    /// Of these distances; zeros where there are none.
    fn of(mut distances: Vec<f64>) -> Self {
        let points = distances.len();
        if points == 0 {
            return Self::default();
        }
        distances.sort_by(f64::total_cmp);
        let rms = (distances.iter().map(|d| d * d).sum::<f64>() / points as f64).sqrt();
        Self { points, rms, p95: distances[(points - 1) * 95 / 100], max: distances[points - 1] }
    }
}
