//! Tiles within a section: how far each lies from where it belongs, and how well neighbours agree.
//!
//! * **Place error**: over a grid of points in every placed tile, the distance between where the result puts the point and
//!   where it is, after the one rigid (or affine) map of the section that fits best ([`gauge`](super::gauge)).
//! * **Seam error**: for tissue seen in two tiles, the distance between the two places that the result gives it. It needs no
//!   fit, and is what the eye sees.

use std::collections::BTreeMap;

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Map, TileToSection};
use kinesin_stream::plan::{PlannedTile, SectionPlan};
use serde::{Deserialize, Serialize};

use super::gauge::{Freedom, fit};
use super::{Errors, Spread};

/// Points along each side of a tile.
const POINTS: usize = 7;

/// Errors of one or more sections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacementErrors {
    promised: usize,
    placed: usize,
    rigid: Errors,
    affine: Errors,
    seam: Errors,
}

/// What is told of them, pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacementScore {
    /// Tiles promised, with a true place.
    pub promised: usize,
    /// Tiles that the result places.
    pub placed: usize,
    /// Place error after a turn and a shift of each section.
    pub rigid: Spread,
    /// Place error after an affine map of each section.
    pub affine: Spread,
    /// Seam error.
    pub seam: Spread,
}

/// A tile that both place.
struct Pair<'a> {
    size: Xy<f64>,
    found: &'a Map,
    truth: &'a Map,
    /// Rectangle around it in true section pixels.
    low: Xy<f64>,
    high: Xy<f64>,
}

/// The nominal places as a result: what every method has to be better than.
pub fn nominal(plan: &SectionPlan) -> BTreeMap<String, TileToSection> {
    let map = |t: &PlannedTile| TileToSection(Map::Affine(Affine::translation(t.nominal)));
    plan.tiles().map(|t| (t.name.clone(), map(t))).collect()
}

/// Evenly spaced points of a tile, corners included.
pub(super) fn grid(size: Xy<f64>) -> impl Iterator<Item = Xy<f64>> {
    let step = |i: usize, side: f64| i as f64 / (POINTS - 1) as f64 * (side - 1.0);
    (0..POINTS * POINTS).map(move |i| Xy::new(step(i % POINTS, size.x), step(i / POINTS, size.y)))
}

/// Whether a point lies on a tile of this size.
pub(super) fn on_tile(p: Xy<f64>, size: Xy<f64>) -> bool {
    p.x >= 0.0 && p.y >= 0.0 && p.x <= size.x - 1.0 && p.y <= size.y - 1.0
}

impl PlacementErrors {
    /// Errors of one section. Tiles without a true place are not scored; tiles that the result does not place are only
    /// counted.
    pub fn of(
        plan: &SectionPlan,
        found: &BTreeMap<String, TileToSection>,
        truth: &BTreeMap<String, TileToSection>,
    ) -> Self {
        let promised = plan.tiles().filter(|t| truth.contains_key(&t.name)).count();
        let both = plan.tiles().filter_map(|t| Some((t, &found.get(&t.name)?.0, &truth.get(&t.name)?.0)));
        let pairs: Vec<Pair<'_>> = both.map(|(t, found, truth)| Pair::new(t.size, found, truth)).collect();
        let points: Vec<_> =
            pairs.iter().flat_map(|t| grid(t.size).map(|p| (t.found.apply(p), t.truth.apply(p)))).collect();
        let after = |freedom| -> Errors {
            let gauge = fit(&points, freedom);
            points.iter().map(|(found, truth)| (gauge.apply(*found) - *truth).norm()).collect()
        };
        let (rigid, affine) = (after(Freedom::Rigid), after(Freedom::Affine));
        Self { promised, placed: pairs.len(), rigid, affine, seam: seams(&pairs) }
    }

    /// Adds those of another section.
    pub fn extend(&mut self, other: &Self) {
        self.promised += other.promised;
        self.placed += other.placed;
        self.rigid.extend(&other.rigid);
        self.affine.extend(&other.affine);
        self.seam.extend(&other.seam);
    }

    /// The score of all points together.
    pub fn score(&self) -> PlacementScore {
        let Self { promised, placed, .. } = *self;
        PlacementScore {
            promised,
            placed,
            rigid: self.rigid.spread(),
            affine: self.affine.spread(),
            seam: self.seam.spread(),
        }
    }
}

impl<'a> Pair<'a> {
    fn new(size: Xy<u32>, found: &'a Map, truth: &'a Map) -> Self {
        let size = Xy::new(f64::from(size.x), f64::from(size.y));
        let ends = |pick: fn(f64, f64) -> f64, start: f64| {
            grid(size)
                .map(|p| truth.apply(p))
                .fold(Xy::new(start, start), |a, b| Xy::new(pick(a.x, b.x), pick(a.y, b.y)))
        };
        Self { size, found, truth, low: ends(f64::min, f64::INFINITY), high: ends(f64::max, f64::NEG_INFINITY) }
    }

    fn may_hold(&self, q: Xy<f64>) -> bool {
        q.x >= self.low.x && q.x <= self.high.x && q.y >= self.low.y && q.y <= self.high.y
    }
}

fn seams(pairs: &[Pair<'_>]) -> Errors {
    // Sorted by their left edges, a tile has to look only at those that begin before it ends.
    let mut order: Vec<&Pair<'_>> = pairs.iter().collect();
    order.sort_by(|a, b| a.low.x.total_cmp(&b.low.x).then(a.low.y.total_cmp(&b.low.y)));
    let mut errors = Errors::default();
    for (i, a) in order.iter().enumerate() {
        let near = order[i + 1..].iter().take_while(|b| b.low.x <= a.high.x);
        for b in near.filter(|b| b.low.y <= a.high.y && b.high.y >= a.low.y) {
            between(a, b, &mut errors);
            between(b, a, &mut errors);
        }
    }
    errors
}

/// Points of `a` that `b` shows too.
fn between(a: &Pair<'_>, b: &Pair<'_>, errors: &mut Errors) {
    for p in grid(a.size) {
        let q = a.truth.apply(p);
        if !b.may_hold(q) {
            continue;
        }
        let other = b.truth.invert_at(q, q - b.low).filter(|o| on_tile(*o, b.size));
        if let Some(other) = other {
            errors.push((a.found.apply(p) - b.found.apply(other)).norm());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
    use kinesin_stream::plan::MfovPlan;

    use super::*;

    /// Two by two tiles of 101 x 81 px that overlap by 21 px.
    pub(in super::super) fn plan(serial: u32) -> SectionPlan {
        let mfov = MfovId::new(SectionId(serial), RegionId(0), 0);
        let tiles = (0..4u16).map(|i| PlannedTile {
            key: TileKey { mfov, beam: BeamId(i) },
            name: format!("t{i}"),
            nominal: Xy::new(f64::from(i % 2) * 80.0, f64::from(i / 2) * 60.0),
            size: Xy::new(101, 81),
        });
        let mfovs = vec![MfovPlan { id: mfov, revision: 0, tiles: tiles.collect() }];
        SectionPlan {
            section: SectionId(serial),
            serial: SerialIndex(serial),
            name: format!("s{serial}"),
            version: 0,
            mfovs,
        }
    }

    fn moved(truth: &BTreeMap<String, TileToSection>, by: &Affine) -> BTreeMap<String, TileToSection> {
        let image = |m: &TileToSection| match &m.0 {
            Map::Affine(a) => TileToSection(Map::Affine(a.then(by))),
            Map::Grid(_) => unreachable!("nominal places are affine"),
        };
        truth.iter().map(|(name, m)| (name.clone(), image(m))).collect()
    }

    #[test]
    fn a_result_that_lies_elsewhere_as_a_whole_has_no_error() {
        let plan = plan(0);
        let truth = nominal(&plan);
        let turned = moved(&truth, &Affine::rotation(0.3, Xy::new(500.0, -90.0)));
        let score = PlacementErrors::of(&plan, &turned, &truth).score();
        assert_eq!((score.promised, score.placed, score.rigid.count), (4, 4, 4 * 49));
        assert!(score.rigid.max < 1e-9 && score.affine.max < 1e-9 && score.seam.max < 1e-9, "{score:?}");
        assert!(score.seam.count > 0);
        let larger = moved(&truth, &Affine { rows: [[1.01, 0.0, 0.0], [0.0, 1.01, 0.0]] });
        let score = PlacementErrors::of(&plan, &larger, &truth).score();
        assert!(score.rigid.max > 0.5 && score.affine.max < 1e-9 && score.seam.max < 1e-9, "{score:?}");
    }

    #[test]
    fn a_tile_beside_its_place_shows_in_place_and_seam() {
        let plan = plan(0);
        let truth = nominal(&plan);
        let mut found = truth.clone();
        found.insert("t3".into(), TileToSection(Map::Affine(Affine::translation(Xy::new(80.0 + 3.0, 60.0 + 4.0)))));
        let score = PlacementErrors::of(&plan, &found, &truth).score();
        // The shift is 5 px; half of the best fit's freedom at most hides a part of it.
        assert!(score.rigid.max > 2.0 && score.rigid.max < 5.0, "{score:?}");
        assert!((score.seam.max - 5.0).abs() < 1e-9 && score.seam.median < 5.0 + 1e-9, "{score:?}");
        found.remove("t3");
        let score = PlacementErrors::of(&plan, &found, &truth).score();
        assert_eq!((score.promised, score.placed), (4, 3));
        assert!(score.rigid.max < 1e-9);
    }
}
