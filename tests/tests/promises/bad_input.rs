//! Bad input gets one clear error that says what, where, what was expected and what to do.

use crate::harness::{Place, SITE, kinesin, text};

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
fn a_model_whose_shapes_do_not_fit_is_refused_before_any_tile_moves() {
    let place = Place::new();
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
    let side = |keys: &std::path::Path, name: &str| {
        let site = format!("{SITE}\n[link]\naddress = \"127.0.0.1:47631\"\nkeys = {:?}\n", text(keys));
        let path = place.path(name);
        std::fs::write(&path, site).expect("writable");
        path
    };
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
