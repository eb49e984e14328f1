//! I1: every promised tile ends durable, or lost with a reason; the sums agree.

use serde_json::Value;

use crate::harness::{Ended, Place, SITE, events, json, kinesin, text};

#[test]
fn every_promised_tile_is_durable_or_lost_with_a_reason_and_the_sums_agree() {
    let place = Place::new();
    let site = SITE.replace("duplicated = 0.1", "duplicated = 0.2\nlost = 0.1\nblank = 0.05");
    let site = format!("{site}\n[instrument.sim.damage]\nlist = [{{ section = 3, kind = \"missing\" }}]\n");
    let ended = place.run(&site, "out", &[]).expect(1);
    let tiles = &place.report("out")["tiles"];
    let n = |key: &str| tiles[key].as_u64().expect("a count");
    assert_eq!(n("promised"), 20 * 7);
    assert_eq!(n("promised"), n("durable") + n("lost"));
    assert!(n("lost") >= 7, "a section is missing");
    assert!(n("duplicates") > 0, "a fifth came twice");
    hops_agree(tiles);
    asked_the_ledger_says_the_same(&place, tiles);
    events_name_every_tile_and_the_terminal_stays_quiet(&place, tiles, &ended);
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

/// What goes on from one hop comes in at the next, nothing is left over, and nothing is still under way.
fn hops_agree(tiles: &Value) {
    let hops = tiles["hops"].as_array().expect("hops");
    let n = |hop: &Value, key: &str| hop[key].as_u64().expect("a count");
    let mut coming = tiles["promised"].as_u64().expect("a count");
    for hop in hops {
        assert_eq!(n(hop, "came_in"), coming, "{hop}");
        coming = n(hop, "went_on");
        let ended = ["went_on", "held", "lost", "replaced"].iter().map(|k| n(hop, k)).sum::<u64>();
        assert_eq!(n(hop, "came_in"), ended, "{hop}");
    }
    let held: Vec<u64> = hops.iter().take(2).map(|hop| n(hop, "held")).collect();
    assert_eq!((hops.len(), held), (4, vec![0, 0]), "at the end nothing is on its way");
    assert_eq!(tiles["recount_agrees"], true);
    assert!(tiles["states"]["published"].as_u64() > Some(0), "what is in the volume is published");
}

/// `kinesin ledger` sums to what the report says, by state and tile by tile.
fn asked_the_ledger_says_the_same(place: &Place, tiles: &Value) {
    let out = place.path("out");
    let asked = kinesin(&["ledger", text(&out), "--json"]);
    let told: Value = serde_json::from_str(&asked.expect(1).stdout).expect("one document");
    for (state, count) in tiles["states"].as_object().expect("by state") {
        assert_eq!(&told["total"][state], count, "{state}");
        let rows = kinesin(&["ledger", text(&out), "--json", "--state", state]).stdout.lines().count();
        assert_eq!(Some(rows as u64), count.as_u64(), "{state}");
    }
    let csv = place.path("tiles.csv");
    kinesin(&["ledger", text(&out), "--csv", text(&csv)]).expect(1);
    let lines = std::fs::read_to_string(&csv).expect("written").lines().count() as u64;
    assert_eq!(Some(lines - 1), tiles["promised"].as_u64(), "a line a tile, and one of names");
}

/// What is lost or came again is named in the events, an mFOV a line; of each kind the terminal shows at most one plain line.
fn events_name_every_tile_and_the_terminal_stays_quiet(place: &Place, tiles: &Value, ended: &Ended) {
    let events = events(&place.path("out/events.jsonl"));
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).cloned().collect::<Vec<_>>();
    let names = |kind: &str| -> Vec<String> {
        let names = of(kind).iter().flat_map(|e| e["tiles"].as_array().expect("names").clone()).collect::<Vec<_>>();
        names.iter().map(|n| n.as_str().expect("a name").to_owned()).collect()
    };
    let lost = kinesin(&["ledger", text(&place.path("out")), "--json", "--state", "lost"]).stdout;
    let name = |line: &str| serde_json::from_str::<Value>(line).expect("a row")["name"].as_str().map(str::to_owned);
    let mut wanted: Vec<_> = lost.lines().filter_map(name).collect();
    let mut told = names("tile_lost");
    wanted.sort();
    told.sort();
    assert_eq!(told, wanted);
    let again: u64 = of("tile_duplicate").iter().filter_map(|e| Some(e["same"].as_u64()? + e["other"].as_u64()?)).sum();
    assert_eq!(Some(again), tiles["duplicates"].as_u64());
    assert_eq!(names("tile_duplicate").len() as u64, again, "each came twice");
    assert!(of("tile_lost").len() <= 20 * 3, "one line an mFOV and reason");

    assert!(!ended.stderr.contains('\u{1b}') && !ended.stderr.contains("kinesin_"), "{}", ended.stderr);
    let lines = |word: &str| ended.stderr.lines().filter(|l| l.contains(word)).count();
    assert_eq!((lines(" lost: "), lines("came more than once")), (1, 0), "{}", ended.stderr);
}
