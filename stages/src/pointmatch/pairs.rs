//! Which tiles of a section overlap, and which parts of them are needed to match them. Any layout: only places and sizes count.

use std::collections::{BTreeMap, BTreeSet};

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::TileKey;
use kinesin_stream::plan::{PlannedTile, SectionPlan};
use serde::{Deserialize, Serialize};

use super::config::MatchConfig;

/// Two overlapping tiles, the smaller key first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// First tile.
    pub p: TileKey,
    /// Second tile.
    pub q: TileKey,
    /// Nominal shift: a point `x` of p is expected at `x + shift` of q, pixels.
    pub shift: Xy<f64>,
    /// Width and height of p, pixels.
    pub p_size: Xy<u32>,
    /// Width and height of q, pixels.
    pub q_size: Xy<u32>,
}

/// The parts of both tiles that a pair needs, in pixels of each tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripRects {
    /// Part of p.
    pub p: BoxXy,
    /// Part of q.
    pub q: BoxXy,
}

impl Pair {
    /// The common part in pixels of p, were the shift `shift`; `None` where there is none.
    pub fn overlap(&self, shift: Xy<f64>) -> Option<BoxXy> {
        let q = BoxXy {
            min: Xy::new((-shift.x).ceil() as i64, (-shift.y).ceil() as i64),
            max: Xy::new(
                (f64::from(self.q_size.x) - 1.0 - shift.x).floor() as i64 + 1,
                (f64::from(self.q_size.y) - 1.0 - shift.y).floor() as i64 + 1,
            ),
        };
        tile_box(self.p_size).intersect(&q)
    }

    /// Sides, shorter first, of what the nominal places put on top of each other, pixels; where the tiles are apart the shorter one
    /// is less than nothing by as much. The second number is the longer side as a part of the smaller tile there.
    fn nominal(&self) -> (f64, f64) {
        let along = |shift: f64, p: u32, q: u32| {
            let (p, q) = (f64::from(p), f64::from(q));
            let common = p.min(q - shift) - (-shift).max(0.0);
            (common, common / p.min(q))
        };
        let x = along(self.shift.x, self.p_size.x, self.q_size.x);
        let y = along(self.shift.y, self.p_size.y, self.q_size.y);
        (x.0.min(y.0), x.1.max(y.1))
    }

    /// Whether the nominal places make the tiles overlap by enough to be matched. Others overlap only where the stage errs: that
    /// they do not is no fault.
    pub fn expected(&self, config: &MatchConfig) -> bool {
        let (short, long) = self.nominal();
        short >= config.min_overlap_px as f64 && long >= config.min_overlap_fraction
    }

    /// Whether they would, were the nominal shift wrong by as much as is looked for.
    fn possible(&self, config: &MatchConfig) -> bool {
        let (short, long) = self.nominal();
        short + self.widest(config) >= config.min_overlap_px as f64 && long >= config.min_overlap_fraction
    }

    /// Largest error of the nominal shift that is looked for at last, pixels.
    pub(super) fn widest(&self, config: &MatchConfig) -> f64 {
        2.0 * self.margin(config)
    }

    /// Largest error of the nominal shift that is looked for at first, along x and y alike, pixels.
    pub fn margin(&self, config: &MatchConfig) -> f64 {
        config.margin(self.p_size.x.max(self.p_size.y).max(self.q_size.x).max(self.q_size.y))
    }
}

/// The rectangle of all pixels of a tile.
pub(super) fn tile_box(size: Xy<u32>) -> BoxXy {
    BoxXy { min: Xy::new(0, 0), max: Xy::new(i64::from(size.x), i64::from(size.y)) }
}

/// The rectangles of both tiles that may show common tissue where the nominal shift is wrong by up to `margin` pixels.
///
/// Only these need to be read. [`Matcher::rects`](super::Matcher::rects) gives those that a configuration asks for.
pub fn overlap_rects(pair: &Pair, margin: f64) -> StripRects {
    let grown = |of: Xy<u32>, other: Xy<u32>, shift: Xy<f64>| {
        let reach = BoxXy {
            min: Xy::new((-shift.x - margin).floor() as i64, (-shift.y - margin).floor() as i64),
            max: Xy::new(
                (f64::from(other.x) - shift.x + margin).ceil() as i64,
                (f64::from(other.y) - shift.y + margin).ceil() as i64,
            ),
        };
        tile_box(of).intersect(&reach).unwrap_or_default()
    };
    StripRects { p: grown(pair.p_size, pair.q_size, pair.shift), q: grown(pair.q_size, pair.p_size, pair.shift * -1.0) }
}

/// All pairs of present tiles whose nominal places overlap enough, or would within the errors of the stage that are looked
/// for, sorted by (p, q). [`Pair::expected`] tells them apart.
///
/// Of several attempts of one beam at one stop only the last present one counts: drop those that inspection refused from
/// `present` before. Keys that the plan does not know are left out.
pub fn pairs(plan: &SectionPlan, present: &BTreeSet<TileKey>, config: &MatchConfig) -> Vec<Pair> {
    let mut tiles: Vec<&PlannedTile> = current(present).into_values().filter_map(|k| plan.tile(k)).collect();
    // A sweep over x keeps this far from quadratic for wide sections.
    tiles.sort_by(|a, b| a.nominal.x.total_cmp(&b.nominal.x).then(a.key.cmp(&b.key)));
    let longest = tiles.iter().map(|t| t.size.x.max(t.size.y)).max().unwrap_or(0);
    let widest = f64::from(longest) + 2.0 * config.margin(longest);
    let mut found = Vec::new();
    for (i, a) in tiles.iter().enumerate() {
        let near = tiles[i + 1..].iter().take_while(|b| b.nominal.x < a.nominal.x + widest);
        found.extend(near.filter_map(|b| if a.key < b.key { pair_of(a, b, config) } else { pair_of(b, a, config) }));
    }
    found.sort_by_key(|p| (p.p, p.q));
    found
}

/// The tiles of one section that have come so far, by place: each new one finds those beside it without looking at far ones.
///
/// However the tiles are added, the pairs that were given and of which both tiles are [`Neighbours::current`] are those that
/// [`pairs`] gives for all of them at once.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Side of a cell, pixels.
    side: f64,
    /// Longest side of a tile so far, pixels.
    longest: f64,
    cells: BTreeMap<(i64, i64), Vec<PlannedTile>>,
    /// By first attempt, the last one that came.
    current: BTreeMap<TileKey, TileKey>,
}

impl Neighbours {
    /// No tile yet; `longest` is the usual longest side of a tile, pixels, and matters for speed only.
    pub fn new(longest: u32) -> Self {
        Self { side: f64::from(longest.max(1)), longest: 0.0, cells: BTreeMap::new(), current: BTreeMap::new() }
    }

    /// Adds a tile; gives its pairs with those that came before. It takes the place of its earlier attempts; where a later one
    /// is there already nothing changes.
    pub fn add(&mut self, tile: &PlannedTile, config: &MatchConfig) -> Vec<Pair> {
        match self.current.insert(tile.key.first(), tile.key) {
            Some(there) if there >= tile.key => {
                self.current.insert(there.first(), there);
                return Vec::new();
            }
            // Attempts of a place are planned at the same place.
            Some(there) => {
                let cell = self.cell(tile);
                self.cells.entry(cell).or_default().retain(|t| t.key != there);
            }
            None => {}
        }
        self.longest = self.longest.max(f64::from(tile.size.x.max(tile.size.y)));
        let (x, y) = self.cell(tile);
        let reach = ((self.longest + 2.0 * config.margin(self.longest as u32)) / self.side).ceil() as i64;
        let beside = (y - reach..=y + reach).flat_map(|y| (x - reach..=x + reach).map(move |x| (x, y)));
        let beside = beside.filter_map(|at| self.cells.get(&at)).flatten();
        let pair = |b: &PlannedTile| if tile.key < b.key { pair_of(tile, b, config) } else { pair_of(b, tile, config) };
        let found = beside.filter_map(pair).collect();
        self.cells.entry((x, y)).or_default().push(tile.clone());
        found
    }

    /// Whether no later attempt of the tile came.
    pub fn current(&self, key: TileKey) -> bool {
        self.current.get(&key.first()) == Some(&key)
    }

    fn cell(&self, tile: &PlannedTile) -> (i64, i64) {
        ((tile.nominal.x / self.side).floor() as i64, (tile.nominal.y / self.side).floor() as i64)
    }
}

/// The last present attempt of each beam at each stop.
fn current(present: &BTreeSet<TileKey>) -> BTreeMap<TileKey, TileKey> {
    // Ascending order: a later attempt overwrites an earlier one.
    present.iter().map(|&k| (k.first(), k)).collect()
}

fn pair_of(p: &PlannedTile, q: &PlannedTile, config: &MatchConfig) -> Option<Pair> {
    let pair = Pair { p: p.key, q: q.key, shift: p.nominal - q.nominal, p_size: p.size, q_size: q.size };
    pair.possible(config).then_some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, SerialIndex};
    use kinesin_stream::plan::MfovPlan;

    fn plan(places: &[(f64, f64)], size: Xy<u32>, attempts: u16) -> SectionPlan {
        let id = MfovId::new(SectionId(3), RegionId(0), 0);
        let tile = |(beam, &(x, y)): (usize, &(f64, f64)), attempt| PlannedTile {
            key: TileKey { mfov: id.at(Attempt(attempt)), beam: BeamId(beam as u16) },
            name: format!("{beam}-{attempt}"),
            nominal: Xy::new(x, y),
            size,
        };
        let stop = |attempt| MfovPlan {
            revision: 0,
            id: id.at(Attempt(attempt)),
            tiles: places.iter().enumerate().map(|t| tile(t, attempt)).collect(),
        };
        let (section, serial) = (SectionId(3), SerialIndex(0));
        SectionPlan { section, serial, name: "s".into(), version: 0, mfovs: (0..attempts).map(stop).collect() }
    }

    fn keys(plan: &SectionPlan) -> BTreeSet<TileKey> {
        plan.tiles().map(|t| t.key).collect()
    }

    #[test]
    fn a_square_grid_has_side_pairs_and_a_hexagon_six_around_each() {
        let grid: Vec<_> = (0..12).map(|i| (f64::from(i % 4) * 92.0, f64::from(i / 4) * 92.0)).collect();
        let plan_of = |places: &[(f64, f64)], h| plan(places, Xy::new(100, h), 1);
        let grid = plan_of(&grid, 100);
        // 3 rows of 3 and 4 columns of 2; corners overlap by 8 px only along both axes.
        assert_eq!(pairs(&grid, &keys(&grid), &MatchConfig::default()).len(), 9 + 8);
        let hexagon: Vec<_> = [(0, 0), (2, 0), (1, 1), (-1, 1), (-2, 0), (-1, -1), (1, -1)]
            .iter()
            .map(|&(x, y)| (f64::from(x) * 46.0, f64::from(y) * 80.0))
            .collect();
        let hexagon = plan_of(&hexagon, 88);
        let found = pairs(&hexagon, &keys(&hexagon), &MatchConfig::default());
        assert_eq!(found.len(), 12);
        assert!(found.iter().all(|p| p.p < p.q));
        assert!(found.windows(2).all(|w| (w[0].p, w[0].q) < (w[1].p, w[1].q)));
    }

    #[test]
    fn tiles_that_are_apart_by_less_than_the_stage_may_err_are_a_pair_that_nobody_expects() {
        // Twice 8 px are looked for, and 8 px have to overlap.
        let config = MatchConfig { margin_fraction: 0.0, ..MatchConfig::default() };
        for (apart, given, expected) in [(-9.0, 1, true), (-7.0, 1, false), (7.0, 1, false), (9.0, 0, false)] {
            for place in [(100.0 + apart, 30.0), (30.0, 100.0 + apart)] {
                let plan = plan(&[(0.0, 0.0), place], Xy::new(100, 100), 1);
                let found = pairs(&plan, &keys(&plan), &config);
                assert_eq!(found.len(), given, "{apart} px apart");
                assert!(found.iter().all(|p| p.expected(&config) == expected), "{apart} px apart");
            }
        }
    }

    #[test]
    fn a_retake_replaces_the_tile_and_never_pairs_with_it() {
        let plan = plan(&[(0.0, 0.0), (80.0, 0.0)], Xy::new(100, 100), 2);
        let mut present = keys(&plan);
        let found = pairs(&plan, &present, &MatchConfig::default());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].p.mfov.attempt, found[0].q.mfov.attempt), (Attempt(1), Attempt(1)));
        present.retain(|k| k.mfov.attempt == Attempt(0) || k.beam == BeamId(0));
        let found = pairs(&plan, &present, &MatchConfig::default());
        assert_eq!((found[0].p.mfov.attempt, found[0].q.mfov.attempt), (Attempt(0), Attempt(1)));
    }

    #[test]
    fn tiles_added_one_by_one_in_any_order_give_the_pairs_of_all_at_once() {
        let mut seed = 7_u64;
        let mut draw = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for round in 0..20 {
            let places: Vec<_> = (0..60).map(|_| (draw(900) as f64 - 300.0, draw(700) as f64 - 200.0)).collect();
            let plan = plan(&places, Xy::new(100, 80 + 10 * round), 3);
            let mut tiles: Vec<&PlannedTile> =
                plan.tiles().filter(|t| t.key.mfov.attempt == Attempt(0) || draw(3) == 0).collect();
            (1..tiles.len()).rev().for_each(|i| tiles.swap(i, draw(i as u64 + 1) as usize));
            // A cell smaller than the tiles is as good as one that fits.
            let mut near = Neighbours::new(if round % 2 == 0 { 100 } else { 30 });
            let given: Vec<Pair> = tiles.iter().flat_map(|t| near.add(t, &MatchConfig::default())).collect();
            let mut counted: Vec<Pair> = given.into_iter().filter(|p| near.current(p.p) && near.current(p.q)).collect();
            counted.sort_by_key(|p| (p.p, p.q));
            let all = pairs(&plan, &tiles.iter().map(|t| t.key).collect(), &MatchConfig::default());
            assert!(all.len() > 40);
            assert_eq!(counted, all);
        }
    }

    #[test]
    fn rects_hold_the_overlap_at_any_shift_within_the_margin() {
        let plan = plan(&[(0.0, 0.0), (80.5, -7.25)], Xy::new(100, 90), 1);
        let pair = pairs(&plan, &keys(&plan), &MatchConfig::default())[0];
        let rects = overlap_rects(&pair, 6.0);
        for (ex, ey) in [(-6.0, 6.0), (6.0, -6.0), (6.0, 6.0), (0.0, 0.0)] {
            let shift = pair.shift + Xy::new(ex, ey);
            let common = pair.overlap(shift).expect("still overlapping");
            assert_eq!(common.intersect(&rects.p), Some(common));
            let in_q = BoxXy {
                min: Xy::new(
                    (common.min.x as f64 + shift.x).floor() as i64,
                    (common.min.y as f64 + shift.y).floor() as i64,
                ),
                max: Xy::new(
                    (common.max.x as f64 + shift.x).ceil() as i64,
                    (common.max.y as f64 + shift.y).ceil() as i64,
                ),
            };
            let inside = in_q.intersect(&tile_box(pair.q_size)).expect("inside");
            assert_eq!(inside.intersect(&rects.q), Some(inside));
        }
        assert!(rects.p.size().x <= 34, "a strip, not the tile: {rects:?}");
    }
}
