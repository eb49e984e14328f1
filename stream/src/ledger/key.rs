//! Layout of keys at rest: big-endian, so that the store's order is the order of keys.

use crate::ids::{Attempt, BeamId, MfovId, RegionId, SectionId, TileKey};

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

/// First and last possible mFOV key of a section; of all sections where none is given.
pub(super) fn bounds(section: Option<SectionId>) -> ([u8; MFOV_KEY_BYTES], [u8; MFOV_KEY_BYTES]) {
    let (mut first, mut last) = ([0; MFOV_KEY_BYTES], [0xff; MFOV_KEY_BYTES]);
    if let Some(section) = section {
        first[..4].copy_from_slice(&section.0.to_be_bytes());
        last[..4].copy_from_slice(&section.0.to_be_bytes());
    }
    (first, last)
}
