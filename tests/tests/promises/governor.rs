//! When compute falls behind, less is done for a while, and in the end everything: the bytes are those of any other run.

use crate::harness::{Place, SITE, json, result_bytes};

/// Every mode of the head, by order: labels pause, provisional ones come, then none, then no tiles are taken.
const DRILL: &str = r#"
[govern]
tick_seconds = 0.02
[govern.drill]
script = [[1, "lighter_segmentation"], [18, "stitch_only"], [19, "spool_only"]]
"#;

#[test]
fn what_lighter_modes_leave_out_is_back_filled_to_the_same_bytes() {
    let place = Place::new();
    place.run(SITE, "full", &[]).expect(0);
    place.run(&format!("{SITE}{DRILL}"), "drill", &[]).expect(0);
    let (full, mut drill) = (result_bytes(&place.path("full")), result_bytes(&place.path("drill")));
    let before = drill.len();
    drill.retain(|path, _| !path.starts_with("volume/labels_light"));
    assert!(before > drill.len(), "no provisional labels were made");
    assert_eq!(full.keys().collect::<Vec<_>>(), drill.keys().collect::<Vec<_>>(), "other files");
    let differ: Vec<_> = full.iter().filter(|(path, bytes)| drill[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(differ.is_empty(), "other bytes in {differ:?}");

    let governor = &place.report("drill")["governor"];
    let modes: Vec<&str> =
        governor["changes"].as_array().expect("changes").iter().filter_map(|c| c["to"].as_str()).collect();
    assert!(modes.contains(&"lighter_segmentation"), "{modes:?}");
    assert_eq!(governor["provisional_sections"], 17, "one window of the network's 17 sections");
    let events = std::fs::read_to_string(place.path("drill/events.jsonl")).expect("events");
    let told = events.lines().filter(|l| l.contains(r#""event":"mode""#)).count();
    assert_eq!(Some(told as u64), governor["changes_total"].as_u64(), "every change is in the log and in the report");
    assert_eq!(place.report("full")["governor"]["changes_total"], 0, "an instrument without a pace waits by itself");
    assert_eq!(json(&place.path("full/report.json"))["governor"]["on"], false);
}
