//! Plain lists of tiles and their places, as other programs read them.
//!
//! ```text
//! FEABAS      {ROOT_DIR} .. {RESOLUTION} .. {TILE_SIZE} h w, then   file <TAB> x <TAB> y
//! TrakEM2     file <TAB> x <TAB> y <TAB> layer                      ("import from text file"); several layers in one list
//! MultiSEM    000007\file <TAB> x <TAB> y <TAB> 0, CRLF             full_image_coordinates.txt of a region folder
//! ```
//! Places are those of tile pixel (0, 0), pixels. Lists hold no turn, scale or bend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kinesin_stream::geometry::Xy;

use super::multisem::mfov_and_beam;
use super::{DatasetError, Draft, DraftSection, DraftTile, Seat, file_name, text_of};

/// One line of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The image file.
    pub path: PathBuf,
    /// Where its pixel (0, 0) lies, pixels.
    pub place: Xy<f64>,
}

/// A FEABAS section file; `size` is width and height of a tile, pixels.
pub fn feabas(tiles: &[Listed], pixel_nm: f64, size: Xy<u32>) -> String {
    let root = common_folder(tiles);
    let mut text = format!("{{ROOT_DIR}}\t{}\n{{RESOLUTION}}\t{pixel_nm}\n", root.display());
    text.push_str(&format!("{{TILE_SIZE}}\t{}\t{}\n", size.y, size.x));
    for tile in tiles {
        let path = tile.path.strip_prefix(&root).unwrap_or(&tile.path);
        text.push_str(&format!("{}\t{}\t{}\n", path.display(), tile.place.x, tile.place.y));
    }
    text
}

/// A TrakEM2 import list of one layer.
pub fn trakem2(tiles: &[Listed], layer: u32) -> String {
    let mut text = String::new();
    for tile in tiles {
        text.push_str(&format!("{}\t{}\t{}\t{layer}\n", tile.path.display(), tile.place.x, tile.place.y));
    }
    text
}

/// The coordinate file of a MultiSEM region folder; files keep the folder of their mFOV.
pub fn multisem(tiles: &[Listed]) -> String {
    let mut text = String::new();
    for tile in tiles {
        let folder = tile.path.parent().map(file_name).unwrap_or_default();
        let (file, place) = (file_name(&tile.path), tile.place);
        text.push_str(&format!("{folder}\\{file}\t{}\t{}\t0\r\n", place.x, place.y));
    }
    text
}

/// The deepest folder that holds all files.
fn common_folder(tiles: &[Listed]) -> PathBuf {
    let mut folders = tiles.iter().map(|t| t.path.parent().unwrap_or(Path::new("")).to_path_buf());
    let first = folders.next().unwrap_or_default();
    folders.fold(first, |common, folder| {
        common.components().zip(folder.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
    })
}

/// Whether a text file is a TrakEM2 list: its first line has four fields and no brace.
pub(crate) fn is_trakem2(path: &Path) -> Result<bool, DatasetError> {
    let text = text_of(path)?;
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    Ok(!first.starts_with('{') && first.trim_end().split('\t').count() == 4)
}

/// Reads TrakEM2 lists; each layer is a section. Relative files are looked for beside the list.
pub(crate) fn read_trakem2(files: &[PathBuf]) -> Result<Draft, DatasetError> {
    let mut layers: BTreeMap<u32, DraftSection> = BTreeMap::new();
    for path in files {
        let base = path.parent().unwrap_or(Path::new(""));
        for (number, line) in text_of(path)?.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let wrong = || DatasetError::Content {
                path: path.clone(),
                what: format!("line {}: wanted file, x, y, layer between tabs, got {line:?}", number + 1),
            };
            let fields: Vec<&str> = line.trim_end().split('\t').map(str::trim).collect();
            let &[file, x, y, layer] = fields.as_slice() else { return Err(wrong()) };
            let value = |text: &str| text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(wrong);
            let (place, layer) = (Xy::new(value(x)?, value(y)?), value(layer)?);
            if file.is_empty() || layer < 0.0 || layer.fract() != 0.0 || layer > f64::from(u32::MAX) {
                return Err(wrong());
            }
            let image = base.join(file);
            let name = file_name(&image);
            let seat = mfov_and_beam(&name).map(|(mfov, beam)| Seat { region: 0, mfov, beam });
            let layer = layer as u32;
            let empty = || DraftSection { number: layer, name: layer.to_string(), tiles: Vec::new() };
            let tile = DraftTile { name, path: image, place, size: None, seat };
            layers.entry(layer).or_insert_with(empty).tiles.push(tile);
        }
    }
    Ok(Draft { sections: layers.into_values().collect(), ..Draft::default() })
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::super::tests::{data_folder, write_image};
    use super::*;

    /// Tiles of a data set as a list.
    fn listed(data: &Dataset) -> Vec<Listed> {
        let section = &data.sections()[0];
        section.tiles().map(|t| Listed { path: data.path(t.key).unwrap().to_path_buf(), place: t.nominal }).collect()
    }

    /// What a list says, by file.
    fn places(data: &Dataset) -> BTreeMap<PathBuf, (f64, f64)> {
        listed(data).into_iter().map(|t| (t.path, (t.place.x, t.place.y))).collect()
    }

    #[test]
    fn real_tiles_listed_for_feabas_and_trakem2_read_back_at_the_same_places() {
        let Some(folder) = data_folder("temca_tiles_2x2") else { return };
        let data = Dataset::open(&folder.join("tiles.json")).unwrap();
        let (tiles, plan) = (listed(&data), data.plan());
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("f.txt", feabas(&tiles, plan.pixel_size_nm, plan.tile_px)), ("t.txt", trakem2(&tiles, 12))]
        {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            let back = Dataset::open(&file).unwrap();
            assert_eq!(places(&back), places(&data), "{name}");
            assert_eq!(back.plan().tile_px, plan.tile_px);
        }
        let layers = Dataset::open(&dir.path().join("t.txt")).unwrap();
        assert_eq!(layers.sections()[0].section.0, 12);
    }

    #[test]
    fn a_region_folder_with_its_written_coordinates_reads_back_at_the_same_places() {
        let dir = tempfile::tempdir().unwrap();
        let region = dir.path().join("013_S48R1");
        let names = [
            "000004/013_000004_001_2024-05-11T0931227604512.png",
            "000005/013_000005_017_2024-05-11T0931228604512.png",
        ];
        let tiles: Vec<Listed> = names
            .iter()
            .zip([Xy::new(-372.125, 88.5), Xy::new(1e6 / 3.0, -0.75)])
            .map(|(n, place)| Listed { path: region.join(n), place })
            .collect();
        for tile in &tiles {
            write_image(&tile.path, 12, 9);
        }
        std::fs::write(region.join("full_image_coordinates.txt"), multisem(&tiles)).unwrap();
        let back = places(&Dataset::open(&region).unwrap());
        let wanted: BTreeMap<PathBuf, (f64, f64)> =
            tiles.into_iter().map(|t| (t.path, (t.place.x, t.place.y))).collect();
        assert_eq!(back, wanted);
    }

    #[test]
    fn a_list_with_a_wrong_line_is_refused_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        write_image(&dir.path().join("a.png"), 4, 4);
        let file = dir.path().join("t.txt");
        std::fs::write(&file, "a.png\t0\t0\t1\nb.png\tx\t0\t1\n").unwrap();
        let error = Dataset::open(&file).unwrap_err().to_string();
        assert!(error.contains("line 2: wanted file, x, y, layer"), "{error}");
    }
}
