//! JSON files that are there whole or not at all: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file that could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what this version writes.
    #[error("{path} is not what this version writes ({source}); remove it or use --overwrite")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
}

/// Writes `value` to `path` so that a reader, or a run killed in the middle, never sees half of it.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), FileError> {
    let io = |verb| move |source| FileError::Io { verb, path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io("make the folder of"))?;
    }
    let part = path.with_extension("json.part");
    let mut file = BufWriter::new(File::create(&part).map_err(io("write"))?);
    serde_json::to_writer(&mut file, value).map_err(|e| FileError::Io {
        verb: "write",
        path: path.into(),
        source: e.into(),
    })?;
    file.write_all(b"\n").and_then(|()| file.flush()).map_err(io("write"))?;
    file.get_ref().sync_all().map_err(io("sync"))?;
    fs::rename(&part, path).map_err(io("rename"))
}

/// Reads a file that [`write_json`] wrote; `None` where it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Io { verb: "read", path: path.into(), source }),
    };
    serde_json::from_reader(BufReader::new(file))
        .map(Some)
        .map_err(|source| FileError::Content { path: path.into(), source })
}

/// The folder of one section.
#[derive(Clone, Debug)]
pub struct SectionFiles {
    folder: PathBuf,
}

impl SectionFiles {
    /// `DIR/sections/<z>`.
    pub fn new(run: &Path, z: u32) -> Self {
        Self { folder: run.join("sections").join(z.to_string()) }
    }

    /// `DIR/sections/<z>/v<version>`: the result after retakes, beside what was published before; version 0 is the first.
    pub fn version(self, version: u32) -> Self {
        if version == 0 { self } else { Self { folder: self.folder.join(format!("v{version}")) } }
    }

    /// Solved transforms as Render TileSpecs.
    pub fn montage(&self) -> PathBuf {
        self.folder.join("montage.json")
    }

    /// Tile pixel to section pixel, for scorers.
    pub fn placements(&self) -> PathBuf {
        self.folder.join("placements.json")
    }

    /// Section pixel to volume pixel, residuals, verdict.
    pub fn alignment(&self) -> PathBuf {
        self.folder.join("alignment.json")
    }

    /// The patches that the section's alignment was solved from.
    pub fn flow(&self) -> PathBuf {
        self.folder.join("flow.json")
    }

    /// Per tile metrics and verdicts.
    pub fn quality(&self) -> PathBuf {
        self.folder.join("quality.json")
    }

    /// Measures, losses and point matches: what a later version is solved from.
    pub fn evidence(&self) -> PathBuf {
        self.folder.join("matches.json")
    }

    /// What a later version changed, and what not.
    pub fn revision(&self) -> PathBuf {
        self.folder.join("revision.json")
    }

    /// What the montage stage has to know again after a restart.
    pub fn solved(&self) -> PathBuf {
        self.folder.join("solved.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_back_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let files = SectionFiles::new(dir.path(), 7);
        assert_eq!(read_json::<Vec<u32>>(&files.montage()).expect("readable"), None);
        write_json(&files.montage(), &[1_u32, 2]).expect("writable");
        assert_eq!(read_json(&files.montage()).expect("readable"), Some(vec![1_u32, 2]));
        assert!(dir.path().join("sections/7/montage.json").is_file());
        assert!(read_json::<u32>(&files.montage()).expect_err("other content").to_string().contains("--overwrite"));
    }
}
