//! Sections cut from recorded tissue by known warps, with known damage, for the bench of `align`. Lengths in pixels.
//!
//! ```text
//! tissue(t), one plane a section ── warp: turn, shift, smooth field ──► crack or fold ──► dirt ──► grey values ──► section(p)
//! ```
//! Mosaics of a small cube: squares of different depth ranges, axes, turns and flips side by side, seams at the same place in every plane, so
//! that tissue runs on from plane to plane as in the cube, and nothing is repeated or mirrored about a line. Without recorded tissue it is
//! drawn: a random Voronoi pattern whose centres wander.

mod damage;
mod export;
mod tissue;
mod warp;

pub(crate) use damage::{Damage, Grey};
pub(crate) use export::export;
pub(crate) use tissue::{cortex, cube, drawn, mosaic};
pub(crate) use warp::Warp;

use kinesin_stages::align::SectionView;
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use ndarray::Array2;

/// Sequence of numbers that depends on the seed alone.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        let mut noise = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 77);
        (0..8).for_each(|_| _ = noise.even());
        noise
    }

    /// Even between -1 and 1.
    pub(crate) fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    }

    /// Sum of three: mean 0, sd 1.
    pub(crate) fn normal(&mut self) -> f64 {
        self.even() + self.even() + self.even()
    }
}

/// How one section comes to be from its plane of tissue.
#[derive(Clone)]
pub(crate) struct Recipe {
    pub(crate) warp: Warp,
    pub(crate) damage: Damage,
    pub(crate) grey: Grey,
}

impl Recipe {
    /// Section pixel to tissue pixel; none where the pixel is damaged.
    pub(crate) fn to_tissue(&self, p: Xy<f64>) -> Option<Xy<f64>> {
        self.damage.heal(p).map(|p| self.warp.to_tissue(p))
    }

    /// Tissue pixel to section pixel; none where it is lost or within `margin` of damage.
    pub(crate) fn to_section(&self, t: Xy<f64>, margin: f64) -> Option<Xy<f64>> {
        let p = self.damage.part(self.warp.to_section(t))?;
        (!self.damage.near(p, margin)).then_some(p)
    }

    /// The section at full resolution, `size` squared; 0 where there is no tissue.
    pub(crate) fn cut(&self, tissue: &Array2<u8>, size: usize) -> Array2<u8> {
        let (h, w) = tissue.dim();
        let mut noise = Noise::new(size as u64);
        Array2::from_shape_fn((size, size), |(y, x)| {
            let p = Xy::new(x as f64, y as f64);
            let Some(t) = self.to_tissue(p) else { return self.damage.grey(p, &mut noise) };
            let (c, r) = (t.x.floor(), t.y.floor());
            if c < 0.0 || r < 0.0 || c + 1.0 >= w as f64 || r + 1.0 >= h as f64 {
                return 0;
            }
            let (c, r, u, v) = (c as usize, r as usize, t.x - c, t.y - r);
            let at = |y: usize, x: usize| f64::from(tissue[[y, x]]);
            let value = (at(r, c) * (1.0 - u) + at(r, c + 1) * u) * (1.0 - v)
                + (at(r + 1, c) * (1.0 - u) + at(r + 1, c + 1) * u) * v;
            (self.grey.of(value) + 0.5).clamp(1.0, 255.0) as u8
        })
    }
}

/// What the aligner is given: the mean of `s` squared boxes; 0 where less than half of one is filled.
pub(crate) fn view(serial: u32, image: &Array2<u8>, s: usize) -> SectionView {
    let (h, w) = (image.nrows() / s, image.ncols() / s);
    let image = Array2::from_shape_fn((h, w), |(y, x)| {
        let (mut sum, mut n) = (0u32, 0u32);
        for r in y * s..(y + 1) * s {
            for c in x * s..(x + 1) * s {
                sum += u32::from(image[[r, c]]);
                n += u32::from(image[[r, c]] > 0);
            }
        }
        if 2 * n < (s * s) as u32 { 0 } else { ((sum + n / 2) / n) as u8 }
    });
    SectionView { serial: SerialIndex(serial), name: format!("s{serial:03}"), image, origin: Xy::new(0, 0) }
}
