//! What the ledger stores of a tile, and how keys are laid out so that the store's order is the order of keys.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, TileKey};
use crate::tile::Reason;

/// Where a promised tile stands. Every promised tile is in exactly one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Promised by its section's plan; not here yet.
    Expected,
    /// In the archive; would survive a power cut.
    Durable,
    /// Will never come; the row says why.
    Lost,
}

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// File name or TileSpec id from the plan.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Identity of the content, once durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ContentHash>,
    /// Where it lies, once durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What inspection measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<serde_json::Value>,
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

/// Tiles per state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Promised and still to come.
    pub expected: u64,
    /// In the archive.
    pub durable: u64,
    /// Lost with a reason.
    pub lost: u64,
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

impl Counts {
    /// All promised tiles.
    pub fn promised(&self) -> u64 {
        self.expected + self.durable + self.lost
    }

    pub(super) fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Expected => &mut self.expected,
            State::Durable => &mut self.durable,
            State::Lost => &mut self.lost,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.durable += other.durable;
        self.lost += other.lost;
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

/// Bytes of a stored mFOV id and of a stored tile key. Big-endian: byte order is key order.
pub const MFOV_KEY_BYTES: usize = 12;
/// See [`MFOV_KEY_BYTES`].
pub const TILE_KEY_BYTES: usize = 14;

/// `section, region, mfov, attempt`, big-endian.
pub fn mfov_bytes(id: MfovId) -> [u8; MFOV_KEY_BYTES] {
    let mut bytes = [0; MFOV_KEY_BYTES];
    bytes[..4].copy_from_slice(&id.section.0.to_be_bytes());
    bytes[4..6].copy_from_slice(&id.region.0.to_be_bytes());
    bytes[6..10].copy_from_slice(&id.mfov.to_be_bytes());
    bytes[10..].copy_from_slice(&id.attempt.0.to_be_bytes());
    bytes
}

/// `mfov, beam`, big-endian. The same layout goes over the wire and into archive files.
pub fn tile_bytes(key: TileKey) -> [u8; TILE_KEY_BYTES] {
    let mut bytes = [0; TILE_KEY_BYTES];
    bytes[..MFOV_KEY_BYTES].copy_from_slice(&mfov_bytes(key.mfov));
    bytes[MFOV_KEY_BYTES..].copy_from_slice(&key.beam.0.to_be_bytes());
    bytes
}

/// Inverse of [`mfov_bytes`].
pub fn mfov_from(b: &[u8; MFOV_KEY_BYTES]) -> MfovId {
    MfovId {
        section: SectionId(u32::from_be_bytes([b[0], b[1], b[2], b[3]])),
        region: RegionId(u16::from_be_bytes([b[4], b[5]])),
        mfov: u32::from_be_bytes([b[6], b[7], b[8], b[9]]),
        attempt: Attempt(u16::from_be_bytes([b[10], b[11]])),
    }
}

/// Inverse of [`tile_bytes`].
pub fn tile_from(b: &[u8; TILE_KEY_BYTES]) -> TileKey {
    let mut mfov = [0; MFOV_KEY_BYTES];
    mfov.copy_from_slice(&b[..MFOV_KEY_BYTES]);
    TileKey { mfov: mfov_from(&mfov), beam: BeamId(u16::from_be_bytes([b[12], b[13]])) }
}
