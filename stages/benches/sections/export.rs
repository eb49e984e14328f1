//! Cut sections as files that other programs read, with what is true of them.
//!
//! ```text
//! DIR/<name>/s000.png ..   sections at full resolution, 0 = no tissue; a missing one has no file
//! DIR/<name>.json          {"sections": {"s000": [[x, y, far], null, ..], ..}}: where each tissue point lies in the section, pixels; null
//!                          where it is not seen; far = 1 where damage is at least the second margin away, else 0
//! ```

use std::io::{BufWriter, Error, Result};
use std::path::Path;

use kinesin_stream::geometry::Xy;
use ndarray::Array2;
use serde_json::{Map, Value, json};

use super::Recipe;

/// Writes the sections `size` squared and, of `points` in tissue, the places in each that are `near` or more from damage.
pub(crate) fn export(
    (folder, name, size): (&Path, &str, usize),
    sections: &[(usize, &Recipe, &Array2<u8>)],
    points: &[Xy<f64>],
    (near, far): (f64, f64),
) -> Result<()> {
    std::fs::create_dir_all(folder.join(name))?;
    let mut truth = Map::new();
    for (z, recipe, plane) in sections {
        let file = std::fs::File::create(folder.join(name).join(format!("s{z:03}.png")))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), size as u32, size as u32);
        encoder.set_color(png::ColorType::Grayscale);
        let pixels = recipe.cut(plane, size);
        let pixels = pixels.as_slice().ok_or_else(|| Error::other("rows in order"))?;
        encoder.write_header()?.write_image_data(pixels)?;
        let round = |v: f64| (v * 1e4).round() / 1e4;
        let place = |t: &Xy<f64>| {
            let p = recipe.to_section(*t, near).filter(|p| p.x.min(p.y) >= 0.0 && p.x.max(p.y) < size as f64)?;
            Some(json!([round(p.x), round(p.y), u8::from(recipe.to_section(*t, far).is_some())]))
        };
        truth.insert(format!("s{z:03}"), points.iter().map(|t| place(t).unwrap_or(Value::Null)).collect());
    }
    std::fs::write(folder.join(format!("{name}.json")), json!({"sections": truth}).to_string())
}
