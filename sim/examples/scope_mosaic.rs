//! Puts the tiles of one section at their nominal places into a PNG, and tells how fast they are made.
//!
//! `cargo run --release -p kinesin-sim --example scope_mosaic -- SETTINGS.json OUT.png [Z]`, where the settings are those
//! of the simulated scope (`{}` for the defaults).

use std::error::Error;
use std::fs::{File, read_to_string};

use kinesin_sim::scope::{Scene, SimConfig};
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::plan::SectionPlan;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [settings, out, rest @ ..] = args.as_slice() else {
        return Err("usage: scope_mosaic SETTINGS.json OUT.png [Z]".into());
    };
    let config: SimConfig = serde_json::from_str(&read_to_string(settings)?)?;
    let scene = Scene::open(config)?;
    let z = rest.first().map_or(Ok(0), |z| z.parse())?;
    let plan = scene.section_plan(SerialIndex(z));
    // The first round also makes the tissue, as far as the cache does not hold it.
    for round in ["first", "second"] {
        let before = processor_seconds();
        let pixels: usize = plan.tiles().map(|t| scene.tile(t.key).data().len()).sum();
        let rate = pixels as f64 / 1e6 / (processor_seconds() - before);
        eprintln!("{round} round: {rate:.1} Mpx per second of one core");
    }
    write_mosaic(&scene, &plan, out)
}

fn write_mosaic(scene: &Scene, plan: &SectionPlan, out: &str) -> Result<(), Box<dyn Error>> {
    let extent = scene.plan().extent;
    let (width, height) = (extent.size().x, extent.size().y);
    let mut image = vec![0u8; width * height];
    for tile in plan.tiles() {
        let pixels = scene.tile(tile.key);
        let left = (tile.nominal.x.round() as i64 - extent.min.x) as usize;
        let top = (tile.nominal.y.round() as i64 - extent.min.y) as usize;
        for y in 0..pixels.height() {
            let at = (top + y) * width + left;
            image[at..at + pixels.width()].copy_from_slice(pixels.row(y));
        }
    }
    let mut encoder = png::Encoder::new(File::create(out)?, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&image)?;
    Ok(())
}

/// Time this thread has had on a processor, s: others may use the machine, too.
fn processor_seconds() -> f64 {
    let text = read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
