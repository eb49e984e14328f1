//! Grey values of the tissue for the tiles: square blocks, kept for the neighbours that overlap, bounded in bytes.
//!
//! Two tiles that miss the same block at the same time both ask the tissue for it; the values are the same. No lock is held
//! while the tissue works, since it may use the threads that wait for this block.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_stream::geometry::{BoxXy, Xy};
use ndarray::{Array2, s};

use crate::tissue::Tissue;

/// Side of a block, voxels.
const SIDE: i64 = 256;

/// (z, block row, block column).
type Place = (usize, i64, i64);

/// The tissue's grey values behind a cache.
pub(crate) struct Plane {
    tissue: Arc<dyn Tissue>,
    fill: u8,
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: BTreeMap<Place, Arc<Array2<u8>>>,
    oldest: VecDeque<Place>,
    bytes: usize,
}

impl Plane {
    /// Keeps at most `capacity` bytes; `fill` is the grey value outside the tissue.
    pub(crate) fn new(tissue: Arc<dyn Tissue>, fill: u8, capacity: usize) -> Self {
        Self { tissue, fill, capacity, kept: Mutex::default() }
    }

    /// The grey values of `rect` of section `z`, also beyond the tissue; axes y, x.
    pub(crate) fn patch(&self, z: usize, rect: BoxXy) -> Array2<u8> {
        let size = rect.size();
        let mut patch = Array2::from_elem((size.y, size.x), self.fill);
        let shape = self.tissue.shape();
        let all = BoxXy { min: Xy::new(0, 0), max: Xy::new(shape.x as i64, shape.y as i64) };
        let Some(inside) = rect.intersect(&all).filter(|_| z < shape.z) else { return patch };
        for row in inside.min.y / SIDE..=(inside.max.y - 1) / SIDE {
            for column in inside.min.x / SIDE..=(inside.max.x - 1) / SIDE {
                let min = Xy::new(column * SIDE, row * SIDE);
                let bounds = BoxXy { min, max: Xy::new((min.x + SIDE).min(all.max.x), (min.y + SIDE).min(all.max.y)) };
                let common = bounds.intersect(&inside).expect("the block was chosen to touch the rectangle");
                let block = self.block((z, row, column), bounds);
                let from = block.slice(window(common, bounds.min));
                patch.slice_mut(window(common, rect.min)).assign(&from);
            }
        }
        patch
    }

    fn block(&self, place: Place, bounds: BoxXy) -> Arc<Array2<u8>> {
        let kept = |k: &Mutex<Kept>| k.lock().unwrap_or_else(PoisonError::into_inner).blocks.get(&place).cloned();
        if let Some(block) = kept(&self.kept) {
            return block;
        }
        let block = Arc::new(self.tissue.image(place.0, bounds));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.blocks.insert(place, block.clone()).is_none() {
            kept.bytes += block.len();
            kept.oldest.push_back(place);
        }
        while kept.bytes > self.capacity {
            let Some(oldest) = kept.oldest.pop_front() else { break };
            let gone = kept.blocks.remove(&oldest).map_or(0, |b| b.len());
            kept.bytes -= gone;
        }
        block
    }
}

/// `part` as seen from `origin`.
fn window(part: BoxXy, origin: Xy<i64>) -> ndarray::SliceInfo<[ndarray::SliceInfoElem; 2], ndarray::Ix2, ndarray::Ix2> {
    let along = |from: i64, to: i64, origin: i64| (from - origin) as usize..(to - origin) as usize;
    s![along(part.min.y, part.max.y, origin.y), along(part.min.x, part.max.x, origin.x)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::tests::CodedTissue;

    #[test]
    fn a_patch_holds_the_tissue_where_it_is_and_the_fill_beyond_whatever_was_kept() {
        let tissue = Arc::new(CodedTissue::new(2, 600, 700));
        let plane = Plane::new(tissue.clone(), 77, 100_000);
        for _ in 0..2 {
            let rect = BoxXy { min: Xy::new(-10, 200), max: Xy::new(720, 610) };
            let patch = plane.patch(1, rect);
            for (y, x) in [(0, 0), (0, 9), (0, 10), (55, 300), (399, 709), (400, 300), (100, 710)] {
                let (vy, vx) = (y as i64 + 200, x as i64 - 10);
                let inside = (0..600).contains(&vy) && (0..700).contains(&vx);
                let wanted = if inside { CodedTissue::grey(1, vy, vx) } else { 77 };
                assert_eq!(patch[(y, x)], wanted, "{vy} {vx}");
            }
            assert!(plane.kept.lock().unwrap().bytes <= 100_000);
        }
    }
}
