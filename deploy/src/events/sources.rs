//! Who tells what: admission, the ledger and hooks, each in its own words, as events of a run.

use std::sync::Arc;

use kinesin_acquire::admit::{AdmitEvent, OnEvent};
use kinesin_acquire::throttle::{HookEvent, Tell};
use kinesin_backpressure::governor::Figures;
use kinesin_stream::ledger::{Ledger, News};

use super::{Event, EventLog};

/// Which side names tiles: where both are in one process, the ledger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    /// The scope alone.
    Scope,
    /// Both.
    Both,
}

/// Has what admission announces in the log.
pub(crate) fn admission(log: Arc<EventLog>, sides: Sides) -> OnEvent {
    OnEvent::new(move |event| {
        let event = announced(event).or_else(|| (sides == Sides::Scope).then(|| tiles(event)).flatten());
        event.into_iter().for_each(|e| log.note(e));
    })
}

/// Has the ledger's news in the log.
pub(crate) fn ledger(log: Arc<EventLog>, ledger: &Ledger) {
    ledger.on_news(move |news| {
        log.note(match news.clone() {
            News::Lost { mfov, tiles, reason } => Event::TileLost { mfov: mfov.to_string(), tiles, reason },
            News::Repeated { mfov, tiles, times } => {
                Event::TileDuplicate { mfov: mfov.to_string(), tiles, same: times.same, other: times.other }
            }
            News::Foreign { key, times } => Event::TileForeign { tile: key.to_string(), times },
        });
    });
}

/// Has what a hook does in the log.
pub(crate) fn hook(log: Arc<EventLog>) -> Tell {
    Arc::new(move |event| {
        let works = matches!(event, HookEvent::Done { .. } | HookEvent::Recovered { .. });
        log.note(Event::Hook { said: event.to_string(), works });
    })
}

/// What concerns the spool and the instrument.
fn announced(event: &AdmitEvent) -> Option<Event> {
    Some(match event {
        AdmitEvent::Held { why, held, capacity } => {
            Event::ScopeHeld { why: why.to_string(), held: *held, capacity: *capacity }
        }
        AdmitEvent::Going { seconds } => Event::ScopeGoes { after_seconds: *seconds },
        AdmitEvent::LossComing { held, capacity, bytes_per_minute, .. } => Event::ComingLoss {
            buffer: "spool".into(),
            in_seconds: 0.0,
            bytes_per_minute: *bytes_per_minute,
            figures: Figures { held: *held, capacity: *capacity, ..Figures::default() },
        },
        AdmitEvent::StillFull { why, folder, held, capacity, seconds } => Event::SpoolFull {
            why: why.to_string(),
            folder: folder.display().to_string(),
            held: *held,
            capacity: *capacity,
            since_seconds: *seconds,
        },
        AdmitEvent::SpoolDamaged { file, offset, bytes } => {
            Event::SpoolCut { file: file.display().to_string(), offset: *offset, bytes: *bytes, damaged: true }
        }
        AdmitEvent::SpoolCut { folder, bytes } => {
            Event::SpoolCut { file: folder.display().to_string(), offset: 0, bytes: *bytes, damaged: false }
        }
        AdmitEvent::Damaged { tiles } => Event::SpoolDamaged { tiles: *tiles },
        _ => return None,
    })
}

/// What concerns single tiles.
fn tiles(event: &AdmitEvent) -> Option<Event> {
    Some(match event.clone() {
        AdmitEvent::TilesLost { mfov, tiles, reason } => Event::TileLost { mfov: mfov.to_string(), tiles, reason },
        AdmitEvent::Repeated { mfov, tiles, times } => {
            Event::TileDuplicate { mfov: mfov.to_string(), tiles, same: times.same, other: times.other }
        }
        AdmitEvent::CameAgain { key, name, .. } => {
            // Whether it is the same is known at the head.
            Event::TileDuplicate { mfov: key.mfov.to_string(), tiles: vec![name], same: 0, other: 0 }
        }
        AdmitEvent::Foreign { key, times } => Event::TileForeign { tile: key.to_string(), times },
        _ => return None,
    })
}
