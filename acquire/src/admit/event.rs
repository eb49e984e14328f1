//! What admission announces: to the log of events, to whoever governs.

use std::fmt;
use std::sync::Arc;

use kinesin_backpressure::spool::{NoRoom, SpoolEvent};
use kinesin_stream::ids::TileKey;

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
    },
    /// A tile was lost because there was no room.
    Lost(TileKey),
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
            AdmitEvent::Lost(_) | AdmitEvent::LossComing { .. } => tracing::error!(?event, "no room at the scope"),
            AdmitEvent::Held { .. } => tracing::warn!(?event, "the instrument is held"),
            AdmitEvent::Spool(event) => tracing::trace!(?event, "spool"),
            AdmitEvent::Going { .. } => tracing::info!(?event, "the instrument goes on"),
        }
    }
}

impl fmt::Debug for OnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "OnEvent(..)" } else { "OnEvent(nobody)" })
    }
}
