//! A recorded run, as `kinesin sim` writes it.
//!
//! ```text
//! DIR/run.json                              RunPlan
//! DIR/sections/<z, 4 digits>/plan.json      SectionPlan
//! DIR/sections/<z, 4 digits>/tiles/<name>   image files
//! DIR/sections/<z, 4 digits>/lost.json      {NAME: Reason} of the tiles that are not there; may be absent
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_stream::ids::SerialIndex;
use kinesin_stream::plan::{RunPlan, SectionPlan};
use kinesin_stream::tile::Reason;
use serde::de::DeserializeOwned;

use super::{Dataset, DatasetError, entries, file_name, text_of};

/// Opens the folder of a recorded run.
pub(crate) fn open(folder: &Path) -> Result<Dataset, DatasetError> {
    let plan: RunPlan = json(&folder.join("run.json"))?;
    let mut data =
        Dataset { plan, sections: Vec::new(), paths: BTreeMap::new(), lost: BTreeMap::new(), remarks: Vec::new() };
    // What is there counts, not how many are promised: a damaged number must cost neither time nor memory.
    let recorded = recorded(&folder.join("sections"), data.plan.sections)?;
    for z in &recorded {
        data.take(&folder.join("sections").join(format!("{z:04}")), SerialIndex(*z))?;
    }
    let missing = data.plan.sections as usize - recorded.len();
    if missing > 0 {
        let first: Vec<String> =
            (0..data.plan.sections).filter(|z| !recorded.contains(z)).take(10).map(|z| z.to_string()).collect();
        let more = if missing > first.len() { ", ..." } else { "" };
        let first = first.join(", ");
        data.remarks.push(format!("{missing} sections were promised and are not recorded: z = {first}{more}"));
    }
    if data.sections.is_empty() {
        let what = format!("{} sections promised, none found in sections/", data.plan.sections);
        return Err(DatasetError::Content { path: folder.into(), what });
    }
    Ok(data)
}

/// Sections of which there is a folder, in order.
fn recorded(folder: &Path, promised: u32) -> Result<BTreeSet<u32>, DatasetError> {
    if !folder.is_dir() {
        return Ok(BTreeSet::new());
    }
    let number = |path: &PathBuf| {
        let name = file_name(path);
        name.parse::<u32>().ok().filter(|z| *z < promised && name == format!("{z:04}") && path.is_dir())
    };
    Ok(entries(folder)?.iter().filter_map(number).collect())
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, DatasetError> {
    serde_json::from_str(&text_of(path)?).map_err(|e| DatasetError::Content { path: path.into(), what: e.to_string() })
}

impl Dataset {
    fn take(&mut self, folder: &Path, serial: SerialIndex) -> Result<(), DatasetError> {
        let path = folder.join("plan.json");
        let mut plan: SectionPlan = json(&path)?;
        let wrong = |what: String| DatasetError::Content { path: path.clone(), what };
        if plan.serial != serial {
            return Err(wrong(format!("serial is {}, its folder says {}", plan.serial.0, serial.0)));
        }
        if self.sections.iter().any(|s| s.section == plan.section) {
            return Err(wrong(format!("{} is there twice", plan.section)));
        }
        plan.mfovs.sort_by_key(|m| m.id);
        plan.mfovs.iter_mut().for_each(|m| m.tiles.sort_by_key(|t| t.key));
        let list = folder.join("lost.json");
        let mut lost: BTreeMap<String, Reason> = if list.is_file() { json(&list)? } else { BTreeMap::new() };
        let mut names = BTreeMap::new();
        for tile in plan.tiles() {
            if names.insert(tile.name.clone(), tile.key).is_some() {
                return Err(DatasetError::Duplicate { section: plan.name.clone(), name: tile.name.clone() });
            }
            if tile.size != self.plan.tile_px {
                let (name, got, wanted) = (tile.name.clone(), tile.size, self.plan.tile_px);
                return Err(DatasetError::Sizes { section: plan.name.clone(), name, got, wanted });
            }
            if Path::new(&tile.name).components().count() != 1 || tile.name.contains(['/', '\\']) || tile.name == ".." {
                return Err(wrong(format!("tile name {:?} is not a plain file name", tile.name)));
            }
            let known = self.paths.contains_key(&tile.key) || self.lost.contains_key(&tile.key);
            if known || tile.key.mfov.section != plan.section {
                return Err(wrong(format!("tile {} has a key of another tile: {}", tile.name, tile.key)));
            }
            match lost.remove(&tile.name) {
                Some(reason) => drop(self.lost.insert(tile.key, reason)),
                None => drop(self.paths.insert(tile.key, image(folder, &tile.name))),
            }
        }
        if let Some(name) = lost.keys().next() {
            return Err(DatasetError::Content { path: list, what: format!("{name} is lost but was not promised") });
        }
        self.sections.push(Arc::new(plan));
        Ok(())
    }
}

fn image(folder: &Path, name: &str) -> PathBuf {
    folder.join("tiles").join(name)
}
