//! The render box of the line: aligned pixels of a section, straight into the published volume.

use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Receiver, Sender};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ledger::{Ledger, State};
use kinesin_stream::map::SectionToVolume;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::ImageWriter;

use super::commits::{Commit, Commits};
use super::montaging::Montaged;
use super::telemetry::{Moment, StageName, Telemetry};
use super::tiles::TileCache;
use crate::render::{Renderer, compose};

/// A section with its way into the volume; `None` where it is missing or cannot be placed.
#[derive(Clone, Debug)]
pub(super) struct Aligned {
    pub(super) montaged: Montaged,
    pub(super) map: Option<Arc<SectionToVolume>>,
}

/// A published section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rendered {
    pub(super) z: u32,
    /// Whether there is an image; else the volume has no data there.
    pub(super) present: bool,
}

impl Cost for Aligned {
    fn cost(&self) -> Bytes {
        Bytes(self.montaged.cost().0 + 4096)
    }
}

impl Cost for Rendered {
    fn cost(&self) -> Bytes {
        Bytes(size_of::<Self>() as u64)
    }
}

/// Rows of output drawn at once, and width of the blocks they are cut into.
const BAND_PX: usize = 512;

pub(super) struct RenderBox {
    pub(super) renderer: Renderer,
    pub(super) tiles: TileCache,
    pub(super) image: ImageWriter,
    pub(super) commits: Arc<Commits>,
    /// None for recorded data.
    pub(super) ledger: Option<Ledger>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl RenderBox {
    pub(super) fn work(
        &mut self,
        (aligned, rendered): (Receiver<Aligned>, Sender<Rendered>),
        run: &RunToken,
    ) -> Result<(), StopError> {
        while let Some(section) = aligned.recv_blocking() {
            let z = section.montaged.plan.serial.0;
            run.working_on(section.montaged.plan.section.to_string());
            if !self.commits.has(&Commit::Image { z }) {
                if let Some(map) = &section.map {
                    self.draw(z, &section.montaged, map)?;
                }
                self.commits.add(&Commit::Image { z })?;
            }
            if section.map.is_some() {
                section.montaged.mark(self.ledger.as_ref(), State::Published)?;
            }
            self.telemetry.mark(z, Moment::Image);
            let present = section.map.is_some();
            drop(section);
            rendered.send_blocking(Rendered { z, present })?;
        }
        Ok(run.check()?)
    }

    fn draw(&mut self, z: u32, section: &Montaged, map: &SectionToVolume) -> Result<(), StopError> {
        let placed = section.placed(|tile, size| compose(tile, map, size));
        let shape = self.image.spec().shape;
        let plane = BoxXy { min: Xy::new(0, 0), max: Xy::new(shape.x as i64, shape.y as i64) };
        let (tiles, renderer, image) = (&mut self.tiles, &self.renderer, &self.image);
        let pixels = (shape.x * shape.y) as u64;
        self.telemetry.time(StageName::Render, pixels, || -> Result<(), StopError> {
            let mut rows_out = image.section(z as usize)?;
            tiles.draw(renderer, &placed, (plane, 1), BAND_PX, |rows| -> Result<(), StopError> {
                Ok(rows_out.push_rows(rows.view())?)
            })?;
            rows_out.finish()?;
            Ok(())
        })?;
        self.tiles.clear();
        Ok(())
    }
}
