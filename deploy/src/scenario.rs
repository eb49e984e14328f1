//! `--scenario FILE`: what a process does to itself for a fault scenario. Never part of a run's identity.

use std::path::Path;

use kinesin_sim::scenario::{Inside, Scenario, Side};

use crate::outcome::Failure;

/// Names that a stage of the line has, as in the report.
const STAGES: [&str; 10] =
    ["inspect", "archive", "recall", "gather", "match", "montage", "align", "render", "mask", "flood"];

/// What the processes of these sides do to themselves; nothing without a file.
pub(crate) fn inside(file: Option<&Path>, sides: &[Side]) -> Result<Inside, Failure> {
    let Some(file) = file else { return Ok(Inside::default()) };
    let scenario = Scenario::load(file).map_err(Failure::input)?;
    if let Some(stage) = scenario.stages().find(|stage| !STAGES.contains(stage)) {
        let (file, known) = (file.display(), STAGES.join(", "));
        return Err(Failure::Input(format!("{file}: there is no stage {stage:?}; use one of {known}")));
    }
    let count = scenario.events.iter().filter(|e| e.is_inside()).count();
    let outside = scenario.events.len() - count;
    tracing::warn!(scenario = %file.display(), inside = count, outside, "faults on purpose");
    Ok(scenario.inside(sides))
}

/// For commands that have no line to break.
pub(crate) fn refused(file: Option<&Path>, command: &str) -> Result<(), Failure> {
    match file {
        None => Ok(()),
        Some(_) => {
            Err(Failure::Input(format!("--scenario is for run, receive and send; `kinesin {command}` has none")))
        }
    }
}
