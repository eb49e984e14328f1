//! Takes what an instrument gives into the spool, tile by tile, and has it sent mFOV by mFOV.
//!
//! ```text
//! Instrument ─► decode, check against the plan ─► spool ── MfovEnds ─► end, sync ─► Kept ─► link ═► head
//!      ▲                                            │                                          │
//!      └─ Hold while there is no room; Go after ────┘◄────── receipt: released from the spool ─┘
//! ```
//! In memory is one tile and the ids of what is in the spool, whatever the length of an outage. When the spool is full the
//! instrument is held and not asked for more; one that cannot be held loses tiles, which is announced before. Of tiles that
//! come twice one is sent and the others are counted; of a promised tile that does not come, or comes unreadable or in another
//! size, the loss is sent. So each mFOV that leaves here is whole.
//!
//! *Restart.* What the spool holds from a run before is sent; mFOVs that are whole there, or durable at the head, are skipped;
//! of those that were open the tiles are taken as given.

mod admission;
mod assembly;
mod event;
mod news;
mod room;

use std::collections::BTreeSet;
use std::time::Duration;

use kinesin_backpressure::governor::Pace;
use kinesin_backpressure::spool::{SpoolConfig, SpoolError};
use kinesin_backpressure::{Budget, Bytes};
use kinesin_stream::ids::SectionId;
use kinesin_stream::link::{LinkError, RestoredTiles, Scope, ScopeConfig, ScopeStatus, ScopeSummary, TileSpool};
use kinesin_stream::plan::RunPlan;
use kinesin_stream::runner::RunToken;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;

use crate::instrument::{Command, Instrument, InstrumentError};
use admission::Admission;

pub use event::{AdmitEvent, OnEvent};

/// What admission needs.
#[derive(Clone, Debug)]
pub struct AdmitConfig {
    /// Whom to call.
    pub link: ScopeConfig,
    /// Where tiles are kept until their receipt.
    pub spool: SpoolConfig,
    /// Is told when the instrument is held for want of room, and before tiles are lost.
    pub on_event: OnEvent,
    /// How fast the instrument shall go, by whoever governs it; full speed where there is nobody. A full spool holds it whatever this says.
    pub pace: Option<watch::Receiver<Pace>>,
    /// Where the scope's status is put, several times a second, for whoever governs.
    pub status: Option<watch::Sender<ScopeStatus>>,
}

/// What was admitted.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct AdmitSummary {
    /// What went over the link.
    pub link: ScopeSummary,
    /// Times that the instrument was held for want of room.
    pub holds: u64,
    /// How long, in all, seconds.
    pub hold_seconds: f64,
    /// Tiles that came again.
    pub duplicates: u64,
    /// Tiles that no plan promised.
    pub foreign: u64,
    /// Tiles that came although the head or the spool had their mFOV whole from an earlier run.
    pub already_durable: u64,
    /// Tiles that were lost because there was no room and the instrument could not be held.
    pub no_room: u64,
}

/// Why admission ended early.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The instrument failed.
    #[error(transparent)]
    Instrument(#[from] InstrumentError),
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The spool is taken by mFOVs that are not whole, so that waiting would never end.
    #[error(
        "{open} mFOVs are open at once and fill the spool of {capacity}; raise spool.capacity to at least \"{needed}\""
    )]
    SpoolTooSmall {
        /// mFOVs of which tiles are still to come.
        open: usize,
        /// What may be held.
        capacity: Bytes,
        /// What these mFOVs need when whole, and one more.
        needed: Bytes,
    },
    /// The instrument broke the rules of events.
    #[error("the instrument gave {what} for {section}, which it has not begun")]
    NotBegun {
        /// Which event.
        what: &'static str,
        /// Which section.
        section: SectionId,
    },
}

/// Bytes that an mFOV of this plan takes in the spool, at most.
pub fn mfov_bytes(plan: &RunPlan) -> Bytes {
    // A header, a frame and what rounding takes; in the table at the end as much again.
    const AROUND: u64 = 320;
    Bytes((tile_bytes(plan) + AROUND) * u64::from(plan.beams) + AROUND)
}

/// Lines that admission enters into the budget: for the sheet of `kinesin check`.
pub fn budget_lines(plan: &RunPlan, spool: Bytes) -> [(&'static str, Bytes); 2] {
    // The file as read and its pixels.
    let tile = Bytes(2 * tile_bytes(plan));
    // Entries of the spool, the link and the section, for each mFOV that fits.
    const ENTRY: u64 = 512;
    [("tile in hand", tile), ("spool index", Bytes(ENTRY * spool.0.div_ceil(mfov_bytes(plan).0.max(1))))]
}

fn tile_bytes(plan: &RunPlan) -> u64 {
    u64::from(plan.tile_px.x) * u64::from(plan.tile_px.y)
}

/// Runs the instrument to its end and waits for every receipt.
///
/// Cancel safety: dropping it hangs up; what has no receipt is in the spool, and sent by the next run.
pub async fn admit<I: Instrument>(
    mut instrument: I,
    runtime: &Handle,
    budget: &Budget,
    run: RunToken,
    config: AdmitConfig,
) -> Result<AdmitSummary, AdmitError> {
    let plan = instrument.plan().clone();
    for (name, bytes) in budget_lines(&plan, config.spool.capacity) {
        budget.fixed(name, bytes);
    }
    let (tiles, restored) = block_in_place(|| TileSpool::open(config.spool.clone()))?;
    tell_restored(&config, &restored);
    let observer = config.on_event.clone();
    tiles.spool().observe(move |event| observer.tell(&AdmitEvent::Spool(event)));
    let scope = Scope::start(runtime, budget, run.clone(), config.link.clone(), tiles.clone(), &restored.whole)?;
    let whole: BTreeSet<_> = restored.whole.iter().map(|s| s.mfov).collect();
    for mfov in &whole {
        tell(&mut instrument, Command::Kept(*mfov)).await?;
        tell(&mut instrument, Command::Skip(*mfov)).await?;
    }
    let _status = config.status.clone().map(|to| report_status(runtime, &scope, to));
    let mut admission = Admission::new(config, scope, tiles, plan, whole, restored.open)?;
    let ended = admission.run(&mut instrument, &run).await?;
    if ended {
        admission.end(&mut instrument).await?;
    }
    admission.finish().await
}

/// What of a run before is not whole any more.
fn tell_restored(config: &AdmitConfig, restored: &RestoredTiles) {
    for damage in &restored.damage {
        let (file, offset, bytes) = (damage.path.clone(), damage.offset, damage.bytes.0);
        config.on_event.tell(&AdmitEvent::SpoolDamaged { file, offset, bytes });
    }
    if restored.cut.0 > 0 {
        config.on_event.tell(&AdmitEvent::SpoolCut { folder: config.spool.folder.clone(), bytes: restored.cut.0 });
    }
}

/// A task that ends with this.
struct Reporting(tokio::task::JoinHandle<()>);

impl Drop for Reporting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn report_status(runtime: &Handle, scope: &Scope, to: watch::Sender<ScopeStatus>) -> Reporting {
    let status = scope.status_reader();
    Reporting(runtime.spawn(async move {
        let mut tick = tokio::time::interval(STATUS);
        loop {
            tick.tick().await;
            to.send_replace(status());
        }
    }))
}

/// How often the scope's status is put where whoever governs can see it.
const STATUS: Duration = Duration::from_millis(250);

/// Gives a command; `false` where the instrument cannot do that.
async fn tell<I: Instrument>(instrument: &mut I, command: Command) -> Result<bool, AdmitError> {
    match instrument.command(command).await {
        Ok(()) => Ok(true),
        Err(InstrumentError::Refused { instrument, command }) => {
            tracing::debug!(instrument, ?command, "refused");
            Ok(false)
        }
        Err(other) => Err(other.into()),
    }
}

#[cfg(test)]
mod tests;
