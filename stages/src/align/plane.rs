//! Section images made comparable: local contrast removed, and the pyramid of planes on which patches are matched.
//!
//! A *comparable* image holds `128 + 32 z` where `z` is the local deviation in local standard deviations, clipped to 1..255; 0 where there is
//! nothing to compare. Its planes hold `32 z` as whole numbers, so that every later sum is exact and the same on any machine.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use ndarray::Array2;
use rayon::prelude::*;

/// Half side of the window of local mean and deviation, pixels of the image handed in.
const WINDOW: usize = 32;
/// Grey levels a standard deviation.
const UNIT: f32 = 32.0;

/// The comparable form of a section image (0 = no data in both).
pub(super) fn comparable(image: &Array2<u8>) -> Array2<u8> {
    let (h, w) = image.dim();
    let smooth = smoothed(image);
    let squares: Vec<f32> = smooth.iter().map(|v| v * v).collect();
    let filled: Vec<f32> = image.iter().map(|v| f32::from(u8::from(*v != 0))).collect();
    let (sums, squares, counts) = (boxed(&smooth, w, h), boxed(&squares, w, h), boxed(&filled, w, h));
    let spread = |i: usize| {
        let mean = sums[i] / counts[i].max(1.0);
        (mean, (squares[i] / counts[i].max(1.0) - mean * mean).max(0.0).sqrt())
    };
    // Flat resin must not be blown up to tissue: its deviation counts as a third of the section's.
    let (total, n) = filled
        .iter()
        .enumerate()
        .filter(|(_, f)| **f > 0.0)
        .fold((0.0f64, 0usize), |(t, n), (i, _)| (t + f64::from(spread(i).1), n + 1));
    let least = (total / n.max(1) as f64) as f32 / 3.0 + 0.5;
    let value = |i: usize| {
        if filled[i] == 0.0 {
            return 0;
        }
        let (mean, sd) = spread(i);
        (128.5 + UNIT * (smooth[i] - mean) / sd.max(least)).clamp(1.0, 255.0) as u8
    };
    Array2::from_shape_vec((h, w), (0..w * h).into_par_iter().map(value).collect()).expect("one value a pixel")
}

/// Mean over 3 x 3 with weights 1 2 1, of the filled pixels; 0 where not filled.
fn smoothed(image: &Array2<u8>) -> Vec<f32> {
    let (h, w) = image.dim();
    let pixels: Vec<u8> = image.iter().copied().collect();
    let row = |y: usize| &pixels[y * w..(y + 1) * w];
    let mut out = vec![0.0f32; w * h];
    out.par_chunks_mut(w.max(1)).enumerate().for_each(|(y, line)| {
        let lines = [row(y.saturating_sub(1)), row(y), row((y + 1).min(h - 1))];
        for (x, o) in line.iter_mut().enumerate() {
            if lines[1][x] == 0 {
                continue;
            }
            let (mut sum, mut weight) = (0u32, 0u32);
            for (line, k) in lines.iter().zip([1u32, 2, 1]) {
                for (c, j) in [(x.saturating_sub(1), 1u32), (x, 2), ((x + 1).min(w - 1), 1)] {
                    let v = u32::from(line[c]);
                    sum += k * j * v;
                    weight += if v == 0 { 0 } else { k * j };
                }
            }
            *o = sum as f32 / weight as f32;
        }
    });
    out
}

/// Sums over the window of `2 WINDOW + 1` squared, clipped at the image's border.
fn boxed(values: &[f32], w: usize, h: usize) -> Vec<f32> {
    let mut across = vec![0.0f32; w * h];
    across.par_chunks_mut(w.max(1)).zip(values.par_chunks(w.max(1))).for_each(|(out, line)| {
        let mut sum: f64 = line[..WINDOW.min(w)].iter().map(|v| f64::from(*v)).sum();
        for x in 0..w {
            if x + WINDOW < w {
                sum += f64::from(line[x + WINDOW]);
            }
            if x > WINDOW {
                sum -= f64::from(line[x - WINDOW - 1]);
            }
            out[x] = sum as f32;
        }
    });
    let mut out = vec![0.0f32; w * h];
    let mut sums = vec![0.0f64; w];
    let add = |sums: &mut [f64], y: usize, sign: f64| {
        sums.iter_mut().zip(&across[y * w..(y + 1) * w]).for_each(|(s, v)| *s += sign * f64::from(*v));
    };
    (0..WINDOW.min(h)).for_each(|y| add(&mut sums, y, 1.0));
    for y in 0..h {
        if y + WINDOW < h {
            add(&mut sums, y + WINDOW, 1.0);
        }
        if y > WINDOW {
            add(&mut sums, y - WINDOW - 1, -1.0);
        }
        out[y * w..(y + 1) * w].iter_mut().zip(&sums).for_each(|(o, s)| *o = *s as f32);
    }
    out
}

/// A comparable image in some frame, at `scale` full-resolution pixels a pixel.
#[derive(Clone)]
pub(super) struct Plane {
    /// The pixels it covers, counted in its own scale from the frame's origin.
    pub(super) area: BoxXy,
    pub(super) scale: u32,
    pub(super) width: usize,
    pub(super) height: usize,
    /// `32 z`, 0 where empty.
    pub(super) values: Vec<i16>,
    /// 1 where there is something to compare.
    pub(super) filled: Vec<u8>,
}

impl Plane {
    /// The part of a comparable image, whose pixel (0, 0) lies at `origin`, inside `area`; empty outside of it.
    pub(super) fn new(image: &Array2<u8>, origin: Xy<i64>, area: BoxXy, scale: u32) -> Self {
        let size = area.size();
        let (mut values, mut filled) = (vec![0i16; size.x * size.y], vec![0u8; size.x * size.y]);
        let whole =
            BoxXy { min: origin, max: Xy::new(origin.x + image.ncols() as i64, origin.y + image.nrows() as i64) };
        if let Some(part) = area.intersect(&whole) {
            for y in part.min.y..part.max.y {
                let at = (y - area.min.y) as usize * size.x + (part.min.x - area.min.x) as usize;
                let (row, first) = ((y - origin.y) as usize, (part.min.x - origin.x) as usize);
                for i in 0..part.size().x {
                    let v = image[[row, first + i]];
                    values[at + i] = if v == 0 { 0 } else { i16::from(v) - 128 };
                    filled[at + i] = u8::from(v != 0);
                }
            }
        }
        Self { area, scale, width: size.x, height: size.y, values, filled }
    }

    /// The plane at half the resolution; a pixel is filled where half of its four are.
    pub(super) fn halved(&self) -> Self {
        let (min, max) = (self.area.min, self.area.max);
        let area = BoxXy {
            min: Xy::new(min.x.div_euclid(2), min.y.div_euclid(2)),
            max: Xy::new((max.x + 1).div_euclid(2), (max.y + 1).div_euclid(2)),
        };
        let size = area.size();
        let (mut values, mut filled) = (vec![0i16; size.x * size.y], vec![0u8; size.x * size.y]);
        for y in 0..size.y {
            for x in 0..size.x {
                let (mut sum, mut n) = (0i32, 0i32);
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let c = (area.min.x + x as i64) * 2 + dx - min.x;
                    let r = (area.min.y + y as i64) * 2 + dy - min.y;
                    if c >= 0 && r >= 0 && c < self.width as i64 && r < self.height as i64 {
                        let i = r as usize * self.width + c as usize;
                        sum += i32::from(self.values[i]);
                        n += i32::from(self.filled[i]);
                    }
                }
                if n >= 2 {
                    // Twice the mean: averaging takes contrast away, and the whole numbers should keep their fineness.
                    values[y * size.x + x] = (2 * sum / n).clamp(-255, 255) as i16;
                    filled[y * size.x + x] = 1;
                }
            }
        }
        Self { area, scale: 2 * self.scale, width: size.x, height: size.y, values, filled }
    }

    /// Full-resolution place of a place in the plane's pixels, counted from its first pixel.
    pub(super) fn to_full(&self, p: Xy<f64>) -> Xy<f64> {
        let s = f64::from(self.scale);
        Xy::new(reduced_to_full(p.x + self.area.min.x as f64, s), reduced_to_full(p.y + self.area.min.y as f64, s))
    }

    /// Place in the plane, counted from its first pixel, of a full-resolution place.
    pub(super) fn place_of(&self, p: Xy<f64>) -> Xy<f64> {
        let s = f64::from(self.scale);
        Xy::new(full_to_reduced(p.x, s) - self.area.min.x as f64, full_to_reduced(p.y, s) - self.area.min.y as f64)
    }
}
