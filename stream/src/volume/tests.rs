//! What is written comes back, through the readers that everyone uses.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use ndarray::{Array2, Array3, s};
use tiff::encoder::{Compression, DeflateLevel, Predictor, TiffEncoder, colortype};

use super::*;
use crate::geometry::Xy;

fn bounds(min: [i64; 3], max: [i64; 3]) -> BoxZyx {
    BoxZyx { min: min.into(), max: max.into() }
}

/// Values that differ along every axis, so that a swapped axis shows.
fn grey(shape: [usize; 3]) -> Array3<u8> {
    Array3::from_shape_fn(shape, |(z, y, x)| ((z * 31 + y * 7 + x * 3) % 255 + 1) as u8)
}

fn labels(shape: [usize; 3]) -> Array3<u64> {
    Array3::from_shape_fn(shape, |(z, y, x)| match (z / 3 + y / 5 + 2 * (x / 4)) as u64 {
        0 => 0,
        v => v * 0x1_0000_0001,
    })
}

/// Reads the whole, and a box that begins and ends within.
fn assert_reads_labels(volume: &dyn VolumeSource, truth: &Array3<u64>) {
    let (z, y, x) = truth.dim();
    assert_eq!(volume.info().shape, Zyx::new(z, y, x));
    assert_eq!(&volume.read_labels(volume.info().bounds()).unwrap(), truth);
    let inner = bounds([1, 2, 3], [z as i64, y as i64 - 1, x as i64 - 2]);
    assert_eq!(volume.read_labels(inner).unwrap(), truth.slice(s![1.., 2..y - 1, 3..x - 2]));
}

fn assert_reads_grey(volume: &dyn VolumeSource, truth: &Array3<u8>) {
    let (z, y, x) = truth.dim();
    assert_eq!(volume.info().dtype, Dtype::U8);
    assert_eq!(&volume.read_u8(volume.info().bounds()).unwrap(), truth);
    let inner = bounds([1, 2, 3], [z as i64, y as i64 - 1, x as i64 - 2]);
    assert_eq!(volume.read_u8(inner).unwrap(), truth.slice(s![1.., 2..y - 1, 3..x - 2]));
    assert_reads_labels(volume, &truth.mapv(u64::from));
}

fn png(path: &Path, section: &Array2<u16>, depth: png::BitDepth) {
    let file = fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, section.ncols() as u32, section.nrows() as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(depth);
    let bytes: Vec<u8> = match depth {
        png::BitDepth::Sixteen => section.iter().flat_map(|v| v.to_be_bytes()).collect(),
        _ => section.iter().map(|&v| v as u8).collect(),
    };
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

fn tree(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_folder_of_images_is_read_in_the_order_of_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let truth = Array3::from_shape_fn((12, 9, 11), |(z, y, x)| (z * 1000 + y * 40 + x) as u64);
    for (z, section) in truth.outer_iter().enumerate() {
        let path = dir.path().join(format!("s{}.png", z + 1));
        png(&path, &section.mapv(|v| v as u16), png::BitDepth::Sixteen);
    }
    fs::write(dir.path().join("README.md"), "not a section").unwrap();
    let volume = open(dir.path()).unwrap();
    assert_eq!(volume.info().dtype, Dtype::U16);
    assert_reads_labels(&*volume, &truth);
    let e = volume.read_u8(volume.info().bounds()).unwrap_err().to_string();
    assert!(e.contains("uint16") && e.contains("convert"), "{e}");

    png(&dir.path().join("s4.png"), &Array2::zeros((9, 12)), png::BitDepth::Sixteen);
    let e = open(dir.path()).unwrap().read_labels(bounds([0, 0, 0], [12, 9, 11])).unwrap_err().to_string();
    assert!(e.contains("s4.png: section 3 is 12 x 9 px") && e.contains("11 x 9 px"), "{e}");
    fs::write(dir.path().join("s4.png"), b"").unwrap();
    let e = open(dir.path()).unwrap().read_labels(bounds([3, 0, 0], [4, 9, 11])).unwrap_err().to_string();
    assert!(e.contains("s4.png"), "{e}");
    fs::write(dir.path().join("s4.tif"), b"").unwrap();
    let e = open(dir.path()).err().unwrap().to_string();
    assert!(e.contains("twice"), "{e}");
}

#[test]
fn a_multi_page_tiff_is_read_in_every_compression_and_width() {
    let dir = tempfile::tempdir().unwrap();
    let truth = grey([5, 23, 17]);
    for (name, compression) in [
        ("plain", Compression::Uncompressed),
        ("lzw", Compression::Lzw),
        ("deflate", Compression::Deflate(DeflateLevel::Fast)),
        ("packbits", Compression::Packbits),
    ] {
        for predictor in [Predictor::None, Predictor::Horizontal] {
            let path = dir.path().join(format!("{name}_{predictor:?}.tif"));
            let mut out = TiffEncoder::new(fs::File::create(&path).unwrap())
                .unwrap()
                .with_compression(compression)
                .with_predictor(predictor);
            for section in truth.outer_iter() {
                let values: Vec<u8> = section.iter().copied().collect();
                out.write_image::<colortype::Gray8>(17, 23, &values).unwrap();
            }
            assert_reads_grey(&*open(&path).unwrap(), &truth);
        }
    }
    let path = dir.path().join("labels.TIF");
    let wide = truth.mapv(|v| u32::from(v) << 20);
    let mut out = TiffEncoder::new(fs::File::create(&path).unwrap()).unwrap();
    for section in wide.outer_iter() {
        let values: Vec<u32> = section.iter().copied().collect();
        out.write_image::<colortype::Gray32>(17, 23, &values).unwrap();
    }
    drop(out);
    assert_reads_labels(&*open(&path).unwrap(), &wide.mapv(u64::from));
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(open(&path).is_err());
}

fn zarr_fixture(dir: &Path, array: &str, attributes: Option<&str>) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(".zarray"), array).unwrap();
    if let Some(attributes) = attributes {
        fs::write(dir.parent().unwrap().join(".zgroup"), r#"{"zarr_format": 2}"#).unwrap();
        fs::write(dir.parent().unwrap().join(".zattrs"), attributes).unwrap();
    }
}

#[test]
fn ome_zarr_0_4_is_read_with_its_leading_axes_and_units() {
    let dir = tempfile::tempdir().unwrap();
    let (group, array) = (dir.path().join("v.zarr"), dir.path().join("v.zarr/0"));
    let text = r#"{"zarr_format": 2, "shape": [1, 1, 2, 3, 4], "chunks": [1, 1, 1, 2, 4], "dtype": "<u2", "compressor": null,
        "fill_value": 7, "filters": null, "order": "C", "dimension_separator": "/"}"#;
    let attributes = r#"{"multiscales": [{"version": "0.4", "axes": [{"name": "t", "type": "time"}, {"name": "c"},
        {"name": "z", "type": "space", "unit": "micrometer"}, {"name": "y", "type": "space", "unit": "nanometer"},
        {"name": "x", "type": "space", "unit": "angstrom"}], "datasets": [{"path": "0", "coordinateTransformations":
        [{"type": "scale", "scale": [1, 1, 0.03, 4, 40]}]}]}]}"#;
    zarr_fixture(&array, text, Some(attributes));
    fs::create_dir_all(array.join("0/0/1/0")).unwrap();
    let chunk: Vec<u8> = (0..8u16).flat_map(|v| (v * 300).to_le_bytes()).collect();
    fs::write(array.join("0/0/1/0/0"), chunk).unwrap();
    let truth =
        Array3::from_shape_fn((2, 3, 4), |(z, y, x)| if z == 1 && y < 2 { (4 * y + x) as u64 * 300 } else { 7 });
    for path in [&group, &array] {
        let volume = open(path).unwrap();
        assert_eq!(volume.info().voxel_size, Some(VoxelSize(Zyx::new(30.0, 4.0, 4.0))));
        assert_eq!(volume.read_labels(volume.info().bounds()).unwrap(), truth);
    }
    let e = open(&array).unwrap().read_labels(bounds([0, 0, 0], [3, 3, 4])).unwrap_err().to_string();
    assert!(e.contains("z 0..3, y 0..3, x 0..4") && e.contains("z 0..2, y 0..3, x 0..4"), "{e}");
    zarr_fixture(&array, text, Some(&attributes.replace(r#""name": "z""#, r#""name": "w""#)));
    assert!(open(&group).err().unwrap().to_string().contains("t, c, w, y, x"));
    zarr_fixture(&array, &text.replace("[1, 1, 2, 3, 4]", "[1, 2, 2, 3, 4]"), Some(attributes));
    assert!(open(&group).is_err());
    zarr_fixture(&array, text, Some("{}"));
    assert!(open(&group).err().unwrap().to_string().contains("arrays and groups in it: 0"));
}

#[test]
fn precomputed_images_are_read_raw_gzipped_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let info = r#"{"@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": "uint8", "num_channels": 1,
        "scales": [{"key": "8_8_30", "size": [13, 11, 5], "resolution": [8, 8, 30], "voxel_offset": [100, -5, 7],
        "chunk_sizes": [[8, 8, 4]], "encoding": "raw"}]}"#;
    fs::write(dir.path().join("info"), info).unwrap();
    fs::create_dir(dir.path().join("8_8_30")).unwrap();
    let truth = grey([5, 11, 13]);
    for (i, b) in precomputed::chunks(bounds([0, 0, 0], [5, 11, 13]), Zyx::new(4, 8, 8), bounds([0, 0, 0], [5, 11, 13]))
        .into_iter()
        .enumerate()
    {
        let range = |a: i64, b: i64| a as usize..b as usize;
        let part = truth.slice(s![range(b.min.z, b.max.z), range(b.min.y, b.max.y), range(b.min.x, b.max.x)]);
        let bytes: Vec<u8> = part.iter().copied().collect();
        let name = precomputed::chunk_name(b, Zyx::new(7, -5, 100));
        let folder = dir.path().join("8_8_30");
        if i % 2 == 0 {
            fs::write(folder.join(name), bytes).unwrap();
        } else {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&bytes).unwrap();
            fs::write(folder.join(name + ".gz"), packed.finish().unwrap()).unwrap();
        }
    }
    assert!(dir.path().join("8_8_30/100-108_-5-3_7-11").is_file());
    let volume = open(dir.path()).unwrap();
    assert_eq!(volume.info().voxel_size, Some(VoxelSize(Zyx::new(30.0, 8.0, 8.0))));
    assert_eq!(volume.info().origin, Zyx::new(7, -5, 100));
    assert_reads_grey(&*volume, &truth);

    fs::write(dir.path().join("8_8_30/100-108_-5-3_7-11"), b"short").unwrap();
    let e = open(dir.path()).unwrap().read_u8(bounds([0, 0, 0], [1, 1, 1])).unwrap_err().to_string();
    assert!(e.contains("100-108_-5-3_7-11") && e.contains("wanted 256"), "{e}");
    let sharded = info.replace(r#""encoding": "raw""#, r#""encoding": "raw", "sharding": {"@type": "x"}"#);
    fs::write(dir.path().join("info"), sharded).unwrap();
    assert!(open(dir.path()).err().unwrap().to_string().contains("sharded"));
}

#[test]
fn labels_come_back_whatever_the_chunks_and_rewriting_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let truth = labels([10, 21, 35]);
    let spec = LabelSpec {
        shape: Zyx::new(10, 21, 35),
        voxel_size: VoxelSize(Zyx::new(30.0, 4.5, 3.3)),
        origin: Zyx::new(5, 0, -16),
        chunk: Zyx::new(4, 16, 16),
    };
    let write = || {
        let writer = LabelWriter::create(dir.path(), spec.clone()).unwrap().with_durability(Durability::Cached);
        // Two commits along z, the second clipped by the end of the volume, the first split along x.
        writer.write_box(Zyx::new(0, 0, 0), truth.slice(s![..4, .., ..32])).unwrap();
        writer.write_box(Zyx::new(0, 0, 32), truth.slice(s![..4, .., 32..])).unwrap();
        writer.write_box(Zyx::new(4, 0, 0), truth.slice(s![4.., .., ..])).unwrap();
        tree(dir.path())
    };
    let first = write();
    assert_eq!(first.len(), 1 + 3 * 2 * 3);
    assert_eq!(write(), first);
    let volume = open(dir.path()).unwrap();
    assert_eq!(volume.info().voxel_size, Some(spec.voxel_size));
    assert_eq!((volume.info().dtype, volume.info().origin), (Dtype::U64, spec.origin));
    assert_reads_labels(&*volume, &truth);

    let writer = LabelWriter::open(dir.path()).unwrap();
    assert_eq!(writer.spec(), &spec);
    for (min, part) in [(Zyx::new(0, 0, 0), s![..3, .., ..]), (Zyx::new(2, 0, 0), s![..2, .., ..])] {
        let e = writer.write_box(min, truth.slice(part)).unwrap_err();
        assert!(matches!(e, VolumeError::Misaligned { .. }), "{e}");
    }
    let e = writer.write_box(Zyx::new(8, 0, 0), truth.slice(s![..4, .., ..])).unwrap_err();
    assert!(matches!(e, VolumeError::Bounds { .. }), "{e}");
    let other = LabelSpec { chunk: Zyx::new(8, 16, 16), ..spec };
    assert!(matches!(LabelWriter::create(dir.path(), other).unwrap_err(), VolumeError::Different { .. }));
    assert_eq!(tree(dir.path()), first);
}

fn image_spec(reduce: Reduce) -> ImageSpec {
    let (shape, chunk) = (Zyx::new(4, 37, 51), Xy::new(16, 8));
    let levels = ImageSpec::levels_for(shape, chunk);
    ImageSpec { shape, voxel_size: VoxelSize(Zyx::new(30.0, 6.0, 4.1)), levels, chunk, reduce }
}

#[test]
fn an_image_comes_back_at_every_level_and_rewriting_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let spec = image_spec(Reduce::Mean);
    assert_eq!(spec.levels, 4);
    let mut truth = grey([4, 37, 51]);
    truth.slice_mut(s![2, .., ..]).fill(0);
    truth.slice_mut(s![1, ..20, ..9]).fill(0);
    let write = |by_rows: bool| {
        let writer = ImageWriter::create(dir.path(), spec.clone()).unwrap().with_durability(Durability::Cached);
        for (z, section) in truth.outer_iter().enumerate() {
            let mut rows = writer.section(z).unwrap();
            for part in section.axis_chunks_iter(ndarray::Axis(0), if by_rows { 5 } else { 37 }) {
                rows.push_rows(part).unwrap();
            }
            rows.finish().unwrap();
        }
        tree(dir.path())
    };
    let first = write(false);
    assert_eq!(write(true), first);
    assert!(!dir.path().join("0/c/2").exists(), "a section without data needs no file");
    assert_reads_grey(&*open(dir.path()).unwrap(), &truth);
    assert_eq!(open(dir.path()).unwrap().info().voxel_size, Some(spec.voxel_size));

    let mut above = truth.mapv(f64::from);
    for level in 1..4 {
        let volume = open(&dir.path().join(level.to_string())).unwrap();
        let Some(VoxelSize(size)) = volume.info().voxel_size else { panic!("level {level} has no voxel size") };
        assert_eq!(size, Zyx::new(30.0, 6.0 * f64::from(1 << level), 4.1 * f64::from(1 << level)));
        let (z, y, x) = above.dim();
        let reduced = Array3::from_shape_fn((z, y.div_ceil(2), x.div_ceil(2)), |(z, y, x)| {
            let four = above.slice(s![z, 2 * y.., 2 * x..]);
            let seen: Vec<f64> = four.slice(s![..four.nrows().min(2), ..four.ncols().min(2)]).iter().copied().collect();
            let seen: Vec<f64> = seen.into_iter().filter(|&v| v > 0.0).collect();
            if seen.is_empty() { 0.0 } else { (seen.iter().sum::<f64>() / seen.len() as f64 + 0.5).floor() }
        });
        assert_eq!(volume.read_u8(volume.info().bounds()).unwrap(), reduced.mapv(|v| v as u8), "level {level}");
        above = reduced;
    }
}

#[test]
fn data_that_is_taken_back_leaves_no_chunk_behind() {
    let dir = tempfile::tempdir().unwrap();
    let writer = ImageWriter::create(dir.path(), image_spec(Reduce::Mean)).unwrap().with_durability(Durability::Cached);
    let empty = tree(dir.path());
    writer.write_section(1, grey([1, 37, 51]).slice(s![0, .., ..])).unwrap();
    assert_ne!(tree(dir.path()), empty);
    writer.write_section(1, Array2::zeros((37, 51)).view()).unwrap();
    assert_eq!(tree(dir.path()), empty);
}

#[test]
fn a_mask_keeps_its_classes_and_what_is_marked_wins_a_tie() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Zyx::new(1, 3, 5);
    let spec = ImageSpec { shape, levels: 2, chunk: Xy::new(4, 4), ..image_spec(Reduce::Mode) };
    let writer = ImageWriter::create(dir.path(), spec.clone()).unwrap();
    let mask = ndarray::array![[0, 0, 2, 2, 3], [2, 2, 0, 1, 0], [1, 0, 0, 0, 1]];
    writer.write_section(0, mask.view()).unwrap();
    let reduced = open(&dir.path().join("1")).unwrap().read_u8(bounds([0, 0, 0], [1, 2, 3])).unwrap();
    assert_eq!(reduced.slice(s![0, .., ..]), ndarray::array![[2, 2, 3], [1, 0, 1]]);
    assert_eq!(ImageWriter::open(dir.path()).unwrap().spec(), &spec);
}

#[test]
fn reduced_levels_lie_where_the_pixels_they_were_made_of_lie() {
    let dir = tempfile::tempdir().unwrap();
    ImageWriter::create(dir.path(), image_spec(Reduce::Mean)).unwrap();
    let group: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("zarr.json")).unwrap()).unwrap();
    let ome = &group["attributes"]["ome"];
    assert_eq!(ome["version"], "0.5");
    let two = &ome["multiscales"][0]["datasets"][2]["coordinateTransformations"];
    // Level 2 is the mean of 4 x 4 pixels 6 and 4.1 nm wide: its first centre lies 1.5 of them in.
    assert_eq!(two[0], serde_json::json!({"type": "scale", "scale": [30.0, 24.0, 16.4]}));
    assert_eq!(two[1], serde_json::json!({"type": "translation", "translation": [0.0, 9.0, 4.1 * 1.5]}));
}

#[test]
fn another_volume_in_the_same_folder_and_sections_of_another_size_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = ImageWriter::create(dir.path(), image_spec(Reduce::Mean)).unwrap();
    for other in [
        image_spec(Reduce::Mode),
        ImageSpec { levels: 3, ..image_spec(Reduce::Mean) },
        ImageSpec { chunk: Xy::new(16, 16), ..image_spec(Reduce::Mean) },
        ImageSpec { shape: Zyx::new(5, 37, 51), ..image_spec(Reduce::Mean) },
    ] {
        let e = ImageWriter::create(dir.path(), other).unwrap_err();
        assert!(matches!(e, VolumeError::Different { .. }), "{e}");
    }
    assert!(matches!(writer.section(4).unwrap_err(), VolumeError::Bounds { .. }));
    for size in [(37, 50), (38, 51), (36, 51)] {
        let e = writer.write_section(0, Array2::ones(size).view()).unwrap_err().to_string();
        assert!(e.contains("37 rows of 51 px"), "{e}");
    }
    assert!(matches!(LabelWriter::open(dir.path()).unwrap_err(), VolumeError::Unknown { .. }));
}

#[test]
fn what_is_no_volume_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let message = |p: &Path| open(p).err().unwrap().to_string();
    assert!(message(&dir.path().join("absent")).contains("absent"));
    assert!(message(dir.path()).contains("not a volume; wanted a folder of images"));
    fs::write(dir.path().join("a.csv"), "1,2").unwrap();
    assert!(message(&dir.path().join("a.csv")).contains("not a volume"));
    fs::write(dir.path().join("a.tif"), "").unwrap();
    assert!(message(&dir.path().join("a.tif")).contains("cannot be read as TIFF"));
}
