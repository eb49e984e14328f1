//! Ground truth of a simulated acquisition: where every tile and section really lies, what is broken, and what every voxel
//! of a result really shows.
//!
//! ```text
//! DIR/truth/truth.json                                {"plan": RunPlan, "reduction": of labels and classes}
//! DIR/truth/sections/<z, 4 digits>/placements.json   {"tiles": {NAME: MAP}}                         tile px -> section px
//! DIR/truth/alignment.json                            {"direction": "forward", "sections": {NAME: MAP}}   -> volume px
//! DIR/truth/faults.json                               what is broken, section by section, tile by tile
//! DIR/truth/labels  DIR/truth/classes                 labels (precomputed) and classes (OME-Zarr) of the tissue, reduced
//! ```
//! Tile maps are exact. Section maps are exact but at folds and cracks (see [`scope::section`](crate::scope::section));
//! missing sections have none. Volume pixels are those of the tissue in pixels of the scope. How far a result is from the
//! truth is known only up to where the result lies as a whole: scores take out one affine map first.

pub mod shown;
pub mod stored;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kinesin_stream::geometry::{BoxXy, VoxelSize, Xy, Zyx, reduced_to_full};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::{Map, SectionToVolume, TileToSection};
use kinesin_stream::volume::{Durability, ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce};
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::scope::Scene;
use crate::scope::damage::TrueDamage;
use crate::scope::scene::TileFaults;
use crate::scope::source::SimError;

/// Side of a chunk of the truth's volumes, voxels.
const CHUNK: usize = 256;
/// Rows of the truth's volumes made at once.
const BAND: usize = 64;

/// Everything that is wrong with one section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SectionFaults {
    /// Its place along z.
    pub serial: SerialIndex,
    /// Damage to the section.
    pub damage: Vec<TrueDamage>,
    /// Tiles with anything wrong, by name.
    pub tiles: BTreeMap<String, TileFaults>,
}

/// The truth about a scene.
#[derive(Clone)]
pub struct Truth {
    scene: Arc<Scene>,
}

impl Truth {
    /// The truth about this scene.
    pub fn of(scene: Arc<Scene>) -> Self {
        Self { scene }
    }

    /// The scene it is about.
    pub fn scene(&self) -> &Arc<Scene> {
        &self.scene
    }

    /// Tile pixel to section pixel of every promised tile of a section, retakes too, by name; exact.
    pub fn placements(&self, serial: SerialIndex) -> BTreeMap<String, TileToSection> {
        let plan = self.scene.whole_plan(serial);
        plan.tiles().map(|t| (t.name.clone(), TileToSection(Map::Grid(self.scene.tile_map(t.key))))).collect()
    }

    /// Section pixel to volume pixel.
    pub fn alignment(&self, serial: SerialIndex) -> SectionToVolume {
        self.scene.section_map(serial).to_map()
    }

    /// What is wrong with a section and its tiles.
    pub fn faults(&self, serial: SerialIndex) -> SectionFaults {
        let plan = self.scene.whole_plan(serial);
        let tiles = plan.tiles().map(|t| (t.name.clone(), self.scene.faults(t.key))).filter(|(_, f)| f.any()).collect();
        SectionFaults { serial, damage: self.scene.damage(serial), tiles }
    }

    /// Size of a section of the truth's volumes at this reduction, voxels; x and y.
    pub fn volume_size(&self, reduction: u32) -> Xy<usize> {
        let (shape, scale) = (self.scene.tissue().shape(), self.scene.scale());
        let side = |voxels: usize, scale: f64| (voxels as f64 / scale / f64::from(reduction)).floor().max(1.0) as usize;
        Xy::new(side(shape.x, scale.x), side(shape.y, scale.y))
    }

    /// The tissue's labels in the volume frame, voxels `reduction` volume pixels wide, nearest voxel of the tissue; `None`
    /// where it has no labels.
    pub fn labels(&self, serial: SerialIndex, reduction: u32) -> Option<Array2<u64>> {
        let z = self.scene.tissue_z(serial);
        self.reduced(reduction, |rect| self.scene.tissue().labels(z, rect))
    }

    /// As [`Self::labels`], of the tissue's classes.
    pub fn classes(&self, serial: SerialIndex, reduction: u32) -> Option<Array2<u8>> {
        let z = self.scene.tissue_z(serial);
        self.reduced(reduction, |rect| self.scene.tissue().classes(z, rect))
    }

    /// Writes all of it below `dir/truth`; labels and classes reduced `reduction` times in the plane.
    ///
    /// # Errors
    /// Where a file cannot be written or the recorded tissue cannot be read.
    pub fn write(&self, dir: &Path, reduction: u32) -> Result<(), SimError> {
        let root = dir.join("truth");
        let (mut alignments, mut faults) = (BTreeMap::new(), BTreeMap::new());
        for serial in (0..self.scene.plan().sections).map(SerialIndex) {
            let name = self.scene.section_plan(serial).name;
            let file = root.join("sections").join(format!("{:04}", serial.0)).join("placements.json");
            write_json(&file, &json!({"tiles": self.placements(serial)}))?;
            if !self.scene.is_missing(serial) {
                alignments.insert(name.clone(), self.alignment(serial));
            }
            faults.insert(name, self.faults(serial));
        }
        write_json(&root.join("alignment.json"), &json!({"direction": "forward", "sections": alignments}))?;
        write_json(&root.join("faults.json"), &json!({"sections": faults}))?;
        write_json(&root.join("truth.json"), &json!({"plan": self.scene.plan(), "reduction": reduction}))?;
        self.write_labels(&root.join("labels"), reduction)?;
        self.write_classes(&root.join("classes"), reduction)?;
        self.scene.check()
    }

    fn write_labels(&self, path: &Path, reduction: u32) -> Result<(), SimError> {
        if self.labels(SerialIndex(0), reduction).is_none() {
            return Ok(());
        }
        let (shape, voxel_size) = self.volume(reduction);
        let chunk = Zyx::new(1, shape.y.min(CHUNK), shape.x.min(CHUNK));
        let spec = LabelSpec { shape, voxel_size, origin: Zyx::default(), chunk };
        let writer = LabelWriter::create(path, spec)?.with_durability(Durability::Cached);
        for serial in (0..self.scene.plan().sections).map(SerialIndex) {
            let Some(labels) = self.labels(serial, reduction) else { continue };
            writer.write_box(Zyx::new(serial.0 as usize, 0, 0), labels.view().insert_axis(Axis(0)))?;
        }
        Ok(())
    }

    fn write_classes(&self, path: &Path, reduction: u32) -> Result<(), SimError> {
        if self.classes(SerialIndex(0), reduction).is_none() {
            return Ok(());
        }
        let (shape, voxel_size) = self.volume(reduction);
        let spec = ImageSpec { shape, voxel_size, levels: 1, chunk: Xy::new(CHUNK, CHUNK), reduce: Reduce::Mode };
        let writer = ImageWriter::create(path, spec)?.with_durability(Durability::Cached);
        for serial in (0..self.scene.plan().sections).map(SerialIndex) {
            let Some(classes) = self.classes(serial, reduction) else { continue };
            writer.write_section(serial.0 as usize, classes.view())?;
        }
        Ok(())
    }

    fn volume(&self, reduction: u32) -> (Zyx<usize>, VoxelSize) {
        let (size, plan) = (self.volume_size(reduction), self.scene.plan());
        let side = plan.pixel_size_nm * f64::from(reduction);
        (Zyx::new(plan.sections as usize, size.y, size.x), VoxelSize(Zyx::new(plan.thickness_nm, side, side)))
    }

    fn reduced<T: Copy>(&self, reduction: u32, read: impl Fn(BoxXy) -> Option<Array2<T>>) -> Option<Array2<T>> {
        let (size, shape, scale) = (self.volume_size(reduction), self.scene.tissue().shape(), self.scene.scale());
        let voxel = |i: usize, scale: f64, side: usize| {
            let volume = reduced_to_full(i as f64, f64::from(reduction));
            (reduced_to_full(volume, scale).round().max(0.0) as usize).min(side - 1)
        };
        let columns: Vec<usize> = (0..size.x).map(|x| voxel(x, scale.x, shape.x)).collect();
        let rows: Vec<usize> = (0..size.y).map(|y| voxel(y, scale.y, shape.y)).collect();
        let mut all = Vec::with_capacity(size.x * size.y);
        for band in rows.chunks(BAND) {
            let (first, last) = (band[0], band[band.len() - 1]);
            let rect = BoxXy { min: Xy::new(0, first as i64), max: Xy::new(shape.x as i64, last as i64 + 1) };
            let values = read(rect)?;
            all.extend(
                band.iter().flat_map(|&row| columns.iter().map(|&c| values[(row - first, c)]).collect::<Vec<_>>()),
            );
        }
        Some(Array2::from_shape_vec((size.y, size.x), all).expect("one value a voxel"))
    }
}

/// Writes a file and the folders above it.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SimError> {
    let text = serde_json::to_vec(value).expect("plans, maps and faults have text keys and finite numbers");
    write_file(path, &text)
}

/// Writes a file and the folders above it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), SimError> {
    let failed = |source| SimError::Write { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, bytes).map_err(failed)
}

#[cfg(test)]
mod tests;
