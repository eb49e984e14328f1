//! A tile on its way, and the loss that takes its place when it will never come.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::TileKey;
use crate::ledger::ContentHash;
use crate::pixels::Pixels;
use crate::plan::SectionPlan;

/// One decoded tile. Carries its section's promise, so that a gatherer knows its total from the first item it sees.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Who it is.
    pub key: TileKey,
    /// The promise it belongs to.
    pub plan: Arc<SectionPlan>,
    /// The image as acquired.
    pub pixels: Pixels,
    /// BLAKE3 of `pixels`, as checked where they came in: nobody behind it hashes them again.
    pub hash: ContentHash,
}

/// Why an item will never come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum Reason {
    /// The instrument says that it did not take it.
    NotAcquired(String),
    /// The file could not be read as an image; the text says what was found and what was expected.
    Unreadable(String),
    /// The image has another size or depth than was promised.
    WrongShape(String),
    /// The whole section is missing.
    SectionMissing,
    /// There was no room for it, and its instrument cannot be held; announced before.
    NoRoom(String),
    /// Its bytes were found changed at rest, where nobody could send them again.
    Damaged(String),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAcquired(why) => write!(f, "not acquired: {why}"),
            Self::Unreadable(what) => write!(f, "unreadable: {what}"),
            Self::WrongShape(what) => write!(f, "wrong shape: {what}"),
            Self::SectionMissing => write!(f, "the section is missing"),
            Self::NoRoom(what) => write!(f, "no room: {what}"),
            Self::Damaged(what) => write!(f, "damaged at rest: {what}"),
        }
    }
}

/// A tile that was promised and will never come.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The promised tile.
    pub key: TileKey,
    /// The promise it belongs to.
    pub plan: Arc<SectionPlan>,
    /// Why.
    pub reason: Reason,
}
