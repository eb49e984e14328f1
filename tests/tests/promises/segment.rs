//! `kinesin segment` and what can be made of its results: every setting does what it says, a kill costs seconds, bad input is
//! told before any work.

use std::fs;
use std::path::{Path, PathBuf};

use kinesin_stream::volume;
use ndarray::Array3;
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
fn grey(path: &Path, pages: usize, (rows, columns): (usize, usize)) {
    write(path, &Array3::from_elem((pages, rows, columns), 90));
}

/// A grey TIFF of these pages.
fn write(path: &Path, pages: &Array3<u8>) {
    let mut encoder = tiff::encoder::TiffEncoder::new(fs::File::create(path).expect("writable")).expect("writable");
    let (_, rows, columns) = pages.dim();
    for page in pages.outer_iter() {
        let page: Vec<u8> = page.iter().copied().collect();
        let size = (columns as u32, rows as u32);
        encoder.write_image::<tiff::encoder::colortype::Gray8>(size.0, size.1, &page).expect("writable");
    }
}

/// Grey values at `path`.
fn greys(path: &Path) -> Array3<u8> {
    let volume = volume::open(path).expect("a volume");
    volume.read_u8(volume.info().bounds()).expect("readable")
}

/// Labels that a run left.
fn labels(out: &Path) -> Array3<u64> {
    let volume = volume::open(&out.join("volume/labels")).expect("labels");
    volume.read_labels(volume.info().bounds()).expect("readable")
}

/// Sizes of the pieces, voxels that hang together by faces, of each object.
fn pieces(labels: &Array3<u64>) -> Vec<(u64, usize)> {
    let (mut left, mut pieces) = (labels.clone(), Vec::new());
    for (first, &id) in labels.indexed_iter() {
        if left[first] == 0 {
            continue;
        }
        let (mut stack, mut size) = (vec![first], 0);
        left[first] = 0;
        while let Some((z, y, x)) = stack.pop() {
            size += 1;
            let near = [(z, y, x + 1), (z, y + 1, x), (z + 1, y, x)].into_iter();
            let before = [x.checked_sub(1).map(|x| (z, y, x)), y.checked_sub(1).map(|y| (z, y, x))];
            let near = near.chain(before.into_iter().flatten()).chain(z.checked_sub(1).map(|z| (z, y, x)));
            for at in near {
                if left.get(at) == Some(&id) {
                    left[at] = 0;
                    stack.push(at);
                }
            }
        }
        pieces.push((id, size));
    }
    pieces
}

#[test]
fn a_mask_of_another_volume_keeps_its_voxels_out_and_what_it_cuts_becomes_one_object_each() {
    let place = Place::new();
    let image = image(&place);
    // classes at half the resolution: a wall, and a part that holds no start
    let (sections, rows, columns) = greys(&image).dim();
    let (half, wall) = ((rows / 2, columns / 2), columns / 4);
    let classes = Array3::from_shape_fn((sections, half.0, half.1), |(_, y, x)| match x {
        x if x == wall => 7,
        _ if y < half.0 / 3 => 2,
        _ => 0,
    });
    let volume = place.path("classes.tif");
    write(&volume, &classes);
    let masks = |first: &str| {
        format!(
            "{first}\ncore = 1000\n[[masks]]\nvolume = {0:?}\nvalues = [7]\n[[masks]]\nvolume = {0:?}\nvalues = [2]\nfrom = \"starts\"",
            text(&volume)
        )
    };
    let (cut, split) = (place.path("cut"), place.path("split"));
    let file = settings(&place, "cut.toml", &masks(""));
    segment(&image, &cut, &["--settings", text(&file)]).expect(0);
    let file = settings(&place, "split.toml", &masks("split_pieces = 40"));
    segment(&image, &split, &["--settings", text(&file)]).expect(0);

    let (cut_labels, split_labels) = (labels(&cut), labels(&split));
    let walled = |x: usize| x * half.1 / columns == wall;
    assert!(cut_labels.indexed_iter().all(|((_, _, x), id)| *id == 0 || !walled(x)), "no label on the wall");
    let began = json(&cut.join("volume/origins/00000.json"));
    let began = began.as_array().expect("a list");
    let barred = |y: usize| y * half.0 / rows < half.0 / 3;
    assert!(began.iter().all(|o| !barred(o["start"][1].as_u64().expect("a row") as usize)), "{began:?}");
    let reached = cut_labels.indexed_iter().any(|((_, y, _), id)| *id != 0 && barred(y));
    assert!(!began.is_empty() && reached, "what may not start there may still grow there");

    // the pieces of one run are the objects of the other
    let found = pieces(&cut_labels);
    let mut wanted: Vec<usize> = found.iter().map(|(_, size)| *size).filter(|size| *size >= 40).collect();
    let of_split = pieces(&split_labels);
    let mut got: Vec<usize> = of_split.iter().map(|(_, size)| *size).collect();
    wanted.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, wanted);
    let ids = |pieces: &[(u64, usize)]| pieces.iter().map(|(id, _)| *id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&of_split).len(), of_split.len(), "one piece each");
    assert!(ids(&found).len() < found.len(), "the wall cut something");
}

#[test]
fn sections_matched_to_a_reference_are_labelled_alike_whatever_was_done_to_their_contrast() {
    let place = Place::new();
    let image = image(&place);
    // two renderings of the same grey values in the same order, which no mean and standard deviation make equal
    let dark = greys(&image).mapv(|v| if v == 0 { 0 } else { v / 2 + 1 });
    let bent = dark.mapv(|v| v + v.saturating_sub(64));
    let reference = settings(&place, "h.toml", &format!("[histogram]\nreference = {:?}", text(&image)));
    let mut runs = Vec::new();
    for (name, pages) in [("dark", &dark), ("bent", &bent)] {
        let volume = place.path(&format!("{name}.tif"));
        write(&volume, pages);
        let (plain, matched) = (place.path(&format!("{name}_plain")), place.path(&format!("{name}_matched")));
        segment(&volume, &plain, &[]).expect(0);
        segment(&volume, &matched, &["--settings", text(&reference)]).expect(0);
        runs.push((labels(&plain), labels(&matched)));
    }
    assert!(runs[0].1.iter().any(|id| *id != 0));
    assert!(runs[0].1 == runs[1].1, "matched to one reference they are the same to the network");
    assert!(runs[0].0 != runs[1].0, "as they are they are not");
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
    let toml = format!("[[masks]]\nvolume = {:?}\nvalues = [1]\n[histogram]\nreference = \"nowhere\"", text(&small));
    let file = settings(&place, "small.toml", &toml);
    refused(
        &["--settings", text(&file)],
        &["flood.masks.0.volume", "20 x 64 x 32", "20 x 64 x 64", "flood.histogram.reference"],
    );
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
