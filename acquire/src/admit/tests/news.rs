//! What admission names.

use super::*;

/// Takes down what is told, but for the spool's own steps.
fn listener() -> (OnEvent, Arc<Mutex<Vec<AdmitEvent>>>) {
    let events: Arc<Mutex<Vec<AdmitEvent>>> = Arc::default();
    let to = events.clone();
    let on_event = OnEvent::new(move |event| {
        if !matches!(event, AdmitEvent::Spool(_)) {
            to.lock().expect("no panic").push(event.clone());
        }
    });
    (on_event, events)
}

#[test]
fn lost_doubled_and_foreign_tiles_are_named_when_their_mfov_ends() {
    let site = Site::new();
    let plan = plan(2);
    let foreign = TileKey { beam: BeamId(60), ..plan.mfovs[0].tiles[0].key };
    let lost = |beam: usize| Event::TileLost(plan.mfovs[0].tiles[beam].key, Reason::NotAcquired("beam off".into()));
    let mut events = vec![Event::SectionBegins(plan.clone()), Event::MfovBegins(plan.mfovs[0].id)];
    events.extend((0..5).map(|beam| tile(&plan, 0, beam)));
    events.extend([tile(&plan, 0, 3), tile(&plan, 0, 3), lost(5), lost(6)]);
    events.push(Event::Tile(RawTile { key: foreign, image: RawImage::Pixels(Pixels::new(1, 1, vec![1])) }));
    events.extend([Event::MfovEnds(plan.mfovs[0].id), tile(&plan, 0, 1), Event::MfovBegins(plan.mfovs[1].id)]);
    events.extend((0..7).map(|beam| tile(&plan, 1, beam)));
    events.extend([Event::MfovEnds(plan.mfovs[1].id), Event::SectionEnds(plan.section)]);
    let (on_event, told) = listener();
    let admitted = site.admit_telling(script(events).0, 100, on_event);
    site.runtime.block_on(admitted).expect("no panic").expect("all settled");
    site.join();
    let mfov = plan.mfovs[0].id;
    let names = |beams: &[usize]| beams.iter().map(|b| plan.mfovs[0].tiles[*b].name.clone()).collect::<Vec<_>>();
    let wanted = [
        AdmitEvent::Foreign { key: foreign, times: 1 },
        AdmitEvent::TilesLost { mfov, tiles: names(&[5, 6]), reason: "not acquired: beam off".into() },
        AdmitEvent::Repeated { mfov, tiles: names(&[3]), times: Duplicates { same: 2, other: 0 } },
        AdmitEvent::CameAgain { key: plan.mfovs[0].tiles[1].key, name: names(&[1]).remove(0), times: 1 },
    ];
    assert_eq!(*told.lock().expect("no panic"), wanted);
}

#[test]
fn bytes_that_changed_in_the_spool_are_told_with_file_and_place_at_the_next_start() {
    let site = Site::new();
    let plan = plan(3);
    let (first, told) = script(whole(&plan));
    // Nobody listens there.
    let nobody = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("binds").local_addr().expect("bound");
    let admitted = site.admit_to(nobody, first, 100, OnEvent::default());
    let kept = || told.lock().expect("no panic").iter().filter(|c| matches!(c, Command::Kept(_))).count();
    site.wait_until("all kept", || kept() == 3);
    admitted.abort();
    site.runtime.block_on(async { admitted.await.expect_err("aborted") });
    let spool = std::fs::read_dir(site.dir.path().join("spool")).expect("a folder");
    let segment = |p: &std::path::PathBuf| p.extension().is_some_and(|e| e == "segment");
    let file = spool.map(|e| e.expect("reads").path()).find(segment).expect("a segment");
    let mut bytes = std::fs::read(&file).expect("reads");
    let third = bytes.len() / 3;
    bytes[third..2 * third].fill(0x5a);
    std::fs::write(&file, bytes).expect("writes");

    let (on_event, events) = listener();
    let admitted = site.admit_telling(script_of(&plan), 100, on_event);
    site.runtime.block_on(admitted).expect("no panic").expect("all settled");
    site.join();
    let events = events.lock().expect("no panic");
    let damage =
        |e: &AdmitEvent| matches!(e, AdmitEvent::SpoolDamaged { file: f, bytes, .. } if *f == file && *bytes > 0);
    assert!(events.iter().any(damage), "{events:?}");
}
