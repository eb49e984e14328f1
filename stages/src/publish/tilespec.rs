//! Render TileSpecs (saalfeldlab/render: `tilespec.schema.json`) of a solved section.
//!
//! Render's `AffineModel2D` holds `m00 m10 m01 m11 m02 m12`. A bending placement is written as a lens polynomial of order 5 and
//! then the affine map that fits the placement best (least squares), so that readers without lenses are off by the bend only. The
//! polynomial is off by a few hundredths of a pixel, more within the first columns where a scan settles; the exact map is in
//! `placements.json`.

use kinesin_stream::geometry::Xy;
use kinesin_stream::lens::LensPolynomial;
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
        let transforms = transforms(place(tile)?, tile.size);
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
            "transforms": {"type": "list", "specList": transforms},
        }))
    });
    Value::Array(specs.collect())
}

/// Order of the polynomial that a bending placement is written as: what Render's own lens corrections use.
const LENS_ORDER: usize = 5;

/// The transforms of one tile, in the order in which they apply.
fn transforms(map: &Map, size: Xy<u32>) -> Vec<Value> {
    let leaf = |class: &str, data: String| json!({"type": "leaf", "className": format!("mpicbg.trakem2.transform.{class}"), "dataString": data});
    let affine = affine_of(map, size);
    let [[a, b, tx], [c, d, ty]] = affine.rows;
    let last = leaf("AffineModel2D", format!("{a} {c} {b} {d} {tx} {ty}"));
    match (map, affine.inverse()) {
        (Map::Grid(_), Some(back)) => {
            let lens = LensPolynomial::fit(LENS_ORDER, size, |p| back.apply(map.apply(p)));
            vec![leaf("NonLinearCoordinateTransform", lens.to_string()), last]
        }
        _ => vec![last],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinesin_stream::map::Grid;

    #[test]
    fn a_bending_placement_is_a_lens_and_then_an_affine_that_give_its_places() {
        let bent = |p: Xy<f64>| {
            let (u, v) = (p.x / 200.0 - 1.0, p.y / 150.0 - 1.0);
            Xy::new(1.002 * p.x + 1.5 * u * (u * u + v * v) + 900.0, p.y + 0.8 * u * v + 30.0)
        };
        let axis = |n: f64| (0..=40).map(|i| f64::from(i) * n / 40.0).collect::<Vec<_>>();
        let map = Map::Grid(Grid::from_fn(axis(400.0), axis(300.0), bent).expect("valid axes"));
        let list = transforms(&map, Xy::new(401, 301));
        let data = |k: usize| list[k]["dataString"].as_str().expect("text").to_owned();
        let lens = LensPolynomial::parse(&data(0)).expect("its own lens");
        let m: Vec<f64> = data(1).split(' ').map(|v| v.parse().expect("a number")).collect();
        let affine = Affine { rows: [[m[0], m[2], m[4]], [m[1], m[3], m[5]]] };
        for p in [Xy::new(0.0, 0.0), Xy::new(400.0, 0.0), Xy::new(13.0, 290.0), Xy::new(217.0, 160.0)] {
            assert!((affine.apply(lens.apply(p)) - bent(p)).norm() < 0.02, "{p:?}");
            assert!((affine.apply(p) - bent(p)).norm() < 2.5, "{p:?}");
        }
        assert_eq!(transforms(&Map::Affine(affine), Xy::new(401, 301)).len(), 1);
    }

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
