//! Labels as people open them: neuroglancer precomputed, uint64, `compressed_segmentation`, unsharded, so that chunks can
//! be published one by one. Each chunk is written whole; chunks of background are written too, because some readers take
//! an absent chunk for a fault.

use std::path::{Path, PathBuf};

use ndarray::{ArrayView3, s};
use rayon::prelude::*;

use super::compressed_segmentation::{self, BLOCK};
use super::precomputed::{self, Info, Scale, chunk_name, chunks, zyx};
use super::publish::publish;
use super::{Corners, Durability, VolumeError};
use crate::geometry::{BoxZyx, VoxelSize, Zyx};

/// What a label volume is.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelSpec {
    /// Planned extent, voxels.
    pub shape: Zyx<usize>,
    /// nm.
    pub voxel_size: VoxelSize,
    /// What the volume's own coordinates call its first voxel.
    pub origin: Zyx<i64>,
    /// Voxels of a chunk; its z should be the number of sections that are committed together.
    pub chunk: Zyx<usize>,
}

/// Writes boxes of labels; may be shared among threads that write different boxes.
#[derive(Debug)]
pub struct LabelWriter {
    path: PathBuf,
    folder: PathBuf,
    spec: LabelSpec,
    durability: Durability,
}

impl LabelWriter {
    /// Begins a volume in `path`, or goes on with the same one.
    ///
    /// # Errors
    /// Where another volume is there, the spec makes none, or the file system refuses.
    pub fn create(path: &Path, spec: LabelSpec) -> Result<Self, VolumeError> {
        check(path, &spec)?;
        let info = describe(&spec);
        match precomputed::existing_info(path)? {
            Some(there) if there != info => {
                return Err(VolumeError::Different { path: path.join("info") });
            }
            Some(_) => {}
            None => {
                let text = serde_json::to_vec_pretty(&info).expect("plain numbers and text");
                publish(&path.join("info"), &text, Durability::Synced)?;
            }
        }
        Ok(Self::at(path, spec))
    }

    /// Goes on with the volume in `path`, which [`create`](Self::create) began.
    ///
    /// # Errors
    /// Where there is none, or one that was not made here.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let info =
            precomputed::existing_info(path)?.ok_or_else(|| VolumeError::Unknown { path: path.to_path_buf() })?;
        let spec = info.scales.first().and_then(|s| {
            Some(LabelSpec {
                shape: zyx(s.size, |v| v as usize),
                voxel_size: VoxelSize(zyx(s.resolution, |v| v)),
                origin: zyx(s.voxel_offset, |v| v),
                chunk: zyx(*s.chunk_sizes.first()?, |v| v as usize),
            })
        });
        match spec {
            Some(spec) if describe(&spec) == info => Ok(Self::at(path, spec)),
            _ => Err(VolumeError::Different { path: path.join("info") }),
        }
    }

    fn at(path: &Path, spec: LabelSpec) -> Self {
        let folder = path.join(key(&spec));
        Self { path: path.to_path_buf(), folder, spec, durability: Durability::default() }
    }

    /// The same writer with another promise; [`Durability::Synced`] unless said.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What the volume is.
    pub fn spec(&self) -> &LabelSpec {
        &self.spec
    }

    /// Writes the labels (axes z, y, x) of the box that begins at `min`, voxels from the first one of the volume. The box
    /// must cover whole chunks, or end where the volume ends. Writing the same again changes nothing.
    ///
    /// # Errors
    /// Where the box leaves the volume or cuts a chunk, or the file system refuses.
    pub fn write_box(&self, min: Zyx<usize>, labels: ArrayView3<'_, u64>) -> Result<(), VolumeError> {
        let (z, y, x) = labels.dim();
        let min = Zyx::new(min.z as i64, min.y as i64, min.x as i64);
        let bounds = BoxZyx { min, max: Zyx::new(min.z + z as i64, min.y + y as i64, min.x + x as i64) };
        let volume = BoxZyx::from_shape(self.spec.shape);
        if !volume.contains(&bounds) {
            let (wanted, has) = (Corners(bounds), Corners(volume));
            return Err(VolumeError::Bounds { path: self.path.clone(), wanted, has });
        }
        let chunk = self.spec.chunk;
        let aligned = |at: i64, end: usize, chunk: usize| (at as usize).is_multiple_of(chunk) || at as usize == end;
        let on_grid = |at: Zyx<i64>, end: Zyx<usize>| {
            aligned(at.z, end.z, chunk.z) && aligned(at.y, end.y, chunk.y) && aligned(at.x, end.x, chunk.x)
        };
        if !on_grid(bounds.min, Zyx::new(0, 0, 0)) || !on_grid(bounds.max, self.spec.shape) {
            let (wanted, chunk) = (Corners(bounds), chunk.into());
            return Err(VolumeError::Misaligned { path: self.path.clone(), wanted, chunk });
        }
        chunks(bounds, chunk, volume).into_par_iter().try_for_each(|c| self.write_chunk(c, min, labels))
    }

    fn write_chunk(&self, chunk: BoxZyx, min: Zyx<i64>, labels: ArrayView3<'_, u64>) -> Result<(), VolumeError> {
        let (at, n) = (chunk.min, chunk.shape());
        let at = Zyx::new((at.z - min.z) as usize, (at.y - min.y) as usize, (at.x - min.x) as usize);
        let part = labels.slice(s![at.z..at.z + n.z, at.y..at.y + n.y, at.x..at.x + n.x]);
        let bytes = compressed_segmentation::encode(part, BLOCK);
        publish(&self.folder.join(chunk_name(chunk, self.spec.origin)), &bytes, self.durability)
    }
}

fn check(path: &Path, spec: &LabelSpec) -> Result<(), VolumeError> {
    let Zyx { z, y, x } = spec.voxel_size.0;
    if spec.shape.voxels() == 0 || spec.chunk.voxels() == 0 {
        return Err(VolumeError::spec(path, "labels need a shape and a chunk of one voxel or more along z, y and x"));
    }
    if [z, y, x].iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Err(VolumeError::spec(
            path,
            format!("a voxel size of {z} x {y} x {x} nm (z, y, x); give positive ones"),
        ));
    }
    let most = compressed_segmentation::MOST_VOXELS;
    if spec.chunk.voxels() > most {
        return Err(VolumeError::spec(
            path,
            format!("label chunks of {} voxels; the encoding takes at most {most}: use less", spec.chunk.voxels()),
        ));
    }
    Ok(())
}

fn key(spec: &LabelSpec) -> String {
    let Zyx { z, y, x } = spec.voxel_size.0;
    format!("{x}_{y}_{z}")
}

fn describe(spec: &LabelSpec) -> Info {
    let Zyx { z, y, x } = spec.voxel_size.0;
    let xyz = |v: Zyx<usize>| [v.x as u64, v.y as u64, v.z as u64];
    Info {
        at_type: Some("neuroglancer_multiscale_volume".into()),
        kind: "segmentation".into(),
        data_type: "uint64".into(),
        num_channels: 1,
        scales: vec![Scale {
            key: key(spec),
            size: xyz(spec.shape),
            resolution: [x, y, z],
            voxel_offset: [spec.origin.x, spec.origin.y, spec.origin.z],
            chunk_sizes: vec![xyz(spec.chunk)],
            encoding: "compressed_segmentation".into(),
            compressed_segmentation_block_size: Some([BLOCK.x, BLOCK.y, BLOCK.z]),
            sharding: None,
        }],
    }
}
