//! Section images made comparable: local contrast removed, and the pyramid of planes on which patches are matched.
//!
//! A *comparable* image holds `128 + 32 z` where `z` is the local deviation in local standard deviations, clipped to 1..255; 0 where there is
//! nothing to compare. Mean and deviation are those of about 72 px squared, taken over blocks of 8 px and bilinear between them: six sums a
//! pixel. Products of patches are sums of whole numbers, hence exact and the same on any machine.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use ndarray::Array2;
use rayon::prelude::*;

/// Side of the blocks of local mean and deviation, pixels of the image handed in.
const BLOCK: usize = 8;
/// Blocks to either side that count.
const AROUND: usize = 4;
/// Grey levels a standard deviation.
const UNIT: f32 = 32.0;

/// The comparable form of a section image (0 = no data in both).
pub(super) fn comparable(image: &Array2<u8>) -> Array2<u8> {
    let (h, w) = image.dim();
    let smooth = smoothed(image);
    let local = Local::of(&smooth, w, h);
    let mut out = vec![0u8; w * h];
    out.par_chunks_mut(w.max(1)).zip(smooth.par_chunks(w.max(1))).enumerate().for_each(|(y, (line, row))| {
        let (mean, gain) = local.row(y);
        for (c, (o, v)) in line.chunks_mut(BLOCK).zip(row.chunks(BLOCK)).enumerate() {
            // Between the middles of blocks c - 1 and c, then of c and c + 1.
            for (i, (o, v)) in o.iter_mut().zip(v).enumerate() {
                let t = (i as f32 + 0.5) / BLOCK as f32 + 0.5;
                let (a, b, t) = if t < 1.0 { (c, c + 1, t) } else { (c + 1, c + 2, t - 1.0) };
                let mean = mean[a] + (mean[b] - mean[a]) * t;
                let gain = gain[a] + (gain[b] - gain[a]) * t;
                let z = (128.5 + (f32::from(*v) - mean) * gain).clamp(1.0, 255.0) as u8;
                *o = if *v == 0 { 0 } else { z };
            }
        }
    });
    Array2::from_shape_vec((h, w), out).expect("one value a pixel")
}

/// Sixteen times the mean over 3 x 3 with weights 1 2 1, of the filled pixels; 0 where not filled.
fn smoothed(image: &Array2<u8>) -> Vec<u16> {
    let (h, w) = image.dim();
    let pixels: Vec<u8> = image.iter().copied().collect();
    let row = |y: usize| &pixels[y * w..(y + 1) * w];
    let mut out = vec![0u16; w * h];
    out.par_chunks_mut(w.max(1)).enumerate().for_each(|(y, line)| {
        let lines = [row(y.saturating_sub(1)), row(y), row((y + 1).min(h - 1))];
        if w > 2 && lines.iter().all(|l| !l.contains(&0)) {
            let of = |v: u8| u16::from(v);
            let down: Vec<u16> = (0..w).map(|x| of(lines[0][x]) + 2 * of(lines[1][x]) + of(lines[2][x])).collect();
            for (o, d) in line[1..w - 1].iter_mut().zip(down.windows(3)) {
                *o = d[0] + 2 * d[1] + d[2];
            }
            (line[0], line[w - 1]) = (3 * down[0] + down[1], down[w - 2] + 3 * down[w - 1]);
        } else {
            line.iter_mut().enumerate().for_each(|(x, o)| *o = with_holes(lines, x));
        }
    });
    out
}

/// The same at column `x`, where pixels may be empty.
fn with_holes(lines: [&[u8]; 3], x: usize) -> u16 {
    if lines[1][x] == 0 {
        return 0;
    }
    let (mut sum, mut weight) = (0u32, 0u32);
    for (line, k) in lines.iter().zip([1u32, 2, 1]) {
        for (c, j) in [(x.saturating_sub(1), 1u32), (x, 2), ((x + 1).min(line.len() - 1), 1)] {
            let v = u32::from(line[c]);
            sum += k * j * v;
            weight += if v == 0 { 0 } else { k * j };
        }
    }
    (16 * sum / weight) as u16
}

/// Local mean, and [`UNIT`] over local deviation, at the middles of blocks and of one more all around.
struct Local {
    columns: usize,
    rows: usize,
    mean: Vec<f32>,
    gain: Vec<f32>,
}

impl Local {
    fn of(smooth: &[u16], w: usize, h: usize) -> Self {
        let (bw, bh) = (w.div_ceil(BLOCK), h.div_ceil(BLOCK));
        let mut blocks = vec![[0u64; 3]; bw * bh];
        blocks.par_chunks_mut(bw.max(1)).zip(smooth.par_chunks(BLOCK * w.max(1))).for_each(|(blocks, rows)| {
            for row in rows.chunks_exact(w) {
                for (b, v) in blocks.iter_mut().zip(row.chunks(BLOCK)) {
                    let (mut sum, mut square, mut n) = (0u32, 0u32, 0u32);
                    for v in v {
                        let v = u32::from(*v);
                        (sum, square, n) = (sum + v, square + v * v, n + u32::from(v != 0));
                    }
                    *b = [b[0] + u64::from(sum), b[1] + u64::from(square), b[2] + u64::from(n)];
                }
            }
        });
        let spread = |s: [u64; 3]| {
            let n = s[2].max(1) as f64;
            let mean = s[0] as f64 / n;
            (mean as f32, (s[1] as f64 / n - mean * mean).max(0.0).sqrt() as f32)
        };
        let boxed = boxed(&blocks, bw, bh);
        // Flat resin must not be blown up to tissue: its deviation counts as a third of the section's.
        let filled = blocks.iter().zip(&boxed).filter(|(b, _)| b[2] > 0);
        let (total, n) =
            filled.fold((0.0, 0.0), |(t, n), (b, s)| (t + f64::from(spread(*s).1) * b[2] as f64, n + b[2] as f64));
        let least = (total / f64::max(n, 1.0)) as f32 / 3.0 + 8.0;
        let (columns, rows) = (bw + 2, bh + 2);
        let at = |i: usize| {
            let held = |v: usize, n: usize| v.saturating_sub(1).min(n - 1);
            spread(boxed[held(i / columns, bh) * bw + held(i % columns, bw)])
        };
        let both: Vec<(f32, f32)> = (0..columns * rows).map(at).collect();
        let mean = both.iter().map(|b| b.0).collect();
        Self { columns, rows, mean, gain: both.iter().map(|b| UNIT / b.1.max(least)).collect() }
    }

    /// Mean and gain at the middles of the blocks, for pixel row `y`.
    fn row(&self, y: usize) -> (Vec<f32>, Vec<f32>) {
        let t = (y as f32 + 0.5) / BLOCK as f32 + 0.5;
        let r = (t as usize).min(self.rows - 2);
        let t = t - r as f32;
        let between = |v: &[f32]| {
            let (a, b) = (&v[r * self.columns..][..self.columns], &v[(r + 1) * self.columns..][..self.columns]);
            a.iter().zip(b).map(|(a, b)| a + (b - a) * t).collect()
        };
        (between(&self.mean), between(&self.gain))
    }
}

/// Sums over the square of `2 AROUND + 1` blocks, clipped at the border.
fn boxed(blocks: &[[u64; 3]], w: usize, h: usize) -> Vec<[u64; 3]> {
    let add = |a: [u64; 3], b: &[u64; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
    let range = |v: usize, n: usize| v.saturating_sub(AROUND)..(v + AROUND + 1).min(n);
    let across: Vec<[u64; 3]> =
        (0..w * h).map(|i| range(i % w, w).fold([0; 3], |s, c| add(s, &blocks[i / w * w + c]))).collect();
    (0..w * h).map(|i| range(i / w, h).fold([0; 3], |s, r| add(s, &across[r * w + i % w]))).collect()
}

/// A comparable image in some frame, at `scale` full-resolution pixels a pixel.
#[derive(Clone)]
pub(super) struct Plane {
    /// The pixels it covers, counted in its own scale from the frame's origin.
    pub(super) area: BoxXy,
    pub(super) scale: u32,
    pub(super) width: usize,
    pub(super) height: usize,
    /// `128 + 32 z`, 0 where empty.
    pub(super) grey: Vec<u8>,
}

impl Plane {
    /// Nothing.
    pub(super) fn empty(area: BoxXy, scale: u32) -> Self {
        let size = area.size();
        Self { area, scale, width: size.x, height: size.y, grey: vec![0; size.x * size.y] }
    }

    /// The part of a comparable image, whose pixel (0, 0) lies at `origin`, inside `area`; empty outside of it.
    pub(super) fn new(image: &Array2<u8>, origin: Xy<i64>, area: BoxXy, scale: u32) -> Self {
        let (h, w) = image.dim();
        let whole = BoxXy { min: origin, max: Xy::new(origin.x + w as i64, origin.y + h as i64) };
        let mut out = Self::empty(area, scale);
        if let Some(part) = area.intersect(&whole) {
            for y in part.min.y..part.max.y {
                let at = (y - area.min.y) as usize * out.width + (part.min.x - area.min.x) as usize;
                let (row, first) = ((y - origin.y) as usize, (part.min.x - origin.x) as usize);
                let from = image.row(row);
                let to = &mut out.grey[at..at + part.size().x];
                to.iter_mut().zip(from.iter().skip(first)).for_each(|(o, v)| *o = *v);
            }
        }
        out
    }

    /// The same with the opposite contrast.
    pub(super) fn inverted(&self) -> Self {
        let opposite = |v: &u8| if *v == 0 { 0 } else { (256 - u16::from(*v)).min(255) as u8 };
        Self { grey: self.grey.iter().map(opposite).collect(), ..*self }
    }

    /// Deviations, 0 where empty.
    pub(super) fn values(&self) -> Vec<i16> {
        self.grey.iter().map(|v| deviation(*v)).collect()
    }

    /// The same in a larger or shifted frame; empty where it was not.
    pub(super) fn within(&self, area: BoxXy) -> Self {
        let mut out = Self::empty(area, self.scale);
        if let Some(part) = area.intersect(&self.area) {
            let n = part.size().x;
            for y in part.min.y..part.max.y {
                let to = (y - area.min.y) as usize * out.width + (part.min.x - area.min.x) as usize;
                let from = (y - self.area.min.y) as usize * self.width + (part.min.x - self.area.min.x) as usize;
                out.grey[to..to + n].copy_from_slice(&self.grey[from..from + n]);
            }
        }
        out
    }

    /// The plane at half the resolution; a pixel is filled where half of its four are.
    pub(super) fn halved(&self) -> Self {
        let (min, max) = (self.area.min, self.area.max);
        let area = BoxXy {
            min: Xy::new(min.x.div_euclid(2), min.y.div_euclid(2)),
            max: Xy::new((max.x + 1).div_euclid(2), (max.y + 1).div_euclid(2)),
        };
        let mut out = Self::empty(area, 2 * self.scale);
        let whole = min.x % 2 == 0;
        let (w, offset) = (self.width, Xy::new(2 * area.min.x - min.x, 2 * area.min.y - min.y));
        let none = vec![0u8; w];
        let line = |r: i64| {
            if r >= 0 && (r as usize) < self.height { &self.grey[r as usize * w..(r as usize + 1) * w] } else { &none }
        };
        for (y, to) in (0i64..).zip(out.grey.chunks_mut(area.size().x.max(1))) {
            let (a, b) = (line(2 * y + offset.y), line(2 * y + 1 + offset.y));
            if whole {
                let pairs = a.chunks_exact(2).zip(b.chunks_exact(2));
                to.iter_mut().zip(pairs).for_each(|(o, (a, b))| *o = mean_of([a[0], a[1], b[0], b[1]]));
            }
            let done = if whole { w / 2 } else { 0 };
            for (x, o) in to.iter_mut().enumerate().skip(done) {
                let at = |l: &[u8], c: i64| if c >= 0 && (c as usize) < w { l[c as usize] } else { 0 };
                let c = 2 * x as i64 + offset.x;
                *o = mean_of([at(a, c), at(a, c + 1), at(b, c), at(b, c + 1)]);
            }
        }
        out
    }

    /// Full-resolution place of a place in the plane's pixels, counted from its first pixel.
    pub(super) fn to_full(&self, p: Xy<f64>) -> Xy<f64> {
        self.full(Xy::new(p.x + self.area.min.x as f64, p.y + self.area.min.y as f64))
    }

    /// Full-resolution place of a place in the plane's pixels, counted from the frame's origin.
    pub(super) fn full(&self, p: Xy<f64>) -> Xy<f64> {
        let s = f64::from(self.scale);
        Xy::new(reduced_to_full(p.x, s), reduced_to_full(p.y, s))
    }

    /// Place in the plane, counted from its first pixel, of a full-resolution place.
    pub(super) fn place_of(&self, p: Xy<f64>) -> Xy<f64> {
        let s = f64::from(self.scale);
        Xy::new(full_to_reduced(p.x, s) - self.area.min.x as f64, full_to_reduced(p.y, s) - self.area.min.y as f64)
    }
}

/// Deviation that a grey value stands for, 0 where empty.
pub(super) fn deviation(v: u8) -> i16 {
    if v == 0 { 0 } else { i16::from(v) - 128 }
}

/// One and a half times the mean deviation: averaging takes contrast away, and the whole numbers should keep their fineness.
fn mean_of(four: [u8; 4]) -> u8 {
    let sum: i32 = four.iter().map(|v| i32::from(*v)).sum();
    let n = four.iter().filter(|v| **v != 0).count() as i32;
    let mean = match n {
        4 => (3 * (sum - 512)) >> 3,
        3 | 2 => 3 * (sum - 128 * n) / (2 * n),
        _ => return 0,
    };
    (128 + mean.clamp(-127, 127)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_brightness_and_shade_do_not_matter() {
        let texture = |x: usize, y: usize| 40.0 * ((x as f32 * 0.3).sin() + (y as f32 * 0.23 + x as f32 * 0.1).cos());
        let a = Array2::from_shape_fn((120, 150), |(y, x)| (128.0 + texture(x, y)) as u8);
        let b = Array2::from_shape_fn((120, 150), |(y, x)| (70.0 + 0.4 * texture(x, y) + 0.3 * x as f32) as u8);
        let (a, b) = (comparable(&a), comparable(&b));
        let off = a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
        // 32 grey levels are one standard deviation; rounding to 0.4 of the contrast makes about 1, the shade within a window the rest.
        assert!(off < 5.0, "{off}");
    }

    #[test]
    fn halving_keeps_places_whatever_the_first_pixel() {
        let image = Array2::from_shape_fn((40, 40), |(y, x)| (60 + 2 * x + y) as u8);
        let of = |x: i64, y: i64| {
            let area = BoxXy { min: Xy::new(x, y), max: Xy::new(x + 20, y + 21) };
            Plane::new(&image, Xy::new(-3, -7), area, 2).halved()
        };
        let (even, odd) = (of(2, 4), of(1, 3));
        let at =
            |p: &Plane, x: i64, y: i64| p.grey[(y - p.area.min.y) as usize * p.width + (x - p.area.min.x) as usize];
        assert!((2..10).all(|i| at(&even, i, i) == at(&odd, i, i) && at(&odd, i, i) > 0));
    }
}
