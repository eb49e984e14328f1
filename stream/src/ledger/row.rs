//! What the ledger tells of a tile.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::state::{State, Times};
use crate::tile::Reason;

/// BLAKE3 of a tile's pixels, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

/// Where the pixels lie: in the archive file of the tile's mFOV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// First byte of the pixels in that file.
    pub offset: u64,
    /// Columns, pixels.
    pub width: u32,
    /// Rows, pixels.
    pub height: u32,
}

/// One tile's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// File name or TileSpec id from the plan.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why it is lost.
    pub reason: Option<Reason>,
    /// Identity of the content, once durable.
    pub hash: Option<ContentHash>,
    /// Where it lies, once durable.
    pub place: Option<Place>,
    /// What inspection measured.
    pub quality: Option<serde_json::Value>,
    /// When it reached each state.
    pub times: Times,
}

/// How a promised tile ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its pixels are on disk and synced.
    Durable {
        /// Identity of the content.
        hash: ContentHash,
        /// Where it lies.
        place: Place,
        /// What inspection measured.
        quality: Option<serde_json::Value>,
    },
    /// It will never come.
    Lost(Reason),
}

/// How often a tile came again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicates {
    /// With the same content: dropped.
    pub same: u64,
    /// With other content: one was kept, see the archive.
    pub other: u64,
}

impl Duplicates {
    /// Counts one more.
    pub fn count(&mut self, same: bool) {
        *(if same { &mut self.same } else { &mut self.other }) += 1;
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text).map(|h| Self(*h.as_bytes())).map_err(de::Error::custom)
    }
}
