//! `kinesin align` on a folder of images as people have them: some sections are no good, and the run goes on.

use std::fs;
use std::path::Path;

use crate::harness::{Place, json, kinesin, text};

/// Tissue of 6 and 20 px grain, a little different in each section, moved by a few pixels.
fn grey(z: usize, x: usize, y: usize) -> u8 {
    let hash = |x: i64, y: i64, layer: u64| {
        let mut h = (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        h = (h ^ (h >> 29) ^ layer).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((h >> 40) & 0xFFFF) as f64 / 65535.0
    };
    let grain = |x: f64, y: f64, layer: u64| {
        let (c, r, u, v) = (x.floor() as i64, y.floor() as i64, x - x.floor(), y - y.floor());
        let row = |r: i64| hash(c, r, layer) * (1.0 - u) + hash(c + 1, r, layer) * u;
        row(r) * (1.0 - v) + row(r + 1) * v
    };
    let (u, v) = (x as f64 + 3.0 * z as f64 + 40.0, y as f64 - 2.0 * z as f64 + 40.0);
    let changing = grain(u / 9.0, v / 9.0, 1 + z as u64);
    (30.0 + 90.0 * grain(u / 8.0, v / 8.0, 0) + 80.0 * grain(u / 20.0, v / 20.0, 0) + 40.0 * changing) as u8
}

fn section(folder: &Path, z: usize, (w, h): (usize, usize), value: impl Fn(usize, usize) -> u8) {
    let data: Vec<u8> = (0..w * h).map(|i| value(i % w, i / w)).collect();
    let mut file = fs::File::create(folder.join(format!("s{z:02}.tif"))).expect("writable");
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut file).expect("writable");
    encoder.write_image::<tiff::encoder::colortype::Gray8>(w as u32, h as u32, &data).expect("writable");
}

#[test]
fn bad_sections_of_a_folder_are_named_and_the_others_are_aligned() {
    let place = Place::new();
    let folder = place.path("images");
    fs::create_dir(&folder).expect("writable");
    let (w, h) = (512, 480);
    for z in 0..9 {
        match z {
            2 => section(&folder, z, (w, h), |_, _| 0),
            3 => section(&folder, z, (400, 440), |x, y| grey(z, x, y)),
            4 => section(&folder, z, (w, h), |x, y| grey(z, w - 1 - x, y)),
            5 => section(&folder, z, (w, h), |x, y| 128 + (grey(99, 3 * x + 1000, 3 * y) % 3)),
            6 => fs::write(folder.join("s06.tif"), b"this is no image").expect("writable"),
            _ => section(&folder, z, (w, h), |x, y| grey(z, x, y)),
        }
    }
    let out = place.path("out");
    let ended = kinesin(&["align", text(&folder), "--out", text(&out)]).expect(1);
    for name in ["s02.tif", "s04.tif", "s05.tif", "s06.tif"] {
        assert!(ended.stdout.contains(name), "{name} is named: {}", ended.stdout);
    }
    let why = ended.stdout.lines().find(|l| l.contains("z = 6")).expect("one line a section");
    assert!(why.contains("unreadable"), "a file that is there but no image: {why}");
    assert!(ended.stderr.contains("4 nm is assumed (--pixel-nm)"), "{}", ended.stderr);
    let grade = |z: usize| json(&out.join(format!("sections/{z}/alignment.json")))["quality"]["grade"].clone();
    let bad: Vec<usize> = (0..9).filter(|z| grade(*z) == "bad").collect();
    assert_eq!(bad, [2, 4, 5, 6], "another size is no fault");
    let bridged = json(&out.join("sections/7/alignment.json"));
    assert_eq!(bridged["record"]["verdict"]["kind"], "bridged", "{bridged}");
    assert!(out.join("sections/7/flow.json").is_file() && out.join("volume/reslice_x.pgm").is_file());
    let told = json(&out.join("report.json"))["sections"].as_array().expect("a list").len();
    assert!(told >= 4, "the report has them too");
    // What the first three of the sections shifted by is known: 3 and -2 px each.
    let at = |z: usize| {
        let map = json(&out.join(format!("sections/{z}/alignment.json")))["map"].clone();
        (map["X"][0][0].as_f64().expect("a number"), map["Y"][0][0].as_f64().expect("a number"))
    };
    let (a, b) = (at(1), at(8));
    assert!((b.0 - a.0 - 21.0).abs() < 3.0 && (b.1 - a.1 + 14.0).abs() < 3.0, "{a:?} {b:?}");
}

#[test]
fn a_folder_that_cannot_be_aligned_says_what_is_wanted_and_left_out_numbers_are_told() {
    let place = Place::new();
    let folder = place.path("images");
    fs::create_dir(&folder).expect("writable");
    let align =
        |out: &str, code| kinesin(&["align", text(&folder), "--out", text(&place.path(out))]).expect(code).stderr;
    let empty = align("none", 2);
    assert!(empty.contains("a folder of 8-bit grey images"), "{empty}");
    let mut file = fs::File::create(folder.join("s00.tif")).expect("writable");
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut file).expect("writable");
    encoder.write_image::<tiff::encoder::colortype::Gray16>(300, 280, &vec![900; 300 * 280]).expect("writable");
    let deep = align("deep", 2);
    assert!(deep.contains("s00.tif") && deep.contains("uint16") && deep.contains("8-bit"), "{deep}");
    for z in [0, 1, 2, 4] {
        section(&folder, z, (300, 280), |x, y| grey(z, x, y));
    }
    let told = align("four", 0);
    assert!(told.contains("s04.tif comes right after s02.tif"), "{told}");
}

#[test]
fn a_folder_with_a_wrong_first_section_and_a_break_is_aligned_to_its_end() {
    let place = Place::new();
    let folder = place.path("images");
    fs::create_dir(&folder).expect("writable");
    // Three kinds of tissue: that of the first section, of the next three, of the last three.
    let elsewhere = [7000, 0, 0, 0, 4000, 4000, 4000];
    for (z, from) in elsewhere.into_iter().enumerate() {
        section(&folder, z, (512, 480), |x, y| grey(z, x + from, y));
    }
    let out = place.path("out");
    let ended = kinesin(&["align", text(&folder), "--out", text(&out)]).expect(1);
    assert!(ended.stdout.contains("(s00.tif) is bad") && ended.stdout.contains("broken before it"), "{}", ended.stdout);
    let volume = json(&out.join("alignment.json"));
    assert_eq!(volume["breaks"], serde_json::json!(["s04.tif"]));
    assert_eq!(volume["unplaced"].as_object().expect("a table").keys().collect::<Vec<_>>(), ["s00.tif"]);
    let kind = |z: usize| json(&out.join(format!("sections/{z}/alignment.json")))["record"]["verdict"]["kind"].clone();
    let kinds: Vec<_> = (0..7).map(kind).collect();
    assert_eq!(kinds, ["failed", "reference", "aligned", "aligned", "new_start", "aligned", "aligned"]);
    let told = json(&out.join("report.json"))["sections"].as_array().expect("a list").clone();
    let broken: Vec<_> = told.iter().filter(|s| s["broken_before"] == true).map(|s| s["z"].clone()).collect();
    assert_eq!(broken, [4]);
}
