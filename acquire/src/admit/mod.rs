//! Takes what an instrument gives and sends it over the link, mFOV by mFOV.
//!
//! ```text
//! Instrument ─► decode, check against the plan ─► lease ─► open mFOV ── MfovEnds ─► shipment ═► head
//!      ▲                                            │                                  │
//!      └─ Hold while there is no room; Go after ────┘◄───── receipt: bytes given back ─┘
//! ```
//! Whatever is not acknowledged stays in memory under one line of the budget. When that is full the instrument is held and
//! not asked for more. Of tiles that come twice one is sent and the others are counted; of a promised tile that does not come,
//! or comes unreadable or in another size, the loss is sent. So each mFOV that leaves here is whole.

mod assembly;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinesin_backpressure::{Budget, Bytes, Credit, Pool};
use kinesin_stream::ids::{MfovId, SectionId, TileKey};
use kinesin_stream::ledger::ContentHash;
use kinesin_stream::link::{LinkError, Scope, ScopeConfig, ScopeSummary};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{PlannedTile, RunPlan, SectionPlan};
use kinesin_stream::runner::RunToken;
use kinesin_stream::tile::Reason;
use tokio::runtime::Handle;

use crate::decode::decode;
use crate::instrument::{Command, Event, Instrument, InstrumentError, RawImage, RawTile};
use assembly::{Assembly, Taken};

/// What admission needs.
#[derive(Clone, Debug)]
pub struct AdmitConfig {
    /// Whom to call.
    pub link: ScopeConfig,
    /// Memory for tiles without a receipt. At least the mFOVs that the instrument has open at a time and one more.
    pub unacknowledged: Bytes,
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
    /// Tiles of mFOVs that the head had from an earlier run.
    pub already_durable: u64,
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
    /// All memory is taken by mFOVs that are not whole, so that waiting would never end.
    #[error(
        "{open} mFOVs are open at once and fill all of {capacity} for unacknowledged tiles; raise it to at least {needed}"
    )]
    TooLittleMemory {
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

/// Sections that are kept at hand after their end, for tiles that come again.
const SECTIONS: usize = 8;

/// Runs the instrument to its end and waits for every receipt.
///
/// Cancel safety: dropping it hangs up; what has no receipt is sent by the next run.
pub async fn admit<I: Instrument>(
    mut instrument: I,
    runtime: &Handle,
    budget: &Budget,
    run: RunToken,
    config: AdmitConfig,
) -> Result<AdmitSummary, AdmitError> {
    let pool = Pool::new(budget, "unacknowledged mFOVs", config.unacknowledged);
    let (scope, durable) = Scope::connect(runtime, budget, run.clone(), config.link).await?;
    for mfov in &durable {
        tell(&mut instrument, Command::Skip(*mfov)).await?;
    }
    let plan = instrument.plan().clone();
    let mut admission = Admission {
        scope,
        pool,
        plan,
        durable,
        sections: VecDeque::new(),
        open: BTreeMap::new(),
        summary: AdmitSummary::default(),
    };
    loop {
        let event = tokio::select! {
            event = instrument.next() => event?,
            () = admission.scope.closed() => return admission.finish().await,
        };
        let Some(event) = event else { break };
        if !admission.take(event, &mut instrument).await? {
            // The link has ended while there was no room; its error says why.
            return admission.finish().await;
        }
        run.count(1, Duration::ZERO);
    }
    while let Some(section) = admission.sections.front().map(|s| s.plan.section) {
        admission.end_section(section);
        admission.sections.pop_front();
    }
    admission.finish().await
}

struct Admission {
    scope: Scope,
    pool: Pool,
    plan: RunPlan,
    /// What the head had when we called.
    durable: BTreeSet<MfovId>,
    sections: VecDeque<Section>,
    open: BTreeMap<MfovId, Assembly>,
    summary: AdmitSummary,
}

struct Section {
    plan: Arc<SectionPlan>,
    /// Those that were shipped, or were durable before.
    over: BTreeSet<MfovId>,
}

impl Admission {
    /// Handles an event; `false` once the link has ended.
    async fn take<I: Instrument>(&mut self, event: Event, instrument: &mut I) -> Result<bool, AdmitError> {
        match event {
            Event::SectionBegins(plan) | Event::SectionAmended(plan) => self.begin_section(plan),
            Event::MfovBegins(id) => {
                self.section(id.section, "MfovBegins")?;
            }
            Event::Tile(tile) => return self.tile(tile, instrument).await,
            Event::TileLost(key, reason) => self.lost(key, reason),
            Event::MfovEnds(id) => {
                self.section(id.section, "MfovEnds")?;
                self.ship(id, "the instrument ended the mFOV without it");
            }
            Event::SectionEnds(section) => {
                self.section(section, "SectionEnds")?;
                self.end_section(section);
            }
        }
        Ok(true)
    }

    fn begin_section(&mut self, plan: Arc<SectionPlan>) {
        self.scope.section(plan.clone(), &self.durable);
        let over = plan.mfovs.iter().map(|m| m.id).filter(|id| self.durable.contains(id)).collect();
        // Oldest first; one that is still open stays.
        let whole = |s: &Section| s.over.len() == s.plan.mfovs.len();
        while self.sections.len() >= SECTIONS && self.sections.front().is_some_and(whole) {
            self.sections.pop_front();
        }
        self.sections.push_back(Section { plan, over });
    }

    async fn tile<I: Instrument>(&mut self, tile: RawTile, instrument: &mut I) -> Result<bool, AdmitError> {
        let key = tile.key;
        let Some(promised) = self.promised(key) else {
            tracing::warn!(%key, "a tile that no plan promised; not sent");
            self.summary.foreign += 1;
            self.scope.foreign(key);
            return Ok(true);
        };
        if self.durable.contains(&key.mfov) {
            self.summary.already_durable += 1;
            return Ok(true);
        }
        let image = tokio::task::block_in_place(|| read(tile.image, &promised));
        let over = self.is_over(key.mfov);
        let (pixels, hash) = match image {
            Ok(image) => image,
            Err(reason) => {
                if !over {
                    tracing::warn!(%key, %reason, "a tile that cannot be used");
                    self.assembly(key.mfov).lost(key, reason);
                }
                return Ok(true);
            }
        };
        if over {
            self.summary.duplicates += 1;
            self.scope.came_again(key, hash);
            return Ok(true);
        }
        match self.assembly(key.mfov).repeated(key, &pixels, hash) {
            Taken::Again => self.summary.duplicates += 1,
            Taken::New => {
                let Some(credit) = self.lease(Bytes(pixels.data().len() as u64), instrument).await? else {
                    return Ok(false);
                };
                self.assembly(key.mfov).add(key, pixels, hash, credit);
            }
        }
        Ok(true)
    }

    /// Waits for room, with the instrument held meanwhile. `None` once the link has ended.
    async fn lease<I: Instrument>(&mut self, bytes: Bytes, instrument: &mut I) -> Result<Option<Credit>, AdmitError> {
        if let Some(credit) = self.pool.try_lease(bytes) {
            return Ok(Some(credit));
        }
        // What open mFOVs hold comes back only when they are whole; all else comes back with receipts.
        let open: Bytes = self.open.values().map(Assembly::held).sum();
        if open.0 > 0 && open + bytes > self.pool.capacity() {
            return Err(self.too_little());
        }
        let since = Instant::now();
        let held = tell(instrument, Command::Hold).await?;
        let credit = tokio::select! {
            credit = self.pool.lease(bytes) => credit.ok(),
            () = self.scope.closed() => None,
        };
        if held {
            tell(instrument, Command::Go).await?;
        }
        self.summary.holds += 1;
        self.summary.hold_seconds += since.elapsed().as_secs_f64();
        Ok(credit)
    }

    fn too_little(&self) -> AdmitError {
        let tile = u64::from(self.plan.tile_px.x) * u64::from(self.plan.tile_px.y);
        let mfov = Bytes(tile.div_ceil(4096) * 4096) * u64::from(self.plan.beams);
        let open = self.open.len();
        AdmitError::TooLittleMemory { open, capacity: self.pool.capacity(), needed: mfov * (open as u64 + 1) }
    }

    fn lost(&mut self, key: TileKey, reason: Reason) {
        if self.promised(key).is_some() && !self.is_over(key.mfov) {
            self.assembly(key.mfov).lost(key, reason);
        }
    }

    /// Sends what is there; what is missing is lost because `why`.
    fn ship(&mut self, id: MfovId, why: &str) {
        let Some(section) = self.sections.iter_mut().find(|s| s.plan.section == id.section) else { return };
        let Ok(at) = section.plan.mfovs.binary_search_by_key(&id, |m| m.id) else { return };
        if section.over.insert(id) {
            let assembly = self.open.remove(&id).unwrap_or_default();
            self.scope.ship(assembly.shipment(&section.plan.mfovs[at], why));
        }
    }

    fn end_section(&mut self, section: SectionId) {
        let Some(entry) = self.sections.iter().find(|s| s.plan.section == section) else { return };
        let left: Vec<_> = entry.plan.mfovs.iter().map(|m| m.id).filter(|id| !entry.over.contains(id)).collect();
        for id in left {
            self.ship(id, "the instrument ended the section without it");
        }
    }

    async fn finish(mut self) -> Result<AdmitSummary, AdmitError> {
        self.summary.link = self.scope.finish().await?;
        Ok(self.summary)
    }

    fn section(&self, section: SectionId, what: &'static str) -> Result<&Section, AdmitError> {
        let known = self.sections.iter().find(|s| s.plan.section == section);
        known.ok_or(AdmitError::NotBegun { what, section })
    }

    fn promised(&self, key: TileKey) -> Option<PlannedTile> {
        let section = self.sections.iter().find(|s| s.plan.section == key.mfov.section)?;
        section.plan.tile(key).cloned()
    }

    fn is_over(&self, id: MfovId) -> bool {
        self.sections.iter().any(|s| s.over.contains(&id))
    }

    fn assembly(&mut self, id: MfovId) -> &mut Assembly {
        self.open.entry(id).or_default()
    }
}

/// Decodes and checks; the reason is what is entered in the ledger.
fn read(image: RawImage, promised: &PlannedTile) -> Result<(Pixels, ContentHash), Reason> {
    let pixels = match image {
        RawImage::Pixels(pixels) => pixels,
        RawImage::File(file) => decode(&file)?,
    };
    let (width, height) = (promised.size.x as usize, promised.size.y as usize);
    if (pixels.width(), pixels.height()) != (width, height) {
        let (w, h) = (pixels.width(), pixels.height());
        return Err(Reason::WrongShape(format!("{} is {w} x {h} px, promised were {width} x {height}", promised.name)));
    }
    let hash = ContentHash(pixels.hash());
    Ok((pixels, hash))
}

/// Gives a command; `false` where the instrument cannot do that. It then goes on, and is simply not asked for more.
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
