//! Every promised tile, from the moment its section's plan is known to the moment it is durable or lost.
//!
//! ```text
//!            plan of the section                archive: synced, renamed, synced
//!  (nothing) ───────────────────► expected ───────────────────────────────────► durable
//!                                     └──────────────────────────────────────► lost(reason)
//! ```
//! One embedded store, `DIR/ledger.redb`. What is synced when: each call of [`Ledger::expect_section`], [`Ledger::settle`] or of a
//! counter is one transaction, on disk when it returns. [`Ledger::settle`] takes a whole mFOV, so a full-rate scope costs one
//! sync an mFOV. Counts per state and section are kept in the same transactions, so they always agree with the rows.
//!
//! The store holds the digest of the run's plan; another plan is refused. Rows are JSON and states are written by name, so
//! that later versions can add fields and states.

mod error;
mod row;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinesin_backpressure::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;

pub use error::LedgerError;
pub use row::{ContentHash, Counts, Duplicates, Outcome, Place, Row, State};
pub use row::{MFOV_KEY_BYTES, TILE_KEY_BYTES, mfov_bytes, mfov_from, tile_bytes, tile_from};

use crate::ids::{MfovId, SectionId, TileKey};
use crate::plan::SectionPlan;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const SECTIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sections");
const TILES: TableDefinition<'_, &[u8; TILE_KEY_BYTES], &[u8]> = TableDefinition::new("tiles");
/// Tiles of an mFOV that are still expected.
const OPEN: TableDefinition<'_, &[u8; MFOV_KEY_BYTES], u32> = TableDefinition::new("open");
/// `expected, durable, lost` of a section.
const COUNTS: TableDefinition<'_, u32, (u64, u64, u64)> = TableDefinition::new("counts");
/// `same, other` content.
const DUPLICATES: TableDefinition<'_, &[u8; TILE_KEY_BYTES], (u64, u64)> = TableDefinition::new("duplicates");
const FOREIGN: TableDefinition<'_, &[u8; TILE_KEY_BYTES], u64> = TableDefinition::new("foreign");

const VERSION: &[u8] = b"1";

/// The store. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<Database>,
    path: PathBuf,
    /// Of mFOVs that are not settled yet.
    repeated: Arc<Mutex<Repeated>>,
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
        let cache = usize::try_from(Self::CACHE.0).unwrap_or(usize::MAX);
        let store = match Database::builder().set_cache_size(cache).create(&path) {
            Ok(store) => store,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(LedgerError::InUse { path }),
            Err(other) => return Err(LedgerError::Store { path, source: Box::new(other.into()) }),
        };
        let ledger = Self { store: Arc::new(store), path, repeated: Arc::default() };
        ledger.claim(digest)?;
        Ok(ledger)
    }

    /// Opens the ledger of any run, to look at it.
    pub fn inspect(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join(Self::FILE);
        let store = Database::builder().set_cache_size(Self::CACHE.0 as usize).open(&path);
        match store {
            Ok(store) => Ok(Self { store: Arc::new(store), path, repeated: Arc::default() }),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(LedgerError::InUse { path }),
            Err(other) => Err(LedgerError::Store { path, source: Box::new(other.into()) }),
        }
    }

    /// Enters a section's promise: all its tiles become expected. `false` where the same promise was already there.
    pub fn expect_section(&self, plan: &SectionPlan) -> Result<bool, LedgerError> {
        let json = self.json(plan)?;
        self.write(|t| {
            let mut sections = t.open_table(SECTIONS).map_err(self.store())?;
            if let Some(known) = sections.get(plan.section.0).map_err(self.store())? {
                return if known.value() == json.as_slice() {
                    Ok(false)
                } else {
                    Err(LedgerError::PlanChanged { section: plan.section, path: self.path.clone() })
                };
            }
            sections.insert(plan.section.0, json.as_slice()).map_err(self.store())?;
            let mut tiles = t.open_table(TILES).map_err(self.store())?;
            let mut open = t.open_table(OPEN).map_err(self.store())?;
            for mfov in &plan.mfovs {
                for tile in &mfov.tiles {
                    let row = Row {
                        name: tile.name.clone(),
                        state: State::Expected,
                        reason: None,
                        hash: None,
                        place: None,
                        quality: None,
                    };
                    tiles.insert(&tile_bytes(tile.key), self.json(&row)?.as_slice()).map_err(self.store())?;
                }
                open.insert(&mfov_bytes(mfov.id), mfov.tiles.len() as u32).map_err(self.store())?;
            }
            let mut counts = t.open_table(COUNTS).map_err(self.store())?;
            counts.insert(plan.section.0, (plan.tiles().count() as u64, 0, 0)).map_err(self.store())?;
            Ok(true)
        })
    }

    /// Enters how the tiles of one mFOV ended, and which came again, in one transaction. When it returns, it is on disk.
    pub fn settle(
        &self,
        mfov: MfovId,
        outcomes: &[(TileKey, Outcome)],
        duplicates: &[(TileKey, Duplicates)],
    ) -> Result<(), LedgerError> {
        let repeated = self.repeated().0.remove(&mfov).unwrap_or_default();
        self.write(|t| {
            let mut tiles = t.open_table(TILES).map_err(self.store())?;
            let mut gained = Counts::default();
            for (key, outcome) in outcomes {
                let id = tile_bytes(*key);
                let known = tiles.get(&id).map_err(self.store())?.map(|v| v.value().to_vec());
                let known = known.ok_or(LedgerError::NotExpected { key: *key, found: "in no plan" })?;
                let row = settled(*key, self.parse(&known)?, outcome)?;
                *gained.of(row.state) += 1;
                tiles.insert(&id, self.json(&row)?.as_slice()).map_err(self.store())?;
            }
            let settled = gained.durable + gained.lost;
            let mut counts = t.open_table(COUNTS).map_err(self.store())?;
            let (e, d, l) = counts.get(mfov.section.0).map_err(self.store())?.map_or((0, 0, 0), |v| v.value());
            counts.insert(mfov.section.0, (e - settled, d + gained.durable, l + gained.lost)).map_err(self.store())?;
            let mut open = t.open_table(OPEN).map_err(self.store())?;
            let left = open.get(&mfov_bytes(mfov)).map_err(self.store())?.map_or(0, |v| v.value());
            open.insert(&mfov_bytes(mfov), left - settled as u32).map_err(self.store())?;
            self.add_duplicates(t, &repeated)?;
            self.add_duplicates(t, duplicates)
        })
    }

    /// Notes tiles of an mFOV that came again on their way here. [`Self::settle`] enters them together with the mFOV, so
    /// that one that is sent once more, or after a crash, is counted once. A later note on the same mFOV replaces the first.
    pub fn note_repeated(&self, mfov: MfovId, duplicates: Vec<(TileKey, Duplicates)>) {
        self.repeated().0.insert(mfov, duplicates);
    }

    /// Counts a tile that came again after its mFOV was settled.
    pub fn count_duplicates(&self, duplicates: &[(TileKey, Duplicates)]) -> Result<(), LedgerError> {
        self.write(|t| self.add_duplicates(t, duplicates))
    }

    /// Counts a tile that its section's plan does not know.
    pub fn count_foreign(&self, key: TileKey) -> Result<(), LedgerError> {
        self.write(|t| {
            let mut foreign = t.open_table(FOREIGN).map_err(self.store())?;
            let known = foreign.get(&tile_bytes(key)).map_err(self.store())?.map_or(0, |v| v.value());
            foreign.insert(&tile_bytes(key), known + 1).map_err(self.store())?;
            Ok(())
        })
    }

    /// One tile's row; `None` where no plan promised it.
    pub fn tile(&self, key: TileKey) -> Result<Option<Row>, LedgerError> {
        let t = self.read()?;
        let tiles = t.open_table(TILES).map_err(self.store())?;
        let value = tiles.get(&tile_bytes(key)).map_err(self.store())?;
        value.map(|v| self.parse(v.value())).transpose()
    }

    /// All tiles of a section in key order.
    pub fn section(&self, section: SectionId) -> Result<Vec<(TileKey, Row)>, LedgerError> {
        let t = self.read()?;
        let tiles = t.open_table(TILES).map_err(self.store())?;
        let (first, last) = bounds::<TILE_KEY_BYTES>(section);
        let rows = tiles.range::<&[u8; TILE_KEY_BYTES]>(&first..=&last).map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            Ok((tile_from(key.value()), self.parse(value.value())?))
        })
        .collect()
    }

    /// The promises so far, in order of section id.
    pub fn section_plans(&self) -> Result<Vec<SectionPlan>, LedgerError> {
        let t = self.read()?;
        let sections = t.open_table(SECTIONS).map_err(self.store())?;
        let rows = sections.iter().map_err(self.store())?;
        rows.map(|entry| self.parse(entry.map_err(self.store())?.1.value())).collect()
    }

    /// One section's promise; `None` where it was not made yet.
    pub fn section_plan(&self, section: SectionId) -> Result<Option<SectionPlan>, LedgerError> {
        let t = self.read()?;
        let sections = t.open_table(SECTIONS).map_err(self.store())?;
        let value = sections.get(section.0).map_err(self.store())?;
        value.map(|v| self.parse(v.value())).transpose()
    }

    /// mFOVs of which every tile is durable or lost, in order. The scope need not send them again.
    pub fn settled_mfovs(&self) -> Result<Vec<MfovId>, LedgerError> {
        let t = self.read()?;
        let open = t.open_table(OPEN).map_err(self.store())?;
        let mut settled = Vec::new();
        for entry in open.iter().map_err(self.store())? {
            let (key, left) = entry.map_err(self.store())?;
            if left.value() == 0 {
                settled.push(mfov_from(key.value()));
            }
        }
        Ok(settled)
    }

    /// Whether every tile of the mFOV is durable or lost; `false` also where no plan promised it.
    pub fn is_settled(&self, mfov: MfovId) -> Result<bool, LedgerError> {
        let t = self.read()?;
        let open = t.open_table(OPEN).map_err(self.store())?;
        Ok(open.get(&mfov_bytes(mfov)).map_err(self.store())?.is_some_and(|v| v.value() == 0))
    }

    /// Tiles per state over the whole run.
    pub fn counts(&self) -> Result<Counts, LedgerError> {
        Ok(self.counts_by_section()?.into_iter().fold(Counts::default(), |mut sum, (_, counts)| {
            sum += counts;
            sum
        }))
    }

    /// Tiles per state of each section, in order of section id.
    pub fn counts_by_section(&self) -> Result<Vec<(SectionId, Counts)>, LedgerError> {
        let t = self.read()?;
        let counts = t.open_table(COUNTS).map_err(self.store())?;
        let rows = counts.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (section, value) = entry.map_err(self.store())?;
            let (expected, durable, lost) = value.value();
            Ok((SectionId(section.value()), Counts { expected, durable, lost }))
        })
        .collect()
    }

    /// Tiles that came more than once, in key order.
    pub fn duplicates(&self) -> Result<Vec<(TileKey, Duplicates)>, LedgerError> {
        let t = self.read()?;
        let table = t.open_table(DUPLICATES).map_err(self.store())?;
        let rows = table.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            let (same, other) = value.value();
            Ok((tile_from(key.value()), Duplicates { same, other }))
        })
        .collect()
    }

    /// Tiles that came without a promise, and how often.
    pub fn foreign(&self) -> Result<Vec<(TileKey, u64)>, LedgerError> {
        let t = self.read()?;
        let table = t.open_table(FOREIGN).map_err(self.store())?;
        let rows = table.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            Ok((tile_from(key.value()), value.value()))
        })
        .collect()
    }

    /// Checks version and digest, or writes them into a new store. Creates every table, so that readers find them.
    fn claim(&self, digest: PlanDigest) -> Result<(), LedgerError> {
        self.write(|t| {
            let mut meta = t.open_table(META).map_err(self.store())?;
            let version = meta.get("version").map_err(self.store())?.map(|v| v.value().to_vec());
            if let Some(found) = version.filter(|v| v != VERSION) {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(LedgerError::OtherVersion { path: self.path.clone(), found });
            }
            let found = meta.get("digest").map_err(self.store())?.map(|v| v.value().to_vec());
            if let Some(found) = found.filter(|d| d != &digest.0) {
                let found = PlanDigest(found.try_into().unwrap_or([0; 32]));
                return Err(LedgerError::OtherPlan { path: self.path.clone(), found, wanted: digest });
            }
            meta.insert("version", VERSION).map_err(self.store())?;
            meta.insert("digest", digest.0.as_slice()).map_err(self.store())?;
            t.open_table(SECTIONS).map_err(self.store())?;
            t.open_table(TILES).map_err(self.store())?;
            t.open_table(OPEN).map_err(self.store())?;
            t.open_table(COUNTS).map_err(self.store())?;
            t.open_table(DUPLICATES).map_err(self.store())?;
            t.open_table(FOREIGN).map_err(self.store())?;
            Ok(())
        })
    }

    fn add_duplicates(&self, t: &WriteTransaction, more: &[(TileKey, Duplicates)]) -> Result<(), LedgerError> {
        let mut table = t.open_table(DUPLICATES).map_err(self.store())?;
        for (key, d) in more {
            let (same, other) = table.get(&tile_bytes(*key)).map_err(self.store())?.map_or((0, 0), |v| v.value());
            table.insert(&tile_bytes(*key), (same + d.same, other + d.other)).map_err(self.store())?;
        }
        Ok(())
    }

    fn write<R>(&self, change: impl FnOnce(&WriteTransaction) -> Result<R, LedgerError>) -> Result<R, LedgerError> {
        let transaction = self.store.begin_write().map_err(self.store())?;
        // On an error the transaction is dropped, which takes back what it wrote.
        let result = change(&transaction)?;
        transaction.commit().map_err(self.store())?;
        Ok(result)
    }

    fn repeated(&self) -> MutexGuard<'_, Repeated> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<ReadTransaction, LedgerError> {
        self.store.begin_read().map_err(self.store())
    }

    fn store<E: Into<redb::Error>>(&self) -> impl Fn(E) -> LedgerError {
        move |source| LedgerError::Store { path: self.path.clone(), source: Box::new(source.into()) }
    }

    fn json<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, LedgerError> {
        serde_json::to_vec(value).map_err(|source| LedgerError::Damaged { path: self.path.clone(), source })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, LedgerError> {
        serde_json::from_slice(bytes).map_err(|source| LedgerError::Damaged { path: self.path.clone(), source })
    }
}

/// The row with its outcome; only an expected tile can get one.
fn settled(key: TileKey, row: Row, outcome: &Outcome) -> Result<Row, LedgerError> {
    match row.state {
        State::Expected => {}
        State::Durable => return Err(LedgerError::NotExpected { key, found: "durable" }),
        State::Lost => return Err(LedgerError::NotExpected { key, found: "lost" }),
    }
    Ok(match outcome.clone() {
        Outcome::Durable { hash, place, quality } => {
            Row { state: State::Durable, hash: Some(hash), place: Some(place), quality, ..row }
        }
        Outcome::Lost(reason) => Row { state: State::Lost, reason: Some(reason), ..row },
    })
}

/// First and last possible key of a section.
fn bounds<const N: usize>(section: SectionId) -> ([u8; N], [u8; N]) {
    let (mut first, mut last) = ([0; N], [0xff; N]);
    first[..4].copy_from_slice(&section.0.to_be_bytes());
    last[..4].copy_from_slice(&section.0.to_be_bytes());
    (first, last)
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
