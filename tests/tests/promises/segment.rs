//! `kinesin segment` and what can be made of its results: every setting does what it says, a kill costs seconds, bad input is
//! told before any work.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Ended, Place, SITE, assert_same, json, kinesin, start, text};

/// The image of a small acquisition, at the voxel size of the shipped network.
fn image(place: &Place) -> PathBuf {
    place.run(&format!("{SITE}\n[stages.segment]\nenabled = false\n"), "live", &[]).expect(0);
    place.path("live").join("volume/image/1")
}

fn arguments<'a>(image: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["segment", text(image), "--out", text(out)], more].concat()
}

fn segment(image: &Path, out: &Path, more: &[&str]) -> Ended {
    kinesin(&arguments(image, out, more))
}

fn report(out: &Path) -> Value {
    json(&out.join("report.json"))
}

fn count(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} in {of}"))
}

/// The labels of one run, its merges applied, against those of another.
fn scores(result: &Path, truth: &Path) -> Value {
    let truth = truth.join("volume/labels");
    let scored = kinesin(&["score", text(result), "--truth", text(&truth), "--json"]).expect(0);
    serde_json::from_str::<Value>(&scored.stdout).expect("JSON")["labels"].clone()
}

/// Writes a settings file.
fn settings(place: &Place, name: &str, toml: &str) -> PathBuf {
    let path = place.path(name);
    fs::write(&path, toml).expect("writable");
    path
}

#[test]
fn settings_lists_and_earlier_labels_do_what_they_say() {
    let place = Place::new();
    let image = image(&place);
    let base = place.path("base");
    let said = segment(&image, &base, &["--json"]).expect(0);
    let whole: Value = serde_json::from_str(&said.stdout).expect("one JSON object");
    assert!(count(&whole, "floods_kept") > 3, "{whole}");
    assert_eq!(whole["schedule"], "reference");
    assert!(whole["provider"]["provider"].is_string() && whole["evaluations_per_second"].is_number());

    // one start point: one object
    let began = json(&base.join("volume/origins/00000.json"));
    let list = settings(&place, "one.json", &format!("[{}]", began[0]["start"]));
    let one = place.path("one");
    segment(&image, &one, &["--seeds", text(&list)]).expect(0);
    assert_eq!(count(&report(&one), "floods_kept"), 1);
    assert_eq!(scores(&one, &base)["adapted_rand_error"], 0.0, "the first object of the whole run");

    // probabilities change no label
    let (with, file) = (place.path("with"), settings(&place, "p.toml", "probability = true"));
    segment(&image, &with, &["--settings", text(&file)]).expect(0);
    assert!(with.join("volume/probability").is_dir());
    fs::remove_dir_all(with.join("volume/probability")).expect("there");
    assert_same(&base, &with);

    // built on what is there: it stays, and little is left to do
    let built = place.path("built");
    segment(&image, &built, &["--initial", text(&base)]).expect(0);
    let same = scores(&built, &base);
    assert_eq!((&same["adapted_rand_error"], &same["coverage"]), (&Value::from(0.0), &Value::from(1.0)), "{same}");
    assert!(count(&report(&built), "evaluations") < count(&whole, "evaluations"));

    // a mask of every voxel leaves nothing
    let (none, file) = (place.path("none"), settings(&place, "m.toml", "[[masks]]\nbelow = 256"));
    segment(&image, &none, &["--settings", text(&file)]).expect(0);
    assert_eq!(report(&none)["labelled_voxels"], 0);

    let thrifty = place.path("thrifty");
    segment(&image, &thrifty, &["--schedule", "thrifty"]).expect(0);
    let thrifty = report(&thrifty);
    assert!(count(&thrifty, "evaluations") < count(&whole, "evaluations") && thrifty["schedule"] == "thrifty");
}

#[test]
fn a_segmentation_killed_within_its_window_goes_on_with_other_workers_to_the_same_bytes() {
    let place = Place::new();
    let image = image(&place);
    let file = settings(&place, "s.toml", "core = 64\ncheckpoint_seconds = 0.05\nprobability = true");
    let (whole, killed) = (place.path("whole"), place.path("killed"));
    segment(&image, &whole, &["--settings", text(&file), "--workers", "1"]).expect(0);
    let mut child = start(&arguments(&image, &killed, &["--settings", text(&file), "--workers", "1"]));
    let kept = || fs::read_dir(killed.join("checkpoints")).is_ok_and(|mut files| files.next().is_some());
    while !kept() {
        assert!(child.try_wait().expect("its state").is_none(), "it ended before it kept anything");
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    child.kill().expect("kill -9");
    child.wait().expect("reaped");
    assert!(!killed.join("report.json").exists());
    segment(&image, &killed, &["--settings", text(&file), "--workers", "2", "--batch", "3"]).expect(0);
    assert_same(&whole, &killed);
    assert!(!killed.join("checkpoints").exists(), "nothing is kept of what is done");
}

#[test]
fn a_consensus_splits_wherever_either_run_does_and_agglomeration_is_an_append_only_table() {
    let place = Place::new();
    let image = image(&place);
    let (a, b, both, merged) = (place.path("a"), place.path("b"), place.path("both"), place.path("merged"));
    segment(&image, &a, &[]).expect(0);
    let reversed = settings(&place, "r.toml", "[[seeds]]\nkind = \"peaks\"\nreverse = true");
    segment(&image, &b, &["--settings", text(&reversed)]).expect(0);
    kinesin(&["consensus", text(&a), text(&b), "--out", text(&both), "--min-voxels", "1"]).expect(0);
    for run in [&a, &b] {
        let merge = scores(&both, run)["voi_merge"].as_f64().expect("a number");
        assert!(merge < 1e-9, "an object of the consensus lies in one object of {}: {merge}", run.display());
    }
    assert!(report(&both)["labelled_fraction"].as_f64() <= report(&a)["labelled_fraction"].as_f64());
    kinesin(&["consensus", text(&a), text(&b), "--out", text(&both)]).expect(2).says(&["finished"]);

    let agglomerate = ["agglomerate", text(&image), "--labels", text(&a), "--out", text(&merged)];
    kinesin(&agglomerate).expect(0);
    let said = report(&merged);
    let rows = fs::read_to_string(merged.join("decisions.jsonl")).expect("there").lines().count() as u64;
    assert!(count(&said, "pairs") > 0 && rows == count(&said, "pairs"), "{said}");
    let score = scores(&merged, &a);
    assert_eq!(score["voi_split"], 0.0, "merges only join: {score}");
    assert_eq!(score["voi_merge"] == 0.0, count(&said, "merged") == 0, "{score} {said}");
    let wrong = settings(&place, "w.toml", "attempts = 0\nmin_iuo = 0.5");
    kinesin(&[&agglomerate[..], &["--overwrite", "--settings", text(&wrong)]].concat()).expect(2).says(&["min_iuo"]);
}

/// A grey TIFF of pages of one value.
fn grey(path: &Path, pages: usize, (rows, columns): (u32, u32)) {
    let mut encoder = tiff::encoder::TiffEncoder::new(fs::File::create(path).expect("writable")).expect("writable");
    for _ in 0..pages {
        let page = vec![90; (rows * columns) as usize];
        encoder.write_image::<tiff::encoder::colortype::Gray8>(columns, rows, &page).expect("writable");
    }
}

#[test]
fn what_cannot_be_segmented_is_told_before_anything_is_made() {
    let place = Place::new();
    let (volume, small, out) = (place.path("volume.tif"), place.path("small.tif"), place.path("out"));
    grey(&volume, 20, (64, 64));
    grey(&small, 20, (64, 32));
    let refused = |more: &[&str], parts: &[&str]| {
        segment(&volume, &out, more).expect(2).says(parts);
        assert!(!out.exists(), "{more:?} has made {}", out.display());
    };
    refused(&["--mask", text(&small)], &["mask", "20 x 64 x 32", "20 x 64 x 64"]);
    refused(&["--initial", text(&small)], &["flood.initial", "20 x 64 x 32"]);
    refused(&["--box", "0,0,0,16,64,64"], &["16 x 64 x 64", "17 x 33 x 33"]);
    refused(&["--model", "mask-sim-32nm"], &["kind \"ffn\""]);
    refused(&["--provider", "cpu", "--precision", "bf16"], &["--precision f32"]);
    if !Path::new("/dev/nvidia0").exists() {
        refused(&["--provider", "cuda"], &["not available", "onnxruntime-gpu"]);
    }
    let file = settings(&place, "bad.toml", "skip = 1\nwindows = 3\n");
    refused(&["--settings", text(&file)], &["skip", "windows", "skip_explored"]);
    let file = settings(&place, "bad.toml", "[[seeds]]\nkind = \"peeks\"");
    refused(&["--settings", text(&file)], &["peeks", "section-peaks"]);
    let file = settings(&place, "bad.toml", "seeds = []\nrules = { deltas = [9, 8, 8] }");
    refused(&["--settings", text(&file)], &["deltas = [9, 8, 8]", "flood.seeds is empty"]);
    let list = settings(&place, "far.csv", "z,y,x\n3,64,3\n");
    refused(&["--seeds", text(&list)], &["point 1 (3, 64, 3) is outside"]);
}

#[test]
fn floods_without_finite_numbers_are_losses_and_a_network_that_gives_none_stops_the_run() {
    let place = Place::new();
    let (volume, model, out) = (place.path("volume.tif"), place.path("overflowing"), place.path("out"));
    grey(&volume, 20, (64, 64));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../stages/models/ffn-sim-16nm");
    fs::create_dir(&model).expect("writable");
    fs::copy(shipped.join("model.onnx"), model.join("model.onnx")).expect("the shipped model");
    let card = fs::read_to_string(shipped.join("model.toml")).expect("the shipped model");
    // every grey value is an infinite number of standard deviations from the mean
    let card = card.replace("kind = \"section\"", "kind = \"fixed\"\nmean = 128.0\nsd = 1e-60");
    fs::write(model.join("model.toml"), card).expect("writable");
    let flood = |starts: usize| {
        let list: Vec<[usize; 3]> = (0..starts).map(|i| [9, 20 + 4 * (i / 5), 20 + 4 * (i % 5)]).collect();
        let list = settings(&place, "starts.json", &serde_json::to_string(&list).expect("numbers"));
        let more = ["--model", text(&model), "--provider", "cpu", "--seeds", text(&list), "--overwrite"];
        segment(&volume, &out, &more)
    };
    flood(3).expect(1);
    assert_eq!(count(&report(&out), "floods_lost_not_finite"), 3);
    flood(20).expect(3).says(&["16 times in a row", "normalisation"]);
}
