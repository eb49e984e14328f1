//! What a run before left: whose it is, and which records are whole.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;

use super::error::SpoolError;
use super::read::{Reader, read_up_to};
use super::record::{ALIGN, HEADER, Header, Kind, MOST_HEAD, may_begin};
use super::{Group, Position, SpoolConfig, State, segment_path};
use crate::size::Bytes;

/// What a run before left.
#[derive(Debug, Default)]
pub struct Restored {
    /// Groups with their end, in order of their ends.
    pub whole: Vec<Whole>,
    /// Groups without, in order of their names.
    pub open: Vec<Open>,
    /// Bytes behind the last whole record of a segment that were cut off: never synced, or left of a segment released before.
    pub cut: Bytes,
    /// Bytes in the middle that are no record any more.
    pub damage: Vec<Damage>,
    /// Everything before this is known to have been on disk.
    pub(super) synced: Position,
}

/// A group that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// Its name.
    pub group: Group,
    /// Where its end is.
    pub end: Position,
}

/// A group that has not ended.
#[derive(Clone, Debug)]
pub struct Open {
    /// Its name.
    pub group: Group,
    /// Its items, in order of arrival.
    pub items: Vec<Item>,
}

/// An item of an open group.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it is.
    pub position: Position,
    /// Its head.
    pub head: Vec<u8>,
    /// Bytes of its payload.
    pub payload: u32,
}

/// Bytes at rest that were changed.
#[derive(Clone, Debug)]
pub struct Damage {
    /// In which segment file.
    pub path: PathBuf,
    /// From which byte.
    pub offset: u64,
    /// How many.
    pub bytes: Bytes,
}

enum Taken {
    Live,
    Void,
    Damaged,
}

const MAGIC: &[u8; 8] = b"KINSPOOL";
const VERSION: u32 = 1;
/// Magic, version, identity, check.
const HEAD: usize = 8 + 4 + 32 + 32;

pub(super) fn head_path(folder: &Path) -> PathBuf {
    folder.join("spool.head")
}

/// A released segment that is to be written over.
pub(super) fn spare_path(folder: &Path) -> PathBuf {
    folder.join("spare")
}

/// The lock on a spool. Given back by name: a program that is just being started elsewhere in this process still shares the
/// file, and closing it here alone would leave the spool locked for that moment.
pub(super) struct Claim(File);

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing the file is all that is left to do where this fails.
        drop(self.0.unlock());
    }
}

/// Locks the spool for this process and checks whose it is; an empty one becomes ours.
pub(super) fn claim(config: &SpoolConfig) -> Result<Claim, SpoolError> {
    let path = head_path(&config.folder);
    let io = |what| SpoolError::io(what, &path);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse { folder: config.folder.clone() }),
        Err(TryLockError::Error(e)) => return Err(io("lock")(e)),
    }
    let claim = Claim(file);
    let mut file = &claim.0;
    let mut found = Vec::new();
    file.read_to_end(&mut found).map_err(io("read"))?;
    let empty = numbers(&config.folder)?.is_empty() && !has_notes(&config.folder)?;
    if !empty {
        check_head(config, &found)?;
    }
    let mut head = [&MAGIC[..], &VERSION.to_le_bytes(), &config.identity].concat();
    head.extend(blake3::hash(&head).as_bytes());
    if found != head {
        file.set_len(0).map_err(io("write"))?;
        file.write_all_at(&head, 0).map_err(io("write"))?;
        file.flush().map_err(io("write"))?;
        file.sync_all().map_err(io("sync"))?;
        sync_folder(&config.folder)?;
    }
    Ok(claim)
}

fn check_head(config: &SpoolConfig, found: &[u8]) -> Result<(), SpoolError> {
    let bad = |what: &str| Err(SpoolError::Head { path: head_path(&config.folder), what: what.to_owned() });
    if !found.starts_with(MAGIC) || found.len() < 12 {
        return bad("it is no head of a spool");
    }
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    if version != VERSION {
        return Err(SpoolError::OtherVersion { folder: config.folder.clone(), found: version, wanted: VERSION });
    }
    if found.len() != HEAD || *blake3::hash(&found[..HEAD - 32]).as_bytes() != found[HEAD - 32..] {
        return bad("its checksum is wrong");
    }
    if found[12..44] != config.identity {
        let hex = |bytes: &[u8]| bytes[..8].iter().map(|b| format!("{b:02x}")).collect();
        let (found, wanted) = (hex(&found[12..44]), hex(&config.identity));
        return Err(SpoolError::OtherRun { folder: config.folder.clone(), found, wanted });
    }
    Ok(())
}

/// Walks all segments, oldest first. Returns the index, the number of the next segment, and what is there.
pub(super) fn restore(config: &SpoolConfig) -> Result<(State, u32, Restored), SpoolError> {
    let numbers = numbers(&config.folder)?;
    let spare = spare_path(&config.folder);
    match std::fs::remove_file(&spare) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(SpoolError::io("delete", &spare)(e)),
        _ => {}
    }
    let mut walk = Walk {
        config,
        reader: Reader::new(config.folder.clone(), config.identity, Weak::new()),
        state: State::default(),
        restored: Restored::default(),
        open: BTreeMap::new(),
    };
    // The newest mark is in the last record.
    for number in numbers.iter().rev() {
        if let Some(mark) = walk.newest_mark(*number)? {
            walk.restored.synced = mark;
            break;
        }
    }
    numbers.iter().try_for_each(|number| walk.segment(*number))?;
    let Walk { state, mut restored, open, .. } = walk;
    restored.open = open.into_iter().map(|(group, items)| Open { group, items }).collect();
    let next = numbers.last().map_or(0, |n| n + 1);
    restored.synced = Position::new(next, 0);
    Ok((state, next, restored))
}

struct Walk<'a> {
    config: &'a SpoolConfig,
    reader: Reader,
    state: State,
    restored: Restored,
    open: BTreeMap<Group, Vec<Item>>,
}

impl Walk<'_> {
    fn newest_mark(&self, number: u32) -> Result<Option<Position>, SpoolError> {
        let (file, _) = self.file(number)?;
        let (mut at, mut mark) = (0, None);
        while let Some((offset, header, _)) = self.find(&file, number, at)? {
            mark = Some(header.synced);
            at = offset + header.length();
        }
        Ok(mark)
    }

    fn segment(&mut self, number: u32) -> Result<(), SpoolError> {
        let (file, length) = self.file(number)?;
        let path = segment_path(&self.config.folder, number);
        let (mut at, mut any) = (0, false);
        while let Some((offset, header, head)) = self.find(&file, number, at)? {
            if offset > at {
                self.damage(&path, at, offset);
            }
            at = offset + header.length();
            match self.take(&header, &head)? {
                Taken::Live => any = true,
                Taken::Void => {}
                Taken::Damaged => self.damage(&path, offset, at),
            }
        }
        if at < length {
            if Position::new(number, length) <= self.restored.synced {
                self.damage(&path, at, length);
            } else {
                self.restored.cut += Bytes(length - at);
                let file = OpenOptions::new().write(true).open(&path).map_err(SpoolError::io("open", &path))?;
                file.set_len(at).map_err(SpoolError::io("cut", &path))?;
            }
        }
        if any {
            if Position::new(number, at) > self.restored.synced {
                // A kill, other than a power cut, may have left it in the system's memory only.
                file.sync_data().map_err(SpoolError::io("sync", &path))?;
            }
            let segment = self.state.segments.entry(number).or_default();
            self.state.in_total += segment.bytes;
            (segment.bytes, segment.sealed) = (at, true);
            self.state.held += at;
            Ok(())
        } else {
            std::fs::remove_file(&path).map_err(SpoolError::io("delete", &path))
        }
    }

    /// Enters a record, if it is whole.
    fn take(&mut self, header: &Header, head: &[u8]) -> Result<Taken, SpoolError> {
        let (at, group) = (header.position, header.group);
        let loose = at >= self.restored.synced;
        if header.kind != Kind::Void && (loose || header.kind == Kind::End) {
            match self.reader.verify(at) {
                Ok(()) => {}
                Err(SpoolError::Damaged { .. }) => {
                    if loose {
                        self.void(header, head)?;
                    }
                    return Ok(Taken::Damaged);
                }
                Err(other) => return Err(other),
            }
        }
        match header.kind {
            Kind::Void => return Ok(Taken::Void),
            Kind::Item => {
                let item = Item { position: at, head: head.to_vec(), payload: header.payload };
                self.open.entry(group).or_default().push(item);
            }
            Kind::End => {
                // A power cut may keep an end and lose items before it: then it never was whole, and is asked for again.
                let there = self.open.get(&group).map_or(0, Vec::len);
                if loose && there < header.items as usize {
                    self.void(header, head)?;
                    return Ok(Taken::Void);
                }
                self.open.remove(&group);
                self.restored.whole.push(Whole { group, end: at });
            }
        }
        self.state.enter(header.kind, group, at, header.length());
        Ok(Taken::Live)
    }

    /// Marks a record as none: once it lies before a mark of what was synced, nobody would look at it so closely again.
    fn void(&self, header: &Header, head: &[u8]) -> Result<(), SpoolError> {
        let path = segment_path(&self.config.folder, header.position.segment());
        let void = Header { kind: Kind::Void, ..*header }.encode(head, &self.config.identity);
        let file = OpenOptions::new().write(true).open(&path).map_err(SpoolError::io("open", &path))?;
        file.write_all_at(&void, header.position.offset()).map_err(SpoolError::io("write", &path))
    }

    /// The next whole record at or behind `at`, with its head.
    fn find(&self, file: &File, number: u32, at: u64) -> Result<Option<(u64, Header, Vec<u8>)>, SpoolError> {
        let path = segment_path(&self.config.folder, number);
        let read = |bytes: &mut [u8], at| read_up_to(file, bytes, at).map_err(SpoolError::io("read", &path));
        let length = file.metadata().map_err(SpoolError::io("read", &path))?.len();
        let whole = |offset: u64, bytes: &[u8]| {
            let header = Header::decode(bytes, Position::new(number, offset), &self.config.identity)?;
            let head = usize::from(header.head);
            let end = offset + (HEADER + head) as u64 + u64::from(header.payload);
            (end <= length).then(|| (offset, header, bytes[HEADER..HEADER + head].to_vec()))
        };
        let mut near = [0; HEADER + MOST_HEAD];
        let got = read(&mut near, at)?;
        if let Some(found) = whole(at, &near[..got]) {
            return Ok(Some(found));
        }
        // Damage, or the end: a record may begin at any later multiple of the alignment.
        const PIECE: u64 = 1 << 20;
        let mut piece = vec![0; PIECE as usize + HEADER + MOST_HEAD];
        let mut from = at;
        while from < length {
            let got = read(&mut piece, from)?;
            let begins = (0..PIECE.min(got as u64)).step_by(ALIGN as usize);
            for i in begins.map(|i| i as usize).filter(|&i| may_begin(&piece[i..got])) {
                if let Some(found) = whole(from + i as u64, &piece[i..got]) {
                    return Ok(Some(found));
                }
            }
            from += PIECE;
        }
        Ok(None)
    }

    fn file(&self, number: u32) -> Result<(File, u64), SpoolError> {
        let path = segment_path(&self.config.folder, number);
        let file = File::open(&path).map_err(SpoolError::io("open", &path))?;
        let length = file.metadata().map_err(SpoolError::io("read", &path))?.len();
        Ok((file, length))
    }

    fn damage(&mut self, path: &Path, from: u64, to: u64) {
        self.restored.damage.push(Damage { path: path.to_owned(), offset: from, bytes: Bytes(to - from) });
    }
}

/// Numbers of the segment files, in order.
fn numbers(folder: &Path) -> Result<Vec<u32>, SpoolError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(SpoolError::io("read", folder))? {
        let name = entry.map_err(SpoolError::io("read", folder))?.file_name();
        numbers.extend(name.to_str().and_then(|n| n.strip_suffix(".segment")?.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn has_notes(folder: &Path) -> Result<bool, SpoolError> {
    let mut entries = std::fs::read_dir(folder).map_err(SpoolError::io("read", folder))?;
    Ok(entries.any(|e| e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "note"))))
}

/// Makes new and removed names in the folder survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), SpoolError> {
    let synced = File::open(folder).and_then(|f| f.sync_all());
    synced.map_err(SpoolError::io("sync", folder))
}
