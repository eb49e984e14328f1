//! Where a scope believes that its tiles lie: beams on hexagonal rings, mFOVs on a hexagon of such hexagons.
//!
//! ```text
//!      . 5 4 .          beam 0 in the middle; axes of the lattice: q to the right, r down and half a tile to the right.
//!       6 0 3           Rows are `pitch.y` apart, tiles of a row `pitch.x`; the pitch is the tile less its overlap.
//!      . 1 2 .          An mFOV with n rings repeats after (n, n + 1) and (2 n + 1, -n) lattice steps without gap.
//! ```
//! Units: pixels of the scope. The ideal section frame is the volume frame: a section that was cut, mounted and imaged
//! without any error has its tiles where they belong in the volume.

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::plan::{MfovPlan, PlannedTile, SectionPlan};

use super::config::LayoutConfig;

/// Height of a tile over its width where the simulator chooses: close to the hexagon's half root of 3, like real tiles.
const TILE_ASPECT: f64 = 0.87;

/// The ideal places.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Tile width and height, px.
    pub tile: Xy<u32>,
    /// Distance of neighbouring tiles of a row, and of rows, px.
    pub pitch: Xy<f64>,
    /// Middle of the region, section px.
    pub centre: Xy<f64>,
    /// Beams of an mFOV.
    pub beams: u16,
    /// mFOVs of a section.
    pub mfovs: u32,
}

/// A step of the hexagonal lattice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hex {
    q: i64,
    r: i64,
}

impl Layout {
    /// The layout for a plane of `area` px; its middle is the middle of the plane.
    pub fn new(config: &LayoutConfig, area: Xy<f64>) -> Self {
        let centre = Xy::new((area.x - 1.0) / 2.0, (area.y - 1.0) / 2.0);
        let with_tile = |tile: Xy<u32>| Self {
            tile,
            pitch: pitch(tile, config.overlap, config.min_overlap_px),
            centre,
            beams: config.beams,
            mfovs: config.mfovs,
        };
        if config.cover == 0.0 {
            return with_tile(config.tile_px);
        }
        let sized = |width: u32| with_tile(Xy::new(width, (f64::from(width) * TILE_ASPECT).round() as u32));
        let (mut low, mut high) = (32, 8192);
        while low < high {
            let middle = (low + high) / 2;
            if sized(middle).covered(area) >= config.cover { high = middle } else { low = middle + 1 }
        }
        sized(low)
    }

    /// Fraction of a plane of `area` px that the ideal tiles cover, on a grid of 64 x 64 points.
    pub fn covered(&self, area: Xy<f64>) -> f64 {
        let half = self.half_tile();
        let centres: Vec<_> = self.all().map(|(mfov, beam)| self.tile_centre(mfov, beam)).collect();
        let at = |i: u32, side: f64| (f64::from(i) + 0.5) / 64.0 * side - 0.5;
        let inside = (0..64 * 64).filter(|i| {
            let p = Xy::new(at(i % 64, area.x), at(i / 64, area.y));
            centres.iter().any(|c| (p.x - c.x).abs() <= half.x + 0.5 && (p.y - c.y).abs() <= half.y + 0.5)
        });
        inside.count() as f64 / (64.0 * 64.0)
    }

    /// Ideal place of the middle of a tile, section px.
    pub fn tile_centre(&self, mfov: u32, beam: u16) -> Xy<f64> {
        let rings = i64::from(rings(self.beams));
        let (m, b) = (spiral(mfov), spiral(u32::from(beam)));
        // Two steps of the lattice of mFOVs, sixty degrees apart like those of the beams.
        let q = m.q * (2 * rings + 1) + m.r * rings + b.q;
        let r = -m.q * rings + m.r * (rings + 1) + b.r;
        self.centre + Xy::new((q as f64 + r as f64 / 2.0) * self.pitch.x, r as f64 * self.pitch.y)
    }

    /// Ideal place of the centre of pixel (0, 0) of a tile, section px.
    pub fn nominal(&self, mfov: u32, beam: u16) -> Xy<f64> {
        self.tile_centre(mfov, beam) - self.half_tile()
    }

    /// From pixel (0, 0) to the middle of a tile.
    pub fn half_tile(&self) -> Xy<f64> {
        Xy::new((f64::from(self.tile.x) - 1.0) / 2.0, (f64::from(self.tile.y) - 1.0) / 2.0)
    }

    /// The rectangle of all ideal tiles, widened by `margin` px.
    pub fn extent(&self, margin: f64) -> BoxXy {
        let (mut min, mut max) = (self.centre, self.centre);
        for (mfov, beam) in self.all() {
            let c = self.tile_centre(mfov, beam);
            min = Xy::new(min.x.min(c.x), min.y.min(c.y));
            max = Xy::new(max.x.max(c.x), max.y.max(c.y));
        }
        let reach = self.half_tile() + Xy::new(margin, margin);
        let (min, max) = (min - reach, max + reach);
        BoxXy {
            min: Xy::new(min.x.floor() as i64, min.y.floor() as i64),
            max: Xy::new(max.x.ceil() as i64 + 1, max.y.ceil() as i64 + 1),
        }
    }

    /// The promise of a section, named like those of a MultiSEM.
    pub fn section_plan(&self, section: SectionId, serial: SerialIndex) -> SectionPlan {
        let mfov = |m: u32| self.stop(MfovId::new(section, RegionId(0), m), 0..self.beams);
        SectionPlan {
            section,
            serial,
            name: format!("{:03}_S{}R1", section.0 + 1, serial.0 + 1),
            version: 0,
            mfovs: (0..self.mfovs).map(mfov).collect(),
        }
    }

    /// The promise of one stage stop of these beams, in order; the names of retakes end in the number of the attempt.
    pub fn stop(&self, id: MfovId, beams: impl IntoIterator<Item = u16>) -> MfovPlan {
        let again = if id.attempt.0 > 0 { format!("_retake{}", id.attempt.0) } else { String::new() };
        let tile = |b: u16| PlannedTile {
            key: TileKey { mfov: id, beam: BeamId(b) },
            name: format!("{:03}_{:06}_{:03}{again}.tif", id.section.0 + 1, id.mfov + 1, b + 1),
            nominal: self.nominal(id.mfov, b),
            size: self.tile,
        };
        MfovPlan { id, revision: 0, tiles: beams.into_iter().map(tile).collect() }
    }

    fn all(&self) -> impl Iterator<Item = (u32, u16)> + use<> {
        let beams = self.beams;
        (0..self.mfovs).flat_map(move |m| (0..beams).map(move |b| (m, b)))
    }
}

/// Distance of tiles with the wanted overlap, and at least `least` px of it, but never more than half a tile.
fn pitch(tile: Xy<u32>, overlap: f64, least: f64) -> Xy<f64> {
    let of = |side: u32| {
        let side = f64::from(side);
        side - (side * overlap).max(least).min(side / 2.0)
    };
    Xy::new(of(tile.x), of(tile.y))
}

/// Rings around the middle beam: 1 + 3 n (n + 1) beams have n.
fn rings(beams: u16) -> u32 {
    (0..).find(|n| 1 + 3 * n * (n + 1) >= u32::from(beams)).expect("the rings grow without bound")
}

/// Place number `i` of the spiral: the middle, then ring after ring, each begun at the lower left and walked
/// against the clock (as seen with rows going down).
fn spiral(i: u32) -> Hex {
    if i == 0 {
        return Hex { q: 0, r: 0 };
    }
    let ring = (1..).find(|n| 3 * n * (n + 1) >= i).expect("the rings grow without bound");
    let (side, step) = {
        let along = i - 1 - 3 * ring * (ring - 1);
        ((along / ring) as usize, i64::from(along % ring))
    };
    const CORNERS: [Hex; 6] = [
        Hex { q: -1, r: 1 },
        Hex { q: 0, r: 1 },
        Hex { q: 1, r: 0 },
        Hex { q: 1, r: -1 },
        Hex { q: 0, r: -1 },
        Hex { q: -1, r: 0 },
    ];
    let (from, to) = (CORNERS[side], CORNERS[(side + 1) % 6]);
    let n = i64::from(ring);
    Hex { q: from.q * n + (to.q - from.q) * step, r: from.r * n + (to.r - from.r) * step }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn layout(beams: u16, mfovs: u32) -> Layout {
        let config = LayoutConfig { beams, mfovs, tile_px: Xy::new(100, 87), ..LayoutConfig::default() };
        Layout::new(&config, Xy::new(1000.0, 900.0))
    }

    #[test]
    fn every_beam_beyond_the_first_touches_an_earlier_one_and_none_comes_twice() {
        for beams in [1u16, 7, 19, 37, 61, 91] {
            let places: Vec<_> = (0..u32::from(beams)).map(spiral).collect();
            let distance = |a: Hex, b: Hex| {
                let (q, r) = (a.q - b.q, a.r - b.r);
                (q.abs() + r.abs() + (q + r).abs()) / 2
            };
            for (i, &p) in places.iter().enumerate().skip(1) {
                assert!(places[..i].iter().all(|&o| o != p));
                assert!(places[..i].iter().any(|&o| distance(o, p) == 1), "{p:?}");
                assert!(distance(p, places[0]) <= i64::from(rings(beams)));
            }
        }
    }

    #[test]
    fn mfovs_tile_the_plane_without_gap_or_double_place() {
        for beams in [1u16, 7, 61] {
            let l = layout(beams, 7);
            let places: BTreeSet<(i64, i64)> = l
                .all()
                .map(|(m, b)| {
                    let c = l.tile_centre(m, b) - l.centre;
                    ((c.x / l.pitch.x * 2.0).round() as i64, (c.y / l.pitch.y).round() as i64)
                })
                .collect();
            assert_eq!(places.len(), usize::from(beams) * 7, "{beams} beams");
            // Without gap: every place next to two or more of the union's tiles on opposite sides is itself taken.
            for &(x, y) in &places {
                if places.contains(&(x + 4, y)) {
                    assert!(places.contains(&(x + 2, y)), "gap in a row right of {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn a_tile_fitted_to_a_plane_covers_the_wanted_part_with_enough_overlap() {
        let config = LayoutConfig { cover: 0.9, overlap: 0.1, min_overlap_px: 20.0, ..LayoutConfig::default() };
        let area = Xy::new(1024.0, 1024.0);
        let l = Layout::new(&config, area);
        assert!(l.covered(area) >= 0.9);
        assert!((130..200).contains(&l.tile.x), "{:?}", l.tile);
        assert!((f64::from(l.tile.y) - l.pitch.y - 20.0).abs() < 1e-9);
        let smaller = LayoutConfig { cover: 0.0, tile_px: Xy::new(l.tile.x - 2, l.tile.y - 2), ..config };
        assert!(Layout::new(&smaller, area).covered(area) < 0.9);
    }

    #[test]
    fn names_are_those_of_a_multisem_and_unique() {
        let plan = layout(7, 2).section_plan(SectionId(12), SerialIndex(12));
        assert_eq!(plan.mfovs[1].tiles[6].name, "013_000002_007.tif");
        let names: BTreeSet<_> = plan.tiles().map(|t| t.name.clone()).collect();
        assert_eq!(names.len(), 14);
        assert!(plan.tiles().zip(plan.tiles().skip(1)).all(|(a, b)| a.key < b.key));
    }
}
