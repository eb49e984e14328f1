//! One mFOV from the spool onto a stream of its own, in bounded pieces.

use std::sync::Arc;

use bytes::Bytes as Piece;
use kinesin_backpressure::spool::{Opened, Reader, SpoolError};
use quinn::{Connection, WriteError};

use super::End;
use super::outbox::Outbox;
use super::queue::Job;
use super::tile_spool::{Entry, TileSpool, end_frame, loss_frame};
use super::wire::{FrameHead, opening};
use crate::tile::Reason;

/// Bytes that a stream reads ahead from the spool.
pub(super) const PIECE: usize = 512 << 10;

/// Sends it. What the disk gives back damaged becomes a loss of that tile.
pub(super) async fn send_mfov(
    connection: &Connection,
    tiles: &TileSpool,
    job: Job,
    outbox: &Arc<Outbox>,
) -> Result<(), End> {
    let mut stream = connection.open_uni().await?;
    // What began to wait first goes first over the wire; what the head holds up lets the next pass.
    stream.set_priority(i32::MAX - (job.at % (1 << 30)) as i32).ok();
    let mut frames = tokio::task::block_in_place(|| Frames::open(tiles, &job, outbox))?;
    let mut pieces = Vec::new();
    loop {
        let filled = tokio::task::block_in_place(|| frames.fill(&mut pieces))?;
        match stream.write_all_chunks(&mut pieces).await {
            Ok(()) => outbox.moved(),
            // The head has enough of it: it asks for it again, or has it.
            Err(WriteError::Stopped(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        pieces.clear();
        match filled {
            Filled::More => {}
            Filled::All => {
                // Fails only where the head has stopped the stream; it then asks for it again.
                stream.finish().ok();
                outbox.was_sent(job.shipment.mfov);
                return Ok(());
            }
            // A stream that is reset, not finished: the head forgets it.
            Filled::Gone => {
                stream.reset(0_u32.into()).ok();
                return Ok(());
            }
            Filled::Broken => {
                stream.reset(0_u32.into()).ok();
                return outbox.again(job.shipment.mfov);
            }
        }
    }
}

enum Filled {
    /// There is more to come.
    More,
    /// That was all.
    All,
    /// It was released meanwhile.
    Gone,
    /// A tile broke off in the middle; sent again, it is checked before it is begun.
    Broken,
}

struct Frames<'a> {
    reader: Reader,
    entries: std::vec::IntoIter<Entry>,
    /// The tile under way, and how much of head and pixels went out.
    tile: Option<(Opened, usize)>,
    job: Job,
    outbox: &'a Outbox,
    begun: bool,
}

impl<'a> Frames<'a> {
    fn open(tiles: &TileSpool, job: &Job, outbox: &'a Outbox) -> Result<Self, End> {
        let mut reader = tiles.spool().reader();
        let entries = tiles.table(&mut reader, job.shipment.end)?.into_iter();
        Ok(Self { reader, entries, tile: None, job: *job, outbox, begun: false })
    }

    /// Reads the next pieces. Blocks.
    fn fill(&mut self, pieces: &mut Vec<Piece>) -> Result<Filled, End> {
        if !self.begun {
            self.begun = true;
            pieces.push(Piece::copy_from_slice(&opening(self.job.shipment.mfov)));
        }
        let mut size = 0;
        while size < PIECE {
            let before = pieces.len();
            if let Some((record, done)) = &mut self.tile {
                match self.reader.next(record, *done, PIECE) {
                    Ok(Some(bytes)) => {
                        *done += bytes.len();
                        if *done == record.head + record.payload {
                            self.tile = None;
                        }
                        pieces.push(bytes.into());
                    }
                    Ok(None) => return Ok(Filled::Gone),
                    Err(SpoolError::Damaged { .. }) => return Ok(Filled::Broken),
                    Err(other) => return Err(other.into()),
                }
            } else {
                match self.entries.next() {
                    None => {
                        pieces.push(Piece::copy_from_slice(&end_frame(self.job.shipment.mfov).encode()));
                        return Ok(Filled::All);
                    }
                    Some(Entry::Frame(head, body)) => {
                        pieces.push([&head.encode()[..], &body].concat().into());
                    }
                    Some(Entry::Tile(head, at)) => match self.begin(&head, at) {
                        Ok(Some(opened)) => pieces.push(opened),
                        Ok(None) => return Ok(Filled::Gone),
                        Err(error @ SpoolError::Damaged { .. }) => pieces.push(self.lose(&head, &error)),
                        Err(other) => return Err(other.into()),
                    },
                }
            }
            size += pieces[before..].iter().map(Piece::len).sum::<usize>();
        }
        Ok(Filled::More)
    }

    /// The frame of a tile and as much of its pixels as is read at once. `None` where the mFOV was released.
    fn begin(
        &mut self,
        head: &FrameHead,
        at: kinesin_backpressure::spool::Position,
    ) -> Result<Option<Piece>, SpoolError> {
        if self.job.checked {
            self.reader.verify(at)?;
        }
        let Some(mut record) = self.reader.open(at, PIECE)? else {
            if !self.outbox.keeps(self.job.shipment.mfov) {
                return Ok(None);
            }
            // Says so with the name of the file.
            self.reader.verify(at)?;
            return Ok(None);
        };
        let bytes = Piece::from(std::mem::take(&mut record.bytes)).slice(Opened::START..);
        debug_assert!(bytes.starts_with(&head.encode()), "the table and the record are of one tile");
        if bytes.len() < record.head + record.payload {
            self.tile = Some((record, bytes.len()));
        }
        Ok(Some(bytes))
    }

    fn lose(&self, head: &FrameHead, error: &SpoolError) -> Piece {
        tracing::error!(tile = %head.key, %error, "a tile in the spool is damaged and lost");
        self.outbox.found_damaged(head.key, u64::from(head.body));
        let (frame, body) = loss_frame(head.key, &Reason::Damaged(error.to_string()));
        [&frame.encode()[..], &body].concat().into()
    }
}
