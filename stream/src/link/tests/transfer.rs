//! What is sent arrives, once, whatever happens on the way.

use std::collections::BTreeSet;

use super::*;
use crate::ledger::Counts;

#[test]
fn every_promised_tile_arrives_once_whatever_the_order_and_repetition() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    // Room for two tiles: most of what is sent waits on the line.
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(2 * u64::from(SIDE * SIDE)));
    let scope = site.call();
    let plans = [plan(0, 7, 7), plan(1, 7, 7)];
    plans.iter().for_each(|p| scope.section(p));
    for i in 0..14 {
        let nth = (i * 5) % 14;
        scope.ship(&plans[nth % 2].mfovs[nth / 2]);
    }
    let again = plans[0].mfovs[0].tiles[0].key;
    scope.scope.came_again(again, ContentHash(pixels(again).hash()));
    scope.scope.came_again(again, ContentHash([0; 32]));
    let foreign = plan(9, 1, 1).mfovs[0].tiles[0].key;
    scope.scope.foreign(foreign);
    let sent = finish(&runtime, scope).expect("all durable");
    assert_eq!((sent.tiles, sent.losses, sent.mfovs, sent.sent_again, sent.reconnects), (84, 14, 14, 0, 0));
    assert_eq!(sent.bytes, 84 * 4096);

    let (summary, mut came, ledger) = site.join();
    assert_eq!((summary.tiles, summary.losses, summary.bytes), (84, 14, 84 * 4096));
    came.sort();
    let promised: Vec<_> = plans.iter().flat_map(|p| p.tiles()).map(|t| t.key).collect();
    assert_eq!(came, promised);
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 84, lost: 14, ..Counts::default() });
    let duplicates = ledger.duplicates().expect("reads");
    assert_eq!(duplicates.iter().map(|(_, d)| d.same).sum::<u64>(), 14 + 1);
    assert_eq!(duplicates.iter().map(|(_, d)| d.other).sum::<u64>(), 1);
    assert_eq!(ledger.foreign().expect("reads"), vec![(foreign, 1)]);
}

#[test]
fn the_scope_keeps_its_bytes_until_the_archive_has_them() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    site.store.most.store(0, Ordering::SeqCst);
    let scope = site.call();
    let plan = plan(0, 1, 7);
    scope.section(&plan);
    scope.ship(&plan.mfovs[0]);
    wait_until(&runtime, "all tiles", || lock(&site.store.withheld).len() == 1);
    // Everything is at the head, nothing is durable: nothing may be forgotten.
    assert_eq!((scope.scope.outstanding(), scope.held()), (1, 1));
    assert!(!site.ledger.is_settled(plan.mfovs[0].id).expect("reads"));
    let outcomes: Vec<_> = plan.tiles().map(|t| (t.key, Outcome::Lost(Reason::SectionMissing))).collect();
    site.ledger.settle(plan.mfovs[0].id, &outcomes, &[]).expect("expected");
    site.head.receipts().durable(plan.mfovs[0].id);
    wait_until(&runtime, "the receipt", || scope.scope.outstanding() == 0);
    wait_until(&runtime, "the release", || scope.held() == 0);
    finish(&runtime, scope).expect("all settled");
    site.join();
}

#[test]
fn a_call_that_is_cut_again_and_again_loses_nothing_and_doubles_nothing() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let scope = site.call();
    let plan = plan(0, 12, 19);
    scope.section(&plan);
    plan.mfovs.iter().for_each(|m| scope.ship(m));
    for cut in 1..=5 {
        // Another call with the same keys takes the head's line away from the scope, in the middle of its mFOVs.
        wait_until(&runtime, "some tiles", || lock(&site.store.came).len() >= cut * 30);
        let (endpoint, connection) = runtime.block_on(stranger(&site, client(&site.dir)));
        runtime
            .block_on(async {
                tokio::time::timeout(Duration::from_secs(5), connection.expect("trusted").closed()).await
            })
            .expect("the scope calls again and takes it back");
        drop(endpoint);
    }
    let sent = finish(&runtime, scope).expect("all durable");
    assert!(sent.reconnects >= 1, "{sent:?}");
    let (summary, mut came, ledger) = site.join();
    // The first call, five others, and after each of them the scope again.
    assert!(summary.connections >= 11, "{summary:?}");
    came.sort();
    assert_eq!(came, plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 12 * 18, lost: 12, ..Counts::default() });
    // One tile an mFOV came twice from the instrument; being sent again is not that.
    assert_eq!(ledger.duplicates().expect("reads").iter().map(|(_, d)| d.same).sum::<u64>(), 12);
}

#[test]
fn a_dead_line_is_noticed_and_the_transfer_goes_on_where_it_was() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let relay = Relay::start(&runtime, site.head.local_addr());
    let mut config = scope_config(&site.dir, relay.addr);
    // The shorter of the two sides' counts.
    config.settings.idle_seconds = 0.5;
    let scope = site.try_call(config).expect("through the relay");
    let plan = plan(0, 8, 19);
    scope.section(&plan);
    plan.mfovs[..4].iter().for_each(|m| scope.ship(m));
    wait_until(&runtime, "some tiles", || lock(&site.store.came).len() >= 20);
    relay.dead.store(true, Ordering::SeqCst);
    // More comes from the instrument while the line is dead.
    plan.mfovs[4..].iter().for_each(|m| scope.ship(m));
    wait_until(&runtime, "a new call", || relay.called.load(Ordering::SeqCst));
    relay.dead.store(false, Ordering::SeqCst);
    let sent = finish(&runtime, scope).expect("all durable");
    assert!(sent.reconnects >= 1, "{sent:?}");
    let (_, mut came, ledger) = site.join();
    came.sort();
    assert_eq!(came, plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    assert_eq!(ledger.counts().expect("reads").durable, 8 * 18);
}

#[test]
fn a_head_that_is_killed_and_started_again_gets_only_what_it_has_not() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes(3 * 4096));
    let addr = site.head.local_addr();
    // Two are settled; of the others some are whole and some are not when the head dies.
    site.store.most.store(2, Ordering::SeqCst);
    let scope = site.call();
    let plan = plan(0, 12, 19);
    scope.section(&plan);
    plan.mfovs.iter().for_each(|m| scope.ship(m));
    let book = site.ledger.clone();
    wait_until(&runtime, "two settled", || book.settled_mfovs().expect("reads").len() == 2);
    wait_until(&runtime, "one more that is whole", || !lock(&site.store.withheld).is_empty());
    drop(book);
    site.kill();

    let site = Site::new(&runtime, dir.path(), addr, Bytes(3 * 4096));
    let before: BTreeSet<_> = site.ledger.settled_mfovs().expect("reads").into_iter().collect();
    assert_eq!(before.len(), 2);
    finish(&runtime, scope).expect("all durable");
    let (_, mut came, ledger) = site.join();
    came.sort();
    let missing = plan.tiles().map(|t| t.key).filter(|k| !before.contains(&k.mfov));
    assert_eq!(came, missing.collect::<Vec<_>>());
    assert_eq!(ledger.counts().expect("reads"), Counts { durable: 12 * 18, lost: 12, ..Counts::default() });
}

#[test]
fn a_scope_that_starts_again_is_told_what_it_need_not_send() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let plan = plan(0, 3, 7);
    let scope = site.call();
    scope.section(&plan);
    scope.ship(&plan.mfovs[1]);
    wait_until(&runtime, "a receipt", || scope.scope.outstanding() == 0);
    scope.kill(&runtime);
    let scope = site.call();
    scope.section(&plan);
    // Its room was not needed yet, so it came back from the disk; the head has it, and it is given back unsent.
    wait_until(&runtime, "the answer", || scope.scope.outstanding() == 0);
    scope.ship(&plan.mfovs[0]);
    scope.ship(&plan.mfovs[2]);
    finish(&runtime, scope).expect("all durable");
    let sections = lock(&site.store.sections).clone();
    let (summary, came, _) = site.join();
    assert_eq!((came.len(), summary.connections, sections), (21, 2, vec![SectionId(0)]));
    assert_eq!(summary.sent_again, 0);
}

#[test]
fn what_was_spooled_before_the_head_was_there_comes_in_order_also_after_a_restart_of_the_scope() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    // An address where nobody listens yet.
    let addr = std::net::UdpSocket::bind(loopback()).expect("binds").local_addr().expect("bound");
    let mut config = scope_config(dir.path(), addr);
    config.settings.streams = 1;
    let plans = [plan(4, 3, 7), plan(1, 2, 7)];
    let scope = start(&runtime, dir.path(), config.clone()).expect("starts without a head");
    scope.section(&plans[0]);
    plans[0].mfovs.iter().rev().for_each(|m| scope.ship(m));
    assert_eq!((scope.scope.outstanding(), scope.held()), (3, 3));
    scope.kill(&runtime);
    let scope = start(&runtime, dir.path(), config).expect("starts again");
    assert_eq!(scope.scope.outstanding(), 3);
    scope.section(&plans[1]);
    plans[1].mfovs.iter().for_each(|m| scope.ship(m));
    assert!(scope.scope.unfinished().is_empty());
    let folder = scope.tiles.spool().folder().to_owned();

    // One stream at a time, so that the order of arrival is that of sending.
    let keys = Keys::load(dir.path(), Role::Head).expect("made");
    let one = LinkSettings { streams: 1, ..settings() };
    let site = Site::with(
        &runtime,
        dir.path(),
        Bytes(2 * 4096),
        HeadConfig { bind: addr, keys, digest: DIGEST, settings: one },
    );
    let sent = finish(&runtime, scope).expect("all durable");
    assert_eq!((sent.mfovs, sent.tiles, sent.losses, sent.bytes), (5, 30, 5, 30 * 4096));
    assert!(!folder.exists(), "a run that has sent everything leaves no spool");
    let (came, ledger) = (lock(&site.store.came).clone(), site.ledger.clone());
    site.end();
    let order: Vec<_> =
        plans[0].mfovs.iter().rev().chain(&plans[1].mfovs).flat_map(|m| &m.tiles).map(|t| t.key).collect();
    assert_eq!(came, order, "oldest first");
    assert_eq!(ledger.duplicates().expect("reads").iter().map(|(_, d)| d.same).sum::<u64>(), 5);
}

#[test]
fn a_tile_that_the_spools_disk_damaged_is_lost_by_name_and_all_others_come() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let addr = std::net::UdpSocket::bind(loopback()).expect("binds").local_addr().expect("bound");
    let scope = start(&runtime, dir.path(), scope_config(dir.path(), addr)).expect("starts without a head");
    let plan = plan(0, 2, 7);
    scope.section(&plan);
    plan.mfovs.iter().for_each(|m| scope.ship(m));
    // One bit in the pixels of the first tile, and one in the record's header of another.
    let bad = [plan.mfovs[0].tiles[0].key, plan.mfovs[1].tiles[4].key];
    let path = dir.path().join("spool/0000000000.segment");
    let mut file = std::fs::read(&path).expect("there");
    // Where a record begins: its header has the hash of its payload from byte 48 on, and 96 bytes; then come 64 of the frame.
    let begins = |key| {
        let hash = pixels(key).hash();
        file.windows(32).position(|w| w == hash).expect("there") - 48
    };
    let (body, header) = (begins(bad[0]) + 96 + 64, begins(bad[1]));
    file[body + 1000] ^= 1;
    file[header + 33] ^= 1;
    std::fs::write(&path, file).expect("writes");

    let site = Site::new(&runtime, dir.path(), addr, Bytes::mib(1));
    let sent = finish(&runtime, scope).expect("all settled");
    assert_eq!((sent.tiles, sent.losses, sent.damaged_at_rest), (10, 4, 2), "{sent:?}");
    let (summary, _, ledger) = site.join();
    assert_eq!(summary.damaged, 1, "pixels are checked where they are used");
    for tile in plan.tiles() {
        let row = ledger.tile(tile.key).expect("reads").expect("promised");
        let damaged = matches!(&row.reason, Some(Reason::Damaged(what)) if what.contains("0000000000.segment"));
        assert_eq!(damaged, bad.contains(&tile.key), "{} {:?}", tile.key, row.reason);
    }
}

#[test]
fn the_head_knows_how_full_the_spool_is() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    assert_eq!(site.head.scope_status(), None);
    site.store.most.store(0, Ordering::SeqCst);
    let scope = site.call();
    let plan = plan(0, 1, 7);
    scope.section(&plan);
    scope.scope.asked(Asked { held: false, holdable: false, slowable: true, pace: 0.5 });
    scope.ship(&plan.mfovs[0]);
    let full = |s: ScopeStatus| s.spool_held > 6 * 4096 && s.in_bytes_total == s.spool_held && s.out_bytes_total == 0;
    wait_until(&runtime, "the status", || site.head.scope_status().is_some_and(full));
    let status = site.head.scope_status().expect("there");
    assert_eq!((status.held, status.holdable, status.pace), (false, false, 0.5));
    assert_eq!(status.spool_capacity, Bytes::mib(16).0);
    scope.kill(&runtime);
    wait_until(&runtime, "it is gone", || site.head.scope_status().is_none());
    site.kill();
}

/// Passes datagrams between the scope and the head until it is dead.
struct Relay {
    addr: SocketAddr,
    dead: Arc<AtomicBool>,
    /// Whether the scope has begun a new handshake while it was dead.
    called: Arc<AtomicBool>,
}

impl Relay {
    fn start(runtime: &Runtime, head: SocketAddr) -> Self {
        let (dead, called) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let socket = runtime.block_on(tokio::net::UdpSocket::bind(loopback())).expect("binds");
        let relay = Self { addr: socket.local_addr().expect("bound"), dead, called };
        let (dead, called) = (relay.dead.clone(), relay.called.clone());
        runtime.spawn(async move {
            let mut scope = None;
            let mut datagram = vec![0; 65536];
            loop {
                // The port of a peer that is gone may answer with an error; there is nothing to pass on then.
                let Ok((n, from)) = socket.recv_from(&mut datagram).await else { continue };
                if from != head {
                    scope = Some(from);
                }
                if dead.load(Ordering::SeqCst) {
                    // Packets of a handshake have the long header.
                    called.fetch_or(from != head && datagram[0] & 0x80 != 0, Ordering::SeqCst);
                } else if let Some(to) = if from == head { scope } else { Some(head) } {
                    socket.send_to(&datagram[..n], to).await.ok();
                }
            }
        });
        relay
    }
}
