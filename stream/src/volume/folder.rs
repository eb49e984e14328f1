//! A folder of images, one a section, in the order of their names (runs of digits compare as numbers).

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::image_file::{self, Header};
use super::planes::{Decode, Plane, Planes, Samples};
use super::{Dtype, VolumeError, VolumeInfo, VolumeSource};
use crate::geometry::{Xy, Zyx};
use ndarray::Array2;

struct Folder {
    files: Vec<PathBuf>,
}

pub(super) fn open(path: &Path) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let files = sections(path)?;
    let Some(first) = files.first() else {
        return Err(VolumeError::Unknown { path: path.to_path_buf() });
    };
    let Header { width, height, dtype } = image_file::header(first)?;
    let info = VolumeInfo {
        path: path.to_path_buf(),
        shape: Zyx::new(files.len(), height, width),
        voxel_size: None,
        dtype,
        origin: Zyx::default(),
    };
    Ok(Box::new(Planes::new(info, Folder { files })))
}

/// One image of a folder, whatever its size.
#[derive(Debug)]
pub struct SectionImage {
    /// The file.
    pub path: PathBuf,
    /// Its width and height as its head says, or why it is no 8-bit grey image that can be read.
    pub size: Result<Xy<usize>, VolumeError>,
}

impl SectionImage {
    /// The whole image, axes y, x.
    ///
    /// # Errors
    /// Where it cannot be read or is not 8-bit grey.
    pub fn read(&self) -> Result<Array2<u8>, VolumeError> {
        let plane = image_file::decode(&self.path)?;
        let Samples::U8(values) = plane.samples else { return Err(no_grey(&self.path, plane.samples.dtype())) };
        let size = (plane.height, plane.width);
        Array2::from_shape_vec(size, values).map_err(|e| VolumeError::format(&self.path, e.to_string()))
    }
}

/// The images of a folder in section order; they need not be alike, nor readable.
///
/// # Errors
/// Where the folder cannot be listed, or a section is there twice.
pub fn section_images(path: &Path) -> Result<Vec<SectionImage>, VolumeError> {
    let size = |path: &PathBuf| match image_file::header(path)? {
        Header { width, height, dtype: Dtype::U8 } => Ok(Xy::new(width, height)),
        Header { dtype, .. } => Err(no_grey(path, dtype)),
    };
    Ok(sections(path)?.into_iter().map(|path| SectionImage { size: size(&path), path }).collect())
}

fn no_grey(path: &Path, dtype: Dtype) -> VolumeError {
    VolumeError::unsupported(path, format!("an image of {dtype}"), "convert it to 8-bit grey")
}

/// The image files of a folder in section order.
fn sections(path: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| VolumeError::io(path, e))? {
        let file = entry.map_err(|e| VolumeError::io(path, e))?.path();
        let hidden = file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if image_file::is_image(&file) && !hidden && file.is_file() {
            files.push(file);
        }
    }
    let stem = |p: &PathBuf| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    files.sort_by(|a, b| by_name(&stem(a), &stem(b)).then_with(|| a.cmp(b)));
    if let Some(twice) = files.windows(2).find(|w| stem(&w[0]) == stem(&w[1])) {
        return Err(VolumeError::format(
            path,
            format!("section {} is there twice, as {} and {}", stem(&twice[0]), twice[0].display(), twice[1].display()),
        ));
    }
    Ok(files)
}

/// Text order in which runs of digits compare by their value.
fn by_name(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (da, db) = (digits(a), digits(b));
        if da > 0 && db > 0 {
            let (na, nb) = (a[..da].trim_start_matches('0'), b[..db].trim_start_matches('0'));
            let order = na.len().cmp(&nb.len()).then_with(|| na.cmp(nb)).then_with(|| da.cmp(&db));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[da..], &b[db..]);
            continue;
        }
        let (mut ca, mut cb) = (a.chars(), b.chars());
        match (ca.next(), cb.next()) {
            (None, None) => return Ordering::Equal,
            (x, y) if x != y => return x.cmp(&y),
            _ => (a, b) = (ca.as_str(), cb.as_str()),
        }
    }
}

fn digits(s: &str) -> usize {
    s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len()
}

impl Decode for Folder {
    fn decode(&self, z: usize) -> Result<Plane, VolumeError> {
        image_file::decode(&self.files[z])
    }

    fn file(&self, z: usize) -> &Path {
        &self.files[z]
    }
}
