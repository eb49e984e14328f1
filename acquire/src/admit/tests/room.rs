//! Promises about room: who is held, who is warned, when room is given back.

use super::*;

#[test]
fn without_receipts_the_instrument_is_held_and_not_asked_for_more() {
    let site = Site::new();
    site.open.store(false, Ordering::SeqCst);
    let plan = plan(8);
    let (script, told) = script(whole(&plan));
    let admitted = site.admit(script, 2);
    site.wait_until("the hold", || told.lock().expect("no panic").contains(&Command::Hold));
    site.wait_until("two mFOVs", || site.waiting.lock().expect("no panic").len() == 2);
    // Nothing else can come: the third mFOV has no room for a single tile.
    let kept = |c: &Command| matches!(c, Command::Kept(_));
    let others = || told.lock().expect("no panic").iter().filter(|c| !kept(c)).copied().collect::<Vec<_>>();
    assert_eq!(others(), vec![Command::Hold]);
    assert_eq!(site.head.summary().tiles, 14);
    let status = || site.head.scope_status().is_some_and(|s| s.held && s.spool_held > 14 * TILE);
    site.wait_until("the head knows", status);
    site.open.store(true, Ordering::SeqCst);
    settle(&site.waiting, &site.ledger, &site.head.receipts());
    let sent = site.runtime.block_on(admitted).expect("no panic").expect("all durable");
    assert_eq!((sent.link.tiles, sent.link.losses), (56, 0));
    assert!(sent.holds >= 1 && sent.hold_seconds > 0.0);
    assert_eq!(others().len() as u64, 2 * sent.holds);
    assert_eq!(told.lock().expect("no panic").iter().filter(|c| kept(c)).count(), 8);
    assert_eq!(site.join().counts().expect("reads"), Counts { durable: 56, ..Counts::default() });
}

#[test]
fn open_mfovs_that_fill_the_spool_are_an_error_with_the_remedy_and_no_endless_wait() {
    let site = Site::new();
    let plan = plan(3);
    let mut events = vec![Event::SectionBegins(plan.clone())];
    // Beam 6 of every mFOV is late.
    (0..3).for_each(|m| events.extend((0..6).map(|b| tile(&plan, m, b))));
    let (script, _) = script(events);
    let needed = Bytes(4 * mfov_bytes(&script.plan).0);
    let error = site.run(script, 2).expect_err("too little");
    assert!(matches!(&error, AdmitError::SpoolTooSmall { open: 3, needed: n, .. } if *n == needed), "{error}");
    assert!(error.to_string().contains("spool.capacity"), "{error}");
    site.kill();
}

#[test]
fn kept_is_said_after_the_sync_and_room_is_given_back_after_the_receipt() {
    let site = Site::new();
    let plan = plan(5);
    let (script, _) = script(whole(&plan));
    let log = script.log.clone();
    let (disk, heads) = (log.clone(), log.clone());
    *site.log.lock().expect("no panic") = Some(heads);
    let on_event = OnEvent::new(move |event| {
        let happened = match event {
            AdmitEvent::Spool(SpoolEvent::Synced(_)) => Happened::Synced,
            AdmitEvent::Spool(SpoolEvent::Released(group)) => {
                let mut id = [0; 12];
                id.copy_from_slice(&group.0[..12]);
                Happened::Released(kinesin_stream::ledger::mfov_from(&id))
            }
            _ => return,
        };
        disk.lock().expect("no panic").push(happened);
    });
    let admitted = site.admit_telling(script, 100, on_event);
    site.runtime.block_on(admitted).expect("no panic").expect("all durable");
    site.join();
    let log = log.lock().expect("no panic").clone();
    let at = |what: Happened| log.iter().position(|h| *h == what).unwrap_or_else(|| panic!("{what:?} in {log:?}"));
    for mfov in plan.mfovs.iter().map(|m| m.id) {
        let (kept, durable, released) =
            (at(Happened::Kept(mfov)), at(Happened::Durable(mfov)), at(Happened::Released(mfov)));
        assert!(log[..kept].contains(&Happened::Synced), "{mfov} in {log:?}");
        assert!(kept < durable && durable < released, "{mfov} in {log:?}");
    }
    // A sync may cover several mFOVs, but none is said to be kept by a sync that had begun before its end.
    let syncs = log.iter().filter(|h| **h == Happened::Synced).count();
    assert!((1..=5).contains(&syncs));
}

#[test]
fn a_scope_that_cannot_be_held_is_warned_about_before_it_loses_tiles() {
    let site = Site::new();
    site.open.store(false, Ordering::SeqCst);
    let plan = plan(4);
    let (mut script, _) = script(whole(&plan));
    script.stubborn = true;
    let events: Arc<Mutex<Vec<AdmitEvent>>> = Arc::default();
    let to = events.clone();
    let on_event = OnEvent::new(move |event| {
        if !matches!(event, AdmitEvent::Spool(_)) {
            to.lock().expect("no panic").push(event.clone());
        }
    });
    let admitted = site.admit_telling(script, 2, on_event);
    site.wait_until("four mFOVs", || site.waiting.lock().expect("no panic").len() == 4);
    site.open.store(true, Ordering::SeqCst);
    settle(&site.waiting, &site.ledger, &site.head.receipts());
    let sent = site.runtime.block_on(admitted).expect("no panic").expect("all settled");
    assert_eq!((sent.link.tiles, sent.link.losses, sent.no_room, sent.holds), (14, 14, 14, 0));
    let mut events = events.lock().expect("no panic").clone();
    let named: Vec<_> = events.extract_if(.., |e| matches!(e, AdmitEvent::TilesLost { .. })).collect();
    let names = plan.mfovs[2].tiles.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert!(matches!(&named[0], AdmitEvent::TilesLost { tiles, .. } if *tiles == names), "{named:?}");
    assert!(matches!(events[0], AdmitEvent::LossComing { why: NoRoom::Capacity, .. }), "{events:?}");
    let lost: Vec<_> = plan.mfovs[2..].iter().flat_map(|m| &m.tiles).map(|t| AdmitEvent::Lost(t.key)).collect();
    assert_eq!(events[1..], lost);
    let ledger = site.join();
    let reason = ledger.tile(plan.mfovs[2].tiles[0].key).expect("reads").expect("promised").reason;
    assert!(matches!(reason, Some(Reason::NoRoom(_))), "{reason:?}");
}
