//! What flows and how it flows.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | who is who: sections, mFOVs, beams, attempts, tiles |
//! | [`geometry`] | coordinates, boxes and voxel sizes with their units and axis order in the type |
//! | [`map`] | the transforms that are stored and exchanged: affine and grid |
//! | [`lens`] | Render's lens polynomial, read and written |
//! | [`pixels`] | one 8-bit grey image |
//! | [`plan`] | what an acquisition promises: run, sections, mFOVs, tiles |
//! | [`tile`] | a tile on its way, and the loss that takes its place |
//! | [`stage`] | the trait of a box that maps, and what travels on an edge |
//! | [`ledger`] | the state of every promised tile, in an embedded store |
//! | [`link`] | tiles from the microscope to the head, over QUIC |
//! | [`runner`] | starts the threads, names who fails, counts who works |
//! | [`fault_points`] | where a fault scenario touches the program; nothing without one |
//! | [`volume`] | voxels at rest: readers of the volumes people have, writers of those that a run leaves |
//!
//! Absent on purpose: algorithms (they are in `stages`), instruments (`acquire`), configuration files (`deploy`).

pub mod fault_points;
pub mod geometry;
pub mod ids;
pub mod ledger;
pub mod lens;
pub mod link;
pub mod map;
pub mod pixels;
pub mod plan;
pub mod runner;
pub mod stage;
pub mod tile;
pub mod volume;

/// The damager that all parsers are tested with.
#[cfg(test)]
#[path = "../../acquire/tests/fuzz/harness.rs"]
mod fuzz;
