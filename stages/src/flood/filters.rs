//! Sobel gradient, Gaussian and running maximum of a volume, with the rounding and borders of the published pipeline.
//!
//! Sums are made in f64 and stored as f32 after every pass; outside the volume values are mirrored with the border voxel
//! repeated (`d c b a | a b c d`), so the thresholds that follow fall on the same side voxel for voxel.

use ndarray::{Array3, ArrayView2, ArrayViewMut2, Axis};

/// Length of the Sobel gradient; the derivative along each axis is divided by `spacing` (1 where isotropic).
pub(super) fn gradient(image: &Array3<f32>, spacing: [f64; 3]) -> Array3<f32> {
    let mut total = Array3::<f32>::zeros(image.raw_dim());
    for (axis, step) in spacing.into_iter().enumerate() {
        let mut pass = along(image, axis, |line, out| {
            for (i, o) in out.iter_mut().enumerate() {
                *o = (f64::from(line(i as isize + 1)) - f64::from(line(i as isize - 1))) as f32;
            }
        });
        for other in (0..3).filter(|&o| o != axis) {
            pass = along(&pass, other, |line, out| {
                for (i, o) in out.iter_mut().enumerate() {
                    let i = i as isize;
                    *o = (2.0 * f64::from(line(i)) + (f64::from(line(i - 1)) + f64::from(line(i + 1)))) as f32;
                }
            });
        }
        let scale = (1.0 / step) as f32;
        total.zip_mut_with(&pass, |t, &p| {
            let p = p * scale;
            *t += p * p;
        });
    }
    total.mapv_inplace(f32::sqrt);
    total
}

/// Applies a filter to all lines along one axis; the filter reads its line with mirrored borders.
fn along(image: &Array3<f32>, axis: usize, filter: impl Fn(&dyn Fn(isize) -> f32, &mut [f32])) -> Array3<f32> {
    let mut out = Array3::zeros(image.raw_dim());
    let n = image.len_of(Axis(axis));
    let (mut line, mut result) = (vec![0.0; n], vec![0.0; n]);
    for (from, mut to) in image.lanes(Axis(axis)).into_iter().zip(out.lanes_mut(Axis(axis))) {
        line.iter_mut().zip(from).for_each(|(l, &v)| *l = v);
        filter(&|i| line[mirror(i, n)], &mut result);
        to.iter_mut().zip(&result).for_each(|(t, &v)| *t = v);
    }
    out
}

fn mirror(i: isize, n: usize) -> usize {
    let period = 2 * n as isize;
    let i = i.rem_euclid(period);
    if i < n as isize { i as usize } else { (period - 1 - i) as usize }
}

/// Gaussian with standard deviation `sigma` voxels along every axis, cut at four of them.
pub(super) fn gaussian(image: &Array3<f32>, sigma: f64) -> Array3<f32> {
    let radius = (4.0 * sigma + 0.5) as usize;
    let raw: Vec<f64> = (0..=radius).map(|i| (-0.5 / (sigma * sigma) * (i * i) as f64).exp()).collect();
    let sum = raw[0] + 2.0 * raw[1..].iter().sum::<f64>();
    let half: Vec<f64> = raw.iter().map(|w| w / sum).collect();
    let mut out = image.clone();
    for axis in 0..3 {
        out = blur(&out, axis, &half);
    }
    out
}

/// One pass. Planes that hold the axis as rows are blurred row against row, so that the inner loop runs along memory.
fn blur(image: &Array3<f32>, axis: usize, half: &[f64]) -> Array3<f32> {
    let mut out = Array3::zeros(image.raw_dim());
    let outer = if axis == 0 { 1 } else { 0 };
    for (from, mut to) in image.axis_iter(Axis(outer)).zip(out.axis_iter_mut(Axis(outer))) {
        match axis {
            2 => blur_rows(from.t(), to.view_mut().reversed_axes(), half),
            _ => blur_rows(from, to.view_mut(), half),
        }
    }
    out
}

fn blur_rows(from: ArrayView2<'_, f32>, mut to: ArrayViewMut2<'_, f32>, half: &[f64]) {
    let (n, width) = from.dim();
    let wide: Vec<f64> =
        from.rows().into_iter().flat_map(|r| r.into_iter().map(|&v| f64::from(v)).collect::<Vec<_>>()).collect();
    let row = |i: isize| &wide[mirror(i, n) * width..][..width];
    let mut sum = vec![0.0f64; width];
    for (i, mut out) in to.rows_mut().into_iter().enumerate() {
        let i = i as isize;
        sum.iter_mut().zip(row(i)).for_each(|(s, &v)| *s = v * half[0]);
        for (d, &w) in half.iter().enumerate().skip(1).rev() {
            let d = d as isize;
            let (a, b) = (row(i - d), row(i + d));
            for ((s, &p), &q) in sum.iter_mut().zip(a).zip(b) {
                *s += (p + q) * w;
            }
        }
        out.iter_mut().zip(&sum).for_each(|(o, &s)| *o = s as f32);
    }
}

/// Largest value within `reach` voxels along every axis (a cube), cut at the border.
pub(super) fn running_maximum(image: &Array3<f64>, reach: usize) -> Array3<f64> {
    let mut out = image.clone();
    for axis in 0..3 {
        let n = out.len_of(Axis(axis));
        let mut line = vec![0.0; n];
        for mut lane in out.lanes_mut(Axis(axis)) {
            line.iter_mut().zip(lane.iter()).for_each(|(l, &v)| *l = v);
            for (i, o) in lane.iter_mut().enumerate() {
                *o = line[i.saturating_sub(reach)..(i + reach + 1).min(n)]
                    .iter()
                    .copied()
                    .fold(f64::NEG_INFINITY, f64::max);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_has_the_sobel_gradient_of_its_slope() {
        // slope 1 along x: central difference 2, smoothed with 1-2-1 twice (sum 16) = 32 away from the border
        let ramp = Array3::from_shape_fn((5, 5, 5), |(_, _, x)| x as f32);
        assert_eq!(gradient(&ramp, [1.0; 3])[[2, 2, 2]], 32.0);
        assert_eq!(gradient(&ramp, [1.0, 1.0, 2.0])[[2, 2, 2]], 16.0);
    }

    #[test]
    fn a_constant_stays_constant_under_the_gaussian() {
        let flat = Array3::from_elem((4, 9, 6), 3.0f32);
        assert!(gaussian(&flat, 49.0 / 6.0).iter().all(|v| (v - 3.0).abs() < 1e-6));
    }

    #[test]
    fn every_axis_is_blurred_alike() {
        let mut point = Array3::zeros((9, 9, 9));
        point[[4, 4, 4]] = 1.0f32;
        let out = gaussian(&point, 1.0);
        let sides = [out[[3, 4, 4]], out[[5, 4, 4]], out[[4, 3, 4]], out[[4, 4, 5]]];
        assert!(sides.iter().all(|v| (v - sides[0]).abs() < 1e-7));
        assert!((out.sum() - 1.0).abs() < 1e-3);
    }
}
