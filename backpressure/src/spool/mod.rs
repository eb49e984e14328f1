//! What waits on disk: records in segment files, bounded in bytes, checksummed, safe against a crash at any byte.
//!
//! ```text
//!            append ─► [ segment 7 │ segment 8 │ segment 9 … ]   records of a group (an mFOV) in order of arrival,
//!   group ends, sync ─► "would survive a power cut"              other groups between them, then the group's end
//!   Reader ◄─ by position, in any order and as often as wanted
//!  release(group) ─► a segment of which all is released is deleted, or written over by a later one
//! ```
//! *Sequential.* Records are only appended; a segment is never changed after the next has begun.
//! *Memory.* One small entry a group; records are found by the positions that the caller writes into the group's end.
//! *Crash.* [`Spool::open`] walks the headers, verifies what had not been synced for certain, cuts a torn tail, and gives back
//! the groups that have ended and the items of those that have not. Behind damage it searches on: a flipped byte costs the
//! record it is in. Releases are not written: what was released but not deleted comes back, and its owner releases it again.
//! *Full.* Capacity, a full disk and a used-up quota are told in the same way ([`NoRoom`]); nothing is written then.
//!
//! Writing and syncing block: call them where waiting for a disk is allowed.

mod error;
mod note;
mod read;
mod record;
mod recover;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;

pub use error::{NoRoom, SpoolError};
pub use read::{Opened, Reader};
pub use recover::{Damage, Item, Open, Restored, Whole};

use crate::budget::lock;
use crate::disk::DiskLimits;
use crate::size::Bytes;
use record::Kind;

/// Where and how much.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Folder of its own; made when missing.
    pub folder: PathBuf,
    /// Bytes that its segments may take on disk. Ends of groups may pass it by their own length.
    pub capacity: Bytes,
    /// Length at which a segment is full: what is released goes back to the disk in pieces of this. At most an eighth of the
    /// capacity is used, so that pieces kept alive by one old record cannot fill it.
    pub segment: Bytes,
    /// Whose data it is; another run's are refused.
    pub identity: [u8; 32],
    /// What a fault scenario makes of the disk: slower. Its capacity is not looked at here.
    pub disk: DiskLimits,
}

/// Name of what is released together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub [u8; 16]);

/// Place of a record: segment and byte. Later records have greater positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What is appended.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Whose it is.
    pub group: Group,
    /// Small and read together with the payload; at most 256 bytes.
    pub head: &'a [u8],
    /// The bytes.
    pub payload: &'a [u8],
    /// BLAKE3 of the payload.
    pub hash: [u8; 32],
}

/// How an append ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written; on disk for certain after the next [`Spool::sync`].
    At(Position),
    /// Not written; try again after a release ([`Spool::releases`]) or, where the disk is full, after a while.
    NoRoom(NoRoom),
}

/// What happened, in order; for tests and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolEvent {
    /// Everything before this position is on disk.
    Synced(Position),
    /// A group was given back.
    Released(Group),
    /// A segment was deleted.
    Deleted(u32),
}

/// The spool. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    config: SpoolConfig,
    /// Length at which a segment is full.
    segment: u64,
    /// Locked before `state` where both are.
    writer: Mutex<Writer>,
    state: Mutex<State>,
    releases: watch::Sender<u64>,
    observer: OnceLock<Box<dyn Fn(SpoolEvent) + Send + Sync>>,
    /// Locked as long as the spool is open.
    _claim: recover::Claim,
}

struct Writer {
    active: Option<Active>,
    /// Length of the file that the next segment is written over.
    spare: Option<u64>,
    next: u32,
    /// Full segments that were not synced yet, with their numbers.
    dirty: Vec<(u32, Arc<File>)>,
    /// Files were made or renamed since the folder was synced.
    new_names: bool,
    synced: Position,
}

struct Active {
    number: u32,
    file: Arc<File>,
    len: u64,
    /// Length of the file: what it has of a released segment beyond `len` is none of its records.
    on_disk: u64,
}

#[derive(Default)]
struct State {
    segments: BTreeMap<u32, Segment>,
    groups: BTreeMap<Group, Entry>,
    /// Groups with an end.
    ended: usize,
    held: u64,
    in_total: u64,
    out_total: u64,
}

#[derive(Default)]
struct Segment {
    bytes: u64,
    live: u32,
    sealed: bool,
}

#[derive(Default)]
struct Entry {
    /// Segment, live records in it, their bytes.
    parts: Vec<(u32, u32, u64)>,
    /// Items ever appended.
    items: u32,
    ended: bool,
}

impl Spool {
    /// Opens or makes the spool, and gives back what a run before left in it.
    ///
    /// # Errors
    /// [`SpoolError::OtherRun`], [`SpoolError::OtherVersion`] and [`SpoolError::InUse`] leave the folder as it was.
    pub fn open(config: SpoolConfig) -> Result<(Self, Restored), SpoolError> {
        let segment = config.segment.0.min(config.capacity.0 / 8).clamp(record::ALIGN, 1 << 31);
        std::fs::create_dir_all(&config.folder).map_err(SpoolError::io("make the spool", &config.folder))?;
        let claim = recover::claim(&config)?;
        let (state, next, restored) = recover::restore(&config)?;
        let writer =
            Writer { active: None, spare: None, next, dirty: Vec::new(), new_names: true, synced: restored.synced };
        let inner = Inner {
            config,
            segment,
            writer: Mutex::new(writer),
            state: Mutex::new(state),
            releases: watch::Sender::new(0),
            observer: OnceLock::new(),
            _claim: claim,
        };
        Ok((Self(Arc::new(inner)), restored))
    }

    /// Appends an item of a group.
    pub fn append(&self, record: &Record<'_>) -> Result<Put, SpoolError> {
        self.put(Kind::Item, record)
    }

    /// Appends the end of a group, its last record; passes the capacity where it must, but not a full disk.
    pub fn end(&self, record: &Record<'_>) -> Result<Put, SpoolError> {
        self.put(Kind::End, record)
    }

    /// Brings everything that was appended before this call to disk. When it returns, it would survive a power cut.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let (target, files, names) = {
            let mut writer = lock(&self.0.writer);
            let mut files = std::mem::take(&mut writer.dirty);
            let target =
                writer.active.as_ref().map_or(Position::new(writer.next, 0), |a| Position::new(a.number, a.len));
            files.extend(writer.active.as_ref().map(|a| (a.number, a.file.clone())));
            (target, files, std::mem::take(&mut writer.new_names))
        };
        for (_, file) in files {
            self.0.config.disk.before_sync();
            // With its length: a sealed segment may have been cut.
            file.sync_all().map_err(SpoolError::io("sync", &self.0.config.folder))?;
        }
        if names {
            recover::sync_folder(&self.0.config.folder)?;
        }
        let mut writer = lock(&self.0.writer);
        writer.synced = writer.synced.max(target);
        drop(writer);
        self.tell(SpoolEvent::Synced(target));
        Ok(())
    }

    /// Gives a group back; `false` where it holds nothing of it. Deletes the segments of which all is released.
    pub fn release(&self, group: Group) -> Result<bool, SpoolError> {
        // The writer first: a segment must not be judged while a record is on its way into it.
        let mut writer = lock(&self.0.writer);
        let entry = {
            let mut state = lock(&self.0.state);
            let Some(entry) = state.groups.remove(&group) else { return Ok(false) };
            state.ended -= usize::from(entry.ended);
            entry
        };
        for (segment, records, bytes) in entry.parts {
            self.let_go(&mut writer, segment, records, bytes)?;
        }
        self.0.releases.send_modify(|n| *n += 1);
        drop(writer);
        self.tell(SpoolEvent::Released(group));
        Ok(true)
    }

    /// Gives one item of a group back.
    pub fn discard(&self, group: Group, at: Position, head: usize, payload: usize) -> Result<(), SpoolError> {
        let (segment, length) = (at.segment(), record::length(head, payload));
        let mut writer = lock(&self.0.writer);
        if let Some(entry) = lock(&self.0.state).groups.get_mut(&group)
            && let Some(part) = entry.parts.iter_mut().find(|p| p.0 == segment && p.1 > 0)
        {
            (part.1, part.2) = (part.1 - 1, part.2.saturating_sub(length));
        } else {
            return Ok(());
        }
        self.let_go(&mut writer, segment, 1, length)?;
        self.0.releases.send_modify(|n| *n += 1);
        drop(writer);
        Ok(())
    }

    /// Groups that have ended and were not released: whoever waits for room knows from it whether any will come.
    pub fn ended_groups(&self) -> usize {
        let _no_release_under_way = lock(&self.0.writer);
        lock(&self.0.state).ended
    }

    /// Counts releases: subscribe, try to append, and wait for a change where there was no room.
    pub fn releases(&self) -> watch::Receiver<u64> {
        self.0.releases.subscribe()
    }

    /// Reads records back.
    pub fn reader(&self) -> Reader {
        Reader::new(self.0.config.folder.clone(), self.0.config.identity, Arc::downgrade(&self.0))
    }

    /// Bytes of records on disk, released or not, whose segments were not given back.
    pub fn held(&self) -> Bytes {
        Bytes(lock(&self.0.state).held)
    }

    /// What it may hold.
    pub fn capacity(&self) -> Bytes {
        self.0.config.capacity
    }

    /// Bytes that ever went in, and those that were ever released.
    pub fn totals(&self) -> (Bytes, Bytes) {
        let state = lock(&self.0.state);
        (Bytes(state.in_total), Bytes(state.out_total))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0.config.folder
    }

    /// Has `observer` told of everything from now on. The first call counts.
    pub fn observe(&self, observer: impl Fn(SpoolEvent) + Send + Sync + 'static) {
        self.0.observer.set(Box::new(observer)).ok();
    }

    /// Removes the folder if nothing is left in it: the end of a run that has sent everything.
    pub fn remove_if_empty(&self) {
        let mut writer = lock(&self.0.writer);
        if !lock(&self.0.state).groups.is_empty() || self.notes().is_ok_and(|n| !n.is_empty()) {
            return;
        }
        // What cannot be removed is in nobody's way: the next run finds an empty spool.
        if self.seal(&mut writer).is_ok() && self.drop_slack(&mut writer).is_ok() {
            std::fs::remove_file(recover::head_path(self.folder())).ok();
            std::fs::remove_dir(self.folder()).ok();
        }
    }

    fn tell(&self, event: SpoolEvent) {
        if let Some(observer) = self.0.observer.get() {
            observer(event);
        }
    }
}

impl Inner {
    /// Whether a segment was not given back yet: until then nothing is written over what is in it.
    fn has(&self, segment: u32) -> bool {
        lock(&self.state).segments.contains_key(&segment)
    }
}

impl Position {
    fn new(segment: u32, offset: u64) -> Self {
        // A segment is at most 2 GiB and one record longer.
        Self((u64::from(segment) << 33) | offset)
    }

    pub(super) fn segment(self) -> u32 {
        (self.0 >> 33) as u32
    }

    pub(super) fn offset(self) -> u64 {
        self.0 & ((1 << 33) - 1)
    }
}

fn segment_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.segment"))
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("config", &self.0.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
