//! Lays each section onto the volume as soon as it arrives.
//!
//! ```text
//! section image (montage, reduced) ─► comparable ─► coarse: sweep + block votes ─► fine: match, solve, warp; twice finer
//!                                                        ▲                              ▲        │
//!                  the last 2 accepted sections, already in the volume frame ───────────┴────────┘ accepted: becomes one
//! ```
//! *Interface.* Everything is in full-resolution pixels; images are reduced by [`AlignConfig::reduction`]. Sections come in serial order, each
//! once, missing ones announced. The first good section defines the volume frame: its map is the identity.
//!
//! *Method.* Local contrast is normalised away. A coarse pose must be found twice: by a rotation sweep with correlation over all shifts,
//! and by votes of blocks for one affine map. Then patches are matched by normalised correlation, coarse to fine, against the
//! *fixed* last two accepted sections (matches to either carry on where the other is damaged), and a grid warp is solved with Huber weights and a
//! stiffness that held-out matches choose (after feabas' mesh and SOFIMA's flow, but solved exactly and incrementally).
//! Dirt correlates with nothing or disagrees with its surroundings: its matches get no weight; cracks and folds part a section into pieces that
//! move freely (`cut`). A section
//! without enough consistent matches is marked, not laid onto by others, and bridged. [`Drift`] keeps the frame from bending.
//!
//! *Memory.* Between calls [`Aligner::held_bytes`]: one byte a reduced pixel for each reference. During a call about
//! `45 B` a reduced pixel of the section ([`Aligner::working_bytes`]).
//!
//! *Cost.* One thread, Mpx of section a CPU second (bench `align`): 22 to 26; a section in pieces takes four times as long. Of the 40 ms a
//! Mpx, a third is matching, a fifth the coarse step, a tenth each the solves, the warps and the comparable form. Floor: three products a
//! pixel and level, one warp and one filter, about 100 Mpx.
//!
//! *Floor of accuracy.* Neighbouring sections differ, and patches follow them by about 1 px. Measured with 3 degrees, 40 px and a smooth
//! field of 6 px per section: block face at 10 nm, every third section, 1.0 px rms (p99 3.2) from the truth, 0.23 px where nothing was bent.
//! Cortex cut at 30 nm (6 nm pixels) lands 1.6 px rms from where the same tissue lands undeformed; that stack itself jumps by 3 to 6 px.

mod blocks;
mod coarse;
mod config;
mod cut;
mod drift;
mod fine;
mod fit;
mod plane;
mod warp;

use std::collections::VecDeque;

use kinesin_stream::geometry::{BoxXy, Xy, reduced_to_full};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Map, SectionToVolume};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

pub use config::AlignConfig;
pub use drift::Drift;

/// The montage of a section, reduced.
#[derive(Clone, Debug)]
pub struct SectionView {
    /// Its z.
    pub serial: SerialIndex,
    /// Its name, carried into the record.
    pub name: String,
    /// Grey values in rows at [`AlignConfig::reduction`]; 0 = no data.
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
    /// Running mean deformation after this section; none before the first good one.
    pub drift: Option<Drift>,
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

/// An accepted section in the volume frame.
struct Reference {
    serial: SerialIndex,
    /// Reduced volume pixel of the image's first column and row.
    origin: Xy<i64>,
    /// Comparable image.
    image: Array2<u8>,
}

/// Aligns section after section; keeps the last accepted ones only.
pub struct Aligner {
    config: AlignConfig,
    next: Option<SerialIndex>,
    /// Newest first.
    references: VecDeque<Reference>,
    drift: Option<Drift>,
}

impl Aligner {
    /// An aligner that has seen nothing.
    ///
    /// # Errors
    /// Where a setting is out of range.
    pub fn new(config: AlignConfig) -> Result<Self, AlignError> {
        config.check()?;
        Ok(Self { config, next: None, references: VecDeque::new(), drift: None })
    }

    /// Serial indexes of the views that [`resume`](Self::resume) needs after the records `done`, oldest first.
    pub fn views_needed(config: &AlignConfig, done: &[Alignment]) -> Vec<SerialIndex> {
        let kept = done.iter().filter(|a| a.kept_as_reference).map(|a| a.serial);
        let mut newest: Vec<SerialIndex> = kept.rev().take(config.references as usize).collect();
        newest.reverse();
        newest
    }

    /// An aligner that continues after the records `done` exactly as the one that made them; `views` are those of [`views_needed`](Self::views_needed).
    ///
    /// # Errors
    /// Where a view or a map is lacking, or records are out of order.
    pub fn resume(config: AlignConfig, done: &[Alignment], views: &[SectionView]) -> Result<Self, AlignError> {
        let mut aligner = Self::new(config)?;
        if let Some(w) = done.windows(2).find(|w| w[1].serial.0 != w[0].serial.0 + 1) {
            return Err(AlignError::Order { got: w[1].serial.0, wanted: w[0].serial.0 + 1 });
        }
        for serial in Self::views_needed(&aligner.config, done) {
            let lacking = |what: &str| AlignError::Resume { what: format!("section {} has no {what}", serial.0) };
            let view = views.iter().find(|v| v.serial == serial).ok_or_else(|| lacking("image"))?;
            let record = done.iter().find(|a| a.serial == serial).ok_or_else(|| lacking("record"))?;
            let map = record.map.as_ref().ok_or_else(|| lacking("map"))?;
            let image = plane::comparable(&view.image);
            aligner.keep(serial, &image, view.origin, &map.0).map_err(|what| AlignError::Resume { what })?;
        }
        if let Some(last) = done.last() {
            aligner.next = Some(SerialIndex(last.serial.0 + 1));
            aligner.drift = last.drift.clone();
        }
        Ok(aligner)
    }

    /// Bytes held between calls for sections of `area` full-resolution pixels: a turned section fills up to twice its area.
    pub fn held_bytes(config: &AlignConfig, area: u64) -> u64 {
        let s = u64::from(config.reduction);
        u64::from(config.references) * 2 * area / (s * s)
    }

    /// Bytes needed on top during a call for sections of `area` full-resolution pixels.
    pub fn working_bytes(config: &AlignConfig, area: u64) -> u64 {
        let s = u64::from(config.reduction);
        2 * 45 * area / (s * s)
    }

    /// Records that a section will not come.
    ///
    /// # Errors
    /// Where another section is due.
    pub fn missing(&mut self, serial: SerialIndex, name: &str) -> Result<Alignment, AlignError> {
        self.expect(serial)?;
        Ok(self.unplaced(serial, name, Verdict::Missing))
    }

    /// Places the next section.
    ///
    /// A section that cannot be placed is not an error: its verdict says so.
    ///
    /// # Errors
    /// Where another section is due.
    pub fn align_next(&mut self, section: &SectionView) -> Result<Alignment, AlignError> {
        self.expect(section.serial)?;
        let failed = |reason: String| Verdict::Failed { reason };
        if let Err(reason) = textured(&section.image) {
            return Ok(self.unplaced(section.serial, &section.name, failed(reason)));
        }
        let image = plane::comparable(&section.image);
        if self.references.is_empty() {
            return Ok(self.first(section, &image));
        }
        match self.place(section, &image) {
            Ok(alignment) => Ok(alignment),
            Err(reason) => Ok(self.unplaced(section.serial, &section.name, failed(reason))),
        }
    }

    fn expect(&mut self, serial: SerialIndex) -> Result<(), AlignError> {
        match self.next {
            Some(wanted) if wanted != serial => Err(AlignError::Order { got: serial.0, wanted: wanted.0 }),
            _ => {
                self.next = Some(SerialIndex(serial.0 + 1));
                Ok(())
            }
        }
    }

    fn unplaced(&self, serial: SerialIndex, name: &str, verdict: Verdict) -> Alignment {
        Alignment {
            serial,
            name: name.to_owned(),
            verdict,
            map: None,
            residual_px: None,
            confidence: 0.0,
            kept_as_reference: false,
            references: vec![],
            stiffness: None,
            drift: self.drift.clone(),
        }
    }

    /// The section that defines the frame.
    fn first(&mut self, section: &SectionView, image: &Array2<u8>) -> Alignment {
        let (low, high) = extent(section, self.config.reduction);
        self.drift = Some(Drift::none(fine::axes(low, high, self.config.drift_node_px)));
        let map = Map::IDENTITY;
        self.keep(section.serial, image, section.origin, &map).expect("the identity can be inverted");
        Alignment {
            map: Some(SectionToVolume(map)),
            confidence: 1.0,
            kept_as_reference: true,
            ..self.unplaced(section.serial, &section.name, Verdict::Reference)
        }
    }

    fn place(&mut self, section: &SectionView, image: &Array2<u8>) -> Result<Alignment, String> {
        let pose = self.pose(section, image)?;
        let (low, high) = extent(section, self.config.reduction);
        let fixed: Vec<&Reference> = self.references.iter().collect();
        let placed = fine::place(image, section.origin, &fixed, pose, (low, high), &self.config)?;
        if placed.confidence < self.config.least_confidence {
            let (got, wanted) = (100.0 * placed.confidence, 100.0 * self.config.least_confidence);
            return Err(format!("matches are consistent on {got:.0} % of the common tissue, {wanted:.0} % are needed"));
        }
        let drift = self.drift.clone().ok_or("the records lack the drift of the volume")?;
        let map = fine::relaxed(&placed.map, &drift, self.config.drift_relax, &placed.axes);
        let kept = placed.confidence >= self.config.reference_confidence;
        if kept {
            self.keep(section.serial, image, section.origin, &map)?;
        }
        self.drift = Some(if kept { drift.with(&map, low, high, self.config.drift_window) } else { drift });
        let nearest = placed.used[0];
        let next_to = nearest.0 + 1 == section.serial.0;
        let verdict = if next_to { Verdict::Aligned } else { Verdict::Bridged { from: nearest } };
        Ok(Alignment {
            map: Some(SectionToVolume(map)),
            residual_px: Some(placed.residual),
            confidence: (placed.confidence * 1000.0).round() / 1000.0,
            kept_as_reference: kept,
            references: placed.used,
            stiffness: placed.stiffness.is_finite().then_some(placed.stiffness),
            ..self.unplaced(section.serial, &section.name, verdict)
        })
    }

    /// The coarse pose: first small angles against each reference, then all angles.
    fn pose(&self, section: &SectionView, image: &Array2<u8>) -> Result<Affine, String> {
        let own = fine::thumbnail(image, section.origin, &self.config, None);
        let mut reasons = vec![];
        for all_angles in [false, true] {
            if all_angles && !self.config.full_circle {
                break;
            }
            for r in &self.references {
                let other = fine::thumbnail(&r.image, r.origin, &self.config, Some(own.scale));
                match coarse::find(&own, &other, &self.config, all_angles) {
                    Ok(pose) => return Ok(pose),
                    Err(reason) => reasons.push(format!("section {}: {reason}", r.serial.0)),
                }
            }
        }
        Err(format!("no coarse pose; {}", reasons.join("; ")))
    }

    /// Makes a section the newest reference; the oldest beyond the set number goes.
    fn keep(&mut self, serial: SerialIndex, image: &Array2<u8>, origin: Xy<i64>, map: &Map) -> Result<(), String> {
        let (image, origin) = fine::warped(image, origin, map, self.config.reduction)?;
        self.references.push_front(Reference { serial, origin, image });
        self.references.truncate(self.config.references as usize);
        Ok(())
    }
}

/// Full-resolution section pixels of the first and the last pixel of the view.
fn extent(section: &SectionView, reduction: u32) -> (Xy<f64>, Xy<f64>) {
    let s = f64::from(reduction);
    let at = |o: i64, n: usize| reduced_to_full(o as f64 + n as f64, s);
    let (h, w) = section.image.dim();
    let low = Xy::new(at(section.origin.x, 0), at(section.origin.y, 0));
    (low, Xy::new(at(section.origin.x, w - 1), at(section.origin.y, h - 1)))
}

/// Whether there is anything to align.
fn textured(image: &Array2<u8>) -> Result<(), String> {
    let (mut n, mut sum, mut square) = (0u64, 0u64, 0u64);
    for v in image.iter().filter(|v| **v > 0) {
        n += 1;
        sum += u64::from(*v);
        square += u64::from(*v) * u64::from(*v);
    }
    if n < 64 * 64 || image.nrows() < 64 || image.ncols() < 64 {
        return Err(format!("{n} px of tissue at the reduced scale; 64 x 64 are needed"));
    }
    let mean = sum as f64 / n as f64;
    let sd = (square as f64 / n as f64 - mean * mean).max(0.0).sqrt();
    if sd < 2.0 { Err(format!("the section is blank: contrast {sd:.1} grey levels, 2 are needed")) } else { Ok(()) }
}

/// The rectangle of an image.
fn area_of(image: &Array2<u8>, origin: Xy<i64>) -> BoxXy {
    BoxXy { min: origin, max: Xy::new(origin.x + image.ncols() as i64, origin.y + image.nrows() as i64) }
}

#[cfg(test)]
mod tests;
