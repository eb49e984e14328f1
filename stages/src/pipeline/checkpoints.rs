//! `DIR/checkpoints`: half-done blocks of the window that is being flooded, one file a block, gone when the window is written.
//!
//! A file is written beside, synced and renamed, so a kill leaves the one before. A checkpoint that cannot be written costs
//! nothing but what a kill would lose; it is told once a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::flood::{BlockKey, BlockStore, Keeper};

/// See the module.
pub(super) struct Checkpoints {
    folder: PathBuf,
    every: Duration,
}

impl Checkpoints {
    /// `None` where `seconds` is 0, which is off.
    pub(super) fn every(out: &Path, seconds: f64) -> Option<Arc<dyn BlockStore>> {
        let every = Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero())?;
        Some(Arc::new(Self { folder: out.join("checkpoints"), every }))
    }

    fn path(&self, key: BlockKey) -> PathBuf {
        self.folder.join(format!("window-{:05}-block-{:04}-{:04}.bin", key.window, key.y, key.x))
    }
}

impl BlockStore for Checkpoints {
    fn keeper(&self, key: BlockKey) -> Keeper {
        let (path, every) = (self.path(key), self.every);
        let last = Arc::new(Mutex::new(Instant::now()));
        let asked = last.clone();
        Keeper {
            due: Arc::new(move || asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= every),
            keep: Arc::new(move |state| {
                if let Err(error) = write(&path, state) {
                    tracing::warn!(path = %path.display(), %error, "a checkpoint cannot be written; a kill would lose more");
                }
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }),
        }
    }

    fn kept(&self, key: BlockKey) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(key)) {
            Ok(state) => Ok(Some(state)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn forget_before(&self, window: usize) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut left = 0;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let of: Option<usize> = name.strip_prefix("window-").and_then(|n| n.get(..5)).and_then(|n| n.parse().ok());
            match of {
                Some(of) if of < window => fs::remove_file(entry.path())?,
                _ => left += 1,
            }
        }
        if left == 0 { fs::remove_dir(&self.folder) } else { Ok(()) }
    }
}

fn write(path: &Path, state: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(state)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_there_until_its_window_is_written() {
        let place = tempfile::tempdir().expect("a folder");
        assert!(Checkpoints::every(place.path(), 0.0).is_none(), "0 is off");
        let store = Checkpoints::every(place.path(), 1e-9).expect("on");
        let key = |window| BlockKey { window, y: 0, x: 1 };
        assert!(store.kept(key(3)).expect("readable").is_none());
        let keeper = store.keeper(key(3));
        assert!((keeper.due)());
        (keeper.keep)(b"old");
        (keeper.keep)(b"state");
        (store.keeper(key(4)).keep)(b"next");
        assert_eq!(store.kept(key(3)).expect("readable").as_deref(), Some(&b"state"[..]));
        store.forget_before(4).expect("removable");
        assert!(store.kept(key(3)).expect("readable").is_none());
        assert!(store.kept(key(4)).expect("readable").is_some());
        store.forget_before(usize::MAX).expect("removable");
        assert!(!place.path().join("checkpoints").exists());
    }
}
