//! One folder per stage in flow order, and pipeline.rs, the only wiring.

pub mod align;
pub mod archive;
pub mod render;

pub mod agglomerate;
pub mod flood;
pub mod mask;
pub mod model;
pub mod runtime;

pub mod inspect;
pub mod montage;
pub mod pointmatch;

// Drawn sections are shared by benches and unit tests, which name this crate from outside.
#[cfg(test)]
extern crate self as kinesin_stages;
