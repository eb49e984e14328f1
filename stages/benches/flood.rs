//! What flooding costs beside the network: start points, and the walk with a rule in the network's place.
//!
//! Items are voxels of the block for start points and fields of view for the walk.

use divan::Bencher;
use divan::counter::ItemsCount;
use kinesin_stages::flood::{Canvas, CanvasInput, FloodRules, Watch, drive, peaks};
use kinesin_stages::model::{FfnRules, Normalisation};
use kinesin_stages::runtime::RuleNetwork;
use kinesin_stream::geometry::{VoxelSize, Zyx};
use ndarray::{Array3, Axis};

fn main() {
    divan::main();
}

const SHAPE: (usize, usize, usize) = (34, 160, 160);
const FOV: Zyx<usize> = Zyx::new(17, 33, 33);

fn rules() -> FloodRules {
    let ffn = FfnRules {
        deltas: Zyx::new(4, 8, 8),
        init_activation: 0.95,
        pad_value: 0.05,
        move_threshold: 0.9,
        segment_threshold: 0.6,
        min_segment_size: 300,
        min_boundary_dist: Zyx::new(0, 1, 1),
        disco_seed_threshold: 0.0,
    };
    FloodRules::new(FOV, &ffn)
}

/// Bright tubes along z on dark ground.
fn image() -> Array3<u8> {
    Array3::from_shape_fn(SHAPE, |(z, y, x)| {
        let (dy, dx) = ((y + z / 3) % 24, (x + z / 5) % 24);
        if dy > 3 && dx > 3 { 180 + ((x * 7 + y * 13 + z) % 11) as u8 } else { 60 }
    })
}

fn seeds(image: &Array3<u8>) -> Vec<Zyx<usize>> {
    let scaled = image.mapv(|v| (f32::from(v) - 128.0) / 33.0);
    let size = VoxelSize(Zyx::new(30.0, 12.0, 12.0));
    peaks(&scaled, &Array3::from_elem(SHAPE, false), size, Zyx::new(8, 16, 16))
}

#[divan::bench(sample_count = 5)]
fn start_points(bencher: Bencher<'_, '_>) {
    let image = image();
    bencher.counter(ItemsCount::new(image.len())).bench(|| seeds(&image));
}

/// The network here is a rule; the figure bounds what the walk itself costs.
#[divan::bench(sample_count = 5)]
fn walk(bencher: Bencher<'_, '_>) {
    let (image, rules) = (image(), rules());
    let seeds = seeds(&image);
    let table = Normalisation::Fixed { mean: 128.0, sd: 33.0 }.table(image.index_axis(Axis(0), 0));
    let flood = || {
        let input = CanvasInput {
            tables: vec![table.clone(); SHAPE.0],
            image: image.clone(),
            closed: Array3::from_elem(SHAPE, false),
            known: Array3::zeros(SHAPE),
            open: 0,
            seeds: seeds.clone(),
        };
        let mut network = RuleNetwork::new(FOV.into(), 0.0);
        drive(&rules, [Canvas::new(&rules, input)], &mut network, 1, &Watch::nothing())
            .map(|r| r[0].counters.evaluations)
    };
    let evaluations = flood().expect("a rule does not fail");
    bencher.counter(ItemsCount::new(evaluations)).bench(flood);
}
