//! Append-only records, one JSON object a line: `commits.jsonl` (what was published when) and
//! `volume/equivalences.jsonl` (which base segments are one).
//!
//! An append returns when its lines would survive a power cut. What a cut leaves of the last line is taken off when the
//! log is opened again; anything else that cannot be read is a fault, because a record that was promised would be lost.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::VolumeError;
use super::publish::sync_folder;

/// Two base segments that belong to one object. Extra keys of a line are skipped on reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Equivalence {
    /// One label of the volume.
    pub a: u64,
    /// The other.
    pub b: u64,
}

/// A log of records of one type, open for appending.
#[derive(Debug)]
pub struct CommitLog<T> {
    path: PathBuf,
    file: File,
    length: u64,
    records: PhantomData<fn(T)>,
}

impl<T: Serialize + DeserializeOwned> CommitLog<T> {
    /// Opens or begins the log and gives the records in it; a torn last line is cut off.
    ///
    /// # Errors
    /// Where a whole line is no record, or the file system refuses.
    pub fn open(path: &Path) -> Result<(Self, Vec<T>), VolumeError> {
        let io = |e| VolumeError::io(path, e);
        let folder = path.parent().ok_or_else(|| VolumeError::spec(path, "not a path of a file"))?;
        std::fs::create_dir_all(folder).map_err(io)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let text = std::fs::read(path).map_err(io)?;
        let (records, length) = parse(path, &text)?;
        if length < text.len() as u64 {
            file.set_len(length).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        sync_folder(folder)?;
        Ok((Self { path: path.to_path_buf(), file, length, records: PhantomData }, records))
    }

    /// Appends one record.
    ///
    /// # Errors
    /// Where the file system refuses; then nothing of the record stays.
    pub fn append(&mut self, record: &T) -> Result<(), VolumeError> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Appends records with one wait for the disk.
    ///
    /// # Errors
    /// Where the file system refuses; then nothing of the records stays.
    pub fn append_all(&mut self, records: &[T]) -> Result<(), VolumeError> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)
                .map_err(|e| VolumeError::spec(&self.path, format!("a record cannot be written as JSON: {e}")))?;
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let written = self.write(&lines);
        match written {
            Ok(()) => self.length += lines.len() as u64,
            // A full disk may have taken half a line; the next append begins where this one did.
            Err(_) => self.file.set_len(self.length).map_err(|e| VolumeError::io(&self.path, e))?,
        }
        written.map_err(|e| VolumeError::io(&self.path, e))
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(lines)?;
        self.file.sync_data()
    }
}

/// The records of a log that another process may be writing; none where there is no file, a torn last line is skipped.
///
/// # Errors
/// Where a whole line is no record, or the file system refuses.
pub fn read_log<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, VolumeError> {
    match std::fs::read(path) {
        Ok(text) => Ok(parse(path, &text)?.0),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(VolumeError::io(path, e)),
    }
}

/// The records and the bytes of whole lines.
fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<(Vec<T>, u64), VolumeError> {
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let mut records = Vec::new();
    for (i, line) in text[..whole].split_inclusive(|&b| b == b'\n').enumerate() {
        records.push(
            serde_json::from_slice(line)
                .map_err(|e| VolumeError::format(path, format!("line {} is no record of this log: {e}", i + 1)))?,
        );
    }
    Ok((records, whole as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: u64) -> Equivalence {
        Equivalence { a, b: u64::MAX }
    }

    #[test]
    fn a_log_comes_back_whole_after_a_cut_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume/equivalences.jsonl");
        let (mut log, there) = CommitLog::open(&path).unwrap();
        assert!(there.is_empty());
        log.append(&pair(1)).unwrap();
        log.append_all(&[pair(2), pair(3)]).unwrap();
        let text = std::fs::read(&path).unwrap();
        let line = text.len() / 3;
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let whole = (cut / line) as u64;
            assert_eq!(read_log::<Equivalence>(&path).unwrap().len() as u64, whole);
            let (mut log, there) = CommitLog::open(&path).unwrap();
            assert_eq!(there, (1..=whole).map(pair).collect::<Vec<_>>());
            log.append_all(&(whole + 1..4).map(pair).collect::<Vec<_>>()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text, "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_line_within_the_log_is_a_fault_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commits.jsonl");
        std::fs::write(&path, "{\"a\":1,\"b\":2,\"score\":0.5}\n\0\0\0\0\n{\"a\":3,\"b\":4}\n").unwrap();
        let e = CommitLog::<Equivalence>::open(&path).unwrap_err().to_string();
        assert!(e.contains("commits.jsonl: line 2"), "{e}");
    }
}
