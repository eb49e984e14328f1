//! I1: every promised tile ends durable, or lost with a reason; the sums agree.

use crate::harness::{Place, SITE, json};

#[test]
fn every_promised_tile_is_durable_or_lost_with_a_reason_and_the_sums_agree() {
    let place = Place::new();
    let site = SITE.replace("duplicated = 0.1", "duplicated = 0.2\nlost = 0.1\nblank = 0.05");
    let site = format!("{site}\n[instrument.sim.damage]\nlist = [{{ section = 3, kind = \"missing\" }}]\n");
    place.run(&site, "out", &[]).expect(1);
    let tiles = &place.report("out")["tiles"];
    let n = |key: &str| tiles[key].as_u64().expect("a count");
    assert_eq!(n("promised"), 20 * 7);
    assert_eq!(n("promised"), n("durable") + n("lost"));
    assert!(n("lost") >= 7, "a section is missing");
    assert!(n("duplicates") > 0, "a fifth came twice");
    let reasons: u64 =
        tiles["lost_by_reason"].as_object().expect("by reason").values().filter_map(|v| v.as_u64()).sum();
    assert_eq!(reasons, n("lost"));
    let (mut there, mut lost) = (0, 0);
    for z in 0..20 {
        let quality = json(&place.path("out").join(format!("sections/{z}/quality.json")));
        there += quality["tiles"].as_object().expect("by name").len() as u64;
        lost += quality["lost"].as_object().expect("by name").len() as u64;
    }
    assert_eq!((there, lost), (n("durable"), n("lost")), "the sections' own sums");
}
