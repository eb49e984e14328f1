//! Records on their way to disk, segments on their way off it.
//!
//! A segment of which all is released is not deleted but kept as the *spare* and written over by a later one, if there is none
//! already: blocks that a file has cost much less to write than new ones. A record in it that was not written over yet is
//! none, because its check is for another place. Spare and not yet written bytes count against the capacity.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{NoRoom, SpoolError, is_full};
use super::record::{self, Header, Kind, MOST_HEAD};
use super::{
    Active, Group, Position, Put, Record, Segment, Spool, SpoolEvent, State, Writer, lock, recover, segment_path,
};

impl Spool {
    pub(super) fn put(&self, kind: Kind, record: &Record<'_>) -> Result<Put, SpoolError> {
        assert!(record.head.len() <= MOST_HEAD, "a head of {} bytes", record.head.len());
        let payload = u32::try_from(record.payload.len()).unwrap_or_else(|_| panic!("a record of 4 GiB and more"));
        let mut writer = lock(&self.0.writer);
        let spare = writer.spare.is_some();
        match self.put_once(&mut writer, kind, record, payload)? {
            Put::NoRoom(NoRoom::Disk) if spare => {
                // The spare may have been what filled the disk.
                self.drop_slack(&mut writer)?;
                self.put_once(&mut writer, kind, record, payload)
            }
            done => Ok(done),
        }
    }

    fn put_once(&self, writer: &mut Writer, kind: Kind, record: &Record<'_>, payload: u32) -> Result<Put, SpoolError> {
        let length = record::length(record.head.len(), record.payload.len());
        if writer.active.as_ref().is_some_and(|a| a.len > 0 && a.len + length > self.0.segment) {
            self.seal(writer)?;
        }
        if let Some(none) = self.no_room(writer, kind, length)? {
            return Ok(Put::NoRoom(none));
        }
        let synced = writer.synced;
        let Some(active) = writer.active.as_mut() else { return Ok(Put::NoRoom(NoRoom::Disk)) };
        let position = Position::new(active.number, active.len);
        let items = lock(&self.0.state).groups.get(&record.group).map_or(0, |g| g.items);
        let header = Header {
            kind,
            head: record.head.len() as u16,
            payload,
            items,
            position,
            synced,
            group: record.group,
            hash: record.hash,
        };
        self.0.config.disk.before_write();
        let front = [&header.encode(record.head, &self.0.config.identity)[..], record.head].concat();
        let written = active.file.write_all_at(&front, active.len);
        let written = written.and_then(|()| active.file.write_all_at(record.payload, active.len + front.len() as u64));
        if let Err(source) = written {
            let path = segment_path(&self.0.config.folder, active.number);
            return if is_full(&source) && self.drop_slack(writer).is_ok() {
                Ok(Put::NoRoom(NoRoom::Disk))
            } else {
                Err(SpoolError::io("write", &path)(source))
            };
        }
        active.len += length;
        active.on_disk = active.on_disk.max(active.len);
        self.count(kind, record.group, position, length);
        Ok(Put::At(position))
    }

    /// Makes room for a record where that can be had, and a segment to write it into.
    fn no_room(&self, writer: &mut Writer, kind: Kind, length: u64) -> Result<Option<NoRoom>, SpoolError> {
        let fits = |writer: &Writer| self.on_disk(writer) + writer.growth(length) <= self.0.config.capacity.0;
        if kind == Kind::Item && !fits(writer) {
            // What is released in the segment in hand goes back first; then the next record may lie in the spare.
            let idle = |a: &Active| lock(&self.0.state).segments.get(&a.number).is_some_and(|s| s.live == 0);
            if writer.spare.is_some() || writer.active.as_ref().is_some_and(idle) {
                self.seal(writer)?;
            }
            if !fits(writer) {
                self.drop_slack(writer)?;
            }
            if !fits(writer) {
                return Ok(Some(NoRoom::Capacity));
            }
        }
        if writer.active.is_none() {
            match self.begin(writer) {
                Err(SpoolError::Io { source, .. }) if is_full(&source) => return Ok(Some(NoRoom::Disk)),
                other => other?,
            }
        }
        Ok(None)
    }

    fn count(&self, kind: Kind, group: Group, at: Position, length: u64) {
        let mut state = lock(&self.0.state);
        state.enter(kind, group, at, length);
        state.held += length;
        state.in_total += length;
    }

    fn begin(&self, writer: &mut Writer) -> Result<(), SpoolError> {
        let number = writer.next;
        let path = segment_path(&self.0.config.folder, number);
        let (file, on_disk) = match writer.spare.take() {
            None => (File::create_new(&path).map_err(SpoolError::io("make", &path))?, 0),
            Some(length) => match self.take_spare(&path) {
                Ok(file) => (file, length),
                Err(error) => {
                    // Whatever name it has by now: not counted any more, it must be gone.
                    remove(&self.spare_path())?;
                    remove(&path)?;
                    return Err(error);
                }
            },
        };
        writer.active = Some(Active { number, file: Arc::new(file), len: 0, on_disk });
        writer.next += 1;
        writer.new_names = true;
        lock(&self.0.state).segments.insert(number, Segment::default());
        Ok(())
    }

    fn take_spare(&self, path: &Path) -> Result<File, SpoolError> {
        std::fs::rename(self.spare_path(), path).map_err(SpoolError::io("rename", path))?;
        // Before its bytes change: under its old name they would look damaged.
        recover::sync_folder(&self.0.config.folder)?;
        OpenOptions::new().write(true).open(path).map_err(SpoolError::io("open", path))
    }

    /// Ends the segment in hand; deletes it where all of it is released.
    pub(super) fn seal(&self, writer: &mut Writer) -> Result<(), SpoolError> {
        let Some(active) = writer.active.take() else { return Ok(()) };
        let path = segment_path(&self.0.config.folder, active.number);
        let live = |s: &Segment| s.live > 0;
        if active.on_disk > active.len && lock(&self.0.state).segments.get(&active.number).is_some_and(live) {
            active.file.set_len(active.len).map_err(SpoolError::io("cut", &path))?;
        }
        writer.dirty.push((active.number, active.file));
        let mut state = lock(&self.0.state);
        let Some(segment) = state.segments.get_mut(&active.number) else { return Ok(()) };
        segment.sealed = true;
        let over = segment.live == 0;
        drop(state);
        if over { self.delete(writer, active.number) } else { Ok(()) }
    }

    /// Takes records off a segment.
    pub(super) fn let_go(&self, writer: &mut Writer, number: u32, records: u32, bytes: u64) -> Result<(), SpoolError> {
        let mut state = lock(&self.0.state);
        state.out_total += bytes;
        let Some(segment) = state.segments.get_mut(&number) else { return Ok(()) };
        segment.live = segment.live.saturating_sub(records);
        let (over, sealed, half) = (segment.live == 0, segment.sealed, segment.bytes >= self.0.segment / 2);
        drop(state);
        match (over, sealed) {
            (true, true) => self.delete(writer, number),
            // Half empty, it is worth more on than gone: a new file costs a sync of the folder.
            (true, false) if half => self.seal(writer),
            _ => Ok(()),
        }
    }

    fn delete(&self, writer: &mut Writer, number: u32) -> Result<(), SpoolError> {
        // An open file would keep its bytes on the disk.
        writer.dirty.retain(|(n, _)| *n != number);
        let path = segment_path(&self.0.config.folder, number);
        let length = path.metadata().map_or(0, |m| m.len());
        let fits = writer.spare.is_none() && length >= self.0.segment / 2 && length <= self.0.segment * 2;
        if fits && std::fs::rename(&path, self.spare_path()).is_ok() {
            writer.spare = Some(length);
        } else {
            remove(&path)?;
        }
        let mut state = lock(&self.0.state);
        if let Some(segment) = state.segments.remove(&number) {
            state.held -= segment.bytes;
        }
        drop(state);
        self.tell(SpoolEvent::Deleted(number));
        Ok(())
    }

    /// Bytes that all segments, the spare with them, take on disk.
    fn on_disk(&self, writer: &Writer) -> u64 {
        let ahead = writer.active.as_ref().map_or(0, |a| a.on_disk - a.len);
        lock(&self.0.state).held + ahead + writer.spare.unwrap_or(0)
    }

    /// Gives the disk back what no record lies in.
    pub(super) fn drop_slack(&self, writer: &mut Writer) -> Result<(), SpoolError> {
        if writer.spare.take().is_some() {
            remove(&self.spare_path())?;
        }
        if let Some(active) = &mut writer.active {
            let path = segment_path(&self.0.config.folder, active.number);
            active.file.set_len(active.len).map_err(SpoolError::io("cut", &path))?;
            active.on_disk = active.len;
        }
        Ok(())
    }

    fn spare_path(&self) -> PathBuf {
        recover::spare_path(&self.0.config.folder)
    }
}

impl Writer {
    /// Bytes that a record of this length takes from the disk.
    fn growth(&self, length: u64) -> u64 {
        let (len, on_disk) = match &self.active {
            Some(active) => (active.len, active.on_disk),
            None => (0, self.spare.unwrap_or(0)),
        };
        (len + length).saturating_sub(on_disk)
    }
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(SpoolError::io("delete", path)(e)),
        _ => Ok(()),
    }
}

impl State {
    /// Enters a record into its segment and group.
    pub(super) fn enter(&mut self, kind: Kind, group: Group, at: Position, length: u64) {
        let segment = self.segments.entry(at.segment()).or_default();
        segment.bytes += length;
        segment.live += 1;
        let entry = self.groups.entry(group).or_default();
        entry.items += u32::from(kind == Kind::Item);
        if kind == Kind::End && !std::mem::replace(&mut entry.ended, true) {
            self.ended += 1;
        }
        match entry.parts.iter_mut().find(|p| p.0 == at.segment()) {
            Some(part) => (part.1, part.2) = (part.1 + 1, part.2 + length),
            None => entry.parts.push((at.segment(), 1, length)),
        }
    }
}
