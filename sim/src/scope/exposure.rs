//! From tissue to grey values of a tile: sampling through the true maps, focus, contrast, noise.
//!
//! Every pixel is mapped exactly (tile grid, then damage, then section grid) and sampled bilinearly. Where the pixel is two
//! or more voxels wide, voxels are averaged over whole blocks first, so that nothing finer than a pixel folds back.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use kinesin_stream::map::Grid;
use ndarray::Array2;

use super::draw::{Draws, normal_table};
use super::plane::Plane;
use super::section::SectionMap;

/// Everything a tile's pixels are sampled through.
pub(crate) struct Light<'a> {
    pub(crate) plane: &'a Plane,
    /// Section of the tissue.
    pub(crate) z: usize,
    /// Pixels of the scope in voxels of the tissue.
    pub(crate) scale: Xy<f64>,
    pub(crate) tile: &'a Grid,
    pub(crate) section: &'a SectionMap,
    pub(crate) fill: u8,
}

/// How the detector turns light into numbers: `gain (v - 128) + 128 + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Contrast {
    pub(crate) gain: f64,
    pub(crate) offset: f64,
}

impl Contrast {
    pub(crate) fn then(self, next: Self) -> Self {
        Self { gain: self.gain * next.gain, offset: next.gain * self.offset + next.offset }
    }
}

/// The tissue's grey values within reach of a tile, reduced by whole numbers.
struct Patch {
    grey: Array2<u8>,
    /// First voxel, and voxels averaged per value.
    origin: Xy<i64>,
    reduced: Xy<i64>,
}

impl Light<'_> {
    /// The light that reaches the detector, row by row, grey levels.
    pub(crate) fn sample(&self, size: Xy<u32>) -> Vec<f32> {
        let patch = self.patch(size);
        let (width, height) = (size.x as usize, size.y as usize);
        let mut light = vec![0.0f32; width * height];
        let damaged = !self.section.damage().is_empty();
        for (y, out) in light.chunks_exact_mut(width).enumerate() {
            if damaged {
                each_place(self.tile, y as f64, width, |x, p| out[x] = self.through_damage(&patch, p));
            } else {
                each_place(self.tile, y as f64, width, |x, p| out[x] = self.look(&patch, self.section.smooth(p)));
            }
        }
        light
    }

    fn through_damage(&self, patch: &Patch, p: Xy<f64>) -> f32 {
        let light = self.section.apply(p).map_or(f32::from(self.fill), |v| self.look(patch, v));
        light * self.section.shade(p)
    }

    #[inline]
    fn look(&self, patch: &Patch, volume: Xy<f64>) -> f32 {
        let along = |v: f64, scale: f64, origin: i64, reduced: i64| {
            // Volume pixel to voxel, voxel to value of the patch; both the identity where pixel and voxel are one.
            full_to_reduced(reduced_to_full(v, scale) - origin as f64, reduced as f64)
        };
        let x = along(volume.x, self.scale.x, patch.origin.x, patch.reduced.x);
        let y = along(volume.y, self.scale.y, patch.origin.y, patch.reduced.y);
        bilinear(&patch.grey, x as f32, y as f32)
    }

    /// Reads what the tile can see: the images of points 16 px apart, and what lies between and beside them.
    fn patch(&self, size: Xy<u32>) -> Patch {
        let last = Xy::new(size.x - 1, size.y - 1);
        let stops = |last: u32| (0..last).step_by(16).chain([last]).map(f64::from).collect::<Vec<_>>();
        let (mut min, mut max) = (Xy::new(f64::MAX, f64::MAX), Xy::new(f64::MIN, f64::MIN));
        for &y in &stops(last.y) {
            for &x in &stops(last.x) {
                let p = self.tile.apply(Xy::new(x, y));
                let Some(v) = self.section.apply(p) else { continue };
                let t = Xy::new(reduced_to_full(v.x, self.scale.x), reduced_to_full(v.y, self.scale.y));
                min = Xy::new(min.x.min(t.x), min.y.min(t.y));
                max = Xy::new(max.x.max(t.x), max.y.max(t.y));
            }
        }
        let jumps: f64 = self.section.damage().iter().map(|d| d.reach() * 2.0).sum();
        let reach = Xy::new((4.0 + jumps) * self.scale.x.max(1.0), (4.0 + jumps) * self.scale.y.max(1.0));
        let (min, max) = if min.x > max.x { (Xy::default(), Xy::default()) } else { (min - reach, max + reach) };
        let rect = BoxXy {
            min: Xy::new(min.x.floor() as i64, min.y.floor() as i64),
            max: Xy::new(max.x.ceil() as i64 + 2, max.y.ceil() as i64 + 2),
        };
        let reduced = Xy::new((self.scale.x.floor() as i64).max(1), (self.scale.y.floor() as i64).max(1));
        let grey = averaged(self.plane.patch(self.z, rect), reduced);
        Patch { grey, origin: rect.min, reduced }
    }
}

/// Calls `f(x, section px)` for each pixel of row `y`.
#[inline]
fn each_place(tile: &Grid, y: f64, width: usize, mut f: impl FnMut(usize, Xy<f64>)) {
    let (xs, ys) = (tile.xs(), tile.ys());
    let row = ys.partition_point(|&v| v <= y).clamp(1, ys.len() - 1) - 1;
    let v = (y - ys[row]) / (ys[row + 1] - ys[row]);
    let node = |column| tile.node(column, row) * (1.0 - v) + tile.node(column, row + 1) * v;
    for column in 0..xs.len() - 1 {
        let (from, to) = (node(column), node(column + 1));
        let cell = xs[column + 1] - xs[column];
        let end = if column + 2 == xs.len() { width } else { xs[column + 1] as usize };
        for x in xs[column] as usize..end {
            let u = (x as f64 - xs[column]) / cell;
            f(x, from * (1.0 - u) + to * u);
        }
    }
}

#[inline]
fn bilinear(grey: &Array2<u8>, x: f32, y: f32) -> f32 {
    let (rows, columns) = grey.dim();
    let x = x.clamp(0.0, (columns - 1) as f32);
    let y = y.clamp(0.0, (rows - 1) as f32);
    let (c, r) = ((x as usize).min(columns.saturating_sub(2)), (y as usize).min(rows.saturating_sub(2)));
    let (u, v) = (x - c as f32, y - r as f32);
    let at = |r: usize, c: usize| f32::from(grey[(r, c)]);
    let upper = at(r, c) + (at(r, c + 1) - at(r, c)) * u;
    let lower = at(r + 1, c) + (at(r + 1, c + 1) - at(r + 1, c)) * u;
    upper + (lower - upper) * v
}

/// Means over blocks of `by` values; what does not fill a block at the end is cut off.
fn averaged(grey: Array2<u8>, by: Xy<i64>) -> Array2<u8> {
    if by == Xy::new(1, 1) {
        return grey;
    }
    let (bx, by) = (by.x as usize, by.y as usize);
    let (rows, columns) = (grey.nrows() / by, grey.ncols() / bx);
    Array2::from_shape_fn((rows.max(2), columns.max(2)), |(r, c)| {
        let (r, c) = (r.min(rows.saturating_sub(1)), c.min(columns.saturating_sub(1)));
        let mut sum = 0u32;
        for y in r * by..((r + 1) * by).min(grey.nrows()) {
            for x in c * bx..((c + 1) * bx).min(grey.ncols()) {
                sum += u32::from(grey[(y, x)]);
            }
        }
        ((sum + (bx * by) as u32 / 2) / (bx * by) as u32) as u8
    })
}

/// What the detector reads: contrast, noise of spread `noise_sd`, cut to 0..=255.
pub(crate) fn expose(light: &[f32], contrast: Contrast, noise_sd: f64, mut draws: Draws) -> Vec<u8> {
    let gain = contrast.gain as f32;
    let base = (128.0 + contrast.offset - 128.0 * contrast.gain) as f32 + 0.5;
    // `as` cuts to 0..=255; the half added rounds.
    if noise_sd == 0.0 {
        return light.iter().map(|&v| (v * gain + base) as u8).collect();
    }
    let (table, sd) = (normal_table(), noise_sd as f32);
    let mut grey = Vec::with_capacity(light.len());
    for five in light.chunks(5) {
        for (&v, i) in five.iter().zip(draws.five_indexes()) {
            grey.push((v * gain + base + table[i] * sd) as u8);
        }
    }
    grey
}

/// Blurs by a normal kernel of spread `sd` px, rims repeated.
pub(crate) fn blur(light: &[f32], width: usize, sd: f64) -> Vec<f32> {
    let reach = (sd * 3.0).ceil() as i64;
    let raw: Vec<f32> = (-reach..=reach).map(|i| (-0.5 * (i as f64 / sd).powi(2)).exp() as f32).collect();
    let total: f32 = raw.iter().sum();
    let height = light.len() / width;
    let pass = |from: &[f32], along_x: bool| -> Vec<f32> {
        let at = |x: i64, y: i64| {
            from[y.clamp(0, height as i64 - 1) as usize * width + x.clamp(0, width as i64 - 1) as usize]
        };
        (0..light.len() as i64)
            .map(|i| {
                let (x, y) = (i % width as i64, i / width as i64);
                let taps = (-reach..=reach).zip(&raw);
                taps.map(|(d, w)| w * if along_x { at(x + d, y) } else { at(x, y + d) }).sum::<f32>() / total
            })
            .collect()
    };
    pass(&pass(light, true), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::draw::{What, Whose};

    #[test]
    fn noise_and_contrast_are_those_asked_for() {
        let light = vec![100.0f32; 50_000];
        let draws = Draws::new(1, What::Noise, Whose::default());
        let grey = expose(&light, Contrast { gain: 0.5, offset: 20.0 }, 8.0, draws);
        let mean = grey.iter().map(|&v| f64::from(v)).sum::<f64>() / 50_000.0;
        let sd = (grey.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 50_000.0).sqrt();
        // (100 - 128) / 2 + 128 + 20 = 134; rounding to whole levels adds 1/12 to the variance.
        assert!((mean - 134.0).abs() < 0.2 && (sd - (64.0f64 + 1.0 / 12.0).sqrt()).abs() < 0.15, "{mean} {sd}");
    }

    #[test]
    fn blurring_flattens_a_checkerboard_to_its_mean() {
        let board: Vec<f32> = (0..64 * 64).map(|i| if (i % 64 + i / 64) % 2 == 0 { 200.0 } else { 0.0 }).collect();
        let flat = blur(&board, 64, 3.0);
        // Away from the rims, which are repeated.
        assert!((10..54).all(|y| (10..54).all(|x: usize| (flat[y * 64 + x] - 100.0).abs() < 0.5)));
    }
}
