//! MultiSEM region folders.
//!
//! ```text
//! 013_S48R1/                              run index, section 48, region 1
//!   full_image_coordinates.txt            relative\path <TAB> x <TAB> y <TAB> 0, CRLF; the corrected copy is preferred
//!   000004/                               mFOV, from 1
//!     image_coordinates.txt               the same for one mFOV, used where the full file does not have it
//!     013_000004_017_2024-05-11T0931227604512.bmp        run_mFOV_beam_time
//! ```
//! Files of real acquisitions repeat lines, hold lines of other mFOVs, and hold two images of one beam; of those the later
//! one is kept. Pixel size and thickness are not in these files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kinesin_stream::geometry::Xy;

use super::{DatasetError, Draft, DraftSection, DraftTile, Seat, entries, file_name, text_of};

/// Reads a region folder or a folder of region folders; `None` where it is neither.
pub(crate) fn read(folder: &Path) -> Result<Option<Draft>, DatasetError> {
    let mut regions = vec![folder.to_path_buf()];
    if !is_region(folder)? {
        regions.clear();
        for path in entries(folder)? {
            if path.is_dir() && section_and_region(&file_name(&path)).is_some() && is_region(&path)? {
                regions.push(path);
            }
        }
    }
    if regions.is_empty() {
        return Ok(None);
    }
    let mut draft = Draft::default();
    let mut sections: BTreeMap<u32, DraftSection> = BTreeMap::new();
    for region in regions {
        let name = file_name(&region);
        let (number, part) = section_and_region(&name).unwrap_or((0, 0));
        let tiles = read_region(&region, part, &mut draft.remarks)?;
        let section = sections.entry(number).or_insert_with(|| DraftSection { number, name, tiles: Vec::new() });
        // The same section imaged again in a later run: the later one counts.
        if section.tiles.iter().any(|t| t.seat.is_some_and(|s| s.region == part)) {
            draft.remarks.push(format!(
                "section {number} region {} was imaged again; {} counts",
                part + 1,
                file_name(&region)
            ));
            section.tiles.retain(|t| t.seat.is_none_or(|s| s.region != part));
        }
        section.tiles.extend(tiles);
    }
    draft.sections = sections.into_values().collect();
    Ok(Some(draft))
}

fn is_region(folder: &Path) -> Result<bool, DatasetError> {
    let full = FULL.iter().any(|f| folder.join(f).is_file());
    Ok(full || entries(folder)?.iter().any(|p| mfov_of_folder(p).is_some() && p.join(PART).is_file()))
}

const FULL: [&str; 2] = ["full_image_coordinates_corrected.txt", "full_image_coordinates.txt"];
const PART: &str = "image_coordinates.txt";

fn mfov_of_folder(path: &Path) -> Option<u32> {
    let name = file_name(path);
    (name.len() == 6).then(|| name.parse().ok()).flatten()
}

/// Section and region, the latter from 0, of `013_S48R1`.
fn section_and_region(name: &str) -> Option<(u32, u16)> {
    let (section, region) = name.rsplit_once('_').map_or(name, |(_, tail)| tail).strip_prefix('S')?.split_once('R')?;
    Some((section.parse().ok()?, region.parse::<u16>().ok()?.saturating_sub(1)))
}

/// The mFOV and the beam, both from 0, of `013_000004_017_2024-05-11T0931227604512.bmp`.
pub(crate) fn mfov_and_beam(name: &str) -> Option<(u32, u16)> {
    let mut parts = name.split('_');
    let (run, mfov, beam, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str, digits: usize| -> Option<u32> {
        let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten()
    };
    number(run, 3)?;
    time.contains('T').then_some(())?;
    Some((number(mfov, 6)?.checked_sub(1)?, number(beam, 3)?.checked_sub(1)? as u16))
}

fn read_region(region: &Path, part: u16, remarks: &mut Vec<String>) -> Result<Vec<DraftTile>, DatasetError> {
    let mut tiles: BTreeMap<PathBuf, DraftTile> = BTreeMap::new();
    if let Some(full) = FULL.iter().map(|f| region.join(f)).find(|p| p.is_file()) {
        for tile in lines(&full, region, part)? {
            tiles.insert(tile.path.clone(), tile);
        }
    }
    for folder in entries(region)? {
        let Some(mfov) = mfov_of_folder(&folder).and_then(|m| m.checked_sub(1)) else { continue };
        let list = folder.join(PART);
        let known = tiles.values().any(|t| t.seat.is_some_and(|s| s.mfov == mfov));
        if known || !list.is_file() {
            continue;
        }
        let (own, foreign): (Vec<_>, Vec<_>) =
            lines(&list, region, part)?.into_iter().partition(|t| t.seat.is_some_and(|s| s.mfov == mfov));
        if !foreign.is_empty() {
            remarks.push(format!("{}: {} lines of other mFOVs left out", list.display(), foreign.len()));
        }
        tiles.extend(own.into_iter().map(|t| (t.path.clone(), t)));
    }
    Ok(tiles.into_values().collect())
}

/// The tiles of a coordinate file; of repeated lines the last counts.
fn lines(path: &Path, region: &Path, part: u16) -> Result<Vec<DraftTile>, DatasetError> {
    let text = text_of(path)?;
    let mut tiles = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let wrong =
            |what: String| DatasetError::Content { path: path.into(), what: format!("line {}: {what}", number + 1) };
        let mut fields = line.trim_end().split('\t').map(str::trim);
        let (Some(image), Some(x), Some(y)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(wrong(format!("{line:?} has no path, x and y between tabs")));
        };
        let coordinate = |text: &str| {
            let value = text.parse::<f64>().ok().filter(|v| v.is_finite());
            value.ok_or_else(|| wrong(format!("{text:?} is not a coordinate in pixels")))
        };
        let image = image.replace('\\', "/");
        let name = image.rsplit('/').next().unwrap_or_default().to_string();
        if name.starts_with("thumbnail_") {
            continue;
        }
        let Some((mfov, beam)) = mfov_and_beam(&name) else {
            return Err(wrong(format!("{name:?} is not named run_mFOV_beam_time")));
        };
        tiles.push(DraftTile {
            path: region.join(format!("{:06}", mfov + 1)).join(&name),
            name,
            place: Xy::new(coordinate(x)?, coordinate(y)?),
            size: None,
            seat: Some(Seat { region: part, mfov, beam }),
        });
    }
    Ok(tiles)
}

#[cfg(test)]
mod tests {
    use kinesin_stream::ids::SerialIndex;

    use super::super::tests::write_image;
    use super::super::{Dataset, DatasetError};
    use super::*;

    fn write(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn image(mfov: u32, beam: u32, time: u32) -> String {
        format!("013_{mfov:06}_{beam:03}_2024-05-11T093122{time:07}.bmp")
    }

    #[test]
    fn full_and_single_lists_give_one_section_with_windows_paths_and_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let region = dir.path().join("013_S48R1");
        let line =
            |mfov, beam, time, x: f64| format!("{mfov:06}\\{}\t{x:.3}\t-77310.875\t0\r\n", image(mfov, beam, time));
        let full = line(1, 1, 5, -118402.25)
            + &line(1, 2, 5, -118300.0)
            + &line(1, 1, 5, -118402.25)
            + &line(1, 2, 9, -118301.0);
        write(region.join("full_image_coordinates.txt"), &full);
        let name = image(2, 7, 1);
        write(
            region.join("000002/image_coordinates.txt"),
            &format!("{name}\t5.5\t6.5\t0\r\n{name}\t5.5\t6.5\t0\r\n{}", line(1, 3, 5, 0.0)),
        );
        write_image(&region.join("000001").join(image(1, 1, 5)), 12, 9);
        let data = Dataset::open(&region).unwrap();
        let section = &data.sections()[0];
        assert_eq!((section.section.0, section.serial, section.mfovs.len()), (48, SerialIndex(0), 2));
        let tiles: Vec<_> = section.tiles().map(|t| (t.key.mfov.mfov, t.key.beam.0, t.nominal.x, t.size)).collect();
        let size = Xy::new(12, 9);
        assert_eq!(tiles, [(0, 0, -118402.25, size), (0, 1, -118301.0, size), (1, 6, 5.5, size)]);
        assert_eq!((data.plan().beams, data.plan().mfovs_per_section, data.plan().tile_px), (7, 2, size));
        assert_eq!(data.path(section.mfovs[1].tiles[0].key).unwrap(), region.join("000002").join(name));
        let remarks = data.remarks().join("\n");
        for told in ["replaces", "lines of other mFOVs", "pixel size", "thickness"] {
            assert!(remarks.contains(told), "{told} in {remarks}");
        }
        assert_eq!(Dataset::open(dir.path()).unwrap().sections(), data.sections());
    }

    #[test]
    fn a_bad_line_is_told_with_its_number_and_missing_images_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("full_image_coordinates.txt");
        write(
            list.clone(),
            &format!("000001\\{}\t1\t2\t0\r\n000001\\{}\tone\t2\t0\r\n", image(1, 1, 5), image(1, 2, 5)),
        );
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("\"one\""), "{error}");
        write(list, &format!("000001\\{}\t1\t2\t0\r\n", image(1, 1, 5)));
        assert!(matches!(Dataset::open(dir.path()), Err(DatasetError::NoImages { tiles: 1, .. })));
    }
}
