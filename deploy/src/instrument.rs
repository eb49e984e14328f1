//! The instrument that a site file names.

use std::path::Path;
use std::sync::Arc;

use kinesin_acquire::dataset::Dataset;
use kinesin_acquire::dataset::replay::Recorded;
use kinesin_acquire::instrument::{Command, Event, Instrument, InstrumentError};
use kinesin_acquire::throttle::{Tell, Throttled};
use kinesin_backpressure::Budget;
use kinesin_sim::scope::{Scene, SimulatedScope};
use kinesin_stream::plan::RunPlan;
use tokio::runtime::Handle;

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
        Instrument::plan(self).clone()
    }

    /// With the hook that the site file names, if any; `tell` hears what it does. Enters the hook's memory.
    pub fn throttled(
        self,
        site: &SiteFile,
        budget: &Budget,
        runtime: &Handle,
        tell: Tell,
    ) -> Result<Throttled<Self>, Failure> {
        let Some(throttle) = &site.instrument.throttle else { return Ok(Throttled::plain(self)) };
        throttle.enter(budget);
        let name = Instrument::plan(&self).name.clone();
        throttle.open(self, &name, runtime, tell).map_err(Failure::input)
    }

    /// The scene behind a simulated scope: its truth.
    pub fn scene(&self) -> Option<Arc<Scene>> {
        match self {
            Self::Sim(scope) => Some(scope.scene().clone()),
            Self::Recorded(_) => None,
        }
    }
}

impl Instrument for Opened {
    fn plan(&self) -> &RunPlan {
        match self {
            Self::Sim(scope) => scope.plan(),
            Self::Recorded(recorded) => recorded.plan(),
        }
    }

    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        match self {
            Self::Sim(scope) => scope.next().await,
            Self::Recorded(recorded) => recorded.next().await,
        }
    }

    async fn command(&mut self, command: Command) -> Result<(), InstrumentError> {
        match self {
            Self::Sim(scope) => scope.command(command).await,
            Self::Recorded(recorded) => recorded.command(command).await,
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
