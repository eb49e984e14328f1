//! Simulated tissue and scope with ground truth, replay of recorded data, faults, scoring.

pub mod tissue;
pub mod record;
pub mod scope;
pub mod truth;
