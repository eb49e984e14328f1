//! Why the ledger cannot do something.

use std::path::PathBuf;

use super::{PlanDigest, VERSION};
use crate::ids::{SectionId, TileKey};

/// Why the ledger cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The folder holds another run.
    #[error(
        "{path} belongs to a run with plan {found}, this run has plan {wanted}; give --overwrite to replace it or another --out"
    )]
    OtherPlan {
        /// The ledger file.
        path: PathBuf,
        /// Digest in the file.
        found: PlanDigest,
        /// Digest of this run.
        wanted: PlanDigest,
    },
    /// Written by another version of this program.
    #[error("{path} has ledger version {found}, this program writes {wanted}; finish the run with the version that began it, or give another --out", wanted = String::from_utf8_lossy(VERSION))]
    OtherVersion {
        /// The ledger file.
        path: PathBuf,
        /// Version in the file.
        found: String,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; wait for it or stop it")]
    InUse {
        /// The ledger file.
        path: PathBuf,
    },
    /// A section's promise changed after it was made.
    #[error(
        "the plan of {section} differs from the one in {path}; a promise cannot change within a run, give another --out"
    )]
    PlanChanged {
        /// Which section.
        section: SectionId,
        /// The ledger file.
        path: PathBuf,
    },
    /// An outcome for a tile that no plan promised, or that already has one: a bug of the caller.
    #[error("{key} is {found}, so it cannot be settled now")]
    NotExpected {
        /// Which tile.
        key: TileKey,
        /// Its state, or that it is unknown.
        found: &'static str,
    },
    /// Reading or writing the store failed.
    #[error("ledger {path}: {source}")]
    Store {
        /// The ledger file.
        path: PathBuf,
        /// What the store said.
        source: Box<redb::Error>,
    },
    /// A row does not read back.
    #[error("ledger {path} has a damaged row: {source}")]
    Damaged {
        /// The ledger file.
        path: PathBuf,
        /// What does not parse.
        source: serde_json::Error,
    },
}
