//! Writes procedural tissue with its truth, for training and for looking at it.
//!
//! ```text
//! cargo run --release -p kinesin-sim --example tissue -- --seed 1 --size 32,512,512 --voxel 30,16,16 --out DIR
//! ```
//! leaves `DIR/image.tif` (8 bit grey), `DIR/labels.tif` (32 bit, 0 = membrane, extracellular, lumen, resin) and `DIR/classes.tif` (8 bit:
//! 0 neuropil, 1 cell body, 2 vessel, 3 resin), one page a section. `--set key=value` changes any other setting of
//! `TissueConfig`, for example `--set cell_bodies=0.1`.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kinesin_sim::tissue::config::TissueConfig;
use kinesin_sim::tissue::procedural::Procedural;
use kinesin_stream::geometry::{BoxXy, Xy};
use tiff::encoder::{Compression, TiffEncoder, colortype};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let (config, out) = arguments()?;
    let start = Instant::now();
    let tissue = Procedural::new(config)?;
    let grown = start.elapsed();
    std::fs::create_dir_all(&out)?;
    let mut image = writer(&out.join("image.tif"))?;
    let mut labels = writer(&out.join("labels.tif"))?;
    let mut classes = writer(&out.join("classes.tif"))?;
    let shape = tissue.config().shape;
    let rect = BoxXy { min: Xy::new(0, 0), max: Xy::new(shape.x as i64, shape.y as i64) };
    let (w, h) = (shape.x as u32, shape.y as u32);
    let mut seconds = 0.0;
    for z in 0..shape.z {
        let start = Instant::now();
        let voxels = tissue.voxels(z, rect);
        seconds += start.elapsed().as_secs_f64();
        let grey: Vec<u8> = voxels.iter().map(|v| v.grey).collect();
        let label: Vec<u32> = voxels.iter().map(|v| v.label).collect();
        let class: Vec<u8> = voxels.iter().map(|v| v.class).collect();
        image.write_image::<colortype::Gray8>(w, h, &grey)?;
        labels.write_image::<colortype::Gray32>(w, h, &label)?;
        classes.write_image::<colortype::Gray8>(w, h, &class)?;
    }
    let rate = shape.voxels() as f64 / seconds / 1e6;
    println!(
        "grown in {:.1} s; {} voxels at {rate:.1} Mvx/s; written to {}",
        grown.as_secs_f64(),
        shape.voxels(),
        out.display()
    );
    Ok(())
}

fn writer(path: &Path) -> Result<TiffEncoder<BufWriter<File>>, Failure> {
    Ok(TiffEncoder::new(BufWriter::new(File::create(path)?))?
        .with_compression(Compression::Deflate(Default::default())))
}

fn arguments() -> Result<(TissueConfig, PathBuf), Failure> {
    let mut settings = serde_json::to_value(TissueConfig::default())?;
    let mut out = None;
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        let value = args.next().ok_or_else(|| format!("{key} needs a value"))?;
        match key.as_str() {
            "--seed" => settings["seed"] = serde_json::from_str(&value)?,
            "--size" => settings["shape"] = serde_json::from_str(&format!("[{value}]"))?,
            "--voxel" => settings["voxel_size"] = serde_json::from_str(&format!("[{value}]"))?,
            "--out" => out = Some(PathBuf::from(value)),
            "--set" => {
                let (key, value) = value.split_once('=').ok_or("--set takes key=value")?;
                settings[key] = serde_json::from_str(value)?;
            }
            _ => return Err(format!("unknown option {key}: use --seed, --size, --voxel, --set, --out").into()),
        }
    }
    let config: TissueConfig = serde_json::from_value(settings)?;
    Ok((config, out.ok_or("--out DIR is needed")?))
}
