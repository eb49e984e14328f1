//! A multi-page TIFF, one page a section.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tiff::decoder::Decoder;

use super::image_file::{self, Header};
use super::planes::{Decode, Plane, Planes};
use super::{VolumeError, VolumeInfo, VolumeSource};
use crate::geometry::Zyx;

struct Pages {
    path: PathBuf,
    decoder: Mutex<Decoder<BufReader<File>>>,
}

pub(super) fn open(path: &Path) -> Result<Box<dyn VolumeSource>, VolumeError> {
    let mut decoder = image_file::open_tiff(path)?;
    let Header { width, height, dtype } = image_file::tiff_header(path, &mut decoder)?;
    let mut pages = 1;
    while decoder.more_images() {
        decoder.next_image().map_err(|e| image_file::bad_tiff(path, &e))?;
        pages += 1;
    }
    let info = VolumeInfo {
        path: path.to_path_buf(),
        shape: Zyx::new(pages, height, width),
        voxel_size: None,
        dtype,
        origin: Zyx::default(),
    };
    Ok(Box::new(Planes::new(info, Pages { path: path.to_path_buf(), decoder: Mutex::new(decoder) })))
}

impl Decode for Pages {
    fn decode(&self, z: usize) -> Result<Plane, VolumeError> {
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        decoder
            .seek_to_image(z)
            .map_err(|e| VolumeError::format(&self.path, format!("section {z} cannot be read as TIFF: {e}")))?;
        image_file::decode_tiff(&self.path, &mut decoder)
    }

    fn file(&self, _z: usize) -> &Path {
        &self.path
    }
}
