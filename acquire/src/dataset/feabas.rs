//! FEABAS section text files.
//!
//! ```text
//! {ROOT_DIR}    /where/the/images/are
//! {RESOLUTION}  4                      nm
//! {TILE_SIZE}   3000 4000              height, then width, pixels
//! tile_1.png    0      0               path from ROOT_DIR, x, y of the upper left corner, pixels
//! ```
//! Fields stand between tabs. A folder of such files is one section a file, in name order.

use std::path::{Path, PathBuf};

use kinesin_stream::geometry::Xy;

use super::multisem::mfov_and_beam;
use super::{DatasetError, Draft, DraftSection, DraftTile, Seat, text_of};

/// Reads files, one section each.
pub(crate) fn read(files: &[PathBuf]) -> Result<Draft, DatasetError> {
    let mut draft = Draft::default();
    for (number, path) in files.iter().enumerate() {
        let (tiles, resolution) = read_section(path)?;
        if draft.pixel_size_nm.is_some_and(|r| r != resolution) {
            let what =
                format!("{{RESOLUTION}} is {resolution} nm, other sections have another; one run has one pixel size");
            return Err(DatasetError::Content { path: path.clone(), what });
        }
        draft.pixel_size_nm = Some(resolution);
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        draft.sections.push(DraftSection { number: number as u32, name, tiles });
    }
    Ok(draft)
}

fn read_section(path: &Path) -> Result<(Vec<DraftTile>, f64), DatasetError> {
    let text = text_of(path)?;
    let base = path.parent().unwrap_or(Path::new(""));
    let (mut root, mut resolution, mut size) = (None, None, None);
    let mut tiles = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| {
            let what = format!("line {}: {what}, got {line:?}", number + 1);
            DatasetError::Content { path: path.into(), what }
        };
        let fields: Vec<&str> = line.trim_end().split('\t').map(str::trim).filter(|f| !f.is_empty()).collect();
        let value = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).filter(|v| v.is_finite());
        match fields.as_slice() {
            [] => {}
            ["{ROOT_DIR}", folder] => root = Some(base.join(folder)),
            ["{RESOLUTION}", _] => {
                let nm = value(1).filter(|v| *v > 0.0);
                resolution = Some(nm.ok_or_else(|| wrong("wanted {RESOLUTION} and a pixel size in nm"))?);
            }
            ["{TILE_SIZE}", height, width] => {
                let (Ok(h), Ok(w)) = (height.parse(), width.parse()) else {
                    return Err(wrong("wanted {TILE_SIZE}, height, width in pixels"));
                };
                size = Some(Xy::new(w, h));
            }
            [key, ..] if key.starts_with('{') => return Err(wrong("wanted {ROOT_DIR}, {RESOLUTION} or {TILE_SIZE}")),
            [image, _, _] => {
                let (Some(x), Some(y)) = (value(1), value(2)) else {
                    return Err(wrong("wanted path, x, y between tabs"));
                };
                tiles.push((image.replace('\\', "/"), Xy::new(x, y)));
            }
            _ => return Err(wrong("wanted path, x, y between tabs")),
        }
    }
    let resolution = resolution.ok_or_else(|| DatasetError::Content {
        path: path.into(),
        what: "no line {RESOLUTION}<TAB>nm; wanted the head of a FEABAS section file".into(),
    })?;
    let root = root.unwrap_or_else(|| base.to_path_buf());
    let tiles = tiles.into_iter().map(|(image, place)| {
        let name = image.rsplit('/').next().unwrap_or_default().to_string();
        let seat = mfov_and_beam(&name).map(|(mfov, beam)| Seat { region: 0, mfov, beam });
        DraftTile { path: root.join(&image), name, place, size, seat }
    });
    Ok((tiles.collect(), resolution))
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::super::tests::write_image;

    #[test]
    fn a_section_file_gives_places_sizes_and_pixel_size() {
        let dir = tempfile::tempdir().unwrap();
        let head = "{ROOT_DIR}\timages\n{RESOLUTION}\t8\n{TILE_SIZE}\t9\t12\n";
        std::fs::write(dir.path().join("s1.txt"), format!("{head}b/tile_b.tif\t10\t-2.5\r\na/tile_a.tif\t0\t0\r\n"))
            .unwrap();
        write_image(&dir.path().join("images/a/tile_a.tif"), 12, 9);
        let data = Dataset::open(&dir.path().join("s1.txt")).unwrap();
        let tiles: Vec<_> = data.sections()[0].tiles().cloned().collect();
        assert_eq!((tiles[0].name.as_str(), tiles[0].nominal.x, tiles[0].nominal.y), ("tile_b.tif", 10.0, -2.5));
        assert_eq!((tiles[0].size.x, tiles[0].size.y, data.plan().pixel_size_nm), (12, 9, 8.0));
        assert_eq!((data.plan().beams, data.plan().mfovs_per_section), (1, 2));
        assert_eq!(data.path(tiles[1].key).unwrap(), dir.path().join("images/a/tile_a.tif"));
        assert_eq!((data.plan().extent.min.x, data.plan().extent.min.y), (0, -3));
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.txt");
        for (text, told) in [
            ("{RESOLUTION}\tfour\n", "line 1: wanted {RESOLUTION} and a pixel size"),
            ("{RESOLUTION}\t4\n{TILESIZE}\t1\t1\n", "line 2: wanted {ROOT_DIR}"),
            ("{RESOLUTION}\t4\na.tif\t1\n", "line 2: wanted path, x, y"),
            ("a.tif\t1\t2\n", "no line {RESOLUTION}"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Dataset::open(&file).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        std::fs::write(&file, "{RESOLUTION}\t4\nx/a.tif\t1\t2\ny/a.tif\t1\t2\n").unwrap();
        write_image(&dir.path().join("x/a.tif"), 4, 4);
        assert!(Dataset::open(&file).unwrap_err().to_string().contains("two tiles are named a.tif"));
    }
}
