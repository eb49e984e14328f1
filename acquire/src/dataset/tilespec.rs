//! Render TileSpec JSON: a list of tiles, each with an image, a size and transforms from its pixels to the section.
//!
//! The nominal place is where the affine transforms take tile pixel (0, 0), one after the other. Transforms that only bend a
//! tile (lens, start of scan, a finished montage's mesh) are left out with a remark: finding those is the montage's work. A list
//! may hold several sections (by `z`); a folder holds one section a file where `z` is absent. Also read: the simple form
//! `{"resolution_nm": nm, "tiles": [{"name", "file", "x", "y", "width", "height"}]}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::Affine;
use serde::Deserialize;
use serde_json::Value;

use super::multisem::mfov_and_beam;
use super::{DatasetError, Draft, DraftSection, DraftTile, Seat, file_name, text_of};

/// How far the linear part of a nominal transform may be from the identity: nominal places cannot say more turn than that.
const LINEAR_LIMIT: f64 = 0.2;

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Specs(Vec<Spec>),
    Simple { resolution_nm: f64, tiles: Vec<Simple> },
}

#[derive(Deserialize)]
struct Simple {
    name: String,
    file: String,
    x: f64,
    y: f64,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    tile_id: Option<String>,
    z: Option<f64>,
    layer: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
    #[serde(default)]
    layout: Layout,
    mipmap_levels: BTreeMap<String, Mipmap>,
    #[serde(default)]
    transforms: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    section_id: Option<Value>,
    pixelsize: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mipmap {
    image_url: String,
}

/// Reads files, in order.
pub(crate) fn read(files: &[PathBuf]) -> Result<Draft, DatasetError> {
    let mut draft = Draft::default();
    let mut sections: BTreeMap<u32, DraftSection> = BTreeMap::new();
    let mut bent: BTreeMap<String, usize> = BTreeMap::new();
    for (number, path) in files.iter().enumerate() {
        let wrong = |what: String| DatasetError::Content { path: path.clone(), what };
        let document = serde_json::from_str(&text_of(path)?)
            .map_err(|e| wrong(format!("not a list of tile specifications: {e}; wanted [{{\"tileId\": .., \"mipmapLevels\": .., \"transforms\": ..}}]")))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let stem = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match document {
            Document::Simple { resolution_nm, tiles } => {
                draft.pixel_size_nm = Some(resolution_nm);
                let tiles = tiles.into_iter().map(|t| t.draft(base)).collect();
                sections.insert(number as u32, DraftSection { number: number as u32, name: stem, tiles });
            }
            Document::Specs(specs) => {
                for spec in specs {
                    let z = spec.section().unwrap_or(number as f64);
                    if z < 0.0 || z.fract() != 0.0 || z > f64::from(u32::MAX) {
                        return Err(wrong(format!("z = {z}; wanted a whole number from 0")));
                    }
                    draft.pixel_size_nm = draft.pixel_size_nm.or(spec.layout.pixelsize);
                    let name = spec.name_of_section(&stem, files.len());
                    let tile = spec.draft(base, &mut bent).map_err(wrong)?;
                    let empty = || DraftSection { number: z as u32, name, tiles: Vec::new() };
                    sections.entry(z as u32).or_insert_with(empty).tiles.push(tile);
                }
            }
        }
    }
    for (class, tiles) in bent {
        draft.remarks.push(format!("{tiles} tiles have a {class}, which bends a tile; nominal places leave it out"));
    }
    draft.sections = sections.into_values().collect();
    Ok(draft)
}

impl Simple {
    fn draft(self, base: &Path) -> DraftTile {
        let size = Some(Xy::new(self.width, self.height));
        DraftTile { name: self.name, path: base.join(self.file), place: Xy::new(self.x, self.y), size, seat: None }
    }
}

impl Spec {
    fn section(&self) -> Option<f64> {
        let id = self.layout.section_id.as_ref();
        let id = id.and_then(|v| v.as_f64().or_else(|| v.as_str()?.parse().ok()));
        self.z.or(self.layer).or(id)
    }

    /// The file's name where each section has a file of its own, else the section's number.
    fn name_of_section(&self, stem: &str, files: usize) -> String {
        match self.section() {
            Some(z) if files == 1 => format!("{z}"),
            _ => stem.to_string(),
        }
    }

    fn draft(self, base: &Path, bent: &mut BTreeMap<String, usize>) -> Result<DraftTile, String> {
        let url = self.mipmap_levels.get("0").map(|m| m.image_url.as_str()).unwrap_or_default();
        let file = url.strip_prefix("file://").or_else(|| url.strip_prefix("file:")).unwrap_or(url);
        let path = base.join(file);
        let image = file_name(&path);
        let name = self.tile_id.unwrap_or_else(|| image.clone());
        if file.is_empty() || file.contains("://") {
            return Err(format!("tile {name}: level 0 has imageUrl {url:?}; wanted a file on this machine"));
        }
        let mut map = None;
        compose(&self.transforms, &mut map, bent).map_err(|e| format!("tile {name}: {e}"))?;
        let map = map.ok_or_else(|| format!("tile {name}: no affine transform; wanted one for its nominal place"))?;
        let [[a, b, x], [c, d, y]] = map.rows;
        if [a - 1.0, b, c, d - 1.0].iter().any(|v| v.abs() > LINEAR_LIMIT) {
            return Err(format!(
                "tile {name}: its affine transform turns or scales by [[{a}, {b}], [{c}, {d}]]; nominal places are shifts: take what all \
                 tiles have in common out of the transforms"
            ));
        }
        let size = self.width.zip(self.height).map(|(w, h)| Xy::new(w as u32, h as u32));
        let seat = mfov_and_beam(&image).map(|(mfov, beam)| Seat { region: 0, mfov, beam });
        Ok(DraftTile { name, path, place: Xy::new(x, y), size, seat })
    }
}

/// Adds the affine part of a transform, a list of them, or `{"specList": [..]}`.
fn compose(value: &Value, map: &mut Option<Affine>, bent: &mut BTreeMap<String, usize>) -> Result<(), String> {
    if let Some(list) = value.as_array().or_else(|| value.get("specList")?.as_array()) {
        return list.iter().try_for_each(|v| compose(v, map, bent));
    }
    if value.is_null() {
        return Ok(());
    }
    let Some(class) = value.get("className").and_then(Value::as_str) else {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or("transform");
        *bent.entry(format!("{kind} without a class of its own")).or_default() += 1;
        return Ok(());
    };
    let short = class.rsplit('.').next().unwrap_or(class);
    let data = value.get("dataString").and_then(Value::as_str).unwrap_or_default();
    match affine(short, data)? {
        Some(next) => *map = Some(map.map_or(next, |m| m.then(&next))),
        None => *bent.entry(short.to_string()).or_default() += 1,
    }
    Ok(())
}

/// A transform of one of Render's stiff classes, `None` for any other class.
pub(super) fn affine(class: &str, data: &str) -> Result<Option<Affine>, String> {
    let numbers: Option<Vec<f64>> =
        data.split_whitespace().map(|n| n.parse().ok().filter(|v: &f64| v.is_finite())).collect();
    Ok(Some(match (class, numbers.as_deref()) {
        ("AffineModel2D", Some(&[a, c, b, d, x, y])) => Affine { rows: [[a, b, x], [c, d, y]] },
        ("TranslationModel2D", Some(&[x, y])) => Affine::translation(Xy::new(x, y)),
        ("RigidModel2D", Some(&[turn, x, y])) => shifted(turn, 1.0, x, y),
        ("SimilarityModel2D", Some(&[scale, turn, x, y])) => shifted(turn, scale, x, y),
        ("AffineModel2D" | "TranslationModel2D" | "RigidModel2D" | "SimilarityModel2D", _) => {
            return Err(format!("{class} with dataString {data:?}; wanted its numbers between blanks"));
        }
        _ => return Ok(None),
    }))
}

fn shifted(turn: f64, scale: f64, x: f64, y: f64) -> Affine {
    let (s, c) = (scale * turn.sin(), scale * turn.cos());
    Affine { rows: [[c, -s, x], [s, c, y]] }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{data_folder, write_image};
    use super::super::{Dataset, DatasetError};
    use super::*;

    fn spec(id: &str, z: u32, transforms: &str) -> String {
        format!(
            r#"{{"tileId": "{id}", "z": {z}.0, "width": 12.0, "height": 9.0, "layout": {{"sectionId": "{z}.0", "pixelsize": 4.0}},
            "mipmapLevels": {{"0": {{"imageUrl": "file:images/{id}.png"}}}}, "transforms": {transforms}}}"#
        )
    }

    const SHIFT: &str = r#"{"type": "list", "specList": [
        {"className": "org.janelia.alignment.transform.ExponentialFunctionOffsetTransform", "dataString": "3.16,0.01,0.25,0"},
        {"className": "mpicbg.trakem2.transform.TranslationModel2D", "dataString": "100 -5"},
        {"className": "mpicbg.trakem2.transform.AffineModel2D", "dataString": "1.01 0.0 0.02 1.0 3 4"}]}"#;

    #[test]
    fn transforms_are_composed_in_order_and_sections_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[{}, {}, {}]", spec("b", 7, SHIFT), spec("a", 3, SHIFT), spec("c", 7, SHIFT));
        let file = dir.path().join("tiles.json");
        std::fs::write(&file, &text).unwrap();
        write_image(&dir.path().join("images/a.png"), 12, 9);
        let data = Dataset::open(&file).unwrap();
        assert_eq!(data.sections().iter().map(|s| (s.section.0, s.serial.0)).collect::<Vec<_>>(), [(3, 0), (7, 1)]);
        let tile = data.sections()[0].tiles().next().unwrap();
        // AffineModel2D lists columns: x' = 1.01 x + 0.02 y + 3 of the shifted (100, -5).
        assert!((tile.nominal.x - (101.0 - 0.1 + 3.0)).abs() < 1e-9 && (tile.nominal.y + 1.0).abs() < 1e-9);
        assert_eq!(data.path(tile.key).unwrap(), dir.path().join("images/a.png"));
        assert_eq!((data.plan().pixel_size_nm, data.sections()[1].mfovs.len()), (4.0, 2));
        assert!(data.remarks().iter().any(|r| r.contains("3 tiles have a ExponentialFunctionOffsetTransform")));
    }

    #[test]
    fn mistakes_are_told_with_the_tile() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiles.json");
        write_image(&dir.path().join("images/a.png"), 12, 9);
        let turned = SHIFT.replace("1.01 0.0 0.02 1.0", "0 1 -1 0");
        let open = |text: String| {
            std::fs::write(&file, text).unwrap();
            Dataset::open(&file).unwrap_err()
        };
        assert!(matches!(open(format!("[{0}, {0}]", spec("a", 1, SHIFT))), DatasetError::Duplicate { .. }));
        assert!(matches!(open(format!("[{}]", spec("b", 1, SHIFT))), DatasetError::NoImages { .. }));
        let other = spec("b", 1, SHIFT).replace("12.0", "13.0");
        assert!(matches!(open(format!("[{}, {other}]", spec("a", 1, SHIFT))), DatasetError::Sizes { .. }));
        for (text, told) in [
            (format!("[{}]", spec("a", 1, &turned)), "tile a: its affine transform turns"),
            (format!("[{}]", spec("a", 1, "[]")), "tile a: no affine transform"),
            (
                format!("[{}]", spec("a", 1, &SHIFT.replace("100 -5", "100"))),
                "tile a: TranslationModel2D with dataString \"100\"",
            ),
            ("{}".into(), "not a list of tile specifications"),
        ] {
            let error = open(text).to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn lists_of_real_acquisitions_are_read() {
        let Some(folder) = data_folder("acquisition_metadata") else { return };
        for (name, tiles) in
            [("temca/raw_tile_specs_for_em_montage", 4), ("msem/iarpa_W01_Sec001_montaged_tilespec", 61)]
        {
            let packed = std::fs::read(folder.join(format!("{name}.json.gz"))).unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed.as_slice()), &mut text).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("tiles.json");
            std::fs::write(&file, text).unwrap();
            let draft = read(&[file]).unwrap();
            let count: usize = draft.sections.iter().map(|s| s.tiles.len()).sum();
            assert_eq!((draft.sections.len(), count), (1, tiles), "{name}");
            assert!(!draft.remarks.is_empty(), "{name} has transforms that bend");
        }
    }

    #[test]
    fn the_simple_form_opens_with_its_images() {
        let Some(folder) = data_folder("temca_tiles_2x2") else { return };
        let data = Dataset::open(&folder.join("tiles.json")).unwrap();
        assert_eq!((data.plan().tile_px, data.plan().pixel_size_nm), (Xy::new(1325, 1130), 8.0));
        let tile = data.sections()[0].tiles().nth(3).unwrap();
        assert_eq!((tile.name.as_str(), tile.nominal), ("col0076_row0022_cam2", Xy::new(945.0, 980.0)));
        let image = crate::decode::decode(&std::fs::read(data.path(tile.key).unwrap()).unwrap()).unwrap();
        assert_eq!((image.width(), image.height()), (1325, 1130));
    }
}
