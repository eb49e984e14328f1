//! Neuroglancer precomputed volumes (neuroglancer, `src/datasource/precomputed/volume.md`), unsharded: a file `info` and
//! one file a chunk, named by the box that it covers in x, y, z.
//!
//! On disk everything is in the order x, y, z; a chunk's voxels run x fastest, which is an array of axes z, y, x. A chunk
//! without a file is background.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use ndarray::{Array3, s};
use serde::{Deserialize, Serialize};

use super::compressed_segmentation;
use super::planes::Samples;
use super::{Dtype, VolumeError, VolumeInfo, VolumeSource, image_file, ome};
use crate::geometry::{BoxZyx, VoxelSize, Zyx};

/// The file `info`; what it has beyond this is skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Info {
    #[serde(rename = "@type")]
    pub(super) at_type: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) data_type: String,
    pub(super) num_channels: usize,
    pub(super) scales: Vec<Scale>,
}

/// One resolution; triples in the order x, y, z.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Scale {
    pub(super) key: String,
    pub(super) size: [u64; 3],
    /// nm.
    pub(super) resolution: [f64; 3],
    #[serde(default)]
    pub(super) voxel_offset: [i64; 3],
    pub(super) chunk_sizes: Vec<[u64; 3]>,
    pub(super) encoding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compressed_segmentation_block_size: Option<[usize; 3]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sharding: Option<serde_json::Value>,
}

/// From the order of the format to ours.
pub(super) fn zyx<T: Copy, U>([x, y, z]: [T; 3], as_: impl Fn(T) -> U) -> Zyx<U> {
    Zyx::new(as_(z), as_(y), as_(x))
}

/// Name of the chunk that covers `bounds` (voxels from the first one) of a volume that begins at `origin`.
pub(super) fn chunk_name(bounds: BoxZyx, origin: Zyx<i64>) -> String {
    let BoxZyx { min, max } = bounds;
    let (ox, oy, oz) = (origin.x, origin.y, origin.z);
    format!("{}-{}_{}-{}_{}-{}", ox + min.x, ox + max.x, oy + min.y, oy + max.y, oz + min.z, oz + max.z)
}

/// The boxes of the chunks that touch `bounds`, clipped to the volume, z slowest.
pub(super) fn chunks(bounds: BoxZyx, chunk: Zyx<usize>, volume: BoxZyx) -> Vec<BoxZyx> {
    let starts = |min: i64, max: i64, c: usize| {
        let c = c as i64;
        (min / c..).map(move |i| i * c).take_while(move |&v| v < max)
    };
    let mut boxes = Vec::new();
    for z in starts(bounds.min.z, bounds.max.z, chunk.z) {
        for y in starts(bounds.min.y, bounds.max.y, chunk.y) {
            for x in starts(bounds.min.x, bounds.max.x, chunk.x) {
                let max = Zyx::new(z + chunk.z as i64, y + chunk.y as i64, x + chunk.x as i64);
                boxes.extend(BoxZyx { min: Zyx::new(z, y, x), max }.intersect(&volume));
            }
        }
    }
    boxes
}

#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Raw,
    Jpeg,
    CompressedSegmentation(Zyx<usize>),
}

struct Precomputed {
    info: VolumeInfo,
    folder: PathBuf,
    chunk: Zyx<usize>,
    encoding: Encoding,
}

pub(super) fn open(path: &Path) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let file = path.join("info");
    let text = read_chunk_file(&file)?.ok_or_else(|| VolumeError::Unknown { path: path.to_path_buf() })?;
    let kind: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| VolumeError::format(&file, format!("cannot be read as precomputed: {e}")))?;
    if let Some(t) = kind["@type"].as_str()
        && t != "neuroglancer_multiscale_volume"
    {
        return Err(VolumeError::unsupported(path, format!("holds {t}"), "give the folder of a precomputed volume"));
    }
    let info: Info = serde_json::from_value(kind)
        .map_err(|e| VolumeError::format(&file, format!("cannot be read as precomputed: {e}")))?;
    let Some(scale) = info.scales.first() else {
        return Err(VolumeError::format(&file, "lists no scales"));
    };
    let origin = zyx(scale.voxel_offset, |v| v);
    let resolution = zyx(scale.resolution, |v| v);
    let known = [resolution.z, resolution.y, resolution.x].iter().all(|r| r.is_finite() && *r > 0.0);
    let chunk = scale.chunk_sizes.first().map_or(Zyx::new(0, 0, 0), |&c| zyx(c, |v| v as usize));
    let shape = zyx(scale.size, |v| v as usize);
    if chunk.voxels() == 0 || shape.voxels() == 0 {
        return Err(VolumeError::format(&file, "has a size or chunk size of zero"));
    }
    let dtype = usable(path, &info, scale)?;
    Ok(Box::new(Precomputed {
        encoding: encoding(path, scale, dtype)?,
        info: VolumeInfo {
            path: path.to_path_buf(),
            shape,
            voxel_size: known.then_some(VoxelSize(resolution)),
            dtype,
            origin,
        },
        folder: path.join(&scale.key),
        chunk,
    }))
}

fn usable(path: &Path, info: &Info, scale: &Scale) -> Result<Dtype, VolumeError> {
    if scale.sharding.as_ref().is_some_and(|s| !s.is_null()) {
        return Err(VolumeError::unsupported(
            path,
            "a sharded precomputed volume",
            "copy it unsharded (igneous image xfer without --sharded, or CloudVolume), or convert it to Zarr",
        ));
    }
    if info.num_channels != 1 {
        return Err(VolumeError::unsupported(
            path,
            format!("{} channels", info.num_channels),
            "give a volume of one channel",
        ));
    }
    Ok(match info.data_type.as_str() {
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        other => {
            return Err(VolumeError::unsupported(
                path,
                format!("voxels of {other}"),
                "convert it to uint8 (images) or to uint8, uint16, uint32, uint64 (labels)",
            ));
        }
    })
}

fn encoding(path: &Path, scale: &Scale, dtype: Dtype) -> Result<Encoding, VolumeError> {
    match (scale.encoding.as_str(), dtype) {
        ("raw", _) => Ok(Encoding::Raw),
        ("jpeg", Dtype::U8) => Ok(Encoding::Jpeg),
        ("compressed_segmentation", Dtype::U32 | Dtype::U64) => {
            let block = zyx(scale.compressed_segmentation_block_size.unwrap_or([8; 3]), |v| v);
            if block.voxels() == 0 {
                return Err(VolumeError::format(path, "has a compressed_segmentation_block_size of zero"));
            }
            Ok(Encoding::CompressedSegmentation(block))
        }
        (other, dtype) => Err(VolumeError::unsupported(
            path,
            format!("chunks of {dtype} in the encoding {other}"),
            "convert it to raw, jpeg (uint8) or compressed_segmentation (uint32, uint64)",
        )),
    }
}

/// A file, unpacked where it is gzip'd (by its content or its name); `None` where there is none.
fn read_chunk_file(path: &Path) -> Result<Option<Vec<u8>>, VolumeError> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    for file in [path.to_path_buf(), beside(".gz")] {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(VolumeError::io(&file, e)),
        };
        if !bytes.starts_with(&[0x1f, 0x8b, 8]) {
            return Ok(Some(bytes));
        }
        let mut unpacked = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice())
            .read_to_end(&mut unpacked)
            .map_err(|e| VolumeError::format(&file, format!("cannot be unpacked as gzip: {e}")))?;
        return Ok(Some(unpacked));
    }
    for suffix in [".br", ".zstd", ".xz", ".bz2"] {
        if beside(suffix).is_file() {
            return Err(VolumeError::unsupported(
                &beside(suffix),
                "a chunk in a compression that is not read here",
                "store the chunks plain or gzip'd",
            ));
        }
    }
    Ok(None)
}

impl Precomputed {
    /// The voxels of one chunk, `None` where it has no file.
    fn chunk(&self, bounds: BoxZyx) -> Result<Option<Chunk>, VolumeError> {
        let path = self.folder.join(chunk_name(bounds, self.info.origin));
        let Some(bytes) = read_chunk_file(&path)? else { return Ok(None) };
        let shape = bounds.shape();
        let bad = |what: String| VolumeError::format(&path, what);
        let samples = match (self.encoding, self.info.dtype) {
            (Encoding::Raw, dtype) => raw(&bytes, dtype),
            (Encoding::Jpeg, _) => image_file::decode_jpeg(&path, &bytes)?.samples,
            (Encoding::CompressedSegmentation(block), Dtype::U32) => Samples::U32(
                compressed_segmentation::decode_words(&bytes, shape, block)
                    .map_err(|e| bad(e.to_string()))?
                    .into_raw_vec_and_offset()
                    .0,
            ),
            (Encoding::CompressedSegmentation(block), _) => Samples::U64(
                compressed_segmentation::decode(&bytes, shape, block)
                    .map_err(|e| bad(e.to_string()))?
                    .into_raw_vec_and_offset()
                    .0,
            ),
        };
        if samples.len() != shape.voxels() {
            return Err(bad(format!("a chunk of {} voxels, wanted {}", samples.len(), shape.voxels())));
        }
        Ok(Some(Chunk { shape, samples }))
    }

    fn read<T: Copy + Default>(
        &self,
        bounds: BoxZyx,
        values: impl Fn(&Chunk) -> Cow<'_, [T]>,
    ) -> Result<Array3<T>, VolumeError> {
        let (_, shape) = self.info.place(bounds)?;
        let mut out = Array3::default((shape.z, shape.y, shape.x));
        for chunk_box in chunks(bounds, self.chunk, self.info.bounds()) {
            let (Some(common), Some(chunk)) = (chunk_box.intersect(&bounds), self.chunk(chunk_box)?) else { continue };
            let values = values(&chunk);
            let whole = ndarray::ArrayView3::from_shape((chunk.shape.z, chunk.shape.y, chunk.shape.x), &values)
                .expect("the number of voxels was checked on decoding");
            let [from, to] = [chunk_box.min, bounds.min].map(|o| {
                let m = common.min;
                Zyx::new((m.z - o.z) as usize, (m.y - o.y) as usize, (m.x - o.x) as usize)
            });
            let n = common.shape();
            out.slice_mut(s![to.z..to.z + n.z, to.y..to.y + n.y, to.x..to.x + n.x]).assign(&whole.slice(s![
                from.z..from.z + n.z,
                from.y..from.y + n.y,
                from.x..from.x + n.x
            ]));
        }
        Ok(out)
    }
}

struct Chunk {
    shape: Zyx<usize>,
    samples: Samples,
}

fn raw(bytes: &[u8], dtype: Dtype) -> Samples {
    let word = |b: &[u8]| b.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
    match dtype {
        Dtype::U8 => Samples::U8(bytes.to_vec()),
        Dtype::U16 => Samples::U16(bytes.chunks_exact(2).map(|b| word(b) as u16).collect()),
        Dtype::U32 => Samples::U32(bytes.chunks_exact(4).map(|b| word(b) as u32).collect()),
        Dtype::U64 => Samples::U64(bytes.chunks_exact(8).map(word).collect()),
    }
}

impl VolumeSource for Precomputed {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn read_u8(&self, bounds: BoxZyx) -> Result<Array3<u8>, VolumeError> {
        self.info.require_u8()?;
        self.read(bounds, |chunk| match &chunk.samples {
            Samples::U8(v) => Cow::Borrowed(v.as_slice()),
            _ => Cow::Owned(vec![0; chunk.samples.len()]),
        })
    }

    fn read_labels(&self, bounds: BoxZyx) -> Result<Array3<u64>, VolumeError> {
        self.read(bounds, |chunk| match &chunk.samples {
            Samples::U8(v) => v.iter().map(|&v| u64::from(v)).collect(),
            Samples::U16(v) => v.iter().map(|&v| u64::from(v)).collect(),
            Samples::U32(v) => v.iter().map(|&v| u64::from(v)).collect(),
            Samples::U64(v) => Cow::Borrowed(v.as_slice()),
        })
    }
}

/// The file `info` in a folder as JSON text; `None` where there is none.
pub(super) fn existing_info(path: &Path) -> Result<Option<Info>, VolumeError> {
    let file = path.join("info");
    ome::read_json(&file)?
        .map(serde_json::from_value)
        .transpose()
        .map_err(|e| VolumeError::format(&file, format!("cannot be read as precomputed: {e}")))
}
