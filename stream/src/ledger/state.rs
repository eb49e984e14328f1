//! States of a tile, which may follow which, and how many tiles are in each.
//!
//! ```text
//!  expected ─► seen ─► spooled ─► sent ─► durable ─► placed ─► published      each step may be left out, none is taken back
//!      └─────────┴────────┴────────┴─► lost └──────────┴──────────┴─► superseded
//! ```

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Where a promised tile stands. Every promised tile is in exactly one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Promised by its section's plan; nothing more is known.
    Expected,
    /// The instrument has given it.
    Seen,
    /// In the spool of the microscope's side: it would survive a power cut there.
    Spooled,
    /// On its way over the link.
    Sent,
    /// In the archive; would survive a power cut.
    Durable,
    /// Its section is montaged with it.
    Placed,
    /// Its section is in the published volume.
    Published,
    /// In the archive; a later exposure of the same tile took its place.
    Superseded,
    /// Will never come; the row says why.
    Lost,
}

/// Number of states.
pub(super) const STATES: usize = State::ALL.len();

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 9] = [
        Self::Expected,
        Self::Seen,
        Self::Spooled,
        Self::Sent,
        Self::Durable,
        Self::Placed,
        Self::Published,
        Self::Superseded,
        Self::Lost,
    ];

    /// The name in reports, tables and files.
    pub fn name(self) -> &'static str {
        ["expected", "seen", "spooled", "sent", "durable", "placed", "published", "superseded", "lost"][self as usize]
    }

    /// Not in the archive yet, and not given up.
    pub fn is_open(self) -> bool {
        self < Self::Durable
    }

    /// In the archive.
    pub fn is_safe(self) -> bool {
        !self.is_open() && self != Self::Lost
    }

    /// Whether a tile may go from here to there; never backward, and not out of `superseded` or `lost`.
    pub fn may_become(self, next: Self) -> bool {
        match next {
            Self::Expected => false,
            Self::Seen | Self::Spooled | Self::Sent | Self::Durable => self < next,
            Self::Placed | Self::Published => self >= Self::Durable && self < next,
            Self::Superseded => self >= Self::Durable && self < next,
            Self::Lost => self.is_open(),
        }
    }

    pub(super) fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// When a tile reached each state, milliseconds since 1970 by the clock of whoever entered it: for people, nothing is decided by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times(pub(super) [u64; STATES]);

impl Times {
    /// When it reached this state; `None` where it did not, or nobody said when.
    pub fn at(&self, state: State) -> Option<u64> {
        Some(self.0[state as usize]).filter(|ms| *ms > 0)
    }

    /// The first time counts.
    pub(super) fn enter(&mut self, state: State, unix_ms: u64) {
        let known = &mut self.0[state as usize];
        if *known == 0 {
            *known = unix_ms;
        }
    }
}

/// Tiles per state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Promised, nothing more known.
    pub expected: u64,
    /// Given by the instrument.
    pub seen: u64,
    /// In the scope's spool.
    pub spooled: u64,
    /// On their way.
    pub sent: u64,
    /// In the archive.
    pub durable: u64,
    /// Montaged.
    pub placed: u64,
    /// In the volume.
    pub published: u64,
    /// In the archive, replaced by a later exposure.
    pub superseded: u64,
    /// Lost with a reason.
    pub lost: u64,
}

impl Counts {
    /// All promised tiles.
    pub fn promised(&self) -> u64 {
        self.open() + self.safe() + self.lost
    }

    /// Promised, neither in the archive nor lost yet.
    pub fn open(&self) -> u64 {
        self.expected + self.seen + self.spooled + self.sent
    }

    /// In the archive.
    pub fn safe(&self) -> u64 {
        self.durable + self.placed + self.published + self.superseded
    }

    /// Tiles in this state.
    pub fn get(mut self, state: State) -> u64 {
        *self.of(state)
    }

    pub(super) fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Expected => &mut self.expected,
            State::Seen => &mut self.seen,
            State::Spooled => &mut self.spooled,
            State::Sent => &mut self.sent,
            State::Durable => &mut self.durable,
            State::Placed => &mut self.placed,
            State::Published => &mut self.published,
            State::Superseded => &mut self.superseded,
            State::Lost => &mut self.lost,
        }
    }

    pub(super) fn to_array(self) -> [u64; STATES] {
        State::ALL.map(|s| self.get(s))
    }

    pub(super) fn from_array(counts: [u64; STATES]) -> Self {
        let mut all = Self::default();
        State::ALL.into_iter().zip(counts).for_each(|(s, n)| *all.of(s) = n);
        all
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for state in State::ALL {
            *self.of(state) += other.get(state);
        }
    }
}
