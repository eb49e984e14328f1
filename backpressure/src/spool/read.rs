//! Records read back by position.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Weak;

use super::error::SpoolError;
use super::record::{HEADER, Header, MOST_HEAD};
use super::{Group, Inner, Position, segment_path};

/// Reads records; keeps the segment open that it read last. Blocks.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    identity: [u8; 32],
    open: Option<(u32, File)>,
    /// Gone while it is being opened and once it is closed: then nobody writes.
    spool: Weak<Inner>,
}

/// A record whose header was checked. Its head and payload are not: compare with the hash.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Whose it is.
    pub group: Group,
    /// BLAKE3 that the payload had.
    pub hash: [u8; 32],
    /// Bytes of head.
    pub head: usize,
    /// Bytes of payload.
    pub payload: usize,
    /// Bytes of head and payload that were read; they begin at [`Self::START`] of the buffer.
    pub read: usize,
    at: Position,
}

impl Opened {
    /// Where the head begins in the buffer.
    pub const START: usize = HEADER;
    /// Shortest buffer for [`Reader::open`].
    pub const SHORTEST: usize = HEADER + MOST_HEAD;
}

impl Reader {
    pub(super) fn new(folder: PathBuf, identity: [u8; 32], spool: Weak<Inner>) -> Self {
        Self { folder, identity, open: None, spool }
    }

    /// Reads a record's header and as much of its head and payload as goes into `buffer`, which is best as long as the record
    /// or what is wanted of it, and at least [`Opened::SHORTEST`]. `None` where its segment is gone: released.
    pub fn open(&mut self, at: Position, buffer: &mut [u8]) -> Result<Option<Opened>, SpoolError> {
        let Some(file) = self.file(at.segment())? else { return Ok(None) };
        let got = read_up_to(file, buffer, at.offset());
        let got = got.map_err(SpoolError::io("read", &segment_path(&self.folder, at.segment())))?;
        if self.is_released(at) {
            return Ok(None);
        }
        let header = Header::decode(&buffer[..got], at, &self.identity);
        let header = header.ok_or_else(|| self.damaged(at, "no such record"))?;
        let (head, payload) = (usize::from(header.head), header.payload as usize);
        // The whole of a short record, and nothing of the next.
        let end = (HEADER + head + payload).min(buffer.len());
        if got < end {
            return Err(self.damaged(at, "cut short"));
        }
        Ok(Some(Opened { group: header.group, hash: header.hash, head, payload, read: end - HEADER, at }))
    }

    /// Reads on, behind the first `done` bytes of head and payload, as much as there is and goes into `buffer`.
    pub fn next(&mut self, record: &Opened, done: usize, buffer: &mut [u8]) -> Result<Option<usize>, SpoolError> {
        let at = record.at;
        let length = (record.head + record.payload).saturating_sub(done).min(buffer.len());
        let Some(file) = self.file(at.segment())? else { return Ok(None) };
        match file.read_exact_at(&mut buffer[..length], at.offset() + (HEADER + done) as u64) {
            // Another segment may have been written over it meanwhile.
            _ if self.is_released(at) => Ok(None),
            Ok(()) => Ok(Some(length)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(at, "cut short")),
            Err(e) => Err(SpoolError::io("read", &segment_path(&self.folder, at.segment()))(e)),
        }
    }

    /// Reads a record's payload, checked against its hash.
    pub fn whole(&mut self, at: Position) -> Result<Option<Vec<u8>>, SpoolError> {
        let mut payload = Vec::new();
        Ok(self.pieces(at, |piece| payload.extend_from_slice(piece))?.map(|()| payload))
    }

    /// Checks a record's payload against its hash.
    pub fn verify(&mut self, at: Position) -> Result<(), SpoolError> {
        self.pieces(at, |_| {})?.ok_or_else(|| self.damaged(at, "its segment is missing"))
    }

    /// Gives a record's payload piece by piece, then says whether it has its hash.
    fn pieces(&mut self, at: Position, mut give: impl FnMut(&[u8])) -> Result<Option<()>, SpoolError> {
        const PIECE: usize = 1 << 17;
        let mut buffer = vec![0; PIECE];
        let Some(record) = self.open(at, &mut buffer)? else { return Ok(None) };
        let mut hasher = blake3::Hasher::new();
        let mut take = |piece: &[u8]| {
            hasher.update(piece);
            give(piece);
        };
        take(&buffer[HEADER + record.head..HEADER + record.read]);
        let mut done = record.read;
        while done < record.head + record.payload {
            let Some(got) = self.next(&record, done, &mut buffer)? else { return Ok(None) };
            take(&buffer[..got]);
            done += got;
        }
        if *hasher.finalize().as_bytes() == record.hash {
            Ok(Some(()))
        } else {
            Err(self.damaged(at, "the payload does not have its hash"))
        }
    }

    fn is_released(&self, at: Position) -> bool {
        self.spool.upgrade().is_some_and(|spool| !spool.has(at.segment()))
    }

    fn damaged(&self, at: Position, what: &'static str) -> SpoolError {
        SpoolError::Damaged { path: segment_path(&self.folder, at.segment()), offset: at.offset(), what }
    }

    fn file(&mut self, segment: u32) -> Result<Option<&File>, SpoolError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let path = segment_path(&self.folder, segment);
            match File::open(&path) {
                Ok(file) => self.open = Some((segment, file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(SpoolError::io("open", &path)(e)),
            }
        }
        Ok(self.open.as_ref().map(|(_, file)| file))
    }
}

/// Fills `bytes` as far as the file goes.
pub(super) fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
