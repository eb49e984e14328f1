//! The gather box of the line, and what a restart feeds it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use kinesin_backpressure::{Receiver, Sender};
use kinesin_stream::ids::{MfovId, SectionId};
use kinesin_stream::ledger::Ledger;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::{StopError, Unfinished};

use super::faults::FaultLog;
use super::front::settled;
use super::gather::{Gather, MfovDone};
use super::matching::{MontageInput, PairJob};
use super::rendering::RenderInput;
use super::telemetry::{Moment, Telemetry};
use crate::publish::SectionFiles;

/// Counts mFOVs to sections and names pairs. Pairs of a section that an earlier run solved are not matched again. Later versions
/// of a section go to where published sections are known.
pub(super) fn work(
    (mut gather, open_sections): (Gather, u32),
    (out, faults): (&Path, &FaultLog),
    telemetry: &Telemetry,
    (stored, pairs, matched, revisions): (
        Receiver<MfovDone>,
        Sender<PairJob>,
        Sender<MontageInput>,
        Sender<RenderInput>,
    ),
    run: &RunToken,
) -> Result<(), StopError> {
    let mut solved: BTreeSet<SectionId> = BTreeSet::new();
    let mut seen: BTreeSet<SectionId> = BTreeSet::new();
    while let Some(done) = stored.recv_blocking() {
        run.working_on(done.mfov.to_string());
        let plan = done.plan.clone();
        let section = plan.section;
        let first = plan.mfov(done.mfov).is_some_and(|m| m.revision == 0);
        if first && seen.insert(section) && SectionFiles::new(out, plan.serial.0).solved().is_file() {
            solved.insert(section);
        }
        if first && !solved.contains(&section) {
            faults.exposed(&done, telemetry)?;
        }
        let (ready, closed) = gather.add((*done).clone())?;
        drop(done);
        let open = gather.incomplete().count();
        if open > open_sections as usize {
            let text = format!(
                "{open} sections are open at once, with {section} as the last; stages.edges.open_sections allows \
                 {open_sections}. raise it (a page of memory a tile and section), then run the same command again"
            );
            return Err(std::io::Error::other(text).into());
        }
        if closed.as_ref().is_some_and(|c| c.revision == 0) {
            telemetry.mark(plan.serial.0, Moment::LastTile);
        }
        if !solved.contains(&section) {
            for pair in ready {
                pairs.send_blocking(PairJob { plan: plan.clone(), pair })?;
            }
        }
        match closed {
            Some(closed) if closed.revision == 0 => {
                solved.remove(&section);
                seen.remove(&section);
                matched.send_blocking(MontageInput::Closed(closed))?;
            }
            Some(closed) => revisions.send_blocking(RenderInput::Revision(closed))?,
            None => {}
        }
    }
    run.check()?;
    let open: Vec<String> = gather.incomplete().map(|s| s.to_string()).collect();
    if open.is_empty() {
        return Ok(());
    }
    let text = format!("tiles ended before {} was complete; run the same command again to continue", open.join(", "));
    Err(Unfinished(text).into())
}

/// A section with what of it an earlier run made durable: small, whatever the number of tiles.
#[derive(Clone, Debug)]
pub(super) struct Earlier {
    section: SectionId,
    /// Version of its plan at that time; mFOVs that were promised later came in this run.
    version: u32,
    /// Those that were settled, where some were still open.
    some: Option<Vec<MfovId>>,
}

/// What an earlier run made durable, by section.
pub(super) fn earlier(ledger: &Ledger) -> Result<Vec<Earlier>, StopError> {
    let mut all = Vec::new();
    for (section, counts) in ledger.counts_by_section()? {
        let Some(plan) = ledger.section_plan(section)? else { continue };
        let mfovs = || Ok::<_, StopError>(ledger.settled_in(section)?.into_iter().map(|(mfov, _)| mfov).collect());
        let some = if counts.open() > 0 { Some(mfovs()?) } else { None };
        all.push(Earlier { section, version: plan.version, some });
    }
    Ok(all)
}

/// Feeds them in again.
pub(super) fn recall(
    ledger: &Ledger,
    earlier: Vec<Earlier>,
    stored: &Sender<MfovDone>,
    run: &RunToken,
) -> Result<(), StopError> {
    for Earlier { section, version, some } in earlier {
        let Some(plan) = ledger.section_plan(section)?.map(Arc::new) else { continue };
        let then =
            || Ok::<_, StopError>(ledger.settled_in(section)?.into_iter().filter(|(_, since)| *since <= version));
        let mfovs = match some {
            Some(mfovs) => mfovs,
            None => then()?.map(|(mfov, _)| mfov).collect(),
        };
        for mfov in mfovs {
            run.check()?;
            stored.send_blocking(settled(ledger, &plan, mfov)?)?;
        }
    }
    Ok(())
}
