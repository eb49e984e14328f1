//! Render TileSpecs (saalfeldlab/render: `tilespec.schema.json`) of a solved section.
//!
//! Render's `AffineModel2D` holds `m00 m10 m01 m11 m02 m12`. A bending placement is written as the affine map that fits its
//! nodes best (least squares); the exact one is in `placements.json`.

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Map};
use kinesin_stream::plan::{PlannedTile, SectionPlan};
use serde_json::{Value, json};

/// The affine map nearest to `map` over a tile of `size` pixels, by least squares on a 5 x 5 grid of points.
pub fn affine_of(map: &Map, size: Xy<u32>) -> Affine {
    let Map::Grid(_) = map else {
        return if let Map::Affine(a) = map { *a } else { Affine::IDENTITY };
    };
    let (w, h) = (f64::from(size.x.max(2) - 1), f64::from(size.y.max(2) - 1));
    // On a regular grid about its centre the normal equations are diagonal.
    let (mut mean, mut along_x, mut along_y, mut xx, mut yy) = (Xy::default(), Xy::default(), Xy::default(), 0.0, 0.0);
    for r in 0..5 {
        for c in 0..5 {
            let d = Xy::new((f64::from(c) / 4.0 - 0.5) * w, (f64::from(r) / 4.0 - 0.5) * h);
            let q = map.apply(Xy::new(d.x + w / 2.0, d.y + h / 2.0));
            mean = mean + q * (1.0 / 25.0);
            along_x = along_x + q * d.x;
            along_y = along_y + q * d.y;
            xx += d.x * d.x;
            yy += d.y * d.y;
        }
    }
    let (a, b) = (along_x * (1.0 / xx), along_y * (1.0 / yy));
    let t = mean - a * (w / 2.0) - b * (h / 2.0);
    Affine { rows: [[a.x, b.x, t.x], [a.y, b.y, t.y]] }
}

/// The TileSpec list of a section; `place` gives the solved transform of a tile, `None` where it has none.
pub fn tile_specs<'a>(plan: &'a SectionPlan, pixel_nm: f64, place: impl Fn(&PlannedTile) -> Option<&'a Map>) -> Value {
    let specs = plan.tiles().filter_map(|tile| {
        let [[a, b, tx], [c, d, ty]] = affine_of(place(tile)?, tile.size).rows;
        Some(json!({
            "tileId": tile.name,
            "z": plan.serial.0,
            "width": tile.size.x,
            "height": tile.size.y,
            "minIntensity": 0,
            "maxIntensity": 255,
            "layout": {
                "sectionId": plan.name,
                "camera": tile.key.beam.to_string(),
                "stageX": tile.nominal.x,
                "stageY": tile.nominal.y,
                "rotation": 0,
                "pixelsize": pixel_nm,
            },
            "groupId": format!("mfov_{}", tile.key.mfov.mfov + 1),
            "mipmapLevels": {"0": {"imageUrl": tile.name}},
            "transforms": {"type": "list", "specList": [{
                "type": "leaf",
                "className": "mpicbg.trakem2.transform.AffineModel2D",
                "dataString": format!("{a} {c} {b} {d} {tx} {ty}"),
            }]},
        }))
    });
    Value::Array(specs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::map::Grid;

    #[test]
    fn the_affine_of_an_affine_grid_is_that_affine() {
        let a = Affine { rows: [[1.01, 0.02, 3.0], [-0.03, 0.98, -7.0]] };
        let axis = |n: f64| (0..4).map(|i| f64::from(i) * n / 3.0).collect::<Vec<_>>();
        let g = Grid::from_fn(axis(99.0), axis(79.0), |p| a.apply(p)).expect("valid axes");
        let got = affine_of(&Map::Grid(g), Xy::new(100, 80));
        for p in [Xy::new(0.0, 0.0), Xy::new(99.0, 0.0), Xy::new(5.0, 79.0)] {
            assert!((got.apply(p) - a.apply(p)).norm() < 1e-9);
        }
    }
}
