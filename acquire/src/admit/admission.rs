//! The state of admission: which sections and mFOVs are under way, and what each event does to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kinesin_backpressure::spool::SpoolError;
use kinesin_stream::ids::{Attempt, MfovId, SectionId, TileKey};
use kinesin_stream::link::{KeptTile, Scope, Shipment, TileSpool};
use kinesin_stream::plan::{PlannedTile, RunPlan, SectionPlan};
use kinesin_stream::runner::RunToken;
use kinesin_stream::tile::Reason;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::timeout;

use super::assembly::{Assembly, Taken, read};
use super::room::{Flow, Roomless};
use super::{AdmitConfig, AdmitError, AdmitEvent, AdmitSummary, tell};
use crate::instrument::{Command, Event, Instrument, RawTile};

pub(super) struct Admission {
    pub(super) config: AdmitConfig,
    pub(super) scope: Scope,
    pub(super) tiles: TileSpool,
    pub(super) plan: RunPlan,
    /// From a run before: whole in the spool, or durable at the head.
    before: BTreeSet<MfovId>,
    sections: VecDeque<Section>,
    /// mFOVs of sections that left `sections`, in case one is amended.
    past: VecDeque<(SectionId, BTreeSet<MfovId>)>,
    pub(super) open: BTreeMap<MfovId, Assembly>,
    /// Ended, and to be synced.
    pub(super) ended: Vec<Shipment>,
    pub(super) syncing: Option<JoinHandle<Result<Vec<Shipment>, SpoolError>>>,
    pub(super) flow: Flow,
    pub(super) summary: AdmitSummary,
    /// Tiles that came after the end of their mFOV; tiles that the spool's disk had spoiled at the last look.
    pub(super) again: u64,
    pub(super) damaged: u64,
}

struct Section {
    plan: Arc<SectionPlan>,
    /// Those that are whole in the spool, or were durable before.
    over: BTreeSet<MfovId>,
    /// How often the instrument has ended it, in this run: what is promised for later is still to come.
    ends: u32,
}

/// Sections that are kept at hand after their end, for tiles that come again.
const SECTIONS: usize = 8;
/// Sections whose ids are kept after that, for amendments.
const PAST: usize = 256;
/// How long the instrument waits, when it starts and when a section begins, for a head that may say what it has already.
const ASK: Duration = Duration::from_secs(1);

impl Admission {
    pub(super) fn new(
        config: AdmitConfig,
        scope: Scope,
        tiles: TileSpool,
        plan: RunPlan,
        whole: BTreeSet<MfovId>,
        open: BTreeMap<MfovId, BTreeMap<TileKey, KeptTile>>,
    ) -> Result<Self, AdmitError> {
        let flow = Flow::new(tiles.spool().releases(), config.pace.clone());
        let mut admission = Self {
            config,
            scope,
            tiles,
            plan,
            before: whole,
            sections: VecDeque::new(),
            past: VecDeque::new(),
            open: BTreeMap::new(),
            ended: Vec::new(),
            syncing: None,
            flow,
            summary: AdmitSummary::default(),
            again: 0,
            damaged: 0,
        };
        for section in open.keys().map(|m| m.section).collect::<BTreeSet<_>>() {
            if let Some(plan) = block_in_place(|| admission.tiles.plan(section))? {
                block_in_place(|| admission.scope.section(&plan))?;
                admission.keep_section(Arc::new(plan));
            }
        }
        admission.open = open.into_iter().map(|(mfov, tiles)| (mfov, Assembly::restored(tiles))).collect();
        Ok(admission)
    }

    /// Takes events until the instrument has no more; `false` where the link ended first.
    pub(super) async fn run<I: Instrument>(&mut self, instrument: &mut I, run: &RunToken) -> Result<bool, AdmitError> {
        // A head that is there says what it has; one that is not is no reason to wait longer.
        tokio::select! {
            () = self.scope.closed() => return Ok(false),
            connected = timeout(ASK, self.scope.connected()) => drop(connected),
        }
        loop {
            let event = tokio::select! {
                event = instrument.next() => event?,
                synced = Self::synced(&mut self.syncing) => {
                    self.kept(synced?, instrument).await?;
                    continue;
                }
                durable = self.scope.already_durable() => {
                    self.skip(durable, instrument).await?;
                    continue;
                }
                () = self.flow.turned() => {
                    self.steer(instrument).await?;
                    continue;
                }
                () = self.scope.closed() => return Ok(false),
            };
            let Some(event) = event else { return Ok(true) };
            if !self.take(event, instrument).await? {
                // The link has ended while there was no room; its error says why.
                return Ok(false);
            }
            self.look_for_damage(self.scope.summary().damaged_at_rest);
            run.count(1, Duration::ZERO);
        }
    }

    /// The instrument has no more: what is missing is lost.
    pub(super) async fn end<I: Instrument>(&mut self, instrument: &mut I) -> Result<(), AdmitError> {
        self.let_go(instrument).await?;
        for (section, missing) in self.scope.unfinished() {
            if self.sections.iter().all(|s| s.plan.section != section)
                && let Some(plan) = block_in_place(|| self.tiles.plan(section))?
            {
                // From a run before, and not begun again.
                let over = plan.mfovs.iter().map(|m| m.id).filter(|m| !missing.contains(m)).collect();
                self.sections.push_back(Section { plan: Arc::new(plan), over, ends: 0 });
            }
        }
        self.sections.iter_mut().for_each(|s| s.ends = u32::MAX);
        for section in self.sections.iter().map(|s| s.plan.section).collect::<Vec<_>>() {
            if !self.end_section(section, instrument).await? {
                return Ok(());
            }
        }
        while self.syncing.is_some() {
            let synced = Self::synced(&mut self.syncing).await?;
            self.kept(synced, instrument).await?;
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<AdmitSummary, AdmitError> {
        self.flow.stop_counting(&mut self.summary);
        let (link, on_event) = (self.scope.finish().await?, self.config.on_event);
        if link.damaged_at_rest > self.damaged {
            on_event.tell(&AdmitEvent::Damaged { tiles: link.damaged_at_rest });
        }
        Ok(AdmitSummary { link, ..self.summary })
    }

    /// Handles an event; `false` once the link has ended.
    async fn take<I: Instrument>(&mut self, event: Event, instrument: &mut I) -> Result<bool, AdmitError> {
        match event {
            Event::SectionBegins(plan) | Event::SectionAmended(plan) => {
                return self.begin_section(plan, instrument).await;
            }
            Event::MfovBegins(id) => {
                self.section(id.section, "MfovBegins")?;
                if !self.is_over(id) {
                    self.scope.seen(id);
                }
            }
            Event::Tile(tile) => return self.tile(tile, instrument).await,
            Event::TileLost(key, reason) => self.lost(key, reason),
            Event::MfovEnds(id) => {
                self.section(id.section, "MfovEnds")?;
                return self.ship(id, "the instrument ended the mFOV without it", instrument).await;
            }
            Event::SectionEnds(section) => {
                self.section(section, "SectionEnds")?;
                let ended = self.sections.iter_mut().find(|s| s.plan.section == section);
                ended.into_iter().for_each(|s| s.ends = s.ends.saturating_add(1));
                return self.end_section(section, instrument).await;
            }
        }
        Ok(true)
    }

    async fn begin_section<I: Instrument>(
        &mut self,
        plan: Arc<SectionPlan>,
        instrument: &mut I,
    ) -> Result<bool, AdmitError> {
        // After a restart an instrument may begin with a promise that it had amended.
        let newer = self.sections.iter().find(|s| s.plan.section == plan.section && s.plan.version > plan.version);
        let plan = newer.map_or(plan, |s| s.plan.clone());
        let announced = plan.clone();
        let put = move |admission: &Self| Ok(admission.scope.section(&announced)?.map_or(Ok(()), Err));
        if self.with_room(instrument, put, true).await?.is_err() {
            return Ok(false);
        }
        self.keep_section(plan.clone());
        // What the head has already, the instrument need not give.
        timeout(ASK, self.scope.answered(plan.section)).await.ok();
        Ok(true)
    }

    fn keep_section(&mut self, plan: Arc<SectionPlan>) {
        let section = plan.section;
        if let Some(known) = self.sections.iter_mut().find(|s| s.plan.section == section) {
            known.plan = plan;
            return;
        }
        let past = self.past.iter().position(|(s, _)| *s == section).and_then(|at| self.past.remove(at));
        let first = |m: &MfovId| plan.version > 0 && m.attempt == Attempt(0);
        let over = match past {
            Some((_, over)) => over,
            // Amended long after its end: all but retakes had been told.
            None => plan.mfovs.iter().map(|m| m.id).filter(|m| self.before.contains(m) || first(m)).collect(),
        };
        // Oldest first; one that is still open stays.
        let whole = |s: &Section| s.over.len() == s.plan.mfovs.len();
        while self.sections.len() >= SECTIONS && self.sections.front().is_some_and(whole) {
            let Some(old) = self.sections.pop_front() else { break };
            self.before.retain(|m| m.section != old.plan.section);
            self.past.push_back((old.plan.section, old.over));
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        self.sections.push_back(Section { plan, over, ends: 0 });
    }

    /// The head has these from before: the instrument need not give them, and what came of them is not needed.
    async fn skip<I: Instrument>(&mut self, durable: Vec<MfovId>, instrument: &mut I) -> Result<(), AdmitError> {
        for mfov in durable {
            let Some(section) = self.sections.iter_mut().find(|s| s.plan.section == mfov.section) else { continue };
            if section.over.insert(mfov) {
                self.before.insert(mfov);
                tell(instrument, Command::Skip(mfov)).await?;
                if self.open.remove(&mfov).is_some() {
                    block_in_place(|| self.tiles.release(mfov))?;
                }
            }
        }
        Ok(())
    }

    async fn tile<I: Instrument>(&mut self, tile: RawTile, instrument: &mut I) -> Result<bool, AdmitError> {
        let key = tile.key;
        let Some(promised) = self.promised(key) else {
            self.foreign(key);
            return Ok(true);
        };
        if self.before.contains(&key.mfov) {
            self.summary.already_durable += 1;
            return Ok(true);
        }
        let image = block_in_place(|| read(tile.image, &promised));
        let over = self.is_over(key.mfov);
        let (pixels, hash) = match image {
            Ok(image) => image,
            Err(reason) => {
                if !over {
                    self.assembly(key.mfov).lost(key, reason);
                }
                return Ok(true);
            }
        };
        if over {
            self.came_again(key, promised.name, hash);
            return Ok(true);
        }
        let taken = self.assembly(key.mfov).judge(key, hash);
        self.summary.duplicates += u64::from(matches!(taken, Taken::Again | Taken::Better));
        if matches!(taken, Taken::Again | Taken::Restored) {
            return Ok(true);
        }
        let put = |admission: &Self| Ok(admission.tiles.add(key, &pixels, hash)?);
        match self.with_room(instrument, put, false).await? {
            Ok(kept) => {
                if let Some(worse) = self.assembly(key.mfov).add(key, kept) {
                    block_in_place(|| self.tiles.discard(key.mfov, &worse))?;
                }
            }
            Err(Roomless::LinkEnded) => return Ok(false),
            Err(Roomless::CannotHold(why)) => {
                self.summary.no_room += 1;
                self.config.on_event.tell(&AdmitEvent::Lost(key));
                self.assembly(key.mfov).lost(key, Reason::NoRoom(why.to_string()));
            }
        }
        Ok(true)
    }

    fn lost(&mut self, key: TileKey, reason: Reason) {
        if self.promised(key).is_some() && !self.is_over(key.mfov) {
            self.assembly(key.mfov).lost(key, reason);
        }
    }

    /// Ends an mFOV; what is missing is lost because `why`.
    async fn ship<I: Instrument>(&mut self, id: MfovId, why: &str, instrument: &mut I) -> Result<bool, AdmitError> {
        let Some(section) = self.sections.iter_mut().find(|s| s.plan.section == id.section) else { return Ok(true) };
        let plan = section.plan.clone();
        let Ok(at) = plan.mfovs.binary_search_by_key(&id, |m| m.id) else { return Ok(true) };
        if plan.mfovs[at].tiles.is_empty() || !section.over.insert(id) {
            section.over.insert(id);
            return Ok(true);
        }
        let manifest = self.open.remove(&id).unwrap_or_default().manifest(&plan.mfovs[at], why);
        self.tell_ended(&plan.mfovs[at], &manifest);
        let put = move |admission: &Self| Ok(admission.tiles.end(id, &manifest)?);
        match self.with_room(instrument, put, true).await? {
            Ok(shipment) => self.ended.push(shipment),
            Err(_) => return Ok(false),
        }
        self.start_sync();
        Ok(true)
    }

    async fn end_section<I: Instrument>(&mut self, section: SectionId, instrument: &mut I) -> Result<bool, AdmitError> {
        let Some(entry) = self.sections.iter().find(|s| s.plan.section == section) else { return Ok(true) };
        // After a restart the promise may be a later one, which the instrument has yet to come to.
        let due = entry.plan.mfovs.iter().filter(|m| m.revision < entry.ends).map(|m| m.id);
        let left: Vec<_> = due.filter(|id| !entry.over.contains(id)).collect();
        for id in left {
            if !self.ship(id, "the instrument ended the section without it", instrument).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Syncs what has ended, on a thread that may wait; what ends meanwhile is synced together after it.
    pub(super) fn start_sync(&mut self) {
        if self.syncing.is_none() && !self.ended.is_empty() {
            let (ended, tiles) = (std::mem::take(&mut self.ended), self.tiles.clone());
            self.syncing = Some(tokio::task::spawn_blocking(move || tiles.sync().map(|()| ended)));
        }
    }

    /// Waits for the sync under way; for ever where there is none. Cancel-safe.
    pub(super) async fn synced(
        syncing: &mut Option<JoinHandle<Result<Vec<Shipment>, SpoolError>>>,
    ) -> Result<Vec<Shipment>, AdmitError> {
        let Some(handle) = syncing else { return std::future::pending().await };
        let ended = handle.await;
        *syncing = None;
        // It does not panic and is not aborted; if it were, nothing was synced and nothing is told kept.
        Ok(ended.unwrap_or_else(|_| Ok(Vec::new()))?)
    }

    /// These would survive a power cut here: the instrument need not keep them, and the link sends them.
    pub(super) async fn kept<I: Instrument>(
        &mut self,
        synced: Vec<Shipment>,
        instrument: &mut I,
    ) -> Result<(), AdmitError> {
        self.start_sync();
        for shipment in synced {
            tell(instrument, Command::Kept(shipment.mfov)).await?;
            block_in_place(|| self.scope.ship(shipment))?;
        }
        Ok(())
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
