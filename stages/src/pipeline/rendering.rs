//! The render box of the line: aligned pixels of a section, straight into the published volume.
//!
//! Later versions of a section come here as well, from gather: they are made once the version before is published.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinesin_backpressure::{Bytes, Cost, Receiver, Sender};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ledger::{Ledger, State};
use kinesin_stream::map::SectionToVolume;
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use kinesin_stream::volume::ImageWriter;

use super::commits::{Commit, Commits};
use super::gate::Gate;
use super::gather::Closed;
use super::montaging::Montaged;
use super::reslice::{Reslice, Rows};
use super::revising::Reviser;
use super::telemetry::{Moment, StageName, Telemetry};
use super::tiles::TileCache;
use crate::render::{Renderer, compose};

/// A section with its way into the volume; `None` where it is missing or cannot be placed.
#[derive(Clone, Debug)]
pub(super) struct Aligned {
    pub(super) montaged: Montaged,
    pub(super) map: Option<Arc<SectionToVolume>>,
}

/// What the render stage takes.
#[derive(Clone, Debug)]
pub(super) enum RenderInput {
    /// A section, in order of z.
    Section(Aligned),
    /// What is new in a later version of a section, at any time.
    Revision(Closed),
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

impl Cost for RenderInput {
    fn cost(&self) -> Bytes {
        match self {
            Self::Section(section) => section.cost(),
            Self::Revision(closed) => {
                Bytes((size_of::<Self>() + 128 * (closed.tiles.len() + closed.lost.len())) as u64)
            }
        }
    }
}

impl Cost for Rendered {
    fn cost(&self) -> Bytes {
        Bytes(size_of::<Self>() as u64)
    }
}

/// Rows of output drawn at once, and width of the blocks they are cut into.
pub(super) const BAND_PX: usize = 512;

pub(super) struct RenderBox {
    pub(super) renderer: Renderer,
    pub(super) tiles: TileCache,
    pub(super) image: ImageWriter,
    pub(super) reslice: Reslice,
    pub(super) commits: Arc<Commits>,
    /// None for recorded data.
    pub(super) ledger: Option<Ledger>,
    pub(super) reviser: Reviser,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) gate: Arc<Gate>,
}

impl RenderBox {
    pub(super) fn work(
        &mut self,
        (input, rendered): (Receiver<RenderInput>, Sender<Rendered>),
        run: &RunToken,
    ) -> Result<(), StopError> {
        let mut waiting = Waiting::default();
        while let Some(message) = input.recv_blocking() {
            match &*message {
                RenderInput::Section(section) => {
                    let z = section.montaged.plan.serial.0;
                    run.working_on(section.montaged.plan.section.to_string());
                    self.section(section, run)?;
                    let present = section.map.is_some();
                    drop(message);
                    rendered.send_blocking(Rendered { z, present })?;
                    waiting.published = z + 1;
                }
                RenderInput::Revision(closed) => {
                    let closed = closed.clone();
                    drop(message);
                    waiting.by_section.entry(closed.plan.serial.0).or_default().insert(closed.revision, closed);
                }
            }
            while let Some(closed) = waiting.next(&self.reviser)? {
                run.working_on(format!("version {} of {}", closed.revision, closed.plan.section));
                self.reviser.revise(closed, &mut self.tiles, run)?;
            }
        }
        run.check()?;
        match waiting.by_section.keys().next() {
            None => Ok(()),
            Some(z) => {
                let text = format!("retakes of section z = {z} came, but never all of what they replace");
                Err(std::io::Error::other(text).into())
            }
        }
    }

    fn section(&mut self, section: &Aligned, run: &RunToken) -> Result<(), StopError> {
        let z = section.montaged.plan.serial.0;
        if !self.commits.has(&Commit::Image { z }) {
            self.gate.linger(z, run);
            if let Some(map) = &section.map {
                self.draw(z, &section.montaged, map)?;
            }
            self.commits.add(&Commit::Image { z })?;
        }
        if section.map.is_some() {
            section.montaged.mark(self.ledger.as_ref(), State::Published)?;
        }
        self.telemetry.mark(z, Moment::Image);
        Ok(())
    }

    fn draw(&mut self, z: u32, section: &Montaged, map: &SectionToVolume) -> Result<(), StopError> {
        let placed = section.placed(|tile, size| compose(tile, map, size));
        let shape = self.image.spec().shape;
        let plane = BoxXy { min: Xy::new(0, 0), max: Xy::new(shape.x as i64, shape.y as i64) };
        let (tiles, renderer, image) = (&mut self.tiles, &self.renderer, &self.image);
        let (reslice, mut strip) = (&mut self.reslice, Rows::default());
        let pixels = (shape.x * shape.y) as u64;
        self.telemetry.time(StageName::Render, pixels, || -> Result<(), StopError> {
            let mut rows_out = image.section(z as usize)?;
            tiles.draw(renderer, &placed, (plane, 1), BAND_PX, |rows| -> Result<(), StopError> {
                reslice.gather(&mut strip, rows.view());
                Ok(rows_out.push_rows(rows.view())?)
            })?;
            rows_out.finish()?;
            reslice.write(z, &strip)?;
            Ok(())
        })?;
        self.tiles.clear();
        Ok(())
    }
}

/// Versions that wait for the one before.
#[derive(Default)]
struct Waiting {
    /// First z that is not published.
    published: u32,
    by_section: BTreeMap<u32, BTreeMap<u32, Closed>>,
    /// The last version of each section that has more than one.
    made: BTreeMap<u32, u32>,
}

impl Waiting {
    /// One that can be made now.
    fn next(&mut self, reviser: &Reviser) -> Result<Option<Closed>, StopError> {
        for (z, versions) in &mut self.by_section {
            let next = self.made.get(z).map_or(1, |v| v + 1);
            let Some(closed) = versions.get(&next).filter(|_| *z < self.published) else { continue };
            if reviser.ready(closed, self.published)? {
                let (z, closed) = (*z, versions.remove(&next));
                if versions.is_empty() {
                    self.by_section.remove(&z);
                }
                self.made.insert(z, next);
                return Ok(closed);
            }
        }
        Ok(None)
    }
}
