//! The inner loops: the inverse lattice of one tile over one strip of rows, and the weighted sums.

use std::borrow::Cow;

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use kinesin_stream::map::{Affine, Map};
use kinesin_stream::pixels::Pixels;

use super::compose::PlacedTile;
use super::{RenderConfig, RenderError, Tone};

/// Rows that one task sums at a time: sums of a 1024 px wide block then stay in the second-level cache.
pub(super) const STRIP_ROWS: usize = 64;
/// How exactly the way back is solved, target pixels.
const SETTLED_PX: f64 = 1e-4;

/// One tile made ready for a block.
pub(super) struct Source<'a> {
    /// Bounds in the reduced target, clipped to the block.
    part: BoxXy,
    tone: Tone,
    /// Pixels of the reduced tile at the lattice nodes that span `part`.
    nodes: Lattice,
    /// Smallest and largest reduced tile pixel that shows tissue.
    low: Xy<f64>,
    high: Xy<f64>,
    /// Grey values, averaged over `reduction` squared boxes, of a window of the tile.
    data: Cow<'a, [u8]>,
    /// Columns of `data`.
    stride: usize,
    /// First column and row of `data` in the reduced tile.
    origin: Xy<usize>,
    /// Columns and rows of the whole reduced tile.
    reduced: Xy<usize>,
    reduction: u32,
    sharpness: u32,
    zero_is_empty: bool,
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
        let Some(part) = placed.bounds(reduction).intersect(&block) else { return Ok(None) };
        if pixels.width() < 2 * s || pixels.height() < 2 * s {
            return Ok(None);
        }
        let nodes = Lattice::solve(placed, part, reduction, i64::from(config.lattice_px))?;
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

    /// Smallest and largest place that shows tissue, fixed point.
    fn border(&self) -> ((i64, i64), (i64, i64)) {
        ((fixed(self.low.x), fixed(self.low.y)), (fixed(self.high.x), fixed(self.high.y)))
    }

    /// First and one past the last reduced tile pixel that the block can show.
    fn window(&self) -> (Xy<usize>, Xy<usize>) {
        let (low, high) = reach(&self.nodes.back);
        let from = |v: f64, n: usize| (v - 1.0).floor().clamp(0.0, n as f64 - 2.0) as usize;
        let to = |v: f64, n: usize| (v + 3.0).ceil().clamp(2.0, n as f64) as usize;
        let min = Xy::new(from(low.x, self.reduced.x), from(low.y, self.reduced.y));
        let max = Xy::new(to(high.x, self.reduced.x), to(high.y, self.reduced.y));
        (min, Xy::new(max.x.max(min.x + 2), max.y.max(min.y + 2)))
    }
}

/// The way back from target to tile at nodes `step` output pixels apart, counted from the target's origin.
struct Lattice {
    step: i64,
    /// First node.
    first: Xy<i64>,
    columns: usize,
    /// Reduced tile pixels, row by row.
    back: Vec<Xy<f64>>,
}

impl Lattice {
    /// All nodes of the cells that touch `part`.
    fn solve(placed: &PlacedTile, part: BoxXy, reduction: u32, step: i64) -> Result<Self, RenderError> {
        let first = Xy::new(part.min.x.div_euclid(step), part.min.y.div_euclid(step));
        let last = Xy::new((part.max.x - 1).div_euclid(step) + 1, (part.max.y - 1).div_euclid(step) + 1);
        let guess = linear_inverse(&placed.map, placed.size);
        let s = f64::from(reduction);
        let at = |n: i64| reduced_to_full((n * step) as f64, s);
        let reduced = |p: Xy<f64>| Xy::new(full_to_reduced(p.x, s), full_to_reduced(p.y, s));
        let nodes = (first.y..=last.y).flat_map(|r| (first.x..=last.x).map(move |c| Xy::new(at(c), at(r))));
        let back = nodes.map(|q| invert(placed, &guess, q).map(reduced)).collect::<Result<_, _>>()?;
        Ok(Self { step, first, columns: (last.x - first.x + 1) as usize, back })
    }

    /// Reduced tile pixels at the four corners of cell (`column`, `row`).
    fn corners(&self, column: i64, row: i64) -> [Xy<f64>; 4] {
        let i = (row - self.first.y) as usize * self.columns + (column - self.first.x) as usize;
        [self.back[i], self.back[i + 1], self.back[i + self.columns], self.back[i + self.columns + 1]]
    }
}

/// The tile pixel whose image is `q`.
fn invert(placed: &PlacedTile, guess: &Affine, q: Xy<f64>) -> Result<Xy<f64>, RenderError> {
    let first = guess.apply(q);
    let [[a, b, _], [c, d, _]] = guess.rows;
    let mut p = first;
    // The map is close to its linear part, so each step shrinks the error by the bend per pixel.
    for _ in 0..12 {
        let e = q - placed.map.apply(p);
        p = Xy::new(p.x + a * e.x + b * e.y, p.y + c * e.x + d * e.y);
        if e.norm() < SETTLED_PX {
            return Ok(p);
        }
    }
    let fold = RenderError::NotInvertible { key: placed.key, x: q.x as i64, y: q.y as i64 };
    placed.map.invert_at(q, first).ok_or(fold)
}

/// Smallest and largest coordinates.
fn reach(points: &[Xy<f64>]) -> (Xy<f64>, Xy<f64>) {
    let none = (Xy::new(f64::MAX, f64::MAX), Xy::new(f64::MIN, f64::MIN));
    points.iter().fold(none, |(low, high), p| {
        (Xy::new(low.x.min(p.x), low.y.min(p.y)), Xy::new(high.x.max(p.x), high.y.max(p.y)))
    })
}

/// Inverse of the affine map through the tile's corners and centre, identity linear part where it is flat.
fn linear_inverse(map: &Map, size: Xy<u32>) -> Affine {
    if let Map::Affine(a) = map {
        return a.inverse().unwrap_or(Affine::IDENTITY);
    }
    let (w, h) = (f64::from(size.x), f64::from(size.y));
    let at = |u: f64, v: f64| map.apply(Xy::new(u * w, v * h));
    let dx = (at(1.0, 0.0) + at(1.0, 1.0) - at(0.0, 0.0) - at(0.0, 1.0)) * (0.5 / w);
    let dy = (at(0.0, 1.0) + at(1.0, 1.0) - at(0.0, 0.0) - at(1.0, 0.0)) * (0.5 / h);
    let centre = at(0.5, 0.5);
    let t = centre - Xy::new(dx.x * w / 2.0 + dy.x * h / 2.0, dx.y * w / 2.0 + dy.y * h / 2.0);
    let a = Affine { rows: [[dx.x, dy.x, t.x], [dx.y, dy.y, t.y]] };
    a.inverse().unwrap_or(Affine::translation(Xy::default() - centre))
}

/// Weighted sums of a strip of the reduced target.
pub(super) struct Sums {
    strip: BoxXy,
    width: usize,
    /// Sum of weight times value, sum of weights.
    sums: Vec<(f32, f32)>,
}

/// Bits of fraction of a sample's place.
const FRACTION: u32 = 20;
/// Bits of fraction of a bilinear weight: the sum of four products of 8 bits then fits 32 bits.
const SHARE: u32 = 11;

/// A straight run of samples: place and step in reduced tile pixels of fixed point, counted from the cell's first column.
struct Run {
    x: i64,
    y: i64,
    dx: i64,
    dy: i64,
    /// Columns of the cell before the first one wanted.
    skip: i64,
}

impl Run {
    fn new(start: Xy<f64>, step: Xy<f64>, skip: i64) -> Self {
        Self { x: fixed(start.x), y: fixed(start.y), dx: fixed(step.x), dy: fixed(step.y), skip }
    }

    /// Tile pixel of wanted column `i`.
    #[inline(always)]
    fn at(&self, i: usize) -> (i64, i64) {
        let t = i as i64 + self.skip;
        (self.x + self.dx * t, self.y + self.dy * t)
    }
}

fn fixed(v: f64) -> i64 {
    (v * f64::from(1u32 << FRACTION)) as i64
}

impl Sums {
    pub(super) fn new(strip: BoxXy) -> Self {
        let size = strip.size();
        Self { strip, width: size.x, sums: vec![(0.0, 0.0); size.x * size.y] }
    }

    /// Adds what one tile shows in the strip.
    pub(super) fn add(&mut self, s: &Source<'_>) {
        let Some(part) = s.part.intersect(&self.strip) else { return };
        let n = s.nodes.step;
        for r in part.min.y.div_euclid(n)..=(part.max.y - 1).div_euclid(n) {
            for c in part.min.x.div_euclid(n)..=(part.max.x - 1).div_euclid(n) {
                let min = Xy::new((c * n).max(part.min.x), (r * n).max(part.min.y));
                let max = Xy::new(((c + 1) * n).min(part.max.x), ((r + 1) * n).min(part.max.y));
                self.add_cell(s, Xy::new(c, r), BoxXy { min, max });
            }
        }
    }

    /// Adds the pixels `inside` of one lattice cell.
    fn add_cell(&mut self, s: &Source<'_>, cell: Xy<i64>, inside: BoxXy) {
        let corners = s.nodes.corners(cell.x, cell.y);
        let node = Xy::new(cell.x * s.nodes.step, cell.y * s.nodes.step);
        let (low, high) = reach(&corners);
        if high.x < s.low.x || high.y < s.low.y || low.x > s.high.x || low.y > s.high.y {
            return;
        }
        // Two pixels from the border every neighbour exists, also where the last box was cut off.
        let clear = low.x > 2.0 && low.y > 2.0 && high.x < s.high.x - 2.0 && high.y < s.high.y - 2.0;
        let n = s.nodes.step as f64;
        for y in inside.min.y..inside.max.y {
            let v = (y - node.y) as f64 / n;
            let left = corners[0] * (1.0 - v) + corners[2] * v;
            let step = (corners[1] * (1.0 - v) + corners[3] * v - left) * (1.0 / n);
            let run = Run::new(left, step, inside.min.x - node.x);
            let offset = (y - self.strip.min.y) as usize * self.width + (inside.min.x - self.strip.min.x) as usize;
            let out = &mut self.sums[offset..offset + inside.size().x];
            match (clear && !s.zero_is_empty, s.sharpness) {
                (true, 1) => add_clear::<1>(s, &run, out),
                (true, 2) => add_clear::<2>(s, &run, out),
                (true, _) => add_clear::<4>(s, &run, out),
                (false, 1) => add_checked::<1>(s, &run, out),
                (false, 2) => add_checked::<2>(s, &run, out),
                (false, _) => add_checked::<4>(s, &run, out),
            }
        }
    }

    /// Rounds the means into `out`, rows of the strip.
    pub(super) fn finish(&self, out: &mut [u8]) {
        for (o, &(value, weight)) in out.iter_mut().zip(&self.sums) {
            *o = if weight > 0.0 { ((value / weight) + 0.5).clamp(1.0, 255.0) as u8 } else { 0 };
        }
    }
}

/// Weight of the sample (`x`, `y`) by its distance to the nearest border, which lies one pixel outside `low` and `high`.
#[inline(always)]
fn weight<const SHARPNESS: u32>(x: i64, y: i64, low: (i64, i64), high: (i64, i64)) -> f32 {
    let one = 1i64 << FRACTION;
    let d = ((x - low.0).min(high.0 - x)).min((y - low.1).min(high.1 - y)) + one;
    let d = d as f32 * (1.0 / (1u32 << FRACTION) as f32);
    match SHARPNESS {
        1 => d,
        2 => d * d,
        _ => (d * d) * (d * d),
    }
}

/// A run that lies inside the tile with all its neighbours.
fn add_clear<const SHARPNESS: u32>(s: &Source<'_>, run: &Run, out: &mut [(f32, f32)]) {
    let (low, high) = s.border();
    let (gain, offset) = (s.tone.gain / (1u32 << (2 * SHARE)) as f32, s.tone.offset);
    let base = s.origin.y * s.stride + s.origin.x;
    for (i, o) in out.iter_mut().enumerate() {
        let (x, y) = run.at(i);
        let at = (y >> FRACTION) as usize * s.stride + (x >> FRACTION) as usize - base;
        let (top, rest) = s.data[at..at + s.stride + 2].split_at(s.stride);
        let value = bilinear([top[0], top[1], rest[0], rest[1]], share(x), share(y));
        let k = weight::<SHARPNESS>(x, y, low, high);
        o.0 += k * (value as f32 * gain + offset);
        o.1 += k;
    }
}

/// A run that may leave the tile or meet empty pixels.
fn add_checked<const SHARPNESS: u32>(s: &Source<'_>, run: &Run, out: &mut [(f32, f32)]) {
    let (low, high) = s.border();
    let (gain, offset) = (s.tone.gain / (1u32 << (2 * SHARE)) as f32, s.tone.offset);
    let base = s.origin.y * s.stride + s.origin.x;
    let last = ((s.reduced.x as i64 - 1) << FRACTION, (s.reduced.y as i64 - 1) << FRACTION);
    for (i, o) in out.iter_mut().enumerate() {
        let (x, y) = run.at(i);
        if x < low.0 || y < low.1 || x > high.0 || y > high.1 {
            continue;
        }
        // The rim of a reduced tile has no neighbour to blend with: it takes the last pixel.
        let (u, v) = (x.clamp(0, last.0), y.clamp(0, last.1));
        let (c, r) = ((u >> FRACTION) as usize, (v >> FRACTION) as usize);
        let (right, down) = (usize::from(c + 1 < s.reduced.x), usize::from(r + 1 < s.reduced.y) * s.stride);
        let at = r * s.stride + c - base;
        let four = [s.data[at], s.data[at + right], s.data[at + down], s.data[at + down + right]];
        if s.zero_is_empty && touches_empty(four, share(u), share(v)) {
            continue;
        }
        let k = weight::<SHARPNESS>(x, y, low, high);
        o.0 += k * (bilinear(four, share(u), share(v)) as f32 * gain + offset);
        o.1 += k;
    }
}

/// Fraction of a place, as a bilinear weight.
#[inline(always)]
fn share(v: i64) -> u32 {
    ((v >> (FRACTION - SHARE)) & ((1 << SHARE) - 1)) as u32
}

/// Bilinear mean of two pixels above two, times `1 << (2 * SHARE)`.
#[inline(always)]
fn bilinear(four: [u8; 4], fu: u32, fv: u32) -> i32 {
    let [a, b, c, d] = four.map(u32::from);
    let one = 1 << SHARE;
    let (top, low) = (a * (one - fu) + b * fu, c * (one - fu) + d * fu);
    (top * (one - fv) + low * fv) as i32
}

/// Whether a pixel that takes part in the mean is empty.
fn touches_empty(four: [u8; 4], fu: u32, fv: u32) -> bool {
    let takes_part = [true, fu > 0, fv > 0, fu > 0 && fv > 0];
    four.iter().zip(takes_part).any(|(v, used)| *v == 0 && used)
}
