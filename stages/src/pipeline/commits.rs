//! `DIR/commits.jsonl`: what was published when. What is in it is never done again; what is not is done anew with the same bytes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kinesin_stream::volume::{CommitLog, VolumeError};
use serde::{Deserialize, Serialize};

/// One publication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "published")]
pub enum Commit {
    /// The aligned image of a section.
    Image {
        /// Its z.
        z: u32,
    },
    /// The class map of a section.
    Mask {
        /// Its z.
        z: u32,
    },
    /// The labels of sections `z0 .. z1`, with the equivalences before the `equivalences`-th line of their log.
    Labels {
        /// First z.
        z0: u32,
        /// First z after.
        z1: u32,
        /// Length of the log of equivalences.
        equivalences: u64,
    },
    /// A later version of a section, beside those before, which stay.
    Revision {
        /// Its z.
        z: u32,
        /// Which version, from 1.
        version: u32,
        /// What of its image changed: `[x0, y0, x1, y1]` each, half-open, voxels of the volume.
        boxes: Vec<[i64; 4]>,
    },
    /// Provisional labels of sections `z0 .. z1` in `volume/labels_light`.
    LabelsLight {
        /// First z.
        z0: u32,
        /// First z after.
        z1: u32,
        /// Largest id given away so far.
        last_id: u64,
    },
}

/// The log, shared by the boxes that publish.
#[derive(Debug)]
pub struct Commits {
    log: Mutex<CommitLog<Commit>>,
    before: BTreeSet<Commit>,
}

impl Commits {
    /// Opens or begins `DIR/commits.jsonl`.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn open(out: &Path) -> Result<Self, VolumeError> {
        let (log, before) = CommitLog::open(&out.join("commits.jsonl"))?;
        Ok(Self { log: Mutex::new(log), before: before.into_iter().collect() })
    }

    /// Whether it was published before this run began.
    pub fn has(&self, commit: &Commit) -> bool {
        self.before.contains(commit)
    }

    /// Whether this version of a section was published before this run began.
    pub fn has_revision(&self, z: u32, version: u32) -> bool {
        self.before.iter().any(|c| matches!(c, Commit::Revision { z: a, version: v, .. } if (*a, *v) == (z, version)))
    }

    /// What was published before this run began, in order of kind and z.
    pub fn before(&self) -> impl Iterator<Item = &Commit> {
        self.before.iter()
    }

    /// Notes a publication; it survives a power cut when this returns.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(&self, commit: &Commit) -> Result<(), VolumeError> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).append(commit)
    }
}
