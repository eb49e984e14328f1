//! What flooding costs: the network by provider and precision in one run, the walk round it, and start points.
//!
//! The first table (FIB-25 network, 33 x 33 x 33 field of view, batch 1, one thread) needs the fixture that `KINESIN_DATA`
//! names. Providers take turns, so that other load on the machine hits all alike; the ratio of CPU seconds is the one to
//! quote from a shared machine. Then divan's, with memory: items are voxels of the block for start points and fields of view
//! for the walk, whose network is a rule, so that figure bounds what the walk itself costs.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use kinesin_stages::flood::{Canvas, CanvasInput, DriveError, FloodCounters, FloodRules, Watch, drive, peaks};
use kinesin_stages::model::{FfnRules, Model, Normalisation};
use kinesin_stages::runtime::{Network, Precision, Provider, RuleNetwork, Runtime, RuntimeSettings};
use kinesin_stream::geometry::{BoxZyx, VoxelSize, Zyx};
use kinesin_stream::volume;
use ndarray::{Array3, Axis};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    // `cargo test` runs benches without this flag
    if std::env::args().any(|a| a == "--bench") {
        if let Err(why) = networks() {
            println!("no table of networks: {why}");
        }
        divan::main();
    }
}

/// Rounds of the table and evaluations of each provider in a round: about as long for each.
const ROUNDS: usize = 5;
const KINDS: [(Provider, Precision, usize); 5] = [
    (Provider::Cpu, Precision::F32, 1),
    (Provider::OpenVino, Precision::F32, 2),
    (Provider::OpenVino, Precision::Bf16, 8),
    (Provider::Cuda, Precision::F32, 16),
    (Provider::TensorRt, Precision::F32, 16),
];

struct Timed {
    name: String,
    each: usize,
    network: Box<dyn Network>,
    /// Seconds of each round, and CPU seconds of all.
    wall: Vec<f64>,
    cpu: f64,
}

fn networks() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("KINESIN_DATA").map_or(here, PathBuf::from).join("fib25");
    let model = Model::load(&folder.join("ffn_fib25_fp32.onnx"))?;
    let grey = volume::open(&folder.join("raw_u8.tif"))?
        .read_u8(BoxZyx { min: Zyx::new(80, 80, 80), max: Zyx::new(176, 176, 176) })?;
    // the library is loaded once a process; this looks for the one that has most providers
    let auto = Runtime::open(&RuntimeSettings::default())?;
    println!("\nauto is {:?} {:?}: {}", auto.chosen().provider, auto.chosen().precision, auto.chosen().reason);
    let mut kinds = Vec::new();
    for (provider, precision, each) in KINDS {
        let opened = Runtime::open(&RuntimeSettings { provider, precision: Some(precision), cache: None });
        match opened.and_then(|runtime| runtime.network(&model)) {
            Ok(network) => {
                let name = format!("{provider:?} {precision:?}");
                kinds.push(Timed { name, each, network, wall: Vec::new(), cpu: 0.0 });
            }
            Err(why) => println!("{provider:?} {precision:?}: {why}"),
        }
    }
    let n = 33 * 33 * 33;
    let image: Vec<f32> = grey.iter().take(n).map(|&v| (f32::from(v) - 128.0) / 33.0).collect();
    let seed: Vec<f32> = (0..n).map(|i| if i == n / 2 { 2.944 } else { -2.944 }).collect();
    let mut out = vec![0.0; n];
    for round in 0..=ROUNDS {
        for kind in &mut kinds {
            let (cpu, start) = (cpu_seconds(), Instant::now());
            for _ in 0..kind.each {
                kind.network.run(&[&image, &seed], 1, &mut out)?;
            }
            // the first round warms up
            if round > 0 {
                kind.wall.push(start.elapsed().as_secs_f64() / kind.each as f64);
                kind.cpu += (cpu_seconds() - cpu) / (kind.each * ROUNDS) as f64;
            }
        }
    }
    println!("{:<16} {:>14} {:>10} {:>16} {:>10}", "network", "evaluations/s", "ratio", "CPU-s/evaluation", "ratio");
    let first = kinds.first().map(|k| (median(&k.wall), k.cpu)).unwrap_or_default();
    for kind in &kinds {
        let wall = median(&kind.wall);
        let (ratio, of_cpu) = (first.0 / wall, first.1 / kind.cpu);
        println!("{:<16} {:>14.2} {ratio:>10.1} {:>16.4} {of_cpu:>10.1}", kind.name, 1.0 / wall, kind.cpu);
    }
    kinds.last_mut().map_or(Ok(()), |fastest| host_share(&model, &grey, fastest))
}

/// What the loop spends outside the fastest network, on real data. Load on the machine hits both parts alike.
fn host_share(model: &Model, grey: &Array3<u8>, fastest: &mut Timed) -> Result<(), Box<dyn std::error::Error>> {
    const EVALUATIONS: u64 = 150;
    let rules = FloodRules::of(model)?;
    let fixed = Normalisation::Fixed { mean: 128.0, sd: 33.0 };
    let input = CanvasInput {
        tables: grey.axis_iter(Axis(0)).map(|s| fixed.table(s)).collect(),
        image: grey.clone(),
        closed: Array3::from_elem(grey.raw_dim(), false),
        known: Array3::zeros(grey.raw_dim()),
        open: 0,
        seeds: peaks(
            &grey.mapv(|v| (f32::from(v) - 128.0) / 33.0),
            &Array3::from_elem(grey.raw_dim(), false),
            VoxelSize(Zyx::new(10.0, 10.0, 10.0)),
            Zyx::new(16, 16, 16),
        ),
    };
    let (start, counted) = (Instant::now(), Mutex::new((0, 0.0)));
    let progress = |counts: &FloodCounters, seconds: f64| {
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted = (counted.0 + counts.evaluations, counted.1 + seconds);
        counted.0 < EVALUATIONS
    };
    let watch = Watch { progress: &progress, seconds: &|| start.elapsed().as_secs_f64() };
    match drive(&rules, [Canvas::new(&rules, input)], fastest.network.as_mut(), 1, &watch) {
        Ok(_) | Err(DriveError::Stopped) => {}
        Err(failed) => return Err(failed.into()),
    }
    let all = start.elapsed().as_secs_f64();
    let (evaluations, inside) = *counted.lock().unwrap_or_else(PoisonError::into_inner);
    let host = all - inside;
    println!(
        "{}: {evaluations} evaluations on recorded data, host work {:.2} % of the loop ({:.0} us an evaluation)\n",
        fastest.name,
        100.0 * host / all,
        1e6 * host / evaluations as f64
    );
    Ok(())
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// CPU time of all threads of this process as Linux counts it; not a number elsewhere.
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return f64::NAN };
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("schedstat")).ok();
    let texts = threads.filter_map(|t| of(t.ok()?));
    texts.filter_map(|t| t.split_whitespace().next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
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
