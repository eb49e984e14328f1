//! From a coarse pose to the final warp: match patches under the present warp, solve, warp again, finer.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::map::{Affine, Grid, Map};
use kinesin_stream::pixels::Pixels;
use ndarray::Array2;

use super::blocks::{Match, Search, match_blocks};
use super::config::AlignConfig;
use super::drift::{Drift, rounded};
use super::fit::{self, FOLDS, Pair};
use super::plane::Plane;
use super::{Reference, Residual, area_of};
use crate::render::{PlacedTile, RenderConfig, Renderer, Tone};

/// Thumbnails have at least this many pixels on the shorter side where the section allows.
const LEAST_THUMBNAIL: usize = 96;
/// Thumbnails have at most this many pixels on the longer side.
const MOST_THUMBNAIL: usize = 512;
/// Nodes a side at most.
const MOST_NODES: f64 = 96.0;
/// A match is consistent where the warp meets it within this many pixels.
const CONSISTENT_PX: f64 = 6.0;
/// Reach of the search, reduced pixels, in the passes at the finest scale: what the coarser solve leaves, then what the first leaves.
const FINE_REACH: [usize; 2] = [4, 3];
/// A reference counts as used where this share of its patches is trusted.
const USED_SHARE: f64 = 0.2;

/// Node coordinates of the warp, section pixels.
pub(super) type Axes = (Vec<f64>, Vec<f64>);

/// The outcome of the fine step.
pub(super) struct Placed {
    pub(super) map: Map,
    pub(super) axes: Axes,
    pub(super) stiffness: f64,
    pub(super) residual: Residual,
    pub(super) confidence: f64,
    /// Nearest first, at least one.
    pub(super) used: Vec<SerialIndex>,
}

/// Warps the comparable `image` onto the references, starting from `pose`.
pub(super) fn place(
    image: &Array2<u8>,
    origin: Xy<i64>,
    references: &[&Reference],
    pose: Affine,
    (low, high): (Xy<f64>, Xy<f64>),
    config: &AlignConfig,
) -> Result<Placed, String> {
    let axes = axes(low, high, config.node_px);
    let mut map = Map::Affine(pose);
    let mut stiffness = f64::INFINITY;
    let mut tied: Vec<Vec<Tied>> = vec![];
    for pass in passes(config) {
        let (warp, at) = warped(image, origin, &map, config.reduction)?;
        let of = |r: &&Reference| tie(match_pass(&warp, at, r, &pass, config.reduction), &map);
        tied = references.iter().map(of).collect();
        let weighted = tied.iter().zip(0i32..).flat_map(|(t, age)| pairs(t, config.older_weight.powi(age)));
        let weighted: Vec<Pair> = weighted.collect();
        let found = fit::elastic(&weighted, &axes.0, &axes.1);
        let solved = found.ok_or_else(|| format!("{} trusted patches do not determine a map", weighted.len()))?;
        check_shape(&solved.map, &axes)?;
        (map, stiffness) = (solved.map, solved.stiffness);
    }
    judge(map, axes, stiffness, &tied, references)
}

/// A match and the section pixel it is about.
struct Tied {
    from: Xy<f64>,
    found: Match,
}

fn trusted(tied: &[Tied]) -> usize {
    tied.iter().filter(|t| t.found.trusted).count()
}

/// Sizes of the passes: once at half the scale, where the section has room for it, then twice at the scale handed in.
fn passes(config: &AlignConfig) -> Vec<(u32, Search)> {
    let s = config.reduction as usize;
    let (patch, stride, reach) = (config.patch_px as usize, config.stride_px as usize, config.search_px as usize);
    let search = |patch: usize, stride: usize, reach: usize| Search {
        patch,
        stride,
        reach,
        least_score: config.least_score,
        least_distinctness: config.least_distinctness,
    };
    // A wider search needs a larger patch to be as sure.
    let wide = patch * 4 / 3 / (2 * s);
    let first = search(wide, wide / 3, reach.div_ceil(2 * s));
    let fine = FINE_REACH.map(|reach| (config.reduction, search(patch / s, stride / s, reach)));
    [vec![(2 * config.reduction, first)], fine.to_vec()].concat()
}

/// Matches of the warped section with one reference, in a common frame.
fn match_pass(
    warp: &Array2<u8>,
    at: Xy<i64>,
    reference: &Reference,
    (scale, search): &(u32, Search),
    reduction: u32,
) -> Vec<Match> {
    // Patches may hang over the rim by half, and be looked for beyond.
    let margin = i64::from(*scale / reduction) * (search.reach + search.patch / 2 + 1) as i64;
    let both = area_of(warp, at).union(&area_of(&reference.image, reference.origin));
    let area = BoxXy {
        min: Xy::new(both.min.x - margin, both.min.y - margin),
        max: Xy::new(both.max.x + margin, both.max.y + margin),
    };
    let mut moving = Plane::new(warp, at, area, reduction);
    let mut fixed = Plane::new(&reference.image, reference.origin, area, reduction);
    while moving.scale < *scale {
        (moving, fixed) = (moving.halved(), fixed.halved());
    }
    match_blocks(&moving, &fixed, search)
}

/// Finds the section pixels of matches that were made under `map`.
fn tie(matches: Vec<Match>, map: &Map) -> Vec<Tied> {
    let guess = match map {
        Map::Affine(a) => a.inverse(),
        Map::Grid(g) => {
            let corner = |c: usize, r: usize| Pair {
                from: Xy::new(g.xs()[c], g.ys()[r]),
                to: g.node(c, r),
                weight: 1.0,
                fold: 0,
            };
            let (c, r) = (g.xs().len() - 1, g.ys().len() - 1);
            fit::affine(&[corner(0, 0), corner(c, 0), corner(0, r), corner(c, r)]).and_then(|a| a.inverse())
        }
    };
    let guess = guess.unwrap_or(Affine::IDENTITY);
    let back = |m: Match| map.invert_at(m.at, guess.apply(m.at)).map(|from| Tied { from, found: m });
    matches.into_iter().filter_map(back).collect()
}

/// What the solver gets: trusted matches, weighted by how well they correlate.
fn pairs(tied: &[Tied], weight: f64) -> impl Iterator<Item = Pair> {
    tied.iter().filter(|t| t.found.trusted).map(move |t| {
        // Patches overlap: whole clumps of them are held out together.
        let (c, r) = (t.found.cell.x.div_euclid(3), t.found.cell.y.div_euclid(3));
        let fold = (c + 2 * r).rem_euclid(FOLDS as i64) as usize;
        Pair { from: t.from, to: t.found.to, weight: weight * t.found.score, fold }
    })
}

/// Refuses maps that no section could have.
fn check_shape(map: &Map, (xs, ys): &Axes) -> Result<(), String> {
    for cell in ys.windows(2).flat_map(|y| xs.windows(2).map(move |x| (x, y))) {
        let (x, y) = cell;
        let at = |x: f64, y: f64| map.apply(Xy::new(x, y));
        let (o, dx, dy) = (at(x[0], y[0]), at(x[1], y[0]) - at(x[0], y[0]), at(x[0], y[1]) - at(x[0], y[0]));
        let area = (dx.x * dy.y - dx.y * dy.x) / ((x[1] - x[0]) * (y[1] - y[0]));
        if !(0.4..2.5).contains(&area) {
            return Err(format!("the warp changes areas {area:.2} times near volume pixel ({:.0}, {:.0})", o.x, o.y));
        }
    }
    Ok(())
}

/// Residual, confidence and the references that counted, from the matches of the last pass.
fn judge(
    map: Map,
    axes: Axes,
    stiffness: f64,
    tied: &[Vec<Tied>],
    references: &[&Reference],
) -> Result<Placed, String> {
    let mut used = vec![];
    let mut nearest: Option<&Vec<Tied>> = None;
    for (t, r) in tied.iter().zip(references) {
        if trusted(t) > 0 && trusted(t) as f64 >= USED_SHARE * t.len() as f64 {
            used.push(r.serial);
            nearest = nearest.or(Some(t));
        }
    }
    let Some(nearest) = nearest else { return Err("too few patches are trusted on any reference".to_owned()) };
    let believed = nearest.iter().filter(|t| t.found.trusted);
    let mut off: Vec<f64> = believed.map(|t| (map.apply(t.from) - t.found.to).norm()).collect();
    off.sort_by(f64::total_cmp);
    let consistent: Vec<f64> = off.iter().copied().filter(|r| *r <= CONSISTENT_PX).collect();
    let square = consistent.iter().map(|r| r * r).sum::<f64>() / consistent.len().max(1) as f64;
    let thousandths = |v: f64| (v * 1000.0).round() / 1000.0;
    let p95 = off[((off.len() - 1) as f64 * 0.95) as usize];
    let residual = Residual { rms: thousandths(square.sqrt()), p95: thousandths(p95) };
    let confidence = consistent.len() as f64 / nearest.len() as f64;
    Ok(Placed { map, axes, stiffness, residual, confidence, used })
}

/// `map` less the given part of the volume's lasting deformation, rounded to 1/1024 px.
pub(super) fn relaxed(map: &Map, drift: &Drift, part: f64, (xs, ys): &Axes) -> Map {
    let image = |p: Xy<f64>| {
        let q = map.apply(p);
        rounded(q - drift.at(q) * part)
    };
    Map::Grid(Grid::from_fn(xs.clone(), ys.clone(), image).expect("axes increase and solved maps are finite"))
}

/// Nodes `spacing` apart over a section.
pub(super) fn axes(low: Xy<f64>, high: Xy<f64>, spacing: u32) -> Axes {
    (axis(low.x, high.x, spacing), axis(low.y, high.y, spacing))
}

/// Whole pixels `spacing` apart from `low` on, the last at or beyond `high`.
fn axis(low: f64, high: f64, spacing: u32) -> Vec<f64> {
    let (first, length) = (low.floor(), high - low.floor());
    let step = f64::from(spacing).max((length / (MOST_NODES - 1.0)).ceil());
    let cells = (length / step).ceil().max(1.0) as u32;
    (0..=cells).map(|i| first + step * f64::from(i)).collect()
}

/// A comparable image under `map`, whole, in reduced volume pixels, and the pixel of its first column and row.
pub(super) fn warped(
    image: &Array2<u8>,
    origin: Xy<i64>,
    map: &Map,
    reduction: u32,
) -> Result<(Array2<u8>, Xy<i64>), String> {
    let (h, w) = image.dim();
    let placed = PlacedTile {
        key: only_key(),
        size: Xy::new(w as u32, h as u32),
        map: reduced(map, origin, f64::from(reduction)),
        tone: Tone::IDENTITY,
    };
    let pixels = Pixels::new(w, h, image.iter().copied().collect::<Vec<u8>>());
    let renderer = Renderer::new(RenderConfig { zero_is_empty: true, ..RenderConfig::default() });
    let renderer = renderer.expect("the default is allowed");
    let area = placed.bounds(1);
    let out = renderer.render_block(area, 1, &[(placed, pixels)]);
    out.map(|image| (image, area.min)).map_err(|e| e.to_string())
}

/// The same map between pixels of the reduced view, counted from its first, and reduced volume pixels.
fn reduced(map: &Map, origin: Xy<i64>, s: f64) -> Map {
    let to_full =
        |p: Xy<f64>| Xy::new(reduced_to_full(p.x + origin.x as f64, s), reduced_to_full(p.y + origin.y as f64, s));
    let from_full = |p: Xy<f64>| Xy::new(full_to_reduced(p.x, s), full_to_reduced(p.y, s));
    match map {
        Map::Affine(a) => {
            let at = |x: f64, y: f64| from_full(a.apply(to_full(Xy::new(x, y))));
            let (o, x, y) = (at(0.0, 0.0), at(1.0, 0.0) - at(0.0, 0.0), at(0.0, 1.0) - at(0.0, 0.0));
            Map::Affine(Affine { rows: [[x.x, y.x, o.x], [x.y, y.y, o.y]] })
        }
        Map::Grid(g) => {
            let along = |v: &[f64], o: i64| v.iter().map(|v| full_to_reduced(*v, s) - o as f64).collect();
            let (xs, ys) = (along(g.xs(), origin.x), along(g.ys(), origin.y));
            let nodes = (0..g.ys().len()).flat_map(|r| (0..g.xs().len()).map(move |c| (c, r)));
            let nodes = nodes.map(|(c, r)| from_full(g.node(c, r))).collect();
            Map::Grid(Grid::new(xs, ys, nodes).expect("scaled axes still increase"))
        }
    }
}

/// The renderer wants to know who is who; here there is only one.
fn only_key() -> TileKey {
    let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
    TileKey { mfov, beam: BeamId(0) }
}

/// A comparable image at the scale of the coarse step, or at `scale` where given.
pub(super) fn thumbnail(image: &Array2<u8>, origin: Xy<i64>, config: &AlignConfig, scale: Option<u32>) -> Plane {
    let mut plane = Plane::new(image, origin, area_of(image, origin), config.reduction);
    let finished = |p: &Plane| match scale {
        Some(scale) => p.scale >= scale,
        None if p.width.max(p.height) > MOST_THUMBNAIL => false,
        None => 2 * p.scale > config.coarse_px || p.width.min(p.height) < 2 * LEAST_THUMBNAIL,
    };
    while !finished(&plane) {
        plane = plane.halved();
    }
    plane
}
