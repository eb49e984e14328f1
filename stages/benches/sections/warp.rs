//! A turn, a shift and a smooth field: section pixel to tissue pixel.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Grid};

use super::Noise;

/// Distance of the random nodes of the field, pixels.
const NODE: f64 = 400.0;

#[derive(Clone)]
pub(crate) struct Warp {
    stiff: Affine,
    back: Affine,
    field: Grid,
}

impl Warp {
    /// Of sections of `size` squared whose tissue plane is larger by `rim` all around: turned by up to `degrees` about the middle, moved by up to
    /// `shift`, bent by a field of sd `sd` in each coordinate.
    pub(crate) fn new(seed: u64, (size, rim): (usize, usize), degrees: f64, shift: f64, sd: f64) -> Self {
        let mut noise = Noise::new(seed);
        let centre = Xy::new(size as f64 / 2.0, size as f64 / 2.0);
        let turn = Affine::rotation((degrees * noise.even()).to_radians(), centre);
        let moved = Xy::new(shift * noise.even() + rim as f64, shift * noise.even() + rim as f64);
        let stiff = turn.then(&Affine::translation(moved));
        let n = size / NODE as usize + 5;
        let nodes: Vec<Xy<f64>> = (0..n * n).map(|_| Xy::new(sd * noise.normal(), sd * noise.normal())).collect();
        let spline = |p: Xy<f64>| {
            let (u, v) = (p.x / NODE + 1.5, p.y / NODE + 1.5);
            let (wx, wy) = (catmull_rom(u.fract()), catmull_rom(v.fract()));
            let at = |i: usize, j: usize| nodes[(v as usize - 1 + j) * n + u as usize - 1 + i];
            (0..16).fold(Xy::default(), |s, k| s + at(k % 4, k / 4) * (wx[k % 4] * wy[k / 4]))
        };
        let axis: Vec<f64> = (0..=size / 10 + 20).map(|i| i as f64 * 10.0 - 100.0).collect();
        let field = Grid::from_fn(axis.clone(), axis, spline).expect("axes increase");
        Self { stiff, back: stiff.inverse().expect("a turn"), field }
    }

    /// The same, after `before`: for turned, mirrored and scaled sections.
    pub(crate) fn after(&self, before: &Affine) -> Self {
        // The field is small and smooth: it is kept where it lies.
        let stiff = before.then(&self.stiff);
        Self { stiff, back: stiff.inverse().expect("regular"), field: self.field.clone() }
    }

    pub(crate) fn to_tissue(&self, p: Xy<f64>) -> Xy<f64> {
        self.stiff.apply(p + self.field.apply(p))
    }

    pub(crate) fn to_section(&self, t: Xy<f64>) -> Xy<f64> {
        let goal = self.back.apply(t);
        (0..20).fold(goal, |p, _| goal - self.field.apply(p))
    }
}

/// Weights that keep the sd of random nodes and make a smooth curve.
fn catmull_rom(t: f64) -> [f64; 4] {
    [
        0.5 * (-t + 2.0 * t * t - t * t * t),
        0.5 * (2.0 - 5.0 * t * t + 3.0 * t * t * t),
        0.5 * (t + 4.0 * t * t - 3.0 * t * t * t),
        0.5 * (-t * t + t * t * t),
    ]
}
