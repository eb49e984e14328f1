//! The pixel store: one append-only file an mFOV, under `DIR/archive/`.
//!
//! ```text
//! put tile ─► append frame to NAME.part ─► … last promised tile of the mFOV is here or lost
//!          ─► sync file ─► rename to NAME ─► sync folder ─► ledger transaction ─► Put::Settled: the receipt may go
//! ```
//! A power cut before the ledger transaction leaves the mFOV unsettled: its file is dropped or overwritten, and the scope,
//! which got no receipt, sends it again. Reads use the place in the ledger.
//!
//! A tile that comes twice with the same content is counted and dropped. With other content, the one with the smaller hash
//! is kept as long as the mFOV is open, so that the order of arrival does not matter; an instrument that gives other content
//! after it declared the mFOV ended contradicts itself: that is counted and warned of, and what was published stays.

mod file;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinesin_backpressure::{Bytes, DiskLimits};
use kinesin_stream::geometry::BoxXy;
use kinesin_stream::ids::{MfovId, TileKey};
use kinesin_stream::ledger::{ContentHash, Duplicates, Ledger, LedgerError, Outcome, Place, State};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, SectionPlan};
use kinesin_stream::tile::{Loss, Reason, Tile};
use serde_json::Value;

use file::PartFile;

/// The store. Cheap to clone; clones share. Several threads may put and read at once.
#[derive(Clone, Debug)]
pub struct Archive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    ledger: Ledger,
    disk: DiskLimits,
    used: AtomicU64,
    open: Mutex<BTreeMap<MfovId, Arc<Mutex<OpenMfov>>>>,
    sound: Mutex<Sound>,
}

/// Tiles, as bits by beam, that this process wrote itself or has read whole and found to be what the ledger says. Part of a
/// tile cannot be checked alone, and what an earlier process left may have changed since.
#[derive(Debug, Default)]
struct Sound(BTreeMap<MfovId, u128>);

/// An mFOV of which tiles are still to come.
#[derive(Debug)]
struct OpenMfov {
    file: Option<PartFile>,
    durable: BTreeMap<TileKey, Stored>,
    lost: BTreeMap<TileKey, Reason>,
    again: BTreeMap<TileKey, Duplicates>,
    /// Set once it is in the ledger; who waited for the lock then takes the path for settled mFOVs.
    settled: bool,
}

#[derive(Debug)]
struct Stored {
    hash: ContentHash,
    place: Place,
    quality: Option<Value>,
}

/// What became of a tile or loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written; its mFOV still waits for others.
    Waiting,
    /// It was the last: every tile of the mFOV is durable or lost, and the scope may be told.
    Settled(MfovId),
    /// It came again and was counted; `same` tells whether the content was the same.
    Duplicate {
        /// Same content as what is kept.
        same: bool,
    },
    /// The section's plan does not know it; named in the ledger, not kept.
    Foreign,
}

/// Why the archive cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No room. Nothing that was accepted is lost.
    #[error(
        "no room for {wanted} more in {path}; free space or give another --out, then run the same command again: what was accepted is kept"
    )]
    StorageFull {
        /// The file that could not grow.
        path: PathBuf,
        /// Bytes that were to be written.
        wanted: Bytes,
    },
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes at rest have changed.
    #[error("{key} in {path} is damaged: {what}; restore the file, or run again with another --out")]
    Damaged {
        /// Which tile.
        key: TileKey,
        /// The archive file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// There are no pixels of this tile.
    #[error("{key} has no pixels in the archive: it is {found}")]
    NotStored {
        /// Which tile.
        key: TileKey,
        /// Its state.
        found: &'static str,
    },
    /// The rectangle reaches beyond the tile.
    #[error("{wanted:?} reaches beyond {key} of {width} x {height} px")]
    OutsideTile {
        /// Which tile.
        key: TileKey,
        /// What was asked for.
        wanted: BoxXy,
        /// Columns of the tile.
        width: u32,
        /// Rows of the tile.
        height: u32,
    },
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Archive {
    /// Opens or creates `dir/archive`. Files that were not finished are dropped: nobody was told that they are durable.
    pub fn open(dir: &Path, ledger: Ledger) -> Result<Self, ArchiveError> {
        Self::open_on(dir, ledger, DiskLimits::default())
    }

    /// As [`Self::open`], for a disk that others use too, or that a fault scenario makes slow or full.
    pub fn open_on(dir: &Path, ledger: Ledger, disk: DiskLimits) -> Result<Self, ArchiveError> {
        let folder = dir.join("archive");
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let mut used = 0;
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let entry = entry.map_err(io_error("list", &folder))?;
            let path = entry.path();
            if path.extension().is_some_and(|e| e == file::PART) {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            } else {
                used += entry.metadata().map_err(io_error("look at", &path))?.len();
            }
        }
        let (open, sound) = (Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Inner { folder, ledger, disk, used: AtomicU64::new(used), open, sound })))
    }

    /// Stores a tile, with what inspection measured.
    pub fn put(&self, tile: &Tile, quality: Option<Value>) -> Result<Put, ArchiveError> {
        let Some(mfov) = promised(&tile.plan, tile.key) else {
            self.0.ledger.count_foreign(tile.key)?;
            return Ok(Put::Foreign);
        };
        self.with_open(tile.key, &tile.plan, |open| match open {
            Some(open) => self.put_open(open, mfov, tile, quality),
            None => self.put_again(tile.key, tile.hash),
        })
    }

    /// Enters a loss.
    pub fn lost(&self, loss: &Loss) -> Result<Put, ArchiveError> {
        let Some(mfov) = promised(&loss.plan, loss.key) else {
            self.0.ledger.count_foreign(loss.key)?;
            return Ok(Put::Foreign);
        };
        self.with_open(loss.key, &loss.plan, |open| match open {
            Some(open) if !open.durable.contains_key(&loss.key) && !open.lost.contains_key(&loss.key) => {
                open.lost.insert(loss.key, loss.reason.clone());
                self.settle_if_whole(open, mfov)
            }
            // A loss of something that is already settled says nothing new.
            _ => Ok(Put::Duplicate { same: true }),
        })
    }

    /// The whole tile; its content is checked against the ledger.
    pub fn read(&self, key: &TileKey) -> Result<Pixels, ArchiveError> {
        let (place, hash) = self.find(*key)?;
        let path = self.path(key.mfov);
        let pixels = file::read(&path, *key, place, hash)?;
        let found = ContentHash(pixels.hash());
        if found != hash {
            return Err(ArchiveError::Damaged { key: *key, path, what: format!("content {found}, expected {hash}") });
        }
        Ok(pixels)
    }

    /// A rectangle of the tile, in tile pixels. Reads only what is needed, but for the first time that a tile of an earlier
    /// process is read: then the whole of it is checked, so that nothing is made of bytes that changed at rest.
    pub fn read_rect(&self, key: &TileKey, rect: BoxXy) -> Result<Pixels, ArchiveError> {
        let (place, hash) = self.find(*key)?;
        let whole = rect.min.x >= 0 && rect.min.y >= 0;
        if !whole || rect.max.x > i64::from(place.width) || rect.max.y > i64::from(place.height) {
            return Err(ArchiveError::OutsideTile {
                key: *key,
                wanted: rect,
                width: place.width,
                height: place.height,
            });
        }
        if !lock(&self.0.sound).has(key) {
            self.read(key)?;
            lock(&self.0.sound).add(key);
        }
        file::read_rect(&self.path(key.mfov), *key, place, hash, rect)
    }

    /// The ledger that belongs to it.
    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Bytes in finished and unfinished files.
    pub fn used(&self) -> Bytes {
        Bytes(self.0.used.load(Ordering::Relaxed))
    }

    /// Runs `act` with the open mFOV of the key, or with `None` where it is settled.
    fn with_open(
        &self,
        key: TileKey,
        plan: &SectionPlan,
        act: impl FnOnce(Option<&mut OpenMfov>) -> Result<Put, ArchiveError>,
    ) -> Result<Put, ArchiveError> {
        let entry = {
            let mut open = lock(&self.0.open);
            match open.get(&key.mfov) {
                Some(entry) => Some(entry.clone()),
                None if self.0.ledger.is_settled(key.mfov)? => None,
                None => {
                    // A promise may come on this path first (offline); entering it twice changes nothing.
                    if self.0.ledger.stored(key)?.is_none() {
                        self.0.ledger.expect_section(plan)?;
                    }
                    Some(open.entry(key.mfov).or_insert_with(OpenMfov::new).clone())
                }
            }
        };
        let Some(entry) = entry else { return act(None) };
        let mut guard = lock(&entry);
        let put = act(if guard.settled { None } else { Some(&mut guard) })?;
        if guard.settled {
            lock(&self.0.open).remove(&key.mfov);
        }
        Ok(put)
    }

    fn put_open(
        &self,
        open: &mut OpenMfov,
        mfov: &MfovPlan,
        tile: &Tile,
        quality: Option<Value>,
    ) -> Result<Put, ArchiveError> {
        let (key, hash) = (tile.key, tile.hash);
        if let Some(kept) = open.durable.get(&key) {
            let same = kept.hash == hash;
            let better = hash < kept.hash;
            open.again.entry(key).or_default().count(same);
            if !same {
                tracing::warn!(%key, "came twice with different content; the one with the smaller hash is kept");
            }
            if better {
                let place = self.append(open, tile)?;
                open.durable.insert(key, Stored { hash, place, quality });
            }
            return Ok(Put::Duplicate { same });
        }
        // Pixels win over the news of a loss as long as the mFOV is open.
        if open.lost.remove(&key).is_some() {
            open.again.entry(key).or_default().count(false);
        }
        let place = self.append(open, tile)?;
        open.durable.insert(key, Stored { hash, place, quality });
        self.settle_if_whole(open, mfov)
    }

    fn put_again(&self, key: TileKey, hash: ContentHash) -> Result<Put, ArchiveError> {
        let kept = self.0.ledger.stored(key)?.and_then(|(_, kept)| kept);
        let same = kept.is_some_and(|(_, content)| content == hash);
        let mut count = Duplicates::default();
        count.count(same);
        self.0.ledger.count_duplicates(&[(key, count)])?;
        if !same {
            tracing::warn!(%key, "came again with other content after its mFOV was settled; what was settled stays");
        }
        Ok(Put::Duplicate { same })
    }

    fn append(&self, open: &mut OpenMfov, tile: &Tile) -> Result<Place, ArchiveError> {
        let path = self.path(tile.key.mfov);
        let wanted = file::frame_bytes(&tile.pixels);
        let used = self.0.used.fetch_add(wanted.0, Ordering::Relaxed);
        if self.0.disk.capacity.is_some_and(|cap| used + wanted.0 > cap.0) {
            self.0.used.fetch_sub(wanted.0, Ordering::Relaxed);
            return Err(ArchiveError::StorageFull { path, wanted });
        }
        let file = match open.file.as_mut() {
            Some(file) => file,
            None => open.file.insert(PartFile::create(&path)?),
        };
        self.0.disk.before_write();
        file.append(tile)
    }

    /// Syncs, renames, enters into the ledger: in this order.
    fn settle_if_whole(&self, open: &mut OpenMfov, mfov: &MfovPlan) -> Result<Put, ArchiveError> {
        if open.durable.len() + open.lost.len() < mfov.tiles.len() {
            return Ok(Put::Waiting);
        }
        if let Some(file) = open.file.take() {
            self.0.disk.before_sync();
            file.finish(&self.0.folder)?;
        }
        let durable = std::mem::take(&mut open.durable)
            .into_iter()
            .map(|(key, s)| (key, Outcome::Durable { hash: s.hash, place: s.place, quality: s.quality }));
        let lost = std::mem::take(&mut open.lost).into_iter().map(|(key, reason)| (key, Outcome::Lost(reason)));
        let outcomes: Vec<_> = durable.chain(lost).collect();
        let again: Vec<_> = std::mem::take(&mut open.again).into_iter().collect();
        self.0.ledger.settle(mfov.id, &outcomes, &again)?;
        open.settled = true;
        lock(&self.0.sound).0.insert(mfov.id, u128::MAX);
        Ok(Put::Settled(mfov.id))
    }

    fn find(&self, key: TileKey) -> Result<(Place, ContentHash), ArchiveError> {
        let (state, stored) = self.0.ledger.stored(key)?.unzip();
        let found = match state {
            None => "in no plan",
            Some(State::Lost) => "lost",
            Some(state) if state.is_open() => "still expected",
            Some(_) => "durable, without a place",
        };
        let stored = stored.flatten();
        stored.ok_or(ArchiveError::NotStored { key, found })
    }

    fn path(&self, mfov: MfovId) -> PathBuf {
        let MfovId { section, region, mfov, attempt } = mfov;
        let name = format!("s{:06}_r{:03}_m{mfov:06}_a{:02}.tiles", section.0, region.0, attempt.0);
        self.0.folder.join(name)
    }
}

impl Sound {
    /// Beams beyond the bits are checked each time; no scope has so many.
    fn has(&self, key: &TileKey) -> bool {
        let bit = 1_u128.checked_shl(u32::from(key.beam.0)).unwrap_or(0);
        self.0.get(&key.mfov).is_some_and(|bits| bits & bit != 0)
    }

    fn add(&mut self, key: &TileKey) {
        *self.0.entry(key.mfov).or_default() |= 1_u128.checked_shl(u32::from(key.beam.0)).unwrap_or(0);
    }
}

impl OpenMfov {
    fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            file: None,
            durable: BTreeMap::new(),
            lost: BTreeMap::new(),
            again: BTreeMap::new(),
            settled: false,
        }))
    }
}

/// The mFOV's promise, where it holds this tile.
fn promised(plan: &SectionPlan, key: TileKey) -> Option<&MfovPlan> {
    plan.tile(key)?;
    plan.mfovs.binary_search_by_key(&key.mfov, |m| m.id).ok().map(|i| &plan.mfovs[i])
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { doing, path: path.to_owned(), source }
}

/// After a panic elsewhere the run stops anyway; the state here is entered in whole steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
