//! Live and offline are the same code: recorded tiles and volumes through the same stages.

use crate::harness::{Place, SITE, json, kinesin, text};

#[test]
fn a_recorded_acquisition_is_stitched_and_aligned_as_it_was_live() {
    let place = Place::new();
    let site = SITE.replace("[20, 360, 400]", "[17, 360, 400]");
    place.run(&site, "live", &[]).expect(0);
    let (path, recording, out) = (place.site(&site), place.path("recording"), place.path("aligned"));
    kinesin(&["sim", text(&path), "--out", text(&recording)]).expect(0);
    kinesin(&["align", text(&recording), "--out", text(&out), "--site", text(&path)]).expect(0);
    for file in
        ["alignment.json", "sections/0/placements.json", "sections/16/placements.json", "sections/16/alignment.json"]
    {
        assert_eq!(json(&out.join(file)), json(&place.path("live").join(file)), "{file}");
    }
    let scored = kinesin(&["score", text(&out), "--truth", text(&recording.join("truth")), "--json"]).expect(0);
    let scores: serde_json::Value = serde_json::from_str(&scored.stdout).expect("JSON");
    assert!(scores["alignment"]["solved"]["rms_px"].as_f64().expect("a number") <= 2.0, "{scores}");
}

#[test]
fn a_published_volume_is_segmented_and_masked_again_and_scored_against_labels() {
    let place = Place::new();
    place.run(SITE, "live", &[]).expect(0);
    let image = place.path("live").join("volume/image/1");
    let (masked, labelled) = (place.path("masked"), place.path("labelled"));
    kinesin(&["mask", text(&image), "--out", text(&masked)]).expect(0);
    let segment = ["segment", text(&image), "--out", text(&labelled), "--mask", text(&masked)];
    kinesin(&segment).expect(0);
    assert!(json(&labelled.join("report.json"))["evaluations"].as_u64().expect("a count") > 0);
    kinesin(&segment).expect(2).says(&["finished"]);
    let labels = labelled.join("volume/labels");
    let scored = kinesin(&["score", text(&labels), "--truth", text(&labels), "--json"]).expect(0);
    let scores: serde_json::Value = serde_json::from_str(&scored.stdout).expect("JSON");
    assert_eq!(scores["labels"]["adapted_rand_error"], 0.0, "a result against itself");
    kinesin(&["segment", text(&image), "--out", text(&place.path("x")), "--box", "0,0,0,99,10,10"])
        .expect(2)
        .says(&["leaves the volume"]);
}

#[test]
fn the_published_network_runs_on_a_crop_of_its_own_data() {
    let data = std::env::var("KINESIN_DATA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data").into());
    let fib = std::path::Path::new(&data).join("fib25");
    if !fib.is_dir() {
        println!("skipped: no fib25 in {data}; set KINESIN_DATA to the folder that holds it");
        return;
    }
    let place = Place::new();
    let (raw, model, out) = (fib.join("raw_u8.tif"), fib.join("ffn_fib25_fp32.onnx"), place.path("out"));
    let (crop, model) = ("100,100,100,148,148,148", text(&model));
    kinesin(&["segment", text(&raw), "--model", model, "--box", crop, "--voxel-nm", "10,10,10", "--out", text(&out)])
        .expect(0);
    let truth = fib.join("groundtruth_u32.tif");
    let scored = kinesin(&["score", text(&out), "--truth", text(&truth), "--box", crop, "--json"]).expect(0);
    let scores: serde_json::Value = serde_json::from_str(&scored.stdout).expect("JSON");
    let labels = &scores["labels"];
    assert!(
        labels["coverage"].as_f64().expect("a number") > 0.05
            && labels["adapted_rand_error"].as_f64().expect("a number") < 0.3,
        "{labels}"
    );
}
