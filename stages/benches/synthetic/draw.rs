//! What drawn tiles show: tissue made from nothing or taken from recorded images, and what a camera adds to it.

use std::sync::Arc;

use kinesin_stream::geometry::Xy;
use kinesin_stream::pixels::Pixels;

use super::{Recipe, Truth};

/// What lies under the scope. Values are grey levels at section pixels.
#[derive(Clone)]
pub(crate) enum Tissue {
    /// Membranes around cells of a jittered lattice this many pixels apart, with blotches inside.
    Drawn(f64),
    /// Recorded images side by side, in an order that never repeats nearby.
    Recorded(Arc<Vec<Pixels>>),
    /// The same pattern every so many pixels, with this much of drawn tissue (0 to 1) to tell places apart.
    Periodic(f64, f64),
}

impl std::fmt::Debug for Tissue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drawn(cell) => write!(f, "Drawn({cell})"),
            Self::Recorded(images) => write!(f, "Recorded({} images)", images.len()),
            Self::Periodic(pitch, share) => write!(f, "Periodic({pitch}, {share})"),
        }
    }
}

impl Tissue {
    /// Grey at a section pixel.
    fn at(&self, at: Xy<f64>, seed: u64) -> f64 {
        match self {
            Self::Drawn(cell) => texture(at, *cell, seed),
            Self::Recorded(images) => recorded(images, at, seed),
            Self::Periodic(pitch, share) => {
                let wave = |v: f64| (std::f64::consts::TAU * v / pitch).sin();
                150.0 + 25.0 * (wave(at.x) + wave(at.y)) + share * (texture(at, 40.0, seed) - 185.0)
            }
        }
    }
}

/// One tile as the camera gives it.
pub(super) fn draw(recipe: &Recipe, map: &Truth, blank: bool, seed: u64) -> Pixels {
    let (w, h) = (recipe.size.0 as usize, recipe.size.1 as usize);
    let mut random = Random(hash(seed as i64, 2, recipe.seed));
    let mut data = Vec::with_capacity(w * h);
    for y in 0..h {
        for x in 0..w {
            let at = Xy::new(x as f64, y as f64);
            let (u, v) = (at.x / map.half.x - 1.0, at.y / map.half.y - 1.0);
            let tissue = if blank { 190.0 } else { recipe.tissue.at(map.apply(at), recipe.seed) };
            let vignette = 1.0 - recipe.vignette * (u * u + v * v) / 2.0;
            // The same in every tile: stripes and specks of the detector.
            let stripes = 4.0 * ((x * 7 % 13) as f64 / 13.0 - 0.5) + 4.0 * ((y * 5 % 11) as f64 / 11.0 - 0.5);
            let specks = recipe.camera * (unit(hash(x as i64, y as i64, 77)) - 0.5);
            let value = tissue * vignette + stripes + specks + recipe.noise * random.normal();
            data.push(value.round().clamp(1.0, 255.0) as u8);
        }
    }
    Pixels::new(w, h, data)
}

/// Cubic between the pixels of images laid side by side.
fn recorded(images: &[Pixels], at: Xy<f64>, seed: u64) -> f64 {
    let size = images.iter().map(|i| i.width().min(i.height())).min().unwrap_or(1) as f64 - 4.0;
    let (cx, cy) = ((at.x / size).floor(), (at.y / size).floor());
    let image = &images[hash(cx as i64, cy as i64, seed) as usize % images.len()];
    let (x, y) = (at.x - cx * size + 1.0, at.y - cy * size + 1.0);
    let (i, j) = (x.floor(), y.floor());
    let (a, b) = (cubic(x - i), cubic(y - j));
    let (i, j) = (i as usize, j as usize);
    (0..4)
        .map(|r| {
            let row = &image.row(j + r - 1)[i - 1..i + 3];
            b[r] * row.iter().zip(a).map(|(v, a)| a * f64::from(*v)).sum::<f64>()
        })
        .sum()
}

/// Catmull-Rom weights.
fn cubic(t: f64) -> [f64; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [-0.5 * t3 + t2 - 0.5 * t, 1.5 * t3 - 2.5 * t2 + 1.0, -1.5 * t3 + 2.0 * t2 + 0.5 * t, 0.5 * t3 - 0.5 * t2]
}

/// Membranes between cells of a jittered lattice, dark on light, with organelle-like blotches; about 40 grey values of contrast.
fn texture(at: Xy<f64>, cell: f64, seed: u64) -> f64 {
    let (x, y) = (at.x / cell, at.y / cell);
    let (cx, cy) = (x.floor() as i64, y.floor() as i64);
    let (mut first, mut second, mut shade) = (f64::MAX, f64::MAX, 0u64);
    for j in -1..=1 {
        for i in -1..=1 {
            let h = hash(cx + i, cy + j, seed);
            let (px, py) = ((cx + i) as f64 + unit(h), (cy + j) as f64 + unit(h >> 21));
            let d = (px - x).powi(2) + (py - y).powi(2);
            if d < first {
                (second, first, shade) = (first, d, h);
            } else if d < second {
                second = d;
            }
        }
    }
    let wall = (second.sqrt() - first.sqrt()) * cell;
    let membrane = 95.0 * (-(wall / 6.0).powi(2)).exp();
    let inside = 30.0 * (unit(shade >> 42) - 0.5);
    185.0 - membrane
        + inside
        + 22.0 * value_noise(at * (1.0 / 7.0), seed)
        + 18.0 * value_noise(at * (1.0 / 29.0), seed + 9)
}

/// Smooth noise of unit lattice, about -1 to 1.
fn value_noise(at: Xy<f64>, seed: u64) -> f64 {
    let (cx, cy) = (at.x.floor() as i64, at.y.floor() as i64);
    let ease = |t: f64| t * t * (3.0 - 2.0 * t);
    let (u, v) = (ease(at.x - cx as f64), ease(at.y - cy as f64));
    let corner = |i, j| 2.0 * unit(hash(cx + i, cy + j, seed ^ 0x5555)) - 1.0;
    let top = corner(0, 0) * (1.0 - u) + corner(1, 0) * u;
    let bottom = corner(0, 1) * (1.0 - u) + corner(1, 1) * u;
    top * (1.0 - v) + bottom * v
}

pub(super) fn hash(x: i64, y: i64, seed: u64) -> u64 {
    let mut h = (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F) ^ seed;
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

fn unit(h: u64) -> f64 {
    (h & 0x1F_FFFF) as f64 / f64::from(1 << 21)
}

/// A small generator with a fixed sequence a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (hash(self.0 as i64, 1, 0) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn normal(&mut self) -> f64 {
        (self.next() + self.next() + self.next() + self.next() - 2.0) * 3.0f64.sqrt()
    }
}
