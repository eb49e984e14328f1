//! What admission announces: to the log of events, to whoever governs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use kinesin_backpressure::spool::{NoRoom, SpoolEvent};
use kinesin_stream::ids::{MfovId, TileKey};
use kinesin_stream::ledger::Duplicates;

/// Something that an operator wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum AdmitEvent {
    /// There is no room; the instrument was asked to hold at its next stopping point.
    Held {
        /// Capacity, or the disk.
        why: NoRoom,
        /// Bytes in the spool.
        held: u64,
        /// Bytes that it may hold.
        capacity: u64,
    },
    /// There is room again; the instrument was asked to go on.
    Going {
        /// For how long it was held.
        seconds: f64,
    },
    /// There is no room and the instrument cannot be held: tiles that come from now on are lost until there is.
    LossComing {
        /// Capacity, or the disk.
        why: NoRoom,
        /// Bytes in the spool.
        held: u64,
        /// Bytes that it may hold.
        capacity: u64,
        /// Bytes a minute that the instrument gives at its own rate; 0 where that is not known.
        bytes_per_minute: u64,
    },
    /// There is still no room. Told once a minute.
    StillFull {
        /// Capacity, or the disk.
        why: NoRoom,
        /// The spool's folder.
        folder: PathBuf,
        /// Bytes in the spool.
        held: u64,
        /// Bytes that it may hold.
        capacity: u64,
        /// For how long.
        seconds: f64,
    },
    /// A tile was lost because there was no room. It is named again with its mFOV.
    Lost(TileKey),
    /// These tiles of an mFOV that has ended will never come.
    TilesLost {
        /// Whose.
        mfov: MfovId,
        /// Their file names.
        tiles: Vec<String>,
        /// Why, of all of them.
        reason: String,
    },
    /// These tiles of an mFOV that has ended came more than once; one of each is sent.
    Repeated {
        /// Whose.
        mfov: MfovId,
        /// Their file names.
        tiles: Vec<String>,
        /// How often, in all.
        times: Duplicates,
    },
    /// A tile came again after its mFOV had ended.
    CameAgain {
        /// Which.
        key: TileKey,
        /// Its file name.
        name: String,
        /// How many such tiles this run has seen.
        times: u64,
    },
    /// A tile came that no plan promised; it is not sent.
    Foreign {
        /// What it says it is.
        key: TileKey,
        /// How many such tiles this run has seen.
        times: u64,
    },
    /// At the start: bytes in the spool were changed at rest. Whose they were is told when their mFOV is sent.
    SpoolDamaged {
        /// The file.
        file: PathBuf,
        /// From which byte.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// At the start: the last record was torn and was cut off. Nothing that was told kept is in it.
    SpoolCut {
        /// The spool's folder.
        folder: PathBuf,
        /// How many bytes.
        bytes: u64,
    },
    /// The spool's disk has given tiles back damaged, as they were to be sent; they are lost.
    Damaged {
        /// How many so far.
        tiles: u64,
    },
    /// Something happened on the spool's disk.
    Spool(SpoolEvent),
}

/// Who is told; the log, where nobody is. Called from admission: must not wait.
#[derive(Clone, Default)]
pub struct OnEvent(Option<Arc<Tell>>);

/// Takes an event.
type Tell = dyn Fn(&AdmitEvent) + Send + Sync;

impl OnEvent {
    /// Has this called.
    pub fn new(tell: impl Fn(&AdmitEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(super) fn tell(&self, event: &AdmitEvent) {
        if let Some(tell) = &self.0 {
            return tell(event);
        }
        match event {
            AdmitEvent::Lost(_)
            | AdmitEvent::LossComing { .. }
            | AdmitEvent::Damaged { .. }
            | AdmitEvent::SpoolDamaged { .. } => {
                tracing::error!(?event, "at the scope");
            }
            AdmitEvent::Held { .. } | AdmitEvent::StillFull { .. } => tracing::warn!(?event, "the instrument is held"),
            AdmitEvent::Spool(event) => tracing::trace!(?event, "spool"),
            _ => tracing::info!(?event, "at the scope"),
        }
    }
}

impl fmt::Debug for OnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "OnEvent(..)" } else { "OnEvent(nobody)" })
    }
}
