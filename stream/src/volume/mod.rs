//! Voxels at rest: readers of the volumes people have, writers of the volumes that Kinesin leaves behind.
//!
//! | module | reads or writes |
//! |---|---|
//! | `folder`, `tiff_stack` | one image a section (PNG, TIFF, JPEG), multi-page TIFF |
//! | `zarr`, `ome` | Zarr v2 and v3 arrays, OME-Zarr 0.4 and 0.5 groups |
//! | `precomputed`, [`compressed_segmentation`] | neuroglancer precomputed |
//! | [`image_writer`] | OME-Zarr 0.5, 8-bit, reduced in the plane of the section |
//! | [`label_writer`] | neuroglancer precomputed, 64-bit labels |
//! | [`commit_log`] | append-only records: what was published, which labels are one |
//!
//! Every box is half-open, in voxels counted from the first voxel of the volume, axes z, y, x. What a volume's own
//! coordinates call that first voxel is [`VolumeInfo::origin`]. Reading is bounded by the box that is asked for plus a
//! few decoded sections or chunks; nothing loads a volume whole.

mod folder;
mod image_file;
mod ome;
mod planes;
mod precomputed;
mod publish;
mod tiff_stack;
mod zarr;

pub mod commit_log;
pub mod compressed_segmentation;
pub mod image_writer;
pub mod label_writer;

use std::path::{Path, PathBuf};

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::geometry::{BoxZyx, VoxelSize, Zyx};

pub use commit_log::{CommitLog, Equivalence};
pub use folder::{SectionImage, section_images};
pub use image_writer::{ImageSpec, ImageWriter, Reduce, SectionWriter};
pub use label_writer::{LabelSpec, LabelWriter};
pub use publish::Durability;

/// Somewhere voxels can be read from. Reads of different boxes may run at the same time.
pub trait VolumeSource: Send + Sync {
    /// Shape, voxel size, type.
    fn info(&self) -> &VolumeInfo;

    /// The grey values in `bounds`, axes z, y, x.
    ///
    /// # Errors
    /// Where the box leaves the volume, the voxels are not 8-bit, or what is stored cannot be read.
    fn read_u8(&self, bounds: BoxZyx) -> Result<Array3<u8>, VolumeError>;

    /// The labels in `bounds`, axes z, y, x; any stored width is widened.
    ///
    /// # Errors
    /// Where the box leaves the volume or what is stored cannot be read.
    fn read_labels(&self, bounds: BoxZyx) -> Result<Array3<u64>, VolumeError>;
}

/// What is known of a volume before any voxel is read.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeInfo {
    /// Where it lies.
    pub path: PathBuf,
    /// Voxels along z, y, x.
    pub shape: Zyx<usize>,
    /// Size of a voxel in nm, where the volume says.
    pub voxel_size: Option<VoxelSize>,
    /// Type of the stored voxels.
    pub dtype: Dtype,
    /// What the volume's own coordinates call its first voxel (`voxel_offset` of precomputed); zero elsewhere.
    pub origin: Zyx<i64>,
}

/// Type of stored voxels: unsigned whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the name says it")]
pub enum Dtype {
    #[serde(rename = "uint8")]
    U8,
    #[serde(rename = "uint16")]
    U16,
    #[serde(rename = "uint32")]
    U32,
    #[serde(rename = "uint64")]
    U64,
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
        })
    }
}

impl VolumeInfo {
    /// The box of the whole volume.
    pub fn bounds(&self) -> BoxZyx {
        BoxZyx::from_shape(self.shape)
    }

    /// First voxel and shape of a box inside the volume.
    fn place(&self, bounds: BoxZyx) -> Result<(Zyx<usize>, Zyx<usize>), VolumeError> {
        if !self.bounds().contains(&bounds) {
            return Err(VolumeError::Bounds {
                path: self.path.clone(),
                wanted: Corners(bounds),
                has: Corners(self.bounds()),
            });
        }
        let BoxZyx { min, .. } = bounds;
        Ok((Zyx::new(min.z as usize, min.y as usize, min.x as usize), bounds.shape()))
    }

    fn require_u8(&self) -> Result<(), VolumeError> {
        match self.dtype {
            Dtype::U8 => Ok(()),
            dtype => Err(VolumeError::NotGrey { path: self.path.clone(), dtype }),
        }
    }
}

/// Opens a folder of images, a multi-page TIFF, a Zarr array or OME-Zarr group (also an array within one), or a
/// neuroglancer precomputed volume.
///
/// # Errors
/// Where there is nothing, nothing of these kinds, or one of them that cannot be used; the message says which and why.
pub fn open(path: &Path) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let meta = std::fs::metadata(path).map_err(|e| VolumeError::io(path, e))?;
    if meta.is_file() {
        return match extension(path).as_deref() {
            Some("tif" | "tiff") => tiff_stack::open(path),
            _ => Err(VolumeError::Unknown { path: path.to_path_buf() }),
        };
    }
    if path.join("info").is_file() || path.join("info.gz").is_file() {
        return precomputed::open(path);
    }
    if ["zarr.json", ".zarray", ".zgroup", ".zattrs"].iter().any(|f| path.join(f).is_file()) {
        return zarr::open(path);
    }
    folder::open(path)
}

/// The extension in lower case.
fn extension(path: &Path) -> Option<String> {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase)
}

/// A box as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corners(pub BoxZyx);

impl std::fmt::Display for Corners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BoxZyx { min, max } = self.0;
        write!(f, "z {}..{}, y {}..{}, x {}..{}", min.z, max.z, min.y, max.y, min.x, max.x)
    }
}

/// A volume that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Nothing that is known as a volume.
    #[error(
        "{path}: not a volume; wanted a folder of images (png, tif, jpg; one per section), a multi-page TIFF, a Zarr array or OME-Zarr group, or a neuroglancer precomputed folder (with its file info)"
    )]
    Unknown {
        /// Where.
        path: PathBuf,
    },
    /// What is stored contradicts its format or itself.
    #[error("{path}: {what}")]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A form that cannot be read here; the text says what to do.
    #[error("{path}: {what}; {remedy}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What was found.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A box that is empty or leaves the volume.
    #[error("{path}: the box {wanted} is empty or leaves the volume, which is {has}")]
    Bounds {
        /// The volume.
        path: PathBuf,
        /// The box asked for.
        wanted: Corners,
        /// The box there is.
        has: Corners,
    },
    /// Grey values wanted of voxels that are not 8-bit.
    #[error(
        "{path}: its voxels are {dtype}, an image needs uint8; convert it to 8 bit (scaling grey values to 1..=255), or give it as labels"
    )]
    NotGrey {
        /// The volume.
        path: PathBuf,
        /// What its voxels are.
        dtype: Dtype,
    },
    /// A box that would write part of a chunk.
    #[error(
        "{path}: the box {wanted} does not cover whole chunks of (z, y, x) {chunk:?}; begin and end at multiples of these or at the end of the volume"
    )]
    Misaligned {
        /// The volume.
        path: PathBuf,
        /// The box to be written.
        wanted: Corners,
        /// The chunks.
        chunk: [usize; 3],
    },
    /// Another volume is already there.
    #[error("{path}: holds a volume made with other settings; give another folder, or remove this one")]
    Different {
        /// Its description.
        path: PathBuf,
    },
    /// Settings that make no volume.
    #[error("{path}: {what}")]
    Spec {
        /// Where it was to be.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
}

impl VolumeError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), what: what.into() }
    }

    fn spec(path: &Path, what: impl Into<String>) -> Self {
        Self::Spec { path: path.to_path_buf(), what: what.into() }
    }

    fn unsupported(path: &Path, what: impl Into<String>, remedy: &'static str) -> Self {
        Self::Unsupported { path: path.to_path_buf(), what: what.into(), remedy }
    }
}

#[cfg(test)]
mod tests;
