//! I6: scores on truth within stated bounds, and each stage better than its nominal input.

use crate::harness::{Place, SITE};

#[test]
fn placement_alignment_and_labels_beat_their_nominal_inputs_and_meet_the_bounds() {
    let place = Place::new();
    place.run(SITE, "out", &[]).expect(0);
    let scores = place.report("out")["scores"].clone();
    let px = |part: &str, which: &str, key: &str| scores[part][which][key].as_f64().expect("a number");
    let (solved, nominal) = (px("placement", "solved", "rms_px"), px("placement", "nominal", "rms_px"));
    assert!(solved <= 1.0 && solved < nominal, "tile placement {solved} px rms, nominal {nominal}");
    let (aligned, identity) = (px("alignment", "solved", "rms_px"), px("alignment", "nominal", "rms_px"));
    assert!(aligned <= 2.0 && aligned < identity, "alignment {aligned} px rms, unaligned {identity}");
    let labels = &scores["labels"];
    let n = |key: &str| labels[key].as_f64().expect("a number");
    assert!(n("voi_split").is_finite() && n("voi_merge").is_finite());
    assert!((0.0..=1.0).contains(&n("adapted_rand_error")));
    assert!(n("coverage") > 0.0, "nothing was labelled");
    // Without alignment the same flood breaks neurites and leaks between them.
    place.run(SITE, "unaligned", &["--nominal", "align"]).expect(0);
    let unaligned = &place.report("unaligned")["scores"]["labels"];
    let voi =
        |labels: &serde_json::Value| labels["voi_split"].as_f64().zip(labels["voi_merge"].as_f64()).map(|(s, m)| s + m);
    let (with, without) = (voi(labels).expect("numbers"), voi(unaligned).expect("numbers"));
    assert!(with < without, "VOI {with} aligned, {without} unaligned");
    let coverage = unaligned["coverage"].as_f64().expect("a number");
    assert!(n("coverage") > coverage, "coverage {} aligned, {coverage} unaligned", n("coverage"));
}
