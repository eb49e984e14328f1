//! What the ledger tells at once: tiles that are lost, that came again, that nobody promised.
//!
//! *Bounded.* At the end of an mFOV there is one piece of news for each reason and one for its repeated tiles. A tile that comes
//! again after that, or that nobody promised, is told at its 1st, 2nd, 4th, 8th, ... time. The ledger has the whole count.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::{Duplicates, Ledger, LedgerError, Outcome};
use crate::ids::{MfovId, TileKey};

/// A piece of news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These tiles of an mFOV will never come.
    Lost {
        /// Whose.
        mfov: MfovId,
        /// Their file names, in order of beam.
        tiles: Vec<String>,
        /// Why, of all of them.
        reason: String,
    },
    /// These tiles of an mFOV came more than once; one of each is kept.
    Repeated {
        /// Whose.
        mfov: MfovId,
        /// Their file names, in order of beam.
        tiles: Vec<String>,
        /// How often, in all.
        times: Duplicates,
    },
    /// A tile came that no plan promised; it is not kept.
    Foreign {
        /// What it says it is.
        key: TileKey,
        /// How often it has come.
        times: u64,
    },
}

/// Who is told. Called by whoever enters: must not wait for the ledger.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<OnceLock<Box<Reader>>>);

/// Takes a piece of news.
type Reader = dyn Fn(&News) + Send + Sync;

/// Whether a count that grew from `before` to `after` is told.
pub(super) fn is_told(before: u64, after: u64) -> bool {
    after.checked_ilog2() > before.checked_ilog2()
}

impl Ledger {
    /// Has `reader` told from now on, by all clones. The first call counts.
    pub fn on_news(&self, reader: impl Fn(&News) + Send + Sync + 'static) {
        self.readers.0.set(Box::new(reader)).ok();
    }

    pub(super) fn tell(&self, news: &News) {
        tracing::debug!(?news, "ledger");
        if let Some(reader) = self.readers.0.get() {
            reader(news);
        }
    }

    /// One piece of news a reason.
    pub(super) fn tell_losses(&self, mfov: MfovId, outcomes: &[(TileKey, Outcome)]) -> Result<(), LedgerError> {
        let mut lost: BTreeMap<String, Vec<TileKey>> = BTreeMap::new();
        for (key, outcome) in outcomes {
            if let Outcome::Lost(reason) = outcome {
                lost.entry(reason.to_string()).or_default().push(*key);
            }
        }
        for (reason, keys) in lost {
            self.tell(&News::Lost { mfov, tiles: self.names_of(mfov, &keys)?, reason });
        }
        Ok(())
    }

    /// One piece of news an mFOV.
    pub(super) fn tell_repeated(&self, again: &[(TileKey, Duplicates)]) -> Result<(), LedgerError> {
        let mut of: BTreeMap<MfovId, (Vec<TileKey>, Duplicates)> = BTreeMap::new();
        for (key, count) in again {
            let (keys, times) = of.entry(key.mfov).or_default();
            keys.push(*key);
            times.same += count.same;
            times.other += count.other;
        }
        for (mfov, (keys, times)) in of {
            self.tell(&News::Repeated { mfov, tiles: self.names_of(mfov, &keys)?, times });
        }
        Ok(())
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.get().is_some() { "Readers(one)" } else { "Readers(nobody)" })
    }
}
