//! From a coarse pose to the final warp: match patches under the present warp, solve, warp again, finer.

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Map};
use ndarray::Array2;

use super::blocks::{AGAIN_DISTINCTNESS, Match, Search, match_blocks, match_some};
use super::config::AlignConfig;
use super::cut::Labels;
use super::filled::Summed;
use super::fit::{self, FOLDS, Pair};
use super::lattice::Lattice;
use super::links::near_inverse;
use super::plane::Plane;
use super::{Reference, Residual, area_of, pieces, warp};

/// Thumbnails have at least this many pixels on the shorter side where the section allows.
const LEAST_THUMBNAIL: usize = 96;
/// Thumbnails have at most this many pixels on the longer side.
const MOST_THUMBNAIL: usize = 512;
/// Nodes a side at most.
const MOST_NODES: f64 = 96.0;
/// A match is consistent where the warp meets it within this many pixels.
const CONSISTENT_PX: f64 = 6.0;
/// Reach of the search, pixels of the scale, after the first pass: what the coarser solve leaves.
const FINE_REACH: usize = 3;
/// Reach where the middle pass finds little, pixels of its scale.
const AGAIN_REACH: usize = 7;
/// Tissue is without a match where the next one is further than this part of [`AlignConfig::stride_px`].
const ALONE: f64 = 0.75;
/// What a match of a coarser scale counts beside one of the last pass.
const SECOND_HAND: f64 = 0.5;
/// Sections are looked at four times coarser first where their shorter side keeps this many pixels.
const LEAST_COARSEST: usize = 96;
/// Stiffness before the last pass, where held-out matches choose it.
pub(super) const FIRST_STIFFNESS: f64 = 1.0;
/// A reference counts as used where this share of its patches is trusted.
pub(super) const USED_SHARE: f64 = 0.2;

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
    /// Patches of the last pass, by reference in the order given.
    pub(super) tied: Vec<Vec<Tied>>,
    /// Whether a crack or fold parts it: then the map is not one that a later solve could bend.
    pub(super) in_pieces: bool,
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
    let (mut tied, mut wide) = (vec![], vec![]);
    let passes = passes(config, image.dim());
    let margin = 8 + (config.patch_px / config.reduction) as i64;
    let area = references.iter().map(|r| area_of(&r.image, r.origin)).reduce(|a, b| a.union(&b));
    let area = aligned(area.ok_or("there is no reference")?, margin);
    let own = pyramid(image, origin, aligned(area_of(image, origin), 0), config.reduction);
    let fixed: Vec<Vec<Plane>> =
        references.iter().map(|r| pyramid(&r.image, r.origin, area, config.reduction)).collect();
    let mut sources = Sources { own, fixed };
    for (i, (level, search)) in passes.iter().enumerate() {
        if i == 0 {
            sources.same_contrast(*level, search, &map);
        }
        let before = std::mem::replace(&mut tied, sources.matched(*level, search, &map, None));
        carry(&mut tied, &before, config);
        if i + 1 == passes.len() {
            sources.fill_in(&mut tied, &map, None, config);
        }
        if i == 0 {
            wide = tied.clone();
        }
        let last = i + 1 == passes.len();
        let solved = solved(&tied, &axes, config, (!last).then_some(FIRST_STIFFNESS))?;
        (map, stiffness) = (solved.map, solved.stiffness);
    }
    let cut = pieces::suspect(&tied, &map)
        .then(|| pieces::in_pieces(&sources, &passes, (&Map::Affine(pose), &wide), &axes, (low, high), config));
    if let Some(cut) = cut.flatten().filter(|cut| cut.fits_better(&sources, &map))
        && let Ok(placed) = judge(cut.map, cut.axes, FIRST_STIFFNESS, cut.tied, references)
    {
        return Ok(Placed { in_pieces: true, ..placed });
    }
    judge(map, axes, stiffness, tied, references)
}

/// Pyramids of the section, in its own frame, and of the references.
pub(super) struct Sources {
    pub(super) own: Vec<Plane>,
    pub(super) fixed: Vec<Vec<Plane>>,
}

impl Sources {
    /// Inverts the references that match better so: images of one tissue by two detectors.
    fn same_contrast(&mut self, level: usize, search: &Search, map: &Map) {
        // A quarter of the patches tells.
        let few = Search { stride: 2 * search.stride, ..*search };
        let moved = warp::drawn(&self.own[level], map, self.fixed[0][level].area);
        let moved = Summed::new(&moved);
        let good = |plane: &Plane| match_blocks(&moved, &Summed::new(plane), &few).iter().filter(|m| m.trusted).count();
        for planes in &mut self.fixed {
            let all = match_blocks(&moved, &Summed::new(&planes[level]), &few);
            let same = all.iter().filter(|m| m.trusted).count();
            if 2 * same < all.len() && good(&planes[level].inverted()) > same {
                planes.iter_mut().for_each(|p| *p = p.inverted());
            }
        }
    }

    /// Matches of the section under `map`, or of a piece of it, with each reference.
    pub(super) fn matched(
        &self,
        level: usize,
        search: &Search,
        map: &Map,
        piece: Option<(&Labels, usize)>,
    ) -> Vec<Vec<Tied>> {
        let moved = self.moved(level, map, piece);
        let moved = Summed::new(&moved);
        let of = |planes: &Vec<Plane>| match_blocks(&moved, &Summed::new(&planes[level]), search);
        self.fixed.iter().map(|planes| tie(of(planes), map)).collect()
    }

    /// Adds patches where those of the last pass, under the same `map`, leave tissue without a match: between them, and further out than
    /// the coarser solve foretold, at rims and beside damage.
    pub(super) fn fill_in(
        &self,
        tied: &mut [Vec<Tied>],
        map: &Map,
        piece: Option<(&Labels, usize)>,
        config: &AlignConfig,
    ) {
        const LEVEL: usize = 1;
        let sized = |px: u32| ((px / (config.reduction << LEVEL)) as usize).max(1);
        let between = Search {
            patch: sized(config.patch_px).max(8),
            stride: sized(config.stride_px / 2),
            reach: AGAIN_REACH,
            least_score: config.least_score,
            least_distinctness: AGAIN_DISTINCTNESS,
            again: 0,
        };
        let moved = self.moved(LEVEL, map, piece);
        let moved = Summed::new(&moved);
        for (tied, planes) in tied.iter_mut().zip(&self.fixed) {
            let sure = places(tied.iter().filter(|t| t.found.trusted).map(|t| t.found.at), config);
            let more = match_some(&moved, &Summed::new(&planes[LEVEL]), &between, &|at| sure.leaves_alone(at));
            tied.extend(tie(more, map).into_iter().filter_map(|t| t.second_hand()));
        }
    }

    fn moved(&self, level: usize, map: &Map, piece: Option<(&Labels, usize)>) -> Plane {
        let area = self.fixed[0][level].area;
        match piece {
            Some((labels, k)) => warp::drawn(&labels.only(&self.own[level], k), map, area),
            None => warp::drawn(&self.own[level], map, area),
        }
    }
}

/// What a pass cannot tell, the one before it still does: its matches are kept where there are no new ones.
pub(super) fn carry(tied: &mut [Vec<Tied>], before: &[Vec<Tied>], config: &AlignConfig) {
    for (tied, before) in tied.iter_mut().zip(before) {
        let sure = places(tied.iter().filter(|t| t.found.trusted).map(|t| t.from), config);
        let kept = before.iter().filter(|t| sure.leaves_alone(t.from));
        tied.extend(kept.filter_map(|t| t.second_hand()));
    }
}

/// The places that are sure: tissue beyond [`ALONE`] of them is without a match.
fn places(sure: impl Iterator<Item = Xy<f64>>, config: &AlignConfig) -> Lattice {
    Lattice::new(sure, f64::from(config.stride_px) * ALONE)
}

/// The map through the matches with all references.
pub(super) fn solved(
    tied: &[Vec<Tied>],
    axes: &Axes,
    config: &AlignConfig,
    stiffness: Option<f64>,
) -> Result<fit::Solved, String> {
    let weighted = tied.iter().zip(0i32..).flat_map(|(t, age)| pairs(t, config.older_weight.powi(age)));
    let weighted = evened(weighted.collect());
    let found = fit::elastic(&weighted, &axes.0, &axes.1, stiffness);
    let solved = found.ok_or_else(|| format!("{} trusted patches do not determine a map", weighted.len()))?;
    check_shape(&solved.map, axes)?;
    Ok(solved)
}

/// `area` with a margin, its corners at whole pixels of all scales.
fn aligned(area: BoxXy, margin: i64) -> BoxXy {
    let down = |v: i64| (v - margin).div_euclid(8) * 8;
    let up = |v: i64| -((-v - margin).div_euclid(8) * 8);
    BoxXy { min: Xy::new(down(area.min.x), down(area.min.y)), max: Xy::new(up(area.max.x), up(area.max.y)) }
}

/// A comparable image at the scale handed in, and at two and four times that.
fn pyramid(image: &Array2<u8>, origin: Xy<i64>, area: BoxXy, scale: u32) -> Vec<Plane> {
    let mut planes = vec![Plane::new(image, origin, area, scale)];
    for _ in 0..2 {
        planes.push(planes[planes.len() - 1].halved());
    }
    planes
}

/// A match and the section pixel it is about.
#[derive(Clone, Copy)]
pub(super) struct Tied {
    pub(super) from: Xy<f64>,
    pub(super) found: Match,
    /// Whether it only stands in where the last pass has none: then it does not count among what was tried.
    pub(super) second_hand: bool,
}

impl Tied {
    /// As one that stands in; `None` where it is not trusted.
    fn second_hand(&self) -> Option<Self> {
        let weight = if self.second_hand { 1.0 } else { SECOND_HAND };
        let found = Match { score: self.found.score * weight, ..self.found };
        found.trusted.then_some(Self { found, second_hand: true, ..*self })
    }
}

pub(super) fn trusted(tied: &[Tied]) -> usize {
    tied.iter().filter(|t| t.found.trusted).count()
}

/// Levels of the pyramid and sizes of the passes, coarse to fine.
fn passes(config: &AlignConfig, (h, w): (usize, usize)) -> Vec<(usize, Search)> {
    let s = config.reduction as usize;
    let (patch, stride, reach) = (config.patch_px as usize, config.stride_px as usize, config.search_px as usize);
    let first = if h.min(w) / 4 >= LEAST_COARSEST { 2 } else { 1 };
    let pass = |level: usize| {
        let pixel = s << level;
        // A wider search needs a larger patch to be as sure, a finer scale has more texture in a smaller one.
        let (patch, reach, distinct) = match level {
            l if l == first => (patch * 4 / 3, reach.div_ceil(pixel), config.least_distinctness),
            0 => (patch * 5 / 6, FINE_REACH, 0.0),
            _ => (patch, FINE_REACH, 0.0),
        };
        let stride = if level == first { stride * 3 / 2 } else { stride };
        let (patch, stride) = ((patch / pixel).max(8), (stride / pixel).max(1));
        let again = if level == 1 && level != first { AGAIN_REACH } else { 0 };
        (level, Search { patch, stride, reach, least_score: config.least_score, least_distinctness: distinct, again })
    };
    (0..=first).rev().map(pass).collect()
}

/// Finds the section pixels of matches that were made under `map`.
pub(super) fn tie(matches: Vec<Match>, map: &Map) -> Vec<Tied> {
    let guess = near_inverse(map);
    let back =
        |m: Match| map.invert_at(m.at, guess.apply(m.at)).map(|from| Tied { from, found: m, second_hand: false });
    matches.into_iter().filter_map(back).collect()
}

/// What the solver gets: trusted matches, weighted by how well they correlate.
pub(super) fn pairs(tied: &[Tied], weight: f64) -> impl Iterator<Item = Pair> {
    tied.iter().filter(|t| t.found.trusted).map(move |t| {
        // Patches overlap: whole clumps of them are held out together.
        let (c, r) = (t.found.cell.x.div_euclid(4), t.found.cell.y.div_euclid(4));
        // Those that stand in have no say in how stiff the map is.
        let fold = if t.second_hand { FOLDS } else { (c + 2 * r).rem_euclid(FOLDS as i64) as usize };
        Pair { from: t.from, to: t.found.to, weight: weight * t.found.score, fold }
    })
}

/// Weights of mean 1: stiffness means the same whatever the tissue.
pub(super) fn evened(mut pairs: Vec<Pair>) -> Vec<Pair> {
    let mean = pairs.iter().map(|p| p.weight).sum::<f64>() / pairs.len().max(1) as f64;
    pairs.iter_mut().for_each(|p| p.weight /= mean.max(1e-9));
    pairs
}

/// Refuses maps that no section could have.
pub(super) fn check_shape(map: &Map, (xs, ys): &Axes) -> Result<(), String> {
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
    tied: Vec<Vec<Tied>>,
    references: &[&Reference],
) -> Result<Placed, String> {
    let mut used = vec![];
    let mut nearest: Option<&Vec<&Tied>> = None;
    let tried: Vec<Vec<&Tied>> = tied.iter().map(|t| t.iter().filter(|t| !t.second_hand).collect()).collect();
    for (t, r) in tried.iter().zip(references) {
        let sure = t.iter().filter(|t| t.found.trusted).count();
        if sure > 0 && sure as f64 >= USED_SHARE * t.len() as f64 {
            used.push(r.serial);
            nearest = nearest.or(Some(t));
        }
    }
    let Some(nearest) = nearest else { return Err("too few patches are trusted on any reference".to_owned()) };
    let believed = nearest.iter().filter(|t| t.found.trusted);
    let (residual, consistent) = residual(believed.map(|t| (map.apply(t.from) - t.found.to).norm()).collect());
    let confidence = consistent as f64 / nearest.len() as f64;
    Ok(Placed { map, axes, stiffness, residual, confidence, used, tied, in_pieces: false })
}

/// Of the distances that trusted matches are off, and how many of them are consistent.
pub(super) fn residual(mut off: Vec<f64>) -> (Residual, usize) {
    off.sort_by(f64::total_cmp);
    let consistent = off.partition_point(|r| *r <= CONSISTENT_PX);
    let square = off[..consistent].iter().map(|r| r * r).sum::<f64>() / consistent.max(1) as f64;
    let thousandths = |v: f64| (v * 1000.0).round() / 1000.0;
    let p95 = off.get((off.len().max(1) - 1) * 95 / 100).copied().unwrap_or(0.0);
    (Residual { rms: thousandths(square.sqrt()), p95: thousandths(p95) }, consistent)
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
    let source = Plane::new(image, origin, area_of(image, origin), reduction);
    let area = bounds(&source, map);
    let size = area.size();
    let drawn = warp::drawn(&source, map, area);
    let image = Array2::from_shape_vec((size.y, size.x), drawn.grey).map_err(|e| e.to_string())?;
    Ok((image, area.min))
}

/// The reduced volume pixels that a section may cover: of a bilinear map, those between the images of nodes and border points.
fn bounds(source: &Plane, map: &Map) -> BoxXy {
    let (w, h) = (source.width as f64 - 1.0, source.height as f64 - 1.0);
    let steps = 64;
    let along = (0..=steps).map(|i| f64::from(i) / f64::from(steps));
    let border = along.flat_map(|t| [(t, 0.0), (t, 1.0), (0.0, t), (1.0, t)]);
    let mut points: Vec<Xy<f64>> = border.map(|(u, v)| map.apply(source.to_full(Xy::new(u * w, v * h)))).collect();
    if let Map::Grid(g) = map {
        let (low, high) = (source.to_full(Xy::new(0.0, 0.0)), source.to_full(Xy::new(w, h)));
        let inside = |x: f64, y: f64| x >= low.x && y >= low.y && x <= high.x && y <= high.y;
        let nodes = (0..g.ys().len()).flat_map(|r| (0..g.xs().len()).map(move |c| (c, r)));
        points.extend(nodes.filter(|(c, r)| inside(g.xs()[*c], g.ys()[*r])).map(|(c, r)| g.node(c, r)));
    }
    let frame = Plane::empty(BoxXy { min: Xy::new(0, 0), max: Xy::new(0, 0) }, source.scale);
    let reduced: Vec<Xy<f64>> = points.into_iter().map(|p| frame.place_of(p)).collect();
    let least = |f: fn(&Xy<f64>) -> f64| reduced.iter().map(f).fold(f64::MAX, f64::min).floor() as i64 - 2;
    let most = |f: fn(&Xy<f64>) -> f64| reduced.iter().map(f).fold(f64::MIN, f64::max).ceil() as i64 + 3;
    BoxXy { min: Xy::new(least(|p| p.x), least(|p| p.y)), max: Xy::new(most(|p| p.x), most(|p| p.y)) }
}

/// A comparable image at the scale of the coarse step, or at `scale` where given.
pub(super) fn thumbnail(image: &Array2<u8>, origin: Xy<i64>, config: &AlignConfig, scale: Option<u32>) -> Plane {
    let mut plane = Plane::new(image, origin, aligned(area_of(image, origin), 0), config.reduction);
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
