//! Every promised tile, from the moment its section's plan is known to the moment it is published, or lost with a reason.
//!
//! ```text
//!  expect_section      advance: as news comes       settle      advance_tiles: montage     render
//!   (nothing) ─► expected ─► seen ─► spooled ─► sent ─► durable ──────────────► placed ─► published
//!                    └─────────┴────────┴────────┴────► lost        a later exposure: └─► superseded ◄─┘
//! ```
//! One embedded store, `DIR/ledger.redb`, with a few small records an mFOV (`record`). Counts per section and state are kept in
//! the transaction that changes them, so they always agree with the rows.
//!
//! **What is synced when.** [`Ledger::expect_section`], [`Ledger::settle`] and the counters of duplicate and foreign tiles are on
//! disk when they return; a full-rate scope costs one such sync an mFOV. [`Ledger::advance`], [`Ledger::advance_section`] and
//! [`Ledger::advance_tiles`] are not synced of themselves: they reach the disk with the next call that is, with
//! [`Ledger::sync`], or when the ledger is closed. So a power cut may take back `seen`, `spooled`, `sent` (the tiles are
//! expected again, and the scope sends them again), `placed`, `published` and `superseded` (the tiles are durable): a restart
//! enters the last three again as it passes what `sections/` and `commits.jsonl` hold. It never takes back a promise, an
//! outcome, or anything that a receipt was given for, and the counts agree after it as before.
//!
//! The store holds the digest of the run's plan; another plan is refused, and so is a file of another version.
//! Memory: the store's cache, one section's records at a time, and the repeated tiles of open mFOVs.

mod ask;
mod enter;
mod error;
mod key;
mod news;
mod record;
mod row;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinesin_backpressure::Bytes;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, TableError, WriteTransaction,
};
use serde::Serialize;

pub use ask::{Filter, Rows, Stored};
pub use error::LedgerError;
pub use key::{MFOV_KEY_BYTES, TILE_KEY_BYTES, mfov_bytes, mfov_from, tile_bytes, tile_from};
pub use news::News;
pub use row::{ContentHash, Duplicates, Outcome, Place, Row};
pub use state::{Counts, State, Times};

use crate::fault_points::WallClock;
use crate::ids::{MfovId, TileKey};
use state::STATES;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// The newest plan of a section, compressed JSON.
const SECTIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sections");
const STANDINGS: TableDefinition<'_, &[u8; MFOV_KEY_BYTES], &[u8]> = TableDefinition::new("standings");
const NAMES: TableDefinition<'_, &[u8; MFOV_KEY_BYTES], &[u8]> = TableDefinition::new("names");
const CONTENTS: TableDefinition<'_, &[u8; MFOV_KEY_BYTES], &[u8]> = TableDefinition::new("contents");
const QUALITIES: TableDefinition<'_, &[u8; MFOV_KEY_BYTES], &[u8]> = TableDefinition::new("qualities");
/// Tiles of a section per state.
const COUNTS: TableDefinition<'_, u32, [u64; STATES]> = TableDefinition::new("counts");
/// `same, other` content.
const DUPLICATES: TableDefinition<'_, &[u8; TILE_KEY_BYTES], (u64, u64)> = TableDefinition::new("duplicates");
const FOREIGN: TableDefinition<'_, &[u8; TILE_KEY_BYTES], u64> = TableDefinition::new("foreign");

const VERSION: &[u8] = b"2";

/// The store. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<Store>,
    path: PathBuf,
    /// Of mFOVs that are not settled yet.
    repeated: Arc<Mutex<Repeated>>,
    clock: WallClock,
    readers: news::Readers,
}

enum Store {
    Own(Database),
    Read(ReadOnlyDatabase),
}

/// Tiles that came again, by mFOV.
#[derive(Default)]
struct Repeated(BTreeMap<MfovId, Vec<(TileKey, Duplicates)>>);

/// Identity of a run: of its plan and of every setting that changes what comes out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PlanDigest(pub [u8; 32]);

impl Ledger {
    /// Memory that the store's cache may take: a line for the budget sheet.
    pub const CACHE: Bytes = Bytes::mib(16);

    /// File name within the run's folder.
    pub const FILE: &'static str = "ledger.redb";

    /// Opens or creates `dir/ledger.redb` for the run with this digest.
    pub fn open(dir: &Path, digest: PlanDigest) -> Result<Self, LedgerError> {
        let path = dir.join(Self::FILE);
        if !path.exists() {
            Self::begin(&path, digest)?;
        }
        sound(&path, || {
            let store = builder().create(&path).map_err(|e| unopened(&path, e))?;
            let ledger = Self::of(Store::Own(store), path.clone());
            ledger.claim(digest)?;
            Ok(ledger)
        })
    }

    fn of(store: Store, path: PathBuf) -> Self {
        let (store, repeated) = (Arc::new(store), Arc::default());
        Self { store, path, repeated, clock: WallClock::default(), readers: news::Readers::default() }
    }

    /// Makes a new store beside its place and renames it once it is whole: one that was killed while it was made is no ledger.
    fn begin(path: &Path, digest: PlanDigest) -> Result<(), LedgerError> {
        let part = path.with_extension("redb.part");
        let store = match builder().create(&part) {
            Err(error) if !matches!(error, DatabaseError::DatabaseAlreadyOpen) && part.exists() => {
                // Left by a kill, and nothing is in it.
                let io = |e: std::io::Error| unopened(&part, DatabaseError::Storage(redb::StorageError::Io(e)));
                std::fs::remove_file(&part).map_err(io)?;
                builder().create(&part)
            }
            other => other,
        };
        Self::of(Store::Own(store.map_err(|e| unopened(&part, e))?), part.clone()).claim(digest)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let done = std::fs::rename(&part, path).and_then(|()| std::fs::File::open(folder)?.sync_all());
        done.map_err(|e| unopened(path, DatabaseError::Storage(redb::StorageError::Io(e))))
    }

    /// Opens the ledger of any run, to look at it; nothing can be entered. One that was not closed is put in order first, which
    /// needs leave to write.
    pub fn inspect(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join(Self::FILE);
        if !path.is_file() {
            return Err(LedgerError::Missing { path });
        }
        sound(&path, || {
            let store = match builder().open_read_only(&path) {
                Ok(store) => Store::Read(store),
                Err(DatabaseError::RepairAborted) => Store::Own(builder().open(&path).map_err(|e| unopened(&path, e))?),
                Err(other) => return Err(unopened(&path, other)),
            };
            let ledger = Self::of(store, path.clone());
            ledger.check_version()?;
            Ok(ledger)
        })
    }

    /// The same ledger by another clock, as a fault scenario steps it.
    #[must_use]
    pub fn on_clock(mut self, clock: WallClock) -> Self {
        self.clock = clock;
        self
    }

    /// Enters that the scope has said that it is done: no tile is to come. On disk when it returns.
    pub fn note_end(&self) -> Result<(), LedgerError> {
        self.write(|t| {
            let mut meta = t.open_table(META).map_err(self.store())?;
            meta.insert("end", b"said".as_slice()).map_err(self.store())?;
            Ok(())
        })
    }

    /// Whether the scope has said that it is done.
    pub fn has_ended(&self) -> Result<bool, LedgerError> {
        let meta = self.read()?.open_table(META).map_err(self.store())?;
        Ok(meta.get("end").map_err(self.store())?.is_some())
    }

    /// Now, by its clock, as [`Times`] count.
    pub fn unix_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was entered so far survives a power cut when this returns.
    pub fn sync(&self) -> Result<(), LedgerError> {
        self.write(|_| Ok(()))
    }

    /// Checks version and digest, or writes them into a new store. Creates every table, so that readers find them.
    fn claim(&self, digest: PlanDigest) -> Result<(), LedgerError> {
        self.write(|t| {
            let mut meta = t.open_table(META).map_err(self.store())?;
            let version = meta.get("version").map_err(self.store())?.map(|v| v.value().to_vec());
            if let Some(found) = version.filter(|v| v != VERSION) {
                return Err(self.other_version(&found));
            }
            let found = meta.get("digest").map_err(self.store())?.map(|v| v.value().to_vec());
            if let Some(found) = found.filter(|d| d != &digest.0) {
                let found = PlanDigest(found.try_into().unwrap_or([0; 32]));
                return Err(LedgerError::OtherPlan { path: self.path.clone(), found, wanted: digest });
            }
            meta.insert("version", VERSION).map_err(self.store())?;
            meta.insert("digest", digest.0.as_slice()).map_err(self.store())?;
            t.open_table(SECTIONS).map_err(self.store())?;
            for table in [STANDINGS, NAMES, CONTENTS, QUALITIES] {
                t.open_table(table).map_err(self.store())?;
            }
            t.open_table(COUNTS).map_err(self.store())?;
            t.open_table(DUPLICATES).map_err(self.store())?;
            t.open_table(FOREIGN).map_err(self.store())?;
            Ok(())
        })
    }

    fn check_version(&self) -> Result<(), LedgerError> {
        let foreign = |what: String| LedgerError::NotALedger { path: self.path.clone(), what };
        let meta = match self.read()?.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => {
                return Err(foreign("it has no table \"meta\"".into()));
            }
            Err(other) => return Err(self.store()(other)),
        };
        let found = meta.get("version").map_err(self.store())?.ok_or_else(|| foreign("it has no version".into()))?;
        if found.value() == VERSION { Ok(()) } else { Err(self.other_version(found.value())) }
    }

    fn other_version(&self, found: &[u8]) -> LedgerError {
        LedgerError::OtherVersion { path: self.path.clone(), found: String::from_utf8_lossy(found).into_owned() }
    }

    /// One transaction, on disk when it returns.
    fn write<R>(&self, change: impl FnOnce(&WriteTransaction) -> Result<R, LedgerError>) -> Result<R, LedgerError> {
        self.transact(Durability::Immediate, change)
    }

    /// One transaction, on disk with the next [`Self::write`].
    fn note<R>(&self, change: impl FnOnce(&WriteTransaction) -> Result<R, LedgerError>) -> Result<R, LedgerError> {
        self.transact(Durability::None, change)
    }

    fn transact<R>(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<R, LedgerError>,
    ) -> Result<R, LedgerError> {
        let Store::Own(store) = &*self.store else {
            let what = "it was opened to look at".into();
            return Err(LedgerError::NotALedger { path: self.path.clone(), what });
        };
        let mut transaction = store.begin_write().map_err(self.store())?;
        transaction.set_durability(durability).map_err(self.store())?;
        // On an error the transaction is dropped, which takes back what it wrote.
        let result = change(&transaction)?;
        transaction.commit().map_err(self.store())?;
        Ok(result)
    }

    fn repeated(&self) -> MutexGuard<'_, Repeated> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<ReadTransaction, LedgerError> {
        match &*self.store {
            Store::Own(store) => store.begin_read(),
            Store::Read(store) => store.begin_read(),
        }
        .map_err(self.store())
    }

    fn store<E: Into<redb::Error>>(&self) -> impl Fn(E) -> LedgerError {
        move |source| LedgerError::Store { path: self.path.clone(), source: Box::new(source.into()) }
    }

    fn damaged(&self) -> impl Fn(record::Bad) -> LedgerError {
        move |what| LedgerError::Damaged { path: self.path.clone(), what }
    }
}

/// The store panics at some damages of its own pages: to whoever asks that is a damaged ledger like any other.
fn sound<R>(path: &Path, act: impl FnOnce() -> Result<R, LedgerError>) -> Result<R, LedgerError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_panic| {
        let what = "the store's own pages do not hold together; restore it from a copy, or give another --out".into();
        Err(LedgerError::Damaged { path: path.to_owned(), what })
    })
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(usize::try_from(Ledger::CACHE.0).unwrap_or(usize::MAX));
    builder
}

fn unopened(path: &Path, error: DatabaseError) -> LedgerError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => LedgerError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
            LedgerError::NotALedger { path, what: e.to_string() }
        }
        other => LedgerError::Store { path, source: Box::new(other.into()) },
    }
}

impl PlanDigest {
    /// Digest of everything that decides what comes out of a run: pass the run plan and the settings.
    pub fn of(what: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self(*blake3::hash(&serde_json::to_vec(what)?).as_bytes()))
    }
}

impl fmt::Display for PlanDigest {
    /// The first 16 hexadecimal digits: enough to tell two runs apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..16])
    }
}

impl fmt::Debug for PlanDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
