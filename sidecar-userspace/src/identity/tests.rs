//! Sets and their sources, on real files and a real runtime.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics_exporter_prometheus::PrometheusBuilder;
use rcgen::{BasicConstraints, IsCa};

use super::{
    mint::{Folder, Minted, Root, workload},
    *,
};
use crate::config;

const WEB: &str = "spiffe://td/ns/shop/sa/web";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `story` beside the source.
fn beside(source: config::Identity, story: impl AsyncFnOnce(IdentityWatch)) {
    let (publisher, watch) = Publisher::new();
    let source = Source::of(&source).unwrap();
    runtime().block_on(async {
        tokio::select! {
            never = source.run(publisher) => match never {},
            outcome = tokio::time::timeout(Duration::from_secs(30), story(watch)) => outcome.expect("in time"),
        }
    });
}

fn of_files(files: config::IdentityFiles) -> config::Identity {
    config::Identity { files: Some(files), ..config::Identity::default() }
}

fn end(watch: &IdentityWatch) -> SystemTime {
    watch.current().unwrap().not_after()
}

fn lasting(seconds: u64) -> rcgen::CertificateParams {
    let mut params = workload(WEB);
    params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
    params
}

#[test]
fn each_thing_wrong_with_a_set_is_told_with_its_place_and_its_fix() {
    let root = Root::new("root");
    let refused = |change: fn(&mut Parts, &Root)| {
        let mut parts = root.parts(WEB);
        change(&mut parts, &root);
        Identity::verify(parts, SystemTime::now()).unwrap_err()
    };
    type Row = (fn(&mut Parts, &Root), &'static str, &'static str);
    let rows: [Row; 9] = [
        (|p, _| p.chain.clear(), "no_certificate", "cert.pem: no certificate in it"),
        (|p, _| p.roots.clear(), "no_roots", "roots.pem: no certificate in it"),
        (
            |p, r| p.key = r.mint(&workload(WEB)).key,
            "key_mismatch",
            "key.pem: not the key of the certificate in cert.pem; replace both together",
        ),
        (
            |p, _| p.roots = vec![Root::new("stranger").der],
            "unknown_issuer",
            "cert.pem, certificate 1: no authority of its trust domain has issued it; add the authority",
        ),
        (
            |p, _| p.roots.push(p.chain[0].clone()),
            "signing_usage",
            "roots.pem, certificate 2: a certificate of an authority lacks CA true or keyCertSign",
        ),
        (
            |p, r| p.federated = vec![("td2".into(), vec![r.der.clone()]), ("td3".into(), vec![p.chain[0].clone()])],
            "signing_usage",
            "roots.pem, trust domain td3, certificate 1: a certificate of an authority lacks",
        ),
        (|p, _| p.chain.push(p.chain[0].clone()), "signing_usage", "cert.pem, certificate 2: "),
        (|p, r| p.chain[0] = r.der.clone(), "ca_leaf", "cert.pem, certificate 1: it is an authority's"),
        (|p, _| p.crls.push(vec![0x30, 0].into()), "crl", "crl.pem, list 1: not a usable revocation list"),
    ];
    for (change, label, begin) in rows {
        let error = refused(change);
        assert_eq!(error.label(), label, "{error}");
        assert!(error.to_string().starts_with(begin), "{error}");
    }
}

#[test]
fn a_root_of_another_trust_domain_or_with_a_path_is_refused() {
    for (name, label) in [("spiffe://other", "wrong_trust_domain"), ("spiffe://td/a", "signing_id")] {
        let mut params = workload(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let root = Root::of(params);
        let error = Identity::verify(root.parts(WEB), SystemTime::now()).unwrap_err();
        assert_eq!(error.label(), label, "{error}");
    }
}

#[test]
fn a_clock_that_is_behind_or_ahead_is_told_as_such() {
    let root = Root::new("root");
    let hours = |count: u64| Duration::from_secs(3600 * count);
    let now = SystemTime::now();
    for (clock, label) in [(now - hours(2), "not_yet_valid"), (now + hours(2), "expired")] {
        let error = Identity::verify(root.parts(WEB), clock).unwrap_err();
        assert_eq!(error.label(), label);
    }
}

#[test]
fn files_are_followed_through_swaps_and_a_bad_set_keeps_the_good_one() {
    let folder = Folder::new("swap");
    let (root, stranger) = (Root::new("root"), Root::new("stranger"));
    beside(of_files(folder.files(false)), async |mut watch| {
        watch.changed().await;
        assert!(watch.current().is_none());
        let State::None(why) = watch.state(SystemTime::now()) else { panic!("no file is there yet") };
        assert!(why.contains("cert.pem") && why.contains("No such file"), "{why}");

        let first = root.mint(&lasting(1000));
        folder.swap_to("first", &first, &root.pem);
        watch.changed().await;
        assert_eq!(watch.state(SystemTime::now()), State::Valid);
        let before = end(&watch);

        // The key of another certificate, and then a stranger's certificate.
        let other = root.mint(&lasting(2000));
        let mixed = Minted { key_pem: first.key_pem.clone(), ..root.mint(&lasting(2000)) };
        folder.swap_to("mixed", &mixed, &root.pem);
        watch.changed().await;
        folder.swap_to("strange", &stranger.mint(&lasting(2000)), &root.pem);
        watch.changed().await;
        assert_eq!((end(&watch), watch.state(SystemTime::now())), (before, State::Valid));

        folder.swap_to("second", &other, &root.pem);
        watch.changed().await;
        assert!(end(&watch) > before);
    });
}

#[test]
fn updates_are_counted_by_what_became_of_them() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let folder = Folder::new("metrics");
    let root = Root::new("root");
    let good = root.mint(&lasting(1000));
    let wrong = Minted { key_pem: good.key_pem.clone(), ..root.mint(&lasting(2000)) };
    metrics::with_local_recorder(&recorder, || {
        folder.swap_to("good", &good, &root.pem);
        beside(of_files(folder.files(false)), async |mut watch| {
            watch.changed().await;
            folder.swap_to("wrong", &wrong, &root.pem);
            watch.changed().await;
            folder.swap_to("again", &root.mint(&lasting(3000)), &root.pem);
            watch.changed().await;
        });
    });
    let text = metrics.render();
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3000;
    for line in [
        "sidecar_identity_generation 2",
        "sidecar_identity_updates_total{result=\"accepted\"} 2",
        "sidecar_identity_updates_total{result=\"key_mismatch\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    let told = text.lines().find_map(|line| line.strip_prefix("sidecar_identity_not_after_timestamp_seconds "));
    assert!(end.abs_diff(told.unwrap().parse().unwrap()) < 30, "{told:?}");
}

#[test]
fn files_that_are_renamed_over_one_by_one_become_the_next_set() {
    let folder = Folder::new("rename");
    let root = Root::new("root");
    let put = |minted: &Minted| {
        for (name, text) in [("cert.pem", &minted.pem), ("key.pem", &minted.key_pem), ("roots.pem", &root.pem)] {
            let fresh = folder.0.join("fresh");
            fs::write(&fresh, text).unwrap();
            fs::rename(&fresh, folder.0.join(name)).unwrap();
        }
    };
    put(&root.mint(&lasting(1000)));
    beside(of_files(folder.files(false)), async |mut watch| {
        watch.changed().await;
        let before = end(&watch);
        put(&root.mint(&lasting(2000)));
        watch.changed().await;
        assert!(end(&watch) > before);
    });
}

#[test]
fn a_revocation_list_that_changes_makes_the_next_identity() {
    let folder = Folder::new("crl");
    let root = Root::new("root");
    let (own, peer) = (root.mint(&workload(WEB)), root.mint(&workload(WEB)));
    let set = |name: &str, list: &str| {
        let files = [("cert.pem", &*own.pem), ("key.pem", &own.key_pem), ("roots.pem", &root.pem), ("crl.pem", list)];
        folder.swap(name, &files);
    };
    set("empty", &root.revoke(&[]).1);
    beside(of_files(folder.files(true)), async |mut watch| {
        watch.changed().await;
        assert!(!watch.current().unwrap().revoked(&peer.chain));
        set("revoking", &root.revoke(&peer.chain).1);
        watch.changed().await;
        let identity = watch.current().unwrap();
        assert!(identity.revoked(&peer.chain) && !identity.revoked(&own.chain));
    });
}

#[test]
fn the_end_of_a_certificate_is_told_and_is_no_end_of_the_watch() {
    let folder = Folder::new("expiry");
    let root = Root::new("root");
    folder.swap_to("short", &root.mint(&lasting(2)), &root.pem);
    beside(of_files(folder.files(false)), async |mut watch| {
        watch.changed().await;
        assert_eq!(watch.state(SystemTime::now()), State::Valid);
        watch.changed().await;
        let state = watch.state(SystemTime::now());
        assert!(matches!(state, State::Expired(_)), "{state:?}");
        assert!(state.unready().unwrap().contains("has expired"));
        assert!(watch.current().is_some(), "it is kept, and refuses handshakes by itself");
        folder.swap_to("long", &root.mint(&lasting(1000)), &root.pem);
        watch.changed().await;
        assert_eq!(watch.state(SystemTime::now()), State::Valid);
    });
}

#[test]
fn the_embedded_authority_renews_at_half_life_and_follows_its_roots() {
    let folder = Folder::new("authority");
    let make = || authority::root("td", Duration::from_secs(86400), SystemTime::now()).unwrap();
    let (first, second) = (make(), make());
    let put = |name: &str, roots: &str| {
        let files = [
            (authority::CERTIFICATE, &*first.certificate_pem),
            (authority::KEY, &first.key_pem),
            (authority::ROOTS, roots),
        ];
        folder.swap(name, &files);
    };
    put("one", &first.certificate_pem);
    let ca =
        config::Authority { directory: folder.0.clone(), id: WEB.parse().unwrap(), lifetime: Duration::from_secs(4) };
    beside(config::Identity { ca: Some(ca), ..config::Identity::default() }, async |mut watch| {
        watch.changed().await;
        let (begun, before) = (SystemTime::now(), end(&watch));
        watch.changed().await;
        let renewed = begun.elapsed().unwrap();
        assert!((Duration::from_millis(1500)..Duration::from_millis(3000)).contains(&renewed), "{renewed:?}");
        assert!(end(&watch) > before);
        // What the second root vouches for is believed as soon as it is among the roots.
        let begun = SystemTime::now();
        put("two", &(first.certificate_pem.clone() + &second.certificate_pem));
        watch.changed().await;
        assert!(begun.elapsed().unwrap() < Duration::from_millis(1000));
        // Renewal fails: the certificate stays until its end.
        fs::remove_file(folder.0.join("..data")).unwrap();
        watch.changed().await;
        assert_eq!(watch.state(SystemTime::now()), State::Valid);
        while watch.state(SystemTime::now()) == State::Valid {
            watch.changed().await;
        }
        let State::Expired(why) = watch.state(SystemTime::now()) else { panic!("expired") };
        let file = folder.0.join("ca.pem").display().to_string();
        assert_eq!(why, file + ": No such file or directory (os error 2); restore it from the backup");
    });
}

#[test]
fn a_watch_is_used_from_any_thread() {
    let (mut publisher, watch) = Publisher::new();
    let root = Root::new("root");
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut watch = watch.clone();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    while watch.current().is_none() {
                        watch.changed().await;
                    }
                    Arc::clone(&watch.current().unwrap())
                })
            })
        })
        .collect();
    let identity = publisher.accept(root.identity(WEB));
    for thread in threads {
        assert!(Arc::ptr_eq(&thread.join().unwrap(), &identity));
    }
}
