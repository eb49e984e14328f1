//! One folder per stage in flow order, and pipeline.rs, the only wiring.

pub mod render;

pub mod model;
pub mod runtime;

pub mod inspect;
pub mod pointmatch;
