//! The place of a section that came late or was imaged again as a whole: between the published sections around it, which stay.
//!
//! Version 0 of such a section has no place, or one that was found from other tiles. The new version is laid onto version 0 of the nearest
//! section with a reliable place on either side, at most [`AROUND`] away; onto one side alone where the volume is broken between them.
//! So it waits until those are published, and what it becomes does not depend on when it came.
//!
//! *Memory.* It works at the same desk as the align box, one at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_stream::geometry::{BoxZyx, Xy, Zyx};
use kinesin_stream::ids::{SerialIndex, TileKey};
use kinesin_stream::map::{Map, SectionToVolume};
use kinesin_stream::stage::StopError;
use kinesin_stream::volume;
use ndarray::{Array2, Axis, s};

use super::aligning::{AlignmentFile, shifted, view_of};
use super::gather::Closed;
use super::montaging::Montaged;
use super::revising::Reviser;
use super::tiles::TileCache;
use crate::align::{AlignConfig, Alignment, Neighbour, Quality, Verdict, insert};
use crate::publish::{SectionFiles, read_json};

/// Sections to either side among which a placed one is looked for.
const AROUND: u32 = 3;

/// What placing a late section needs.
pub(super) struct Late {
    pub(super) config: AlignConfig,
    /// Leave sections as they were montaged.
    pub(super) nominal: bool,
    /// Section pixel that is volume pixel (0, 0) where a section's map is the identity.
    pub(super) origin: Xy<i64>,
    /// Held by whoever aligns: only one does at a time.
    pub(super) desk: Arc<Mutex<()>>,
}

impl Reviser {
    /// Whether what a new version needs is published, `published` being the first z that is not.
    pub(super) fn ready(&self, closed: &Closed, published: u32) -> Result<bool, StopError> {
        let z = closed.plan.serial.0;
        let all = (z + AROUND + 1).min(self.image.shape.z as u32);
        Ok(published >= all || z < published && !is_whole(closed) && self.first(z)?.is_some_and(|f| f.map.is_some()))
    }

    /// The alignment of a new version: that of the version before, or found anew where that has no place, or none of its tiles is left.
    pub(super) fn aligned_anew(
        &self,
        section: &Montaged,
        (closed, before): (&Closed, AlignmentFile),
        tiles: &mut TileCache,
    ) -> Result<AlignmentFile, StopError> {
        if section.montage.tiles.is_empty() || before.map.is_some() && !is_whole(closed) {
            return Ok(before);
        }
        let record = if self.late.nominal {
            let map = shifted(&Map::IDENTITY, as_float(self.late.origin))?;
            Alignment { map: Some(SectionToVolume(map)), verdict: Verdict::Reference, ..before.record.clone() }
        } else {
            let _working = self.late.desk.lock().unwrap_or_else(PoisonError::into_inner);
            self.inserted(section, tiles)?
        };
        let Some(map) = record.map.clone() else {
            // Version 0 stays as it is; this one has no place, and says what was tried last.
            return Ok(AlignmentFile { map: None, quality: Quality::of(&record, &self.late.config), record, ..before });
        };
        // The record is in the aligner's own frame.
        let own = SectionToVolume(shifted(&map.0, as_float(self.late.origin) * -1.0)?);
        let quality = Quality::of(&record, &self.late.config);
        Ok(AlignmentFile { map: Some(map), quality, record: Alignment { map: Some(own), ..record }, ..before })
    }

    /// The section between those around it, in volume pixels.
    fn inserted(&self, section: &Montaged, tiles: &mut TileCache) -> Result<Alignment, StopError> {
        let z = section.plan.serial.0;
        let view = view_of(section, &self.renderer.plain(), tiles, self.late.config.reduction)?;
        let broken = self.first(z)?.is_some_and(|f| f.record.broken_before);
        let below = self.nearest((z.saturating_sub(AROUND)..z).rev(), z, broken)?;
        let above = self.nearest(z + 1..(z + AROUND + 1).min(self.image.shape.z as u32), z, false)?;
        let tries: Vec<Vec<u32>> = match (below, above) {
            (Some((a, false)), Some((b, false))) => vec![vec![a, b]],
            (a, b) => {
                let mut sides: Vec<(u32, bool)> = [a, b].into_iter().flatten().collect();
                sides.sort_by_key(|(_, broken)| *broken);
                sides.into_iter().map(|(at, _)| vec![at]).collect()
            }
        };
        let nothing = format!("no section with a place lies within {AROUND} of it");
        let mut record = Alignment::failed(section.plan.serial, &section.plan.name, nothing);
        for around in tries {
            let images = around.into_iter().map(|at| self.published(at)).collect::<Result<Vec<_>, _>>()?;
            record = insert(&view, images, &self.late.config)?;
            record.broken_before = broken;
            if record.map.is_some() {
                break;
            }
        }
        Ok(record)
    }

    /// The nearest section to rely on, and whether the volume is broken between it and `z`, `broken` being whether it is right beside `z`.
    fn nearest(
        &self,
        order: impl Iterator<Item = u32>,
        z: u32,
        mut broken: bool,
    ) -> Result<Option<(u32, bool)>, StopError> {
        for at in order {
            let Some(file) = self.first(at)? else { continue };
            // A break is before a section.
            broken |= at > z && file.record.broken_before;
            if file.map.is_some() && !file.is_doubtful() {
                return Ok(Some((at, broken)));
            }
            broken |= at < z && file.record.broken_before;
        }
        Ok(None)
    }

    /// Version 0 as it was aligned.
    fn first(&self, z: u32) -> Result<Option<AlignmentFile>, StopError> {
        Ok(read_json(&SectionFiles::new(&self.out, z).alignment())?)
    }

    /// Version 0 as it was published, reduced.
    fn published(&self, z: u32) -> Result<Neighbour, StopError> {
        let s = self.late.config.reduction as usize;
        let source = volume::open(&self.out.join("volume/image/0"))?;
        let (h, w) = (self.image.shape.y / s, self.image.shape.x / s);
        let mut image = Array2::zeros((h, w));
        let band = (512 / s).max(1);
        for top in (0..h).step_by(band) {
            let rows = band.min(h - top);
            let at = |y: usize, x: usize, z: u32| Zyx::new(i64::from(z), (y * s) as i64, (x * s) as i64);
            let read = source.read_u8(BoxZyx { min: at(top, 0, z), max: at(top + rows, w, z + 1) })?;
            let read = read.index_axis_move(Axis(0), 0);
            for ((y, x), out) in image.slice_mut(s![top..top + rows, ..]).indexed_iter_mut() {
                *out = mean(read.slice(s![y * s..(y + 1) * s, x * s..(x + 1) * s]).iter().copied());
            }
        }
        Ok(Neighbour { serial: SerialIndex(z), image, origin: Xy::new(0, 0) })
    }
}

/// Whether it brings every tile of the section anew.
fn is_whole(closed: &Closed) -> bool {
    let new: BTreeSet<TileKey> = closed
        .plan
        .mfovs
        .iter()
        .filter(|m| m.revision == closed.revision)
        .flat_map(|m| &m.tiles)
        .map(|t| t.key.first())
        .collect();
    closed.plan.tiles().all(|t| new.contains(&t.key.first()))
}

/// Mean of the filled pixels; 0 where they are less than half.
fn mean(pixels: impl Iterator<Item = u8>) -> u8 {
    let (sum, filled, all) =
        pixels.fold((0u32, 0u32, 0u32), |(s, n, all), v| (s + u32::from(v), n + u32::from(v > 0), all + 1));
    if 2 * filled < all.max(1) { 0 } else { ((sum + filled / 2) / filled) as u8 }
}

fn as_float(p: Xy<i64>) -> Xy<f64> {
    Xy::new(p.x as f64, p.y as f64)
}
