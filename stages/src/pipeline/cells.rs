//! Which parts of a section are drawn again when boxes of it changed, voxels of the volume.
//!
//! ```text
//! +--------+--------+      cell: one chunk of the coarsest level. Every level of a cell is made from its own voxels alone,
//! | cell   |  [box] |      so cells with a box are written whole and others not at all. Inside a cell, blocks of at most
//! +--------+--------+      512 voxels a side: those with a box are drawn, the others taken as they are.
//! ```

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::volume::ImageSpec;

use super::rendering::BAND_PX;

/// All of a section.
pub(super) fn plane(image: &ImageSpec) -> BoxXy {
    BoxXy { min: Xy::new(0, 0), max: Xy::new(image.shape.x as i64, image.shape.y as i64) }
}

/// Width and height of a cell: one chunk of the coarsest level, voxels of the finest.
fn cell(image: &ImageSpec) -> Xy<i64> {
    let side = |chunk: usize| (chunk << (image.levels - 1)) as i64;
    Xy::new(side(image.chunk.x), side(image.chunk.y))
}

/// Full rows from the top, never across two rows of cells.
pub(super) fn bands(image: &ImageSpec) -> Vec<BoxXy> {
    let (all, cell) = (plane(image), cell(image));
    pieces(0, all.max.y, cell.y).map(|(y0, y1)| BoxXy { min: Xy::new(0, y0), max: Xy::new(all.max.x, y1) }).collect()
}

/// The blocks of a band that lie in a cell with a box, none across two cells.
pub(super) fn touched_blocks(image: &ImageSpec, rows: &BoxXy, boxes: &[BoxXy]) -> Vec<BoxXy> {
    let cell = cell(image);
    let touched = |x: i64| {
        let (left, top) = (x / cell.x * cell.x, rows.min.y / cell.y * cell.y);
        let whole = BoxXy { min: Xy::new(left, top), max: Xy::new(left + cell.x, top + cell.y) };
        boxes.iter().any(|b| b.intersect(&whole).is_some())
    };
    pieces(0, rows.max.x, cell.x)
        .filter(|(x0, _)| touched(*x0))
        .map(|(x0, x1)| BoxXy { min: Xy::new(x0, rows.min.y), max: Xy::new(x1, rows.max.y) })
        .collect()
}

/// From `from` to `to` in pieces of at most [`BAND_PX`] that end where cells end.
fn pieces(from: i64, to: i64, cell: i64) -> impl Iterator<Item = (i64, i64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let begin = at;
        at = (begin + BAND_PX as i64).min((begin / cell + 1) * cell).min(to);
        (begin < to).then_some((begin, at))
    })
}

/// A box as it is written.
pub(super) fn corners(b: BoxXy) -> [i64; 4] {
    [b.min.x, b.min.y, b.max.x, b.max.y]
}

/// A written box.
pub(super) fn of_corners([x0, y0, x1, y1]: [i64; 4]) -> BoxXy {
    BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) }
}

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::{VoxelSize, Zyx};
    use kinesin_stream::volume::Reduce;

    use super::*;

    #[test]
    fn blocks_fill_the_cells_that_hold_a_box_and_no_others() {
        let image = ImageSpec {
            shape: Zyx::new(1, 1700, 2500),
            voxel_size: VoxelSize(Zyx::new(30.0, 4.0, 4.0)),
            levels: 3,
            chunk: Xy::new(150, 200),
            reduce: Reduce::Mean,
        };
        // Cells of 600 x 800.
        let boxes = [[1190, 10, 1210, 20], [5, 801, 6, 802]].map(of_corners);
        let all = bands(&image);
        assert_eq!(all.iter().map(|b| b.size().y).sum::<usize>(), 1700);
        let blocks: Vec<BoxXy> = all.iter().flat_map(|rows| touched_blocks(&image, rows, &boxes)).collect();
        assert!(blocks.iter().all(|b| b.size().x <= BAND_PX && b.size().y <= BAND_PX));
        let area: usize = blocks.iter().map(|b| b.size().x * b.size().y).sum();
        // Two cells of the upper row for the first box, one of the second row for the second.
        assert_eq!(area, 3 * 600 * 800);
        let cells = [[600, 0, 1800, 800], [0, 800, 600, 1600]].map(of_corners);
        assert!(blocks.iter().all(|b| cells.iter().any(|c| b.intersect(c) == Some(*b))));
        assert_eq!(blocks.iter().filter(|b| boxes.iter().any(|x| b.intersect(x).is_some())).count(), 3);
    }
}
