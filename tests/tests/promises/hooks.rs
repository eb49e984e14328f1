//! An instrument that must wait is held through its hook and let go again, and nothing is lost; one that obeys nobody has its
//! loss announced before it happens.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Place, assert_same, command, events, kinesin, text};

/// Six sections of one mFOV of 197 KB, and a spool for two of them.
const SITE: &str = r#"
name = "held"
[instrument.sim]
seed = 3
[instrument.sim.tissue.procedural]
seed = 3
shape = [6, 360, 400]
[instrument.sim.layout]
beams = 7
tile_px = { x = 176, y = 160 }
overlap = 0.12
[spool]
capacity = "450 KiB"
[stages.segment]
enabled = false
[stages.mask]
enabled = false
"#;

/// Much slower than the scope: an mFOV takes a second at least to become durable.
const SLOW_HEAD: &str = "[[event]]\nwhat = \"slow_disk\"\nside = \"head\"\nwrite_ms = 0\nsync_ms = 1000\n";

/// A run with the slow head, its scope held by this hook. Not waited for.
fn held_by(place: &Place, hook: &str) -> Child {
    let (site, scenario) = (place.path("hooked.toml"), place.path("slow.toml"));
    std::fs::write(&site, format!("{SITE}[instrument.throttle]\n{hook}\n")).expect("writable");
    std::fs::write(&scenario, SLOW_HEAD).expect("writable");
    let out = place.path("out");
    let mut run = command(&["run", text(&site), "--out", text(&out), "--scenario", text(&scenario)]);
    run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// Times (unix ms) from which the hook held the instrument, and from which it did not any more.
fn holds(events: &[Value]) -> Vec<(u64, u64)> {
    let mut holds = Vec::new();
    let mut since = None;
    for event in events.iter().filter(|e| e["event"] == "hook" && e["works"] == true) {
        let (at, said) = (event["at_unix_ms"].as_u64().expect("a time"), event["said"].as_str().expect("words"));
        match (said.contains(": hold ("), since) {
            (true, None) => since = Some(at),
            (false, Some(from)) => {
                holds.push((from, at));
                since = None;
            }
            _ => {}
        }
    }
    assert!(since.is_none(), "the instrument is held for ever: {events:?}");
    holds
}

/// Nothing is lost, and the bytes are those of a run in which nobody waited.
fn nothing_is_lost(place: &Place) {
    let tiles = &place.report("out")["tiles"];
    assert_eq!((&tiles["durable"], &tiles["lost"]), (&json!(6 * 7), &json!(0)), "{tiles}");
    place.run(SITE, "undisturbed", &[]).expect(0);
    assert_same(&place.path("undisturbed"), &place.path("out"));
}

#[test]
fn a_hold_file_holds_the_instrument_while_the_spool_is_full_and_goes_again() {
    let place = Place::new();
    let file = place.path("hold");
    let mut run = held_by(&place, &format!("hold_file = {{ path = {:?} }}", text(&file)));
    let mut seen = None;
    while run.try_wait().expect("a child").is_none() {
        seen = seen.or_else(|| std::fs::read_to_string(&file).ok());
        std::thread::park_timeout(Duration::from_millis(2));
    }
    assert_eq!(run.wait().expect("reaped").code(), Some(0));
    assert!(seen.is_some_and(|text| text.starts_with("hold\nreason: ")), "nobody held");
    assert!(!file.exists(), "the instrument was not let go");
    let events = events(&place.path("out/events.jsonl"));
    assert!(!holds(&events).is_empty(), "{events:?}");
    assert!(events.iter().any(|e| e["event"] == "scope_held") && events.iter().any(|e| e["event"] == "scope_goes"));
    nothing_is_lost(&place);
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// One exchange of SBEMimage before a slice; times of question and answer.
fn exchange(at: SocketAddr, slice: u32) -> std::io::Result<(u64, u64)> {
    let mut socket = TcpStream::connect(at)?;
    let asked = unix_ms();
    let state = json!({"paused": false, "z_depth": 10.0 + 0.025 * f64::from(slice), "slice_thickness": 25,
        "overviews": {"number_ov": 1, "ov_coords": [[0.0, 1.5]], "ov_dirs": ["D:\\a"]}});
    socket.write_all(state.to_string().as_bytes())?;
    let (mut reply, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let n = socket.read(&mut chunk)?;
        reply.extend(&chunk[..n]);
        if n == 0 || chunk[..n].contains(&b'\n') {
            let reply: Value = serde_json::from_slice(&reply)?;
            assert_eq!(reply, json!({"commands": []}));
            return Ok((asked, unix_ms()));
        }
    }
}

/// SBEMimage, started once Kinesin listens: it calls before each slice until it is refused, and then pauses. Any other end is
/// an exception that a person would have to see to.
fn sbemimage(at: SocketAddr, run: &mut Child) -> Vec<(u64, u64)> {
    let mut slices = Vec::new();
    let mut ended = false;
    loop {
        match exchange(at, slices.len() as u32) {
            Ok(times) => slices.push(times),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused && (ended || !slices.is_empty()) => return slices,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => ended = run.try_wait().expect("a child").is_some(),
            Err(e) => panic!("SBEMimage's acquisition would end with an exception: {e}"),
        }
        // It images and cuts.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn sbemimage_waits_at_its_slice_while_the_spool_is_full_and_goes_on_without_a_person() {
    let place = Place::new();
    let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("loopback");
    let mut run = held_by(&place, &format!("sbemimage = {{ listen = \"{at}\" }}"));
    let slices = sbemimage(at, &mut run);
    assert_eq!(run.wait().expect("reaped").code(), Some(0));
    let holds = holds(&events(&place.path("out/events.jsonl")));
    assert!(!holds.is_empty(), "nobody held");
    for (from, to) in &holds {
        // The one that waited for the release, and perhaps the next.
        let within = slices.iter().filter(|(asked, answered)| asked > from && answered < to).count();
        assert!(within <= 2, "{within} slices went on during the hold {from} to {to}: {slices:?}");
    }
    let waited = slices.iter().any(|(asked, answered)| holds.iter().any(|(from, to)| asked < to && answered > from));
    assert!(waited, "no slice met a hold: {holds:?}, {slices:?}");
    nothing_is_lost(&place);
}

/// A scope that gives eight mFOVs a second whatever anybody says, to a head that takes less than one, and room for six.
const DEAF: &str = "[instrument.sim.pace]\nspeed = 0.0053\nobeys = false\n[govern]\ntick_seconds = 0.05\n
[govern.ladder]\nrate_seconds = 0.5\n";

#[test]
fn of_an_instrument_that_cannot_be_held_the_loss_is_announced_before_the_first_tile_is_lost() {
    let place = Place::new();
    let site = SITE.replace("shape = [6,", "shape = [20,").replace("450 KiB", "1200 KiB");
    let scenario = place.path("slow.toml");
    std::fs::write(&scenario, SLOW_HEAD).expect("writable");
    let ended = place.run(&format!("{site}{DEAF}"), "out", &["--scenario", text(&scenario)]).expect(1);
    ended.says(&["DATA WILL BE LOST", "spool"]);
    let events = events(&place.path("out/events.jsonl"));
    let at = |kind: &str| events.iter().position(|e| e["event"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    assert!(at("coming_loss") < at("tile_lost"), "{events:?}");
    let announced = &events[at("coming_loss")];
    assert_eq!(announced["buffer"], "spool");
    assert_eq!(announced["figures"]["capacity"], 1200 * 1024);
    assert!(announced["bytes_per_minute"].as_u64() > Some(0) && announced["figures"]["held"].as_u64() > Some(0));

    let tiles = &place.report("out")["tiles"];
    let n = |key: &str| tiles[key].as_u64().expect("a count");
    assert!(n("lost") > 0 && n("durable") + n("lost") == 20 * 7, "{tiles}");
    let no_room: u64 = by_reason(tiles, "no room");
    assert_eq!(no_room, n("lost"), "{tiles}");
    let rows =
        kinesin(&["ledger", text(&place.path("out")), "--state", "lost", "--reason", "no room", "--json"]).stdout;
    assert_eq!(rows.lines().count() as u64, n("lost"), "each is named");
    assert_eq!(named(&events, "tile_lost") as u64, n("lost"), "each is named in the events");
}

fn by_reason(tiles: &Value, word: &str) -> u64 {
    let reasons = tiles["lost_by_reason"].as_object().expect("by reason");
    reasons.iter().filter(|(reason, _)| reason.contains(word)).filter_map(|(_, n)| n.as_u64()).sum()
}

/// Tiles that events of this kind name.
fn named(events: &[Value], kind: &str) -> usize {
    let of = events.iter().filter(|e| e["event"] == kind);
    of.map(|e| e["tiles"].as_array().map_or(0, Vec::len)).sum()
}

/// A small disk is mounted for the spool, which only root may; it grows while the run waits.
#[test]
fn a_full_disk_under_the_spool_holds_the_scope_until_there_is_space() {
    let place = Place::new();
    let disk = place.path("disk");
    let Some(disk) = crate::faults::disk::Disk::small(Path::new(disk.parent().expect("a folder")), "disk", 500 << 10)
    else {
        println!("skipped: a small file system can only be mounted by root");
        return;
    };
    let spool = format!("[spool]\nfolder = {:?}\n", text(&disk.path().join("spool")));
    let site = place.path("disk.toml");
    std::fs::write(&site, SITE.replace("[spool]\ncapacity = \"450 KiB\"\n", &spool)).expect("writable");
    let scenario = place.path("slow.toml");
    std::fs::write(&scenario, SLOW_HEAD).expect("writable");
    let out = place.path("out");
    let mut run = command(&["run", text(&site), "--out", text(&out), "--scenario", text(&scenario)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let log = out.join("events.jsonl");
    let held = || log.is_file() && events(&log).iter().any(|e| e["event"] == "scope_held");
    while !held() && run.try_wait().expect("a child").is_none() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    disk.free();
    assert_eq!(run.wait().expect("reaped").code(), Some(0));
    let events = events(&log);
    let why = events.iter().find(|e| e["event"] == "scope_held").expect("held")["why"].clone();
    assert!(why.as_str().is_some_and(|w| w.contains("disk")), "{why}");
    assert!(events.iter().any(|e| e["event"] == "scope_goes"), "{events:?}");
    nothing_is_lost(&place);
}
