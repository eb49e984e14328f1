//! Rate of `align`, in full-resolution pixels of section a second, on one thread.
//!
//! `cargo bench -p kinesin-stages --bench align`

use divan::Bencher;
use divan::counter::ItemsCount;
use kinesin_stages::align::{AlignConfig, Aligner, Alignment, SectionView};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use ndarray::Array2;

fn main() {
    divan::main();
}

/// A section of 1024 x 1024 px at reduction 2, moved and sheared a little: noise of 6 and 20 px grain.
fn section(serial: u32) -> SectionView {
    let hash = |x: i64, y: i64| {
        let mut h = (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        h = (h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((h >> 40) & 0xFFFF) as f64 / 65535.0
    };
    let grain = |x: f64, y: f64| {
        let (c, r, u, v) = (x.floor() as i64, y.floor() as i64, x - x.floor(), y - y.floor());
        let top = hash(c, r) * (1.0 - u) + hash(c + 1, r) * u;
        top * (1.0 - v) + (hash(c, r + 1) * (1.0 - u) + hash(c + 1, r + 1) * u) * v
    };
    let z = f64::from(serial);
    let image = Array2::from_shape_fn((512, 512), |(y, x)| {
        let (x, y) = (2.0 * x as f64, 2.0 * y as f64);
        let (u, v) = (x + 9.0 * z + 4.0 * (y / 150.0 + z).sin(), y - 7.0 * z + 0.01 * z * x);
        (30.0 + 110.0 * grain(u / 6.0, v / 6.0) + 90.0 * grain(u / 20.0, v / 20.0)) as u8
    });
    SectionView { serial: SerialIndex(serial), name: format!("{serial}"), image, origin: Xy::new(0, 0) }
}

/// The third section onto the two before it.
#[divan::bench(sample_count = 10)]
fn third_section(bencher: Bencher) {
    let config = AlignConfig::default();
    let views: Vec<SectionView> = (0..3).map(section).collect();
    let mut aligner = Aligner::new(config.clone()).expect("the default is allowed");
    let done: Vec<Alignment> = views[..2].iter().map(|v| aligner.align_next(v).expect("in order")).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    bencher
        .counter(ItemsCount::new(1024usize * 1024))
        .with_inputs(|| Aligner::resume(config.clone(), &done, &views[..2]).expect("all there"))
        .bench_values(|mut aligner| {
            let alignment = pool.install(|| aligner.align_next(&views[2]).expect("in order"));
            assert!(alignment.map.is_some(), "{:?}", alignment.verdict);
            alignment
        });
}
