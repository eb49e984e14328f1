//! Quick labels of the sections that come while the full flood is paused: `volume/labels_light`.
//!
//! Twice coarser in the plane, one window at a time, three of four fields of view that saw most of their voxels before
//! left out. The ids are provisional: objects end at the window, and nothing joins them to those of `volume/labels`, which
//! come later for the same sections. Which sections have them depends on load; nothing else reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_backpressure::Receiver;
use kinesin_backpressure::governor::Rung;
use kinesin_stream::geometry::{VoxelSize, Zyx};
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::{LabelSpec, LabelWriter};
use ndarray::Array3;

use super::commits::{Commit, Commits};
use super::gaps::Gaps;
use super::gate::Gate;
use super::rendering::Rendered;
use super::segmenting::{Exclusion, Reduced};
use super::telemetry::Telemetry;
use crate::flood::{FloodConfig, FloodError, FloodSection, RollingFlood, Watch};
use crate::model::Model;
use crate::runtime::{Network, NetworkError, NetworkFactory, RuntimeError};

/// Share of a field of view that must be new for it to be run: an eighth of the evaluations, with the coarser voxels.
pub(super) const SKIP_EXPLORED: f64 = 0.25;

/// What makes provisional labels.
pub(super) struct Light {
    pub(super) config: FloodConfig,
    pub(super) model: Arc<Model>,
    pub(super) voxel_size: VoxelSize,
    /// Height and width of a section in these voxels, and sections of a window as z.
    pub(super) window: Zyx<usize>,
    pub(super) workers: usize,
    pub(super) factory: NetworkFactory,
    pub(super) image: Reduced,
    pub(super) gaps: Gaps,
    pub(super) mask: Option<Exclusion>,
    /// The volume, begun with the first window.
    pub(super) labels: LabelSpec,
    pub(super) path: PathBuf,
}

/// Lets every section wait for the full flood, and gives it quick labels first where that is the mode.
pub(super) struct ProvisionalBox {
    pub(super) gate: Arc<Gate>,
    /// `None` where nothing is segmented, or too small a volume.
    pub(super) light: Option<Light>,
    pub(super) commits: Arc<Commits>,
    pub(super) telemetry: Arc<Telemetry>,
    /// Sections of the window that is being gathered, the first at `begin`.
    pub(super) held: Vec<FloodSection>,
    pub(super) begin: u32,
}

impl ProvisionalBox {
    pub(super) fn work(&mut self, masked: Receiver<Rendered>, run: &RunToken) -> Result<(), StopError> {
        let (mut last_id, labelled) = self.before();
        while let Some(message) = masked.recv_blocking() {
            let Rendered { z, present: _ } = *message;
            drop(message);
            self.gate.defer(z);
            if self.gate.rung_of(z) != Rung::LighterSegmentation || z < labelled {
                self.held.clear();
                continue;
            }
            run.working_on(format!("section z = {z}"));
            self.take(z, &mut last_id, run)?;
        }
        run.check()?;
        self.gate.end();
        Ok(())
    }

    /// The last provisional id and the sections that have their labels, of an earlier run.
    fn before(&self) -> (u64, u32) {
        let mut before = (0, 0);
        for commit in self.commits.before() {
            match commit {
                Commit::LabelsLight { last_id, .. } => before.0 = before.0.max(*last_id),
                Commit::Labels { z1, .. } => before.1 = before.1.max(*z1),
                _ => {}
            }
        }
        before
    }

    fn take(&mut self, z: u32, last_id: &mut u64, run: &RunToken) -> Result<(), StopError> {
        let Some(light) = &mut self.light else { return Ok(()) };
        if self.held.is_empty() || z != self.begin + self.held.len() as u32 {
            self.held.clear();
            self.begin = z;
        }
        self.held.push(light.gaps.section(&light.image, light.mask.as_ref(), z as usize)?);
        if self.held.len() < light.window.z {
            return Ok(());
        }
        let sections = std::mem::take(&mut self.held);
        let gate = self.gate.clone();
        let progress = move || !run.is_stopped() && matches!(gate.rung_of(z), Rung::Full | Rung::LighterSegmentation);
        let Some(mut labels) = light.flood(sections, &progress)? else { return Ok(()) };
        renumber(&mut labels, last_id);
        LabelWriter::create(&light.path, light.labels.clone())?
            .write_box(Zyx::new(self.begin as usize, 0, 0), labels.view())?;
        let (z0, z1) = (self.begin, self.begin + labels.dim().0 as u32);
        self.commits.add(&Commit::LabelsLight { z0, z1, last_id: *last_id })?;
        self.telemetry.provisional(z1 - z0);
        Ok(())
    }
}

impl Light {
    /// Labels of one window on its own; `None` where it was told to stop.
    fn flood(
        &mut self,
        sections: Vec<FloodSection>,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Array3<u64>>, StopError> {
        let progress = |_: &_, _: f64| goes_on();
        let watch = Watch { progress: &progress, seconds: &|| 0.0 };
        let mut flood =
            RollingFlood::new(&self.config, &self.model, self.voxel_size, self.window, self.workers, &self.factory)?;
        for section in sections {
            match flood.push_section(section, &watch) {
                Ok(None) => {}
                Ok(Some(result)) => return Ok(Some(result.labels)),
                Err(FloodError::Stopped) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// Numbers the objects on from `last`.
fn renumber(labels: &mut Array3<u64>, last: &mut u64) {
    let mut numbers = BTreeMap::new();
    for label in labels.iter_mut().filter(|l| **l != 0) {
        *label = *numbers.entry(*label).or_insert_with(|| {
            *last += 1;
            *last
        });
    }
}

/// Networks that are made once and lent to one window after the other.
pub(super) fn lent(factory: &NetworkFactory) -> NetworkFactory {
    let (made, factory): (Shelf, _) = (Shelf::default(), factory.clone());
    Arc::new(move || {
        let there = made.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let network = there.map_or_else(|| factory(), Ok)?;
        Ok::<Box<dyn Network>, RuntimeError>(Box::new(Lent { network: Some(network), shelf: made.clone() }))
    })
}

type Shelf = Arc<Mutex<Vec<Box<dyn Network>>>>;

/// Goes back onto the shelf when its window is done.
struct Lent {
    network: Option<Box<dyn Network>>,
    shelf: Shelf,
}

impl Network for Lent {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        self.network.as_mut().expect("only dropping takes it").run(inputs, items, out)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(network) = self.network.take() {
            self.shelf.lock().unwrap_or_else(PoisonError::into_inner).push(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn provisional_ids_go_on_from_window_to_window() {
        let mut last = 0;
        let mut first = array![[[7, 0, 9]]];
        renumber(&mut first, &mut last);
        let mut second = array![[[9, 9, 7]]];
        renumber(&mut second, &mut last);
        assert_eq!((first, second, last), (array![[[1, 0, 2]]], array![[[3, 3, 4]]], 4));
    }
}
