//! The instrument that a site file names.

use std::path::Path;
use std::sync::Arc;

use kinesin_acquire::dataset::Dataset;
use kinesin_acquire::dataset::replay::Recorded;
use kinesin_acquire::instrument::Instrument;
use kinesin_sim::scope::{Scene, SimulatedScope};
use kinesin_stream::plan::RunPlan;

use crate::outcome::Failure;
use crate::site::SiteFile;

/// An opened instrument.
pub enum Opened {
    /// Simulated, with its truth.
    Sim(Box<SimulatedScope>),
    /// Recorded.
    Recorded(Box<Recorded>),
}

impl Opened {
    /// Opens it; growing simulated tissue takes a while.
    pub fn open(site: &SiteFile) -> Result<Self, Failure> {
        match (&site.instrument.sim, &site.instrument.recorded) {
            (Some(sim), _) => {
                let scene = Scene::open(sim.clone()).map_err(Failure::input)?;
                Ok(Self::Sim(Box::new(SimulatedScope::over(scene).map_err(Failure::input)?)))
            }
            (None, Some(recorded)) => Ok(Self::Recorded(Box::new(Recorded::new(Arc::new(dataset(&recorded.path)?))))),
            (None, None) => Err(Failure::Input("the site file names no instrument".into())),
        }
    }

    /// What is promised of the whole run.
    pub fn plan(&self) -> RunPlan {
        match self {
            Self::Sim(scope) => scope.plan().clone(),
            Self::Recorded(recorded) => recorded.plan().clone(),
        }
    }

    /// The scene behind a simulated scope: its truth.
    pub fn scene(&self) -> Option<Arc<Scene>> {
        match self {
            Self::Sim(scope) => Some(scope.scene().clone()),
            Self::Recorded(_) => None,
        }
    }
}

/// A recorded data set.
pub fn dataset(path: &Path) -> Result<Dataset, Failure> {
    Dataset::open(path).map_err(Failure::input)
}

/// What the instrument promises.
pub fn plan(site: &SiteFile) -> Result<RunPlan, Failure> {
    Ok(Opened::open(site)?.plan())
}
