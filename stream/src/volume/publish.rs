//! Files that appear whole or not at all: written under another name, then renamed.
//!
//! The other name is fixed by the file's own, so that what a killed process leaves is replaced when its work is done again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::VolumeError;

/// When a written file counts as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It survives a killed process; the operating system brings it to disk when it likes.
    Cached,
    /// It survives a power cut: synced to disk, with its folder, before the call returns.
    #[default]
    Synced,
}

/// Puts `bytes` at `path`, replacing what is there; folders are made.
pub(super) fn publish(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), VolumeError> {
    let io = |e| VolumeError::io(path, e);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(VolumeError::spec(path, "not a path of a file"));
    };
    let hidden = folder.join(format!(".{}.partial", name.to_string_lossy()));
    let mut file = match File::create(&hidden) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(io)?;
            File::create(&hidden)
        }
        other => other,
    }
    .map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    if durability == Durability::Synced {
        file.sync_data().map_err(io)?;
    }
    drop(file);
    fs::rename(&hidden, path).map_err(io)?;
    if durability == Durability::Synced {
        sync_folder(folder)?;
    }
    Ok(())
}

/// Takes the file at `path` away, where there is one.
pub(super) fn withdraw(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(VolumeError::io(path, e)),
        _ => Ok(()),
    }
}

/// Makes the names in `folder` survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), VolumeError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| VolumeError::io(folder, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_replaced_and_nothing_else_remains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        publish(&path, b"one", Durability::Synced).unwrap();
        fs::write(dir.path().join("a/b/.c.partial"), b"half of").unwrap();
        publish(&path, b"two", Durability::Cached).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
        withdraw(&path).unwrap();
        withdraw(&path).unwrap();
        assert!(!path.exists());
    }
}
