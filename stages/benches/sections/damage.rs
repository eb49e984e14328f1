//! Cracks, folds and dirt of a section, and its grey values.

use kinesin_stream::geometry::Xy;

use super::Noise;

/// A crack (tissue parted, resin between) or a fold (tissue lost under a dark band) along a wavy line through the whole section.
#[derive(Clone)]
pub(crate) struct Cut {
    /// A point of the line.
    pub(crate) through: Xy<f64>,
    /// Direction of its normal.
    pub(crate) degrees: f64,
    /// Both sides move apart by this in all (crack), or towards each other by minus this (fold).
    pub(crate) opening: f64,
}

/// Half width of the dark band of a fold as a part of the tissue lost.
const BAND: f64 = 0.4;

impl Cut {
    fn normal(&self) -> Xy<f64> {
        let (sin, cos) = self.degrees.to_radians().sin_cos();
        Xy::new(cos, sin)
    }

    /// Signed distance from the line, along the normal.
    fn distance(&self, p: Xy<f64>) -> f64 {
        let (n, d) = (self.normal(), p - self.through);
        let along = d.y * n.x - d.x * n.y;
        d.x * n.x + d.y * n.y - 18.0 * (along / 130.0).sin()
    }

    /// Half width of what cannot be seen.
    fn half(&self) -> f64 {
        if self.opening > 0.0 { self.opening / 2.0 } else { -BAND * self.opening }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Damage {
    pub(crate) cut: Option<Cut>,
    /// Centres and radii of dark spots.
    pub(crate) spots: Vec<(Xy<f64>, f64)>,
}

impl Damage {
    pub(crate) fn cut(x: f64, y: f64, degrees: f64, opening: f64) -> Self {
        Self { cut: Some(Cut { through: Xy::new(x, y), degrees, opening }), spots: vec![] }
    }

    /// `n` spots of 20 to 90 px.
    pub(crate) fn dirt(n: usize, size: f64, seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let mut at = || size * (0.5 + 0.5 * noise.even());
        let centres: Vec<Xy<f64>> = (0..n).map(|_| Xy::new(at(), at())).collect();
        let spots = centres.into_iter().map(|c| (c, 55.0 + 35.0 * noise.even())).collect();
        Self { cut: None, spots }
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.cut.is_some() || !self.spots.is_empty()
    }

    /// Where a section pixel lay before it was damaged; none where nothing of it is seen.
    pub(super) fn heal(&self, p: Xy<f64>) -> Option<Xy<f64>> {
        if self.near(p, 0.0) {
            return None;
        }
        Some(self.cut.as_ref().map_or(p, |c| p - c.normal() * (c.distance(p).signum() * c.opening / 2.0)))
    }

    /// Where it lies after; none where it is lost.
    pub(super) fn part(&self, p: Xy<f64>) -> Option<Xy<f64>> {
        let Some(c) = &self.cut else { return Some(p) };
        let d = c.distance(p);
        (c.opening > 0.0 || d.abs() > -c.opening / 2.0).then(|| p + c.normal() * (d.signum() * c.opening / 2.0))
    }

    /// Whether damage is within `margin`.
    pub(super) fn near(&self, p: Xy<f64>, margin: f64) -> bool {
        self.cut.as_ref().is_some_and(|c| c.distance(p).abs() < c.half() + margin)
            || self.spots.iter().any(|(c, r)| (p - *c).norm() < r + margin)
    }

    /// Grey value of a damaged pixel: bright resin, dark folds and dirt.
    pub(super) fn grey(&self, p: Xy<f64>, noise: &mut Noise) -> u8 {
        let crack = self.cut.as_ref().is_some_and(|c| c.opening > 0.0 && c.distance(p).abs() < c.half());
        (if crack { 215.0 } else { 35.0 } + 6.0 * noise.even()) as u8
    }
}

/// What becomes of a grey value.
#[derive(Clone, Copy)]
pub(crate) enum Grey {
    Same,
    Inverted,
    Gamma(f64),
}

impl Grey {
    pub(super) fn of(self, v: f64) -> f64 {
        match self {
            Self::Same => v,
            Self::Inverted => 256.0 - v,
            Self::Gamma(g) => 255.0 * (v / 255.0).powf(g),
        }
    }
}
