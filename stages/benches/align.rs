//! Accuracy and speed of `align` on sections cut from recorded tissue by known warps.
//!
//! `cargo bench -p kinesin-stages --bench align` prints a table; with `-- NAME` only the cases whose names hold NAME.
//!
//! *Residual*: distance, full-resolution pixels, between the places that the maps of two neighbouring sections give to one tissue point
//! (every 8 px), at least 10 px from damage. The pair across a missing section counts as one. *Mpx per CPU-s*: full-resolution pixels of the
//! sections after the first by the CPU seconds of the process (one thread; reducing the image included, cutting it not).
//! `beside` (cortex): the same distance less that of the same stack without warp, since the recorded stack itself jumps.
//!
//! With `KINESIN_CUT=DIR` the sections of the cases go to `DIR`, where `peers/align.py DIR` runs other programs on them.

mod sections;

use kinesin_stages::align::{AlignConfig, Aligner, Alignment, Verdict};
use kinesin_stream::geometry::Xy;
use kinesin_stream::ids::SerialIndex;
use kinesin_stream::map::Affine;
use ndarray::Array2;
use sections::{Damage, Grey, Recipe, Warp, cortex, cube, drawn, export, mosaic, view};

/// Distance from damage at which tissue counts, pixels.
const MARGIN: f64 = 10.0;
/// A second row of damaged stacks counts tissue from here on.
const FAR: f64 = 30.0;
/// Warp: degrees, pixels of shift, sd of the field.
const WARP: (f64, f64, f64) = (3.0, 40.0, 6.0);

/// A stack: planes of tissue larger than the sections by `rim` all around.
struct Stack {
    planes: Vec<Array2<u8>>,
    size: usize,
    rim: usize,
}

/// What came out.
struct Run {
    recipes: Vec<Recipe>,
    done: Vec<Alignment>,
    cpu: f64,
    mpx: f64,
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    println!("case            | pairs | rms   median p95   p99    max px | Mpx/CPU-s | verdicts");
    let cube = cube();
    let block_face = |n: usize, squares: usize, size: usize| match &cube {
        Some(cube) => stack(mosaic(cube, squares, n, 3), size),
        None => stack(drawn(squares * 250, n), size),
    };
    if cube.is_none() {
        println!("no fib25 under KINESIN_DATA: drawn cells take its place");
    }
    let twelve = block_face(12, 5, 1024);
    let eight = Stack { planes: twelve.planes[..8].to_vec(), size: twelve.size, rim: twelve.rim };
    for (name, recipes) in cases(&eight, "fib") {
        if asked(&name) {
            report(&name, &run(&eight, recipes, None), &eight, None);
        }
    }
    if asked("fib_damage") {
        report("fib_damage", &run(&twelve, damaged(&twelve), Some(3)), &twelve, None);
    }
    if asked("fib_large") {
        let large = block_face(6, 9, 2048);
        report("fib_large", &run(&large, warped(&large, WARP), None), &large, None);
    }
    if let Some(planes) = cortex(20, 12, 1) {
        let ac4 = stack(planes, 1024);
        if asked("ac4") {
            let still = run(&ac4, warped(&ac4, (0.0, 0.0, 0.0)), None);
            report("ac4_nowarp", &still, &ac4, None);
            report("ac4_next", &run(&ac4, warped(&ac4, WARP), None), &ac4, Some(&still));
            report("ac4_damage", &run(&ac4, damaged(&ac4), Some(3)), &ac4, Some(&still));
        }
    } else {
        println!("no kasthuri_ac4 under KINESIN_DATA: its cases are left out");
    }
}

fn stack(planes: Vec<Array2<u8>>, size: usize) -> Stack {
    let rim = (planes[0].nrows() - size) / 2;
    Stack { planes, size, rim }
}

/// Whole sections, each with its own warp.
fn warped(stack: &Stack, (degrees, shift, sd): (f64, f64, f64)) -> Vec<Recipe> {
    let warp = |z: usize| Warp::new(100 + z as u64, (stack.size, stack.rim), degrees, shift, sd);
    let recipe = |z| Recipe { warp: warp(z), damage: Damage::default(), grey: Grey::Same };
    (0..stack.planes.len()).map(recipe).collect()
}

/// The cases of eight sections.
fn cases(stack: &Stack, tissue: &str) -> Vec<(String, Vec<Recipe>)> {
    let plain = || warped(stack, WARP);
    let middle = Xy::new(stack.size as f64 / 2.0, stack.size as f64 / 2.0);
    let every_other = |change: &dyn Fn(&mut Recipe, usize)| {
        let mut recipes = plain();
        (1..recipes.len()).step_by(2).for_each(|z| change(&mut recipes[z], z));
        recipes
    };
    let first = |change: &Affine| {
        let mut recipes = plain();
        recipes[3].warp = recipes[3].warp.after(change);
        recipes
    };
    let turned = |degrees: f64| first(&Affine::rotation(degrees.to_radians(), middle));
    let scale = |k: f64, mirror: f64| Affine {
        rows: [[k * mirror, 0.0, middle.x * (1.0 - k * mirror)], [0.0, k, middle.y * (1.0 - k)]],
    };
    let named = |name: &str, recipes| (format!("{tissue}_{name}"), recipes);
    vec![
        named("next", plain()),
        named("nowarp", warped(stack, (0.0, 0.0, 0.0))),
        named("inverted", every_other(&|r, _| r.grey = Grey::Inverted)),
        named("gamma", every_other(&|r, z| r.grey = Grey::Gamma(if z % 4 == 1 { 0.4 } else { 2.5 }))),
        named("turned90", turned(90.0)),
        named("turned180", turned(180.0)),
        named("turned37", turned(37.0)),
        named("half", first(&Affine::translation(Xy::new(0.42 * stack.size as f64, 0.0)))),
        named("mirrored", first(&scale(1.0, -1.0))),
        named("pixel", first(&scale(1.5, 1.0))),
    ]
}

/// Twelve sections: 3 is missing, 5 has a crack of 30 px, 7 a fold of 24 px, 9 is dirty.
fn damaged(stack: &Stack) -> Vec<Recipe> {
    let (mut recipes, size) = (warped(stack, WARP), stack.size as f64);
    recipes[5].damage = Damage::cut(0.45 * size, 0.5 * size, 25.0, 30.0);
    recipes[7].damage = Damage::cut(0.5 * size, 0.58 * size, 110.0, -24.0);
    recipes[9].damage = Damage::dirt(12, size, 9);
    recipes
}

fn run(stack: &Stack, recipes: Vec<Recipe>, missing: Option<u32>) -> Run {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let config = AlignConfig::default();
    let s = config.reduction as usize;
    let mut aligner = Aligner::new(config).expect("the default is allowed");
    let (mut done, mut cpu, mut mpx) = (vec![], 0.0, 0.0);
    for (z, (recipe, plane)) in (0u32..).zip(recipes.iter().zip(&stack.planes)) {
        if missing == Some(z) {
            done.extend(aligner.missing(SerialIndex(z), "gone").expect("in order"));
            continue;
        }
        let image = recipe.cut(plane, stack.size);
        let start = cpu_seconds();
        done.extend(pool.install(|| aligner.push(&view(z, &image, s)).expect("in order")));
        if z > 0 {
            cpu += cpu_seconds() - start;
            mpx += image.len() as f64 / 1e6;
        }
    }
    done.extend(aligner.finish());
    Run { recipes, done, cpu, mpx }
}

/// CPU seconds of all threads of the process.
fn cpu_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |e: std::fs::DirEntry| std::fs::read_to_string(e.path().join("schedstat")).unwrap_or_default();
    threads.map(of).filter_map(|t| t.split(' ').next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
}

fn report(name: &str, run: &Run, stack: &Stack, beside: Option<&Run>) {
    if let Some(folder) = std::env::var_os("KINESIN_CUT") {
        let there = run.done.iter().filter(|a| a.verdict != Verdict::Missing).map(|a| a.serial.0 as usize);
        let sections: Vec<_> = there.map(|z| (z, &run.recipes[z], &stack.planes[z])).collect();
        export((folder.as_ref(), name, stack.size), &sections, &points(stack), (MARGIN, FAR))
            .expect("a folder to write to");
    }
    let placed: Vec<usize> = (0..run.done.len()).filter(|z| run.done[*z].map.is_some()).collect();
    let pairs: Vec<Vec<f64>> = placed.windows(2).map(|w| apart(run, stack, (w[0], w[1]), (beside, MARGIN))).collect();
    let row = |name: &str, mut all: Vec<f64>, n: usize, tail: &str| {
        all.sort_by(f64::total_cmp);
        let at = |p: f64| all.get((all.len() as f64 * p) as usize).copied().unwrap_or(f64::NAN);
        let [m, p95, p99] = [0.5, 0.95, 0.99].map(at);
        let most = all.last().copied().unwrap_or(f64::NAN);
        println!("{name:<15} | {n:>5} | {:<5.2} {m:<6.2} {p95:<5.2} {p99:<6.2} {most:<6.1} | {tail}", rms(&all));
    };
    let told = format!("{:>9.1} | {}", run.mpx / run.cpu, verdicts(run));
    row(name, pairs.concat(), pairs.len(), &told);
    if run.recipes.iter().any(|r| r.damage.any()) {
        let far = placed.windows(2).flat_map(|w| apart(run, stack, (w[0], w[1]), (beside, FAR))).collect();
        row(&format!("  {FAR} px away"), far, pairs.len(), "");
    }
    // By pair, for whoever looks for the section that is to blame.
    if std::env::var_os("ALIGN_PAIRS").is_some() {
        for (w, pair) in placed.windows(2).zip(pairs) {
            let a = &run.done[w[1]];
            row(
                &format!("   {} {}", w[0], w[1]),
                pair,
                1,
                &format!("{:?} {:?} {:?}", a.confidence, a.stiffness, a.residual_px),
            );
        }
    }
}

/// Residuals between two sections.
fn apart(run: &Run, stack: &Stack, (a, b): (usize, usize), (beside, margin): (Option<&Run>, f64)) -> Vec<f64> {
    let size = stack.size as f64;
    let at = |run: &Run, z: usize, t: Xy<f64>| -> Option<Xy<f64>> {
        let p = run.recipes[z].to_section(t, margin)?;
        let inside = p.x >= 0.0 && p.y >= 0.0 && p.x < size && p.y < size;
        inside.then(|| run.done[z].map.as_ref().map(|m| m.0.apply(p)))?
    };
    let step = |run: &Run, t| Some(at(run, b, t)? - at(run, a, t)?);
    let off = |t| {
        let base = beside.map_or(Some(Xy::default()), |still| step(still, t))?;
        Some((step(run, t)? - base).norm())
    };
    points(stack).into_iter().filter_map(off).collect()
}

/// The tissue points that are looked at.
fn points(stack: &Stack) -> Vec<Xy<f64>> {
    let side = stack.planes[0].nrows();
    (0..side).step_by(8).flat_map(|y| (0..side).step_by(8).map(move |x| Xy::new(x as f64, y as f64))).collect()
}

fn rms(v: &[f64]) -> f64 {
    (v.iter().map(|v| v * v).sum::<f64>() / v.len().max(1) as f64).sqrt()
}

/// The sections that are not simply aligned.
fn verdicts(run: &Run) -> String {
    let told = run.done[1..].iter().filter_map(|a| match &a.verdict {
        Verdict::Aligned => None,
        Verdict::Bridged { from } => Some(format!("{} bridged from {}", a.serial.0, from.0)),
        Verdict::Failed { reason } => Some(format!("{} failed: {reason}", a.serial.0)),
        other => Some(format!("{} {other:?}", a.serial.0).to_lowercase()),
    });
    told.collect::<Vec<_>>().join("; ")
}
