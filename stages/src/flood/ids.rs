//! Label ids that say where they were made, in the layout PyChunkedGraph uses for supervoxels.
//!
//! ```text
//! bit 63      56 55      44 43      32 31      20 19              0
//!     layer = 1 | block x  | block y  | window   | count in block  |
//! ```
//!
//! The window takes the place of the chunk along z. So an id is unique without any coordination, and a later import into a
//! chunked graph is a copy. 0 is background.

use super::FloodError;

const LAYER: u64 = 1 << 56;
const AXIS_BITS: u32 = 12;
const COUNT_BITS: u32 = 20;

/// Blocks per axis and windows that fit the layout.
pub const MOST_BLOCKS: usize = 1 << AXIS_BITS;
/// Objects per block and window that fit the layout.
pub const MOST_OBJECTS: usize = (1 << COUNT_BITS) - 1;

/// Id of the `count`-th object (from 1) of a block in a window.
///
/// # Errors
/// Where a number exceeds its bits.
pub fn base_id(block_y: usize, block_x: usize, window: usize, count: usize) -> Result<u64, FloodError> {
    if block_y >= MOST_BLOCKS || block_x >= MOST_BLOCKS || window >= MOST_BLOCKS || count == 0 || count > MOST_OBJECTS {
        return Err(FloodError::Ids { block_y, block_x, window, count });
    }
    let (y, x, w, n) = (block_y as u64, block_x as u64, window as u64, count as u64);
    Ok(LAYER | x << (COUNT_BITS + 2 * AXIS_BITS) | y << (COUNT_BITS + AXIS_BITS) | w << COUNT_BITS | n)
}

/// Whether an id was made here; smaller ones are those of an initial segmentation.
pub fn is_base(id: u64) -> bool {
    id >= LAYER
}

/// An id of an earlier run as one of an initial segmentation: without its layer, so that it cannot be a new object's.
pub fn as_initial(id: u64) -> u64 {
    if id >> 56 == 1 { id - LAYER } else { id }
}

/// The window in which an id was made.
pub fn window_of(id: u64) -> usize {
    (id >> COUNT_BITS) as usize % MOST_BLOCKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_holds_layer_block_window_and_count_in_their_bits() {
        let id = base_id(2, 3, 5, 7).unwrap();
        assert_eq!(id, 0x0100_3002_0050_0007);
        assert_eq!(window_of(id), 5);
        assert_eq!((as_initial(id), as_initial(77)), (0x3002_0050_0007, 77));
        assert!(!is_base(as_initial(base_id(4095, 4095, 4095, MOST_OBJECTS).unwrap())));
        assert_eq!(window_of(base_id(4095, 4095, 4095, MOST_OBJECTS).unwrap()), 4095);
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_never_another_id() {
        for (y, x, w, n) in
            [(4096, 0, 0, 1), (0, 4096, 0, 1), (0, 0, 4096, 1), (0, 0, 0, 0), (0, 0, 0, MOST_OBJECTS + 1)]
        {
            assert!(base_id(y, x, w, n).is_err());
        }
    }
}
