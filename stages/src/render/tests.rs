use kinesin_stream::geometry::{Xy, reduced_to_full};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, TileKey};
use kinesin_stream::map::{Affine, Grid, Map, SectionToVolume, TileToSection};

use super::*;

fn key(beam: u16) -> TileKey {
    let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
    TileKey { mfov, beam: BeamId(beam) }
}

/// Smooth tissue whose value is known everywhere: 40 to 216, nothing shorter than 20 px.
fn tissue(p: Xy<f64>) -> f64 {
    128.0 + 40.0 * (p.x / 5.0).sin() * (p.y / 7.0).cos() + 48.0 * ((p.x + 2.0 * p.y) / 31.0).sin()
}

/// What a camera behind `map` sees of the tissue.
fn tile(beam: u16, width: u32, height: u32, map: Map) -> (PlacedTile, Pixels) {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            data.push(tissue(map.apply(Xy::new(f64::from(x), f64::from(y)))).round() as u8);
        }
    }
    let placed = PlacedTile { key: key(beam), size: Xy::new(width, height), map, tone: Tone::IDENTITY };
    (placed, Pixels::new(width as usize, height as usize, data))
}

fn bent(turn: f64, place: Xy<f64>) -> Map {
    let stiff = Affine::rotation(turn, Xy::new(60.0, 50.0)).then(&Affine::translation(place));
    let axis: Vec<f64> = (0..=6).map(|i| f64::from(i) * 25.0 - 5.0).collect();
    let bend = |p: Xy<f64>| stiff.apply(p) + Xy::new(2.0 * (p.y / 40.0).sin(), 1.5 * (p.x / 50.0).cos());
    Map::Grid(Grid::from_fn(axis.clone(), axis, bend).expect("axes increase"))
}

fn four_tiles() -> Vec<(PlacedTile, Pixels)> {
    let places = [(0.4, 0.2), (100.7, -3.1), (2.2, 80.3), (99.1, 84.6)];
    let maps = places.iter().enumerate().map(|(i, &(x, y))| bent(0.01 * i as f64 - 0.02, Xy::new(x, y)));
    maps.enumerate().map(|(i, m)| tile(i as u16, 128, 110, m)).collect()
}

fn rect(x0: i64, y0: i64, x1: i64, y1: i64) -> BoxXy {
    BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) }
}

fn renderer() -> Renderer {
    Renderer::new(RenderConfig::default()).expect("the default is allowed")
}

#[test]
fn bent_tiles_render_to_the_tissue_they_saw() {
    let out = renderer().render_block(rect(15, 15, 200, 170), 1, &four_tiles()).expect("tiles fit");
    let mut worst: f64 = 0.0;
    for ((y, x), &v) in out.indexed_iter() {
        assert_ne!(v, 0, "hole at {x}, {y}");
        let truth = tissue(Xy::new(x as f64 + 15.0, y as f64 + 15.0));
        worst = worst.max((f64::from(v) - truth).abs());
    }
    // Bilinear on the shortest wave is off by h^2/8 f'' = 40 (1/25 + 1/49) / 8 + rounding twice = 1.3 levels.
    assert!(worst < 2.5, "off by {worst} grey levels");
}

#[test]
fn reduced_output_is_the_mean_of_the_full_output() {
    let tiles = four_tiles();
    let full = renderer().render_block(rect(16, 16, 176, 160), 1, &tiles).expect("tiles fit");
    for s in [2u32, 3, 4] {
        let n = i64::from(s);
        let block = rect(24 / n + 1, 24 / n + 1, 150 / n, 150 / n);
        let small = renderer().render_block(block, s, &tiles).expect("tiles fit");
        let mut square = 0.0;
        for ((y, x), &v) in small.indexed_iter() {
            let (fx, fy) = ((block.min.x + x as i64) * n - 16, (block.min.y + y as i64) * n - 16);
            let part = full.slice(ndarray::s![fy as usize..(fy + n) as usize, fx as usize..(fx + n) as usize]);
            let mean = part.iter().map(|v| f64::from(*v)).sum::<f64>() / part.len() as f64;
            square += (f64::from(v) - mean).powi(2);
        }
        let rms = (square / small.len() as f64).sqrt();
        // A half-pixel slip at s = 2 (slope up to 9 a px) would be 4 levels; the second, bilinear blur costs about 1.5.
        assert!(rms < 0.9 * f64::from(s * s) / 4.0 + 0.6, "reduction {s}: {rms} levels rms");
    }
}

#[test]
fn any_grid_of_blocks_and_any_order_of_tiles_give_the_same_bytes() {
    let mut tiles = four_tiles();
    for s in [1u32, 3] {
        let n = i64::from(s);
        let all = rect(-20 / n, -20 / n, 260 / n, 220 / n);
        let whole = renderer().render_block(all, s, &tiles).expect("tiles fit");
        assert!(whole.iter().any(|v| *v == 0) && whole.iter().any(|v| *v != 0));
        tiles.reverse();
        let placed: Vec<PlacedTile> = tiles.iter().map(|t| t.0.clone()).collect();
        for side in [7, 37, 100] {
            for y in (all.min.y..all.max.y).step_by(side) {
                for x in (all.min.x..all.max.x).step_by(side) {
                    let block = rect(x, y, (x + side as i64).min(all.max.x), (y + side as i64).min(all.max.y));
                    let keys = renderer().plan_tiles(block, s, &placed);
                    let needed: Vec<_> = tiles.iter().filter(|t| keys.contains(&t.0.key)).cloned().collect();
                    let part = renderer().render_block(block, s, &needed).expect("tiles fit");
                    let (fy, fx) = ((y - all.min.y) as usize, (x - all.min.x) as usize);
                    let wanted = whole.slice(ndarray::s![fy..fy + part.nrows(), fx..fx + part.ncols()]);
                    assert_eq!(part, wanted, "block {block:?} at reduction {s}");
                }
            }
        }
    }
}

#[test]
fn only_the_tiles_that_a_block_needs_are_planned() {
    let placed: Vec<PlacedTile> = four_tiles().into_iter().map(|t| t.0).collect();
    assert_eq!(renderer().plan_tiles(rect(20, 20, 60, 60), 1, &placed), vec![key(0)]);
    assert_eq!(renderer().plan_tiles(rect(110, 20, 120, 30), 1, &placed), vec![key(0), key(1)]);
    assert!(renderer().plan_tiles(rect(1000, 0, 1100, 100), 1, &placed).is_empty());
}

#[test]
fn tissue_is_never_zero_and_the_outside_is() {
    let map = Map::Affine(Affine::translation(Xy::new(10.0, 10.0)));
    let placed = PlacedTile { key: key(0), size: Xy::new(20, 20), map, tone: Tone::IDENTITY };
    let black = Pixels::new(20, 20, vec![0u8; 400]);
    let out = renderer().render_block(rect(0, 0, 40, 40), 1, &[(placed.clone(), black.clone())]).expect("fits");
    let wanted = Array2::from_shape_fn((40, 40), |(y, x)| u8::from((10..30).contains(&y) && (10..30).contains(&x)));
    assert_eq!(out, wanted);
    let holes = RenderConfig { zero_is_empty: true, ..RenderConfig::default() };
    let out = Renderer::new(holes).expect("allowed").render_block(rect(0, 0, 40, 40), 1, &[(placed, black)]);
    assert!(out.expect("fits").iter().all(|v| *v == 0));
}

#[test]
fn the_tone_of_a_tile_is_applied() {
    let (mut placed, pixels) = tile(0, 64, 64, Map::IDENTITY);
    let before = renderer().render_block(rect(0, 0, 64, 64), 1, &[(placed.clone(), pixels.clone())]).expect("fits");
    placed.tone = Tone { gain: 0.5, offset: 20.0 };
    let after = renderer().render_block(rect(0, 0, 64, 64), 1, &[(placed, pixels)]).expect("fits");
    let off = before.iter().zip(&after).map(|(b, a)| (f64::from(*b) * 0.5 + 20.0 - f64::from(*a)).abs());
    assert!(off.fold(0.0, f64::max) <= 0.5);
}

#[test]
fn composing_follows_both_maps() {
    let tile_to_section = TileToSection(bent(0.02, Xy::new(300.0, 200.0)));
    let axis: Vec<f64> = (0..=10).map(|i| f64::from(i) * 64.0).collect();
    let warp = |p: Xy<f64>| p + Xy::new(6.0 * (p.y / 120.0).sin(), 6.0 * (p.x / 120.0).cos());
    let section_to_volume = SectionToVolume(Map::Grid(Grid::from_fn(axis.clone(), axis, warp).expect("increasing")));
    let both = compose(&tile_to_section, &section_to_volume, Xy::new(128, 110));
    for (x, y) in [(0.0, 0.0), (127.0, 109.0), (50.3, 70.1), (90.0, 15.5)] {
        let p = Xy::new(x, y);
        let step_by_step = section_to_volume.0.apply(tile_to_section.0.apply(p));
        // Two bilinear grids of 25 and 64 px resampled at 32 px: h^2/8 f'' of the 6 px bend is 0.05 px.
        assert!((both.apply(p) - step_by_step).norm() < 0.3, "at {p:?}");
    }
    let shift = |x, y| Map::Affine(Affine::translation(Xy::new(x, y)));
    let stiff = compose(&TileToSection(shift(1.0, 2.0)), &SectionToVolume(shift(3.0, 4.0)), Xy::new(9, 9));
    assert_eq!(stiff, shift(4.0, 6.0));
}

#[test]
fn wrong_input_gets_one_clear_error() {
    let (placed, pixels) = tile(3, 32, 32, Map::IDENTITY);
    let small = Pixels::new(16, 16, vec![1u8; 256]);
    let error = renderer().render_block(rect(0, 0, 8, 8), 1, &[(placed.clone(), small)]).expect_err("wrong size");
    assert!(error.to_string().contains("16 x 16 px but was placed as 32 x 32 px"), "{error}");
    let twice = [(placed.clone(), pixels.clone()), (placed.clone(), pixels.clone())];
    assert_eq!(renderer().render_block(rect(0, 0, 8, 8), 1, &twice), Err(RenderError::Twice { key: key(3) }));
    let flat = PlacedTile { map: Map::Affine(Affine { rows: [[0.0; 3]; 2] }), ..placed };
    let error = renderer().render_block(rect(-1, -1, 8, 8), 1, &[(flat, pixels)]).expect_err("flat");
    assert!(matches!(error, RenderError::NotInvertible { .. }), "{error}");
    for bad in [
        RenderConfig { lattice_px: 0, ..RenderConfig::default() },
        RenderConfig { seam_sharpness: 3, ..RenderConfig::default() },
    ] {
        assert!(matches!(Renderer::new(bad), Err(RenderError::Config { .. })));
    }
}

#[test]
fn reduced_and_full_pixels_share_their_centres() {
    // A ramp: the value of a reduced pixel is the tissue at its centre, s i + (s - 1) / 2.
    let data: Vec<u8> = (0..64).flat_map(|_| (0..64).map(|x| 10 + 3 * x as u8)).collect();
    let placed = PlacedTile { key: key(0), size: Xy::new(64, 64), map: Map::IDENTITY, tone: Tone::IDENTITY };
    let out = renderer().render_block(rect(0, 0, 16, 16), 4, &[(placed, Pixels::new(64, 64, data))]).expect("fits");
    for x in 1..15 {
        let wanted = 10.0 + 3.0 * reduced_to_full(x as f64, 4.0);
        assert!((f64::from(out[[8, x]]) - wanted).abs() <= 0.51, "column {x}: {} for {wanted}", out[[8, x]]);
    }
}
