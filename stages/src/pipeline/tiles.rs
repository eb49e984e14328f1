//! Durable tiles, read back by id: within a bounded number of bytes, whatever the size of a section.

use std::error::Error;
use std::sync::Arc;

use kinesin_backpressure::{Bytes, Credit, Pool};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::TileKey;
use kinesin_stream::pixels::Pixels;
use ndarray::Array2;

use crate::render::{PlacedTile, RenderError, Renderer};

/// Any error of a store.
pub type StoreError = Box<dyn Error + Send + Sync>;

/// Where durable tiles are read back: the archive of a run, or the files of a recorded data set.
pub trait TileStore: Send + Sync + 'static {
    /// The whole tile.
    ///
    /// # Errors
    /// Where the tile cannot be read back as it was stored.
    fn read(&self, key: TileKey) -> Result<Pixels, StoreError>;

    /// A part of the tile; `part` lies inside it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_part(&self, key: TileKey, part: BoxXy) -> Result<Pixels, StoreError> {
        Ok(crop(&self.read(key)?, part))
    }
}

/// A part of an image.
pub fn crop(pixels: &Pixels, part: BoxXy) -> Pixels {
    let size = part.size();
    let columns = part.min.x as usize..part.min.x as usize + size.x;
    let rows = part.min.y as usize..part.min.y as usize + size.y;
    let mut data = Vec::with_capacity(size.x * size.y);
    rows.for_each(|y| data.extend_from_slice(&pixels.row(y)[columns.clone()]));
    Pixels::new(size.x, size.y, data)
}

/// Tiles of one section that are needed again soon, oldest first.
pub(super) struct TileCache {
    store: Arc<dyn TileStore>,
    pool: Pool,
    kept: Vec<(TileKey, Pixels, Credit)>,
}

/// A section's image that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// A stored tile could not be read.
    #[error("cannot read {key} back: {source}")]
    Store {
        /// The tile.
        key: TileKey,
        /// What the store said.
        source: StoreError,
    },
    /// The tiles of one block do not fit.
    #[error(
        "{tiles} tiles of one block do not fit into stages.edges.tiles = {capacity}; raise it to at least {wanted}"
    )]
    Room {
        /// Tiles needed at once.
        tiles: usize,
        /// What is configured.
        capacity: Bytes,
        /// What would do.
        wanted: Bytes,
    },
    /// A tile cannot be drawn.
    #[error(transparent)]
    Render(#[from] RenderError),
}

impl TileCache {
    /// An empty cache that holds no more than `pool`.
    pub(super) fn new(store: Arc<dyn TileStore>, pool: Pool) -> Self {
        Self { store, pool, kept: Vec::new() }
    }

    /// What they are read from.
    pub(super) fn store(&self) -> &dyn TileStore {
        &*self.store
    }

    /// The tiles `wanted`, which are all kept until the next call.
    fn fetch(&mut self, wanted: &[TileKey]) -> Result<Vec<Pixels>, SectionError> {
        wanted.iter().map(|key| self.one(*key, wanted)).collect()
    }

    fn one(&mut self, key: TileKey, wanted: &[TileKey]) -> Result<Pixels, SectionError> {
        if let Some(at) = self.kept.iter().position(|(k, ..)| *k == key) {
            let hit = self.kept.remove(at);
            let pixels = hit.1.clone();
            self.kept.push(hit);
            return Ok(pixels);
        }
        let pixels = self.store.read(key).map_err(|source| SectionError::Store { key, source })?;
        let bytes = Bytes(pixels.data().len() as u64);
        let credit = loop {
            if let Some(credit) = self.pool.try_lease(bytes) {
                break credit;
            }
            let Some(old) = self.kept.iter().position(|(k, ..)| !wanted.contains(k)) else {
                let (tiles, capacity) = (wanted.len(), self.pool.capacity());
                return Err(SectionError::Room { tiles, capacity, wanted: Bytes(bytes.0 * tiles as u64) });
            };
            drop(self.kept.remove(old));
        };
        self.kept.push((key, pixels.clone(), credit));
        Ok(pixels)
    }

    /// Gives all bytes back.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// Draws `target` (pixels reduced `reduction` times) in bands of `band` rows, each cut into blocks of the same width,
    /// and hands the bands over from top to bottom.
    pub(super) fn draw<E: From<SectionError>>(
        &mut self,
        renderer: &Renderer,
        placed: &[PlacedTile],
        (target, reduction): (BoxXy, u32),
        band: usize,
        mut sink: impl FnMut(Array2<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bounds: Vec<BoxXy> = placed.iter().map(|p| p.bounds(reduction)).collect();
        let mut top = target.min.y;
        while top < target.max.y {
            let bottom = (top + band as i64).min(target.max.y);
            let strip = BoxXy { min: Xy::new(target.min.x, top), max: Xy::new(target.max.x, bottom) };
            let strip = renderer.reach(strip, reduction);
            // Of ten thousand tiles a band meets a hundred.
            let near = placed.iter().zip(&bounds).filter(|(_, b)| b.intersect(&strip).is_some());
            let near: Vec<PlacedTile> = near.map(|(p, _)| p.clone()).collect();
            let mut rows = Array2::zeros(((bottom - top) as usize, target.size().x));
            let mut left = target.min.x;
            while left < target.max.x {
                let right = (left + band as i64).min(target.max.x);
                let block = BoxXy { min: Xy::new(left, top), max: Xy::new(right, bottom) };
                let drawn = self.block(renderer, &near, block, reduction)?;
                let (from, to) = ((left - target.min.x) as usize, (right - target.min.x) as usize);
                rows.slice_mut(ndarray::s![.., from..to]).assign(&drawn);
                left = right;
            }
            sink(rows)?;
            top = bottom;
        }
        Ok(())
    }

    /// One block; its tiles are kept until the next call.
    pub(super) fn block(
        &mut self,
        renderer: &Renderer,
        placed: &[PlacedTile],
        block: BoxXy,
        reduction: u32,
    ) -> Result<Array2<u8>, SectionError> {
        let keys = renderer.plan_tiles(block, reduction, placed);
        let pixels = self.fetch(&keys)?;
        let placed = |key: &TileKey| placed.iter().find(|p| p.key == *key).expect("planned from these").clone();
        let tiles: Vec<(PlacedTile, Pixels)> = keys.iter().map(placed).zip(pixels).collect();
        Ok(renderer.render_block(block, reduction, &tiles)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{RenderConfig, Tone};
    use kinesin_backpressure::Budget;
    use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId};
    use kinesin_stream::map::{Affine, Map};

    struct Shades;

    impl TileStore for Shades {
        fn read(&self, key: TileKey) -> Result<Pixels, StoreError> {
            Ok(Pixels::new(64, 64, vec![100 + key.beam.0 as u8; 64 * 64]))
        }
    }

    fn placed(beam: u16) -> PlacedTile {
        let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
        let key = TileKey { mfov, beam: BeamId(beam) };
        let map = Map::Affine(Affine::translation(Xy::new(60.0 * f64::from(beam), 0.0)));
        PlacedTile { key, size: Xy::new(64, 64), map, tone: Tone::IDENTITY }
    }

    fn draw(capacity: u64, band: usize) -> (Result<(), SectionError>, Vec<u8>, Budget) {
        let budget = Budget::new();
        let mut cache = TileCache::new(Arc::new(Shades), Pool::new(&budget, "tiles", Bytes(capacity)));
        let renderer = Renderer::new(RenderConfig::default()).expect("defaults are allowed");
        let tiles: Vec<PlacedTile> = (0..8).map(placed).collect();
        let target = BoxXy { min: Xy::new(0, 0), max: Xy::new(484, 64) };
        let mut image = Vec::new();
        let done = cache.draw(&renderer, &tiles, (target, 1), band, |rows| {
            image.extend(rows.iter().copied());
            Ok::<(), SectionError>(())
        });
        cache.clear();
        (done, image, budget)
    }

    #[test]
    fn a_section_is_drawn_alike_in_any_bands_within_its_bytes() {
        let (done, whole, budget) = draw(8 * 4096, 512);
        done.expect("it fits");
        assert!(whole.iter().all(|v| (100..108).contains(v)));
        assert_eq!(budget.leased_now(), Bytes(0));
        let (done, parts, budget) = draw(3 * 4096, 40);
        done.expect("two or three tiles at once");
        assert_eq!(parts, whole);
        assert!(budget.peak_leased() <= Bytes(3 * 4096));
    }

    #[test]
    fn too_little_room_for_one_block_is_an_error_that_says_how_much_it_takes() {
        let (done, ..) = draw(4096, 512);
        assert!(done.expect_err("eight tiles").to_string().ends_with("raise it to at least 32 KiB"));
    }

    #[test]
    fn a_crop_is_the_part_asked_for() {
        let p = Pixels::new(3, 2, vec![1, 2, 3, 4, 5, 6]);
        let part = BoxXy { min: Xy::new(1, 0), max: Xy::new(3, 2) };
        assert_eq!(crop(&p, part), Pixels::new(2, 2, vec![2, 3, 5, 6]));
    }
}
