//! Recorded data sets: what was acquired before, read as if it were being acquired now.
//!
//! | module | reads |
//! |---|---|
//! | [`tilespec`] | Render TileSpec JSON: a list in one file, or one file a section in a folder |
//! | [`feabas`] | FEABAS section text files: one, or one a section in a folder |
//! | [`multisem`] | a MultiSEM region folder, or a folder of them |
//! | [`lists`] | TrakEM2 import lists; also writes lists for FEABAS, TrakEM2 and MultiSEM programs |
//! | [`placements`] | solved places out of Render TileSpecs, with their lenses |
//! | [`recording`] | what `kinesin sim` writes: `run.json`, `sections/<z>/plan.json`, tiles, losses |
//! | [`replay`] | [`Recorded`](replay::Recorded): a data set as an [`Instrument`](crate::instrument::Instrument) |
//!
//! Positions are section pixels of the centre of tile pixel (0, 0). Sections are ordered by their number and counted without
//! gaps. Nothing is ever written beside the data. Files of tiles are looked at only when a tile is asked for, except the
//! first one, so that a wrong path is found at once; what is odd but harmless is listed in [`Dataset::remarks`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::plan::{MfovPlan, PlannedTile, RunPlan, SectionPlan};
use kinesin_stream::tile::Reason;

use crate::decode::decode;

mod error;
pub mod feabas;
pub mod lists;
pub mod multisem;
pub mod placements;
pub mod recording;
pub mod replay;
pub mod tilespec;

pub use error::DatasetError;

/// A recorded data set: the promise, section by section, and where the image files are.
#[derive(Debug)]
pub struct Dataset {
    plan: RunPlan,
    sections: Vec<Arc<SectionPlan>>,
    paths: BTreeMap<TileKey, PathBuf>,
    lost: BTreeMap<TileKey, Reason>,
    remarks: Vec<String>,
}

/// What a data set may not say itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumed {
    /// Side of a pixel, nm. Default 4: what most multi-beam acquisitions use.
    pub pixel_size_nm: f64,
    /// Section thickness, nm. Default 30: what most serial sections are cut to.
    pub thickness_nm: f64,
}

impl Default for Assumed {
    fn default() -> Self {
        Self { pixel_size_nm: 4.0, thickness_nm: 30.0 }
    }
}

/// What a reader found, before keys are given.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) pixel_size_nm: Option<f64>,
    pub(crate) sections: Vec<DraftSection>,
    pub(crate) remarks: Vec<String>,
}

/// One section of it.
#[derive(Debug)]
pub(crate) struct DraftSection {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) tiles: Vec<DraftTile>,
}

/// One tile of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DraftTile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) place: Xy<f64>,
    pub(crate) size: Option<Xy<u32>>,
    pub(crate) seat: Option<Seat>,
}

/// Which beam of which stage stop took a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub(crate) region: u16,
    pub(crate) mfov: u32,
    pub(crate) beam: u16,
}

impl Dataset {
    /// Opens a data set of any known form; pixel size and thickness are assumed where it does not say them.
    ///
    /// # Errors
    /// See [`DatasetError`].
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        Self::open_with(path, Assumed::default())
    }

    /// The same with other assumptions.
    ///
    /// # Errors
    /// See [`DatasetError`].
    pub fn open_with(path: &Path, assumed: Assumed) -> Result<Self, DatasetError> {
        if path.is_dir() {
            if path.join("run.json").is_file() {
                return recording::open(path);
            }
            if let Some(draft) = multisem::read(path)? {
                return assemble(path, draft, assumed);
            }
        }
        let files = listed(path)?;
        let with = |extension: &str| -> Vec<PathBuf> {
            files.iter().filter(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))).cloned().collect()
        };
        let (json, text) = (with("json"), with("txt"));
        let draft = match (json.is_empty(), text.is_empty()) {
            (false, true) => tilespec::read(&json)?,
            (true, false) if lists::is_trakem2(&text[0])? => lists::read_trakem2(&text)?,
            (true, false) => feabas::read(&text)?,
            (true, true) => {
                let found = format!("{} file(s), none of them .json or .txt", files.len());
                return Err(DatasetError::Unknown { path: path.into(), found });
            }
            (false, false) => {
                let found = format!("{} .json and {} .txt files side by side", json.len(), text.len());
                return Err(DatasetError::Unknown { path: path.into(), found });
            }
        };
        assemble(path, draft, assumed)
    }

    /// The promise of the run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The promise of every section, in order of z.
    pub fn sections(&self) -> &[Arc<SectionPlan>] {
        &self.sections
    }

    /// The image file of a tile, `None` where the tile is unknown or recorded as lost.
    pub fn path(&self, key: TileKey) -> Option<&Path> {
        self.paths.get(&key).map(PathBuf::as_path)
    }

    /// Why a tile is recorded as lost.
    pub fn lost(&self, key: TileKey) -> Option<&Reason> {
        self.lost.get(&key)
    }

    /// What was odd but harmless, one sentence each, for the log.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }
}

/// The file itself, or the files of a folder in name order.
fn listed(path: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(|source| DatasetError::Io { path: path.into(), source })?;
        return Ok(vec![path.into()]);
    }
    let mut files: Vec<PathBuf> = entries(path)?.into_iter().filter(|p| p.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Everything in a folder, sorted by name.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let failed = |source| DatasetError::Io { path: folder.into(), source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        all.push(entry.map_err(failed)?.path());
    }
    all.sort();
    Ok(all)
}

pub(crate) fn text_of(path: &Path) -> Result<String, DatasetError> {
    let bytes = std::fs::read(path).map_err(|source| DatasetError::Io { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|e| {
        let what = format!("byte {} is not UTF-8 text", e.utf8_error().valid_up_to());
        DatasetError::Content { path: path.into(), what }
    })
}

/// The last part of a path as text.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Gives keys, checks names and sizes, and makes the promise of the run.
pub(crate) fn assemble(path: &Path, draft: Draft, assumed: Assumed) -> Result<Dataset, DatasetError> {
    let Draft { pixel_size_nm, mut sections, mut remarks } = draft;
    sections.sort_by(|a, b| a.number.cmp(&b.number).then_with(|| a.name.cmp(&b.name)));
    let mut data = Dataset {
        plan: promise(path, pixel_size_nm, assumed, &mut remarks),
        sections: Vec::new(),
        paths: BTreeMap::new(),
        lost: BTreeMap::new(),
        remarks,
    };
    let mut size = None;
    let mut numbers = BTreeSet::new();
    for (serial, mut section) in sections.into_iter().enumerate() {
        if section.tiles.is_empty() {
            let what = format!("section {} has no tiles", section.name);
            return Err(DatasetError::Content { path: path.into(), what });
        }
        if !numbers.insert(section.number) {
            let what = format!("two sections have the number {}; give each its own", section.number);
            return Err(DatasetError::Content { path: path.into(), what });
        }
        seated(&mut section, &mut data.remarks);
        let size = uniform(&section, &mut size)?;
        let plan = data.planned(section, SerialIndex(serial as u32), size);
        data.sections.push(Arc::new(plan));
    }
    if data.sections.is_empty() {
        return Err(DatasetError::Content { path: path.into(), what: "no sections".into() });
    }
    data.measured(size.unwrap_or_default());
    Ok(data)
}

fn promise(path: &Path, pixel: Option<f64>, assumed: Assumed, remarks: &mut Vec<String>) -> RunPlan {
    if pixel.is_none() {
        remarks.push(format!("the data do not say their pixel size; {} nm is assumed", assumed.pixel_size_nm));
    }
    remarks.push(format!("the data do not say their section thickness; {} nm is assumed", assumed.thickness_nm));
    RunPlan {
        name: path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        beams: 1,
        tile_px: Xy::default(),
        pixel_size_nm: pixel.unwrap_or(assumed.pixel_size_nm),
        thickness_nm: assumed.thickness_nm,
        sections: 0,
        mfovs_per_section: 0,
        extent: BoxXy::default(),
        peak_tiles_per_second: 0.0,
    }
}

/// Tiles of a single beam are one stage stop each; of two files of one beam at one stop the later name is kept.
fn seated(section: &mut DraftSection, remarks: &mut Vec<String>) {
    if section.tiles.iter().any(|t| t.seat.is_none()) {
        for (i, tile) in section.tiles.iter_mut().enumerate() {
            tile.seat = Some(Seat { region: 0, mfov: i as u32, beam: 0 });
        }
        return;
    }
    section.tiles.sort_by(|a, b| (a.seat, &a.name).cmp(&(b.seat, &b.name)));
    let mut kept: Vec<DraftTile> = Vec::with_capacity(section.tiles.len());
    for tile in section.tiles.drain(..) {
        match kept.last_mut() {
            Some(last) if last.seat == tile.seat && last.name != tile.name => {
                remarks.push(format!(
                    "section {}: {} replaces {}, an earlier image of the same beam",
                    section.name, tile.name, last.name
                ));
                *last = tile;
            }
            _ => kept.push(tile),
        }
    }
    section.tiles = kept;
}

/// The one size of all tiles; taken from the first image that is there where the data do not say it.
fn uniform(section: &DraftSection, size: &mut Option<Xy<u32>>) -> Result<Xy<u32>, DatasetError> {
    if size.is_none() {
        let Some(first) = section.tiles.iter().map(|t| &t.path).find(|p| p.is_file()) else {
            let (tiles, first) = (section.tiles.len(), section.tiles[0].path.clone());
            return Err(DatasetError::NoImages { section: section.name.clone(), tiles, first });
        };
        *size = section.tiles[0].size;
        if size.is_none() {
            let bytes = std::fs::read(first).map_err(|source| DatasetError::Io { path: first.clone(), source })?;
            let image = decode(&bytes).map_err(|source| DatasetError::FirstImage { path: first.clone(), source })?;
            *size = Some(Xy::new(image.width() as u32, image.height() as u32));
        }
    }
    let wanted = size.unwrap_or_default();
    let other = section.tiles.iter().find_map(|t| t.size.filter(|s| *s != wanted).map(|s| (t, s)));
    if let Some((tile, got)) = other {
        return Err(DatasetError::Sizes { section: section.name.clone(), name: tile.name.clone(), got, wanted });
    }
    let mut names = BTreeSet::new();
    match section.tiles.iter().find(|t| !names.insert(&t.name)) {
        Some(t) => Err(DatasetError::Duplicate { section: section.name.clone(), name: t.name.clone() }),
        None => Ok(wanted),
    }
}

impl Dataset {
    fn planned(&mut self, section: DraftSection, serial: SerialIndex, size: Xy<u32>) -> SectionPlan {
        let id = SectionId(section.number);
        let mut mfovs: BTreeMap<MfovId, Vec<PlannedTile>> = BTreeMap::new();
        for tile in section.tiles {
            let seat = tile.seat.expect("every tile was given a seat");
            let mfov = MfovId::new(id, RegionId(seat.region), seat.mfov);
            let key = TileKey { mfov, beam: BeamId(seat.beam) };
            self.paths.insert(key, tile.path);
            mfovs.entry(mfov).or_default().push(PlannedTile { key, name: tile.name, nominal: tile.place, size });
        }
        let mfovs = mfovs.into_iter().map(|(id, mut tiles)| {
            tiles.sort_by_key(|t| t.key);
            MfovPlan { id, revision: 0, tiles }
        });
        SectionPlan { section: id, serial, name: section.name, version: 0, mfovs: mfovs.collect() }
    }

    /// Counts and extent of the promise, from its sections.
    fn measured(&mut self, size: Xy<u32>) {
        let most = |count: fn(&SectionPlan) -> usize| self.sections.iter().map(|s| count(s)).max().unwrap_or(0);
        let beams = self.sections.iter().flat_map(|s| s.tiles().map(|t| t.key.beam.0 + 1)).max().unwrap_or(1);
        let boxes = self.sections.iter().flat_map(|s| s.tiles()).map(|t| {
            let min = Xy::new(t.nominal.x.floor() as i64, t.nominal.y.floor() as i64);
            BoxXy { min, max: Xy::new(min.x + 1 + i64::from(t.size.x), min.y + 1 + i64::from(t.size.y)) }
        });
        self.plan.extent = boxes.reduce(|a, b| a.union(&b)).unwrap_or_default();
        self.plan.mfovs_per_section = most(|s| s.mfovs.len()) as u32;
        self.plan.sections = self.sections.len() as u32;
        self.plan.tile_px = size;
        self.plan.beams = hexagonal(beams);
    }
}

/// The least full hexagon of beams that holds this many: 1, 7, 19, 37, 61, 91, ...
fn hexagonal(beams: u16) -> u16 {
    (0..).map(|r: u16| 1 + 3 * r * (r + 1)).find(|n| *n >= beams).unwrap_or(beams)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A black 8-bit PNG, whatever the name says: the format is told by the bytes.
    pub(crate) fn write_image(path: &Path, width: u32, height: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut e = png::Encoder::new(std::fs::File::create(path).unwrap(), width, height);
        e.set_color(png::ColorType::Grayscale);
        e.set_depth(png::BitDepth::Eight);
        e.write_header().unwrap().write_image_data(&vec![0; (width * height) as usize]).unwrap();
    }

    /// A folder of the data for tests, or `None` with a message where it is absent.
    pub(crate) fn data_folder(name: &str) -> Option<PathBuf> {
        let near = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
        let root = std::env::var_os("KINESIN_DATA").map_or_else(|| PathBuf::from(near), PathBuf::from);
        let folder = root.join(name);
        if !folder.is_dir() {
            println!("skipped: no {}; set KINESIN_DATA to the folder of test data", folder.display());
            return None;
        }
        Some(folder)
    }

    /// Two sections of two stops of two beams, tiles of 8 x 6 px, the first stop's second beam lost.
    pub(crate) fn recorded_run(folder: &Path) {
        let size = Xy::new(8, 6);
        let write = |path: PathBuf, value: serde_json::Value| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        for z in 0..2u32 {
            let section = folder.join(format!("sections/{z:04}"));
            let id = SectionId(100 + z);
            let mfovs = (0..2).map(|m| {
                let mfov = MfovId::new(id, RegionId(0), m);
                let tiles = (0..2u16).map(|b| {
                    let name = format!("m{m}b{b}.png");
                    if (m, b) != (0, 1) {
                        write_image(&section.join("tiles").join(&name), 8, 6);
                    }
                    let key = TileKey { mfov, beam: BeamId(b) };
                    PlannedTile { key, name, nominal: Xy::new(f64::from(b) * 7.0, f64::from(m) * 5.0), size }
                });
                MfovPlan { id: mfov, revision: 0, tiles: tiles.collect() }
            });
            let plan = SectionPlan {
                section: id,
                serial: SerialIndex(z),
                name: format!("s{z}"),
                version: 0,
                mfovs: mfovs.collect(),
            };
            write(section.join("plan.json"), serde_json::to_value(plan).unwrap());
            let lost = BTreeMap::from([("m0b1.png", Reason::NotAcquired("beam off".into()))]);
            write(section.join("lost.json"), serde_json::to_value(lost).unwrap());
        }
        let mut data = assemble(Path::new("run"), draft(folder), Assumed::default()).unwrap();
        data.plan.sections = 2;
        write(folder.join("run.json"), serde_json::to_value(&data.plan).unwrap());
    }

    fn draft(folder: &Path) -> Draft {
        let path = folder.join("sections/0000/tiles/m0b0.png");
        let tile = DraftTile { name: "m0b0.png".into(), path, place: Xy::default(), size: None, seat: None };
        Draft { sections: vec![DraftSection { number: 0, name: "s".into(), tiles: vec![tile] }], ..Draft::default() }
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_what_would_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("TileSpec") && error.contains("MultiSEM"), "{error}");
        assert!(matches!(Dataset::open(&dir.path().join("absent.json")), Err(DatasetError::Io { .. })));
    }

    #[test]
    fn beams_fill_hexagons() {
        assert_eq!([1, 2, 7, 8, 61, 62, 91].map(hexagonal), [1, 7, 7, 19, 61, 91, 91]);
    }
}
