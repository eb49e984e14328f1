//! What the head's tasks share: the ledger, the desk, the plans at hand, the counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kinesin_backpressure::Pool;
use quinn::ConnectionError;
use tokio::sync::watch;

use super::desk::Desk;
use super::head::{HeadConfig, HeadSummary};
use super::spare::Spare;
use super::status::ScopeStatus;
use super::wire::{PROTOCOL, Step, ToScope};
use super::{End, LinkError, peer_said};
use crate::ids::{MfovId, SectionId, TileKey};
use crate::ledger::{ContentHash, Duplicates, Ledger, LedgerError, PlanDigest, State};
use crate::plan::SectionPlan;
use crate::runner::RunToken;

/// See the module.
pub(super) struct Shared {
    pub(super) config: HeadConfig,
    pub(super) ledger: Ledger,
    pub(super) desk: Arc<Desk>,
    pub(super) summary: Mutex<HeadSummary>,
    /// The newest plans; older ones are in the ledger.
    plans: watch::Sender<Vec<Arc<SectionPlan>>>,
    /// Newest version that was announced.
    announced: Mutex<BTreeMap<SectionId, u32>>,
    on_section: Box<dyn Fn(Arc<SectionPlan>) + Send + Sync>,
    pub(super) control: Pool,
    pub(super) run: RunToken,
    /// Memory for tiles.
    pub(super) spare: Spare,
    /// Readers that wait for room.
    waiting: AtomicU32,
    /// The scope's last status; none while it is not there.
    pub(super) status: Mutex<Option<ScopeStatus>>,
}

/// One reader that waits for room, as long as it lives.
pub(super) struct Waiting<'a>(&'a AtomicU32);

/// Plans kept at hand: tiles of these sections may be under way.
const PLANS: usize = 8;

impl Shared {
    pub(super) fn new(
        config: HeadConfig,
        ledger: Ledger,
        desk: Arc<Desk>,
        control: Pool,
        run: RunToken,
        on_section: Box<dyn Fn(Arc<SectionPlan>) + Send + Sync>,
    ) -> Self {
        let plans = watch::Sender::new(Vec::new());
        Self {
            config,
            ledger,
            desk,
            control,
            run,
            on_section,
            plans,
            summary: Mutex::default(),
            announced: Mutex::default(),
            spare: Spare::default(),
            waiting: AtomicU32::new(0),
            status: Mutex::default(),
        }
    }

    /// Why this hello is not ours.
    pub(super) fn objection(&self, protocol: u32, digest: ContentHash) -> Option<String> {
        let ours = self.config.digest;
        if protocol != PROTOCOL {
            return Some(format!(
                "the scope speaks protocol {protocol}, the head {PROTOCOL}; use the same version on both"
            ));
        }
        (digest.0 != ours.0).then(|| {
            let theirs = PlanDigest(digest.0);
            format!("the scope runs plan {theirs}, the head {ours}; start both with the same site file")
        })
    }

    pub(super) async fn promise(&self, plan: Arc<SectionPlan>) -> Result<(), End> {
        if let Some(what) = unsound(&plan) {
            return Err(peer_said(what));
        }
        let entered = plan.clone();
        let durable = self
            .with_ledger(move |ledger| {
                ledger.expect_section(&entered)?;
                let mut durable = Vec::new();
                for mfov in &entered.mfovs {
                    if mfov.tiles.is_empty() || ledger.is_settled(mfov.id)? {
                        durable.push(mfov.id);
                    }
                }
                Ok(durable)
            })
            .await?;
        let newer = {
            let mut announced = lock(&self.announced);
            let known = announced.get(&plan.section).copied();
            announced.insert(plan.section, known.map_or(plan.version, |v| v.max(plan.version)));
            known.is_none_or(|v| plan.version > v)
        };
        if newer {
            // It may wait for room in an edge: not on a thread of the runtime.
            let announced = plan.clone();
            tokio::task::block_in_place(|| (self.on_section)(announced));
        }
        self.plans.send_modify(|plans| {
            if plans.iter().any(|p| p.section == plan.section && p.version > plan.version) {
                return;
            }
            plans.retain(|p| p.section != plan.section);
            plans.push(plan.clone());
            if plans.len() > PLANS {
                plans.remove(0);
            }
        });
        // After the plan is at hand: its mFOVs may come as soon as this is said.
        self.desk.say(ToScope::Promised { section: plan.section, durable });
        Ok(())
    }

    /// Notes how far mFOVs are at the scope.
    pub(super) async fn reached(&self, mfovs: Vec<MfovId>, step: Step) -> Result<(), End> {
        let state = match step {
            Step::Seen => State::Seen,
            Step::Spooled => State::Spooled,
            Step::Sent => State::Sent,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        self.with_ledger(move |ledger| {
            for mfov in mfovs {
                match ledger.advance(mfov, state, now) {
                    // Its promise is not told yet or not any more: it is settled without this news.
                    Err(LedgerError::UnknownMfov { .. }) | Ok(_) => {}
                    Err(other) => return Err(other),
                }
            }
            Ok(())
        })
        .await
    }

    /// A reader waits for room from here on until the answer is dropped.
    pub(super) fn waits(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(&self.waiting)
    }

    /// Whether a reader waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// The plan of a section; waits for it, because its message and its pixels travel on different streams.
    pub(super) async fn plan(&self, section: SectionId) -> Result<Arc<SectionPlan>, End> {
        let find = |plans: &Vec<Arc<SectionPlan>>| plans.iter().find(|p| p.section == section).cloned();
        if let Some(plan) = find(&self.plans.borrow()) {
            return Ok(plan);
        }
        if let Some(plan) = self.with_ledger(move |ledger| ledger.section_plan(section)).await? {
            return Ok(Arc::new(plan));
        }
        let mut changes = self.plans.subscribe();
        let plans = changes.wait_for(|plans| find(plans).is_some()).await;
        plans.ok().and_then(|p| find(&p)).ok_or_else(|| peer_said("no plan"))
    }

    /// Counts tiles that came again after their mFOV was settled.
    pub(super) async fn count_again(&self, late: Vec<(TileKey, ContentHash)>) -> Result<(), End> {
        if late.is_empty() {
            return Ok(());
        }
        self.with_ledger(move |ledger| {
            let mut counts = Vec::new();
            for (key, hash) in late {
                let mut count = Duplicates::default();
                count.count(ledger.tile(key)?.is_some_and(|row| row.hash == Some(hash)));
                counts.push((key, count));
            }
            ledger.count_duplicates(&counts)
        })
        .await
    }

    /// Runs something on the ledger where it may wait for the disk.
    pub(super) async fn with_ledger<R: Send + 'static>(
        &self,
        act: impl FnOnce(&Ledger) -> Result<R, LedgerError> + Send + 'static,
    ) -> Result<R, End> {
        tokio::task::block_in_place(|| act(&self.ledger)).map_err(|e| End::Fatal(e.into()))
    }

    pub(super) fn refused(&self, peer: SocketAddr, error: &ConnectionError) {
        let text = LinkError::not_trusted(peer, error).map_or_else(|| format!("{peer}: {error}"), |e| e.to_string());
        self.note_refusal(text);
    }

    pub(super) fn note_refusal(&self, text: String) {
        tracing::warn!("refused a caller: {text}");
        let mut summary = lock(&self.summary);
        summary.refused += 1;
        summary.last_refusal = Some(text);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What is wrong with a plan, if anything: ids must be sorted and belong together.
fn unsound(plan: &SectionPlan) -> Option<String> {
    let sorted = plan.mfovs.is_sorted_by(|a, b| a.id < b.id);
    let whole = plan.mfovs.iter().all(|m| {
        m.id.section == plan.section
            && m.tiles.is_sorted_by(|a, b| a.key < b.key)
            && m.tiles.iter().all(|t| t.key.mfov == m.id)
    });
    (!sorted || !whole).then(|| format!("a plan of {} whose ids are not sorted or not its own", plan.section))
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The guarded data are good also after a panic elsewhere: each change is a single step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
