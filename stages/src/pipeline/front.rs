//! The front of the line: tiles are measured, made durable, and counted mFOV by mFOV.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Receiver, Sender};
use kinesin_stream::geometry::BoxXy;
use kinesin_stream::ids::{MfovId, TileKey};
use kinesin_stream::ledger::{Ledger, State};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::SectionPlan;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::{Fault, Flow, Keyed, Outlet, Stage, StopError};
use kinesin_stream::tile::{Loss, Reason, Tile};

use super::gate::Gate;
use super::gather::MfovDone;
use super::telemetry::{StageName, Telemetry};
use super::tiles::{StoreError, TileStore};
use crate::archive::{Archive, Put};
use crate::inspect::{InspectConfig, TileQuality, inspect};

/// A tile with what inspection saw.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    tile: Tile,
    quality: TileQuality,
}

impl Cost for Inspected {
    fn cost(&self) -> Bytes {
        self.tile.cost()
    }
}

impl Keyed for Inspected {
    fn label(&self) -> String {
        self.tile.label()
    }

    fn losses(&self, reason: &Reason) -> Vec<Loss> {
        self.tile.losses(reason)
    }
}

impl Cost for MfovDone {
    fn cost(&self) -> Bytes {
        Bytes((size_of::<Self>() + 128 * (self.tiles.len() + self.lost.len())) as u64)
    }
}

/// The inspect stage of the line.
pub(super) struct InspectStage {
    pub(super) config: InspectConfig,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Stage for InspectStage {
    type In = Tile;
    type Out = Inspected;

    fn process(&mut self, tile: &Tile, out: &mut Outlet<Inspected>) -> Result<(), Fault> {
        let pixels = tile.pixels.data().len() as u64;
        let quality = self.telemetry.time(StageName::Inspect, pixels, || inspect(&tile.pixels, &self.config));
        out.emit(Inspected { tile: tile.clone(), quality })
    }
}

/// Told of every mFOV that is durable, so that the scope can be told.
pub type Receipt = Box<dyn Fn(MfovId) -> Result<(), StopError> + Send>;

/// Makes tiles durable; an mFOV goes on, as a record, once each of its tiles is durable or lost.
pub(super) fn archive(
    (archive, ledger): (&Archive, &Ledger),
    receipt: &Receipt,
    (telemetry, gate): (&Telemetry, &Gate),
    (tiles, done): (Receiver<Flow<Inspected>>, Sender<MfovDone>),
    run: &RunToken,
) -> Result<(), StopError> {
    // mFOVs of which something is here: their tiles are on their way.
    let mut arriving = BTreeSet::new();
    loop {
        // While the head is to take nothing, tiles stay where they are: the edges fill, the link waits, the spool keeps.
        gate.take_tiles(run);
        let Some(flow) = tiles.recv_blocking() else { break };
        run.working_on(flow.label());
        let (put, plan, key) = match &*flow {
            Flow::Item(Inspected { tile, quality }) => {
                let pixels = tile.pixels.data().len() as u64;
                let quality = serde_json::to_value(quality)?;
                (telemetry.time(StageName::Archive, pixels, || archive.put(tile, Some(quality)))?, &tile.plan, tile.key)
            }
            Flow::Lost(loss) => (archive.lost(loss)?, &loss.plan, loss.key),
        };
        if put == Put::Waiting && arriving.insert(key.mfov) {
            ledger.advance(key.mfov, State::Sent, ledger.unix_ms())?;
        }
        if let Put::Settled(mfov) = put {
            arriving.remove(&mfov);
            let record = settled(ledger, plan, mfov)?;
            receipt(mfov)?;
            done.send_blocking(record)?;
        }
    }
    Ok(run.check()?)
}

/// An mFOV as the ledger has it: after a restart the same as when it became durable.
pub(super) fn settled(ledger: &Ledger, plan: &Arc<SectionPlan>, mfov: MfovId) -> Result<MfovDone, StopError> {
    let (mut tiles, mut lost) = (BTreeMap::new(), BTreeMap::new());
    for (key, row) in ledger.mfov(mfov)? {
        match row.state {
            state if state.is_safe() => {
                let quality =
                    row.quality.ok_or_else(|| std::io::Error::other(format!("{key} is durable without quality")))?;
                tiles.insert(key, serde_json::from_value(quality)?);
            }
            State::Lost => {
                let reason = row.reason.unwrap_or_else(|| Reason::NotAcquired("no reason was recorded".into()));
                lost.insert(key, reason);
            }
            _ => {}
        }
    }
    Ok(MfovDone { plan: plan.clone(), mfov, tiles, lost })
}

impl TileStore for Archive {
    fn read(&self, key: TileKey) -> Result<Pixels, StoreError> {
        Ok(Self::read(self, &key)?)
    }

    fn read_part(&self, key: TileKey, part: BoxXy) -> Result<Pixels, StoreError> {
        Ok(self.read_rect(&key, part)?)
    }
}
