//! Samples of one tile along one row of a lattice cell: grey values, and weights where tiles meet.
//!
//! Places are fixed point, straight along the row. Where neighbouring samples fall on neighbouring pixels of one tile row, which in
//! nearly upright tiles is so for most runs, their pixels are read together; a sample comes out the same whether they are or not.

use std::ops::Range;

use kinesin_stream::geometry::Xy;

use super::warp::Source;

/// Most samples in a row of a cell.
pub(super) const LONGEST: usize = 64;
/// Bits of fraction of a sample's place.
const FRACTION: u32 = 20;
const ONE: i64 = 1 << FRACTION;
const SHARE: f32 = 1.0 / ONE as f32;

/// Where the samples of a row lie, reduced tile pixels of fixed point.
pub(super) struct Run {
    x: i64,
    y: i64,
    dx: i64,
    dy: i64,
    count: usize,
}

impl Run {
    /// `count` samples from the one `skip` steps after `start` on.
    #[inline(always)]
    pub(super) fn new(start: Xy<f64>, step: Xy<f64>, skip: i64, count: usize) -> Self {
        let (x, y, dx, dy) = (fixed(start.x), fixed(start.y), fixed(step.x), fixed(step.y));
        Self { x: x + dx * skip, y: y + dy * skip, dx, dy, count }
    }

    #[inline(always)]
    fn at(&self, i: usize) -> (i64, i64) {
        (self.x + self.dx * i as i64, self.y + self.dy * i as i64)
    }

    /// Index of the pixel left above sample `i`, which lies inside.
    #[inline(always)]
    fn pixel(&self, s: &Source<'_>, i: usize) -> usize {
        let (x, y) = self.at(i);
        ((y >> FRACTION) as usize - s.origin.y) * s.stride + (x >> FRACTION) as usize - s.origin.x
    }

    /// Whether samples `from..to` fall on neighbouring pixels of one row.
    #[inline(always)]
    fn straight(&self, from: usize, to: usize) -> bool {
        let ((x, y), (u, v)) = (self.at(from), self.at(to - 1));
        let along = (to - 1 - from) as i64;
        // What is straight and the same number of pixels from its place at both ends is so between them.
        (x >> FRACTION) + along == u >> FRACTION && y >> FRACTION == v >> FRACTION
    }
}

#[inline(always)]
fn fixed(v: f64) -> i64 {
    (v * ONE as f64) as i64
}

/// The grey level of a value: the nearest, never 0.
#[inline(always)]
pub(super) fn grey(value: f32) -> u8 {
    // At this size a f32 has no fraction left: the sum rounds, and its last byte is the number.
    (value.clamp(1.0, 255.0) + 8_388_608.0).to_bits() as u8
}

/// Samples that are worked on at a time.
pub(super) const LANES: usize = 8;
const PADDED: usize = LONGEST + LANES;

/// Values of a row, and their weights where asked for; nothing of what lies beyond the samples taken is of use.
pub(super) struct Samples {
    pub(super) values: [f32; PADDED],
    /// 0 where a sample shows nothing.
    pub(super) weights: [f32; PADDED],
    /// Whether there may be such among those given.
    pub(super) gaps: bool,
}

impl Default for Samples {
    fn default() -> Self {
        Self { values: [0.0; PADDED], weights: [0.0; PADDED], gaps: false }
    }
}

impl Samples {
    /// Takes the samples of `run`; gives those that lie on the tile. `clear` says that all do, with all their neighbours.
    #[inline(always)]
    pub(super) fn take<const WEIGHED: bool>(&mut self, s: &Source<'_>, run: &Run, clear: bool) -> Range<usize> {
        if WEIGHED {
            self.weights[..run.count + LANES].fill(0.0);
        }
        self.gaps = s.zero_is_empty;
        if clear && !s.zero_is_empty {
            self.inner::<WEIGHED>(s, run, 0..run.count);
            return 0..run.count;
        }
        let (low, high) = ((fixed(s.low.x), fixed(s.low.y)), (fixed(s.high.x), fixed(s.high.y)));
        let last = (((s.reduced.x - 1) as i64) << FRACTION, ((s.reduced.y - 1) as i64) << FRACTION);
        // A straight line enters and leaves a rectangle once.
        let all = within(run, 0..run.count, |(x, y)| x >= low.0 && y >= low.1 && x <= high.0 && y <= high.1);
        // The rim of a tile has no neighbours; that of a reduced one reaches beyond its pixels.
        let inner = within(run, all.clone(), |(x, y)| x >= 0 && y >= 0 && x < last.0 && y < last.1);
        let inner = if s.zero_is_empty { all.start..all.start } else { inner };
        self.inner::<WEIGHED>(s, run, inner.clone());
        for i in all.start..inner.start {
            self.single(s, run, i);
        }
        for i in inner.end..all.end {
            self.single(s, run, i);
        }
        all
    }

    /// Samples that have all neighbours. Beyond their end weights are zero and values of no use.
    #[inline(always)]
    fn inner<const WEIGHED: bool>(&mut self, s: &Source<'_>, run: &Run, part: Range<usize>) {
        if part.is_empty() {
            return;
        }
        let mut from = part.start;
        while from < part.end {
            let count = LANES.min(part.end - from);
            let ((x, y), at) = (run.at(from), run.pixel(s, from));
            let near = if run.straight(from, from + count) { four_beside(&s.data, at, s.stride) } else { None };
            let (dx, dy) = ((run.dx - ONE) as i32, run.dy as i32);
            let (values, weights) = match near {
                Some(four) => Lanes {
                    four,
                    column: std::array::from_fn(|k| (x >> FRACTION) as i32 + k as i32),
                    row: [(y >> FRACTION) as i32; LANES],
                    // Beyond the end of the run these are no fractions any more.
                    u: std::array::from_fn(|k| fraction(x).wrapping_add(dx.wrapping_mul(k as i32))),
                    v: std::array::from_fn(|k| fraction(y).wrapping_add(dy.wrapping_mul(k as i32))),
                }
                .mix::<WEIGHED>(s),
                None => scattered(s, run, from, count).mix::<WEIGHED>(s),
            };
            self.values[from..from + LANES].copy_from_slice(&values);
            if WEIGHED {
                self.weights[from..from + LANES].copy_from_slice(&weights);
            }
            from += LANES;
        }
        if WEIGHED {
            self.weights[part.end..part.end + LANES].fill(0.0);
        }
    }

    /// One sample. The rim of a reduced tile has no neighbour to blend with: it takes the last pixel.
    #[inline(always)]
    fn single(&mut self, s: &Source<'_>, run: &Run, i: usize) {
        let (x, y) = run.at(i);
        let last = ((s.reduced.x as i64 - 1) << FRACTION, (s.reduced.y as i64 - 1) << FRACTION);
        let (x, y) = (x.clamp(0, last.0), y.clamp(0, last.1));
        let (c, r) = ((x >> FRACTION) as usize, (y >> FRACTION) as usize);
        let (u, v) = (fraction(x) as f32 * SHARE, fraction(y) as f32 * SHARE);
        let (right, down) = (usize::from(c + 1 < s.reduced.x), usize::from(r + 1 < s.reduced.y) * s.stride);
        let at = (r - s.origin.y) * s.stride + c - s.origin.x;
        let four = [s.data[at], s.data[at + right], s.data[at + down], s.data[at + down + right]];
        self.values[i] = bilinear(four.map(f32::from), u, v) * s.tone.gain + s.tone.offset;
        let empty = s.zero_is_empty && touches_empty(four, u, v);
        self.weights[i] = if empty { 0.0 } else { weigh(s, c as i32 as f32 + u, r as i32 as f32 + v) };
    }
}

/// The samples of a part of a run whose places are where asked for: one part, as all conditions are straight.
#[inline(always)]
fn within(run: &Run, part: Range<usize>, wanted: impl Fn((i64, i64)) -> bool) -> Range<usize> {
    let (mut from, mut to) = (part.start, part.end);
    while from < to && !wanted(run.at(from)) {
        from += 1;
    }
    while to > from && !wanted(run.at(to - 1)) {
        to -= 1;
    }
    from..to
}

#[inline(always)]
fn fraction(v: i64) -> i32 {
    (v & (ONE - 1)) as i32
}

/// Some samples: four pixels each, upper left, upper right, lower left, lower right; whole pixels and fractions of their places.
struct Lanes {
    four: [[f32; LANES]; 4],
    column: [i32; LANES],
    row: [i32; LANES],
    u: [i32; LANES],
    v: [i32; LANES],
}

impl Lanes {
    /// Their values and weights.
    #[inline(always)]
    fn mix<const WEIGHED: bool>(&self, s: &Source<'_>) -> ([f32; LANES], [f32; LANES]) {
        let u: [f32; LANES] = std::array::from_fn(|k| self.u[k] as f32 * SHARE);
        let v: [f32; LANES] = std::array::from_fn(|k| self.v[k] as f32 * SHARE);
        let [a, b, c, d] = &self.four;
        let (gain, offset) = (s.tone.gain, s.tone.offset);
        let values = std::array::from_fn(|k| bilinear([a[k], b[k], c[k], d[k]], u[k], v[k]) * gain + offset);
        let weight = |k: usize| weigh(s, self.column[k] as f32 + u[k], self.row[k] as f32 + v[k]);
        (values, if WEIGHED { std::array::from_fn(weight) } else { [0.0; LANES] })
    }
}

/// Neighbouring samples of one row, from the pixel `at` on; `None` where the tile ends before the last of them.
#[inline(always)]
fn four_beside(data: &[u8], at: usize, stride: usize) -> Option<[[f32; LANES]; 4]> {
    let (upper, lower) = (data.get(at..at + LANES + 1)?, data.get(at + stride..at + stride + LANES + 1)?);
    let part = |row: &[u8]| -> Option<[f32; LANES]> {
        let eight: [u8; LANES] = *row.first_chunk()?;
        Some(std::array::from_fn(|k| f32::from(eight[k])))
    };
    Some([part(upper)?, part(&upper[1..])?, part(lower)?, part(&lower[1..])?])
}

/// Samples anywhere, `count` of them.
#[inline(always)]
fn scattered(s: &Source<'_>, run: &Run, from: usize, count: usize) -> Lanes {
    // The last one again in place of those that are not asked for.
    let places: [(i64, i64); LANES] = std::array::from_fn(|k| run.at(from + k.min(count - 1)));
    let at: [usize; LANES] = std::array::from_fn(|k| run.pixel(s, from + k.min(count - 1)));
    let pixels = |by: usize| std::array::from_fn(|k| f32::from(s.data[at[k] + by]));
    Lanes {
        four: [pixels(0), pixels(1), pixels(s.stride), pixels(s.stride + 1)],
        column: std::array::from_fn(|k| (places[k].0 >> FRACTION) as i32),
        row: std::array::from_fn(|k| (places[k].1 >> FRACTION) as i32),
        u: std::array::from_fn(|k| fraction(places[k].0)),
        v: std::array::from_fn(|k| fraction(places[k].1)),
    }
}

/// Bilinear mean of two pixels above two.
#[inline(always)]
fn bilinear([a, b, c, d]: [f32; 4], u: f32, v: f32) -> f32 {
    let (top, low) = (a + (b - a) * u, c + (d - c) * u);
    top + (low - top) * v
}

/// Weight of a sample by its distance to the nearest border, which lies one pixel outside of what shows tissue.
#[inline(always)]
fn weigh(s: &Source<'_>, x: f32, y: f32) -> f32 {
    let (low, high) = ((s.low.x as f32, s.low.y as f32), (s.high.x as f32, s.high.y as f32));
    let d = (x - low.0).min(high.0 - x).min((y - low.1).min(high.1 - y)) + 1.0;
    match s.sharpness {
        1 => d,
        2 => d * d,
        _ => (d * d) * (d * d),
    }
}

/// Whether a pixel that takes part in the mean is empty.
#[inline(always)]
fn touches_empty(four: [u8; 4], u: f32, v: f32) -> bool {
    let takes_part = [true, u > 0.0, v > 0.0, u > 0.0 && v > 0.0];
    four.iter().zip(takes_part).any(|(v, used)| *v == 0 && used)
}
