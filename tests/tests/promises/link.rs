//! The two sides as two processes.

use crate::harness::{Place, SITE, assert_same, events, free_address, kinesin, start, text};

#[test]
fn two_processes_leave_the_same_bytes_as_one_also_when_each_is_killed_on_the_way() {
    let place = Place::new();
    place.run(SITE, "one", &[]).expect(0);
    let keys = place.path("keys");
    kinesin(&["keys", text(&keys)]).expect(0);
    let site = place.side(SITE, &free_address(), &keys, "link.toml");
    let out = place.path("two");
    let receive = ["receive", text(&site), "--out", text(&out)];
    let mut head = start(&receive);
    let mut scope = start(&["send", text(&site)]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    for side in [&mut scope, &mut head] {
        side.kill().expect("kill -9");
        side.wait().expect("reaped");
    }
    let mut head = start(&receive);
    let sent = kinesin(&["send", text(&site)]);
    let code = head.wait().expect("reaped").code();
    // Everything may have been durable, and even finished, before the kill.
    assert!(code == Some(0) || code == Some(2), "the head ended with {code:?}; the scope said {}", sent.stderr);
    assert_same(&place.path("one"), &out);
    // Each side has its own log of events; both name the tiles that came twice.
    for log in [out.join("events.jsonl"), place.path("spool.events.jsonl")] {
        assert!(events(&log).iter().any(|e| e["event"] == "tile_duplicate"), "{}", log.display());
    }
}
