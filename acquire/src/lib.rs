//! The instrument side.
//!
//! | module | holds |
//! |---|---|
//! | [`instrument`] | the [`Instrument`](instrument::Instrument) trait: what a scope, simulated or real, says and obeys |
//!
//! Absent on purpose: stages, and anything that writes to a vendor's folders.

pub mod instrument;
