//! From grey values to the signal that is correlated: reduce, smooth, take the local mean away, clip.

use kinesin_stream::geometry::BoxXy;
use kinesin_stream::pixels::Pixels;

use crate::wide::{Kernel, wide};

/// Values in rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Plane {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<f32>,
}

/// Space of planes that are done with: getting it anew for every plane would cost as much as filling it.
#[derive(Default)]
pub(super) struct Spare(Vec<Vec<f32>>);

impl Spare {
    /// A plane of zeros.
    pub(super) fn plane(&mut self, width: usize, height: usize) -> Plane {
        let mut data = self.0.pop().unwrap_or_default();
        data.clear();
        data.resize(width * height, 0.0);
        Plane { width, height, data }
    }

    /// Takes the space of a plane back.
    pub(super) fn take(&mut self, plane: Plane) {
        self.0.push(plane.data);
    }
}

impl Plane {
    #[inline(always)]
    pub(super) fn row(&self, y: usize) -> &[f32] {
        &self.data[y * self.width..(y + 1) * self.width]
    }

    #[inline(always)]
    fn row_mut(&mut self, y: usize) -> &mut [f32] {
        &mut self.data[y * self.width..(y + 1) * self.width]
    }
}

/// Fewest pixels of a row or column whose mean is taken away: of fewer it would be mostly the tissue itself.
const MEANS_FROM: usize = 32;

/// The part `rect` of `pixels`, each `step` x `step` pixels averaged into one; what is left over at the far sides is dropped.
pub(super) fn reduced(pixels: &Pixels, rect: &BoxXy, step: usize, spare: &mut Spare) -> Plane {
    let mut plane = spare.plane(rect.size().x / step, rect.size().y / step);
    wide(Reduce(pixels, rect, step, &mut plane));
    plane
}

struct Reduce<'a>(&'a Pixels, &'a BoxXy, usize, &'a mut Plane);

impl Kernel for Reduce<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        reduce(self.0, self.1, self.2, self.3);
    }
}

#[inline(always)]
fn reduce(pixels: &Pixels, rect: &BoxXy, step: usize, plane: &mut Plane) {
    let (x0, y0) = (rect.min.x as usize, rect.min.y as usize);
    let (width, height) = (plane.width, plane.height);
    let share = 1.0 / (step * step) as f32;
    let mut sums = vec![0u32; width * step];
    for y in 0..height {
        sums.fill(0);
        for k in 0..step {
            let row = &pixels.row(y0 + y * step + k)[x0..x0 + width * step];
            sums.iter_mut().zip(row).for_each(|(s, &v)| *s += u32::from(v));
        }
        let out = plane.row_mut(y);
        if step == 1 {
            out.iter_mut().zip(&sums).for_each(|(o, &s)| *o = s as f32);
        } else {
            out.iter_mut().zip(sums.chunks(step)).for_each(|(o, s)| *o = s.iter().sum::<u32>() as f32 * share);
        }
    }
}

/// Band-pass: Gaussian of `sigma`, less the mean over a square of `radius`, clipped at four standard deviations
/// so that single dark or bright things do not rule the correlation. `sigma` and `radius` are pixels of the plane.
pub(super) fn band_pass(plane: &mut Plane, sigma: f64, radius: f64, spare: &mut Spare) {
    if !plane.data.is_empty() {
        let mut work = spare.plane(plane.width, plane.height);
        wide(Pass(plane, sigma, (radius.round() as usize).max(2), &mut work));
        spare.take(work);
    }
}

struct Pass<'a>(&'a mut Plane, f64, usize, &'a mut Plane);

impl Kernel for Pass<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        pass(self.0, self.1, self.2, self.3);
    }
}

#[inline(always)]
fn pass(plane: &mut Plane, sigma: f64, radius: usize, work: &mut Plane) {
    smooth(plane, sigma, work);
    less_local_mean(plane, radius, work);
    // Patterns of a camera or of a scan that are the same in all rows or columns would match where nothing else does.
    if plane.width >= MEANS_FROM {
        less_row_means(plane);
    }
    if plane.height >= MEANS_FROM {
        less_column_means(plane);
    }
    let square: f64 = plane.data.chunks(1024).map(|c| f64::from(energy(c))).sum();
    let spread = (square / plane.data.len() as f64).sqrt();
    // Rounding of a flat field is no signal.
    let limit = if spread < 0.01 { 0.0 } else { 4.0 * spread as f32 };
    plane.data.iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
}

/// Gaussian smoothing, the image mirrored at its sides; `work` has its size.
#[inline(always)]
fn smooth(plane: &mut Plane, sigma: f64, work: &mut Plane) {
    if sigma < 0.3 {
        return;
    }
    let radius = (2.5 * sigma).ceil() as usize;
    let bell: Vec<f64> = (0..=radius).map(|i| (-((i * i) as f64) / (2.0 * sigma * sigma)).exp()).collect();
    let whole = bell[0] + 2.0 * bell[1..].iter().sum::<f64>();
    let bell: Vec<f32> = bell.iter().map(|b| (b / whole) as f32).collect();
    let (width, height) = (plane.width, plane.height);
    let mut padded = vec![0.0f32; width + 2 * radius];
    for y in 0..height {
        let row = plane.row_mut(y);
        padded[radius..radius + width].copy_from_slice(row);
        for i in 0..radius {
            padded[i] = row[mirrored(i as i64 - radius as i64, width)];
            padded[radius + width + i] = row[mirrored((width + i) as i64, width)];
        }
        weigh(row, &bell, |offset| {
            let start = (radius as i64 + offset) as usize;
            &padded[start..start + width]
        });
    }
    for y in 0..height {
        weigh(work.row_mut(y), &bell, |offset| plane.row(mirrored(y as i64 + offset, height)));
    }
    std::mem::swap(plane, work);
}

/// `out` becomes the symmetric weighted sum of the rows that `row` gives for offsets of `-radius` to `radius`.
#[inline(always)]
fn weigh<'a>(out: &mut [f32], bell: &[f32], row: impl Fn(i64) -> &'a [f32]) {
    let middle = row(0);
    out.iter_mut().zip(middle).for_each(|(o, v)| *o = bell[0] * v);
    for (i, &b) in bell.iter().enumerate().skip(1) {
        let (before, after) = (row(-(i as i64)), row(i as i64));
        out.iter_mut().zip(before.iter().zip(after)).for_each(|(o, (u, v))| *o += b * (u + v));
    }
}

/// Index `i` reflected into `0..n`, the side pixels not repeated.
fn mirrored(i: i64, n: usize) -> usize {
    let last = n as i64 - 1;
    if last <= 0 {
        return 0;
    }
    let i = i.rem_euclid(2 * last);
    (if i > last { 2 * last - i } else { i }) as usize
}

/// Takes away the mean over the part of a `2 half + 1` square window that lies inside; `across` has the size of the plane.
#[inline(always)]
fn less_local_mean(plane: &mut Plane, half: usize, across: &mut Plane) {
    let (width, height) = (plane.width, plane.height);
    let inside = |i: usize, n: usize| 1.0 / ((i + half).min(n - 1) + 1 - i.saturating_sub(half)) as f32;
    let shares: Vec<f32> = (0..width).map(|x| inside(x, width)).collect();
    let mut lines = [vec![0.0f32; width + 2 * half], vec![0.0f32; width + 2 * half]];
    for y in 0..height {
        let out = across.row_mut(y);
        window_sums(plane.row(y), half, out, &mut lines);
        out.iter_mut().zip(&shares).for_each(|(o, s)| *o *= s);
    }
    let mut sums = vec![0.0f32; width];
    for y in 0..half.min(height) {
        sums.iter_mut().zip(across.row(y)).for_each(|(s, v)| *s += v);
    }
    for y in 0..height {
        if y + half < height {
            sums.iter_mut().zip(across.row(y + half)).for_each(|(s, v)| *s += v);
        }
        if y > half {
            sums.iter_mut().zip(across.row(y - half - 1)).for_each(|(s, v)| *s -= v);
        }
        let share = inside(y, height);
        plane.row_mut(y).iter_mut().zip(&sums).for_each(|(v, s)| *v -= s * share);
    }
}

/// `out[i]` becomes the sum of `row` from `i - half` to `i + half`, nothing beyond the ends. From sums over powers of two, so
/// that no sum waits for the one before.
#[inline(always)]
pub(super) fn window_sums(row: &[f32], half: usize, out: &mut [f32], [line, next]: &mut [Vec<f32>; 2]) {
    line.fill(0.0);
    line[half..half + row.len()].copy_from_slice(row);
    out.fill(0.0);
    let (window, mut done, mut length) = (2 * half + 1, 0, 1);
    while done < window {
        if window & length != 0 {
            out.iter_mut().zip(&line[done..]).for_each(|(o, v)| *o += v);
            done += length;
        }
        // Sums of twice the length, as far as there are any.
        let n = line.len().saturating_sub(length);
        next[..n].iter_mut().zip(line.iter().zip(&line[length..])).for_each(|(s, (a, b))| *s = a + b);
        next[n..].fill(0.0);
        std::mem::swap(line, next);
        length *= 2;
    }
}

/// Sum of squares, in lanes.
#[inline(always)]
fn energy(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let whole = values.chunks_exact(LANES);
    let rest: f32 = whole.remainder().iter().map(|v| v * v).sum();
    let mut lanes = [0.0f32; LANES];
    whole.for_each(|c| lanes.iter_mut().zip(c).for_each(|(l, v)| *l += v * v));
    rest + lanes.iter().sum::<f32>()
}

/// Sum in lanes that the compiler turns into vectors.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let whole = values.chunks_exact(LANES);
    let rest: f32 = whole.remainder().iter().sum();
    let mut lanes = [0.0f32; LANES];
    whole.for_each(|c| lanes.iter_mut().zip(c).for_each(|(l, v)| *l += v));
    rest + lanes.iter().sum::<f32>()
}

/// Takes the mean of every row away.
#[inline(always)]
pub(super) fn less_row_means(plane: &mut Plane) {
    for y in 0..plane.height {
        let row = plane.row_mut(y);
        let mean = sum(row) / row.len() as f32;
        row.iter_mut().for_each(|v| *v -= mean);
    }
}

/// Takes the mean of every column away.
#[inline(always)]
pub(super) fn less_column_means(plane: &mut Plane) {
    let mut means = vec![0.0f32; plane.width];
    for y in 0..plane.height {
        means.iter_mut().zip(plane.row(y)).for_each(|(m, v)| *m += v);
    }
    let share = 1.0 / plane.height as f32;
    means.iter_mut().for_each(|m| *m *= share);
    for y in 0..plane.height {
        plane.row_mut(y).iter_mut().zip(&means).for_each(|(v, m)| *v -= m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::geometry::Xy;

    fn plane(width: usize, height: usize, value: impl Fn(f64, f64) -> f64) -> Plane {
        let data = (0..width * height).map(|i| value((i % width) as f64, (i / width) as f64) as f32).collect();
        Plane { width, height, data }
    }

    #[test]
    fn shading_and_stripes_of_the_camera_leave_no_signal() {
        let mut shaded =
            plane(120, 80, |x, y| 90.0 + 0.3 * x + 0.2 * y + 20.0 * (x * 1.7).sin() + 15.0 * (y * 2.3).sin());
        let before = spread(&shaded);
        band_pass(&mut shaded, 1.0, 12.0, &mut Spare::default());
        assert!(before > 15.0 && spread(&shaded) < 0.7, "{} of {before}", spread(&shaded));
    }

    fn spread(p: &Plane) -> f64 {
        let mean = p.data.iter().map(|&v| f64::from(v)).sum::<f64>() / p.data.len() as f64;
        (p.data.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / p.data.len() as f64).sqrt()
    }

    #[test]
    fn a_constant_is_its_own_local_mean_also_at_the_sides() {
        for (w, h) in [(1, 1), (3, 40), (50, 9)] {
            for half in [2, 5, 8, 12] {
                let mut flat = plane(w, h, |_, _| 7.0);
                less_local_mean(&mut flat, half, &mut plane(w, h, |_, _| 3.0));
                assert!(flat.data.iter().all(|v| v.abs() < 1e-4), "{w} x {h}, {half}");
            }
        }
    }

    #[test]
    fn sums_over_a_window_are_those_of_the_plain_sum() {
        let row: Vec<f32> = (0..37).map(|i| (i * i % 23) as f32).collect();
        for half in [1, 2, 3, 7, 12, 20, 40] {
            let mut out = vec![0.0; 37];
            let line = || vec![0.0; 37 + 2 * half];
            window_sums(&row, half, &mut out, &mut [line(), line()]);
            for (i, o) in out.iter().enumerate() {
                let plain: f32 = row[i.saturating_sub(half)..(i + half + 1).min(37)].iter().sum();
                assert_eq!(*o, plain, "{half} {i}");
            }
        }
    }

    #[test]
    fn reducing_averages_whole_squares() {
        let pixels = Pixels::new(5, 4, (0..20).collect::<Vec<u8>>());
        let half = reduced(&pixels, &BoxXy { min: Xy::new(1, 0), max: Xy::new(5, 4) }, 2, &mut Spare::default());
        assert_eq!((half.width, half.height), (2, 2));
        assert_eq!(half.data, [4.0, 6.0, 14.0, 16.0]);
    }
}
