//! I2: bytes held never exceed the budget that `kinesin check` prints.

use crate::harness::{Place, SITE, kinesin, text};

#[test]
fn leased_bytes_stay_within_the_printed_budget_when_tiles_come_shuffled_and_late() {
    let place = Place::new();
    let site = format!("{}\nshuffle = true\n", SITE.trim_end());
    let path = place.site(&site);
    let check = kinesin(&["check", text(&path), "--json"]).expect(0);
    let printed: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    let budget = printed["budget_bytes"].as_u64().expect("a number of bytes");
    place.run(&site, "out", &[]).expect(0);
    let memory = &place.report("out")["memory"];
    assert_eq!(memory["budget_bytes"].as_u64(), Some(budget), "the run has the budget that check printed");
    let peak = memory["peak_leased_bytes"].as_u64().expect("a number of bytes");
    assert!(peak > 0 && peak <= budget, "{peak} of {budget}");
    for line in memory["lines"].as_array().expect("lines") {
        let n = |key: &str| line[key].as_str().map(str::to_owned).unwrap_or_else(|| line[key].to_string());
        assert!(!n("name").is_empty());
    }
}
