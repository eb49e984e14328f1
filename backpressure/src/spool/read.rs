//! Records read back by position.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::error::SpoolError;
use super::record::{HEADER, Header, MOST_HEAD};
use super::{Group, Position, segment_path};

/// Reads records; keeps the segment open that it read last. Blocks.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    identity: [u8; 32],
    open: Option<(u32, File)>,
}

/// A record whose header was checked, and the beginning of its bytes.
#[derive(Debug)]
pub struct Opened {
    /// Whose it is.
    pub group: Group,
    /// BLAKE3 that the payload had.
    pub hash: [u8; 32],
    /// Bytes of head.
    pub head: usize,
    /// Bytes of payload.
    pub payload: usize,
    /// As read from disk: head and payload, as far as read, begin at [`Self::START`]. Not checked against the hash.
    pub bytes: Vec<u8>,
    at: Position,
}

impl Opened {
    /// Where the head begins in `bytes`.
    pub const START: usize = HEADER;

    /// Bytes of head and payload that were not read yet.
    pub fn left(&self) -> usize {
        (HEADER + self.head + self.payload).saturating_sub(self.bytes.len())
    }
}

impl Reader {
    pub(super) fn new(folder: PathBuf, identity: [u8; 32]) -> Self {
        Self { folder, identity, open: None }
    }

    /// Reads a record's header and up to `most` bytes of its head and payload. `None` where its segment is gone: released.
    pub fn open(&mut self, at: Position, most: usize) -> Result<Option<Opened>, SpoolError> {
        let wanted = HEADER + most.max(MOST_HEAD);
        let Some(file) = self.file(at.segment())? else { return Ok(None) };
        let mut bytes = vec![0; wanted];
        let got = read_up_to(file, &mut bytes, at.offset());
        let got = got.map_err(SpoolError::io("read", &segment_path(&self.folder, at.segment())))?;
        bytes.truncate(got);
        let header = Header::decode(&bytes, at, &self.identity).ok_or_else(|| self.damaged(at, "no such record"))?;
        let (head, payload) = (usize::from(header.head), header.payload as usize);
        // The whole of a short record, and nothing of the next.
        let end = (HEADER + head + payload).min(wanted);
        if bytes.len() < end {
            return Err(self.damaged(at, "cut short"));
        }
        bytes.truncate(end);
        Ok(Some(Opened { group: header.group, hash: header.hash, head, payload, bytes, at }))
    }

    /// Reads on: the next up to `most` bytes behind the first `done` of head and payload.
    pub fn next(&mut self, record: &Opened, done: usize, most: usize) -> Result<Option<Vec<u8>>, SpoolError> {
        let at = record.at;
        let length = (record.head + record.payload).saturating_sub(done).min(most);
        let Some(file) = self.file(at.segment())? else { return Ok(None) };
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, at.offset() + (HEADER + done) as u64) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(at, "cut short")),
            Err(e) => Err(SpoolError::io("read", &segment_path(&self.folder, at.segment()))(e)),
        }
    }

    /// Reads a record's payload, checked against its hash.
    pub fn whole(&mut self, at: Position) -> Result<Option<Vec<u8>>, SpoolError> {
        let Some(mut record) = self.open(at, 1 << 16)? else { return Ok(None) };
        let done = record.bytes.len() - HEADER;
        let left = record.left();
        let Some(rest) = self.next(&record, done, left)? else { return Ok(None) };
        record.bytes.extend(rest);
        let payload = record.bytes.split_off(HEADER + record.head);
        if *blake3::hash(&payload).as_bytes() != record.hash {
            return Err(self.damaged(at, "the payload does not have its hash"));
        }
        Ok(Some(payload))
    }

    /// Checks a record's payload against its hash, in pieces.
    pub fn verify(&mut self, at: Position) -> Result<(), SpoolError> {
        const PIECE: usize = 1 << 18;
        let gone = |reader: &Self| reader.damaged(at, "its segment is missing");
        let record = self.open(at, PIECE)?.ok_or_else(|| gone(self))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&record.bytes[HEADER + record.head..]);
        let mut done = record.bytes.len() - HEADER;
        while done < record.head + record.payload {
            let bytes = self.next(&record, done, PIECE)?.ok_or_else(|| gone(self))?;
            hasher.update(&bytes);
            done += bytes.len();
        }
        if *hasher.finalize().as_bytes() == record.hash {
            Ok(())
        } else {
            Err(self.damaged(at, "the payload does not have its hash"))
        }
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
