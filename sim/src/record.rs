//! The simulated acquisition as a recorded data set, with its truth.
//!
//! ```text
//! DIR/run.json                                RunPlan
//! DIR/sections/<z, 4 digits>/plan.json        SectionPlan
//! DIR/sections/<z, 4 digits>/tiles/<name>     8-bit TIFF, not compressed
//! DIR/sections/<z, 4 digits>/lost.json        {NAME: Reason} of the tiles that are not there
//! DIR/truth/..                                see [`truth`](crate::truth)
//! ```
//! Only what reaches the disk is recorded: a tile that came late or twice is there once. Retakes are in the plan beside what
//! they replace, with the version of the result that they belong to.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use kinesin_stream::ids::SerialIndex;
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{PlannedTile, SectionPlan};
use kinesin_stream::tile::Reason;
use rayon::prelude::*;
use tiff::encoder::{TiffEncoder, colortype::Gray8};

use crate::scope::Scene;
use crate::scope::source::SimError;
use crate::truth::{Truth, write_file, write_json};

/// Writes the whole acquisition and its truth into `dir`; `progress` hears of every section when it is on disk. Labels and
/// classes are reduced `truth_reduction` times in the plane.
///
/// # Errors
/// Where a file cannot be written or the recorded tissue cannot be read.
pub fn record(
    scene: &Arc<Scene>,
    dir: &Path,
    truth_reduction: u32,
    mut progress: impl FnMut(&SectionPlan),
) -> Result<(), SimError> {
    write_json(&dir.join("run.json"), scene.plan())?;
    for serial in (0..scene.plan().sections).map(SerialIndex) {
        progress(&record_section(scene, serial, dir)?);
    }
    Truth::of(scene.clone()).write(dir, truth_reduction)
}

fn record_section(scene: &Scene, serial: SerialIndex, dir: &Path) -> Result<SectionPlan, SimError> {
    let folder = dir.join("sections").join(format!("{:04}", serial.0));
    let plan = scene.whole_plan(serial);
    write_json(&folder.join("plan.json"), &plan)?;
    let missing = scene.is_missing(serial);
    let tiles: Vec<&PlannedTile> = plan.tiles().collect();
    let lost = |tile: &PlannedTile| {
        let not_acquired = || Reason::NotAcquired("the beam gave no image (simulated)".into());
        if missing { Some(Reason::SectionMissing) } else { scene.faults(tile.key).lost.then(not_acquired) }
    };
    let written: Vec<Option<(String, Reason)>> = tiles
        .par_iter()
        .map(|tile| {
            if let Some(reason) = lost(tile) {
                return Ok(Some((tile.name.clone(), reason)));
            }
            write_file(&folder.join("tiles").join(&tile.name), &tiff_bytes(&scene.tile(tile.key)))?;
            Ok::<_, SimError>(None)
        })
        .collect::<Result<_, _>>()?;
    scene.check()?;
    let lost: BTreeMap<String, Reason> = written.into_iter().flatten().collect();
    write_json(&folder.join("lost.json"), &lost)?;
    Ok(plan)
}

/// The image as an 8-bit grey TIFF, not compressed.
pub fn tiff_bytes(pixels: &Pixels) -> Vec<u8> {
    let mut file = Cursor::new(Vec::with_capacity(pixels.data().len() + 512));
    TiffEncoder::new(&mut file)
        .and_then(|mut e| e.write_image::<Gray8>(pixels.width() as u32, pixels.height() as u32, pixels.data()))
        .expect("an image of its own size can be written to memory");
    file.into_inner()
}

#[cfg(test)]
mod tests {
    use kinesin_stream::geometry::Xy;
    use kinesin_stream::plan::RunPlan;

    use super::*;
    use crate::scope::tests::{CodedTissue, small};

    #[test]
    fn every_promised_tile_is_on_disk_or_listed_as_lost_and_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = small();
        config.faults.lost = 0.3;
        config.damage.missing = 0.0;
        let scene = Scene::with_tissue(config, Arc::new(CodedTissue::new(2, 300, 320))).unwrap();
        let mut heard = 0;
        record(&scene, dir.path(), 2, |_| heard += 1).unwrap();
        assert_eq!(heard, 2);
        let json = |path: &str| std::fs::read(dir.path().join(path)).unwrap();
        assert_eq!(&serde_json::from_slice::<RunPlan>(&json("run.json")).unwrap(), scene.plan());
        let plan: SectionPlan = serde_json::from_slice(&json("sections/0001/plan.json")).unwrap();
        let lost: BTreeMap<String, Reason> = serde_json::from_slice(&json("sections/0001/lost.json")).unwrap();
        assert!(!lost.is_empty() && lost.len() < plan.tiles().count());
        for tile in plan.tiles() {
            let path = dir.path().join("sections/0001/tiles").join(&tile.name);
            assert_ne!(path.exists(), lost.contains_key(&tile.name), "{}", tile.name);
            if path.exists() {
                let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
                let mut decoder = tiff::decoder::Decoder::new(file).unwrap();
                assert_eq!(decoder.dimensions().unwrap(), (tile.size.x, tile.size.y));
                let tiff::decoder::DecodingResult::U8(grey) = decoder.read_image().unwrap() else { panic!("8 bit") };
                assert_eq!(grey, scene.tile(tile.key).data());
            }
        }
        assert_eq!(scene.plan().tile_px, Xy::new(96, 84));
        for file in ["alignment.json", "faults.json", "sections/0000/placements.json", "labels/info"] {
            assert!(dir.path().join("truth").join(file).exists(), "{file}");
        }
    }
}
