//! What 200 sections in a chain add up to: 1024 px a side, made from tissue that changes from section to section, by known warps.
//!
//! `cargo bench -p kinesin-stages --bench drift`; `KINESIN_ALIGN='lag = 0'` changes settings, `KINESIN_SECTIONS=60` their number,
//! `KINESIN_SEED=1` makes other tissue and other warps.
//!
//! Drawn tissue is a lattice of cells with dark borders; each wanders on its own path, straight for some 5 to 15 sections and at about
//! 1 px a section, and its grey and its organelles change. A section is turned by up to 3 degrees, moved by up to 40 px, bent by
//! a smooth field of 6 px, and compressed along y by 4 % and more from section to section, 1 % over the stack, give or take 0.3 %.
//! Recorded tissue (fib25 under `KINESIN_DATA`) is a mosaic of 12 planes 24 nm apart, gone through up and down again and again.
//!
//! Drift of section z is where its tissue column lies in the volume, less where the same column lies by section 0. Tissue wanders, and whoever
//! follows it drifts the other way: of drawn tissue it is also told where the *cells* lie, less where the same cells lay by section 0.

#[expect(dead_code, unused_imports, reason = "shared with the bench of align, which cuts and damages sections too")]
mod sections;

use std::sync::LazyLock;
use std::time::Instant;

use kinesin_stages::align::{AlignConfig, Aligner, Alignment, SectionView, Verdict};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::Affine;
use ndarray::{Array2, Array3};

const SIZE: usize = 1024;
/// Distance of cells, px.
const CELL: f64 = 40.0;

fn main() {
    let sections: u32 = std::env::var("KINESIN_SECTIONS").ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    let config: AlignConfig = toml::from_str(&std::env::var("KINESIN_ALIGN").unwrap_or_default()).expect("settings");
    chain("drawn tissue", &Tissue::new(), sections, &config);
    match sections::cube() {
        Some(cube) => chain("recorded tissue", &Recorded::new(&cube), sections, &config),
        None => println!("no fib25 under KINESIN_DATA: recorded tissue is left out"),
    }
}

/// Aligns `sections` sections and prints what they add up to.
fn chain(name: &str, tissue: &impl Planes, sections: u32, config: &AlignConfig) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let warps: Vec<Warp> = (0..sections).map(Warp::new).collect();
    let mut aligner = Aligner::new(config.clone()).expect("allowed");
    let (mut done, mut seconds): (Vec<Alignment>, Vec<f64>) = (vec![], vec![]);
    for (z, warp) in (0..sections).zip(&warps) {
        let view = warp.view(z, tissue, config.reduction);
        let began = Instant::now();
        done.extend(pool.install(|| aligner.push(&view).expect("in order")));
        seconds.push(began.elapsed().as_secs_f64());
    }
    done.extend(aligner.finish());
    let unplaced = done.iter().filter(|a| !matches!(a.verdict, Verdict::Aligned | Verdict::Reference)).count();
    println!("{name}: {sections} sections, {unplaced} not laid onto the one before");
    let mut neighbours: Vec<f64> = (1..done.len()).flat_map(|z| apart(&done, &warps, z - 1, z)).collect();
    neighbours.sort_by(f64::total_cmp);
    let p99 = neighbours[neighbours.len() * 99 / 100];
    println!("neighbours: {:.2} px rms, p99 {p99:.2} (of tissue columns: their own change is in it)", rms(&neighbours));
    println!(
        "{:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9}",
        "section", "drift rms", "shift px", "x %", "y %", "shear %", "turn deg"
    );
    let shown = [1, 10, 25, 50, 75, 100, 125, 150, 175, 199];
    for z in shown.into_iter().filter(|z| *z < done.len()) {
        let pairs = columns().filter_map(|t| Some((place(&done, &warps, 0, t)?, place(&done, &warps, z, t)?)));
        drift_row(z, "", &pairs.collect::<Vec<_>>());
        if let Some(shape) = done[z].shape {
            let told = |v: [f64; 3]| v.map(|v| format!("{:.4}", 100.0 * v)).join(" ");
            println!(
                "{:>8} bend {:.2} px, stretch {} %, trend {} %",
                "",
                shape.bend_px,
                told(shape.stretch),
                told(shape.trend)
            );
        }
        let lies = |z: usize, t: Xy<f64>| place(&done, &warps, z, t);
        let both = tissue.marks(0).into_iter().zip(tissue.marks(z));
        let both: Vec<_> = both.filter_map(|(a, b)| Some((lies(0, a)?, lies(z, b)?))).collect();
        if !both.is_empty() {
            drift_row(z, "of the cells", &both);
        }
    }
    let mean = |s: &[f64]| s.iter().sum::<f64>() / s.len() as f64;
    if seconds.len() >= 40 {
        let (early, late) = (mean(&seconds[5..15]), mean(&seconds[seconds.len() - 10..]));
        let all = mean(&seconds[5..]);
        let rate = (SIZE * SIZE) as f64 / all / 1e6;
        println!("{early:.3} s a section at the 10th, {late:.3} at the last, {rate:.1} Mpx/s on one thread");
    }
}

/// Where tissue columns of sections `a` and `b` lie, apart.
fn apart(done: &[Alignment], warps: &[Warp], a: usize, b: usize) -> Vec<f64> {
    columns().filter_map(|t| Some((place(done, warps, b, t)? - place(done, warps, a, t)?).norm())).collect()
}

fn columns() -> impl Iterator<Item = Xy<f64>> {
    let steps = (80..SIZE - 79).step_by(32);
    steps.clone().flat_map(move |y| steps.clone().map(move |x| Xy::new(x as f64, y as f64)))
}

/// Where the tissue column at `t` lies in the volume by section `z`.
fn place(done: &[Alignment], warps: &[Warp], z: usize, t: Xy<f64>) -> Option<Xy<f64>> {
    let p = warps[z].to_section(t);
    let inside = |v: f64| v >= 0.0 && v < SIZE as f64;
    (inside(p.x) && inside(p.y)).then(|| done[z].map.as_ref().map(|m| m.0.apply(p)))?
}

fn drift_row(z: usize, name: &str, pairs: &[(Xy<f64>, Xy<f64>)]) {
    let off: Vec<f64> = pairs.iter().map(|(a, b)| (*b - *a).norm()).collect();
    let m = affine(pairs);
    let centre = Xy::new(SIZE as f64 / 2.0, SIZE as f64 / 2.0);
    let [[a, b, _], [c, d, _]] = m.rows;
    let percent = |v: f64| 100.0 * v;
    println!(
        "{z:>8} {:>9.2} {:>9.2} {:>8.3} {:>8.3} {:>8.3} {:>9.3} {name}",
        rms(&off),
        (m.apply(centre) - centre).norm(),
        percent(a - 1.0),
        percent(d - 1.0),
        percent((b + c) / 2.0),
        ((c - b) / 2.0).to_degrees()
    );
}

fn rms(v: &[f64]) -> f64 {
    (v.iter().map(|v| v * v).sum::<f64>() / v.len().max(1) as f64).sqrt()
}

/// Least squares.
fn affine(pairs: &[(Xy<f64>, Xy<f64>)]) -> Affine {
    let n = pairs.len() as f64;
    let mean =
        pairs.iter().fold((Xy::default(), Xy::default()), |m, (a, b)| (m.0 + *a * (1.0 / n), m.1 + *b * (1.0 / n)));
    let (mut xx, mut xy, mut yy, mut cx, mut cy) = (0.0, 0.0, 0.0, Xy::default(), Xy::default());
    for (a, b) in pairs {
        let (f, t) = (*a - mean.0, *b - mean.1);
        (xx, xy, yy) = (xx + f.x * f.x, xy + f.x * f.y, yy + f.y * f.y);
        (cx, cy) = (cx + t * f.x, cy + t * f.y);
    }
    let det = xx * yy - xy * xy;
    let (u, v) = ((cx * yy - cy * xy) * (1.0 / det), (cy * xx - cx * xy) * (1.0 / det));
    let t = mean.1 - u * mean.0.x - v * mean.0.y;
    Affine { rows: [[u.x, v.x, t.x], [u.y, v.y, t.y]] }
}

static SEED: LazyLock<u64> =
    LazyLock::new(|| std::env::var("KINESIN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0));

/// Numbers that depend on the seed and their place in a table alone, -1 to 1.
fn hash(a: i64, b: i64, c: i64) -> f64 {
    let mut h = SEED.wrapping_mul(0xD6E8_FEB8_6659_FD93)
        ^ (a as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (b as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
        ^ (c as u64).wrapping_mul(0x1656_67B1_9E37_79F9);
    h = (h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 32)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((h >> 40) & 0xFFFF) as f64 / 32767.5 - 1.0
}

/// Sum of three: sd 1.
fn normal(a: i64, b: i64, c: i64) -> f64 {
    (0..3).map(|i| hash(a, b, c * 3 + i)).sum()
}

/// Smooth noise along z of unit amplitude: changes within `length` sections.
fn along(z: f64, length: f64, (a, b, c): (i64, i64, i64)) -> f64 {
    let (i, u) = ((z / length).floor(), (z / length).fract());
    let u = u * u * (3.0 - 2.0 * u);
    let at = |i: f64| hash(a, b, c * 1_000_003 + i as i64);
    at(i) * (1.0 - u) + at(i + 1.0) * u
}

/// What there is to cut sections from.
trait Planes {
    /// Grey value at tissue pixels of plane `z`.
    fn plane(&self, z: u32) -> impl Fn(Xy<f64>) -> f64;

    /// Points that belong to the same piece of tissue in all planes, where that is known.
    fn marks(&self, _z: usize) -> Vec<Xy<f64>> {
        vec![]
    }
}

/// Planes that are gone through up and down.
struct Recorded(Vec<Array2<u8>>);

impl Recorded {
    fn new(cube: &Array3<u8>) -> Self {
        Self(sections::mosaic(cube, 5, 12, 3))
    }
}

impl Planes for Recorded {
    fn plane(&self, z: u32) -> impl Fn(Xy<f64>) -> f64 {
        let last = self.0.len() - 1;
        let turn = z as usize % (2 * last);
        let plane = &self.0[turn.min(2 * last - turn)];
        let (h, w) = plane.dim();
        let rim = (w - SIZE) as f64 / 2.0;
        move |p| {
            let (x, y) = ((p.x + rim).clamp(0.0, w as f64 - 1.001), (p.y + rim).clamp(0.0, h as f64 - 1.001));
            let (c, r, u, v) = (x as usize, y as usize, x.fract(), y.fract());
            let at = |y: usize, x: usize| f64::from(plane[[y, x]]);
            (at(r, c) * (1.0 - u) + at(r, c + 1) * u) * (1.0 - v)
                + (at(r + 1, c) * (1.0 - u) + at(r + 1, c + 1) * u) * v
        }
    }
}

impl Planes for Tissue {
    fn plane(&self, z: u32) -> impl Fn(Xy<f64>) -> f64 {
        let cells = self.cells(f64::from(z));
        move |p| self.grey(&cells, p)
    }

    fn marks(&self, z: usize) -> Vec<Xy<f64>> {
        self.cells(z as f64).into_iter().map(|c| c.0).collect()
    }
}

struct Tissue {
    columns: i64,
}

impl Tissue {
    fn new() -> Self {
        Self { columns: (SIZE as f64 / CELL) as i64 + 8 }
    }

    /// Centres, greys and organelles of the cells at `z`, row by row; the lattice begins four cells outside.
    fn cells(&self, z: f64) -> Vec<(Xy<f64>, f64, Xy<f64>)> {
        let n = self.columns;
        let cell = |(c, r): (i64, i64)| {
            let length = 5.0 + 10.0 * hash(c, r, 7).abs();
            let rest = Xy::new(c as f64 - 4.0 + 0.3 * hash(c, r, 1), r as f64 - 4.0 + 0.3 * hash(c, r, 2)) * CELL;
            let wander = Xy::new(along(z, length, (c, r, 3)), along(z, length, (c, r, 4))) * 12.0;
            let tone = 130.0 + 40.0 * along(z, 25.0, (c, r, 5));
            let organelle = Xy::new(along(z, 6.0, (c, r, 8)), along(z, 6.0, (c, r, 9))) * (0.4 * CELL);
            (rest + wander, tone, rest + wander + organelle)
        };
        (0..n * n).map(|i| cell((i % n, i / n))).collect()
    }

    fn grey(&self, cells: &[(Xy<f64>, f64, Xy<f64>)], p: Xy<f64>) -> f64 {
        let n = self.columns;
        let (c, r) = ((p.x / CELL + 4.5) as i64, (p.y / CELL + 4.5) as i64);
        let (mut first, mut second, mut near) = (f64::MAX, f64::MAX, 0);
        for row in (r - 2).clamp(0, n)..(r + 3).clamp(0, n) {
            for column in (c - 2).clamp(0, n)..(c + 3).clamp(0, n) {
                let i = (row * n + column) as usize;
                let d = cells[i].0 - p;
                let d = d.x * d.x + d.y * d.y;
                if d < first {
                    (second, first, near) = (first, d, i);
                } else {
                    second = second.min(d);
                }
            }
        }
        let border = ((second.sqrt() - first.sqrt()) / 4.0).min(1.0);
        let inside = if (cells[near].2 - p).norm() < 7.0 { 60.0 } else { 0.0 };
        40.0 + (cells[near].1 - inside - 40.0) * border
    }
}

/// Section pixel to tissue pixel.
struct Warp {
    stiff: Affine,
    serial: i64,
}

impl Warp {
    fn new(serial: u32) -> Self {
        let z = i64::from(serial);
        let h = |k: i64| hash(z, 991, k);
        let centre = Xy::new(SIZE as f64 / 2.0, SIZE as f64 / 2.0);
        let turn = Affine::rotation((3.0 * h(1)).to_radians(), centre);
        let moved = turn.then(&Affine::translation(Xy::new(40.0 * h(2), 40.0 * h(3))));
        // A compressed section shows more tissue along y.
        let stretch = 1.0 / (1.0 - 0.04 - 0.01 * f64::from(serial) / 200.0 - 0.003 * normal(z, 992, 0));
        let along_y = Affine { rows: [[1.0, 0.0, 0.0], [0.0, stretch, centre.y * (1.0 - stretch)]] };
        Self { stiff: along_y.then(&moved), serial: z }
    }

    /// A smooth field of 6 px on nodes 400 px apart.
    fn field(&self, p: Xy<f64>) -> Xy<f64> {
        let (u, v) = (p.x / 400.0 + 2.0, p.y / 400.0 + 2.0);
        let (c, r) = (u.floor(), v.floor());
        let weights = |t: f64| {
            let s = 1.0 - t;
            [s * s * s, 3.0 * t * t * t - 6.0 * t * t + 4.0, 3.0 * s * s * s - 6.0 * s * s + 4.0, t * t * t]
                .map(|w| w / 6.0)
        };
        let (wx, wy) = (weights(u - c), weights(v - r));
        let mut sum = Xy::default();
        for (j, b) in wy.iter().enumerate() {
            for (i, a) in wx.iter().enumerate() {
                let node = (c as i64 + i as i64) * 64 + r as i64 + j as i64;
                sum = sum + Xy::new(normal(self.serial, 993, node), normal(self.serial, 994, node)) * (a * b);
            }
        }
        // The spline of unit coefficients has a spread of 0.48.
        sum * (6.0 / 0.48)
    }

    fn to_tissue(&self, p: Xy<f64>) -> Xy<f64> {
        self.stiff.apply(p) + self.field(p)
    }

    fn to_section(&self, t: Xy<f64>) -> Xy<f64> {
        let back = self.stiff.inverse().expect("regular");
        let mut p = back.apply(t);
        for _ in 0..30 {
            p = back.apply(t - self.field(p));
        }
        p
    }

    /// What the microscope would show, reduced.
    fn view(&self, serial: u32, tissue: &impl Planes, s: u32) -> SectionView {
        let grey = tissue.plane(serial);
        let n = SIZE / s as usize;
        let middle = (f64::from(s) - 1.0) / 2.0;
        let image = Array2::from_shape_fn((n, n), |(y, x)| {
            let p = Xy::new(x as f64, y as f64) * f64::from(s) + Xy::new(middle, middle);
            let noise = 8.0 * hash(i64::from(serial), (y * n + x) as i64, 995);
            (grey(self.to_tissue(p)) + noise).clamp(1.0, 255.0) as u8
        });
        SectionView { serial: SerialIndex(serial), name: format!("{serial}"), image, origin: Xy::new(0, 0) }
    }
}
