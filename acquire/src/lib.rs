//! The instrument side.
//!
//! | module | holds |
//! |---|---|
//! | [`admit`](mod@admit) | takes what an instrument gives and sends it over the link, mFOV by mFOV |
//! | [`dataset`] | recorded data sets: TileSpec, FEABAS, MultiSEM folders, recorded runs; replay as an instrument |
//! | [`decode`](mod@decode) | one TIFF, PNG or BMP file to 8-bit grey values |
//! | [`instrument`] | the [`Instrument`](instrument::Instrument) trait: what a scope, simulated or real, says and obeys |
//! | [`throttle`] | hooks that ask a real instrument to wait: SBEMimage, a hold file, HTTP, a command |
//!
//! Absent on purpose: stages, and anything that writes to a vendor's folders.

pub mod admit;
pub mod dataset;
pub mod decode;
pub mod instrument;
pub mod throttle;
