//! What the simulated scope looks at: a block of tissue with grey values and, where known, labels and classes.
//!
//! | module | tissue |
//! |---|---|
//! | [`procedural`] | grown from a seed, at any voxel size; settings in [`config`] |
//! | [`recorded`] | any recorded volume, with its labels where given |

use kinesin_stream::geometry::{BoxXy, VoxelSize, Zyx};
use ndarray::Array2;

pub mod config;
mod course;
mod field;
mod grow;
mod noise;
mod organelle;
pub mod procedural;
pub mod recorded;
mod shade;

/// Grey values, labels and classes of a block of tissue, section by section. Pure: the same call gives the same values.
pub trait Tissue: Send + Sync {
    /// Sections, rows, columns.
    fn shape(&self) -> Zyx<usize>;
    /// Size of a voxel, nm.
    fn voxel_size(&self) -> VoxelSize;
    /// Grey values of `rect` (voxels, inside the shape) of section `z`; axes y, x.
    fn image(&self, z: usize, rect: BoxXy) -> Array2<u8>;
    /// Object labels of `rect`, 0 between objects; `None` where the tissue has none.
    fn labels(&self, z: usize, rect: BoxXy) -> Option<Array2<u64>>;
    /// Classes of `rect`: 0 neuropil, 1 cell body, 2 vessel, 3 resin; `None` where the tissue has none.
    fn classes(&self, z: usize, rect: BoxXy) -> Option<Array2<u8>>;
}
