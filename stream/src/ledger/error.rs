//! Why the ledger cannot do something.

use std::path::PathBuf;

use super::{PlanDigest, State, VERSION};
use crate::ids::{MfovId, SectionId, TileKey};

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
        "the plan of {section} differs from the one in {path}; a promise may only grow, by a later version that holds all of it: give another --out"
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
    /// An mFOV that no plan promised: a bug of the caller.
    #[error("{mfov} is in no plan in {path}")]
    UnknownMfov {
        /// Which stage stop.
        mfov: MfovId,
        /// The ledger file.
        path: PathBuf,
    },
    /// A state that cannot follow the one it is in: a bug of the caller.
    #[error("{key} is {from}, so it cannot become {to}")]
    Backward {
        /// Which tile.
        key: TileKey,
        /// Where it stands.
        from: State,
        /// What was asked for.
        to: State,
    },
    /// A state that this call does not enter: a bug of the caller.
    #[error("{state} is not entered this way; see the ledger's calls")]
    OtherCall {
        /// What was asked for.
        state: State,
    },
    /// The file is something else.
    #[error("{path} is not a ledger of this program: {what}")]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// There is none.
    #[error("there is no ledger {path}; give the folder of a run")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
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
    #[error("ledger {path} has a damaged record: {what}")]
    Damaged {
        /// The ledger file.
        path: PathBuf,
        /// What does not parse.
        what: String,
    },
}
