//! What goes into the aligner and what comes out: a section's view, its verdict, its record.

use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::SectionToVolume;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::chains::Outvoted;
use super::keys::KeyTie;
use super::look::Beside;
use super::{Flow, ResidualMap, Shape};

/// The montage of a section, reduced.
#[derive(Clone, Debug)]
pub struct SectionView {
    /// Its z.
    pub serial: SerialIndex,
    /// Its name, carried into the record.
    pub name: String,
    /// Grey values in rows at [`AlignConfig::reduction`](super::AlignConfig::reduction); 0 = no data.
    pub image: Array2<u8>,
    /// Reduced section pixel of the image's first column and row (the `min` of the block that was rendered).
    pub origin: Xy<i64>,
}

/// What became of a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Verdict {
    /// The first good section; it defines the volume frame.
    Reference,
    /// Laid onto the section before it (and others).
    Aligned,
    /// Laid onto an earlier section because those between are missing or bad.
    Bridged {
        /// The nearest section that was used.
        from: SerialIndex,
    },
    /// It fits no section before it, but those after it do: the volume is broken, and goes on with it in the frame there is.
    NewStart {
        /// The last section that others were laid onto before.
        after: SerialIndex,
        /// What was tried and what came out.
        reason: String,
    },
    /// It came when those around it were final, and was laid between them.
    Inserted,
    /// Announced as missing.
    Missing,
    /// Present but not placed.
    Failed {
        /// What was tried and what came out.
        reason: String,
    },
}

/// Distances between where matched patches are put and where their references have them, full-resolution pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// Root mean square of the consistent matches.
    pub rms: f64,
    /// 95th percentile of the trusted matches.
    pub p95: f64,
}

/// The record of one section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alignment {
    /// Its z.
    pub serial: SerialIndex,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Section pixel to volume pixel; none where missing or failed.
    pub map: Option<SectionToVolume>,
    /// Match residual to the nearest section used; none where nothing was matched.
    pub residual_px: Option<Residual>,
    /// Share of the tissue common with the nearest section used whose matches are consistent, 0 to 1; 1 for the first.
    pub confidence: f64,
    /// Whether later sections are laid onto this one.
    pub kept_as_reference: bool,
    /// Sections it was laid onto, nearest first.
    pub references: Vec<SerialIndex>,
    /// Weight of the bending term that held-out matches chose; none where the map is affine.
    pub stiffness: Option<f64>,
    /// Whether it belongs to another chain of sections than the one before it, so that no object crosses from there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub broken_before: bool,
    /// That those around it agree better with each other than with it; then it is no reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outvoted: Option<Outvoted>,
    /// What it looks like, as parts of what is usual around it; none where it has no place, and while it may still move.
    pub beside: Option<Beside>,
    /// Whether a crack or a fold parts it, so that its pieces lie by themselves.
    pub in_pieces: bool,
    /// What the last key section said; none where there is none, or too little of it is seen again.
    pub key: Option<KeyTie>,
    /// How the volume is bent as far as this section says; none where it has no place, and while it may still move.
    pub shape: Option<Shape>,
    /// The residual over the section; none where nothing was matched, and while it may still move.
    pub residual_map: Option<ResidualMap>,
    /// Its patches as both ends lie for good; not part of what is written of the record.
    #[serde(skip)]
    pub flow: Vec<Flow>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands in a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Alignment {
    /// Of a section that was tried in vain.
    pub fn failed(serial: SerialIndex, name: &str, reason: String) -> Self {
        Self::unplaced(serial, name, Verdict::Failed { reason })
    }

    /// Of a section without a place.
    pub(crate) fn unplaced(serial: SerialIndex, name: &str, verdict: Verdict) -> Self {
        Self {
            serial,
            name: name.to_owned(),
            verdict,
            map: None,
            residual_px: None,
            confidence: 0.0,
            kept_as_reference: false,
            references: vec![],
            stiffness: None,
            broken_before: false,
            outvoted: None,
            beside: None,
            in_pieces: false,
            key: None,
            shape: None,
            residual_map: None,
            flow: vec![],
        }
    }
}

/// Input or settings that cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AlignError {
    /// A setting is out of its range.
    #[error("align: {key} = {got} is not allowed; use {low} .. {high}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Its value.
        got: f64,
        /// Least allowed.
        low: f64,
        /// Most allowed.
        high: f64,
    },
    /// A section came out of order.
    #[error(
        "align: section {got} came where {wanted} was due; hand in every section once, in serial order, missing ones with `missing`"
    )]
    Order {
        /// Serial index handed in.
        got: u32,
        /// Serial index due.
        wanted: u32,
    },
    /// A restart lacks an image, or has a record that does not fit.
    #[error("align: cannot continue: {what}")]
    Resume {
        /// What is wrong.
        what: String,
    },
}
