//! Zarr v2 and v3 arrays, alone or as a level of an OME-Zarr 0.4 or 0.5 group.

use std::path::Path;

use ndarray::Array3;
use zarrs::array::{Array, ArraySubset, ElementOwned, data_type};
use zarrs::filesystem::FilesystemStore;

use super::ome::{self, Level, Node};
use super::{Dtype, VolumeError, VolumeInfo, VolumeSource};
use crate::geometry::{BoxZyx, Zyx};
use std::sync::Arc;

struct Zarr {
    info: VolumeInfo,
    array: Array<FilesystemStore>,
}

pub(super) fn open(path: &Path) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let node = ome::node(path)?.ok_or_else(|| VolumeError::Unknown { path: path.to_path_buf() })?;
    if node.is_array {
        let level = level_of_parent(path)?;
        return open_array(path, &node, level);
    }
    let Some(level) = ome::levels(&node.attributes).into_iter().next() else {
        return Err(VolumeError::unsupported(
            path,
            format!("a Zarr group without an OME-Zarr image; arrays and groups in it: {}", children(path).join(", ")),
            "give the path of one of these",
        ));
    };
    let inner = path.join(&level.path);
    match ome::node(&inner)? {
        Some(node) if node.is_array => open_array(&inner, &node, Some(level)),
        _ => Err(VolumeError::format(&inner, "is named as level 0 of the image but holds no Zarr array")),
    }
}

/// What the group around an array says of it.
fn level_of_parent(path: &Path) -> Result<Option<Level>, VolumeError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(None);
    };
    let levels = ome::node(parent)?.map(|n| ome::levels(&n.attributes)).unwrap_or_default();
    Ok(levels.into_iter().find(|l| l.path == name))
}

/// Names of the Zarr nodes within a group, sorted.
fn children(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| matches!(ome::node(&e.path()), Ok(Some(_))))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() { vec!["none".into()] } else { names }
}

fn open_array(path: &Path, node: &Node, level: Option<Level>) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let bad = |what: String| VolumeError::format(path, format!("cannot be opened as a Zarr array: {what}"));
    let store = FilesystemStore::new(path).map_err(|e| bad(e.to_string()))?;
    let array = Array::open(Arc::new(store), "/").map_err(|e| bad(e.to_string()))?;
    let dtype = dtype(path, &array)?;
    let named = level.as_ref().map(|l| &l.axes).filter(|a| !a.is_empty()).or(node.dimension_names.as_ref());
    let shape = shape(path, array.shape(), named)?;
    let info = VolumeInfo {
        path: path.to_path_buf(),
        shape,
        voxel_size: level.and_then(|l| l.voxel_size),
        dtype,
        origin: Zyx::default(),
    };
    Ok(Box::new(Zarr { info, array }))
}

fn dtype(path: &Path, array: &Array<FilesystemStore>) -> Result<Dtype, VolumeError> {
    let known = [
        (data_type::uint8(), Dtype::U8),
        (data_type::uint16(), Dtype::U16),
        (data_type::uint32(), Dtype::U32),
        (data_type::uint64(), Dtype::U64),
    ];
    known.into_iter().find(|(t, _)| t == array.data_type()).map(|(_, d)| d).ok_or_else(|| {
        VolumeError::unsupported(
            path,
            format!("a Zarr array of {}", array.data_type()),
            "convert it to uint8 (images) or to uint8, uint16, uint32, uint64 (labels)",
        )
    })
}

/// The last three axes, which must be z, y, x; those before them must be of size 1.
fn shape(path: &Path, shape: &[u64], axes: Option<&Vec<String>>) -> Result<Zyx<usize>, VolumeError> {
    let refuse = |what: String| {
        Err(VolumeError::unsupported(
            path,
            what,
            "give an array of axes z, y, x, with nothing before them but axes of size 1",
        ))
    };
    let [before @ .., z, y, x] = shape else {
        return refuse(format!("a Zarr array of {} dimensions", shape.len()));
    };
    if let Some(axes) = axes
        && (axes.len() != shape.len() || axes[before.len()..] != ["z", "y", "x"])
    {
        return refuse(format!("a Zarr array of shape {shape:?} with the axes {}", axes.join(", ")));
    }
    if before.iter().any(|&n| n != 1) {
        return refuse(format!("a Zarr array of shape {shape:?}"));
    }
    if [z, y, x].contains(&&0) {
        return Err(VolumeError::format(path, format!("a Zarr array without voxels, shape {shape:?}")));
    }
    Ok(Zyx::new(*z as usize, *y as usize, *x as usize))
}

impl Zarr {
    fn read<T: ElementOwned>(&self, bounds: BoxZyx) -> Result<Array3<T>, VolumeError> {
        let (min, shape) = self.info.place(bounds)?;
        let before = self.array.dimensionality() - 3;
        let start = std::iter::repeat_n(0, before).chain([min.z as u64, min.y as u64, min.x as u64]).collect();
        let size = std::iter::repeat_n(1, before).chain([shape.z as u64, shape.y as u64, shape.x as u64]).collect();
        let bad = |what: String| VolumeError::format(&self.info.path, format!("cannot be read: {what}"));
        let subset = ArraySubset::new_with_start_shape(start, size).map_err(|e| bad(e.to_string()))?;
        let values: Vec<T> = self.array.retrieve_array_subset(&subset).map_err(|e| bad(e.to_string()))?;
        Array3::from_shape_vec((shape.z, shape.y, shape.x), values).map_err(|e| bad(e.to_string()))
    }
}

impl VolumeSource for Zarr {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn read_u8(&self, bounds: BoxZyx) -> Result<Array3<u8>, VolumeError> {
        self.info.require_u8()?;
        self.read(bounds)
    }

    fn read_labels(&self, bounds: BoxZyx) -> Result<Array3<u64>, VolumeError> {
        Ok(match self.info.dtype {
            Dtype::U8 => self.read::<u8>(bounds)?.mapv(u64::from),
            Dtype::U16 => self.read::<u16>(bounds)?.mapv(u64::from),
            Dtype::U32 => self.read::<u32>(bounds)?.mapv(u64::from),
            Dtype::U64 => self.read(bounds)?,
        })
    }
}
