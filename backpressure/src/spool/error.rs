//! Why a spool cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It holds what another run has not sent yet.
    #[error(
        "the spool {folder} holds data of another run (identity {found}, this run has {wanted}); finish that run first, or give this one another spool folder"
    )]
    OtherRun {
        /// The spool's folder.
        folder: PathBuf,
        /// First half of the identity in the folder.
        found: String,
        /// First half of ours.
        wanted: String,
    },
    /// Written by another version of this program.
    #[error(
        "the spool {folder} has version {found}, this program writes {wanted}; send it with the version that began it, or give another spool folder"
    )]
    OtherVersion {
        /// The spool's folder.
        folder: PathBuf,
        /// Version in the folder.
        found: u32,
        /// Version of this program.
        wanted: u32,
    },
    /// The file that says whose spool it is does not read.
    #[error(
        "{path} does not say whose spool this is ({what}); restore it, or move the folder away to start with an empty one"
    )]
    Head {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another process has it open.
    #[error("the spool {folder} is in use by another process; wait for it or stop it")]
    InUse {
        /// The spool's folder.
        folder: PathBuf,
    },
    /// Bytes that were written are not there any more.
    #[error("{path}, byte {offset}: damaged at rest ({what}); check the disk")]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The disk failed.
    #[error("cannot {what} {path}: {source}; check the disk and its rights, or give another spool folder")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why there is no room. Both end by waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// It holds as much as it may.
    Capacity,
    /// The disk, or this user's share of it, is full.
    Disk,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Capacity => "the spool holds as much as it may",
            Self::Disk => "the spool's disk or this user's quota on it is full",
        })
    }
}

impl SpoolError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }
}

/// Whether the disk or the quota is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
