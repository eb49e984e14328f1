//! What is entered into the ledger: promises, news on the way, outcomes, what the pipeline made of the tiles.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableTable, WriteTransaction};

use super::key::bounds;
use super::news::{News, is_told};
use super::record::{self, Contents, Qualities, Standing, squeeze, unsqueeze};
use super::{
    CONTENTS, COUNTS, Counts, DUPLICATES, Duplicates, FOREIGN, Ledger, LedgerError, MFOV_KEY_BYTES, NAMES, Outcome,
    QUALITIES, SECTIONS, STANDINGS, State, mfov_bytes, mfov_from, tile_bytes,
};
use crate::ids::{BeamId, MfovId, SectionId, TileKey};
use crate::plan::{MfovPlan, SectionPlan};
use crate::tile::Reason;

impl Ledger {
    /// Enters a section's promise: all its tiles become expected. A later version that holds all that was promised before adds
    /// its new mFOVs (retakes). `false` where the promise, or a later one that holds it, was already there.
    pub fn expect_section(&self, plan: &SectionPlan) -> Result<bool, LedgerError> {
        let json = serde_json::to_vec(plan).map_err(|e| self.damaged()(e.to_string()))?;
        let json = squeeze(&json).map_err(self.damaged())?;
        let now = self.clock.unix_ms();
        self.write(|t| {
            let mut sections = t.open_table(SECTIONS).map_err(self.store())?;
            let known = sections.get(plan.section.0).map_err(self.store())?.map(|v| v.value().to_vec());
            let known: Option<SectionPlan> = known.map(|v| self.plan(&v)).transpose()?;
            let changed = || LedgerError::PlanChanged { section: plan.section, path: self.path.clone() };
            let new: Vec<&MfovPlan> = match &known {
                None => plan.mfovs.iter().collect(),
                Some(known) if known == plan || (plan.version < known.version && holds(known, plan)) => {
                    return Ok(false);
                }
                Some(known) if plan.version > known.version && holds(plan, known) => {
                    plan.mfovs.iter().filter(|m| known.mfov(m.id).is_none()).collect()
                }
                Some(_) => return Err(changed()),
            };
            sections.insert(plan.section.0, json.as_slice()).map_err(self.store())?;
            let mut standings = t.open_table(STANDINGS).map_err(self.store())?;
            let mut names = t.open_table(NAMES).map_err(self.store())?;
            let mut gained = Counts::default();
            for mfov in new {
                let (id, standing) = (mfov_bytes(mfov.id), Standing::promised(mfov, plan.version, now));
                gained += standing.tally();
                let of = record::encode_names(mfov.tiles.iter().map(|t| t.name.as_str())).map_err(self.damaged())?;
                standings.insert(&id, standing.encode().map_err(self.damaged())?.as_slice()).map_err(self.store())?;
                names.insert(&id, of.as_slice()).map_err(self.store())?;
            }
            self.count(t, plan.section, (Counts::default(), gained))?;
            Ok(true)
        })
    }

    /// Enters news of an mFOV on its way: `seen`, `spooled` or `sent`, reached at `unix_ms`. Tiles that are further already stay,
    /// only the time is added where it is not known. Gives how many tiles moved. Cheap: not synced.
    pub fn advance(&self, mfov: MfovId, state: State, unix_ms: u64) -> Result<u64, LedgerError> {
        if !matches!(state, State::Seen | State::Spooled | State::Sent) {
            return Err(LedgerError::OtherCall { state });
        }
        self.note(|t| {
            let mut standing = self.standing(t, mfov)?;
            let before = standing.clone();
            for tile in &mut standing.tiles {
                tile.times.enter(state, unix_ms);
                if tile.state.may_become(state) {
                    tile.state = state;
                }
            }
            let moved = before.tiles.iter().zip(&standing.tiles).filter(|(a, b)| a.state != b.state).count();
            self.replace(t, mfov, (&before, &standing))?;
            Ok(moved as u64)
        })
    }

    /// Enters how the tiles of one mFOV ended, and which came again, in one transaction. When it returns, it is on disk. Lost and
    /// repeated tiles are told ([`Ledger::on_news`]).
    pub fn settle(
        &self,
        mfov: MfovId,
        outcomes: &[(TileKey, Outcome)],
        duplicates: &[(TileKey, Duplicates)],
    ) -> Result<(), LedgerError> {
        let repeated = self.repeated().0.get(&mfov).cloned().unwrap_or_default();
        let now = self.clock.unix_ms();
        let again = self.write(|t| {
            if !outcomes.is_empty() {
                let before = self.standing(t, mfov)?;
                let mut after = before.clone();
                for (key, outcome) in outcomes {
                    settle_one(&mut after, mfov, *key, outcome, now)?;
                }
                self.replace(t, mfov, (&before, &after))?;
                self.keep(t, mfov, outcomes)?;
            }
            self.add_duplicates(t, repeated.iter().chain(duplicates))
        })?;
        self.repeated().0.remove(&mfov);
        self.tell_losses(mfov, outcomes)?;
        self.tell_repeated(&again)
    }

    /// [`Self::advance_tiles`] with every tile of the section that is current: the last exposure in the archive.
    pub fn advance_section(&self, section: SectionId, state: State, unix_ms: u64) -> Result<u64, LedgerError> {
        self.advance_current(section, None, state, unix_ms)
    }

    /// Enters that these tiles of a section are `placed` or `published` at `unix_ms`. The earlier exposures of these tiles
    /// become superseded. Tiles that are further already stay. Gives how many tiles moved. Cheap: not synced.
    pub fn advance_tiles(
        &self,
        section: SectionId,
        tiles: &BTreeSet<TileKey>,
        state: State,
        unix_ms: u64,
    ) -> Result<u64, LedgerError> {
        self.advance_current(section, Some(tiles), state, unix_ms)
    }

    /// Notes tiles of an mFOV that came again on their way here. [`Self::settle`] enters them together with the mFOV, so
    /// that one that is sent once more, or after a crash, is counted once. A later note on the same mFOV replaces the first.
    pub fn note_repeated(&self, mfov: MfovId, duplicates: Vec<(TileKey, Duplicates)>) {
        if duplicates.is_empty() {
            self.repeated().0.remove(&mfov);
        } else {
            self.repeated().0.insert(mfov, duplicates);
        }
    }

    /// Counts tiles that came again after their mFOV was settled, and tells of them.
    pub fn count_duplicates(&self, duplicates: &[(TileKey, Duplicates)]) -> Result<(), LedgerError> {
        let again = self.write(|t| self.add_duplicates(t, duplicates.iter()))?;
        self.tell_repeated(&again)
    }

    /// Counts a tile that its section's plan does not know, and tells of it.
    pub fn count_foreign(&self, key: TileKey) -> Result<(), LedgerError> {
        let times = self.write(|t| {
            let mut foreign = t.open_table(FOREIGN).map_err(self.store())?;
            let times = 1 + foreign.get(&tile_bytes(key)).map_err(self.store())?.map_or(0, |v| v.value());
            foreign.insert(&tile_bytes(key), times).map_err(self.store())?;
            Ok(times)
        })?;
        if is_told(times - 1, times) {
            self.tell(&News::Foreign { key, times });
        }
        Ok(())
    }

    fn advance_current(
        &self,
        section: SectionId,
        only: Option<&BTreeSet<TileKey>>,
        state: State,
        unix_ms: u64,
    ) -> Result<u64, LedgerError> {
        if !matches!(state, State::Placed | State::Published) {
            return Err(LedgerError::OtherCall { state });
        }
        self.note(|t| {
            let before = self.section_standings(t, section)?;
            let mut after = before.clone();
            let chosen = match only {
                Some(tiles) => tiles.clone(),
                None => current(&before, state),
            };
            let mut moved = 0;
            for key in &chosen {
                moved += move_one(&mut after, *key, state, unix_ms)?;
            }
            moved += supersede(&mut after, &chosen, unix_ms);
            for (mfov, standing) in &after {
                self.replace(t, *mfov, (&before[mfov], standing))?;
            }
            Ok(moved)
        })
    }

    /// Hash, place and quality of what is durable.
    fn keep(&self, t: &WriteTransaction, mfov: MfovId, outcomes: &[(TileKey, Outcome)]) -> Result<(), LedgerError> {
        let id = mfov_bytes(mfov);
        let mut table = t.open_table(CONTENTS).map_err(self.store())?;
        let known = table.get(&id).map_err(self.store())?.map(|v| v.value().to_vec());
        let mut contents: Contents =
            known.map(|v| record::decode(&v)).transpose().map_err(self.damaged())?.unwrap_or_default();
        let mut measured = t.open_table(QUALITIES).map_err(self.store())?;
        let known = measured.get(&id).map_err(self.store())?.map(|v| v.value().to_vec());
        let mut qualities: Qualities = match known {
            Some(v) => unsqueeze(&v).and_then(|v| record::decode(&v)).map_err(self.damaged())?,
            None => Qualities::default(),
        };
        for (key, outcome) in outcomes {
            if let Outcome::Durable { hash, place, quality } = outcome {
                contents.insert(key.beam.0, *hash, *place);
                if let Some(quality) = quality {
                    qualities.insert(key.beam.0, quality);
                }
            }
        }
        let contents = record::encode(&contents).map_err(self.damaged())?;
        let qualities = record::encode(&qualities).and_then(|q| squeeze(&q)).map_err(self.damaged())?;
        table.insert(&id, contents.as_slice()).map_err(self.store())?;
        measured.insert(&id, qualities.as_slice()).map_err(self.store())?;
        Ok(())
    }

    fn standing(&self, t: &WriteTransaction, mfov: MfovId) -> Result<Standing, LedgerError> {
        let standings = t.open_table(STANDINGS).map_err(self.store())?;
        let found = standings.get(&mfov_bytes(mfov)).map_err(self.store())?;
        let found = found.ok_or_else(|| LedgerError::UnknownMfov { mfov, path: self.path.clone() })?;
        Standing::decode(found.value()).map_err(self.damaged())
    }

    fn section_standings(
        &self,
        t: &WriteTransaction,
        section: SectionId,
    ) -> Result<BTreeMap<MfovId, Standing>, LedgerError> {
        let standings = t.open_table(STANDINGS).map_err(self.store())?;
        let (first, last) = bounds(Some(section));
        let rows = standings.range::<&[u8; MFOV_KEY_BYTES]>(&first..=&last).map_err(self.store())?;
        rows.map(|entry| {
            let (key, value) = entry.map_err(self.store())?;
            Ok((mfov_from(key.value()), Standing::decode(value.value()).map_err(self.damaged())?))
        })
        .collect()
    }

    /// Writes an mFOV's states, and the counts with them, where they differ.
    fn replace(
        &self,
        t: &WriteTransaction,
        mfov: MfovId,
        (before, after): (&Standing, &Standing),
    ) -> Result<(), LedgerError> {
        if before == after {
            return Ok(());
        }
        let mut standings = t.open_table(STANDINGS).map_err(self.store())?;
        let bytes = after.encode().map_err(self.damaged())?;
        standings.insert(&mfov_bytes(mfov), bytes.as_slice()).map_err(self.store())?;
        self.count(t, mfov.section, (before.tally(), after.tally()))
    }

    fn count(
        &self,
        t: &WriteTransaction,
        section: SectionId,
        (minus, plus): (Counts, Counts),
    ) -> Result<(), LedgerError> {
        let mut table = t.open_table(COUNTS).map_err(self.store())?;
        let mut counts = table.get(section.0).map_err(self.store())?.map(|v| v.value()).unwrap_or_default();
        for ((count, minus), plus) in counts.iter_mut().zip(minus.to_array()).zip(plus.to_array()) {
            *count = (*count + plus)
                .checked_sub(minus)
                .ok_or_else(|| self.damaged()(format!("the counts of {section} do not agree with its tiles")))?;
        }
        table.insert(section.0, counts).map_err(self.store())?;
        Ok(())
    }

    /// Gives those that are told, with how often they have come again since the beginning.
    fn add_duplicates<'a>(
        &self,
        t: &WriteTransaction,
        more: impl Iterator<Item = &'a (TileKey, Duplicates)>,
    ) -> Result<Vec<(TileKey, Duplicates)>, LedgerError> {
        let mut table = None;
        let mut told = BTreeMap::new();
        for (key, d) in more {
            let table = match &mut table {
                Some(table) => table,
                none => none.insert(t.open_table(DUPLICATES).map_err(self.store())?),
            };
            let (same, other) = table.get(&tile_bytes(*key)).map_err(self.store())?.map_or((0, 0), |v| v.value());
            let now = Duplicates { same: same + d.same, other: other + d.other };
            table.insert(&tile_bytes(*key), (now.same, now.other)).map_err(self.store())?;
            if is_told(same + other, now.same + now.other) {
                told.insert(*key, now);
            }
        }
        Ok(told.into_iter().collect())
    }
}

/// Every mFOV of `part` is in `whole`, the same.
fn holds(whole: &SectionPlan, part: &SectionPlan) -> bool {
    let named = whole.serial == part.serial && whole.name == part.name;
    named && part.mfovs.iter().all(|m| whole.mfov(m.id) == Some(m))
}

/// Only a tile that is open can end.
fn settle_one(
    standing: &mut Standing,
    mfov: MfovId,
    key: TileKey,
    outcome: &Outcome,
    unix_ms: u64,
) -> Result<(), LedgerError> {
    let at = Some(key).filter(|k| k.mfov == mfov).and_then(|k| standing.find(k.beam.0));
    let tile = &mut standing.tiles[at.ok_or(LedgerError::NotExpected { key, found: "in no plan" })?];
    let (state, reason): (State, Option<Reason>) = match outcome {
        Outcome::Durable { .. } => (State::Durable, None),
        Outcome::Lost(reason) => (State::Lost, Some(reason.clone())),
    };
    if !tile.state.is_open() {
        return Err(LedgerError::NotExpected { key, found: tile.state.name() });
    }
    tile.state = state;
    tile.reason = reason;
    tile.times.enter(state, unix_ms);
    Ok(())
}

/// The last exposure in the archive of each tile; of those that are placed where they are to be published.
fn current(standings: &BTreeMap<MfovId, Standing>, next: State) -> BTreeSet<TileKey> {
    let mut last: BTreeMap<TileKey, TileKey> = BTreeMap::new();
    for (mfov, standing) in standings {
        for tile in standing.tiles.iter().filter(|t| t.state.is_safe()) {
            if next == State::Placed || matches!(tile.state, State::Placed | State::Published) {
                let key = TileKey { mfov: *mfov, beam: BeamId(tile.beam) };
                last.insert(key.first(), key);
            }
        }
    }
    last.into_values().collect()
}

fn move_one(
    standings: &mut BTreeMap<MfovId, Standing>,
    key: TileKey,
    state: State,
    unix_ms: u64,
) -> Result<u64, LedgerError> {
    let standing = standings.get_mut(&key.mfov);
    let tile = standing.and_then(|s| s.find(key.beam.0).map(|at| &mut s.tiles[at]));
    let tile = tile.ok_or(LedgerError::NotExpected { key, found: "in no plan" })?;
    if !tile.state.is_safe() {
        return Err(LedgerError::Backward { key, from: tile.state, to: state });
    }
    if !tile.state.may_become(state) {
        return Ok(0);
    }
    tile.state = state;
    tile.times.enter(state, unix_ms);
    Ok(1)
}

/// What is in the archive of earlier exposures of these tiles.
fn supersede(standings: &mut BTreeMap<MfovId, Standing>, placed: &BTreeSet<TileKey>, unix_ms: u64) -> u64 {
    let last: BTreeMap<TileKey, TileKey> = placed.iter().map(|k| (k.first(), *k)).collect();
    let mut moved = 0;
    for (mfov, standing) in standings {
        for tile in &mut standing.tiles {
            let key = TileKey { mfov: *mfov, beam: BeamId(tile.beam) };
            let replaced = last.get(&key.first()).is_some_and(|last| key < *last);
            if replaced && tile.state.may_become(State::Superseded) {
                tile.state = State::Superseded;
                tile.times.enter(State::Superseded, unix_ms);
                moved += 1;
            }
        }
    }
    moved
}
