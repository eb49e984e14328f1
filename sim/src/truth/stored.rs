//! The truth read back from disk: all that a score needs, without growing the tissue again.
//!
//! It differs from the truth in memory only at folds and cracks (see [`truth`](crate::truth)) and in that labels are as
//! coarse as they were written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kinesin_stream::geometry::{BoxXy, BoxZyx, Xy, Zyx};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{SectionToVolume, TileToSection};
use kinesin_stream::plan::RunPlan;
use kinesin_stream::volume::{self, VolumeError, VolumeSource};
use ndarray::{Array2, Axis};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::SectionFaults;
use super::shown::{OutputGrid, SectionTruth, ToVolume, TrueTile};

/// A truth that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    /// The folder holds none.
    #[error("{path}: holds no truth; wanted truth.json here or in truth/, as kinesin sim and kinesin run leave it")]
    Absent {
        /// The folder.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A file has not the form it should have.
    #[error("{path}: {source}; write the truth again")]
    Form {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Labels or classes cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// The truth of an acquisition, on disk.
pub struct StoredTruth {
    root: PathBuf,
    head: Head,
    /// By serial index: name, alignment, faults.
    sections: BTreeMap<SerialIndex, (String, Option<SectionToVolume>, SectionFaults)>,
    labels: Option<Box<dyn VolumeSource>>,
    classes: Option<Box<dyn VolumeSource>>,
}

#[derive(Deserialize)]
struct Head {
    plan: RunPlan,
    reduction: u32,
}

#[derive(Deserialize)]
struct Sections<T> {
    sections: BTreeMap<String, T>,
}

#[derive(Deserialize)]
struct Tiles {
    tiles: BTreeMap<String, TileToSection>,
}

impl StoredTruth {
    /// Opens the truth in `dir` or in `dir/truth`.
    ///
    /// # Errors
    /// Where there is none or a file cannot be read.
    pub fn open(dir: &Path) -> Result<Self, TruthError> {
        let roots = [dir.to_path_buf(), dir.join("truth")];
        let root = roots.into_iter().find(|r| r.join("truth.json").is_file());
        let root = root.ok_or_else(|| TruthError::Absent { path: dir.to_path_buf() })?;
        let head = read_json(&root.join("truth.json"))?;
        let mut alignments: Sections<SectionToVolume> = read_json(&root.join("alignment.json"))?;
        let faults: Sections<SectionFaults> = read_json(&root.join("faults.json"))?;
        let section = |(name, faults): (String, SectionFaults)| {
            let alignment = alignments.sections.remove(&name);
            (faults.serial, (name, alignment, faults))
        };
        let sections = faults.sections.into_iter().map(section).collect();
        let volume = |name| {
            let path = root.join(name);
            path.exists().then(|| volume::open(&path)).transpose()
        };
        let (labels, classes) = (volume("labels")?, volume("classes")?);
        Ok(Self { root, head, sections, labels, classes })
    }

    /// What was promised of the run.
    pub fn plan(&self) -> &RunPlan {
        &self.head.plan
    }

    /// Name of a section.
    pub fn name(&self, serial: SerialIndex) -> Option<&str> {
        self.sections.get(&serial).map(|(name, ..)| name.as_str())
    }

    /// Section pixel to volume pixel; `None` where the section is missing.
    pub fn alignment(&self, serial: SerialIndex) -> Option<&SectionToVolume> {
        self.sections.get(&serial)?.1.as_ref()
    }

    /// What is wrong with a section and its tiles.
    pub fn faults(&self, serial: SerialIndex) -> Option<&SectionFaults> {
        self.sections.get(&serial).map(|(.., faults)| faults)
    }

    /// Tile pixel to section pixel of every promised tile of a section.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn placements(&self, serial: SerialIndex) -> Result<BTreeMap<String, TileToSection>, TruthError> {
        let file = self.root.join("sections").join(format!("{:04}", serial.0)).join("placements.json");
        Ok(read_json::<Tiles>(&file)?.tiles)
    }

    /// As [`labels_in_result`](super::shown::labels_in_result), from disk.
    ///
    /// # Errors
    /// Where the truth of the section or its labels cannot be read.
    pub fn labels_in_result(
        &self,
        serial: SerialIndex,
        placements: &BTreeMap<String, TileToSection>,
        alignment: &SectionToVolume,
        out: &OutputGrid,
    ) -> Result<Option<Array2<u64>>, TruthError> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let read = |rect| labels.read_labels(plane(serial, rect)).map(|b| b.index_axis_move(Axis(0), 0));
        let truth = self.section(serial, labels.as_ref())?;
        Ok(Some(truth.looked_up(placements, alignment, out, read)?))
    }

    /// As [`classes_in_result`](super::shown::classes_in_result), from disk.
    ///
    /// # Errors
    /// Where the truth of the section or its classes cannot be read.
    pub fn classes_in_result(
        &self,
        serial: SerialIndex,
        placements: &BTreeMap<String, TileToSection>,
        alignment: &SectionToVolume,
        out: &OutputGrid,
    ) -> Result<Option<Array2<u8>>, TruthError> {
        let Some(classes) = &self.classes else { return Ok(None) };
        let read = |rect| classes.read_u8(plane(serial, rect)).map(|b| b.index_axis_move(Axis(0), 0));
        let truth = self.section(serial, classes.as_ref())?;
        Ok(Some(truth.looked_up(placements, alignment, out, read)?))
    }

    fn section(&self, serial: SerialIndex, volume: &dyn VolumeSource) -> Result<SectionTruth, TruthError> {
        let faults = self.faults(serial).map(|f| &f.tiles);
        let shows = |name: &String| faults.and_then(|f| f.get(name)).is_none_or(|f| !f.lost && !f.blank);
        let tile = |map: TileToSection| TrueTile { map: map.0, size: self.head.plan.tile_px };
        let tiles = self.placements(serial)?.into_iter().filter(|(name, _)| shows(name));
        let (shape, reduction) = (volume.info().shape, f64::from(self.head.reduction));
        Ok(SectionTruth {
            tiles: tiles.map(|(name, map)| (name, tile(map))).collect(),
            to_volume: self.alignment(serial).map_or(ToVolume::Nowhere, |a| ToVolume::Stored(a.0.clone())),
            pitch: Xy::new(reduction, reduction),
            size: Xy::new(shape.x, shape.y),
        })
    }
}

/// A rectangle of one section.
fn plane(serial: SerialIndex, rect: BoxXy) -> BoxZyx {
    let z = i64::from(serial.0);
    BoxZyx { min: Zyx::new(z, rect.min.y, rect.min.x), max: Zyx::new(z + 1, rect.max.y, rect.max.x) }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TruthError> {
    let text = std::fs::read(path).map_err(|source| TruthError::Io { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&text).map_err(|source| TruthError::Form { path: path.to_path_buf(), source })
}
