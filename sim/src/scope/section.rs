//! Section pixel to volume pixel as it really is: damage undone, smooth deformation, rotation about the middle, shift.
//!
//! ```text
//! volume px = c + R(angle) (q - c) + shift + w(q),     q = section px with folds and cracks undone, c = middle of the region
//! w         = cubic B-spline over nodes `deformation_grid_px` apart with normal values
//! ```
//! Without damage the map *is* a grid, bilinear between nodes at most 32 px apart: what is written as truth is exactly what
//! the pixels were sampled through. A fold or crack is a jump, which a grid can only show as a slope within one cell; the
//! damage is in the truth, too, so that a score can leave those cells out.

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::map::{Grid, Map, SectionToVolume};

use super::config::{DamageKind, SectionsConfig};
use super::damage::TrueDamage;
use super::draw::{Draws, What, Whose};
use super::optics::rounded;

/// Spread of a cubic B-spline whose coefficients have spread 1, averaged over a cell.
const SPLINE_SD: f64 = 0.48;

/// The true map of one section.
#[derive(Clone, Debug)]
pub struct SectionMap {
    origin: Xy<f64>,
    step: f64,
    columns: usize,
    rows: usize,
    nodes: Vec<Xy<f64>>,
    damage: Vec<TrueDamage>,
}

impl SectionMap {
    /// The map of a section whose tiles lie in `extent` about the middle `centre`.
    pub(crate) fn new(
        config: &SectionsConfig,
        damage: Vec<TrueDamage>,
        seed: u64,
        section: u32,
        centre: Xy<f64>,
        extent: BoxXy,
    ) -> Self {
        let mut place = Draws::new(seed, What::SectionPlace, Whose::section(section));
        let angle = place.even(-config.rotation_deg, config.rotation_deg).to_radians();
        let shift =
            Xy::new(place.even(-config.shift_px, config.shift_px), place.even(-config.shift_px, config.shift_px));
        let (sin, cos) = angle.sin_cos();
        let field = Field::new(config, seed, section, extent);
        let step = (config.deformation_grid_px / 12.0).clamp(4.0, 32.0);
        let origin = Xy::new(extent.min.x as f64, extent.min.y as f64);
        let nodes_over = |side: usize| (side as f64 / step).ceil() as usize + 1;
        let (columns, rows) = (nodes_over(extent.size().x).max(2), nodes_over(extent.size().y).max(2));
        let image = |p: Xy<f64>| {
            let d = p - centre;
            let turned = centre + Xy::new(cos * d.x - sin * d.y, sin * d.x + cos * d.y);
            let v = turned + shift + field.at(p);
            Xy::new(rounded(v.x), rounded(v.y))
        };
        let nodes = (0..rows)
            .flat_map(|r| (0..columns).map(move |c| Xy::new(c as f64, r as f64)))
            .map(|i| image(origin + i * step))
            .collect();
        let damage = damage.into_iter().filter(|d| d.kind != DamageKind::Missing).collect();
        Self { origin, step, columns, rows, nodes, damage }
    }

    /// The volume pixel that section pixel `p` shows, `None` where it shows no tissue (in a crack).
    pub fn apply(&self, p: Xy<f64>) -> Option<Xy<f64>> {
        if self.damage.is_empty() {
            return Some(self.smooth(p));
        }
        if self.damage.iter().any(|d| d.gapes(p)) {
            return None;
        }
        Some(self.smooth(self.undone(p)))
    }

    /// As a stored transform; see the top for what becomes of folds and cracks.
    pub fn to_map(&self) -> SectionToVolume {
        let axis = |from: f64, n: usize| (0..n).map(|i| from + i as f64 * self.step).collect();
        let (xs, ys) = (axis(self.origin.x, self.columns), axis(self.origin.y, self.rows));
        let image = |p| {
            let v = self.smooth(self.undone(p));
            Xy::new(rounded(v.x), rounded(v.y))
        };
        SectionToVolume(Map::Grid(Grid::from_fn(xs, ys, image).expect("even axes and finite places")))
    }

    /// Folds, cracks and dirt.
    pub fn damage(&self) -> &[TrueDamage] {
        &self.damage
    }

    /// Part of the light left at section pixel `p`.
    pub(crate) fn shade(&self, p: Xy<f64>) -> f32 {
        self.damage.iter().map(|d| d.shade(p)).product()
    }

    /// The map but for folds and cracks.
    #[inline]
    pub(crate) fn smooth(&self, p: Xy<f64>) -> Xy<f64> {
        let (x, y) = ((p.x - self.origin.x) / self.step, (p.y - self.origin.y) / self.step);
        let c = (x.max(0.0) as usize).min(self.columns - 2);
        let r = (y.max(0.0) as usize).min(self.rows - 2);
        let (u, v) = (x - c as f64, y - r as f64);
        let row = &self.nodes[r * self.columns + c..];
        let (top, bottom) = (&row[..2], &row[self.columns..self.columns + 2]);
        let upper = top[0] * (1.0 - u) + top[1] * u;
        let lower = bottom[0] * (1.0 - u) + bottom[1] * u;
        upper * (1.0 - v) + lower * v
    }

    fn undone(&self, p: Xy<f64>) -> Xy<f64> {
        self.damage.iter().fold(p, |p, d| d.undone(p))
    }
}

/// A smooth random field: a cubic B-spline surface.
struct Field {
    origin: Xy<f64>,
    step: f64,
    columns: usize,
    coefficients: Vec<Xy<f64>>,
}

impl Field {
    fn new(config: &SectionsConfig, seed: u64, section: u32, extent: BoxXy) -> Self {
        let step = config.deformation_grid_px;
        let cells = |side: usize| (side as f64 / step).ceil() as usize + 1;
        let (columns, rows) = (cells(extent.size().x) + 3, cells(extent.size().y) + 3);
        let mut draws = Draws::new(seed, What::Deformation, Whose::section(section));
        let sd = config.deformation_sd_px / SPLINE_SD;
        let coefficients = (0..columns * rows).map(|_| Xy::new(draws.normal(sd), draws.normal(sd))).collect();
        Self { origin: Xy::new(extent.min.x as f64, extent.min.y as f64), step, columns, coefficients }
    }

    /// `p` inside the extent.
    fn at(&self, p: Xy<f64>) -> Xy<f64> {
        let (x, y) = ((p.x - self.origin.x) / self.step, (p.y - self.origin.y) / self.step);
        let (c, r) = (x.floor(), y.floor());
        let (wx, wy) = (spline(x - c), spline(y - r));
        let mut sum = Xy::default();
        for (j, wy) in wy.iter().enumerate() {
            let row = (r as usize + j) * self.columns + c as usize;
            for (i, wx) in wx.iter().enumerate() {
                sum = sum + self.coefficients[row + i] * (wx * wy);
            }
        }
        sum
    }
}

/// Weights of the four coefficients around a place `t` within its cell.
fn spline(t: f64) -> [f64; 4] {
    let s = 1.0 - t;
    [
        s * s * s / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * s * s * s - 6.0 * s * s + 4.0) / 6.0,
        t * t * t / 6.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: BoxXy = BoxXy { min: Xy::new(-300, -200), max: Xy::new(2700, 2200) };
    const CENTRE: Xy<f64> = Xy::new(1200.0, 1000.0);

    #[test]
    fn the_stored_map_is_the_map_itself() {
        let map = SectionMap::new(&SectionsConfig::default(), Vec::new(), 4, 2, CENTRE, EXTENT);
        let stored = map.to_map();
        for p in [Xy::new(-299.0, -199.0), Xy::new(1.3, 7.9), Xy::new(2300.2, 2150.0), Xy::new(2800.0, -240.0)] {
            assert!((stored.0.apply(p) - map.apply(p).expect("no crack")).norm() < 1e-9);
        }
    }

    #[test]
    fn sections_that_lie_as_they_were_cut_are_left_where_they_are() {
        let map = SectionMap::new(&SectionsConfig::IDEAL, Vec::new(), 4, 2, CENTRE, EXTENT);
        let p = Xy::new(123.4, 987.6);
        assert!((map.apply(p).expect("no crack") - p).norm() < 1e-4);
    }

    #[test]
    fn the_deformation_has_the_asked_spread_and_differs_between_sections() {
        let config = SectionsConfig { deformation_sd_px: 6.0, ..SectionsConfig::IDEAL };
        let mut squares = Vec::new();
        for section in 0..40 {
            let map = SectionMap::new(&config, Vec::new(), 11, section, CENTRE, EXTENT);
            for i in 0..30 {
                let p = Xy::new(f64::from(i * 83 % 2400), f64::from(i * 61 % 2000));
                squares.push((map.smooth(p) - p).norm().powi(2) / 2.0);
            }
        }
        let sd = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
        assert!((sd - 6.0).abs() < 0.5, "{sd}");
    }
}
