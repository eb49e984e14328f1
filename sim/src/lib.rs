//! Simulated tissue and scope with ground truth, replay of recorded data, faults, scoring.
//!
//! | module | holds |
//! |---|---|
//! | [`tissue`] | what lies under the scope: grown from a seed, or any recorded volume |
//! | [`scope`] | the simulated many-beam scope: an instrument with every error of a real one, all of them known |
//! | [`truth`] | where everything really is, and what each voxel of a result really shows |
//! | [`score`] | how far a result is from the truth: labels, tile places, section alignment |
//! | [`scenario`] | faults as data: what goes wrong when, drawn and shrunk |
//! | [`mod@record`] | the simulated acquisition as a recorded data set |
//!
//! Absent on purpose: stages; what they make of the tiles is no business of the scope.

pub mod record;
pub mod scenario;
pub mod scope;
pub mod score;
pub mod tissue;
pub mod truth;
