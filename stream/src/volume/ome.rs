//! Metadata of OME-Zarr 0.4 and 0.5 (Next-generation file format specification, Moore et al. 2021,
//! doi 10.1038/s41592-021-01326-w): which array is which level, its axes, the size of its voxels.
//!
//! In these coordinates, as in ours, a voxel's position is that of its centre: level `l`, reduced `s = 2^l` times in the
//! plane, begins `(s - 1) / 2` full voxels further in ([`crate::geometry::reduced_to_full`]).

use std::path::Path;

use serde_json::{Map, Value, json};

use super::VolumeError;
use crate::geometry::{VoxelSize, Zyx};

/// A node of a Zarr hierarchy: its attributes, whether it is an array, the names of its axes where it gives them.
pub(super) struct Node {
    pub(super) is_array: bool,
    pub(super) attributes: Value,
    pub(super) dimension_names: Option<Vec<String>>,
}

/// What a multiscale group says of one of its arrays.
#[derive(Debug, PartialEq)]
pub(super) struct Level {
    /// Path of the array within the group.
    pub(super) path: String,
    /// Names of the axes, one a dimension.
    pub(super) axes: Vec<String>,
    /// nm along z, y, x, where units are given.
    pub(super) voxel_size: Option<VoxelSize>,
}

/// The node in a folder; `None` where the folder is none.
pub(super) fn node(folder: &Path) -> Result<Option<Node>, VolumeError> {
    if let Some(v3) = read_json(&folder.join("zarr.json"))? {
        let names = v3["dimension_names"].as_array().and_then(|n| {
            n.iter().map(|n| n.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>().filter(|n| !n.is_empty())
        });
        return Ok(Some(Node {
            is_array: v3["node_type"] == "array",
            attributes: v3.get("attributes").cloned().unwrap_or(Value::Object(Map::new())),
            dimension_names: names,
        }));
    }
    let is_array = folder.join(".zarray").is_file();
    let attributes = read_json(&folder.join(".zattrs"))?;
    if !is_array && attributes.is_none() && !folder.join(".zgroup").is_file() {
        return Ok(None);
    }
    Ok(Some(Node { is_array, attributes: attributes.unwrap_or(Value::Object(Map::new())), dimension_names: None }))
}

/// A JSON file, `None` where there is none.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, VolumeError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| VolumeError::format(path, format!("cannot be read as JSON: {e}"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(VolumeError::io(path, e)),
    }
}

/// The levels of the first image of a group, finest first; empty where it is none.
pub(super) fn levels(attributes: &Value) -> Vec<Level> {
    let image = &attributes["ome"]["multiscales"][0];
    let image = if image.is_null() { &attributes["multiscales"][0] } else { image };
    let text = |v: &Value| v.as_str().map(str::to_ascii_lowercase);
    // 0.4 and later give objects, earlier drafts bare names.
    let axes: Vec<(String, Option<String>)> = image["axes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| Some((text(&a["name"]).or_else(|| text(a))?, text(&a["unit"]))))
        .collect();
    let common = scale(&image["coordinateTransformations"], axes.len());
    let level = |dataset: &Value| {
        let own = scale(&dataset["coordinateTransformations"], axes.len());
        let size =
            |i: usize| Some(own.as_ref()?[i] * common.as_ref().map_or(1.0, |c| c[i]) * nm(axes[i].1.as_deref()?)?);
        let voxel_size = axes.len().checked_sub(3).and_then(|n| {
            let v = Zyx::new(size(n)?, size(n + 1)?, size(n + 2)?);
            [v.z, v.y, v.x].iter().all(|s| s.is_finite() && *s > 0.0).then_some(VoxelSize(v))
        });
        let path = dataset["path"].as_str()?.trim_matches('/').to_owned();
        Some(Level { path, axes: axes.iter().map(|a| a.0.clone()).collect(), voxel_size })
    };
    image["datasets"].as_array().into_iter().flatten().filter_map(level).collect()
}

/// The scale among coordinate transformations, one value a dimension.
fn scale(transformations: &Value, dimensions: usize) -> Option<Vec<f64>> {
    let of = transformations.as_array()?.iter().find(|t| t["type"] == "scale")?;
    let values: Option<Vec<f64>> = of["scale"].as_array()?.iter().map(Value::as_f64).collect();
    values.filter(|v| v.len() == dimensions)
}

/// Nanometres in a unit of length.
fn nm(unit: &str) -> Option<f64> {
    Some(match unit {
        "angstrom" => 0.1,
        "picometer" => 1e-3,
        "nanometer" | "nm" => 1.0,
        "micrometer" | "micron" | "um" | "µm" => 1e3,
        "millimeter" | "mm" => 1e6,
        "centimeter" => 1e7,
        "meter" | "m" => 1e9,
        _ => return None,
    })
}

/// Group metadata of an image of `levels` levels, each reduced twice more in the plane; `method` says how.
pub(super) fn group(name: &str, voxel: VoxelSize, levels: usize, method: &str) -> Value {
    let axis = |n: &str| json!({"name": n, "type": "space", "unit": "nanometer"});
    let VoxelSize(v) = voxel;
    let datasets: Vec<Value> = (0..levels)
        .map(|l| {
            let s = f64::from(1u32 << l);
            let begin = crate::geometry::reduced_to_full(0.0, s);
            json!({
                "path": l.to_string(),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [v.z, v.y * s, v.x * s]},
                    {"type": "translation", "translation": [0.0, v.y * begin, v.x * begin]},
                ],
            })
        })
        .collect();
    json!({
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {
                "version": "0.5",
                "multiscales": [{
                    "name": name,
                    "axes": [axis("z"), axis("y"), axis("x")],
                    "datasets": datasets,
                    "type": method,
                }],
            },
        },
    })
}

/// Array metadata of 8-bit voxels in chunks one section thick, zstd-compressed, absent chunks zero.
pub(super) fn array(shape: Zyx<usize>, chunk: Zyx<usize>, zstd_level: i32) -> Value {
    json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": <[usize; 3]>::from(shape),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": <[usize; 3]>::from(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes"},
            {"name": "zstd", "configuration": {"level": zstd_level, "checksum": false}},
        ],
        "dimension_names": ["z", "y", "x"],
        "attributes": {},
    })
}
