//! The align box of the line: sections in serial order, each drawn reduced from its montage and laid onto those before it.
//!
//! Sections may come in any order; those that came early wait as records, without pixels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kinesin_backpressure::{Receiver, Sender};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Grid, Map, SectionToVolume};
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use serde::{Deserialize, Serialize};

use super::montaging::Montaged;
use super::rendering::{Aligned, RenderInput};
use super::telemetry::{StageName, Telemetry};
use super::tiles::TileCache;
use crate::align::{AlignConfig, Aligner, Alignment, SectionView, Verdict};
use crate::publish::{SectionFiles, read_json, write_json};
use crate::render::Renderer;

/// `sections/<z>/alignment.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AlignmentFile {
    /// Name of the section.
    pub section: String,
    /// Its z.
    pub z: u32,
    /// Section pixel to volume pixel; none where the section is missing or could not be placed.
    pub map: Option<SectionToVolume>,
    /// The aligner's own record, in its own frame: what a restart continues from.
    pub record: Alignment,
}

/// `DIR/alignment.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeAlignment {
    /// Always `forward`: section pixel to volume pixel.
    pub direction: String,
    /// By section name.
    pub sections: BTreeMap<String, SectionToVolume>,
}

/// Rows of the reduced image drawn at once.
const BAND_PX: usize = 256;

pub(super) struct AlignBox {
    pub(super) config: AlignConfig,
    /// Leave sections as they were montaged.
    pub(super) nominal: bool,
    pub(super) sections: u32,
    /// Section pixel that is volume pixel (0, 0) where a section's map is the identity.
    pub(super) origin: Xy<i64>,
    pub(super) renderer: Renderer,
    pub(super) tiles: TileCache,
    pub(super) out: PathBuf,
    pub(super) telemetry: Arc<Telemetry>,
}

impl AlignBox {
    pub(super) fn work(
        &mut self,
        (montaged, aligned): (Receiver<Montaged>, Sender<RenderInput>),
        run: &RunToken,
    ) -> Result<(), StopError> {
        let done = self.done()?;
        // The aligner is made once the sections that it needs again have come.
        let mut aligner = None;
        let mut views = Vec::new();
        let needed = Aligner::views_needed(&self.config, &done.iter().map(|d| d.record.clone()).collect::<Vec<_>>());
        let mut waiting: BTreeMap<u32, Montaged> = BTreeMap::new();
        let mut next = 0;
        let mut all = VolumeAlignment { direction: "forward".into(), sections: BTreeMap::new() };
        while let Some(section) = montaged.recv_blocking() {
            waiting.insert(section.plan.serial.0, (*section).clone());
            drop(section);
            while let Some(section) = waiting.remove(&next) {
                run.working_on(section.plan.section.to_string());
                let file = match done.get(next as usize) {
                    Some(file) => {
                        if !self.nominal && needed.contains(&SerialIndex(next)) {
                            views.push(self.view(&section)?);
                        }
                        file.clone()
                    }
                    None => {
                        if aligner.is_none() {
                            let records: Vec<Alignment> = done.iter().map(|d| d.record.clone()).collect();
                            aligner =
                                Some(Aligner::resume(self.config.clone(), &records, &std::mem::take(&mut views))?);
                        }
                        let record = match &mut aligner {
                            Some(aligner) if !self.nominal => self.place(aligner, &section)?,
                            _ => unmoved(&section),
                        };
                        self.write(&section, record)?
                    }
                };
                if let Some(map) = &file.map {
                    all.sections.insert(file.section.clone(), map.clone());
                }
                let map = file.map.map(Arc::new);
                aligned.send_blocking(RenderInput::Section(Aligned { montaged: section, map }))?;
                next += 1;
            }
        }
        run.check()?;
        write_json(&self.out.join("alignment.json"), &all)?;
        if next < self.sections {
            let waits = waiting.len();
            let text = format!(
                "section z = {next} of {} never came; {waits} later ones wait for it. give every serial index once",
                self.sections
            );
            return Err(std::io::Error::other(text).into());
        }
        Ok(())
    }

    /// Sections that an earlier run aligned, from z = 0 on.
    fn done(&self) -> Result<Vec<AlignmentFile>, StopError> {
        let mut done = Vec::new();
        for z in 0..self.sections {
            match read_json(&SectionFiles::new(&self.out, z).alignment())? {
                Some(file) => done.push(file),
                None => break,
            }
        }
        Ok(done)
    }

    fn place(&mut self, aligner: &mut Aligner, section: &Montaged) -> Result<Alignment, StopError> {
        let (serial, name) = (section.plan.serial, section.plan.name.clone());
        if section.montage.tiles.is_empty() {
            return Ok(aligner.missing(serial, &name)?);
        }
        let pixels = section.plan.tiles().map(|t| u64::from(t.size.x) * u64::from(t.size.y)).sum();
        let telemetry = self.telemetry.clone();
        telemetry.time(StageName::Align, pixels, || {
            let view = self.view(section)?;
            Ok(aligner.align_next(&view)?)
        })
    }

    /// The section as its montage shows it, reduced.
    fn view(&mut self, section: &Montaged) -> Result<SectionView, StopError> {
        let placed = section.placed(|tile, _| tile.0.clone());
        let reduction = self.config.reduction;
        let extent = self.renderer.extent(reduction, &placed).unwrap_or_default();
        let mut image = ndarray::Array2::zeros((extent.size().y, extent.size().x));
        let mut top = 0;
        self.tiles.draw(&self.renderer, &placed, (extent, reduction), BAND_PX, |rows| -> Result<(), StopError> {
            image.slice_mut(ndarray::s![top..top + rows.nrows(), ..]).assign(&rows);
            top += rows.nrows();
            Ok(())
        })?;
        self.tiles.clear();
        Ok(SectionView { serial: section.plan.serial, name: section.plan.name.clone(), image, origin: extent.min })
    }

    fn write(&self, section: &Montaged, record: Alignment) -> Result<AlignmentFile, StopError> {
        let origin = Xy::new(self.origin.x as f64, self.origin.y as f64);
        let map = record.map.as_ref().map(|m| shifted(&m.0, origin)).transpose()?;
        let (name, z) = (section.plan.name.clone(), section.plan.serial.0);
        let file = AlignmentFile { section: name, z, map: map.map(SectionToVolume), record };
        write_json(&SectionFiles::new(&self.out, z).alignment(), &file)?;
        Ok(file)
    }
}

/// First `map`, then the volume's first pixel moved to `origin`.
fn shifted(map: &Map, origin: Xy<f64>) -> Result<Map, StopError> {
    Ok(match map {
        Map::Affine(a) => Map::Affine(a.then(&Affine::translation(origin * -1.0))),
        Map::Grid(g) => Map::Grid(Grid::from_fn(g.xs().to_vec(), g.ys().to_vec(), |p| g.apply(p) - origin)?),
    })
}

/// The record of a section that stays where it was montaged.
fn unmoved(section: &Montaged) -> Alignment {
    let missing = section.montage.tiles.is_empty();
    Alignment {
        serial: section.plan.serial,
        name: section.plan.name.clone(),
        verdict: if missing { Verdict::Missing } else { Verdict::Reference },
        map: (!missing).then_some(SectionToVolume(Map::IDENTITY)),
        residual_px: None,
        confidence: 1.0,
        kept_as_reference: false,
        references: Vec::new(),
        stiffness: None,
        drift: None,
    }
}
