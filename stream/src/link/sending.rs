//! One mFOV from the spool onto a stream of its own, in bounded pieces.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes as Piece, BytesMut};
use kinesin_backpressure::spool::{Opened, Position, Reader, SpoolError};
use quinn::{Connection, WriteError};

use super::End;
use super::outbox::Outbox;
use super::queue::Job;
use super::shared::lock;
use super::tile_spool::{Entry, TileSpool, end_frame, loss_frame};
use super::wire::{FRAME, FrameHead, opening};
use crate::tile::Reason;

/// Bytes that a stream reads ahead from the spool.
pub(super) const PIECE: usize = 512 << 10;

/// Buffers that are used again once what was in them is acknowledged: fresh memory costs more than the reading.
#[derive(Debug)]
pub(super) struct Buffers {
    lent: Mutex<VecDeque<Piece>>,
    most: usize,
}

impl Buffers {
    /// As many as `bytes` hold.
    pub(super) fn new(bytes: u64) -> Self {
        Self { lent: Mutex::default(), most: (bytes as usize / PIECE).max(2) }
    }

    fn take(&self) -> BytesMut {
        let oldest = lock(&self.lent).pop_front();
        match oldest.map(Piece::try_into_mut) {
            Some(Ok(free)) => free,
            Some(Err(used)) => {
                lock(&self.lent).push_front(used);
                BytesMut::zeroed(PIECE)
            }
            None => BytesMut::zeroed(PIECE),
        }
    }

    fn lend(&self, full: BytesMut) -> Piece {
        let full = full.freeze();
        let mut lent = lock(&self.lent);
        if lent.len() < self.most {
            lent.push_back(full.clone());
        }
        full
    }
}

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
    let frames = tokio::task::block_in_place(|| Frames::open(tiles, &job, outbox))?;
    // Its receipt may come while it waits for a stream.
    let Some(mut frames) = frames else {
        stream.reset(0_u32.into()).ok();
        return Ok(());
    };
    loop {
        let (mut pieces, filled) = tokio::task::block_in_place(|| frames.fill())?;
        match stream.write_all_chunks(&mut pieces).await {
            Ok(()) => outbox.moved(),
            // The head has enough of it: it asks for it again, or has it.
            Err(WriteError::Stopped(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
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
    entries: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    /// The tile under way, and how much of head and pixels went out.
    tile: Option<(Opened, usize)>,
    job: Job,
    outbox: &'a Outbox,
    begun: bool,
}

/// What is read at once, in one buffer; with the headers of records left out.
struct Batch {
    buffer: BytesMut,
    used: usize,
    parts: Vec<Range<usize>>,
}

impl Batch {
    fn room(&self) -> usize {
        self.buffer.len() - self.used
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.buffer[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.parts.push(self.used..self.used + bytes.len());
        self.used += bytes.len();
    }
}

impl<'a> Frames<'a> {
    fn open(tiles: &TileSpool, job: &Job, outbox: &'a Outbox) -> Result<Option<Self>, End> {
        let mut reader = tiles.spool().reader();
        let Some(entries) = tiles.table(&mut reader, job.shipment.end)? else { return Ok(None) };
        Ok(Some(Self { reader, entries: entries.into_iter().peekable(), tile: None, job: *job, outbox, begun: false }))
    }

    /// Reads the next pieces. Blocks.
    fn fill(&mut self) -> Result<(Vec<Piece>, Filled), End> {
        let mut batch = Batch { buffer: self.outbox.buffers.take(), used: 0, parts: Vec::new() };
        if !self.begun {
            self.begun = true;
            batch.copy(&opening(self.job.shipment.mfov));
        }
        let filled = self.fill_batch(&mut batch)?;
        let buffer = self.outbox.buffers.lend(batch.buffer);
        Ok((batch.parts.into_iter().map(|part| buffer.slice(part)).collect(), filled))
    }

    fn fill_batch(&mut self, batch: &mut Batch) -> Result<Filled, End> {
        loop {
            if let Some((record, done)) = &mut self.tile {
                let used = batch.used;
                let got = match self.reader.next(record, *done, &mut batch.buffer[used..]) {
                    Ok(Some(got)) => got,
                    Ok(None) => return Ok(Filled::Gone),
                    Err(SpoolError::Damaged { .. }) => return Ok(Filled::Broken),
                    Err(other) => return Err(other.into()),
                };
                batch.parts.push(used..used + got);
                (batch.used, *done) = (used + got, *done + got);
                if *done == record.head + record.payload {
                    self.tile = None;
                }
            }
            let needed = match self.entries.peek() {
                None => FRAME,
                Some(Entry::Frame(_, body)) => FRAME + body.len(),
                // A loss may take its place.
                Some(Entry::Tile(..)) => Opened::SHORTEST.max(LOSS),
            };
            if batch.room() < needed || self.tile.is_some() {
                return Ok(Filled::More);
            }
            match self.entries.next() {
                None => {
                    batch.copy(&end_frame(self.job.shipment.mfov).encode());
                    return Ok(Filled::All);
                }
                Some(Entry::Frame(head, body)) => {
                    batch.copy(&head.encode());
                    batch.copy(&body);
                }
                Some(Entry::Tile(head, at)) => match self.begin(&head, at, batch) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Filled::Gone),
                    Err(error @ SpoolError::Damaged { .. }) => self.lose(&head, &error, batch),
                    Err(other) => return Err(other.into()),
                },
            }
        }
    }

    /// The frame of a tile and as much of its pixels as goes into the batch. `false` where the mFOV was released.
    fn begin(&mut self, head: &FrameHead, at: Position, batch: &mut Batch) -> Result<bool, SpoolError> {
        if self.job.checked {
            match self.reader.verify(at) {
                Err(SpoolError::Damaged { .. }) if !self.outbox.keeps(self.job.shipment.mfov) => return Ok(false),
                other => other?,
            }
        }
        let wanted = (Opened::START + FRAME + head.body as usize).max(Opened::SHORTEST).min(batch.room());
        let used = batch.used;
        let Some(record) = self.reader.open(at, &mut batch.buffer[used..used + wanted])? else {
            if !self.outbox.keeps(self.job.shipment.mfov) {
                return Ok(false);
            }
            // Says so with the name of the file.
            return self.reader.verify(at).map(|()| false);
        };
        batch.parts.push(used + Opened::START..used + Opened::START + record.read);
        batch.used = used + Opened::START + record.read;
        if record.read < record.head + record.payload {
            self.tile = Some((record, record.read));
        }
        Ok(true)
    }

    fn lose(&self, head: &FrameHead, error: &SpoolError, batch: &mut Batch) {
        tracing::error!(tile = %head.key, %error, "a tile in the spool is damaged and lost");
        self.outbox.found_damaged(head.key, u64::from(head.body));
        let why = error.to_string().chars().take(LOSS / 8).collect();
        let (frame, body) = loss_frame(head.key, &Reason::Damaged(why));
        batch.copy(&frame.encode());
        batch.copy(&body);
    }
}

/// Room for the frame of a loss with a text of an eighth as many letters: in JSON each may take six bytes.
const LOSS: usize = 4096;
