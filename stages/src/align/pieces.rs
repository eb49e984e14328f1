//! The passes of a section that a crack or a fold parts: smaller patches tell the pieces, the fine passes run piece by piece. Tried where
//! the map that bends the section as a whole leaves matches aside; it stays unless the pieces fit clearly better.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Map;

use super::blocks::{Search, match_blocks};
use super::config::AlignConfig;
use super::filled::Summed;
use super::fine::{Axes, FIRST_STIFFNESS, Sources, Tied, USED_SHARE, carry, solved, tie, trusted};
use super::plane::Plane;
use super::{cut, join, warp};

/// A section may be in pieces where this share of matches is not trusted or further off the map that bends it as a whole than this.
const SUSPECT_SHARE: f64 = 0.05;
const SUSPECT_PX: f64 = 5.0;
/// Side of the patches by which pieces are told, as a part of [`AlignConfig::patch_px`].
const PROBE: f64 = 2.0 / 3.0;

/// Pieces correlate this many times better than the whole, where they put tissue to another place: cracks of 30 px and folds of 24 px
/// do 1.35 to 2 times on two tissues, undamaged sections in which tissue moves by itself up to 1.2 times.
const CLEARLY_BETTER: f64 = 1.3;

/// Before the fine passes they correlate at least this many times as well as one map of this stiffness.
const NOT_WORSE: f64 = 0.8;
const SOFT: f64 = 0.4;

/// A section in pieces.
pub(super) struct InPieces {
    pub(super) map: Map,
    pub(super) axes: Axes,
    /// Patches of the last pass, by reference.
    pub(super) tied: Vec<Vec<Tied>>,
    /// The reference that told the pieces.
    nearest: usize,
}

impl InPieces {
    /// Whether, where it differs, the section correlates clearly better than under the map that bends it as a whole.
    pub(super) fn fits_better(&self, sources: &Sources, whole: &Map) -> bool {
        let [own, other] = cut::agreements(&sources.own[1], &[&sources.fixed[self.nearest][1]], [&self.map, whole]);
        own > 0.0 && own > CLEARLY_BETTER * other
    }
}

/// Whether the matches of the last pass leave room for a crack or a fold: the map that bends the section as a whole leaves too many aside.
pub(super) fn suspect(last: &[Vec<Tied>], whole: &Map) -> bool {
    let share = |tied: &Vec<Tied>| {
        let tried: Vec<&Tied> = tied.iter().filter(|t| !t.second_hand).collect();
        let met = |t: &&&Tied| t.found.trusted && (whole.apply(t.from) - t.found.to).norm() <= SUSPECT_PX;
        1.0 - tried.iter().filter(met).count() as f64 / tried.len().max(1) as f64
    };
    // A reference that shows little says nothing of the section.
    last.iter().map(share).find(|s| *s < 1.0 - 2.0 * USED_SHARE).is_some_and(|s| s > SUSPECT_SHARE)
}

/// The passes after the first, piece by piece, from the pose and the matches of the first pass; `None` where there is one piece.
pub(super) fn in_pieces(
    sources: &Sources,
    passes: &[(usize, Search)],
    (pose, wide): (&Map, &[Vec<Tied>]),
    axes: &Axes,
    (low, high): (Xy<f64>, Xy<f64>),
    config: &AlignConfig,
) -> Option<InPieces> {
    // One reference tells the pieces: the nearest that shows the section well.
    let nearest = wide.iter().position(|t| trusted(t) as f64 >= 2.0 * USED_SHARE * t.len() as f64)?;
    let first = probed(sources, passes, nearest, pose, config);
    let piece = cut::pieces(&first)?;
    let n = piece.iter().flatten().max().map_or(0, |m| m + 1);
    let part = |k: usize| first.iter().zip(&piece).filter(move |(_, p)| **p == Some(k)).map(|(t, _)| *t);
    let of = |k: usize, r: usize| if r == nearest { part(k).collect() } else { vec![] };
    let mut tied: Vec<Vec<Vec<Tied>>> = (0..n).map(|k| (0..sources.fixed.len()).map(|r| of(k, r)).collect()).collect();
    let mut maps = vec![];
    for t in &tied {
        maps.push(solved(t, axes, config, Some(FIRST_STIFFNESS)).ok()?.map);
    }
    let members = |tied: &[Vec<Vec<Tied>>]| -> Vec<Vec<Xy<f64>>> {
        tied.iter().map(|t| t.iter().flatten().filter(|t| t.found.trusted).map(|t| t.from).collect()).collect()
    };
    // Where the one shows nothing, at rims, the others do.
    let others = (0..sources.fixed.len()).filter(|r| *r != nearest);
    let shown: Vec<&Plane> = std::iter::once(nearest).chain(others).map(|r| &sources.fixed[r][1]).collect();
    let labelled = |maps: &[Map], members: &[Vec<Xy<f64>>]| cut::Labels::new(&sources.own[1], &shown, maps, members);
    let mut labels = labelled(&maps, &members(&tied));
    if !labels.parted(&maps) {
        return None;
    }
    // The same matches under one soft map: where that fits better, the passes to follow can be saved.
    let whole = solved(std::slice::from_ref(&first), axes, config, Some(SOFT)).ok()?.map;
    let [own, other] = labels.against(&sources.own[1], &shown, &maps, &whole);
    if own < NOT_WORSE * other {
        return None;
    }
    for (level, search) in &passes[1..] {
        for k in 0..n {
            let found = sources.matched(*level, search, &maps[k], Some((&labels, k)));
            let before = std::mem::replace(&mut tied[k], found);
            carry(&mut tied[k], &before, config);
            if *level == 0 {
                sources.fill_in(&mut tied[k], &maps[k], Some((&labels, k)), config);
            }
            let stiffness = (*level > 0).then_some(FIRST_STIFFNESS);
            maps[k] = solved(&tied[k], axes, config, stiffness).ok()?.map;
        }
        labels = labelled(&maps, &members(&tied));
    }
    // Pieces that no map joins: the section is bent as a whole.
    let (map, axes) = join::joined(&maps, &labels, low, high)?;
    let by_reference = (0..sources.fixed.len()).map(|r| tied.iter().flat_map(|t| t[r].iter().copied()).collect());
    Some(InPieces { map, axes, tied: by_reference.collect(), nearest })
}

/// Matches of smaller patches with one reference, as wide as the first pass.
fn probed(
    sources: &Sources,
    passes: &[(usize, Search)],
    reference: usize,
    pose: &Map,
    config: &AlignConfig,
) -> Vec<Tied> {
    let pixel = f64::from(2 * config.reduction);
    let sized = |px: f64| (px / pixel) as usize;
    let probe = Search {
        patch: sized(f64::from(config.patch_px) * PROBE),
        stride: sized(f64::from(config.stride_px)),
        reach: sized(f64::from(config.search_px)),
        ..passes[0].1
    };
    let fixed = &sources.fixed[reference][1];
    tie(match_blocks(&Summed::new(&warp::drawn(&sources.own[1], pose, fixed.area)), &Summed::new(fixed), &probe), pose)
}
