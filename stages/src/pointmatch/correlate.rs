//! Normalised cross-correlation of two parts that overlap only partly, and the peak of its surface.
//!
//! ```text
//! score(l) = sum_i f(i) g(i + l) / sqrt( sum_i f(i)^2  sum_i g(i + l)^2 )      i over the common rectangle at lag l
//! ```
//! The sum of products comes from zero-padded real FFTs (f32), the two energies from summed areas (f64). Both parts have
//! had their local means taken away, so no mean enters. Under the null the spread of a score falls with the square root of
//! the area, so peaks are ranked by `score * sqrt(area)`: a large score of a sliver does not win.

use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Arc;

use kinesin_stream::geometry::Xy;
use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftPlanner};

use super::energy::SummedSquares;
use super::filter::Plane;
use super::peak::{common, top};
use crate::wide::{Kernel, wide};

/// Lags to look at, both ends included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lags {
    pub(super) min: Xy<i64>,
    pub(super) max: Xy<i64>,
}

impl Lags {
    fn size(&self) -> (usize, usize) {
        ((self.max.x - self.min.x + 1) as usize, (self.max.y - self.min.y + 1) as usize)
    }
}

/// The best lag of a surface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peak {
    /// The best whole lag, pixels of the planes.
    pub(super) lag: Xy<i64>,
    /// What the quadratic through the scores around it adds, pixels.
    pub(super) fraction: Xy<f64>,
    /// Normalised score at the best whole lag.
    pub(super) score: f64,
    /// Best rank further than the guard from the peak, as a part of the peak's.
    pub(super) second: f64,
    /// Best rank of the mirrored image as a part of the peak's; 0 where not asked for.
    pub(super) mirror: f64,
    /// Whether the best lag lies at the rim of the lags looked at.
    pub(super) at_rim: bool,
}

struct Plans {
    rows: Arc<dyn RealToComplex<f32>>,
    rows_back: Arc<dyn ComplexToReal<f32>>,
    columns: Arc<dyn Fft<f32>>,
    columns_back: Arc<dyn Fft<f32>>,
}

/// Holds the plans and the scratch space of one worker.
pub(super) struct Correlator {
    real: RealFftPlanner<f32>,
    complex: FftPlanner<f32>,
    plans: BTreeMap<(usize, usize), Plans>,
    line: Vec<f32>,
    half: Vec<Complex32>,
    spectra: [Vec<Complex32>; 3],
    scratch: Vec<Complex32>,
    products: Vec<f32>,
    squares: [Vec<f64>; 2],
    surface: [Vec<f64>; 2],
}

impl Correlator {
    pub(super) fn new() -> Self {
        Self {
            real: RealFftPlanner::new(),
            complex: FftPlanner::new(),
            plans: BTreeMap::new(),
            line: Vec::new(),
            half: Vec::new(),
            spectra: Default::default(),
            scratch: Vec::new(),
            products: Vec::new(),
            squares: Default::default(),
            surface: Default::default(),
        }
    }

    /// The best lag `l` within `lags` at which `f(i)` looks like `g(i + l)`. Second peaks nearer than `guard` do not count;
    /// `mirror` asks for the comparison with the mirrored image. `None` where nothing varies or nothing overlaps.
    pub(super) fn best(&mut self, f: &Plane, g: &Plane, lags: Lags, guard: f64, mirror: bool) -> Option<Peak> {
        let nx = fast_size(padded(f.width, g.width, lags.min.x, lags.max.x));
        let ny = fast_size(padded(f.height, g.height, lags.min.y, lags.max.y));
        let plans = plans(&mut self.plans, (&mut self.real, &mut self.complex), (nx, ny));
        let [sf, sg, work] = &mut self.spectra;
        let mut space = Space { line: &mut self.line, half: &mut self.half, scratch: &mut self.scratch, nx, ny };
        space.forward(plans, f, sf);
        space.forward(plans, g, sg);
        let [first, second] = &mut self.squares;
        let (areas_f, areas_g) = (SummedSquares::of(f, take(first)), SummedSquares::of(g, take(second)));

        work.clear();
        work.extend(sf.iter().zip(sg.iter()).map(|(a, b)| a.conj() * b));
        space.backward(plans, work, &mut self.products);
        let at = |x: i64, y: i64| (x.rem_euclid(nx as i64) as usize, y.rem_euclid(ny as i64) as usize);
        let products = &self.products;
        let surface = Surface::of(&areas_f, &areas_g, (lags, take(&mut self.surface)), |x, y| {
            let (x, y) = at(x, y);
            products[y * nx + x]
        })?;
        let mut peak = surface.peak(guard)?;
        self.surface = surface.space();

        if mirror {
            work.clear();
            work.extend(sf.iter().zip(sg.iter()).map(|(a, b)| a * b));
            space.backward(plans, work, &mut self.products);
            let products = &self.products;
            let turned = areas_g.turned();
            let surface = Surface::of(&areas_f, &turned, (lags, take(&mut self.surface)), |x, y| {
                let (x, y) = at(g.width as i64 - 1 - x, g.height as i64 - 1 - y);
                products[y * nx + x]
            })?;
            peak.mirror = surface.best().map_or(0.0, |(_, rank)| (rank / peak_rank(&surface, &peak)).max(0.0));
            self.surface = surface.space();
            self.squares = [areas_f.space(), turned.space()];
        } else {
            self.squares = [areas_f.space(), areas_g.space()];
        }
        Some(peak)
    }
}

/// Rank of a peak found on a surface of the same areas.
fn peak_rank(surface: &Surface, peak: &Peak) -> f64 {
    let (x, y) = (peak.lag.x - surface.lags.min.x, peak.lag.y - surface.lags.min.y);
    peak.score * surface.root_area[y as usize * surface.lags.size().0 + x as usize]
}

/// Length at which no lag of the window wraps onto another.
fn padded(f: usize, g: usize, min: i64, max: i64) -> usize {
    let (f, g) = (f as i64, g as i64);
    f.max(g).max(f + max).max(g - min) as usize
}

/// The next length whose only factors are 2, 3 and 5, even.
fn fast_size(n: usize) -> usize {
    (n.max(2)..)
        .find(|&m| {
            let mut rest = m;
            for p in [2, 3, 5] {
                while rest % p == 0 {
                    rest /= p;
                }
            }
            m % 2 == 0 && rest == 1
        })
        .expect("powers of two have no end")
}

fn plans<'a>(
    known: &'a mut BTreeMap<(usize, usize), Plans>,
    (real, complex): (&mut RealFftPlanner<f32>, &mut FftPlanner<f32>),
    (nx, ny): (usize, usize),
) -> &'a Plans {
    known.entry((nx, ny)).or_insert_with(|| Plans {
        rows: real.plan_fft_forward(nx),
        rows_back: real.plan_fft_inverse(nx),
        columns: complex.plan_fft_forward(ny),
        columns_back: complex.plan_fft_inverse(ny),
    })
}

/// Scratch space for one size. Spectra are kept column by column: `nx / 2 + 1` columns of `ny`.
struct Space<'a> {
    line: &'a mut Vec<f32>,
    half: &'a mut Vec<Complex32>,
    scratch: &'a mut Vec<Complex32>,
    nx: usize,
    ny: usize,
}

impl Space<'_> {
    fn forward(&mut self, plans: &Plans, plane: &Plane, spectrum: &mut Vec<Complex32>) {
        let (nx, ny) = (self.nx, self.ny);
        let bins = nx / 2 + 1;
        self.half.clear();
        self.half.resize(bins * ny, Complex32::default());
        self.reserve(plans);
        for y in 0..plane.height {
            self.line.clear();
            self.line.extend_from_slice(plane.row(y));
            self.line.resize(nx, 0.0);
            let out = &mut self.half[y * bins..(y + 1) * bins];
            plans.rows.process_with_scratch(self.line, out, self.scratch).expect("sizes are those of the plan");
        }
        spectrum.clear();
        spectrum.resize(bins * ny, Complex32::default());
        wide(Transpose(self.half, spectrum, bins, ny));
        plans.columns.process_with_scratch(spectrum, self.scratch);
    }

    fn backward(&mut self, plans: &Plans, spectrum: &mut [Complex32], out: &mut Vec<f32>) {
        let (nx, ny) = (self.nx, self.ny);
        let bins = nx / 2 + 1;
        self.reserve(plans);
        plans.columns_back.process_with_scratch(spectrum, self.scratch);
        self.half.clear();
        self.half.resize(bins * ny, Complex32::default());
        wide(Transpose(spectrum, self.half, ny, bins));
        out.clear();
        out.resize(nx * ny, 0.0);
        let share = 1.0 / (nx * ny) as f32;
        for (row, line) in self.half.chunks_mut(bins).zip(out.chunks_mut(nx)) {
            // What rounding leaves in the imaginary parts of the real bins.
            row[0].im = 0.0;
            row[bins - 1].im = 0.0;
            plans.rows_back.process_with_scratch(row, line, self.scratch).expect("sizes are those of the plan");
            line.iter_mut().for_each(|v| *v *= share);
        }
    }

    fn reserve(&mut self, plans: &Plans) {
        let needed = [
            plans.rows.get_scratch_len(),
            plans.rows_back.get_scratch_len(),
            plans.columns.get_inplace_scratch_len(),
            plans.columns_back.get_inplace_scratch_len(),
        ];
        let most = needed.into_iter().max().unwrap_or(0);
        if self.scratch.len() < most {
            self.scratch.resize(most, Complex32::default());
        }
    }
}

/// From, to, width and height of what is turned.
struct Transpose<'a>(&'a [Complex32], &'a mut [Complex32], usize, usize);

impl Kernel for Transpose<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        transpose(self.0, self.1, self.2, self.3);
    }
}

/// `to[x * height + y] = from[y * width + x]`, in squares that stay in the cache.
#[inline(always)]
fn transpose(from: &[Complex32], to: &mut [Complex32], width: usize, height: usize) {
    const SIDE: usize = 16;
    for y0 in (0..height).step_by(SIDE) {
        for x0 in (0..width).step_by(SIDE) {
            for y in y0..(y0 + SIDE).min(height) {
                for x in x0..(x0 + SIDE).min(width) {
                    to[x * height + y] = from[y * width + x];
                }
            }
        }
    }
}

/// Scores and areas at each lag looked at.
struct Surface {
    lags: Lags,
    score: Vec<f64>,
    /// Square root of the common area as a part of the largest one.
    root_area: Vec<f64>,
}

impl Surface {
    /// In `space` that is done with.
    fn of(
        f: &SummedSquares,
        g: &SummedSquares,
        (lags, space): (Lags, [Vec<f64>; 2]),
        product: impl Fn(i64, i64) -> f32,
    ) -> Option<Self> {
        let (w, h) = lags.size();
        let [mut score, mut root_area] = space.map(|mut v| {
            v.clear();
            v.resize(w * h, 0.0);
            v
        });
        let floor = 1e-6 * (f.over(0, f.width, 0, f.height) + g.over(0, g.width, 0, g.height));
        for (i, (score, area)) in score.iter_mut().zip(&mut root_area).enumerate() {
            let lag = Xy::new(lags.min.x + (i % w) as i64, lags.min.y + (i / w) as i64);
            let (x0, x1) = common(f.width, g.width, lag.x);
            let (y0, y1) = common(f.height, g.height, lag.y);
            if x0 >= x1 || y0 >= y1 {
                continue;
            }
            let of = |v: i64, by: i64| (v + by) as usize;
            let ef = f.over(of(x0, 0), of(x1, 0), of(y0, 0), of(y1, 0));
            let eg = g.over(of(x0, lag.x), of(x1, lag.x), of(y0, lag.y), of(y1, lag.y));
            *area = ((x1 - x0) * (y1 - y0)) as f64;
            if ef > floor && eg > floor {
                *score = f64::from(product(lag.x, lag.y)) / (ef * eg).sqrt();
            }
        }
        let largest = root_area.iter().copied().fold(0.0, f64::max);
        if largest == 0.0 {
            return None;
        }
        root_area.iter_mut().for_each(|a| *a = (*a / largest).sqrt());
        Some(Self { lags, score, root_area })
    }

    fn space(self) -> [Vec<f64>; 2] {
        [self.score, self.root_area]
    }

    fn rank(&self, i: usize) -> f64 {
        self.score[i] * self.root_area[i]
    }

    /// Index and rank of the best lag, the first of equals; `None` where no score is above zero.
    fn best(&self) -> Option<(usize, f64)> {
        let mut best = (0, 0.0);
        for i in 0..self.score.len() {
            let rank = self.rank(i);
            if rank > best.1 {
                best = (i, rank);
            }
        }
        (best.1 > 0.0).then_some(best)
    }

    fn peak(&self, guard: f64) -> Option<Peak> {
        let (w, h) = self.lags.size();
        let (i, rank) = self.best()?;
        let (x, y) = (i % w, i / w);
        let at_rim = x == 0 || y == 0 || x + 1 == w || y + 1 == h;
        let around = |dx: i64, dy: i64| self.score[(y as i64 + dy) as usize * w + (x as i64 + dx) as usize];
        let fraction = if at_rim { Xy::default() } else { top(around) };
        let far = |j: usize| ((j % w) as f64 - x as f64).hypot((j / w) as f64 - y as f64) > guard;
        let second = (0..w * h).filter(|&j| far(j)).map(|j| self.rank(j)).fold(0.0, f64::max);
        let lag = Xy::new(self.lags.min.x + x as i64, self.lags.min.y + y as i64);
        Some(Peak { lag, fraction, score: self.score[i], second: second / rank, mirror: 0.0, at_rim })
    }
}

#[cfg(test)]
mod tests {
    use super::super::peak::fraction;
    use super::*;

    fn texture(width: usize, height: usize, dx: f64, dy: f64) -> Plane {
        let value = |x: f64, y: f64| {
            (0.31 * x + 0.12 * y).sin()
                + (0.17 * x - 0.29 * y + 1.0).sin()
                + (0.05 * x * y / 20.0).sin()
                + (0.4 * y + 0.3 * x).cos()
        };
        let data =
            (0..width * height).map(|i| value((i % width) as f64 + dx, (i / width) as f64 + dy) as f32).collect();
        Plane { width, height, data }
    }

    #[test]
    fn the_lag_of_shifted_texture_is_found_to_a_twentieth_of_a_pixel() {
        let mut correlator = Correlator::new();
        let lags = Lags { min: Xy::new(-12, -9), max: Xy::new(12, 9) };
        for (dx, dy) in [(0.0, 0.0), (5.3, -4.4), (-10.45, 7.2), (0.5, 0.5)] {
            // g(i + l) = f(i) where g is drawn from further left by l.
            let peak = correlator.best(&texture(60, 45, 0.0, 0.0), &texture(52, 50, -dx, -dy), lags, 3.0, true);
            let peak = peak.expect("texture");
            let whole = Xy::new(peak.lag.x as f64, peak.lag.y as f64);
            assert!((whole + peak.fraction - Xy::new(dx, dy)).norm() < 0.05, "{dx} {dy}: {peak:?}");
            let fine = fraction(&texture(60, 45, 0.0, 0.0), &texture(52, 50, -dx, -dy), peak.lag).expect("texture");
            assert!((whole + fine - Xy::new(dx, dy)).norm() < 0.05, "{dx} {dy}: {fine:?}");
            assert!(peak.score > 0.9 && !peak.at_rim);
        }
    }

    #[test]
    fn scores_equal_the_plain_sum_and_flat_parts_have_none() {
        let (f, g) = (texture(20, 14, 0.0, 0.0), texture(17, 19, 2.0, 1.0));
        let lag = Lags { min: Xy::new(-3, 2), max: Xy::new(-3, 2) };
        let found = Correlator::new().best(&f, &g, lag, 1.0, false).expect("texture");
        let (mut fg, mut ff, mut gg) = (0.0, 0.0, 0.0);
        for y in 0..14 {
            for x in 3..20 {
                let (a, b) = (f64::from(f.row(y)[x]), f64::from(g.row(y + 2)[x - 3]));
                (fg, ff, gg) = (fg + a * b, ff + a * a, gg + b * b);
            }
        }
        assert!((found.score - fg / (ff * gg).sqrt()).abs() < 1e-5, "{found:?}");
        let flat = Plane { width: 20, height: 14, data: vec![0.0; 280] };
        assert!(Correlator::new().best(&flat, &g, lag, 1.0, true).is_none());
    }

    #[test]
    fn fast_sizes_hold_the_length_and_factor_well() {
        assert_eq!([1, 7, 11, 121, 128, 129].map(fast_size), [2, 8, 12, 128, 128, 144]);
    }
}
