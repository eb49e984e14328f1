//! Who may talk to whom.

use super::*;

#[test]
fn strangers_get_one_clear_error_on_both_sides_and_no_byte() {
    let (runtime, dir, other) = (Arc::new(runtime()), folder(), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let mut seen = 0;
    let mut refused = |what: &str| {
        seen += 1;
        wait_until(&runtime, what, || site.head.summary().refused == seen);
        let summary = site.head.summary();
        assert_eq!(summary.connections, 0, "{what}");
        let text = summary.last_refusal.expect("a reason");
        assert!(text.contains("do not trust each other"), "{what}: {text}");
    };
    let addr = site.head.local_addr();

    let wrong_authority =
        ScopeConfig { keys: Keys::load(other.path(), Role::Scope).expect("made"), ..scope_config(dir.path(), addr) };
    assert_not_trusted(site.try_call(wrong_authority));
    refused("keys of another making");

    let wrong_role =
        ScopeConfig { keys: Keys::load(dir.path(), Role::Head).expect("made"), ..scope_config(dir.path(), addr) };
    assert_not_trusted(site.try_call(wrong_role));
    refused("the head's keys on the scope");

    // Trusts the head, but shows nothing itself.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(Keys::load(dir.path(), Role::Scope).expect("made").authority().clone()).expect("adds");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"kinesin/1".to_vec()];
    let nobody = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    runtime.block_on(async {
        let (_endpoint, connection) = stranger(&site, nobody).await;
        // The handshake may seem done on this side; the first thing asked of the head fails.
        if let Ok(connection) = connection {
            let error = connection.closed().await;
            assert!(LinkError::not_trusted(addr, &error).is_some(), "{error}");
        }
    });
    refused("no certificate");
    assert!(lock(&site.store.came).is_empty());
    site.kill();

    let swapped = Site::with_keys(
        &runtime,
        dir.path(),
        loopback(),
        Bytes::mib(1),
        Keys::load(dir.path(), Role::Scope).expect("made"),
    );
    assert_not_trusted(swapped.try_call(swapped.config()));
    wait_until(&runtime, "the scope's keys on the head", || swapped.head.summary().refused == 1);
    swapped.kill();
}

#[test]
fn another_run_is_refused_with_both_digests() {
    let (runtime, dir) = (Arc::new(runtime()), folder());
    let site = Site::new(&runtime, dir.path(), loopback(), Bytes::mib(1));
    let other = ScopeConfig { digest: PlanDigest([6; 32]), ..site.config() };
    let text = site.try_call(other).map(drop).expect_err("another plan").to_string();
    for part in ["0505050505050505", "0606060606060606", "same site file"] {
        assert!(text.contains(part), "{text}");
    }
    // It goes on listening.
    finish(&runtime, site.call()).expect("nothing to send");
    assert_eq!(site.join().0.refused, 1);
}

#[test]
fn keys_are_private_and_never_overwritten_unasked() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let before = std::fs::read(dir.path().join("head.pem")).expect("made");
    let error = make_keys(dir.path(), false).expect_err("there already");
    assert!(error.to_string().contains("--overwrite"), "{error}");
    for key in ["head.key", "scope.key"] {
        let mode = std::fs::metadata(dir.path().join(key)).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    make_keys(dir.path(), true).expect("asked");
    assert_ne!(std::fs::read(dir.path().join("head.pem")).expect("made"), before);
    std::fs::write(dir.path().join("scope.key"), "not a key").expect("writes");
    let error = Keys::load(dir.path(), Role::Scope).expect_err("not a key").to_string();
    assert!(error.contains("scope.key") && error.contains("kinesin keys"), "{error}");
}

fn assert_not_trusted(result: Result<Sending, LinkError>) {
    let error = result.map(drop).expect_err("strangers");
    assert!(matches!(error, LinkError::NotTrusted { .. }), "{error}");
}
