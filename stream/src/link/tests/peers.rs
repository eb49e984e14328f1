//! Peers that break the rules, or do not go on.

use kinesin_backpressure::Pool;

use super::wire::{FrameHead, Kind, MAX_CONTROL, PROTOCOL, ToHead, ToScope, opening, read_message, write_message};
use super::*;

#[test]
fn a_damaged_frame_is_asked_for_again_and_the_rest_of_it_is_not_passed_on() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let plan = plan(0, 1, 3);
    let mfov = plan.mfovs[0].id;
    runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, client(&site.dir)).await;
        let connection = connection.expect("trusted");
        let pool = Pool::new(&Budget::new(), "control", MAX_CONTROL);
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        let hello = ToHead::Hello { protocol: PROTOCOL, digest: ContentHash(DIGEST.0) };
        write_message(&mut send, &hello).await.expect("writes");
        write_message(&mut send, &ToHead::Section(plan.clone())).await.expect("writes");
        for (damaged, expected) in [(Some(1), "Again"), (None, "Durable")] {
            let mut stream = connection.open_uni().await.expect("open");
            stream.write_all(&opening(mfov)).await.expect("writes");
            for (i, tile) in plan.tiles().enumerate() {
                let mut body = pixels(tile.key).data().to_vec();
                let hash = ContentHash(*blake3::hash(&body).as_bytes());
                if damaged == Some(i) {
                    body[77] ^= 16;
                }
                let head =
                    FrameHead { kind: Kind::Tile, key: tile.key, width: SIDE, height: SIDE, body: SIDE * SIDE, hash };
                // The head may stop the stream after the damaged frame.
                if stream.write_all(&head.encode()).await.is_err() || stream.write_all(&body).await.is_err() {
                    break;
                }
            }
            let first = plan.mfovs[0].tiles[0].key;
            let end =
                FrameHead { kind: Kind::End, key: first, width: 0, height: 0, body: 0, hash: ContentHash([0; 32]) };
            stream.write_all(&end.encode()).await.ok();
            stream.finish().ok();
            loop {
                let said: ToScope = read_message(&mut recv, &pool).await.expect("the head lives");
                match said {
                    ToScope::Welcome | ToScope::Promised { .. } | ToScope::Beat { .. } => continue,
                    ToScope::Again(id) => assert_eq!((id, expected), (mfov, "Again")),
                    ToScope::Durable(id) => assert_eq!((id, expected), (mfov, "Durable")),
                    other => panic!("{other:?}"),
                }
                break;
            }
        }
    });
    let summary = site.head.summary();
    assert_eq!((summary.tiles, summary.sent_again, summary.damaged), (3, 1, 1));
    assert_eq!(*lock(&site.store.came), plan.tiles().map(|t| t.key).collect::<Vec<_>>());
    site.kill();
}

#[test]
fn an_mfov_that_is_always_damaged_is_one_error_and_no_endless_loop() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let scope = site.call();
    let plan = plan(0, 1, 1);
    scope.section(&plan);
    let key = plan.mfovs[0].tiles[0].key;
    let pixels = pixels(key);
    // The disk is not at fault: the record has the hash that the frame claims wrongly.
    let mut hash = ContentHash(pixels.hash());
    let other = Pixels::new(SIDE as usize, SIDE as usize, vec![9; (SIDE * SIDE) as usize]);
    hash.0 = other.hash();
    let kept = scope.tiles.add(key, &pixels, hash).expect("writes").expect("room");
    let manifest = Manifest { repeated: Vec::new(), tiles: vec![(key, Ok(kept))] };
    let shipment = scope.tiles.end(plan.mfovs[0].id, &manifest).expect("writes").expect("room");
    scope.scope.ship(shipment).expect("no fault");
    // Checked before the second time it is found out, and is a loss.
    let sent = finish(&runtime, scope).expect("settled");
    assert_eq!((sent.tiles, sent.losses, sent.sent_again, sent.damaged_at_rest), (0, 1, 1, 1));
    let (summary, _, ledger) = site.join();
    assert_eq!((summary.damaged, summary.losses), (1, 1));
    let row = ledger.tile(key).expect("reads").expect("promised");
    assert!(matches!(row.reason, Some(Reason::Damaged(_))), "{row:?}");
}

/// A head that says what the test says.
struct Scripted {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    pool: Pool,
}

impl Scripted {
    fn listen(runtime: &Runtime, dir: &Path) -> quinn::Endpoint {
        let keys = Keys::load(dir, Role::Head).expect("made");
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(keys.server().expect("usable")));
        server.transport_config(settings().transport(4, 1));
        let _context = runtime.enter();
        quinn::Endpoint::server(server, loopback()).expect("binds")
    }

    /// Takes the next call up to the hello.
    async fn answer(endpoint: &quinn::Endpoint) -> (Self, ToHead) {
        let connection = endpoint.accept().await.expect("a call").await.expect("trusted");
        let (send, mut recv) = connection.accept_bi().await.expect("the control stream");
        let pool = Pool::new(&Budget::new(), "control", MAX_CONTROL);
        let hello = read_message(&mut recv, &pool).await.expect("a hello");
        (Self { endpoint: endpoint.clone(), connection, send, recv, pool }, hello)
    }

    async fn say(&mut self, message: &ToScope) {
        write_message(&mut self.send, message).await.expect("writes");
    }

    /// The next message that is no status.
    async fn hear(&mut self) -> ToHead {
        loop {
            match read_message(&mut self.recv, &self.pool).await.expect("the scope lives") {
                ToHead::Status(_) | ToHead::Reached { .. } => {}
                other => return other,
            }
        }
    }
}

fn impatient(dir: &Path, head: SocketAddr) -> ScopeConfig {
    let mut config = scope_config(dir, head);
    config.settings.stall_seconds = 0.3;
    config
}

#[test]
fn a_receipt_for_what_was_never_promised_gives_nothing_back_and_is_named() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let endpoint = Scripted::listen(&runtime, dir.path());
    let scope =
        start(&runtime, dir.path(), scope_config(dir.path(), endpoint.local_addr().expect("bound"))).expect("starts");
    let plan = plan(0, 2, 7);
    scope.section(&plan);
    scope.ship(&plan.mfovs[0]);
    let mut head = runtime.block_on(async {
        let (mut head, _) = Scripted::answer(&endpoint).await;
        head.say(&ToScope::Welcome).await;
        assert!(matches!(head.hear().await, ToHead::Section(_)));
        head.say(&ToScope::Promised { section: SectionId(0), durable: Vec::new() }).await;
        head.say(&ToScope::Durable(MfovId::new(SectionId(9), RegionId(0), 5))).await;
        head
    });
    wait_until(&runtime, "it is counted", || scope.scope.summary().strange_receipts == 1);
    assert_eq!((scope.scope.outstanding(), scope.held()), (1, 1));
    // Of an mFOV of ours that was not sent: the head may have it from before; it need not be given again.
    let news = runtime.block_on(async {
        head.say(&ToScope::Durable(plan.mfovs[1].id)).await;
        scope.scope.already_durable().await
    });
    assert_eq!((news, scope.held()), (vec![plan.mfovs[1].id], 1));
    runtime.block_on(head.say(&ToScope::Durable(plan.mfovs[0].id)));
    wait_until(&runtime, "the true receipt", || scope.held() == 0);
    drop(scope);
    head.connection.close(0_u32.into(), b"");
    runtime.block_on(head.endpoint.wait_idle());
}

#[test]
fn a_head_that_promises_and_never_delivers_is_hung_up_on_and_called_again() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let endpoint = Scripted::listen(&runtime, dir.path());
    let scope =
        start(&runtime, dir.path(), impatient(dir.path(), endpoint.local_addr().expect("bound"))).expect("starts");
    let plan = plan(0, 1, 7);
    scope.section(&plan);
    scope.ship(&plan.mfovs[0]);
    runtime.block_on(async {
        // One that does not answer the hello; one that falls silent; one that talks but gives no receipt.
        let (silent, _) = Scripted::answer(&endpoint).await;
        let (mut welcoming, _) = Scripted::answer(&endpoint).await;
        welcoming.say(&ToScope::Welcome).await;
        let (mut talking, _) = Scripted::answer(&endpoint).await;
        talking.say(&ToScope::Welcome).await;
        assert!(matches!(talking.hear().await, ToHead::Section(_)));
        talking.say(&ToScope::Promised { section: SectionId(0), durable: Vec::new() }).await;
        let beats = async {
            loop {
                if write_message(&mut talking.send, &ToScope::Beat { waiting: false }).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        beats.await;
        let (mut head, _) = Scripted::answer(&endpoint).await;
        head.say(&ToScope::Welcome).await;
        assert!(matches!(head.hear().await, ToHead::Section(_)), "everything is told again");
        drop((silent, welcoming));
    });
    assert!(scope.scope.summary().stalls >= 3, "{:?}", scope.scope.summary());
    assert_eq!(scope.held(), 1, "nothing is given back");
}

#[test]
fn a_scope_that_begins_and_never_goes_on_is_hung_up_on() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::with_settings(&runtime, dir.path(), LinkSettings { stall_seconds: 0.3, ..settings() });
    let plan = plan(0, 1, 3);
    runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, client(&site.dir)).await;
        let connection = connection.expect("trusted");
        let (mut send, _recv) = connection.open_bi().await.expect("open");
        let hello = ToHead::Hello { protocol: PROTOCOL, digest: ContentHash(DIGEST.0) };
        write_message(&mut send, &hello).await.expect("writes");
        write_message(&mut send, &ToHead::Section(plan.clone())).await.expect("writes");
        let mut stream = connection.open_uni().await.expect("open");
        stream.write_all(&opening(plan.mfovs[0].id)).await.expect("writes");
        let alive = async {
            while write_message(&mut send, &ToHead::Status(ScopeStatus::default())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        alive.await;
    });
    wait_until(&runtime, "it is counted", || site.head.summary().stalls == 1);
    // A scope that goes on is welcome.
    let scope = site.call();
    scope.section(&plan);
    scope.ship(&plan.mfovs[0]);
    finish(&runtime, scope).expect("all durable");
    site.join();
}

#[test]
fn another_version_of_the_protocol_is_one_message_with_both_numbers() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let said: ToScope = runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, client(&site.dir)).await;
        let connection = connection.expect("trusted");
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        let hello = ToHead::Hello { protocol: 99, digest: ContentHash(DIGEST.0) };
        write_message(&mut send, &hello).await.expect("writes");
        read_message(&mut recv, &Pool::new(&Budget::new(), "control", MAX_CONTROL)).await.expect("an answer")
    });
    let ToScope::Refused { why } = said else { panic!("{said:?}") };
    for part in ["protocol 99", &format!("the head {PROTOCOL}"), "same version"] {
        assert!(why.contains(part), "{part} in {why}");
    }
    site.kill();

    let endpoint = Scripted::listen(&runtime, dir.path());
    let config = scope_config(dir.path(), endpoint.local_addr().expect("bound"));
    let scope = start(&runtime, dir.path(), config).expect("starts");
    runtime.block_on(async {
        let (mut head, hello) = Scripted::answer(&endpoint).await;
        assert!(matches!(hello, ToHead::Hello { protocol: PROTOCOL, .. }));
        head.say(&ToScope::Refused {
            why: "the scope speaks protocol 2, the head 3; use the same version on both".into(),
        })
        .await;
        head.connection.closed().await;
    });
    let said = finish(&runtime, scope).expect_err("refused").to_string();
    assert!(said.contains("protocol 2, the head 3"), "{said}");
}
