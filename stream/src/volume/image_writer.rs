//! Images and masks as people open them: OME-Zarr 0.5, 8-bit, one section a chunk in z, reduced in the plane.
//!
//! ```text
//! DIR/zarr.json            the group: axes, levels, voxel sizes in nm
//! DIR/0/zarr.json          level 0, planned extent
//! DIR/0/c/<z>/<y>/<x>      one chunk, zstd; absent where all is 0
//! DIR/1 ...                each level half the one before along y and x, rounded up; never along z
//! ```
//! A section is written on its own, rows from the top: memory is one row of chunks a level. Every file appears whole or
//! not at all, and the same section written again gives the same bytes, so what was cut short is just done again.

use std::path::{Path, PathBuf};

use ndarray::ArrayView2;
use rayon::prelude::*;
use serde_json::Value;

use super::publish::{publish, withdraw};
use super::{Corners, Durability, VolumeError, ome};
use crate::geometry::{BoxZyx, VoxelSize, Xy, Zyx};

/// Small enough for pixels that hardly compress to go through at the speed of copying.
const ZSTD_LEVEL: i32 = 1;
/// Pixels of a reduced row that are made alike.
const REDUCED_AT_ONCE: usize = 64;
/// More would not fit the numbers of a pixel.
const MOST_LEVELS: usize = 24;

/// What an image volume is.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// Planned extent, voxels.
    pub shape: Zyx<usize>,
    /// nm.
    pub voxel_size: VoxelSize,
    /// Levels, 1 for the full one alone; see [`ImageSpec::levels_for`].
    pub levels: usize,
    /// Width and height of a chunk, voxels.
    pub chunk: Xy<usize>,
    /// How four voxels become one.
    pub reduce: Reduce,
}

/// How four voxels of a plane become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Grey values: the rounded mean of those that are not 0; 0, no data, only where all are.
    Mean,
    /// Classes: the one that most have; of equals the highest, so that what is marked does not vanish.
    Mode,
}

impl ImageSpec {
    /// Levels until the plane fits one chunk.
    pub fn levels_for(shape: Zyx<usize>, chunk: Xy<usize>) -> usize {
        let fits = |l: &usize| shape.y.div_ceil(1 << l) <= chunk.y && shape.x.div_ceil(1 << l) <= chunk.x;
        (0..MOST_LEVELS).find(fits).map_or(MOST_LEVELS, |l| l + 1)
    }

    /// Height and width of a level.
    fn plane(&self, level: usize) -> Xy<usize> {
        Xy::new(self.shape.x.div_ceil(1 << level), self.shape.y.div_ceil(1 << level))
    }
}

/// Writes sections; may be shared among threads that write different sections.
#[derive(Debug)]
pub struct ImageWriter {
    path: PathBuf,
    spec: ImageSpec,
    durability: Durability,
}

impl ImageWriter {
    /// Begins a volume in `path`, or goes on with the same one.
    ///
    /// # Errors
    /// Where another volume is there, the spec makes none, or the file system refuses.
    pub fn create(path: &Path, spec: ImageSpec) -> Result<Self, VolumeError> {
        check(path, &spec)?;
        // The group comes last: who sees it finds its levels.
        for (file, wanted) in describe(path, &spec) {
            match ome::read_json(&file)? {
                Some(there) if there != wanted => return Err(VolumeError::Different { path: file }),
                Some(_) => {}
                None => {
                    let text = serde_json::to_vec_pretty(&wanted).expect("plain numbers and text");
                    publish(&file, &text, Durability::Synced)?;
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), spec, durability: Durability::default() })
    }

    /// Goes on with the volume in `path`, which [`create`](Self::create) began.
    ///
    /// # Errors
    /// Where there is none, or one that was not made here.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let read = |p: PathBuf| ome::read_json(&p)?.ok_or(VolumeError::Unknown { path: path.to_path_buf() });
        let (group, array) = (read(path.join("zarr.json"))?, read(path.join("0/zarr.json"))?);
        let different = || VolumeError::Different { path: path.join("zarr.json") };
        let spec = recover(&group, &array).ok_or_else(different)?;
        if describe(path, &spec).into_iter().try_fold(true, |same, (p, v)| Ok(same && read(p)? == v))? {
            return Ok(Self { path: path.to_path_buf(), spec, durability: Durability::default() });
        }
        Err(different())
    }

    /// The same writer with another promise; [`Durability::Synced`] unless said.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What the volume is.
    pub fn spec(&self) -> &ImageSpec {
        &self.spec
    }

    /// Writes a whole section, axes y, x, at every level. Writing the same again changes nothing.
    ///
    /// # Errors
    /// Where the section is outside or of another size, or the file system refuses.
    pub fn write_section(&self, z: usize, section: ArrayView2<'_, u8>) -> Result<(), VolumeError> {
        let mut writer = self.section(z)?;
        writer.push_rows(section)?;
        writer.finish()
    }

    /// Begins section `z`, to be given rows from the top.
    ///
    /// # Errors
    /// Where there is no such section.
    pub fn section(&self, z: usize) -> Result<SectionWriter<'_>, VolumeError> {
        let Zyx { z: depth, y, x } = self.spec.shape;
        if z >= depth {
            let at = z as i64;
            let wanted = BoxZyx { min: Zyx::new(at, 0, 0), max: Zyx::new(at + 1, y as i64, x as i64) };
            let has = Corners(BoxZyx::from_shape(self.spec.shape));
            return Err(VolumeError::Bounds { path: self.path.clone(), wanted: Corners(wanted), has });
        }
        let levels = (0..self.spec.levels).map(|l| Band::new(self.spec.plane(l), self.spec.chunk)).collect();
        Ok(SectionWriter { image: self, z, levels })
    }
}

/// A section on its way to disk.
#[derive(Debug)]
pub struct SectionWriter<'a> {
    image: &'a ImageWriter,
    z: usize,
    levels: Vec<Band>,
}

/// The rows of one level that wait for their chunks to be full.
#[derive(Debug)]
struct Band {
    plane: Xy<usize>,
    /// Rows seen so far.
    rows: usize,
    /// One row of chunks, `plane.x` wide.
    waiting: Vec<u8>,
    /// The row that waits for the one below it, to be reduced with it.
    upper: Vec<u8>,
}

impl Band {
    fn new(plane: Xy<usize>, chunk: Xy<usize>) -> Self {
        Self { plane, rows: 0, waiting: Vec::with_capacity(plane.x * chunk.y.min(plane.y)), upper: Vec::new() }
    }
}

impl SectionWriter<'_> {
    /// The next rows, full width, from the top.
    ///
    /// # Errors
    /// Where they are of another width or more than the section has, or the file system refuses.
    pub fn push_rows(&mut self, rows: ArrayView2<'_, u8>) -> Result<(), VolumeError> {
        let wanted = self.image.spec.plane(0);
        if rows.ncols() != wanted.x || self.levels[0].rows + rows.nrows() > wanted.y {
            return Err(self.wrong_size(self.levels[0].rows + rows.nrows(), rows.ncols()));
        }
        for row in rows.rows() {
            match row.as_slice() {
                Some(row) => self.push_row(0, row)?,
                None => self.push_row(0, &row.to_vec())?,
            }
        }
        Ok(())
    }

    /// Ends the section.
    ///
    /// # Errors
    /// Where rows are missing: the section stays as it was below them, and has to be written again.
    pub fn finish(self) -> Result<(), VolumeError> {
        if self.levels[0].rows < self.image.spec.shape.y {
            return Err(self.wrong_size(self.levels[0].rows, self.image.spec.shape.x));
        }
        Ok(())
    }

    fn wrong_size(&self, rows: usize, columns: usize) -> VolumeError {
        let Xy { x, y } = self.image.spec.plane(0);
        VolumeError::spec(
            &self.image.path,
            format!("section {} given as {rows} rows of {columns} px; the volume has {y} rows of {x} px", self.z),
        )
    }

    fn push_row(&mut self, level: usize, row: &[u8]) -> Result<(), VolumeError> {
        let spec = &self.image.spec;
        let band = &mut self.levels[level];
        band.waiting.extend_from_slice(row);
        band.rows += 1;
        let last = band.rows == band.plane.y;
        if last || band.rows.is_multiple_of(spec.chunk.y) {
            self.image.write_chunks(self.z, level, (band.rows - 1) / spec.chunk.y, &band.waiting)?;
            band.waiting.clear();
        }
        if level + 1 == spec.levels {
            return Ok(());
        }
        let reduced = if band.rows.is_multiple_of(2) {
            Some(reduce(&band.upper, row, spec.reduce))
        } else if last {
            Some(reduce(row, &[], spec.reduce))
        } else {
            band.upper.clear();
            band.upper.extend_from_slice(row);
            None
        };
        reduced.map_or(Ok(()), |row| self.push_row(level + 1, &row))
    }
}

impl ImageWriter {
    /// Writes one row of chunks of a section from its `rows`, as many as there are.
    fn write_chunks(&self, z: usize, level: usize, chunk_row: usize, rows: &[u8]) -> Result<(), VolumeError> {
        let Xy { x: width, y: height } = self.spec.chunk;
        let across = self.spec.plane(level).x;
        let folder = self.path.join(format!("{level}/c/{z}/{chunk_row}"));
        let chunks = (0..across.div_ceil(width)).into_par_iter();
        chunks.try_for_each_init(Packer::default, |packer, i| {
            let path = folder.join(i.to_string());
            let columns = i * width..((i + 1) * width).min(across);
            let chunk = &mut packer.chunk;
            chunk.clear();
            chunk.resize(width * height, 0);
            for (from, to) in rows.chunks_exact(across).zip(chunk.chunks_exact_mut(width)) {
                to[..columns.len()].copy_from_slice(&from[columns.clone()]);
            }
            if chunk.iter().all(|&v| v == 0) {
                return withdraw(&path);
            }
            let packed = packer.pack().map_err(|e| VolumeError::io(&path, e))?;
            publish(&path, packed, self.durability)
        })
    }
}

/// What one thread packs its chunks with.
#[derive(Default)]
struct Packer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    chunk: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    fn pack(&mut self) -> std::io::Result<&[u8]> {
        let compressor = match &mut self.compressor {
            Some(there) => there,
            none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
        };
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.chunk.len()));
        compressor.compress_to_buffer(&self.chunk, &mut self.packed)?;
        Ok(&self.packed)
    }
}

/// Halves two rows (or the last one alone, with `lower` empty) into one; an odd last column stands alone.
fn reduce(upper: &[u8], lower: &[u8], by: Reduce) -> Vec<u8> {
    let (top, top_rest) = upper.as_chunks::<2>();
    let (bottom, bottom_rest) = lower.as_chunks::<2>();
    let mut out = Vec::with_capacity(upper.len().div_ceil(2));
    if bottom.is_empty() {
        out.extend(top.iter().map(|pair| by.one(pair)));
    }
    for (top, bottom) in top.chunks(REDUCED_AT_ONCE).zip(bottom.chunks(REDUCED_AT_ONCE)) {
        let four = top.iter().zip(bottom);
        // Nearly all of an image holds data: no case to tell apart.
        if by == Reduce::Mean && !top.as_flattened().contains(&0) && !bottom.as_flattened().contains(&0) {
            let sum = |([a, b], [c, d]): (&[u8; 2], &[u8; 2])| [a, b, c, d].map(|v| u16::from(*v)).iter().sum::<u16>();
            out.extend(four.map(|four| ((sum(four) + 2) / 4) as u8));
        } else {
            out.extend(four.map(|(&[a, b], &[c, d])| by.one(&[a, b, c, d])));
        }
    }
    if let Some(&a) = top_rest.first() {
        out.push(bottom_rest.first().map_or(a, |&c| by.one(&[a, c])));
    }
    out
}

impl Reduce {
    fn one(self, values: &[u8]) -> u8 {
        match self {
            Self::Mean => mean(values),
            Self::Mode => mode(values),
        }
    }
}

fn mean(values: &[u8]) -> u8 {
    let sum = values.iter().map(|&v| u16::from(v)).sum::<u16>();
    match values.iter().filter(|&&v| v > 0).count() {
        0 => 0,
        1 => sum as u8,
        2 => sum.div_ceil(2) as u8,
        3 => ((sum + 1) / 3) as u8,
        _ => ((sum + 2) / 4) as u8,
    }
}

fn mode(values: &[u8]) -> u8 {
    let count = |c: u8| values.iter().filter(|&&v| v == c).count();
    values.iter().copied().max_by_key(|&v| (count(v), v)).unwrap_or(0)
}

fn check(path: &Path, spec: &ImageSpec) -> Result<(), VolumeError> {
    let Zyx { z, y, x } = spec.voxel_size.0;
    if spec.shape.voxels() == 0 || spec.chunk.x == 0 || spec.chunk.y == 0 {
        return Err(VolumeError::spec(path, "an image needs a shape and a chunk of one voxel or more along each axis"));
    }
    if [z, y, x].iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Err(VolumeError::spec(
            path,
            format!("a voxel size of {z} x {y} x {x} nm (z, y, x); give positive ones"),
        ));
    }
    if spec.levels == 0 || spec.levels > MOST_LEVELS {
        return Err(VolumeError::spec(path, format!("{} levels; give 1 to {MOST_LEVELS}", spec.levels)));
    }
    Ok(())
}

/// The metadata files, the group last.
fn describe(path: &Path, spec: &ImageSpec) -> Vec<(PathBuf, Value)> {
    let chunk = Zyx::new(1, spec.chunk.y, spec.chunk.x);
    let level = |l: usize| {
        let Xy { x, y } = spec.plane(l);
        (path.join(format!("{l}/zarr.json")), ome::array(Zyx::new(spec.shape.z, y, x), chunk, ZSTD_LEVEL))
    };
    let method = match spec.reduce {
        Reduce::Mean => "mean",
        Reduce::Mode => "mode",
    };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let group = ome::group(&name, spec.voxel_size, spec.levels, method);
    (0..spec.levels).map(level).chain([(path.join("zarr.json"), group)]).collect()
}

/// The spec that metadata of ours describe.
fn recover(group: &Value, array: &Value) -> Option<ImageSpec> {
    let levels = ome::levels(&group["attributes"]);
    let triple = |v: &Value| {
        let n: Option<Vec<usize>> = v.as_array()?.iter().map(|n| Some(n.as_u64()? as usize)).collect();
        <[usize; 3]>::try_from(n?).ok().map(Zyx::from)
    };
    let chunk = triple(&array["chunk_grid"]["configuration"]["chunk_shape"])?;
    Some(ImageSpec {
        shape: triple(&array["shape"])?,
        voxel_size: levels.first()?.voxel_size?,
        levels: levels.len(),
        chunk: Xy::new(chunk.x, chunk.y),
        reduce: match group["attributes"]["ome"]["multiscales"][0]["type"].as_str()? {
            "mean" => Reduce::Mean,
            "mode" => Reduce::Mode,
            _ => return None,
        },
    })
}
