//! What goes over the wire.
//!
//! ```text
//! control stream (one, both ways):   length u32 LE | JSON message; from either side at least one a second
//! mFOV stream (one way, one each):   "KMFV" | mfov id | frame … frame | end frame
//! frame, 64 bytes, then its body:    0 kind | 2..16 tile key | 16..20 width | 20..24 height | 24..28 body bytes | 32..64 BLAKE3
//! ```
//! Integers of frames are little-endian, ids as in the ledger. The hash is that of the body. Frames without a body, of tiles
//! that came again (their `width` says how often), go before all others: they are noted before the mFOV can be whole.

use std::sync::Arc;

use kinesin_backpressure::{Bytes, Pool};
use quinn::{RecvStream, SendStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::status::ScopeStatus;
use super::{End, peer_said};
use crate::ids::{MfovId, SectionId, TileKey};
use crate::ledger::{ContentHash, MFOV_KEY_BYTES, TILE_KEY_BYTES, mfov_bytes, mfov_from, tile_bytes, tile_from};
use crate::plan::SectionPlan;

/// Raised with every change of this module.
pub(super) const PROTOCOL: u32 = 2;

/// Longest control message: the plan of a section of some thousand mFOVs.
pub const MAX_CONTROL: Bytes = Bytes::mib(32);

/// From the scope to the head.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToHead {
    /// First message of a connection.
    Hello { protocol: u32, digest: ContentHash },
    /// A section's promise, or its next version.
    Section(Arc<SectionPlan>),
    /// How far these mFOVs are at the scope.
    Reached { step: Step, mfovs: Vec<MfovId> },
    /// The scope, now. Once a second.
    Status(ScopeStatus),
    /// A tile came again after its mFOV had been sent; its pixels stay where they are.
    Again { key: TileKey, hash: ContentHash },
    /// A tile came that no plan promised; its pixels stay where they are.
    Foreign { key: TileKey },
    /// Every section is over and every receipt is here.
    End,
}

/// From the head to the scope.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToScope {
    /// Answer to the hello.
    Welcome,
    /// Answer to the hello: not with this run.
    Refused { why: String },
    /// The section's promise is in the ledger; these of its mFOVs are durable and need not be sent.
    Promised { section: SectionId, durable: Vec<MfovId> },
    /// The head lives; `waiting` says that tiles wait for room in it. Once a second.
    Beat { waiting: bool },
    /// Every tile of the mFOV is durable or lost in the ledger: its bytes may be forgotten.
    Durable(MfovId),
    /// The mFOV came damaged: please send it again.
    Again(MfovId),
    /// Answer to the end.
    Ended,
}

/// How far an mFOV is at the scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// The instrument has begun it.
    Seen,
    /// It is whole in the spool.
    Spooled,
    /// It is on its way.
    Sent,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No more frames.
    End = 0,
    /// A tile; the body is its pixels.
    Tile = 1,
    /// A loss; the body is its reason as JSON.
    Lost = 2,
    /// The tile came again with the same content; no body.
    Again = 3,
    /// The tile came again with other content, which was not kept; no body.
    Other = 4,
}

/// Head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: Kind,
    pub(super) key: TileKey,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) body: u32,
    pub(super) hash: ContentHash,
}

/// Bytes of a frame's head.
pub(super) const FRAME: usize = 64;
const MAGIC: &[u8; 4] = b"KMFV";
const OPENING: usize = 4 + MFOV_KEY_BYTES;

impl FrameHead {
    pub(super) fn encode(&self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[0] = self.kind as u8;
        bytes[2..2 + TILE_KEY_BYTES].copy_from_slice(&tile_bytes(self.key));
        bytes[16..20].copy_from_slice(&self.width.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.height.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body.to_le_bytes());
        bytes[32..].copy_from_slice(&self.hash.0);
        bytes
    }

    /// `Err` says what is wrong.
    pub(super) fn decode(bytes: &[u8; FRAME]) -> Result<Self, String> {
        let kind = match bytes[0] {
            0 => Kind::End,
            1 => Kind::Tile,
            2 => Kind::Lost,
            3 => Kind::Again,
            4 => Kind::Other,
            other => return Err(format!("frame of unknown kind {other}")),
        };
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (mut key, mut hash) = ([0; TILE_KEY_BYTES], [0; 32]);
        key.copy_from_slice(&bytes[2..2 + TILE_KEY_BYTES]);
        hash.copy_from_slice(&bytes[32..]);
        let head = Self {
            kind,
            key: tile_from(&key),
            width: number(16),
            height: number(20),
            body: number(24),
            hash: ContentHash(hash),
        };
        if kind == Kind::Tile && u64::from(head.body) != u64::from(head.width) * u64::from(head.height) {
            let (w, h, n) = (head.width, head.height, head.body);
            return Err(format!("frame of {} says {w} x {h} px and {n} bytes", head.key));
        }
        if matches!(kind, Kind::End | Kind::Again | Kind::Other) && head.body != 0 {
            return Err(format!("frame of kind {kind:?} with a body of {} bytes", head.body));
        }
        Ok(head)
    }
}

/// First bytes of an mFOV stream.
pub(super) fn opening(mfov: MfovId) -> [u8; OPENING] {
    let mut bytes = [0; OPENING];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..].copy_from_slice(&mfov_bytes(mfov));
    bytes
}

/// Reads [`opening`].
pub(super) async fn read_opening(stream: &mut RecvStream) -> Result<MfovId, End> {
    let mut bytes = [0; OPENING];
    stream.read_exact(&mut bytes).await.map_err(End::from)?;
    let mut id = [0; MFOV_KEY_BYTES];
    id.copy_from_slice(&bytes[4..]);
    if bytes.starts_with(MAGIC) { Ok(mfov_from(&id)) } else { Err(peer_said("a stream that is no mFOV")) }
}

/// Reads the head of the next frame.
pub(super) async fn read_frame(stream: &mut RecvStream) -> Result<FrameHead, End> {
    let mut bytes = [0; FRAME];
    stream.read_exact(&mut bytes).await.map_err(End::from)?;
    FrameHead::decode(&bytes).map_err(peer_said)
}

/// Writes one control message.
pub(super) async fn write_message<M: Serialize>(stream: &mut SendStream, message: &M) -> Result<(), End> {
    let json = serde_json::to_vec(message).map_err(|e| peer_said(format!("a message that cannot be written: {e}")))?;
    let length = u32::try_from(json.len()).ok().filter(|n| u64::from(*n) <= MAX_CONTROL.0);
    let length =
        length.ok_or_else(|| peer_said(format!("a message of {} bytes; at most {MAX_CONTROL}", json.len())))?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&json).await?;
    Ok(())
}

/// Reads one control message, after leasing its length.
pub(super) async fn read_message<M: DeserializeOwned>(stream: &mut RecvStream, pool: &Pool) -> Result<M, End> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(End::from)?;
    let length = u32::from_le_bytes(length);
    if u64::from(length) > MAX_CONTROL.0 {
        return Err(peer_said(format!("a message of {length} bytes; at most {MAX_CONTROL}")));
    }
    let _credit = pool.lease(Bytes(u64::from(length))).await.map_err(End::Closed)?;
    let mut json = vec![0; length as usize];
    stream.read_exact(&mut json).await.map_err(End::from)?;
    serde_json::from_slice(&json).map_err(|e| peer_said(format!("a message that cannot be read: {e}")))
}
