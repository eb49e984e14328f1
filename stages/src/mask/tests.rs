use super::*;
use crate::model::{Manifest, MaskRules, ModelKind, Normalisation};
use kinesin_stream::geometry::Zyx;

/// Two logits per pixel: the second class where the normalised grey is positive. No weights, so no rim effect.
struct Threshold;

impl Network for Threshold {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        assert_eq!((items, out.len()), (1, 2 * inputs[0].len()));
        let (first, second) = out.split_at_mut(inputs[0].len());
        first.fill(0.0);
        second.iter_mut().zip(inputs[0]).for_each(|(o, v)| *o = 10.0 * v);
        Ok(())
    }
}

fn masker(tile: usize, overlap: f64) -> Masker {
    let manifest = Manifest {
        name: "t".into(),
        kind: ModelKind::Mask,
        file: "t.onnx".into(),
        sha256: String::new(),
        licence: "MIT".into(),
        description: String::new(),
        axes: "zyx".into(),
        voxel_size_nm: Zyx::new(30.0, 32.0, 32.0),
        shape: Zyx::new(1, tile, tile),
        normalisation: Normalisation::Fixed { mean: 100.0, sd: 10.0 },
        ffn: None,
        mask: Some(MaskRules { classes: vec!["tissue".into(), "vessel".into()], threshold: 0.5 }),
        training: toml::Table::new(),
    };
    let model = Model::for_tests(manifest);
    Masker::new(&MaskConfig { overlap, exclude: None }, &model, 16.0, Box::new(Threshold)).unwrap()
}

fn section() -> Array2<u8> {
    Array2::from_shape_fn((101, 150), |(y, x)| match (y / 10, x / 10) {
        (3..6, 4..9) => 180,
        (8.., 12..) => 0,
        _ => 60,
    })
}

#[test]
fn a_vessel_is_found_where_it_is_at_half_the_resolution() {
    let mut masker = masker(32, 0.25);
    let classes = masker.classes(section().view()).unwrap();
    assert_eq!((masker.factor(), classes.dim()), (2, (51, 75)));
    for ((y, x), &class) in classes.indexed_iter() {
        let vessel = (15..30).contains(&y) && (20..45).contains(&x);
        assert_eq!(class == 1, vessel, "{y} {x}");
    }
    let excluded = masker.exclusion(&classes, (101, 150));
    assert!(excluded[[30, 40]] && excluded[[59, 89]] && !excluded[[60, 60]]);
}

#[test]
fn tiles_of_any_size_and_overlap_give_the_same_map() {
    let whole = masker(128, 0.0).classes(section().view()).unwrap();
    for (tile, overlap) in [(16, 0.0), (32, 0.25), (32, 0.5), (64, 0.1)] {
        assert_eq!(masker(tile, overlap).classes(section().view()).unwrap(), whole, "{tile} {overlap}");
    }
}

#[test]
fn tiles_cover_every_pixel_and_stay_inside() {
    for (n, tile) in [(10, 32), (32, 32), (33, 32), (100, 32), (1000, 32)] {
        let starts = starts(n, tile, 0.25);
        assert_eq!(starts[0], 0);
        assert!(starts.windows(2).all(|w| w[1] > w[0] && w[1] - w[0] <= tile));
        assert_eq!(starts.last().unwrap() + tile.min(n), n);
    }
}

#[test]
fn means_are_taken_over_data_only() {
    let got = reduce(ndarray::array![[10u8, 20, 0, 0], [0, 30, 0, 9]].view(), 2);
    assert_eq!(got, ndarray::array![[20u8, 0]]);
}

#[test]
fn unknown_classes_and_unfit_pixels_are_named_together() {
    let good = masker(32, 0.25);
    let config = MaskConfig { overlap: 0.9, exclude: Some(vec!["glia".into()]) };
    let text = Masker::new(&config, &good.model, 45.0, Box::new(Threshold)).err().unwrap().to_string();
    assert!(
        text.contains("glia") && text.contains("tissue, vessel") && text.contains("0.9") && text.contains("45 nm"),
        "{text}"
    );
}
