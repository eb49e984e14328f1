//! Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) of blocks that know nothing of each other.
//!
//! ```text
//!  ┌───────┬───────┬───────┐   cells of the target plane, counted from its origin
//!  │   A───┼───B   │       │   a pixel is mapped by the four cells whose middles are nearest, bilinear between them
//!  ├───┼───┼───┼───┼───────┤
//!  │   │  ▓│▓▓▓│▓▓▓│▓      │   ▓ a block: it is drawn with all cells that map its pixels, whole, and cut out at the end
//!  │   C───┼───D   │       │
//!  └───────┴───────┴───────┘
//! ```
//! So a pixel has the same byte whatever block it was drawn in, and no border shows; the price is the rim of up to one and a half
//! cells that each block draws in addition. Pixels without data are in no histogram and stay without; a cell that shows little
//! weighs little.

use kinesin_stream::geometry::{BoxXy, Xy};
use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};

/// How the contrast of the published image is evened out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaheConfig {
    /// Whether it is. Default false: people see more, but grey values lose their meaning, and networks are trained without.
    pub enabled: bool,
    /// Side of a cell, pixels of the full image, 16 to 4096. Default 128: wider than most organelles, and a block of 512 px draws
    /// no more than 2.3 times its own area.
    pub cell_px: u32,
    /// Most that one grey level may hold of a histogram, in units of an even one; 1 or more. Default 3: contrast grows at most
    /// threefold.
    pub clip: f64,
}

impl Default for ClaheConfig {
    fn default() -> Self {
        Self { enabled: false, cell_px: 128, clip: 3.0 }
    }
}

/// Grey levels that tissue may have.
const LEVELS: usize = 255;
/// Smallest side of a cell of a reduced image, pixels.
const LEAST_SIDE: i64 = 16;

impl ClaheConfig {
    /// Side of a cell, pixels of the reduced target.
    fn side(&self, reduction: u32) -> i64 {
        (i64::from(self.cell_px) / i64::from(reduction.max(1))).max(LEAST_SIDE)
    }

    /// The cells that map the pixels of `block`: from the first to the last, both counted.
    fn cells(&self, block: BoxXy, reduction: u32) -> (Xy<i64>, Xy<i64>) {
        let side = self.side(reduction);
        let left = |v: i64| (v - side / 2).div_euclid(side);
        let (min, max) = (block.min, block.max);
        (Xy::new(left(min.x), left(min.y)), Xy::new(left(max.x - 1) + 1, left(max.y - 1) + 1))
    }

    /// What has to be drawn to equalise `block`.
    pub(super) fn reach(&self, block: BoxXy, reduction: u32) -> BoxXy {
        let (side, (first, last)) = (self.side(reduction), self.cells(block, reduction));
        let min = Xy::new(first.x * side, first.y * side);
        BoxXy { min, max: Xy::new((last.x + 1) * side, (last.y + 1) * side) }
    }

    /// `block` of what was drawn of [`reach`](Self::reach).
    pub(super) fn equalise(&self, drawn: ArrayView2<'_, u8>, block: BoxXy, reduction: u32) -> Array2<u8> {
        let (side, (first, last)) = (self.side(reduction), self.cells(block, reduction));
        let columns = (last.x - first.x + 1) as usize;
        let n = side as usize;
        let cells: Vec<Cell> = (0..columns * (last.y - first.y + 1) as usize)
            .map(|i| {
                let (x, y) = (i % columns * n, i / columns * n);
                Cell::of(drawn.slice(s![y..y + n, x..x + n]), self.clip)
            })
            .collect();
        // From the middle of a cell to that of the next, 0 to 1, in half pixels: the same number in every block.
        let place = |v: i64, first: i64| {
            let from = 2 * v + 1 - side;
            let cell = from.div_euclid(2 * side) - first;
            (cell as usize, from.rem_euclid(2 * side) as f32 / (2 * side) as f32)
        };
        let origin = Xy::new(first.x * side, first.y * side);
        let size = block.size();
        Array2::from_shape_fn((size.y, size.x), |(j, i)| {
            let (x, y) = (block.min.x + i as i64, block.min.y + j as i64);
            let value = drawn[[(y - origin.y) as usize, (x - origin.x) as usize]];
            if value == 0 {
                return 0;
            }
            let ((c, u), (r, v)) = (place(x, first.x), place(y, first.y));
            let (mut sum, mut weights) = (0.0f32, 0.0f32);
            for (dx, dy, share) in
                [(0, 0, (1.0 - u) * (1.0 - v)), (1, 0, u * (1.0 - v)), (0, 1, (1.0 - u) * v), (1, 1, u * v)]
            {
                let Some(cell) = cells.get((r + dy) * columns + c + dx).filter(|_| c + dx < columns) else { continue };
                sum += share * cell.weight * cell.map[usize::from(value) - 1];
                weights += share * cell.weight;
            }
            if weights > 0.0 { (sum / weights + 0.5).clamp(1.0, 255.0) as u8 } else { value }
        })
    }
}

/// Where one cell puts each grey level, and how much of it shows tissue.
struct Cell {
    map: [f32; LEVELS],
    weight: f32,
}

impl Cell {
    fn of(part: ArrayView2<'_, u8>, clip: f64) -> Self {
        let mut counts = [0u32; LEVELS + 1];
        part.iter().for_each(|&v| counts[usize::from(v)] += 1);
        let shown = (part.len() - counts[0] as usize) as f64;
        let mut map = [0.0f32; LEVELS];
        if shown == 0.0 {
            return Self { map, weight: 0.0 };
        }
        let most = clip * shown / LEVELS as f64;
        let over: f64 = counts[1..].iter().map(|&c| (f64::from(c) - most).max(0.0)).sum();
        let mut below = 0.0;
        for (to, &count) in map.iter_mut().zip(&counts[1..]) {
            // What is cut off goes to all levels alike.
            let here = f64::from(count).min(most) + over / LEVELS as f64;
            *to = (0.5 + LEVELS as f64 * (below + here / 2.0) / shown) as f32;
            below += here;
        }
        Self { map, weight: (shown / part.len() as f64) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cell_px: u32) -> ClaheConfig {
        ClaheConfig { enabled: true, cell_px, clip: 3.0 }
    }

    /// Faint tissue, darker to the right, without data left of column 10.
    fn grey(x: i64, y: i64) -> u8 {
        let h = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663)).rem_euclid(40);
        if x < 10 { 0 } else { (100 + h - x / 8) as u8 }
    }

    fn equalised(block: BoxXy, config: &ClaheConfig) -> Array2<u8> {
        let reach = config.reach(block, 1);
        let size = reach.size();
        let drawn =
            Array2::from_shape_fn((size.y, size.x), |(j, i)| grey(reach.min.x + i as i64, reach.min.y + j as i64));
        config.equalise(drawn.view(), block, 1)
    }

    fn rect(x0: i64, y0: i64, x1: i64, y1: i64) -> BoxXy {
        BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) }
    }

    #[test]
    fn any_block_alone_has_the_bytes_of_the_whole() {
        let (config, all) = (config(40), rect(-30, -20, 170, 130));
        let whole = equalised(all, &config);
        for side in [9, 40, 64] {
            for y in (all.min.y..all.max.y).step_by(side) {
                for x in (all.min.x..all.max.x).step_by(side) {
                    let block = rect(x, y, (x + side as i64).min(all.max.x), (y + side as i64).min(all.max.y));
                    let part = equalised(block, &config);
                    let (fy, fx) = ((y - all.min.y) as usize, (x - all.min.x) as usize);
                    assert_eq!(part, whole.slice(s![fy..fy + part.nrows(), fx..fx + part.ncols()]), "{block:?}");
                }
            }
        }
    }

    #[test]
    fn faint_contrast_grows_by_no_more_than_the_clip_and_no_data_stays_so() {
        let out = equalised(rect(0, 0, 160, 80), &config(80));
        for ((y, x), &v) in out.indexed_iter() {
            assert_eq!(v == 0, x < 10, "{x}, {y}");
        }
        let spread = |at: &dyn Fn(usize, usize) -> f64| {
            let values: Vec<f64> =
                (0..80).flat_map(|y| (60..100).map(move |x| (x, y))).map(|(x, y)| at(x, y)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
        };
        let before = spread(&|x, y| f64::from(grey(x as i64, y as i64)));
        let after = spread(&|x, y| f64::from(out[[y, x]]));
        // A level holds at most three even shares and what was cut off elsewhere: a slope of 3 and less than 1 more.
        assert!(after > 2.0 * before && after < 4.0 * before, "{before} to {after}");
    }
}
