//! The spool as the link uses it: tiles as ready-made frames, mFOVs as groups with a table at their end.
//!
//! ```text
//! record of a tile:    head = the frame's 64 bytes as they go over the wire, payload = its pixels
//! end of an mFOV:      payload = entries: frame head | position u64 LE (tile), body (loss), nothing (came again)
//! note of a section:   its newest plan, JSON; the scope can tell the head of it also after a restart
//! ```
//! In memory is what [`Shipment`] holds, for each mFOV that waits; the table is read back when it is sent.

use std::collections::BTreeMap;

use kinesin_backpressure::Bytes;
use kinesin_backpressure::spool::{
    Damage, Group, NoRoom, Position, Put, Reader, Record, Spool, SpoolConfig, SpoolError,
};

use super::wire::{FRAME, FrameHead, Kind};
use crate::ids::{BeamId, MfovId, SectionId, TileKey};
use crate::ledger::{ContentHash, Duplicates, MFOV_KEY_BYTES, mfov_bytes, mfov_from};
use crate::pixels::Pixels;
use crate::plan::SectionPlan;
use crate::tile::Reason;

/// Tiles on the scope's disk. Cheap to clone; clones share. Everything but [`Self::spool`] may wait for the disk.
#[derive(Clone, Debug)]
pub struct TileSpool(Spool);

/// A tile in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTile {
    position: Position,
    /// BLAKE3 of its pixels.
    pub hash: ContentHash,
    width: u32,
    height: u32,
}

/// How the tiles of an mFOV ended: what its end record says.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Tiles that came again.
    pub repeated: Vec<(TileKey, Duplicates)>,
    /// Each promised tile, in key order.
    pub tiles: Vec<(TileKey, Result<KeptTile, Reason>)>,
}

/// An mFOV that is whole in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipment {
    /// Which.
    pub mfov: MfovId,
    /// Its tiles.
    pub tiles: u32,
    /// Its losses.
    pub losses: u32,
    /// Bytes of its pixels.
    pub bytes: u64,
    pub(super) end: Position,
}

/// What a run before left.
#[derive(Debug, Default)]
pub struct RestoredTiles {
    /// Whole mFOVs, in the order in which they ended.
    pub whole: Vec<Shipment>,
    /// Tiles of mFOVs that had not ended. Where a tile is there twice, the one with the smaller hash.
    pub open: BTreeMap<MfovId, BTreeMap<TileKey, KeptTile>>,
    /// Sections whose plans are there.
    pub sections: Vec<SectionId>,
    /// Bytes of a torn tail that were cut off: nothing that was told kept is in them.
    pub cut: Bytes,
    /// Bytes in the middle that are no record any more.
    pub damage: Vec<Damage>,
}

/// One entry of a table.
#[derive(Debug)]
pub(super) enum Entry {
    /// A frame with its body.
    Frame(FrameHead, Vec<u8>),
    /// A tile, and where it is.
    Tile(FrameHead, Position),
}

impl TileSpool {
    /// Opens the spool and reads what a run before left in it.
    pub fn open(config: SpoolConfig) -> Result<(Self, RestoredTiles), SpoolError> {
        let (spool, found) = Spool::open(config)?;
        let tiles = Self(spool);
        let mut restored = RestoredTiles { cut: found.cut, damage: found.damage, ..RestoredTiles::default() };
        for key in tiles.0.notes()? {
            let section = key.try_into().map(u32::from_be_bytes);
            restored.sections.extend(section.ok().map(SectionId));
        }
        let known = |m: MfovId| restored.sections.contains(&m.section);
        let (mut whole, mut open) = (Vec::new(), BTreeMap::new());
        for group in found.whole {
            let mfov = mfov_of(group.group);
            if known(mfov) {
                whole.push(tiles.shipment(mfov, group.end)?);
            } else {
                // Its section was over: it had its receipt.
                tiles.release(mfov)?;
            }
        }
        for group in found.open {
            let mfov = mfov_of(group.group);
            if !known(mfov) {
                tiles.release(mfov)?;
                continue;
            }
            let mut kept: BTreeMap<TileKey, KeptTile> = BTreeMap::new();
            for item in group.items {
                let Some(head) = item.head.as_slice().try_into().ok().and_then(|h| FrameHead::decode(h).ok()) else {
                    continue;
                };
                let tile =
                    KeptTile { position: item.position, hash: head.hash, width: head.width, height: head.height };
                let worse = match kept.get(&head.key) {
                    Some(old) if old.hash <= tile.hash => Some(tile),
                    _ => kept.insert(head.key, tile),
                };
                if let Some(worse) = worse {
                    tiles.discard(mfov, &worse)?;
                }
            }
            open.insert(mfov, kept);
        }
        (restored.whole, restored.open) = (whole, open);
        Ok((tiles, restored))
    }

    /// The bytes below.
    pub fn spool(&self) -> &Spool {
        &self.0
    }

    /// Appends a tile; `hash` is that of its pixels. `Err` says why there is no room.
    pub fn add(
        &self,
        key: TileKey,
        pixels: &Pixels,
        hash: ContentHash,
    ) -> Result<Result<KeptTile, NoRoom>, SpoolError> {
        let (width, height) = (pixels.width() as u32, pixels.height() as u32);
        let body = pixels.data().len() as u32;
        let head = FrameHead { kind: Kind::Tile, key, width, height, body, hash }.encode();
        let record = Record { group: group(key.mfov), head: &head, payload: pixels.data(), hash: hash.0 };
        Ok(match self.0.append(&record)? {
            Put::At(position) => Ok(KeptTile { position, hash, width, height }),
            Put::NoRoom(why) => Err(why),
        })
    }

    /// Gives back a tile that another one takes the place of.
    pub fn discard(&self, mfov: MfovId, tile: &KeptTile) -> Result<(), SpoolError> {
        self.0.discard(group(mfov), tile.position, FRAME, tile.bytes() as usize)
    }

    /// Ends an mFOV. After the next [`Self::sync`] it would survive a power cut.
    pub fn end(&self, mfov: MfovId, manifest: &Manifest) -> Result<Result<Shipment, NoRoom>, SpoolError> {
        let table = manifest.encode();
        let hash = *blake3::hash(&table).as_bytes();
        let record = Record { group: group(mfov), head: &[], payload: &table, hash };
        Ok(match self.0.end(&record)? {
            Put::At(end) => Ok(manifest.shipment(mfov, end)),
            Put::NoRoom(why) => Err(why),
        })
    }

    /// Brings everything so far to disk.
    pub fn sync(&self) -> Result<(), SpoolError> {
        self.0.sync()
    }

    /// Keeps a section's plan until [`Self::forget_plan`]. `Some` says why there is no room.
    pub fn put_plan(&self, plan: &SectionPlan) -> Result<Option<NoRoom>, SpoolError> {
        let json = serde_json::to_vec(plan).expect("a plan is numbers and strings");
        self.0.put_note(&plan.section.0.to_be_bytes(), &json)
    }

    /// A section's plan, where it is kept.
    pub fn plan(&self, section: SectionId) -> Result<Option<SectionPlan>, SpoolError> {
        let json = self.0.note(&section.0.to_be_bytes())?;
        Ok(json.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// The section is over.
    pub fn forget_plan(&self, section: SectionId) -> Result<(), SpoolError> {
        self.0.forget_note(&section.0.to_be_bytes())
    }

    /// Gives an mFOV back: it has its receipt.
    pub fn release(&self, mfov: MfovId) -> Result<bool, SpoolError> {
        self.0.release(group(mfov))
    }

    /// The table of an mFOV; `None` once it was released.
    pub(super) fn table(&self, reader: &mut Reader, end: Position) -> Result<Option<Vec<Entry>>, SpoolError> {
        Ok(reader.whole(end)?.map(|table| decode(&table)))
    }

    fn shipment(&self, mfov: MfovId, end: Position) -> Result<Shipment, SpoolError> {
        let mut shipment = Shipment { mfov, tiles: 0, losses: 0, bytes: 0, end };
        for entry in self.table(&mut self.0.reader(), end)?.unwrap_or_default() {
            match entry {
                Entry::Tile(head, _) => {
                    shipment.tiles += 1;
                    shipment.bytes += u64::from(head.body);
                }
                Entry::Frame(head, _) => shipment.losses += u32::from(head.kind == Kind::Lost),
            }
        }
        Ok(shipment)
    }
}

impl KeptTile {
    /// Bytes of its pixels.
    pub fn bytes(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut table = Vec::new();
        for (key, count) in &self.repeated {
            for (kind, n) in [(Kind::Again, count.same), (Kind::Other, count.other)] {
                let width = u32::try_from(n).unwrap_or(u32::MAX);
                if width > 0 {
                    let hash = ContentHash([0; 32]);
                    table.extend(FrameHead { kind, key: *key, width, height: 0, body: 0, hash }.encode());
                }
            }
        }
        for (key, tile) in &self.tiles {
            match tile {
                Ok(tile) => {
                    let (width, height, hash) = (tile.width, tile.height, tile.hash);
                    let head =
                        FrameHead { kind: Kind::Tile, key: *key, width, height, body: tile.bytes() as u32, hash };
                    table.extend(head.encode());
                    table.extend(tile.position.0.to_le_bytes());
                }
                Err(reason) => {
                    let (head, body) = loss_frame(*key, reason);
                    table.extend(head.encode());
                    table.extend(body);
                }
            }
        }
        table
    }

    fn shipment(&self, mfov: MfovId, end: Position) -> Shipment {
        let kept = || self.tiles.iter().filter_map(|(_, t)| t.as_ref().ok());
        let tiles = kept().count() as u32;
        Shipment { mfov, tiles, losses: self.tiles.len() as u32 - tiles, bytes: kept().map(KeptTile::bytes).sum(), end }
    }
}

/// Bytes of a reason, at most; the head takes 64 KiB. Nobody reads more.
const LONGEST_REASON: usize = 32 << 10;

/// The frame of a loss.
pub(super) fn loss_frame(key: TileKey, reason: &Reason) -> (FrameHead, Vec<u8>) {
    let mut json = serde_json::to_vec(reason).expect("a reason is strings");
    if json.len() > LONGEST_REASON {
        let short = Reason::NotAcquired(reason.to_string().chars().take(LONGEST_REASON / 8).collect());
        json = serde_json::to_vec(&short).expect("a reason is strings");
    }
    let hash = ContentHash(*blake3::hash(&json).as_bytes());
    (FrameHead { kind: Kind::Lost, key, width: 0, height: 0, body: json.len() as u32, hash }, json)
}

/// The frame that ends an mFOV's stream.
pub(super) fn end_frame(mfov: MfovId) -> FrameHead {
    let nobody = TileKey { mfov, beam: BeamId(0) };
    FrameHead { kind: Kind::End, key: nobody, width: 0, height: 0, body: 0, hash: ContentHash([0; 32]) }
}

/// What is not well-formed ends the table: its bytes have their checksum, so that cannot be.
fn decode(mut table: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((head, rest)) = table.split_first_chunk::<FRAME>()
        && let Ok(head) = FrameHead::decode(head)
    {
        table = rest;
        if head.kind == Kind::Tile {
            let Some((position, rest)) = table.split_first_chunk::<8>() else { break };
            entries.push(Entry::Tile(head, Position(u64::from_le_bytes(*position))));
            table = rest;
        } else {
            let Some((body, rest)) = table.split_at_checked(head.body as usize) else { break };
            entries.push(Entry::Frame(head, body.to_vec()));
            table = rest;
        }
    }
    entries
}

fn group(mfov: MfovId) -> Group {
    let mut name = [0; 16];
    name[..MFOV_KEY_BYTES].copy_from_slice(&mfov_bytes(mfov));
    Group(name)
}

fn mfov_of(group: Group) -> MfovId {
    let mut id = [0; MFOV_KEY_BYTES];
    id.copy_from_slice(&group.0[..MFOV_KEY_BYTES]);
    mfov_from(&id)
}
