//! Sections against each other, seen through the whole chain of maps.
//!
//! ```text
//! tissue point ─► (true alignment)^-1 ─► (true placement)^-1 ─► tile px ─► (found placement) ─► (found alignment) ─► volume px
//! ```
//! * **Residual**: the distance between the volume places that the result gives to one tissue point (x, y) seen in two
//!   neighbouring sections. It needs no fit; where a section is lost, its neighbours are compared with each other.
//! * **Volume error**: the distance between volume and tissue place, after the one map of the whole volume that fits best: it
//!   shows drift, which residuals cannot.

use std::collections::BTreeMap;

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Map, SectionToVolume, TileToSection};
use kinesin_stream::plan::SectionPlan;
use serde::{Deserialize, Serialize};

use super::gauge::{Freedom, fit};
use super::placement::{grid, on_tile};
use super::{Errors, Spread};

/// One section, with its maps as found and as they are.
#[derive(Clone, Debug)]
pub struct AlignedSection {
    tiles: Vec<Tile>,
    found: Map,
    truth: Map,
    serial: u32,
}

#[derive(Clone, Debug)]
struct Tile {
    size: Xy<f64>,
    found: Map,
    truth: Map,
    /// Rectangle around it in true section pixels.
    low: Xy<f64>,
    high: Xy<f64>,
}

/// What is told of an alignment, pixels of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AlignmentScore {
    /// Sections scored: those that both the result and the truth align.
    pub sections: usize,
    /// Between neighbouring sections.
    pub residual: Spread,
    /// Against the tissue, after a turn and a shift of the volume.
    pub rigid: Spread,
    /// Against the tissue, after an affine map of the volume.
    pub affine: Spread,
}

/// Where a section's tiles and the section itself lie, as one side says.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Tile pixel to section pixel, by tile name.
    pub placements: &'a BTreeMap<String, TileToSection>,
    /// Section pixel to volume pixel.
    pub alignment: &'a SectionToVolume,
}

impl AlignedSection {
    /// Of the tiles that both sides place.
    pub fn new(plan: &SectionPlan, found: Side<'_>, truth: Side<'_>) -> Self {
        let tiles = plan.tiles().filter_map(|t| {
            let size = Xy::new(f64::from(t.size.x), f64::from(t.size.y));
            let (found, truth) = (found.placements.get(&t.name)?.0.clone(), truth.placements.get(&t.name)?.0.clone());
            let places: Vec<Xy<f64>> = grid(size).map(|p| truth.apply(p)).collect();
            let end = |pick: fn(f64, f64) -> f64| {
                places.iter().copied().reduce(|a, b| Xy::new(pick(a.x, b.x), pick(a.y, b.y)))
            };
            Some(Tile { size, found, low: end(f64::min)?, high: end(f64::max)?, truth })
        });
        let tiles = tiles.collect();
        Self { tiles, found: found.alignment.0.clone(), truth: truth.alignment.0.clone(), serial: plan.serial.0 }
    }

    /// Tissue places with the volume places that the result gives them, over a grid in every tile.
    fn points(&self) -> impl Iterator<Item = (Xy<f64>, Xy<f64>)> {
        let both = |t: &Tile, p| (self.truth.apply(t.truth.apply(p)), self.found.apply(t.found.apply(p)));
        self.tiles.iter().flat_map(move |t| grid(t.size).map(move |p| both(t, p)))
    }

    /// The volume place that the result gives to a tissue point, through the tile that shows it nearest to its middle.
    fn place(&self, tissue: Xy<f64>) -> Option<Xy<f64>> {
        let section = self.truth.invert_at(tissue, tissue)?;
        let near = self
            .tiles
            .iter()
            .filter(|t| section.x >= t.low.x && section.x <= t.high.x && section.y >= t.low.y && section.y <= t.high.y);
        let seen = near.filter_map(|t| {
            let p = t.truth.invert_at(section, section - t.low).filter(|p| on_tile(*p, t.size))?;
            let aside = (p - t.size * 0.5).norm();
            Some((aside, t, p))
        });
        let (_, tile, p) = seen.min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(self.found.apply(tile.found.apply(p)))
    }
}

/// Residuals between two sections.
pub fn residuals(a: &AlignedSection, b: &AlignedSection) -> Errors {
    a.points().filter_map(|(tissue, volume)| Some((b.place(tissue)? - volume).norm())).collect()
}

/// Scores all sections of a volume; the order in which they are given does not matter.
pub fn score(sections: &[AlignedSection]) -> AlignmentScore {
    let mut order: Vec<&AlignedSection> = sections.iter().collect();
    order.sort_by_key(|s| s.serial);
    let mut residual = Errors::default();
    for pair in order.windows(2) {
        residual.extend(&residuals(pair[0], pair[1]));
    }
    let points: Vec<_> = order.iter().flat_map(|s| s.points()).map(|(tissue, volume)| (volume, tissue)).collect();
    let after = |freedom| {
        let gauge = fit(&points, freedom);
        points.iter().map(|(volume, tissue)| (gauge.apply(*volume) - *tissue).norm()).collect::<Errors>().spread()
    };
    let (rigid, affine) = (after(Freedom::Rigid), after(Freedom::Affine));
    AlignmentScore { sections: order.len(), residual: residual.spread(), rigid, affine }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::map::Affine;

    use super::super::placement::nominal;
    use super::super::placement::tests::plan;
    use super::*;

    fn shift(x: f64, y: f64) -> SectionToVolume {
        SectionToVolume(Map::Affine(Affine::translation(Xy::new(x, y))))
    }

    /// Sections that truly lie at `(10 z, 0)` and are said to lie at `said(z)`.
    fn sections(said: impl Fn(u32) -> SectionToVolume) -> Vec<AlignedSection> {
        let of = |z: u32| {
            let (plan, truth) = (plan(z), shift(10.0 * f64::from(z), 0.0));
            let tiles = nominal(&plan);
            let found = Side { placements: &tiles, alignment: &said(z) };
            AlignedSection::new(&plan, found, Side { placements: &tiles, alignment: &truth })
        };
        (0..4).map(of).collect()
    }

    #[test]
    fn the_truth_moved_as_a_whole_has_no_error() {
        let score = score(&sections(|z| shift(10.0 * f64::from(z) + 300.0, -20.0)));
        assert_eq!(score.sections, 4);
        assert!(score.residual.count > 100 && score.residual.max < 1e-9 && score.rigid.max < 1e-9, "{score:?}");
    }

    #[test]
    fn a_step_shows_in_the_residual_and_drift_in_the_volume_error() {
        let step = score(&sections(|z| shift(10.0 * f64::from(z) + if z == 2 { 3.0 } else { 0.0 }, 0.0)));
        assert!((step.residual.max - 3.0).abs() < 1e-9 && step.residual.median > 2.9, "{step:?}");
        let drift = score(&sections(|z| shift(11.0 * f64::from(z), 0.0)));
        assert!((drift.residual.rms - 1.0).abs() < 1e-9, "{drift:?}");
        // Shifts of 0, 1, 2, 3 px about their mean.
        assert!((drift.rigid.max - 1.5).abs() < 0.2, "{drift:?}");
        let mut shuffled = sections(|z| shift(11.0 * f64::from(z), 0.0));
        shuffled.reverse();
        assert_eq!(score(&shuffled), drift);
    }

    #[test]
    fn tiles_out_of_place_within_a_section_count_too() {
        let (a, b) = (plan(0), plan(1));
        let (tiles, here) = (nominal(&a), shift(0.0, 0.0));
        let truth = Side { placements: &tiles, alignment: &here };
        let moved =
            tiles.keys().map(|n| (n.clone(), TileToSection(Map::Affine(Affine::translation(Xy::new(0.0, 2.0))))));
        let moved: BTreeMap<_, _> = moved.filter(|(n, _)| n == "t0").collect();
        let found = Side { placements: &moved, alignment: &here };
        let errors = residuals(&AlignedSection::new(&a, truth, truth), &AlignedSection::new(&b, found, truth)).spread();
        assert!((errors.median - 2.0).abs() < 1e-9 && errors.count >= 49, "{errors:?}");
    }
}
