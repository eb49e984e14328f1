//! `DIR/sections/<z>/exchange/`: a stitched section in the files that other programs read.
//!
//! ```text
//! feabas.txt            FEABAS coordinate file           tile places: the solved centre, less half a tile
//! trakem2.txt           TrakEM2 import list              the same
//! multisem.txt          full_image_coordinates.txt       the same
//! render_matches.json   Render point matches             of all pairs that matched
//! ```
//! Render TileSpecs with lens and affine are in `montage.json` beside it, exact maps in `placements.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kinesin_acquire::dataset::lists::{Listed, feabas, multisem, trakem2};
use kinesin_stages::montage::Placements;
use kinesin_stages::pointmatch::PairMatches;
use kinesin_stages::publish::{SectionFiles, read_json, render_matches, write_json};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::TileKey;
use kinesin_stream::plan::SectionPlan;
use serde::Deserialize;
use serde_json::Value;

use crate::outcome::Failure;

/// The part of `matches.json` that is needed here.
#[derive(Deserialize)]
struct Evidence {
    pairs: Vec<(PairMatches, Value)>,
}

/// Writes the files of all sections that have places.
pub(crate) fn write(
    out: &Path,
    sections: &[Arc<SectionPlan>],
    paths: &BTreeMap<TileKey, PathBuf>,
    pixel_nm: f64,
) -> Result<(), Failure> {
    for plan in sections {
        let files = SectionFiles::new(out, plan.serial.0);
        let Some(placed) = read_json::<Placements>(&files.placements()).map_err(Failure::fault)? else { continue };
        let folder = files.placements().with_file_name("exchange");
        std::fs::create_dir_all(&folder).map_err(Failure::fault)?;
        let tiles: Vec<Listed> = plan
            .tiles()
            .filter_map(|t| {
                let map = &placed.tiles.get(&t.name)?.0;
                let path = std::path::absolute(paths.get(&t.key)?).ok()?;
                let middle = Xy::new((f64::from(t.size.x) - 1.0) / 2.0, (f64::from(t.size.y) - 1.0) / 2.0);
                Some(Listed { path, place: map.apply(middle) - middle })
            })
            .collect();
        let size = plan.tiles().next().map_or(Xy::new(0, 0), |t| t.size);
        let texts = [
            ("feabas.txt", feabas(&tiles, pixel_nm, size)),
            ("trakem2.txt", trakem2(&tiles, plan.serial.0)),
            ("multisem.txt", multisem(&tiles)),
        ];
        for (name, text) in texts {
            std::fs::write(folder.join(name), text).map_err(Failure::fault)?;
        }
        if let Some(evidence) = read_json::<Evidence>(&files.evidence()).map_err(Failure::fault)? {
            let pairs: Vec<PairMatches> = evidence.pairs.into_iter().map(|(pair, _)| pair).collect();
            write_json(&folder.join("render_matches.json"), &render_matches(plan, &pairs)).map_err(Failure::fault)?;
        }
    }
    Ok(())
}
