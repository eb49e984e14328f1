//! A drawn section as files that other programs read, with what is true of it.
//!
//! ```text
//! DIR/<name>.txt           FEABAS section text: tiles and nominal places
//! DIR/<name>/tile_*.tif    raw TIFF
//! DIR/<name>.json          {"mpx": 56.0, "pairs": [{"p": NAME, "q": NAME, "points": [[xp, yp, xq, yq], ..]}]}: the same tissue
//! ```

use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use super::Section;

/// Writes the section.
pub(crate) fn export(section: &Section, name: &str, folder: &Path) -> std::io::Result<()> {
    let images = std::path::absolute(folder)?.join(name);
    std::fs::create_dir_all(&images)?;
    let (w, h) = section.plan.tiles().next().map_or((0, 0), |t| (t.size.x, t.size.y));
    let root = images.display();
    let mut text = format!("{{ROOT_DIR}}\t{root}\n{{RESOLUTION}}\t4\n{{TILE_SIZE}}\t{h}\t{w}\n");
    for tile in section.plan.tiles() {
        let Some(pixels) = section.tiles.get(&tile.key) else { continue };
        let file = tile.name.replace(".png", ".tif");
        writeln!(text, "{file}\t{}\t{}", tile.nominal.x, tile.nominal.y).map_err(std::io::Error::other)?;
        let out = std::io::BufWriter::new(std::fs::File::create(images.join(file))?);
        let mut encoder = tiff::encoder::TiffEncoder::new(out).map_err(std::io::Error::other)?;
        encoder.write_image::<tiff::encoder::colortype::Gray8>(w, h, pixels.data()).map_err(std::io::Error::other)?;
    }
    std::fs::write(folder.join(format!("{name}.txt")), text)?;
    let named = |key| section.plan.tile(key).map(|t| t.name.replace(".png", ".tif"));
    let pairs: Vec<_> = section
        .seam_points()
        .into_iter()
        .map(|seam| {
            let points: Vec<[f64; 4]> = seam.points.iter().map(|[a, b]| [a.x, a.y, b.x, b.y]).collect();
            json!({"p": named(seam.p), "q": named(seam.q), "points": points})
        })
        .collect();
    std::fs::write(folder.join(format!("{name}.json")), json!({"mpx": section.mpx(), "pairs": pairs}).to_string())
}
