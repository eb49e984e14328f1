//! Accuracy and speed of match and montage on drawn sections with known truth, and on real tiles where `KINESIN_DATA` has them.
//!
//! `cargo bench -p kinesin-stages --bench stitch` prints a table of seam errors first (filter with `-- NAME`), then timings.

mod synthetic;

use std::time::Instant;

use kinesin_stages::montage::{MontageConfig, solve};
use kinesin_stages::pointmatch::{MatchConfig, Matcher, Verdict};
use synthetic::{Recipe, max, rms, section};

fn cases() -> Vec<(&'static str, Recipe)> {
    let msem = Recipe::default();
    vec![
        ("msem61", msem.clone()),
        ("msem61_rigid", Recipe { affine: 0.0, lens_px: 0.0, ..msem.clone() }),
        (
            "msem_hard",
            Recipe { rings: 2, overlap: 0.06, noise: 45.0, affine: 2e-3, lens_px: 3.0, blank: vec![3, 11], ..msem.clone() },
        ),
        (
            "small61",
            Recipe { size: (150, 132), overlap: 0.12, stage_px: 3.0, lens_px: 0.5, cell_px: 25.0, ..msem },
        ),
    ]
}

fn main() {
    for (name, recipe) in cases() {
        let section = section(&recipe);
        let mut matcher = Matcher::new(MatchConfig::default());
        let start = Instant::now();
        let matches = section.matches(&mut matcher);
        let seconds = start.elapsed().as_secs_f64();
        let good: Vec<_> = matches.iter().filter(|m| m.verdict == Verdict::Matched).collect();
        let errors: Vec<f64> = good.iter().flat_map(|m| section.point_errors(m)).collect();
        println!(
            "{name}: {} pairs, {} matched, {} points, error rms {:.3} max {:.2} px; {:.0} Mpx/s",
            matches.len(),
            good.len(),
            errors.len(),
            rms(&errors),
            max(&errors),
            section.mpx() / seconds
        );
        let start = Instant::now();
        let montage = solve(&section.plan, &section.present(), &matches, &MontageConfig::default());
        let solved = start.elapsed().as_secs_f64();
        let map = |key, x| montage.tile(key).expect("placed").0.apply(x);
        let seams = section.seams(map);
        println!(
            "   seam rms {:.3} max {:.2}; place rms {:.3}; residual {:.3}; {:?}; {:.0} ms; {} unconnected; match+solve {:.0} Mpx/s",
            rms(&seams),
            max(&seams),
            rms(&section.places(map)),
            montage.residual.rms,
            montage.stiffness,
            1e3 * solved,
            montage.unconnected().count(),
            section.mpx() / (seconds + solved)
        );
        for t in &montage.trials {
            println!("      {:?} {:.4}", t.stiffness, t.held_out_px);
        }
        for m in matches.iter().filter(|m| m.verdict != Verdict::Matched) {
            println!("   {} {} {:?}", m.p.beam, m.q.beam, m.verdict);
        }
    }
    divan::main();
}
