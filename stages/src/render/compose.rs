//! A tile with its way into the target plane, and how two maps in a row become one.

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced};
use kinesin_stream::ids::TileKey;
use kinesin_stream::map::{Grid, Map, SectionToVolume, TileToSection};

use super::intensity::Tone;

/// Distance of the nodes of a composed map, tile pixels; that of the section's map where it is finer, as beside cracks.
const COMPOSED_SPACING_PX: f64 = 32.0;

/// A tile whose place in the target plane (a section, or the volume at one z) is known.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedTile {
    /// Who it is.
    pub key: TileKey,
    /// Width and height of the tile, pixels.
    pub size: Xy<u32>,
    /// Tile pixel to target pixel, both at full resolution.
    pub map: Map,
    /// Grey correction; [`Tone::IDENTITY`] leaves the tile as it is.
    pub tone: Tone,
}

impl PlacedTile {
    /// The smallest rectangle of the target, reduced `reduction` times, that holds every pixel of the tile.
    pub fn bounds(&self, reduction: u32) -> BoxXy {
        let s = f64::from(reduction.max(1));
        let (mut low, mut high) = (Xy::new(f64::MAX, f64::MAX), Xy::new(f64::MIN, f64::MIN));
        for p in rim(&self.map, self.size) {
            let q = self.map.apply(p);
            low = Xy::new(low.x.min(q.x), low.y.min(q.y));
            high = Xy::new(high.x.max(q.x), high.y.max(q.y));
        }
        let first = |v: f64| full_to_reduced(v, s).floor() as i64;
        let last = |v: f64| full_to_reduced(v, s).ceil() as i64 + 1;
        BoxXy { min: Xy::new(first(low.x), first(low.y)), max: Xy::new(last(high.x), last(high.y)) }
    }
}

/// Points of the tile's border between which the image of the border is straight.
fn rim(map: &Map, size: Xy<u32>) -> Vec<Xy<f64>> {
    let (right, bottom) = (f64::from(size.x) - 1.0, f64::from(size.y) - 1.0);
    let (mut xs, mut ys) = (vec![0.0, right], vec![0.0, bottom]);
    if let Map::Grid(g) = map {
        xs.extend(g.xs().iter().filter(|x| **x > 0.0 && **x < right));
        ys.extend(g.ys().iter().filter(|y| **y > 0.0 && **y < bottom));
    }
    let along_x = xs.iter().flat_map(|&x| [Xy::new(x, 0.0), Xy::new(x, bottom)]);
    along_x.chain(ys.iter().flat_map(|&y| [Xy::new(0.0, y), Xy::new(right, y)])).collect()
}

/// Distance of the two nodes in the middle of an axis: those at its ends may lie far outside.
fn middle_step(axis: &[f64]) -> f64 {
    let i = (axis.len() - 1) / 2;
    axis[i + 1] - axis[i]
}

/// Tile pixel to volume pixel for a tile of `size`: exact where both maps are affine, else a grid of 32 px or as fine as the section's.
pub fn compose(tile_to_section: &TileToSection, section_to_volume: &SectionToVolume, size: Xy<u32>) -> Map {
    if let (Map::Affine(a), Map::Affine(b)) = (&tile_to_section.0, &section_to_volume.0) {
        return Map::Affine(a.then(b));
    }
    let spacing = match &section_to_volume.0 {
        Map::Grid(g) => middle_step(g.xs()).min(middle_step(g.ys())).clamp(1.0, COMPOSED_SPACING_PX),
        Map::Affine(_) => COMPOSED_SPACING_PX,
    };
    let axis = |n: u32| {
        let length = f64::from(n.max(2) - 1);
        let cells = (length / spacing).ceil().max(1.0);
        (0..=cells as u32).map(|i| length * f64::from(i) / cells).collect::<Vec<f64>>()
    };
    let both = |p| section_to_volume.0.apply(tile_to_section.0.apply(p));
    let grid = Grid::from_fn(axis(size.x), axis(size.y), both).expect("axes increase and finite maps stay finite");
    Map::Grid(grid)
}
