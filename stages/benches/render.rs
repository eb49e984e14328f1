//! Rate of `render`, in pixels of input covered by one tile a second, on one thread.
//!
//! `cargo bench -p kinesin-stages --bench render`

use divan::Bencher;
use divan::counter::ItemsCount;
use kinesin_stages::render::{PlacedTile, RenderConfig, Renderer, Tone, compose};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, TileKey};
use kinesin_stream::map::{Affine, Grid, Map, SectionToVolume, TileToSection};
use kinesin_stream::pixels::Pixels;

fn main() {
    divan::main();
}

const WIDTH: u32 = 1024;
const HEIGHT: u32 = 896;

/// Four tiles with 8 % overlap under a bent section.
fn four_tiles() -> Vec<(PlacedTile, Pixels)> {
    let axis: Vec<f64> = (0..=40).map(|i| f64::from(i) * 64.0).collect();
    let warp = |p: Xy<f64>| p + Xy::new(6.0 * (p.y / 120.0).sin(), 6.0 * (p.x / 120.0).cos());
    let section = SectionToVolume(Map::Grid(Grid::from_fn(axis.clone(), axis, warp).expect("increasing")));
    (0..4u16)
        .map(|i| {
            let place = Xy::new(f64::from(i % 2) * 942.0, f64::from(i / 2) * 824.0);
            let turned = Affine::rotation(0.01, Xy::default()).then(&Affine::translation(place));
            let mfov = MfovId::new(SectionId(0), RegionId(0), 0);
            let size = Xy::new(WIDTH, HEIGHT);
            let map = compose(&TileToSection(Map::Affine(turned)), &section, size);
            let key = TileKey { mfov, beam: BeamId(i) };
            let placed = PlacedTile { key, size, map, tone: Tone { gain: 1.02, offset: -2.0 } };
            let data: Vec<u8> = (0..WIDTH * HEIGHT).map(|v| (v.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            (placed, Pixels::new(WIDTH as usize, HEIGHT as usize, data))
        })
        .collect()
}

/// Blocks of 512 px over everything, on one thread; items are pixels of the four tiles.
#[divan::bench(args = [1, 4], sample_count = 20)]
fn warp_and_blend(bencher: Bencher, reduction: u32) {
    let renderer = Renderer::new(RenderConfig::default()).expect("the default is allowed");
    let tiles = four_tiles();
    let placed: Vec<PlacedTile> = tiles.iter().map(|t| t.0.clone()).collect();
    let all = renderer.extent(reduction, &placed).expect("there are tiles");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    bencher.counter(ItemsCount::new(4 * (WIDTH * HEIGHT) as usize)).bench(|| {
        pool.install(|| {
            for y in (all.min.y..all.max.y).step_by(512) {
                for x in (all.min.x..all.max.x).step_by(512) {
                    let max = Xy::new((x + 512).min(all.max.x), (y + 512).min(all.max.y));
                    let block = BoxXy { min: Xy::new(x, y), max };
                    let keys = renderer.plan_tiles(block, reduction, &placed);
                    let needed: Vec<_> = tiles.iter().filter(|t| keys.contains(&t.0.key)).cloned().collect();
                    divan::black_box(renderer.render_block(block, reduction, &needed).expect("tiles fit"));
                }
            }
        });
    });
}
