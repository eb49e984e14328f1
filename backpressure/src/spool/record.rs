//! How a record lies in a segment file.
//!
//! ```text
//! header, 96 bytes                                                    then
//! 0 "KSPR" | 4 kind | 6 head bytes u16 | 8 payload bytes u32 | 12 items u32 |  head | payload | zeros up to 64
//! 16 position | 24 synced | 32 group | 48 BLAKE3 of the payload | 80 check
//! ```
//! Integers are little-endian; records begin at multiples of 64 bytes. `check` is the first half of a BLAKE3 of header and
//! head, keyed with the identity of the run: a record of another run, or a copy at another place, is none. `synced` is the
//! position up to which everything was known to be on disk when the record was written: what lies behind the newest of these
//! marks is verified when the spool is opened, what lies before it need not be.

use super::{Group, Position};

/// Bytes of a header.
pub(super) const HEADER: usize = 96;
/// Records begin at multiples of this.
pub(super) const ALIGN: u64 = 64;
/// Longest head.
pub(super) const MOST_HEAD: usize = 256;

const MAGIC: &[u8; 4] = b"KSPR";
const CHECK: std::ops::Range<usize> = 80..96;

/// What a record is to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Item = 1,
    End = 2,
    /// Was found not to be whole when a spool was opened, and is none.
    Void = 3,
}

/// A header, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) head: u16,
    pub(super) payload: u32,
    /// In an end: items that the group had got by then.
    pub(super) items: u32,
    pub(super) position: Position,
    pub(super) synced: Position,
    pub(super) group: Group,
    pub(super) hash: [u8; 32],
}

/// Bytes that a record takes on disk.
pub(super) fn length(head: usize, payload: usize) -> u64 {
    ((HEADER + head + payload) as u64).next_multiple_of(ALIGN)
}

impl Header {
    /// The header of a record with this head.
    pub(super) fn encode(&self, head: &[u8], identity: &[u8; 32]) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        b[..4].copy_from_slice(MAGIC);
        b[4] = self.kind as u8;
        b[6..8].copy_from_slice(&self.head.to_le_bytes());
        b[8..12].copy_from_slice(&self.payload.to_le_bytes());
        b[12..16].copy_from_slice(&self.items.to_le_bytes());
        b[16..24].copy_from_slice(&self.position.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.synced.0.to_le_bytes());
        b[32..48].copy_from_slice(&self.group.0);
        b[48..80].copy_from_slice(&self.hash);
        let check = check(&b, head, identity);
        b[CHECK].copy_from_slice(&check);
        b
    }

    /// Reads what begins at `bytes`; `None` where that is no whole header with its head, or not of this place and run.
    pub(super) fn decode(bytes: &[u8], position: Position, identity: &[u8; 32]) -> Option<Self> {
        let b: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        if &b[..4] != MAGIC {
            return None;
        }
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        let kind = match b[4] {
            1 => Kind::Item,
            2 => Kind::End,
            3 => Kind::Void,
            _ => return None,
        };
        let mut header = Self {
            kind,
            head: u16_at(6),
            payload: u32_at(8),
            items: u32_at(12),
            position: Position(u64_at(16)),
            synced: Position(u64_at(24)),
            group: Group([0; 16]),
            hash: [0; 32],
        };
        header.group.0.copy_from_slice(&b[32..48]);
        header.hash.copy_from_slice(&b[48..80]);
        let head = bytes.get(HEADER..HEADER + usize::from(header.head))?;
        let whole = header.position == position && b[CHECK] == check(b, head, identity);
        whole.then_some(header)
    }

    /// Bytes on disk.
    pub(super) fn length(&self) -> u64 {
        length(usize::from(self.head), self.payload as usize)
    }
}

/// Whether a record may begin here: cheap, for the search behind damage.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

fn check(header: &[u8; HEADER], head: &[u8], identity: &[u8; 32]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(identity);
    hasher.update(&header[..CHECK.start]);
    hasher.update(head);
    let mut check = [0; 16];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    check
}
