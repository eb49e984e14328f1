//! What is asked of the ledger. Answers about one mFOV or section come whole; those about a run come one by one.

use std::collections::VecDeque;

use redb::{Range, ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::key::bounds;
use super::record::{self, Contents, Qualities, Standing, Standpoint, unsqueeze};
use super::{
    CONTENTS, COUNTS, ContentHash, Counts, DUPLICATES, Duplicates, FOREIGN, Ledger, LedgerError, MFOV_KEY_BYTES, NAMES,
    Place, QUALITIES, Row, SECTIONS, STANDINGS, State, mfov_bytes, mfov_from, sound, tile_from,
};
use crate::ids::{BeamId, MfovId, SectionId, TileKey};
use crate::plan::SectionPlan;

type MfovTable = ReadOnlyTable<&'static [u8; MFOV_KEY_BYTES], &'static [u8]>;
type MfovRange = Range<'static, &'static [u8; MFOV_KEY_BYTES], &'static [u8]>;

/// Which tiles are asked for: those that meet every condition that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this section.
    pub section: Option<SectionId>,
    /// Of this beam.
    pub beam: Option<BeamId>,
    /// In this state.
    pub state: Option<State>,
    /// Lost for a reason whose text holds this; upper and lower case are the same.
    pub reason: Option<String>,
}

impl Filter {
    fn admits(&self, tile: &Standpoint) -> bool {
        let text = || tile.reason.as_ref().map(|r| r.to_string().to_lowercase());
        self.beam.is_none_or(|b| b.0 == tile.beam)
            && self.state.is_none_or(|s| s == tile.state)
            && self.reason.as_ref().is_none_or(|part| text().is_some_and(|t| t.contains(&part.to_lowercase())))
    }
}

/// Rows in key order, read as they are asked for: one mFOV is held at a time. They show the ledger as it was when asked.
pub struct Rows {
    ledger: Ledger,
    range: MfovRange,
    tables: Tables,
    filter: Filter,
    with_quality: bool,
    ready: VecDeque<(TileKey, Row)>,
}

/// The other records of an mFOV.
struct Tables {
    names: MfovTable,
    contents: MfovTable,
    qualities: MfovTable,
}

/// A tile's state, and its place and content where it is in the archive.
pub type Stored = (State, Option<(Place, ContentHash)>);

impl Ledger {
    /// One tile's row; `None` where no plan promised it.
    pub fn tile(&self, key: TileKey) -> Result<Option<Row>, LedgerError> {
        let rows = self.rows(Filter { beam: Some(key.beam), ..Filter::default() }, Some(key.mfov), true)?;
        rows.last().transpose().map(|row| row.map(|(_, row)| row))
    }

    /// Where a tile stands, and its place and content where it is in the archive: quicker than [`Self::tile`].
    pub fn stored(&self, key: TileKey) -> Result<Option<Stored>, LedgerError> {
        let (t, id) = (self.read()?, mfov_bytes(key.mfov));
        let standings = t.open_table(STANDINGS).map_err(self.store())?;
        let Some(standing) = standings.get(&id).map_err(self.store())? else { return Ok(None) };
        let standing = Standing::decode(standing.value()).map_err(self.damaged())?;
        let Some(at) = standing.find(key.beam.0) else { return Ok(None) };
        let contents = t.open_table(CONTENTS).map_err(self.store())?;
        let contents = match contents.get(&id).map_err(self.store())? {
            Some(found) => record::decode(found.value()).map_err(self.damaged())?,
            None => Contents::default(),
        };
        Ok(Some((standing.tiles[at].state, contents.get(key.beam.0).map(|(hash, place)| (place, hash)))))
    }

    /// All tiles of an mFOV in key order; none where no plan promised it.
    pub fn mfov(&self, mfov: MfovId) -> Result<Vec<(TileKey, Row)>, LedgerError> {
        self.rows(Filter::default(), Some(mfov), true)?.collect()
    }

    /// All tiles of a section in key order.
    pub fn section(&self, section: SectionId) -> Result<Vec<(TileKey, Row)>, LedgerError> {
        let filter = Filter { section: Some(section), ..Filter::default() };
        sound(&self.path, || self.rows(filter, None, true)?.collect())
    }

    /// The tiles that a filter admits, in key order, without what inspection measured.
    pub fn query(&self, filter: &Filter) -> Result<Rows, LedgerError> {
        self.rows(filter.clone(), None, false)
    }

    /// The sections promised so far, in order of id.
    pub fn section_ids(&self) -> Result<Vec<SectionId>, LedgerError> {
        let sections = self.read()?.open_table(SECTIONS).map_err(self.store())?;
        let rows = sections.iter().map_err(self.store())?;
        rows.map(|entry| Ok(SectionId(entry.map_err(self.store())?.0.value()))).collect()
    }

    /// The promise of one section, in its newest version.
    pub fn section_plan(&self, section: SectionId) -> Result<Option<SectionPlan>, LedgerError> {
        let sections = self.read()?.open_table(SECTIONS).map_err(self.store())?;
        let value = sections.get(section.0).map_err(self.store())?;
        value.map(|v| self.plan(v.value())).transpose()
    }

    /// mFOVs of which every tile is in the archive or lost, in order. The scope need not send them again.
    pub fn settled_mfovs(&self) -> Result<Vec<MfovId>, LedgerError> {
        self.settled(None)?.map(|m| m.map(|(mfov, _)| mfov)).collect()
    }

    /// The same for one section, with the version of the plan that promised each.
    pub fn settled_in(&self, section: SectionId) -> Result<Vec<(MfovId, u32)>, LedgerError> {
        self.settled(Some(section))?.collect()
    }

    /// Whether every tile of the mFOV is in the archive or lost; `false` also where no plan promised it.
    pub fn is_settled(&self, mfov: MfovId) -> Result<bool, LedgerError> {
        let standings = self.read()?.open_table(STANDINGS).map_err(self.store())?;
        let found = standings.get(&mfov_bytes(mfov)).map_err(self.store())?;
        found.map_or(Ok(false), |v| Standing::is_settled(v.value())).map_err(self.damaged())
    }

    /// Tiles per state over the whole run.
    pub fn counts(&self) -> Result<Counts, LedgerError> {
        let table = self.read()?.open_table(COUNTS).map_err(self.store())?;
        let mut sum = Counts::default();
        for entry in table.iter().map_err(self.store())? {
            sum += Counts::from_array(entry.map_err(self.store())?.1.value());
        }
        Ok(sum)
    }

    /// Tiles per state of each section, in order of section id.
    pub fn counts_by_section(&self) -> Result<Vec<(SectionId, Counts)>, LedgerError> {
        let table = self.read()?.open_table(COUNTS).map_err(self.store())?;
        let rows = table.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (section, value) = entry.map_err(self.store())?;
            Ok((SectionId(section.value()), Counts::from_array(value.value())))
        })
        .collect()
    }

    /// Tiles per state, counted anew from every tile: what [`Self::counts`] must agree with.
    pub fn recount(&self) -> Result<Counts, LedgerError> {
        sound(&self.path, || {
            let mut sum = Counts::default();
            for standing in self.standings(None)? {
                let (_, bytes) = standing?;
                sum += Standing::decode(&bytes).map_err(self.damaged())?.tally();
            }
            Ok(sum)
        })
    }

    /// Tiles that came more than once, in key order.
    pub fn duplicates(&self) -> Result<Vec<(TileKey, Duplicates)>, LedgerError> {
        let table = self.read()?.open_table(DUPLICATES).map_err(self.store())?;
        let rows = table.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            let (same, other) = value.value();
            Ok((tile_from(key.value()), Duplicates { same, other }))
        })
        .collect()
    }

    /// How often tiles came again, all together.
    pub fn duplicate_sum(&self) -> Result<Duplicates, LedgerError> {
        let table = self.read()?.open_table(DUPLICATES).map_err(self.store())?;
        let mut sum = Duplicates::default();
        for entry in table.iter().map_err(self.store())? {
            let (same, other) = entry.map_err(self.store())?.1.value();
            sum = Duplicates { same: sum.same + same, other: sum.other + other };
        }
        Ok(sum)
    }

    /// Tiles that came without a promise, and how often.
    pub fn foreign(&self) -> Result<Vec<(TileKey, u64)>, LedgerError> {
        let table = self.read()?.open_table(FOREIGN).map_err(self.store())?;
        let rows = table.iter().map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            Ok((tile_from(key.value()), value.value()))
        })
        .collect()
    }

    /// How many different tiles came without a promise.
    pub fn foreign_tiles(&self) -> Result<u64, LedgerError> {
        let table = self.read()?.open_table(FOREIGN).map_err(self.store())?;
        table.len().map_err(self.store())
    }

    pub(super) fn plan(&self, bytes: &[u8]) -> Result<SectionPlan, LedgerError> {
        let json = unsqueeze(bytes).map_err(self.damaged())?;
        serde_json::from_slice(&json).map_err(|e| self.damaged()(e.to_string()))
    }

    pub(super) fn names_of(&self, mfov: MfovId, keys: &[TileKey]) -> Result<Vec<String>, LedgerError> {
        let rows = self.rows(Filter::default(), Some(mfov), false)?;
        let mut names = Vec::new();
        for row in rows {
            let (key, row) = row?;
            if keys.contains(&key) {
                names.push(row.name);
            }
        }
        Ok(names)
    }

    /// Records of states in key order.
    fn standings(&self, section: Option<SectionId>) -> Result<Standings, LedgerError> {
        let (first, last) = bounds(section);
        let table = self.read()?.open_table(STANDINGS).map_err(self.store())?;
        let range = table.range::<&[u8; MFOV_KEY_BYTES]>(&first..=&last).map_err(self.store())?;
        Ok(Standings { ledger: self.clone(), range })
    }

    fn settled(
        &self,
        section: Option<SectionId>,
    ) -> Result<impl Iterator<Item = Result<(MfovId, u32), LedgerError>>, LedgerError> {
        let settled = move |entry: Result<(MfovId, Vec<u8>), LedgerError>| {
            let entry = entry.and_then(|(mfov, bytes)| {
                let whole = Standing::is_settled(&bytes).map_err(self.damaged())?;
                Ok(whole.then_some((mfov, Standing::since(&bytes).map_err(self.damaged())?)))
            });
            entry.transpose()
        };
        Ok(self.standings(section)?.filter_map(settled))
    }

    fn rows(&self, filter: Filter, only: Option<MfovId>, with_quality: bool) -> Result<Rows, LedgerError> {
        let (first, last) = match only {
            Some(mfov) => (mfov_bytes(mfov), mfov_bytes(mfov)),
            None => bounds(filter.section),
        };
        let t = self.read()?;
        let open = |t: &ReadTransaction, table| t.open_table(table).map_err(self.store());
        let range = open(&t, STANDINGS)?.range::<&[u8; MFOV_KEY_BYTES]>(&first..=&last).map_err(self.store())?;
        let tables = Tables { names: open(&t, NAMES)?, contents: open(&t, CONTENTS)?, qualities: open(&t, QUALITIES)? };
        Ok(Rows { ledger: self.clone(), range, tables, filter, with_quality, ready: VecDeque::new() })
    }
}

/// Records of states in key order.
struct Standings {
    ledger: Ledger,
    range: MfovRange,
}

impl Iterator for Standings {
    type Item = Result<(MfovId, Vec<u8>), LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.range.next()?.map_err(self.ledger.store());
        Some(entry.map(|(key, value)| (mfov_from(key.value()), value.value().to_vec())))
    }
}

impl Rows {
    /// The rows of one mFOV that the filter admits.
    fn admitted(&self, mfov: MfovId, standing: &[u8]) -> Result<Vec<(TileKey, Row)>, LedgerError> {
        let ledger = &self.ledger;
        let standing = Standing::decode(standing).map_err(ledger.damaged())?;
        if !standing.tiles.iter().any(|t| self.filter.admits(t)) {
            return Ok(Vec::new());
        }
        let id = mfov_bytes(mfov);
        let get = |table: &MfovTable| -> Result<Option<Vec<u8>>, LedgerError> {
            Ok(table.get(&id).map_err(ledger.store())?.map(|v| v.value().to_vec()))
        };
        let names = record::decode_names(&get(&self.tables.names)?.unwrap_or_default()).map_err(ledger.damaged())?;
        let contents: Contents = match get(&self.tables.contents)? {
            Some(found) => record::decode(&found).map_err(ledger.damaged())?,
            None => Contents::default(),
        };
        let qualities: Qualities = match get(&self.tables.qualities)? {
            Some(found) if self.with_quality => {
                unsqueeze(&found).and_then(|q| record::decode(&q)).map_err(ledger.damaged())?
            }
            _ => Qualities::default(),
        };
        let mut rows = Vec::new();
        for (tile, name) in standing.tiles.into_iter().zip(names).filter(|(t, _)| self.filter.admits(t)) {
            let (hash, place) = contents.get(tile.beam).unzip();
            let quality = qualities.get(tile.beam).map_err(ledger.damaged())?;
            let Standpoint { beam, state, reason, times } = tile;
            rows.push((TileKey { mfov, beam: BeamId(beam) }, Row { name, state, reason, hash, place, quality, times }));
        }
        Ok(rows)
    }
}

impl Iterator for Rows {
    type Item = Result<(TileKey, Row), LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            let entry = self.range.next()?.map_err(self.ledger.store());
            let rows = entry.and_then(|(key, value)| self.admitted(mfov_from(key.value()), value.value()));
            match rows {
                Ok(rows) => self.ready.extend(rows),
                Err(error) => return Some(Err(error)),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("filter", &self.filter).finish_non_exhaustive()
    }
}
