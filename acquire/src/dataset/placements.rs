//! Solved places out of Render TileSpecs: where every pixel of a tile lies, with the lens.
//!
//! Stiff transforms and lens polynomials are applied in their order; what any other class does to a tile is not guessed.

use std::collections::BTreeMap;
use std::path::Path;

use kinesin_stream::geometry::Xy;
use kinesin_stream::lens::LensPolynomial;
use kinesin_stream::map::{Affine, Grid, Map, TileToSection};
use serde_json::Value;

use super::tilespec::affine;
use super::{DatasetError, text_of};

/// Nodes along each side of the grid that a map with a lens is given at.
const NODES: usize = 33;

enum Step {
    Stiff(Affine),
    Lens(Box<LensPolynomial>),
}

impl Step {
    fn apply(&self, p: Xy<f64>) -> Xy<f64> {
        match self {
            Self::Stiff(a) => a.apply(p),
            Self::Lens(l) => l.apply(p),
        }
    }
}

/// The map of every tile of a list of tile specifications, by `tileId`, or by the image's file name where there is none.
///
/// # Errors
/// Where the file cannot be read, is no such list, or holds a transform of another class.
pub fn placements(path: &Path) -> Result<BTreeMap<String, TileToSection>, DatasetError> {
    let wrong = |what: String| DatasetError::Content { path: path.into(), what };
    let specs: Vec<Value> = serde_json::from_str(&text_of(path)?).map_err(|e| wrong(e.to_string()))?;
    let mut maps = BTreeMap::new();
    for spec in &specs {
        let image = || spec["mipmapLevels"]["0"]["imageUrl"].as_str().and_then(|u| u.rsplit('/').next());
        let name = spec["tileId"].as_str().or_else(image).ok_or_else(|| wrong("a tile without a name".into()))?;
        let map = map_of(spec).map_err(|what| wrong(format!("tile {name}: {what}")))?;
        maps.insert(name.to_owned(), TileToSection(map));
    }
    Ok(maps)
}

fn map_of(spec: &Value) -> Result<Map, String> {
    let mut steps = Vec::new();
    collect(&spec["transforms"], &mut steps)?;
    let stiff = steps.iter().try_fold(Affine::IDENTITY, |map, step| match step {
        Step::Stiff(next) => Some(map.then(next)),
        Step::Lens(_) => None,
    });
    if let Some(affine) = stiff {
        return Ok(Map::Affine(affine));
    }
    let side = |name: &str| {
        let length = spec[name].as_f64().filter(|v| *v >= 2.0).ok_or_else(|| format!("no {name}"))?;
        Ok::<_, String>((0..NODES).map(|k| (length - 1.0) * k as f64 / (NODES - 1) as f64).collect::<Vec<f64>>())
    };
    let bent = |p| steps.iter().fold(p, |p, step| step.apply(p));
    Grid::from_fn(side("width")?, side("height")?, bent).map(Map::Grid).map_err(|e| e.to_string())
}

fn collect(value: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
    if let Some(list) = value.as_array().or_else(|| value.get("specList")?.as_array()) {
        return list.iter().try_for_each(|v| collect(v, steps));
    }
    let Some(class) = value.get("className").and_then(Value::as_str) else {
        return Err("a transform without a class of its own; write it out in the tile".into());
    };
    let short = class.rsplit('.').next().unwrap_or(class);
    let data = value.get("dataString").and_then(Value::as_str).unwrap_or_default();
    steps.push(match (affine(short, data)?, short) {
        (Some(stiff), _) => Step::Stiff(stiff),
        (None, "NonLinearCoordinateTransform") => {
            Step::Lens(Box::new(LensPolynomial::parse(data).map_err(|e| e.to_string())?))
        }
        (None, other) => return Err(format!("a {other}; only stiff transforms and lens polynomials are read")),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::data_folder;
    use super::*;

    fn unpacked(name: &str) -> Option<(tempfile::TempDir, std::path::PathBuf)> {
        let packed = std::fs::read(data_folder("acquisition_metadata")?.join(name)).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed.as_slice()), &mut text).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiles.json");
        std::fs::write(&file, text).unwrap();
        Some((dir, file))
    }

    #[test]
    fn lenses_of_a_real_camera_are_read_and_bend_by_tens_of_pixels_at_most() {
        for (name, tiles) in [("raw_tile_specs_for_em_montage", 4), ("em_montage_qc_post_tilespecs", 46)] {
            let Some((_dir, file)) = unpacked(&format!("temca/{name}.json.gz")) else { return };
            let maps = placements(&file).unwrap();
            assert_eq!(maps.len(), tiles);
            for map in maps.values() {
                let Map::Grid(grid) = &map.0 else { panic!("{name} has lenses") };
                let last = Xy::new(grid.xs()[NODES - 1], grid.ys()[NODES - 1]);
                let span = grid.node(NODES - 1, NODES - 1) - grid.node(0, 0);
                assert!((span.norm() / last.norm() - 1.0).abs() < 0.05, "{name}: {span:?} of {last:?}");
            }
        }
    }

    #[test]
    fn a_real_lens_is_written_back_as_the_same_numbers() {
        let Some((_dir, file)) = unpacked("temca/raw_tile_specs_for_em_montage.json.gz") else { return };
        let specs: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let data = specs[0]["transforms"]["specList"][0]["dataString"].as_str().unwrap();
        let lens = LensPolynomial::parse(data).unwrap();
        assert_eq!(LensPolynomial::parse(&lens.to_string()).unwrap(), lens);
        // The same polynomial is found again from its places.
        let again = LensPolynomial::fit(5, Xy::new(3840, 3840), |p| lens.apply(p));
        for p in [Xy::new(0.0, 0.0), Xy::new(3839.0, 120.0), Xy::new(1000.5, 3000.25)] {
            assert!((again.apply(p) - lens.apply(p)).norm() < 1e-4, "{p:?}");
        }
    }

    #[test]
    fn a_transform_of_another_class_is_named_with_its_tile() {
        let Some((_dir, file)) = unpacked("msem/iarpa_W01_Sec001_montaged_tilespec.json.gz") else { return };
        let error = placements(&file).unwrap_err().to_string();
        assert!(error.contains("tile ") && error.contains("PointsTransformModel"), "{error}");
    }
}
