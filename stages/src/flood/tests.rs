use std::path::PathBuf;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::{Array3, s};

use super::*;
use crate::model::Model;
use crate::runtime::{Precision, Provider, Runtime, RuntimeSettings};

const CUBE: VoxelSize = VoxelSize(Zyx::new(10.0, 10.0, 10.0));

/// A file of the FIB-25 fixture, or a message and `None`.
fn fib25(name: &str) -> Option<PathBuf> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let path = std::env::var_os("KINESIN_DATA").map_or(here, PathBuf::from).join("fib25").join(name);
    if !path.is_file() {
        eprintln!("skipped: {} is not there (set KINESIN_DATA)", path.display());
        return None;
    }
    Some(path)
}

fn read_tiff(path: &std::path::Path) -> Array3<u16> {
    let mut decoder = tiff::decoder::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap();
    let (mut all, mut pages) = (Vec::new(), 0);
    let (w, h) = decoder.dimensions().unwrap();
    loop {
        match decoder.read_image().unwrap() {
            tiff::decoder::DecodingResult::U8(v) => all.extend(v.into_iter().map(u16::from)),
            tiff::decoder::DecodingResult::U16(v) => all.extend(v),
            _ => panic!("unexpected sample type"),
        }
        pages += 1;
        if !decoder.more_images() {
            return Array3::from_shape_vec((pages, h as usize, w as usize), all).unwrap();
        }
        decoder.next_image().unwrap();
    }
}

fn scaled(image: &Array3<u8>) -> Array3<f32> {
    image.mapv(|v| (f32::from(v) - 128.0) / 33.0)
}

#[test]
fn seeds_of_the_published_volume_are_the_published_ones() {
    let (Some(raw), Some(list)) = (fib25("raw_u8.tif"), fib25("seeds_policypeaks.csv")) else { return };
    let image = read_tiff(&raw).mapv(|v| v as u8);
    let got = peaks(&scaled(&image), &Array3::from_elem(image.raw_dim(), false), CUBE, Zyx::new(16, 16, 16));
    let text = std::fs::read_to_string(list).unwrap();
    let wanted: Vec<Zyx<usize>> = text
        .lines()
        .skip(1)
        .map(|l| {
            let n: Vec<usize> = l.split(',').map(|p| p.parse().unwrap()).collect();
            Zyx::new(n[0], n[1], n[2])
        })
        .collect();
    assert_eq!(wanted.len(), 12464);
    assert_eq!(got, wanted);
}

#[test]
fn in_f32_a_crop_of_the_published_volume_equals_the_published_implementation_in_every_voxel() {
    if std::env::var_os("KINESIN_PARITY").is_none() {
        return eprintln!("skipped: takes 3 CPU-minutes; set KINESIN_PARITY=1 to run it");
    }
    let (Some(raw), Some(reference), Some(onnx)) =
        (fib25("raw_u8.tif"), fib25("crop96_reference_u16.tif"), fib25("ffn_fib25_fp32.onnx"))
    else {
        return;
    };
    let settings = RuntimeSettings { precision: Some(Precision::F32), provider: Provider::Auto, cache: None };
    let runtime = match Runtime::open(&settings) {
        Ok(runtime) if runtime.chosen().provider == Provider::OpenVino => runtime,
        Ok(_) => return eprintln!("skipped: 629 evaluations take minutes without OpenVINO"),
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let model = Model::load(&onnx).unwrap();
    let image = read_tiff(&raw).slice(s![80..176, 80..176, 80..176]).mapv(|v| v as u8);
    let rules = FloodRules::of(&model).unwrap();
    let closed = Array3::from_elem(image.raw_dim(), false);
    let seeds = peaks(&scaled(&image), &closed, CUBE, Zyx::new(16, 16, 16));
    assert_eq!(seeds.len(), 356);
    let table = model.manifest().normalisation.table(image.index_axis(ndarray::Axis(0), 0));
    let known = Array3::zeros(image.raw_dim());
    let input = CanvasInput { tables: vec![table; 96], image, closed, known, open: 0, seeds };
    let mut network = runtime.network(&model).unwrap();
    let mut results = drive(&rules, [Canvas::new(&rules, input)], network.as_mut(), 1, &Watch::nothing()).unwrap();
    let result = results.remove(0);
    let c = result.counters;
    assert_eq!((c.evaluations, c.seeds, c.started, c.kept), (629, 356, 26, 15));
    let wanted = read_tiff(&reference).mapv(i32::from);
    assert_eq!(result.labels.iter().zip(&wanted).filter(|(a, b)| a != b).count(), 0);
}
