//! I5: kill -9 at any point, then the same command again: the same bytes as an uninterrupted run.

use std::time::{Duration, Instant};

use crate::harness::{Place, SITE, assert_same, kinesin, start, text};

#[test]
fn a_run_killed_at_random_points_and_started_again_leaves_the_same_bytes() {
    let place = Place::new();
    let began = Instant::now();
    place.run(SITE, "whole", &[]).expect(0);
    let whole = began.elapsed();
    let (site, out) = (place.site(SITE), place.path("killed"));
    let args = ["run", text(&site), "--out", text(&out)];
    // Five kills spread over the run, at moments that differ from machine to machine; the seed is the wall clock.
    let mut seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let mut moments = Vec::new();
    for part in 1..=5_u32 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let jitter = f64::from((seed >> 33) as u32) / f64::from(u32::MAX >> 1);
        moments.push(whole.mul_f64((f64::from(part) - 1.0 + jitter) / 6.0).max(Duration::from_millis(30)));
    }
    for moment in &moments {
        let mut child = start(&args);
        std::thread::sleep(*moment);
        child.kill().expect("kill -9");
        child.wait().expect("reaped");
    }
    let last = kinesin(&args);
    // A kill may have come after the end: then the folder holds a finished run, which is refused.
    assert!(last.code == Some(0) || last.stderr.contains("finished"), "killed at {moments:?}\n{}", last.stderr);
    assert_same(&place.path("whole"), &out);
}

#[test]
fn a_finished_run_is_refused_and_replaced_only_on_demand() {
    let place = Place::new();
    let site = SITE.replace("[20, 360, 400]", "[17, 360, 400]");
    place.run(&site, "out", &[]).expect(0);
    place.run(&site, "out", &[]).expect(2).says(&["finished", "--overwrite"]);
    let other = site.replace("seed = 3\n[instrument.sim.tissue", "seed = 4\n[instrument.sim.tissue");
    // An interrupted run is continued by the same command only.
    std::fs::remove_file(place.path("out").join("report.json")).expect("there");
    place.run(&other, "out", &[]).expect(2).says(&["--overwrite"]);
    place.run(&other, "out", &["--overwrite"]).expect(0);
}
