//! Bad input gets one clear error that says what, where, what was expected and what to do.

use std::fs;

use crate::harness::{Place, SITE, SMALL, free_address, json, kinesin, text};

#[test]
fn a_site_file_with_several_mistakes_is_told_all_of_them_at_once() {
    let place = Place::new();
    let site = SITE
        .replace("beams = 7", "beems = 7")
        .replace("seed = 3\n[instrument.sim.tissue", "seed = \"three\"\n[instrument.sim.tissue");
    let site = format!("{site}\n[compute]\nprovider = \"abacus\"\n");
    let path = place.site(&site);
    let ended = kinesin(&["check", text(&path)]).expect(2);
    ended.says(&["problems in", "beems", "three", "abacus", "openvino"]);
    place.run(&site, "out", &[]).expect(2).says(&["beems", "abacus"]);
    assert!(!place.path("out").exists(), "nothing is made for a site file that cannot be used");
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_any_tile_moves() {
    let place = Place::new();
    // The published network's window is 33 sections deep, the acquisition has 20.
    let model = place.path("deep");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../stages/models/ffn-sim-16nm");
    fs::create_dir(&model).expect("writable");
    fs::copy(format!("{shipped}/model.onnx"), model.join("model.onnx")).expect("the shipped model");
    let card = fs::read_to_string(format!("{shipped}/model.toml")).expect("the shipped model");
    fs::write(model.join("model.toml"), card.replace("[17, 33, 33]", "[19, 33, 33]")).expect("writable");
    let site = format!("{SITE}\n[stages.segment]\nmodel = {:?}\n", text(&model));
    place.run(&site, "out", &[]).expect(2).says(&["19", "17"]);
    assert!(!place.path("out").join("archive").exists(), "nothing moved");
    let site = format!("{SITE}\n[stages.segment]\nmodel = \"mask-sim-32nm\"\n");
    place.run(&site, "out", &[]).expect(2).says(&["mask-sim-32nm"]);
    let site = format!("{SITE}\n[stages.segment]\nmodel = \"no-such-model\"\n");
    place.run(&site, "out", &[]).expect(2).says(&["no-such-model"]);
}

#[test]
fn wrong_keys_on_the_link_let_nothing_through() {
    let place = Place::new();
    let (mine, theirs) = (place.path("mine"), place.path("theirs"));
    for keys in [&mine, &theirs] {
        kinesin(&["keys", text(keys)]).expect(0);
    }
    kinesin(&["keys", text(&mine)]).expect(2).says(&["--overwrite"]);
    let address = free_address();
    let side = |keys: &std::path::Path, name: &str| place.side(SITE, &address, keys, name);
    let (head, scope) = (side(&mine, "head.toml"), side(&theirs, "scope.toml"));
    let out = place.path("out");
    let mut receive = crate::harness::start(&["receive", text(&head), "--out", text(&out)]);
    let ended = kinesin(&["send", text(&scope)]);
    receive.kill().expect("stopped");
    receive.wait().expect("reaped");
    assert!(matches!(ended.code, Some(2 | 3)), "{}", ended.stderr);
    ended.says(&["certificate"]);
    assert!(
        !out.join("archive").exists() || std::fs::read_dir(out.join("archive")).expect("a folder").next().is_none()
    );
}

/// Records the small acquisition and spoils three of its tiles.
fn spoiled(place: &Place) -> std::path::PathBuf {
    let recording = place.path("recording");
    let site = place.site(SMALL);
    kinesin(&["sim", text(&site), "--out", text(&recording)]).expect(0);
    let tiles = recording.join("sections/0000/tiles");
    let mut names: Vec<_> = fs::read_dir(&tiles).expect("tiles").map(|e| e.expect("readable").path()).collect();
    names.sort();
    fs::write(&names[0], b"").expect("writable");
    let whole = fs::read(&names[1]).expect("readable");
    fs::write(&names[1], &whole[..whole.len() / 2]).expect("writable");
    let mut file = std::io::Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut file).expect("in memory");
    encoder.write_image::<tiff::encoder::colortype::Gray16>(176, 160, &vec![7; 176 * 160]).expect("in memory");
    fs::write(&names[2], file.into_inner()).expect("writable");
    recording
}

#[test]
fn empty_cut_and_16_bit_tiles_become_losses_with_their_reason_and_the_rest_goes_through() {
    let place = Place::new();
    let recording = spoiled(&place);
    let site = format!(
        "name = \"bad\"\n[instrument.recorded]\npath = {:?}\n[stages.segment]\nenabled = false\n",
        text(&recording)
    );
    place.run(&site, "live", &[]).expect(1);
    let tiles = &place.report("live")["tiles"];
    assert_eq!((tiles["lost"].as_u64(), tiles["durable"].as_u64()), (Some(3), Some(2 * 7 - 3)), "{tiles}");
    let stitched = place.path("stitched");
    kinesin(&["stitch", text(&recording), "--out", text(&stitched)]).expect(1);
    for out in [place.path("live"), stitched] {
        let quality = json(&out.join("sections/0/quality.json"));
        let lost = quality["lost"].as_object().expect("by name");
        assert_eq!(lost.len(), 3);
        let reasons: String = lost.values().map(ToString::to_string).collect();
        assert!(reasons.contains("16"), "the depth is told: {reasons}");
    }
}

#[test]
fn duplicate_names_in_a_data_set_are_refused_by_name() {
    let place = Place::new();
    let spec = r#"{"tileId":"twice","z":1,"width":64,"height":64,"mipmapLevels":{"0":{"imageUrl":"a.tif"}},
        "transforms":{"type":"list","specList":[{"className":"mpicbg.trakem2.transform.AffineModel2D","dataString":"1 0 0 1 0 0"}]}}"#;
    let mut image = std::fs::File::create(place.path("a.tif")).expect("writable");
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut image).expect("writable");
    encoder.write_image::<tiff::encoder::colortype::Gray8>(64, 64, &[9; 64 * 64]).expect("writable");
    let path = place.path("specs.json");
    fs::write(&path, format!("[{spec},{spec}]")).expect("writable");
    kinesin(&["stitch", text(&path), "--out", text(&place.path("out"))]).expect(2).says(&["twice"]);
}

#[test]
fn absent_data_says_how_to_point_at_it() {
    let place = Place::new();
    let site = SITE.replace(
        "[instrument.sim.tissue.procedural]\nseed = 3\nshape = [20, 360, 400]",
        "[instrument.sim.tissue.recorded]\nvolume = \"no_such_stack/raw\"\nvoxel_size = [30.0, 6.0, 6.0]",
    );
    place.run(&site, "out", &[]).expect(2).says(&["no_such_stack", "KINESIN_DATA"]);
}

#[test]
fn a_full_disk_stops_the_run_and_what_was_accepted_is_kept() {
    let place = Place::new();
    let out = place.path("disk");
    fs::create_dir(&out).expect("writable");
    let mount = |options: &str| {
        let done =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "none", text(&out)]).output();
        done.is_ok_and(|d| d.status.success())
    };
    if !mount("size=3m") {
        println!("skipped: a small file system can only be mounted by root");
        return;
    }
    let full = place.run(SITE, "disk", &[]);
    let grown = mount("remount,size=400m");
    let again = place.run(SITE, "disk", &[]);
    let report = out.join("report.json").is_file().then(|| place.report("disk"));
    let gone = std::process::Command::new("umount").arg(&out).output();
    assert!(grown && gone.is_ok_and(|d| d.status.success()));
    full.expect(3).says(&["error"]);
    again.expect(0);
    assert_eq!(report.expect("it ended")["tiles"]["durable"], 20 * 7);
}
