//! One tile as it is told outside: a JSON line, a line of CSV, a row of Parquet.

use kinesin_stream::ids::TileKey;
use kinesin_stream::ledger::{Row, State};
use serde::{Deserialize, Serialize};

/// A tile. Times are milliseconds since 1970, UTC, of each state it reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) section: u32,
    pub(super) region: u16,
    pub(super) mfov: u32,
    pub(super) attempt: u16,
    /// As scopes count, from 1.
    pub(super) beam: u32,
    pub(super) name: String,
    pub(super) state: State,
    pub(super) reason: Option<String>,
    pub(super) hash: Option<String>,
    expected_ms: Option<u64>,
    seen_ms: Option<u64>,
    spooled_ms: Option<u64>,
    sent_ms: Option<u64>,
    durable_ms: Option<u64>,
    placed_ms: Option<u64>,
    published_ms: Option<u64>,
    superseded_ms: Option<u64>,
    lost_ms: Option<u64>,
}

impl Entry {
    pub(super) fn new(key: TileKey, row: &Row) -> Self {
        let at = |state| row.times.at(state);
        Self {
            section: key.mfov.section.0,
            region: key.mfov.region.0,
            mfov: key.mfov.mfov,
            attempt: key.mfov.attempt.0,
            beam: u32::from(key.beam.0) + 1,
            name: row.name.clone(),
            state: row.state,
            reason: row.reason.as_ref().map(ToString::to_string),
            hash: row.hash.map(|h| h.to_string()),
            expected_ms: at(State::Expected),
            seen_ms: at(State::Seen),
            spooled_ms: at(State::Spooled),
            sent_ms: at(State::Sent),
            durable_ms: at(State::Durable),
            placed_ms: at(State::Placed),
            published_ms: at(State::Published),
            superseded_ms: at(State::Superseded),
            lost_ms: at(State::Lost),
        }
    }

    /// The times in order of state.
    pub(super) fn times(&self) -> [Option<u64>; 9] {
        [
            self.expected_ms,
            self.seen_ms,
            self.spooled_ms,
            self.sent_ms,
            self.durable_ms,
            self.placed_ms,
            self.published_ms,
            self.superseded_ms,
            self.lost_ms,
        ]
    }
}

/// `2026-11-22 18:05:31`, for people. Days to date as in Hinnant, "chrono-compatible low-level date algorithms".
pub(super) fn utc(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Years begin in March, so that the leap day is their last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (year, hour, minute, second) = (year + era * 400 + next, seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}
