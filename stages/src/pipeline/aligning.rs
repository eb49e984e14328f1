//! The align box of the line: sections in serial order, each drawn reduced from its montage and laid onto those before it.
//!
//! Sections may come in any order; those that came early wait as records, without pixels, and beyond a few as their number
//! alone. What is held does not grow with the number of sections.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kinesin_backpressure::{Receiver, Sender};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Affine, Grid, Map, SectionToVolume};
use kinesin_stream::runner::RunToken;
use kinesin_stream::stage::StopError;
use serde::ser::{Error as _, SerializeMap, SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};

use super::montaging::{Montaged, Solved};
use super::rendering::{Aligned, RenderInput};
use super::telemetry::{StageName, Telemetry};
use super::tiles::TileCache;
use crate::align::{AlignConfig, Aligner, AlignerState, Alignment, Flow, Grade, Quality, SectionView, Verdict};
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
    /// How far the place can be relied on, and why.
    pub quality: Quality,
    /// The aligner's own record, in its own frame: what a restart continues from.
    pub record: Alignment,
}

impl AlignmentFile {
    /// Whether the section has a place that its neighbours do not confirm: later sections are not laid onto it, and a flood does not
    /// rely on it.
    pub fn is_doubtful(&self) -> bool {
        self.map.is_some() && self.quality.grade == Grade::Bad
    }
}

/// `DIR/alignment.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeAlignment {
    /// Always `forward`: section pixel to volume pixel.
    pub direction: String,
    /// By section name.
    pub sections: BTreeMap<String, SectionToVolume>,
    /// Names of the sections before which the volume is broken: they and those after them fit nothing just before.
    #[serde(default)]
    pub breaks: Vec<String>,
    /// By name, the sections without a place, and why.
    #[serde(default)]
    pub unplaced: BTreeMap<String, String>,
}

/// `sections/<z>/flow.json`: the patches that were matched. The mesh that they were solved for is the map in `alignment.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowFile {
    /// Name of the section.
    pub section: String,
    /// Its z.
    pub z: u32,
    /// By reference, nearest first.
    pub flow: Vec<Flow>,
}

/// `DIR/aligning.json`: what a restart continues from.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AligningFile {
    state: AlignerState,
    /// Records that the last section made final: their own files are written after this one.
    frozen: Vec<Alignment>,
}

/// Sections between the montage and their final place.
struct InMotion {
    /// First z that the aligner has not seen.
    came: u32,
    /// First z whose place is not final.
    written: u32,
    /// What an earlier run left, until the aligner is made from it.
    state: AlignerState,
    /// Sections whose images it needs for that, and those images.
    needed: Vec<SerialIndex>,
    views: Vec<SectionView>,
    aligner: Option<Aligner>,
    /// Those of `written ..`, at most the lag and one.
    held: VecDeque<Montaged>,
}

/// `DIR/alignment.json` on its way to the disk: one section's map at a time is in memory.
struct Published<'a> {
    out: &'a Path,
    sections: u32,
    /// What comes after the maps, noted while they are written.
    noted: RefCell<Noted>,
}

/// See [`VolumeAlignment`].
#[derive(Default)]
struct Noted {
    breaks: Vec<String>,
    unplaced: BTreeMap<String, String>,
}

/// The map of its sections.
struct Maps<'a>(&'a Published<'a>);

/// Rows of the reduced image drawn at once.
const BAND_PX: usize = 256;

pub(super) struct AlignBox {
    pub(super) config: AlignConfig,
    /// Leave sections as they were montaged.
    pub(super) nominal: bool,
    pub(super) sections: u32,
    /// Section pixel that is volume pixel (0, 0) where a section's map is the identity.
    pub(super) origin: Xy<i64>,
    /// Held while a section is aligned: late ones are, elsewhere, within the same memory.
    pub(super) desk: Arc<Mutex<()>>,
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
        let mut line = self.before()?;
        let mut waiting = Waiting::default();
        let mut next = 0;
        while let Some(section) = montaged.recv_blocking() {
            waiting.insert((*section).clone());
            drop(section);
            while let Some(section) = waiting.take(next, &self.out)? {
                run.working_on(section.plan.section.to_string());
                if !self.nominal && line.needed.contains(&SerialIndex(next)) {
                    line.views.push(self.view(&section)?);
                }
                for done in self.take(section, &mut line)? {
                    aligned.send_blocking(RenderInput::Section(done))?;
                }
                next += 1;
            }
        }
        run.check()?;
        if next < self.sections {
            write_json(&self.out.join("alignment.json"), &Published::new(&self.out, line.written))?;
            let text = format!(
                "section z = {next} of {} never came; {} later ones wait for it. give every serial index once",
                self.sections,
                waiting.0.len()
            );
            return Err(std::io::Error::other(text).into());
        }
        for done in self.finish(&mut line)? {
            aligned.send_blocking(RenderInput::Section(done))?;
        }
        Ok(write_json(&self.out.join("alignment.json"), &Published::new(&self.out, next))?)
    }

    /// What an earlier run left; records of sections that it froze last are written where they are lacking.
    fn before(&self) -> Result<InMotion, StopError> {
        let file: Option<AligningFile> = read_json(&self.aligning())?;
        let AligningFile { state, frozen } = file.unwrap_or_default();
        for record in frozen {
            if !SectionFiles::new(&self.out, record.serial.0).alignment().is_file() {
                self.write(record)?;
            }
        }
        let came = state.next.map_or(0, |n| n.0);
        let written = if self.nominal { self.written() } else { came - state.pending.len() as u32 };
        let needed = state.views_needed();
        Ok(InMotion { came, written, needed, views: vec![], state, aligner: None, held: VecDeque::new() })
    }

    /// How many sections an earlier run left where they were montaged, from z = 0 on.
    fn written(&self) -> u32 {
        let there = |z: &u32| SectionFiles::new(&self.out, *z).alignment().is_file();
        (0..self.sections).take_while(there).count() as u32
    }

    /// Takes the next section; gives those that no longer move.
    fn take(&mut self, section: Montaged, line: &mut InMotion) -> Result<Vec<Aligned>, StopError> {
        let z = section.plan.serial.0;
        if z < line.written {
            return Ok(vec![aligned(section, alignment_file(&self.out, z)?)]);
        }
        if self.nominal {
            line.written = z + 1;
            let file = self.write(unmoved(&section))?;
            return Ok(vec![aligned(section, file)]);
        }
        line.held.push_back(section);
        if z < line.came {
            return Ok(vec![]);
        }
        let records = self.place(z, line)?;
        self.release(records, line)
    }

    /// All sections have come.
    fn finish(&mut self, line: &mut InMotion) -> Result<Vec<Aligned>, StopError> {
        if line.held.is_empty() {
            return Ok(vec![]);
        }
        let records = self.aligner(line)?.finish();
        self.release(records, line)
    }

    /// The aligner, made once the sections that it needs again have come.
    fn aligner<'a>(&self, line: &'a mut InMotion) -> Result<&'a mut Aligner, StopError> {
        if line.aligner.is_none() {
            let (state, views) = (std::mem::take(&mut line.state), std::mem::take(&mut line.views));
            line.aligner = Some(Aligner::resume(self.config.clone(), state, &views)?);
        }
        line.aligner.as_mut().ok_or_else(|| std::io::Error::other("it was made above").into())
    }

    /// Writes down what the aligner knows, then the records; the sections go on.
    fn release(&self, frozen: Vec<Alignment>, line: &mut InMotion) -> Result<Vec<Aligned>, StopError> {
        for record in frozen.iter().filter(|r| !r.flow.is_empty()) {
            let (section, z) = (record.name.clone(), record.serial.0);
            let file = FlowFile { section, z, flow: record.flow.clone() };
            write_json(&SectionFiles::new(&self.out, z).flow(), &file)?;
        }
        let state = self.aligner(line)?.state().clone();
        let file = AligningFile { state, frozen };
        write_json(&self.aligning(), &file)?;
        let mut done = vec![];
        for record in file.frozen {
            let section = line.held.pop_front().ok_or_else(|| std::io::Error::other("a record without its section"))?;
            line.written = record.serial.0 + 1;
            done.push(aligned(section, self.write(record)?));
        }
        Ok(done)
    }

    fn aligning(&self) -> PathBuf {
        self.out.join("aligning.json")
    }

    fn place(&mut self, z: u32, line: &mut InMotion) -> Result<Vec<Alignment>, StopError> {
        let section = line.held.back().filter(|s| s.plan.serial.0 == z).cloned();
        let section = section.ok_or_else(|| std::io::Error::other("the section to place is not held"))?;
        let aligner = self.aligner(line)?;
        if section.montage.tiles.is_empty() {
            return Ok(aligner.missing(section.plan.serial, &section.plan.name)?);
        }
        let pixels = section.plan.tiles().map(|t| u64::from(t.size.x) * u64::from(t.size.y)).sum();
        let telemetry = self.telemetry.clone();
        let desk = self.desk.clone();
        let _working = desk.lock().unwrap_or_else(PoisonError::into_inner);
        telemetry.time(StageName::Align, pixels, || {
            let view = self.view(&section)?;
            Ok(aligner.push(&view)?)
        })
    }

    /// The section as its montage shows it, reduced.
    fn view(&mut self, section: &Montaged) -> Result<SectionView, StopError> {
        view_of(section, &self.renderer, &mut self.tiles, self.config.reduction)
    }

    fn write(&self, record: Alignment) -> Result<AlignmentFile, StopError> {
        let origin = Xy::new(self.origin.x as f64, self.origin.y as f64);
        let map = record.map.as_ref().map(|m| shifted(&m.0, origin)).transpose()?;
        let (section, z) = (record.name.clone(), record.serial.0);
        let quality = Quality::of(&record, &self.config);
        let file = AlignmentFile { section, z, map: map.map(SectionToVolume), quality, record };
        write_json(&SectionFiles::new(&self.out, z).alignment(), &file)?;
        Ok(file)
    }
}

/// A section as its montage shows it, reduced.
pub(super) fn view_of(
    section: &Montaged,
    renderer: &Renderer,
    tiles: &mut TileCache,
    reduction: u32,
) -> Result<SectionView, StopError> {
    let placed = section.placed(|tile, _| tile.0.clone());
    let extent = renderer.extent(reduction, &placed).unwrap_or_default();
    let mut image = ndarray::Array2::zeros((extent.size().y, extent.size().x));
    let mut top = 0;
    tiles.draw(renderer, &placed, (extent, reduction), BAND_PX, |rows| -> Result<(), StopError> {
        image.slice_mut(ndarray::s![top..top + rows.nrows(), ..]).assign(&rows);
        top += rows.nrows();
        Ok(())
    })?;
    tiles.clear();
    Ok(SectionView { serial: section.plan.serial, name: section.plan.name.clone(), image, origin: extent.min })
}

fn aligned(montaged: Montaged, file: AlignmentFile) -> Aligned {
    Aligned { montaged, map: file.map.map(Arc::new) }
}

/// Sections that came before their turn, by z; beyond a few only that they did.
#[derive(Default)]
struct Waiting(BTreeMap<u32, Option<Montaged>>);

impl Waiting {
    /// Records kept at hand.
    const AT_HAND: usize = 8;

    fn insert(&mut self, section: Montaged) {
        let room = self.0.values().flatten().count() < Self::AT_HAND;
        self.0.insert(section.plan.serial.0, room.then_some(section));
    }

    /// That of `z`, where it has come.
    fn take(&mut self, z: u32, out: &Path) -> Result<Option<Montaged>, StopError> {
        Ok(match self.0.remove(&z) {
            Some(None) => {
                let path = SectionFiles::new(out, z).solved();
                Some(read_json::<Solved>(&path)?.ok_or_else(|| gone(&path))?.into())
            }
            at_hand => at_hand.flatten(),
        })
    }
}

fn alignment_file(out: &Path, z: u32) -> Result<AlignmentFile, StopError> {
    let path = SectionFiles::new(out, z).alignment();
    Ok(read_json(&path)?.ok_or_else(|| gone(&path))?)
}

fn gone(path: &Path) -> std::io::Error {
    std::io::Error::other(format!("{} was there and is gone; run again with --overwrite", path.display()))
}

impl<'a> Published<'a> {
    fn new(out: &'a Path, sections: u32) -> Self {
        Self { out, sections, noted: RefCell::default() }
    }
}

impl Serialize for Published<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = serializer.serialize_struct("VolumeAlignment", 4)?;
        file.serialize_field("direction", "forward")?;
        file.serialize_field("sections", &Maps(self))?;
        let noted = self.noted.take();
        file.serialize_field("breaks", &noted.breaks)?;
        file.serialize_field("unplaced", &noted.unplaced)?;
        file.end()
    }
}

impl Serialize for Maps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut maps = serializer.serialize_map(None)?;
        for z in 0..self.0.sections {
            let file = alignment_file(self.0.out, z).map_err(S::Error::custom)?;
            let mut noted = self.0.noted.borrow_mut();
            match &file.map {
                Some(map) => maps.serialize_entry(&file.section, map)?,
                None => drop(noted.unplaced.insert(file.section.clone(), file.quality.reasons.join("; "))),
            }
            if file.record.broken_before {
                noted.breaks.push(file.section);
            }
        }
        maps.end()
    }
}

/// First `map`, then the volume's first pixel moved to `origin`.
pub(super) fn shifted(map: &Map, origin: Xy<f64>) -> Result<Map, StopError> {
    Ok(match map {
        Map::Affine(a) => Map::Affine(a.then(&Affine::translation(origin * -1.0))),
        Map::Grid(g) => Map::Grid(Grid::from_fn(g.xs().to_vec(), g.ys().to_vec(), |p| g.apply(p) - origin)?),
    })
}

/// The record of a section that stays where it was montaged.
fn unmoved(section: &Montaged) -> Alignment {
    let missing = section.montage.tiles.is_empty();
    let verdict = if missing { Verdict::Missing } else { Verdict::Reference };
    Alignment {
        map: (!missing).then_some(SectionToVolume(Map::IDENTITY)),
        confidence: 1.0,
        ..Alignment::unplaced(section.plan.serial, &section.plan.name, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::montage::{Montage, Residual};
    use kinesin_stream::ids::SectionId;
    use kinesin_stream::plan::SectionPlan;

    fn section(z: u32) -> Montaged {
        let (section, serial) = (SectionId(z), SerialIndex(z));
        let plan = SectionPlan { section, serial, name: format!("s{z}"), version: 0, mfovs: Vec::new() };
        let montage = Montage {
            section,
            serial,
            stiffness: None,
            lenses: crate::montage::KnownLenses::default(),
            trials: Vec::new(),
            residual: Residual::default(),
            pairs: Vec::new(),
            tiles: Vec::new(),
        };
        Montaged { plan: Arc::new(plan), montage: Arc::new(montage), tones: BTreeMap::new() }
    }

    #[test]
    fn of_sections_that_wait_a_few_are_held_and_all_come_back_in_their_turn() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut waiting = Waiting::default();
        for z in (0..40).rev() {
            let m = section(z);
            let solved = Solved { plan: m.plan.clone(), montage: (*m.montage).clone(), tones: Vec::new() };
            write_json(&SectionFiles::new(dir.path(), z).solved(), &solved).expect("writes");
            waiting.insert(m);
            assert!(waiting.0.values().flatten().count() <= Waiting::AT_HAND);
        }
        for z in 0..40 {
            let back = waiting.take(z, dir.path()).expect("readable").expect("it came");
            assert_eq!(back.plan.name, format!("s{z}"));
        }
        assert!(waiting.take(40, dir.path()).expect("readable").is_none());
    }

    #[test]
    fn the_volume_alignment_is_written_section_by_section_as_it_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        for z in 0..3 {
            let record = Alignment { broken_before: z == 2, ..unmoved(&section(z)) };
            let map = (z != 1).then_some(SectionToVolume(Map::IDENTITY));
            let quality = Quality::of(&record, &AlignConfig::default());
            let file = AlignmentFile { section: format!("s{z}"), z, map, quality, record };
            write_json(&SectionFiles::new(dir.path(), z).alignment(), &file).expect("writes");
        }
        let path = dir.path().join("alignment.json");
        write_json(&path, &Published::new(dir.path(), 3)).expect("writes");
        let read: VolumeAlignment = read_json(&path).expect("reads").expect("there");
        assert_eq!(read.direction, "forward");
        assert_eq!(read.sections.keys().collect::<Vec<_>>(), ["s0", "s2"]);
        assert_eq!((read.breaks, read.unplaced["s1"].as_str()), (vec!["s2".to_owned()], "the section is missing"));
    }
}
