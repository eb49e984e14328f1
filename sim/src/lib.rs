//! Simulated tissue and scope with ground truth, replay of recorded data, faults, scoring.

pub mod tissue;
