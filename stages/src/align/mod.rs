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
//! *Memory.* Between calls [`Aligner::held_bytes`]: three bytes a reduced pixel for each section kept. During a call about
//! `45 B` a reduced pixel of the section ([`Aligner::working_bytes`]).
//!
//! *Cost.* One thread, Mpx of section a CPU second (bench `align`): 16 to 18; a section in pieces takes some five times as long. Of the 60 ms a
//! Mpx, half is matching, a third of that where the lattice leaves tissue without a match at rims. Floor: three products a
//! pixel and level, one warp and one filter, about 100 Mpx.
//!
//! *Floor of accuracy.* Neighbouring sections differ, and patches follow them by about 1 px. Measured with 3 degrees, 40 px and a smooth
//! field of 6 px per section: block face at 10 nm, every third section, 1.0 px rms (p99 3.1) from the truth, 0.27 px where nothing was bent.
//! Cortex cut at 30 nm (6 nm pixels) lands 1.4 px rms from where the same tissue lands undeformed; that stack itself jumps by 3 to 6 px.

mod blocks;
mod chains;
mod coarse;
mod config;
mod cut;
mod drift;
mod filled;
mod filter;
mod fine;
mod fit;
mod insert;
mod join;
mod keys;
mod lattice;
mod links;
mod look;
mod pieces;
mod placing;
mod plane;
mod quality;
mod record;
mod state;
mod warp;

use std::collections::VecDeque;

use kinesin_stream::geometry::{BoxXy, Xy, reduced_to_full};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::Map;
use ndarray::Array2;

pub use chains::{Candidate, Former, Outvoted, Turn};
pub use config::AlignConfig;
pub use drift::{Drift, Shape};
pub use insert::{Neighbour, insert};
pub use keys::{KeyState, KeyTie};
pub use links::{Link, Links};
pub use look::{Beside, Look, Looks};
pub use quality::{Flow, Grade, Quality, ResidualMap};
pub use record::{AlignError, Alignment, Residual, SectionView, Verdict};
pub use state::{AlignerState, DrawnAs, Frozen, Pending};

/// An accepted section in the volume frame.
struct Reference {
    serial: SerialIndex,
    /// Reduced volume pixel of the image's first column and row.
    origin: Xy<i64>,
    /// Comparable image.
    image: Array2<u8>,
}

/// An accepted section in its own pixels and in those of the volume.
struct Drawn {
    own: Array2<u8>,
    origin: Xy<i64>,
    as_reference: Reference,
}

/// A section is drawn anew once any part of it has moved by more than this since, px: a third of the last search.
const REDRAW_PX: f64 = 1.0;

/// Aligns section after section; keeps the last accepted ones only.
pub struct Aligner {
    config: AlignConfig,
    state: AlignerState,
    /// The images of `state.drawn`, newest first.
    drawn: VecDeque<Drawn>,
    /// The key section at the scale of the coarse step.
    key: Option<plane::Plane>,
    /// The image of `state.candidate`.
    candidate: Option<Drawn>,
    /// The images of `state.former`.
    former: VecDeque<Drawn>,
}

impl Aligner {
    /// An aligner that has seen nothing.
    ///
    /// # Errors
    /// Where a setting is out of range.
    pub fn new(config: AlignConfig) -> Result<Self, AlignError> {
        config.check()?;
        let (state, drawn, former) = (AlignerState::default(), VecDeque::new(), VecDeque::new());
        Ok(Self { config, state, drawn, key: None, candidate: None, former })
    }

    /// An aligner that continues after `state` exactly as the one that had it; `views` are those of [`AlignerState::views_needed`].
    ///
    /// # Errors
    /// Where a view is lacking or cannot be drawn.
    pub fn resume(config: AlignConfig, state: AlignerState, views: &[SectionView]) -> Result<Self, AlignError> {
        let mut aligner = Self { state, ..Self::new(config)? };
        let view = |serial: SerialIndex| {
            let lacking = || AlignError::Resume { what: format!("section {} has no image", serial.0) };
            views.iter().find(|v| v.serial == serial).ok_or_else(lacking)
        };
        let failed = |what: String| AlignError::Resume { what };
        let drawn = |DrawnAs { serial, map }: &DrawnAs| {
            let view = view(*serial)?;
            let own = plane::comparable(&view.image);
            Drawn::new(*serial, own, view.origin, &map.0, aligner.config.reduction).map_err(failed)
        };
        let all = aligner.state.drawn.iter().map(drawn).collect::<Result<_, AlignError>>()?;
        let former =
            aligner.state.former.iter().flat_map(|f| &f.drawn).map(drawn).collect::<Result<_, AlignError>>()?;
        let candidate = aligner.state.candidate.as_ref().map(|c| drawn(&c.drawn)).transpose()?;
        (aligner.drawn, aligner.former, aligner.candidate) = (all, former, candidate);
        if let Some(key) = &aligner.state.key {
            let view = view(key.serial)?;
            let own = plane::comparable(&view.image);
            aligner.key = Some(thumbnail(&own, view.origin, &key.map.0, &aligner.config).map_err(failed)?);
        }
        Ok(aligner)
    }

    /// What a restart continues from.
    pub fn state(&self) -> &AlignerState {
        &self.state
    }

    /// Bytes held between calls for sections of `area` full-resolution pixels: each image as it is and as it lies, where a turned
    /// section fills up to twice its area; the matches; the key's thumbnail.
    pub fn held_bytes(config: &AlignConfig, area: u64) -> u64 {
        let s = u64::from(config.reduction);
        let stride = u64::from(config.stride_px);
        let links = u64::from(config.references) * (u64::from(config.lag) + 1) * size_of::<Link>() as u64;
        // Those of the chain before the last break, and the last section that was not accepted.
        let others = u64::from(config.references) + 1;
        (config.images() as u64 + others) * 3 * area / (s * s) + links * area / (stride * stride) + 3 * 2 * (512 * 512)
    }

    /// Bytes needed on top during a call for sections of `area` full-resolution pixels.
    pub fn working_bytes(config: &AlignConfig, area: u64) -> u64 {
        let s = u64::from(config.reduction);
        2 * 45 * area / (s * s)
    }

    /// Records that a section will not come. Gives the sections that no longer move from now on, in serial order.
    ///
    /// # Errors
    /// Where another section is due.
    pub fn missing(&mut self, serial: SerialIndex, name: &str) -> Result<Vec<Alignment>, AlignError> {
        self.expect(serial)?;
        Ok(self.unplaced(Alignment::unplaced(serial, name, Verdict::Missing)))
    }

    /// Places the next section. Gives the sections that no longer move from now on, in serial order: each
    /// [`lag`](AlignConfig::lag) sections after it came.
    ///
    /// A section that cannot be placed is not an error: its verdict says so.
    ///
    /// # Errors
    /// Where another section is due.
    pub fn push(&mut self, section: &SectionView) -> Result<Vec<Alignment>, AlignError> {
        self.expect(section.serial)?;
        let placed = textured(&section.image).and_then(|()| {
            let image = plane::comparable(&section.image);
            if self.drawn.is_empty() { self.first(section, image) } else { self.place(section, image) }
        });
        match placed {
            Ok(()) => Ok(self.settle()),
            Err(reason) => {
                let record = Alignment::unplaced(section.serial, &section.name, Verdict::Failed { reason });
                Ok(self.unplaced(record))
            }
        }
    }

    /// No section is to come: all that could still move are given out as they are.
    pub fn finish(&mut self) -> Vec<Alignment> {
        self.freeze(0)
    }

    fn expect(&mut self, serial: SerialIndex) -> Result<(), AlignError> {
        match self.state.next {
            Some(wanted) if wanted != serial => Err(AlignError::Order { got: serial.0, wanted: wanted.0 }),
            _ => {
                self.state.next = Some(SerialIndex(serial.0 + 1));
                Ok(())
            }
        }
    }

    fn unplaced(&mut self, record: Alignment) -> Vec<Alignment> {
        self.state.pending.push_back(Pending::new(record, [Xy::default(); 2]));
        self.freeze(self.config.lag as usize)
    }

    /// After a section was placed: all that may move are solved again, and the oldest beyond the lag go.
    fn settle(&mut self) -> Vec<Alignment> {
        self.state.smooth();
        let frozen = self.freeze(self.config.lag as usize);
        for (drawn, record) in self.drawn.iter_mut().zip(&mut self.state.drawn) {
            let Some(map) = self.state.pending.iter().find(|p| p.record.serial == record.serial) else { continue };
            let Some(now) = &map.record.map else { continue };
            if drift::apart(&record.map.0, &now.0) > REDRAW_PX
                && let Ok(anew) =
                    warped_reference(record.serial, &drawn.own, drawn.origin, &now.0, self.config.reduction)
            {
                (drawn.as_reference, record.map) = (anew, now.clone());
            }
        }
        frozen
    }

    /// Takes out the oldest sections until `left` may still move.
    fn freeze(&mut self, left: usize) -> Vec<Alignment> {
        let mut done = vec![];
        while self.state.pending.len() > left {
            let before = self.state.key.as_ref().map(|k| k.serial);
            done.extend(self.state.freeze(&self.config));
            let now = self.state.key.as_ref();
            if now.map(|k| k.serial) != before {
                let image = now.and_then(|k| Some((k, self.drawn.iter().find(|d| d.as_reference.serial == k.serial)?)));
                self.key = image.and_then(|(k, d)| thumbnail(&d.own, d.origin, &k.map.0, &self.config).ok());
                self.state.key = self.state.key.take().filter(|_| self.key.is_some());
            }
        }
        done
    }
}

impl Drawn {
    fn new(serial: SerialIndex, own: Array2<u8>, origin: Xy<i64>, map: &Map, reduction: u32) -> Result<Self, String> {
        let as_reference = warped_reference(serial, &own, origin, map, reduction)?;
        Ok(Self { own, origin, as_reference })
    }
}

fn warped_reference(
    serial: SerialIndex,
    own: &Array2<u8>,
    origin: Xy<i64>,
    map: &Map,
    reduction: u32,
) -> Result<Reference, String> {
    let (image, origin) = fine::warped(own, origin, map, reduction)?;
    Ok(Reference { serial, origin, image })
}

/// A section as it lies in the volume, at the scale of the coarse step.
fn thumbnail(own: &Array2<u8>, origin: Xy<i64>, map: &Map, config: &AlignConfig) -> Result<plane::Plane, String> {
    let (image, origin) = fine::warped(own, origin, map, config.reduction)?;
    Ok(fine::thumbnail(&image, origin, config, None))
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
