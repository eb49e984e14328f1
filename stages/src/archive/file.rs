//! Layout of an archive file: frames one after the other, nothing else.
//!
//! ```text
//! bytes  0.. 4  "KTIL"                 32..64  BLAKE3 of the pixels
//!        4..18  tile key, big-endian   64..    width * height grey values, row by row
//!       18..22  width, little-endian
//!       22..26  height                 26..32  zero
//! ```
//! A frame can be found without the ledger by walking from header to header.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kinesin_backpressure::Bytes;
use kinesin_stream::geometry::BoxXy;
use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::{ContentHash, Place, TILE_KEY_BYTES, tile_bytes};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::tile::Tile;

use super::{ArchiveError, io_error};

/// Extension of files that are not finished.
pub(super) const PART: &str = "part";

const HEADER: usize = 64;
const MAGIC: &[u8; 4] = b"KTIL";

/// A file that grows; becomes visible under its name only by [`Self::finish`].
#[derive(Debug)]
pub(super) struct PartFile {
    file: File,
    part: PathBuf,
    path: PathBuf,
    length: u64,
}

/// What a tile takes on disk.
pub(super) fn frame_bytes(pixels: &Pixels) -> Bytes {
    Bytes((HEADER + pixels.data().len()) as u64)
}

impl PartFile {
    pub(super) fn create(path: &Path) -> Result<Self, ArchiveError> {
        let part = path.with_extension(PART);
        let file = File::create(&part).map_err(|e| write_error(&part, Bytes(0), e))?;
        Ok(Self { file, part, path: path.to_owned(), length: 0 })
    }

    /// Appends one frame. Where it fails, the next one overwrites what was half written.
    pub(super) fn append(&mut self, tile: &Tile) -> Result<Place, ArchiveError> {
        let pixels = &tile.pixels;
        let (width, height) = (pixels.width() as u32, pixels.height() as u32);
        let offset = self.length + HEADER as u64;
        let fail = |e| write_error(&self.part, frame_bytes(pixels), e);
        self.file.write_all_at(&header(tile.key, width, height, tile.hash), self.length).map_err(fail)?;
        self.file.write_all_at(pixels.data(), offset).map_err(fail)?;
        self.length += frame_bytes(pixels).0;
        Ok(Place { offset, width, height })
    }

    /// Makes the file durable under its name. `folder` is the one that holds it.
    pub(super) fn finish(self, folder: &Path) -> Result<(), ArchiveError> {
        let wanted = Bytes(self.length);
        self.file.sync_all().map_err(|e| write_error(&self.part, wanted, e))?;
        fs::rename(&self.part, &self.path).map_err(io_error("rename", &self.part))?;
        File::open(folder).and_then(|f| f.sync_all()).map_err(io_error("sync", folder))
    }
}

/// Reads all pixels of a frame; the caller checks their hash.
pub(super) fn read(path: &Path, key: TileKey, place: Place, hash: ContentHash) -> Result<Pixels, ArchiveError> {
    let file = open_at(path, key, place, hash)?;
    let mut data = vec![0; place.width as usize * place.height as usize];
    file.read_exact_at(&mut data, place.offset).map_err(|e| read_error(path, key, e))?;
    Ok(Pixels::new(place.width as usize, place.height as usize, data))
}

/// Reads a rectangle that lies within the tile.
pub(super) fn read_rect(
    path: &Path,
    key: TileKey,
    place: Place,
    hash: ContentHash,
    rect: BoxXy,
) -> Result<Pixels, ArchiveError> {
    let file = open_at(path, key, place, hash)?;
    let size = rect.size();
    let width = place.width as usize;
    let (left, top) = (rect.min.x as usize, rect.min.y as usize);
    let mut out = Vec::with_capacity(size.x * size.y);
    // Wide rectangles: one read of whole rows costs less than a call for each row.
    if size.x * 4 >= width {
        let mut rows = vec![0; width * size.y];
        let at = place.offset + (top * width) as u64;
        file.read_exact_at(&mut rows, at).map_err(|e| read_error(path, key, e))?;
        rows.chunks_exact(width).for_each(|row| out.extend_from_slice(&row[left..left + size.x]));
    } else {
        out.resize(size.x * size.y, 0);
        for (y, row) in out.chunks_exact_mut(size.x.max(1)).enumerate() {
            let at = place.offset + ((top + y) * width + left) as u64;
            file.read_exact_at(row, at).map_err(|e| read_error(path, key, e))?;
        }
    }
    Ok(Pixels::new(size.x, size.y, out))
}

/// Opens the file and checks that the frame at this place is the one that the ledger means.
fn open_at(path: &Path, key: TileKey, place: Place, hash: ContentHash) -> Result<File, ArchiveError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut found = [0; HEADER];
    let at = place.offset.checked_sub(HEADER as u64);
    let at = at.ok_or_else(|| damaged(path, key, "its place lies before the first frame"))?;
    file.read_exact_at(&mut found, at).map_err(|e| read_error(path, key, e))?;
    if found != header(key, place.width, place.height, hash) {
        return Err(damaged(path, key, "its frame header is not the one that the ledger expects"));
    }
    Ok(file)
}

fn header(key: TileKey, width: u32, height: u32, hash: ContentHash) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..4 + TILE_KEY_BYTES].copy_from_slice(&tile_bytes(key));
    bytes[18..22].copy_from_slice(&width.to_le_bytes());
    bytes[22..26].copy_from_slice(&height.to_le_bytes());
    bytes[32..].copy_from_slice(&hash.0);
    bytes
}

fn write_error(path: &Path, wanted: Bytes, source: io::Error) -> ArchiveError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => ArchiveError::StorageFull { path: path.to_owned(), wanted },
        _ => ArchiveError::Io { doing: "write", path: path.to_owned(), source },
    }
}

fn read_error(path: &Path, key: TileKey, source: io::Error) -> ArchiveError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(path, key, "the file is too short");
    }
    ArchiveError::Io { doing: "read", path: path.to_owned(), source }
}

fn damaged(path: &Path, key: TileKey, what: &str) -> ArchiveError {
    ArchiveError::Damaged { key, path: path.to_owned(), what: what.to_owned() }
}
