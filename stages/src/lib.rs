//! From tiles to labels: one folder a stage, in flow order, and [`pipeline`], the only wiring.
//!
//! | stage | in | out | method |
//! |---|---|---|---|
//! | [`inspect`](mod@inspect) | tile | quality, verdict | moments and autocovariance (after Vollath 1987) |
//! | [`archive`] | tile | durable tile, receipt | one append-only file an mFOV |
//! | [`pointmatch`] | two strips | point matches | band-passed correlation, blocks, forward and mirrored checks |
//! | [`montage`] | point matches of a section | tile to section | robust shifts, then the stiffness that held-out points choose |
//! | [`align`] | reduced section | section to volume | rotation sweep and block votes, then a fitted warp onto fixed sections |
//! | [`render`] | tiles and maps | aligned pixels | inverse lattice, feathered seams, one tone a tile |
//! | [`mask`] | section | classes | U-Net (Ronneberger 2015) |
//! | [`flood`] | window of sections | base segments | flood-filling networks (Januszewski 2018) |
//! | [`agglomerate`] | overlapping labels | equivalences | overlap of what two blocks saw |
//! | [`publish`] | results | files | whole or not at all |
//!
//! [`model`] and [`runtime`] serve the two stages with networks. Kernels are pure: no I/O, clock or randomness; the boxes of
//! [`pipeline`] read and write around them. Absent on purpose: the network, site files, instruments.

pub mod inspect;

pub mod archive;

pub mod pointmatch;

pub mod montage;

pub mod align;

pub mod render;

pub mod mask;

pub mod flood;

pub mod agglomerate;

pub mod publish;

pub mod model;
pub mod pipeline;
pub mod runtime;

mod wide;

// Drawn sections are shared by benches and unit tests, which name this crate from outside.
#[cfg(test)]
extern crate self as kinesin_stages;
