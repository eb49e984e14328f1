//! Around a peak that the transforms have found: its fraction of a pixel, and whether more than stripes agree there. Plain sums
//! over the common part, a few lags each.

use kinesin_stream::geometry::Xy;

use super::filter::{Plane, less_column_means, less_row_means};

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
    let mut score = [[0.0f64; 3]; 3];
    for (j, row) in score.iter_mut().enumerate() {
        for (i, score) in row.iter_mut().enumerate() {
            let (dx, dy) = (lag.x + i as i64 - 1, lag.y + j as i64 - 1);
            let (mut fg, mut gg) = (0.0f64, 0.0f64);
            for y in y0..y1 {
                let a = &f.row(y as usize)[x0 as usize..x1 as usize];
                let b = &g.row((y + dy) as usize)[(x0 + dx) as usize..(x1 + dx) as usize];
                let (p, e) = products(a, b);
                fg += f64::from(p);
                gg += f64::from(e);
            }
            *score = if gg > 0.0 { fg / gg.sqrt() } else { 0.0 };
        }
    }
    Some(top(|dx, dy| score[(dy + 1) as usize][(dx + 1) as usize]))
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
    let (fg, gg) = products(&a.data, &b.data);
    let (_, ff) = products(&b.data, &a.data);
    if ff > 0.0 && gg > 0.0 { f64::from(fg) / (f64::from(ff) * f64::from(gg)).sqrt() } else { 0.0 }
}

/// Sums of `a b` and `b b`, in lanes that the compiler turns into vectors.
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
