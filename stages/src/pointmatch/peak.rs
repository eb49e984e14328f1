//! Around a peak that the transforms have found: its fraction of a pixel, and whether more than stripes agree there. Plain sums
//! over the common part, a few lags each.

use kinesin_stream::geometry::Xy;

use super::filter::{Plane, less_column_means, less_row_means};
use crate::wide::{Kernel, wide};

/// What a fraction of a pixel adds to `lag`, from the scores of the nine lags around it over one and the same part of f: in
/// a narrow overlap a column more or less would otherwise move the peak. `None` where nothing is left to compare.
pub(super) fn fraction(f: &Plane, g: &Plane, lag: Xy<i64>) -> Option<Xy<f64>> {
    let inner = |f: usize, g: usize, lag: i64| {
        let (from, to) = common(f, g, lag);
        (from.max(1 - lag), to.min(g as i64 - lag - 1))
    };
    let ((x0, x1), (y0, y1)) = (inner(f.width, g.width, lag.x), inner(f.height, g.height, lag.y));
    if x0 >= x1 || y0 >= y1 {
        return None;
    }
    let score = wide(Around { planes: [f, g], lag, part: [(x0, x1), (y0, y1)] });
    Some(top(|dx, dy| score[(dy + 1) as usize][(dx + 1) as usize]))
}

/// Scores, but for the energy of f, at the nine lags around one over columns and rows of f.
struct Around<'a> {
    planes: [&'a Plane; 2],
    lag: Xy<i64>,
    part: [(i64, i64); 2],
}

impl Kernel for Around<'_> {
    type Out = [[f64; 3]; 3];

    #[inline(always)]
    fn run(self) -> [[f64; 3]; 3] {
        around(self.planes, self.lag, self.part)
    }
}

#[inline(always)]
fn around([f, g]: [&Plane; 2], lag: Xy<i64>, [(x0, x1), (y0, y1)]: [(i64, i64); 2]) -> [[f64; 3]; 3] {
    let (mut fg, mut gg) = ([[0.0f64; 3]; 3], [[0.0f64; 3]; 3]);
    // Each row of g meets three rows of f.
    for y in y0 + lag.y - 1..=y1 + lag.y {
        let b = &g.row(y as usize)[(x0 + lag.x - 1) as usize..(x1 + lag.x + 1) as usize];
        let energy = energies(b);
        for j in 0..3 {
            let at = y - lag.y - (j as i64 - 1);
            if (y0..y1).contains(&at) {
                add(&mut fg[j], &three(&f.row(at as usize)[x0 as usize..x1 as usize], b));
                add(&mut gg[j], &energy);
            }
        }
    }
    for (fg, gg) in fg.iter_mut().flatten().zip(gg.iter().flatten()) {
        *fg = if *gg > 0.0 { *fg / gg.sqrt() } else { 0.0 };
    }
    fg
}

/// Normalised score at `lag` of what is left of the common part without the means of its rows and columns: near zero where
/// only stripes agree, which a camera or a scan may draw the same in every tile.
pub(super) fn score_without_stripes(f: &Plane, g: &Plane, lag: Xy<i64>) -> f64 {
    let ((x0, x1), (y0, y1)) = (common(f.width, g.width, lag.x), common(f.height, g.height, lag.y));
    if x0 >= x1 || y0 >= y1 {
        return 0.0;
    }
    let part = |plane: &Plane, by: Xy<i64>| {
        let columns = (x0 + by.x) as usize..(x1 + by.x) as usize;
        let rows = (y0 + by.y) as usize..(y1 + by.y) as usize;
        let mut data = Vec::with_capacity(columns.len() * rows.len());
        rows.clone().for_each(|y| data.extend_from_slice(&plane.row(y)[columns.clone()]));
        let mut part = Plane { width: columns.len(), height: rows.len(), data };
        less_row_means(&mut part);
        less_column_means(&mut part);
        part
    };
    let (a, b) = (part(f, Xy::default()), part(g, lag));
    let (fg, ff, gg) = wide(Correlation(&a.data, &b.data));
    if ff > 0.0 && gg > 0.0 { f64::from(fg) / (f64::from(ff) * f64::from(gg)).sqrt() } else { 0.0 }
}

/// Sums of `a b`, `a a` and `b b`.
struct Correlation<'a>(&'a [f32], &'a [f32]);

impl Kernel for Correlation<'_> {
    type Out = (f32, f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32, f32) {
        let ((ab, bb), (_, aa)) = (products(self.0, self.1), products(self.1, self.0));
        (ab, aa, bb)
    }
}

#[inline(always)]
fn add(sums: &mut [f64; 3], more: &[f64; 3]) {
    sums.iter_mut().zip(more).for_each(|(s, m)| *s += m);
}

/// The sums of `a b` for `b` from its first, its second and its third value on; it is two longer than `a`.
#[inline(always)]
fn three(a: &[f32], b: &[f32]) -> [f64; 3] {
    const LANES: usize = 8;
    let mut sums = [[0.0f32; LANES]; 3];
    let whole = a.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (a, b) = (&a[at..at + LANES], &b[at..at + LANES + 2]);
        for (i, sums) in sums.iter_mut().enumerate() {
            for k in 0..LANES {
                sums[k] += a[k] * b[i + k];
            }
        }
    }
    std::array::from_fn(|i| {
        let rest: f32 = a[whole..].iter().zip(&b[whole + i..]).map(|(x, y)| x * y).sum();
        f64::from(rest + sums[i].iter().sum::<f32>())
    })
}

/// The sums of squares of a row without its last two values, without the first and the last, and without its first two.
#[inline(always)]
fn energies(b: &[f32]) -> [f64; 3] {
    let n = b.len() - 2;
    let (first, _) = products(&b[..n], &b[..n]);
    let square = |i: usize| f64::from(b[i]) * f64::from(b[i]);
    let first = f64::from(first);
    let second = first - square(0) + square(n);
    [first, second, second - square(1) + square(n + 1)].map(|e: f64| e.max(0.0))
}

/// Sums of `a b` and `b b`, in lanes that the compiler turns into vectors.
#[inline(always)]
pub(super) fn products(a: &[f32], b: &[f32]) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut fg, mut gg) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = whole_a.remainder().iter().zip(whole_b.remainder());
    let (mut p, mut e) = rest.fold((0.0, 0.0), |(p, e), (x, y)| (p + x * y, e + y * y));
    for (x, y) in whole_a.zip(whole_b) {
        for k in 0..LANES {
            fg[k] += x[k] * y[k];
            gg[k] += y[k] * y[k];
        }
    }
    p += fg.iter().sum::<f32>();
    e += gg.iter().sum::<f32>();
    (p, e)
}

/// Top of the quadratic through 3 x 3 values (least squares), at most one pixel away along each axis.
pub(super) fn top(value: impl Fn(i64, i64) -> f64) -> Xy<f64> {
    let (mut sx, mut sy, mut sxx, mut syy, mut sxy, mut all) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for dy in -1i64..=1 {
        for dx in -1i64..=1 {
            let (s, u, v) = (value(dx, dy), dx as f64, dy as f64);
            all += s;
            sx += u * s;
            sy += v * s;
            sxx += u * u * s;
            syy += v * v * s;
            sxy += u * v * s;
        }
    }
    let (gx, gy, hxy) = (sx / 6.0, sy / 6.0, sxy / 4.0);
    let (hxx, hyy) = (sxx - 2.0 * all / 3.0, syy - 2.0 * all / 3.0);
    let det = hxx * hyy - hxy * hxy;
    if hxx >= 0.0 || det <= 0.0 {
        return Xy::default();
    }
    let clip = |v: f64| v.clamp(-1.0, 1.0);
    Xy::new(clip((hxy * gy - hyy * gx) / det), clip((hxy * gx - hxx * gy) / det))
}

/// Indexes of f that have a partner in g at this lag.
pub(super) fn common(f: usize, g: usize, lag: i64) -> (i64, i64) {
    ((-lag).max(0), (f as i64).min(g as i64 - lag))
}
