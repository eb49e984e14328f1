//! What the scope tells the head of itself, once a second.

use serde::{Deserialize, Serialize};

/// The scope, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScopeStatus {
    /// Bytes that the spool takes on disk.
    pub spool_held: u64,
    /// Bytes that it may take.
    pub spool_capacity: u64,
    /// Bytes that ever went into the spool, since the scope started.
    pub in_bytes_total: u64,
    /// Bytes of it that were released since.
    pub out_bytes_total: u64,
    /// Whether the instrument is asked to hold.
    pub held: bool,
    /// Whether it can be held; `true` until it refuses.
    pub holdable: bool,
    /// Whether it can go slower; `true` until it refuses.
    pub slowable: bool,
    /// Fraction of full speed that it was asked for; 0 while held.
    pub pace: f64,
    /// Milliseconds for which the oldest whole mFOV has waited for its receipt.
    pub oldest_ms: u64,
}

/// What the scope asks of its instrument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// To hold.
    pub held: bool,
    /// It can be held.
    pub holdable: bool,
    /// It can go slower.
    pub slowable: bool,
    /// Fraction of full speed.
    pub pace: f64,
}

impl Default for Asked {
    fn default() -> Self {
        Self { held: false, holdable: true, slowable: true, pace: 1.0 }
    }
}
