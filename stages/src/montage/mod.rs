//! **montage**: from point matches to a map for every tile of a section.
//!
//! ```text
//! matches ─► 1 rigid      one shift a tile, least absolute deviations; pairs that disagree are dropped and named
//!            2 stiffness  from shifts to bending tiles with a shared lens: softer only where held-out points gain by it
//!            3 elastic    sparse normal equations, Huber weights; anchored to the nominal places
//!            4 the rest   tiles without matches follow their neighbours, and are marked
//! ```
//! Output maps take tile pixels to section pixels: affine while the section is stiff, else a grid. Section pixels are those of
//! the nominal places; scale, rotation and place of the section are held by the stage's many small errors and by the tiles'
//! mean linear part being near the identity, weighed against each other, so that elastic slack does not become drift.
//!
//! Robust rigid placement before an elastic one is feabas' order (Y. Wu et al.); per-tile polynomials with a regularised
//! sparse solve are Render/ASAP's (Mahalingam et al., 2022); the choice by held-out points and the shared lens are ours.
//! Everything is sorted by key first: the same matches in any order give the same bytes.

mod basis;
mod config;
mod lens;
mod links;
mod model;
mod pattern;
mod report;
mod sparse;

#[cfg(test)]
mod tests;

pub use config::MontageConfig;
pub use lens::{KnownLens, KnownLenses};
pub use model::{Lens, Stiffness};
pub use pattern::BeamPlace;
pub use report::{Anchor, Montage, PairReport, PlacedTile, Placements, Residual, Trial};

use std::collections::{BTreeMap, BTreeSet};

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::{BeamId, TileKey};
use kinesin_stream::map::{Affine, Grid, Map, TileToSection};
use kinesin_stream::plan::{PlannedTile, SectionPlan};

use crate::pointmatch::{PairMatches, Verdict};
use basis::Frame;
use links::{Link, largest, parts, rigid};
use model::{Fit, PairPoints, Point, Problem};

/// Places all `present` tiles that the plan knows. Pairs with the verdict `Matched` pull unless the others contradict, those
/// with `Doubtful` only where the others agree; pairs of other tiles are reported as unused. Never fails: without any match the tiles stay at their nominal places and say so.
pub fn solve(
    plan: &SectionPlan,
    present: &BTreeSet<TileKey>,
    matches: &[PairMatches],
    known: &KnownLenses,
    config: &MontageConfig,
) -> Montage {
    let tiles: Vec<&PlannedTile> = plan.tiles().filter(|t| present.contains(&t.key)).collect();
    let mut pairs: Vec<&PairMatches> = matches.iter().collect();
    pairs.sort_by_key(|m| (m.p, m.q));
    pairs.dedup_by_key(|m| (m.p, m.q));

    let (indexed, links) = linked(&tiles, &pairs, |v| *v == Verdict::Matched);
    let longest = tiles.iter().map(|t| t.size.x.max(t.size.y)).max().unwrap_or(0);
    let tolerance = config.link_tolerance_px.max(config.link_tolerance_fraction * f64::from(longest));
    let (start, kept) = rigid(tiles.len(), &links, tolerance);
    let joined = || (0..links.len()).filter(|&k| kept[k]);
    let parts = parts(tiles.len(), joined().map(|k| links[k].tiles));
    let main = largest(&parts);
    let mut used: BTreeMap<usize, [usize; 2]> = joined().map(|k| (indexed[k], links[k].tiles)).collect();
    let dropped = indexed.iter().zip(&kept).filter(|(_, k)| !**k).map(|(&i, _)| i).collect();
    // A doubtful pair between tiles that others have placed is taken where it says the same.
    let (doubtful, hints) = linked(&tiles, &pairs, |v| matches!(v, Verdict::Doubtful(_)));
    let agrees = |l: &Link| parts[l.tiles[0]] == parts[l.tiles[1]] && l.residual(&start) <= tolerance;
    used.extend(doubtful.into_iter().zip(&hints).filter(|(_, l)| agrees(l)).map(|(i, l)| (i, l.tiles)));

    let placed: Vec<bool> = parts.iter().map(|p| Some(*p) == main).collect();
    let expected = pattern::expected(&known.pattern, &tiles, &start, &placed);
    let problem = Problem {
        frames: tiles.iter().map(|t| Frame::of(t.size)).collect(),
        beams: beams(&tiles),
        beam_ids: tiles.iter().map(|t| t.key.beam).collect::<BTreeSet<_>>().into_iter().collect(),
        size: tiles.first().map(|t| t.size).filter(|s| tiles.iter().all(|t| t.size == *s)),
        known: known.clone(),
        pairs: used.iter().map(|(&k, &ends)| points(&tiles, pairs[k], ends, config.folds.max(2))).collect(),
        stage_sd: stage_sd(&start, &expected, &placed, config),
        start,
        expected,
    };
    let (fit, trials) = choose(&problem, problem.middle(&tiles, TRIED_TILES).as_ref(), config);
    let used = used.into_keys().collect();
    let moved = moved(&problem, fit.as_ref());
    let mut lenses = fit.as_ref().map_or_else(|| problem.known.clone(), |f| problem.learned(f, config));
    lenses.pattern = pattern::learned(&known.pattern, &tiles, &moved, &placed);
    let maps = place(&tiles, &problem, (fit.as_ref(), &moved), &parts, main, config);
    report::report(plan, maps, &pairs, (used, dropped), (fit.map(|f| f.stiffness()), trials, lenses))
}

/// The pairs of known tiles with a wanted verdict (index into `pairs`), and their median shifts.
fn linked(
    tiles: &[&PlannedTile],
    pairs: &[&PairMatches],
    wanted: impl Fn(&Verdict) -> bool,
) -> (Vec<usize>, Vec<Link>) {
    let index: BTreeMap<TileKey, usize> = tiles.iter().enumerate().map(|(i, t)| (t.key, i)).collect();
    let mut found = (Vec::new(), Vec::new());
    for (k, m) in pairs.iter().enumerate() {
        let (Some(&i), Some(&j)) = (index.get(&m.p), index.get(&m.q)) else { continue };
        if !wanted(&m.verdict) || m.points.is_empty() || i == j {
            continue;
        }
        let gaps: Vec<Xy<f64>> = m.points.iter().map(|x| tiles[i].nominal + x.p - tiles[j].nominal - x.q).collect();
        let median = |of: fn(&Xy<f64>) -> f64| {
            let mut v: Vec<f64> = gaps.iter().map(of).collect();
            v.sort_by(f64::total_cmp);
            (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0
        };
        found.0.push(k);
        found.1.push(Link { tiles: [i, j], gap: Xy::new(median(|g| g.x), median(|g| g.y)) });
    }
    found
}

fn beams(tiles: &[&PlannedTile]) -> Vec<usize> {
    let distinct: BTreeSet<BeamId> = tiles.iter().map(|t| t.key.beam).collect();
    let index: BTreeMap<BeamId, usize> = distinct.into_iter().enumerate().map(|(i, b)| (b, i)).collect();
    tiles.iter().map(|t| index[&t.key.beam]).collect()
}

fn points(tiles: &[&PlannedTile], m: &PairMatches, [i, j]: [usize; 2], folds: usize) -> PairPoints {
    let (fp, fq) = (Frame::of(tiles[i].size), Frame::of(tiles[j].size));
    let points = m.points.iter().enumerate().map(|(k, x)| Point {
        values: Box::new([fp.values(x.p), fq.values(x.q)]),
        gap: tiles[i].nominal + x.p - tiles[j].nominal - x.q,
        weight: x.weight.clamp(0.05, 1.0),
        // Neighbouring blocks and neighbouring pairs are dealt to different parts.
        fold: (k + i + 2 * j) % folds,
    });
    PairPoints { tiles: [i, j], points: points.collect() }
}

/// Spread of the rigid shifts of placed tiles about what is expected of them: the stage, pixels.
fn stage_sd(start: &[Xy<f64>], expected: &[Xy<f64>], placed: &[bool], config: &MontageConfig) -> f64 {
    if config.stage_sd_px > 0.0 {
        return config.stage_sd_px;
    }
    let off = start.iter().zip(expected).zip(placed).filter(|(_, placed)| **placed);
    let mut off: Vec<f64> = off.map(|((s, e), _)| *s - *e).flat_map(|m| [m.x.abs(), m.y.abs()]).collect();
    off.sort_by(f64::total_cmp);
    off.get(off.len() / 2).map_or(1.0, |m| 1.48 * m).max(1.0)
}

/// Less of the start of scan needs no nodes of its own, pixels.
const START_SEEN_PX: f64 = 0.05;

/// Sections of more tiles are tried on so many from their middle: they tell as much as all.
const TRIED_TILES: usize = 300;

/// The stiffest model that no softer one beats by the wanted gain at held-out points, fitted to all points; tried on `some`
/// tiles where that is given.
fn choose(problem: &Problem, some: Option<&Problem>, config: &MontageConfig) -> (Option<Fit>, Vec<Trial>) {
    if problem.pairs.is_empty() {
        return (None, Vec::new());
    }
    let tried = some.filter(|s| !s.pairs.is_empty()).unwrap_or(problem);
    let repeated = tried.beams.iter().max().is_some_and(|&b| 2 * (b + 1) <= tried.beams.len());
    let points: usize = tried.pairs.iter().map(|p| p.points.len()).sum();
    let carried = |s: &Stiffness| basis::terms(s.degree) * tried.frames.len() <= 2 * points;
    let ladder = Stiffness::LADDER.into_iter().filter(|s| carried(s) && (s.lens != Lens::Beam || repeated));
    let mut trials: Vec<Trial> = Vec::new();
    let mut best: Option<(f64, Stiffness)> = None;
    for stiffness in ladder {
        // Where cubic tiles did not help, softer ones will not.
        if stiffness.degree > 3 && best.is_some_and(|(_, b)| b.degree < 3) {
            continue;
        }
        let Some(held_out) = held_out(tried, stiffness, config) else { continue };
        trials.push(Trial { stiffness, held_out_px: held_out });
        if best.is_none_or(|(b, _)| held_out < b * (1.0 - config.min_gain)) {
            best = Some((held_out, stiffness));
        }
    }
    let stiffness = best.map_or(Stiffness::LADDER[0], |(_, s)| s);
    (problem.fit(stiffness, None, config), trials)
}

/// Root mean square of the residuals (each at most three pixels) at points that the fit did not see.
fn held_out(problem: &Problem, stiffness: Stiffness, config: &MontageConfig) -> Option<f64> {
    let folds = config.folds.max(2);
    let points: usize = problem.pairs.iter().map(|p| p.points.len()).sum();
    // Many points: two parts tell as much as all of them.
    let asked = if points > 400 { 2 } else { folds };
    let (mut sum, mut count) = (0.0, 0usize);
    for held in 0..asked {
        let fit = problem.fit(stiffness, Some(held), config)?;
        for pair in &problem.pairs {
            for point in pair.points.iter().filter(|p| p.fold == held) {
                sum += fit.residual(pair.tiles, point).min(3.0).powi(2);
                count += 1;
            }
        }
    }
    Some((sum / count.max(1) as f64).sqrt())
}

/// How far the middle of each tile moves.
fn moved(problem: &Problem, fit: Option<&Fit>) -> Vec<Xy<f64>> {
    let at = |i: usize, f: &Fit| f.moved(i, &problem.frames[i].values(problem.frames[i].middle));
    (0..problem.frames.len()).map(|i| fit.map_or(Xy::default(), |f| at(i, f))).collect()
}

/// The map of every tile and by what it is held.
fn place(
    tiles: &[&PlannedTile],
    problem: &Problem,
    (fit, moved): (Option<&Fit>, &[Xy<f64>]),
    parts: &[usize],
    main: Option<usize>,
    config: &MontageConfig,
) -> Vec<PlacedTile> {
    // Beyond the pattern, which neighbours do not share.
    let beyond: Vec<Xy<f64>> = moved.iter().zip(&problem.expected).map(|(m, e)| *m - *e).collect();
    let follow = |part: usize| follow(tiles, &beyond, parts, main, part);
    tiles
        .iter()
        .enumerate()
        .map(|(i, tile)| {
            let (shift, anchor) = match main {
                None => (Xy::default(), Anchor::Nominal),
                Some(m) if m == parts[i] => (Xy::default(), Anchor::Matches),
                Some(_) => (follow(parts[i]), Anchor::Neighbours),
            };
            let map = TileToSection(map_of(tile, i, &problem.frames[i], fit, shift, config));
            PlacedTile { key: tile.key, name: tile.name.clone(), map, anchor }
        })
        .collect()
}

/// How far a part that hangs on nothing has to move so that it goes with the main part's tiles around it: the mean move of
/// the six nearest to each of its tiles, less its own mean move, all beyond the beam pattern.
fn follow(tiles: &[&PlannedTile], moved: &[Xy<f64>], parts: &[usize], main: Option<usize>, part: usize) -> Xy<f64> {
    let of = |p: Option<usize>| (0..tiles.len()).filter(move |&i| Some(parts[i]) == p);
    let (mut sum, mut count) = (Xy::default(), 0.0);
    for i in of(Some(part)) {
        let mut near: Vec<(f64, usize)> = of(main).map(|j| ((tiles[j].nominal - tiles[i].nominal).norm(), j)).collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        near.truncate(6);
        let mean = near.iter().fold(Xy::default(), |s, &(_, j)| s + moved[j]) * (1.0 / near.len().max(1) as f64);
        sum = sum + mean - moved[i];
        count += 1.0;
    }
    sum * (1.0 / count)
}

fn map_of(
    tile: &PlannedTile,
    i: usize,
    frame: &Frame,
    fit: Option<&Fit>,
    shift: Xy<f64>,
    config: &MontageConfig,
) -> Map {
    let at = |x: Xy<f64>| tile.nominal + shift + x + fit.map_or(Xy::default(), |f| f.moved(i, &frame.values(x)));
    let nodes = config.grid_nodes.max(2);
    let starts = fit.map_or(0.0, Fit::start_of_scan) > START_SEEN_PX;
    let axis = |n: u32| -> Vec<f64> {
        let length = f64::from(n.max(2) - 1);
        let mut at: Vec<f64> = (0..nodes).map(|k| length * k as f64 / (nodes - 1) as f64).collect();
        // Where a row begins the map bends within a few pixels.
        let more = basis::SETTLING.into_iter().flat_map(|s| [0.25, 0.5, 1.0, 2.0].map(|t| length * s * t));
        at.extend(more.filter(|_| starts));
        at.sort_by(f64::total_cmp);
        at.dedup_by(|b, a| *b - *a < 1.0);
        at
    };
    if fit.is_some_and(|f| f.stiffness().bends())
        && let Ok(grid) = Grid::from_fn(axis(tile.size.x), axis(tile.size.y), at)
    {
        return Map::Grid(grid);
    }
    let (o, x, y) = (at(Xy::new(0.0, 0.0)), at(Xy::new(1.0, 0.0)), at(Xy::new(0.0, 1.0)));
    Map::Affine(Affine { rows: [[x.x - o.x, y.x - o.x, o.x], [x.y - o.y, y.y - o.y, o.y]] })
}
