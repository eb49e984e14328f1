//! What each voxel of a result really shows.
//!
//! A result may lie shifted, turned or bent against the truth. Its labels are therefore scored at the tissue that each voxel
//! shows, not at the tissue that belongs there:
//!
//! ```text
//! result voxel ─► volume px ─► (result alignment)^-1 ─► section px ─► (result placement)^-1 ─► tile px
//!                                                   tile px ─► (true maps) ─► tissue voxel ─► label
//! ```
//! Of the tiles that cover a voxel, the one whose middle is nearest counts. Within squares of 16 result voxels the result's
//! inverse maps are taken as bilinear and affine (with one correcting step); the true maps are exact.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinesin_stream::geometry::{BoxXy, Xy, full_to_reduced, reduced_to_full};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Map, SectionToVolume, TileToSection};
use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::scope::Scene;
use crate::scope::section::SectionMap;

/// Side of a square in which inverse maps are straightened, result voxels.
const SQUARE: usize = 16;
/// Side of a block whose labels are read at once, result voxels; a multiple of the square.
const BLOCK: usize = 128;

/// The part of a result that is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutputGrid {
    /// Voxels of the result, in the plane.
    pub rect: BoxXy,
    /// Volume pixels in a result voxel; voxel 0 of the result begins where volume pixel `origin` begins.
    pub reduction: f64,
    /// Volume pixel at which the result begins.
    pub origin: Xy<f64>,
}

impl OutputGrid {
    /// Middle of result voxel (x, y), volume px.
    fn volume(&self, x: f64, y: f64) -> Xy<f64> {
        self.origin + Xy::new(reduced_to_full(x, self.reduction), reduced_to_full(y, self.reduction))
    }
}

/// The truth of one section, as far as it is needed to follow a pixel to its tissue.
#[derive(Clone, Debug)]
pub struct SectionTruth {
    /// Tiles that show tissue, by name.
    pub(crate) tiles: BTreeMap<String, TrueTile>,
    pub(crate) to_volume: ToVolume,
    /// Volume pixels in a voxel of the labels, and voxels of the labels in the plane.
    pub(crate) pitch: Xy<f64>,
    pub(crate) size: Xy<usize>,
}

/// Where a tile really lies.
#[derive(Clone, Debug)]
pub(crate) struct TrueTile {
    pub(crate) map: Map,
    pub(crate) size: Xy<u32>,
}

/// Section pixel to volume pixel.
#[derive(Clone, Debug)]
pub(crate) enum ToVolume {
    /// With its jumps.
    Exact(Arc<SectionMap>),
    /// As it is stored.
    Stored(Map),
    /// The section is missing.
    Nowhere,
}

impl SectionTruth {
    /// The truth of a section of this scene; voxels of the labels are those of the tissue.
    pub fn of(scene: &Scene, serial: SerialIndex) -> Self {
        let (shape, scale) = (scene.tissue().shape(), scene.scale());
        let plan = scene.whole_plan(serial);
        let shows = |key| !scene.faults(key).lost && !scene.faults(key).blank;
        let seen = plan.tiles().filter(|t| shows(t.key));
        let tile = |key, size| TrueTile { map: Map::Grid(scene.tile_map(key)), size };
        Self {
            tiles: seen.map(|t| (t.name.clone(), tile(t.key, t.size))).collect(),
            to_volume: match scene.is_missing(serial) {
                true => ToVolume::Nowhere,
                false => ToVolume::Exact(scene.section_map(serial)),
            },
            pitch: Xy::new(1.0 / scale.x, 1.0 / scale.y),
            size: Xy::new(shape.x, shape.y),
        }
    }

    /// The voxel of the labels that each voxel of `out` shows, `None` where it shows none. `placements` and `alignment` are
    /// those of the result for this section.
    pub fn seen(
        &self,
        placements: &BTreeMap<String, TileToSection>,
        alignment: &SectionToVolume,
        out: &OutputGrid,
    ) -> Array2<Option<Xy<f64>>> {
        let eye = Eye::new(self, placements, alignment);
        assembled(out.rect, None, |block| eye.block(out, block))
    }

    /// For each voxel of `out` the value that `read` gives for the voxels it shows; 0 where it shows none. `read` is called
    /// for a block of voxels at a time, inside the plane, from several threads.
    ///
    /// # Errors
    /// The first failure of `read`, in the order of the blocks.
    pub fn looked_up<T: Copy + Default + Send, E: Send>(
        &self,
        placements: &BTreeMap<String, TileToSection>,
        alignment: &SectionToVolume,
        out: &OutputGrid,
        read: impl Fn(BoxXy) -> Result<Array2<T>, E> + Sync,
    ) -> Result<Array2<T>, E> {
        let eye = Eye::new(self, placements, alignment);
        let parts = blocks(out.rect).into_par_iter().map(|b| looked_up(&eye.block(out, b), &read));
        let mut parts = parts.collect::<Vec<Result<_, E>>>().into_iter().collect::<Result<Vec<_>, E>>()?.into_iter();
        Ok(assembled(out.rect, T::default(), |_| parts.next().expect("one part a block")))
    }
}

/// For each voxel of `out` the true label of the tissue that it shows, 0 where it shows none; `None` where the tissue has
/// no labels. `placements` and `alignment` are those of the result for this section.
pub fn labels_in_result(
    scene: &Scene,
    serial: SerialIndex,
    placements: &BTreeMap<String, TileToSection>,
    alignment: &SectionToVolume,
    out: &OutputGrid,
) -> Option<Array2<u64>> {
    let z = scene.tissue_z(serial);
    let read = |rect| scene.tissue().labels(z, rect).ok_or(());
    read(ONE).ok()?;
    SectionTruth::of(scene, serial).looked_up(placements, alignment, out, read).ok()
}

/// As [`labels_in_result`], of the classes.
pub fn classes_in_result(
    scene: &Scene,
    serial: SerialIndex,
    placements: &BTreeMap<String, TileToSection>,
    alignment: &SectionToVolume,
    out: &OutputGrid,
) -> Option<Array2<u8>> {
    let z = scene.tissue_z(serial);
    let read = |rect| scene.tissue().classes(z, rect).ok_or(());
    read(ONE).ok()?;
    SectionTruth::of(scene, serial).looked_up(placements, alignment, out, read).ok()
}

/// A voxel that every tissue has: asked for to know whether there is anything to read.
const ONE: BoxXy = BoxXy { min: Xy::new(0, 0), max: Xy::new(1, 1) };

/// The rectangle put together from its blocks.
fn assembled<T: Copy>(rect: BoxXy, empty: T, mut part: impl FnMut(BoxXy) -> Array2<T>) -> Array2<T> {
    let size = rect.size();
    let mut all = Array2::from_elem((size.y, size.x), empty);
    for block in blocks(rect) {
        all.slice_mut(window(block, rect.min)).assign(&part(block));
    }
    all
}

/// The values at the nearest voxels; one read for all of them.
fn looked_up<T: Copy + Default, E>(
    seen: &Array2<Option<Xy<f64>>>,
    read: &(impl Fn(BoxXy) -> Result<Array2<T>, E> + Sync),
) -> Result<Array2<T>, E> {
    let nearest = |p: &Xy<f64>| Xy::new(p.x.round() as i64, p.y.round() as i64);
    let each = seen.iter().flatten().map(nearest).map(|p| BoxXy { min: p, max: Xy::new(p.x + 1, p.y + 1) });
    let Some(rect) = each.reduce(|a, b| a.union(&b)) else { return Ok(seen.map(|_| T::default())) };
    let values = read(rect)?;
    Ok(seen.map(|p| {
        let at = p.as_ref().map(nearest);
        at.map_or_else(T::default, |at| values[((at.y - rect.min.y) as usize, (at.x - rect.min.x) as usize)])
    }))
}

/// A tile of the result that shows tissue.
struct SeenTile<'a> {
    result: &'a Map,
    truth: &'a Map,
    size: Xy<f64>,
    /// Its middle and bounding rectangle in the result's section, px.
    middle: Xy<f64>,
    min: Xy<f64>,
    max: Xy<f64>,
}

struct Eye<'a> {
    truth: &'a SectionTruth,
    tiles: Vec<SeenTile<'a>>,
    alignment: &'a Map,
}

impl<'a> Eye<'a> {
    fn new(
        truth: &'a SectionTruth,
        placements: &'a BTreeMap<String, TileToSection>,
        alignment: &'a SectionToVolume,
    ) -> Self {
        let placed = truth.tiles.iter().filter_map(|(name, tile)| Some((&placements.get(name)?.0, tile)));
        Self {
            truth,
            tiles: placed.map(|(result, tile)| SeenTile::new(result, tile)).collect(),
            alignment: &alignment.0,
        }
    }

    /// The tissue voxels that a block of result voxels shows.
    fn block(&self, out: &OutputGrid, block: BoxXy) -> Array2<Option<Xy<f64>>> {
        let size = block.size();
        let mut seen = Array2::from_elem((size.y, size.x), None);
        for y0 in (0..size.y).step_by(SQUARE) {
            for x0 in (0..size.x).step_by(SQUARE) {
                let (y1, x1) = ((y0 + SQUARE).min(size.y), (x0 + SQUARE).min(size.x));
                let at = |x: usize, y: usize| Xy::new(block.min.x as f64 + x as f64, block.min.y as f64 + y as f64);
                self.square(out, at(x0, y0), seen.slice_mut(s![y0..y1, x0..x1]));
            }
        }
        seen
    }

    /// One square, whose first voxel is `first`.
    fn square(&self, out: &OutputGrid, first: Xy<f64>, mut seen: ndarray::ArrayViewMut2<'_, Option<Xy<f64>>>) {
        let side = (SQUARE - 1) as f64;
        let corner = |u: f64, v: f64| {
            let q = out.volume(first.x + u * side, first.y + v * side);
            self.alignment.invert_at(q, q)
        };
        let corners = [corner(0.0, 0.0), corner(1.0, 0.0), corner(0.0, 1.0), corner(1.0, 1.0)];
        let [Some(a), Some(b), Some(c), Some(d)] = corners else { return };
        let section = |u: f64, v: f64| (a * (1.0 - u) + b * u) * (1.0 - v) + (c * (1.0 - u) + d * u) * v;
        let here: Vec<_> = self.tiles.iter().filter_map(|t| t.near(&[a, b, c, d])).collect();
        for ((y, x), place) in seen.indexed_iter_mut() {
            let p = section(x as f64 / side, y as f64 / side);
            let covering = here.iter().filter_map(|(tile, inverse)| {
                let q = inverse.apply(p);
                tile.has(q).then(|| ((p - tile.middle).norm(), *tile, inverse, q))
            });
            let nearest = covering.min_by(|a, b| a.0.total_cmp(&b.0));
            *place = nearest.and_then(|(_, tile, inverse, q)| self.tissue(tile, tile.settled(inverse, p, q)));
        }
    }

    /// The voxel of the labels at a tile pixel.
    fn tissue(&self, tile: &SeenTile<'_>, pixel: Xy<f64>) -> Option<Xy<f64>> {
        let (pitch, size) = (self.truth.pitch, self.truth.size);
        let section = tile.truth.apply(pixel);
        let v = match &self.truth.to_volume {
            ToVolume::Exact(map) => map.apply(section)?,
            ToVolume::Stored(map) => map.apply(section),
            ToVolume::Nowhere => return None,
        };
        let t = Xy::new(full_to_reduced(v.x, pitch.x), full_to_reduced(v.y, pitch.y));
        let inside = |t: f64, side: usize| t >= -0.5 && t < side as f64 - 0.5;
        (inside(t.x, size.x) && inside(t.y, size.y)).then_some(t)
    }
}

impl<'a> SeenTile<'a> {
    fn new(result: &'a Map, tile: &'a TrueTile) -> Self {
        let size = Xy::new(f64::from(tile.size.x), f64::from(tile.size.y));
        let along = |n: f64| (0..=8).map(move |i| f64::from(i) / 8.0 * (n - 1.0));
        let places = along(size.y).flat_map(|y| along(size.x).map(move |x| Xy::new(x, y)));
        let (mut min, mut max) = (Xy::new(f64::MAX, f64::MAX), Xy::new(f64::MIN, f64::MIN));
        for p in places.map(|p| result.apply(p)) {
            min = Xy::new(min.x.min(p.x), min.y.min(p.y));
            max = Xy::new(max.x.max(p.x), max.y.max(p.y));
        }
        let slack = Xy::new(4.0, 4.0);
        let middle = result.apply(Xy::new((size.x - 1.0) / 2.0, (size.y - 1.0) / 2.0));
        Self { result, truth: &tile.map, size, middle, min: min - slack, max: max + slack }
    }

    /// The inverse of its placement about these places, where it may cover any of them.
    fn near(&self, places: &[Xy<f64>; 4]) -> Option<(&Self, Affine)> {
        let low = places.iter().fold(places[0], |m, p| Xy::new(m.x.min(p.x), m.y.min(p.y)));
        let high = places.iter().fold(places[0], |m, p| Xy::new(m.x.max(p.x), m.y.max(p.y)));
        if low.x > self.max.x || low.y > self.max.y || high.x < self.min.x || high.y < self.min.y {
            return None;
        }
        let at = (low + high) * 0.5;
        let half = Xy::new((self.size.x - 1.0) / 2.0, (self.size.y - 1.0) / 2.0);
        let pixel = self.result.invert_at(at, half + at - self.middle)?;
        let [[a, b], [c, d]] = self.result.jacobian(pixel);
        let linear =
            Affine { rows: [[a, b, at.x - a * pixel.x - b * pixel.y], [c, d, at.y - c * pixel.x - d * pixel.y]] };
        linear.inverse().map(|inverse| (self, inverse))
    }

    /// One step of Newton's method towards the pixel that is placed at `p`: enough where the placement bends.
    fn settled(&self, inverse: &Affine, p: Xy<f64>, pixel: Xy<f64>) -> Xy<f64> {
        let missed = p - self.result.apply(pixel);
        pixel + inverse.apply(missed) - inverse.apply(Xy::default())
    }

    fn has(&self, pixel: Xy<f64>) -> bool {
        (-0.5..self.size.x - 0.5).contains(&pixel.x) && (-0.5..self.size.y - 0.5).contains(&pixel.y)
    }
}

/// The rectangle in blocks.
fn blocks(rect: BoxXy) -> Vec<BoxXy> {
    let starts = |from: i64, to: i64| (from..to).step_by(BLOCK);
    let block = |x, y| BoxXy {
        min: Xy::new(x, y),
        max: Xy::new((x + BLOCK as i64).min(rect.max.x), (y + BLOCK as i64).min(rect.max.y)),
    };
    starts(rect.min.y, rect.max.y).flat_map(|y| starts(rect.min.x, rect.max.x).map(move |x| block(x, y))).collect()
}

fn window(part: BoxXy, origin: Xy<i64>) -> ndarray::SliceInfo<[ndarray::SliceInfoElem; 2], ndarray::Ix2, ndarray::Ix2> {
    let along = |from: i64, to: i64, origin: i64| (from - origin) as usize..(to - origin) as usize;
    s![along(part.min.y, part.max.y, origin.y), along(part.min.x, part.max.x, origin.x)]
}
