//! One tile made ready for a block, and the strips of rows that tiles are drawn into, cell by cell of the lattice.
//!
//! A cell that one tile covers is written as it is sampled; where several meet, their weighted sums are kept for that cell
//! alone. Sums are in f64, so that one value times its weight, divided by the weight, is that value again: a pixel does not
//! show which way it went.

use std::borrow::Cow;

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced};
use kinesin_stream::pixels::Pixels;

use super::compose::PlacedTile;
use super::lattice::{Lattice, reach};
use super::sample::{LANES, LONGEST, Run, Samples, grey};
use super::{RenderConfig, RenderError, Tone};
use crate::wide::Kernel;

/// Rows that one task draws at a time.
pub(super) const STRIP_ROWS: usize = 64;

/// One tile made ready for a block.
pub(super) struct Source<'a> {
    /// Bounds in the reduced target, clipped to the block.
    part: BoxXy,
    pub(super) tone: Tone,
    /// Pixels of the reduced tile at the lattice nodes that span `part`.
    nodes: Lattice,
    /// Smallest and largest reduced tile pixel that shows tissue.
    pub(super) low: Xy<f64>,
    pub(super) high: Xy<f64>,
    /// Grey values, averaged over `reduction` squared boxes, of a window of the tile.
    pub(super) data: Cow<'a, [u8]>,
    /// Columns of `data`.
    pub(super) stride: usize,
    /// First column and row of `data` in the reduced tile.
    pub(super) origin: Xy<usize>,
    /// Columns and rows of the whole reduced tile.
    pub(super) reduced: Xy<usize>,
    reduction: u32,
    pub(super) sharpness: u32,
    pub(super) zero_is_empty: bool,
}

impl<'a> Source<'a> {
    /// `None` where the tile does not touch the block or is too small to sample.
    pub(super) fn new(
        placed: &'a PlacedTile,
        pixels: &'a Pixels,
        block: BoxXy,
        reduction: u32,
        config: &RenderConfig,
    ) -> Result<Option<Self>, RenderError> {
        let s = reduction as usize;
        let bounds = placed.bounds(reduction);
        let Some(part) = bounds.intersect(&block) else { return Ok(None) };
        if pixels.width() < 2 * s || pixels.height() < 2 * s {
            return Ok(None);
        }
        let nodes = Lattice::solve(placed, (part, bounds), reduction, i64::from(config.lattice_px))?;
        let half = -full_to_reduced(0.0, f64::from(reduction));
        let last = |n: u32| full_to_reduced(f64::from(n - 1), f64::from(reduction));
        let mut source = Self {
            part,
            tone: placed.tone,
            nodes,
            low: Xy::new(-half, -half),
            high: Xy::new(last(placed.size.x), last(placed.size.y)),
            data: Cow::Borrowed(pixels.data()),
            stride: pixels.width(),
            origin: Xy::new(0, 0),
            reduced: Xy::new(pixels.width() / s, pixels.height() / s),
            reduction,
            sharpness: config.seam_sharpness,
            zero_is_empty: config.zero_is_empty,
        };
        if s > 1 {
            source.reduce(pixels);
        }
        Ok(Some(source))
    }

    /// Averages the part of the tile that the block can show.
    fn reduce(&mut self, pixels: &Pixels) {
        let s = self.reduction as usize;
        let (from, to) = self.window();
        let size = Xy::new(to.x - from.x, to.y - from.y);
        let area = self.reduction * self.reduction;
        let mut data = vec![0u8; size.x * size.y];
        let mut sums = vec![(0u32, 0u32); size.x];
        for (y, out) in data.chunks_exact_mut(size.x).enumerate() {
            sums.fill((0, 0));
            let first = (from.y + y) * s;
            for row in (first..first + s).map(|r| &pixels.row(r)[from.x * s..to.x * s]) {
                for (sum, values) in sums.iter_mut().zip(row.chunks_exact(s)) {
                    sum.0 += values.iter().map(|&v| u32::from(v)).sum::<u32>();
                    if self.zero_is_empty {
                        sum.1 += values.iter().filter(|v| **v == 0).count() as u32;
                    }
                }
            }
            for (o, (sum, empty)) in out.iter_mut().zip(&sums) {
                let full = area - empty;
                *o = if 2 * empty > area { 0 } else { ((sum + full / 2) / full) as u8 };
            }
        }
        self.data = Cow::Owned(data);
        self.stride = size.x;
        self.origin = from;
    }

    /// Whether a cell with these corners may show a part of the tile, and whether it shows nothing else.
    #[inline(always)]
    fn covers(&self, corners: &[Xy<f64>]) -> (bool, bool) {
        let (low, high) = reach(corners);
        let touches = high.x >= self.low.x && high.y >= self.low.y && low.x <= self.high.x && low.y <= self.high.y;
        // Two pixels from the border every neighbour exists, also where the last box was cut off.
        let (x, y) = (self.reduced.x as f64 - 3.0, self.reduced.y as f64 - 3.0);
        (touches, low.x > 2.0 && low.y > 2.0 && high.x < x && high.y < y)
    }

    /// First and one past the last reduced tile pixel that the block can show.
    fn window(&self) -> (Xy<usize>, Xy<usize>) {
        let (low, high) = self.nodes.reach();
        let from = |v: f64, n: usize| (v - 1.0).floor().clamp(0.0, n as f64 - 2.0) as usize;
        let to = |v: f64, n: usize| (v + 3.0).ceil().clamp(2.0, n as f64) as usize;
        let min = Xy::new(from(low.x, self.reduced.x), from(low.y, self.reduced.y));
        let max = Xy::new(to(high.x, self.reduced.x), to(high.y, self.reduced.y));
        (min, Xy::new(max.x.max(min.x + 2), max.y.max(min.y + 2)))
    }
}

/// One tile in one cell of the lattice.
struct Part<'s, 'a> {
    source: &'s Source<'a>,
    corners: [Xy<f64>; 4],
    /// What of the cell lies in the tile's bounds, target pixels.
    inside: BoxXy,
    /// Whether all of it lies well inside the tile.
    clear: bool,
}

impl Part<'_, '_> {
    /// The samples of row `y`, target pixels, of a cell with its first node at `node`.
    #[inline(always)]
    fn run(&self, node: Xy<i64>, y: i64) -> Run {
        let n = self.source.nodes.step as f64;
        let (c, v) = (&self.corners, (y - node.y) as f64 / n);
        let left = c[0] * (1.0 - v) + c[2] * v;
        let step = (c[1] * (1.0 - v) + c[3] * v - left) * (1.0 / n);
        Run::new(left, step, self.inside.min.x - node.x, self.inside.size().x)
    }
}

/// Draws all sources, in their order, into the rows of a strip, which are zero before.
pub(super) struct Strip<'s, 'a> {
    /// Where it lies in the reduced target.
    pub(super) area: BoxXy,
    /// The tiles.
    pub(super) sources: &'s [Option<Source<'a>>],
    /// Its pixels.
    pub(super) out: &'s mut [u8],
}

impl Kernel for Strip<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        draw(self.area, self.sources, self.out);
    }
}

#[inline(always)]
fn draw(strip: BoxXy, sources: &[Option<Source<'_>>], out: &mut [u8]) {
    let Some(n) = sources.iter().flatten().map(|s| s.nodes.step).next() else { return };
    let mut canvas = Canvas { strip, out, values: Vec::new(), weights: Vec::new(), samples: Samples::default() };
    let mut parts: Vec<Part<'_, '_>> = Vec::new();
    for r in strip.min.y.div_euclid(n)..=(strip.max.y - 1).div_euclid(n) {
        for c in strip.min.x.div_euclid(n)..=(strip.max.x - 1).div_euclid(n) {
            let node = Xy::new(c * n, r * n);
            let cell = BoxXy { min: node, max: Xy::new(node.x + n, node.y + n) };
            parts.clear();
            parts.extend(sources.iter().flatten().filter_map(|source| {
                let inside = source.part.intersect(&cell)?.intersect(&strip)?;
                let corners = source.nodes.corners(c, r);
                let (touches, clear) = source.covers(&corners);
                touches.then_some(Part { source, corners, inside, clear })
            }));
            match parts.as_slice() {
                [] => {}
                [one] => canvas.draw(one, node),
                several => canvas.blend(several, &cell),
            }
        }
    }
}

/// The rows of a strip, and scratch space of a cell.
struct Canvas<'o> {
    strip: BoxXy,
    out: &'o mut [u8],
    /// Of each pixel of a cell the sum of weight times value, and that of weights.
    values: Vec<f64>,
    weights: Vec<f64>,
    samples: Samples,
}

impl Canvas<'_> {
    /// Where pixel (`x`, `y`) of the target lies in `out`.
    #[inline(always)]
    fn at(&self, x: i64, y: i64) -> usize {
        (y - self.strip.min.y) as usize * self.strip.size().x + (x - self.strip.min.x) as usize
    }

    /// A cell that shows one tile.
    #[inline(always)]
    fn draw(&mut self, part: &Part<'_, '_>, node: Xy<i64>) {
        for y in part.inside.min.y..part.inside.max.y {
            let shown = self.samples.take::<false>(part.source, &part.run(node, y), part.clear);
            let from = self.at(part.inside.min.x, y);
            for i in shown.clone().step_by(LANES) {
                let n = LANES.min(shown.end - i);
                let mut greys: [u8; LANES] = std::array::from_fn(|k| grey(self.samples.values[i + k]));
                if self.samples.gaps {
                    let weights = &self.samples.weights[i..i + n];
                    greys.iter_mut().zip(weights).filter(|(_, w)| **w == 0.0).for_each(|(g, _)| *g = 0);
                }
                match self.out[from + i..].first_chunk_mut::<LANES>().filter(|_| n == LANES) {
                    Some(out) => *out = greys,
                    None => self.out[from + i..from + i + n].copy_from_slice(&greys[..n]),
                }
            }
        }
    }

    /// A cell that shows several.
    #[inline(always)]
    fn blend(&mut self, parts: &[Part<'_, '_>], cell: &BoxXy) {
        // A row more than there is, because rows are added up to the next whole number of lanes.
        let n = cell.size().x;
        for sums in [&mut self.values, &mut self.weights] {
            sums.clear();
            sums.resize(n * n + LANES, 0.0);
        }
        for part in parts {
            for y in part.inside.min.y..part.inside.max.y {
                let shown = self.samples.take::<true>(part.source, &part.run(cell.min, y), part.clear);
                let from = (y - cell.min.y) as usize * n + (part.inside.min.x - cell.min.x) as usize;
                // Beyond the samples all weights are zero.
                for i in shown.step_by(LANES) {
                    let (values, weights) = (&self.samples.values[i..i + LANES], &self.samples.weights[i..i + LANES]);
                    let to = from + i..from + i + LANES;
                    let sums = self.values[to.clone()].iter_mut().zip(&mut self.weights[to]);
                    for ((sum, all), (&value, &weight)) in sums.zip(values.iter().zip(weights)) {
                        *sum += f64::from(weight) * f64::from(value);
                        *all += f64::from(weight);
                    }
                }
            }
        }
        let Some(all) = cell.intersect(&self.strip) else { return };
        for y in all.min.y..all.max.y {
            let from = (y - cell.min.y) as usize * n + (all.min.x - cell.min.x) as usize;
            let (to, count) = (self.at(all.min.x, y), all.size().x);
            let sums = self.values[from..from + count].iter().zip(&self.weights[from..from + count]);
            for (o, (&value, &weight)) in self.out[to..to + count].iter_mut().zip(sums) {
                *o = if weight > 0.0 { grey((value / weight) as f32) } else { 0 };
            }
        }
    }
}

const _: () = assert!(LONGEST == 64, "the longest row of a cell is the largest lattice_px that is allowed");
