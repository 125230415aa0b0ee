//! Certificates that must not be accepted, from either side.

use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};

use super::*;
use crate::identity::mint::{Minted, self_signed, uri, workload};

/// A peer that presents `minted`, and is otherwise like `like`.
fn presenting(minted: Minted, like: &Contexts) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(minted.key).unwrap();
    let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(minted.chain, key)));
    let mut client = (*like.client(Alpn::Native).unwrap()).clone();
    client.client_auth_cert_resolver = Arc::<SingleCertAndKey>::clone(&resolver);
    client.resumption = Resumption::disabled();
    let mut server = (*like.server(Alpn::Native).unwrap()).clone();
    server.cert_resolver = resolver;
    // A server of its own does not know the judge's sessions.
    server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
    (Arc::new(client), Arc::new(server))
}

fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = workload(WEB);
    change(&mut params);
    params
}

fn at(params: &mut CertificateParams, from: i64, to: i64) {
    let from_now = |seconds: i64| {
        let shift = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { SystemTime::now() - shift } else { SystemTime::now() + shift }
    };
    params.not_before = from_now(from).into();
    params.not_after = from_now(to).into();
}

/// keyUsage digitalSignature, as another than rcgen would write it.
fn key_usage(critical: bool) -> CustomExtension {
    let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    usage.set_criticality(critical);
    usage
}

/// Presented to a server and to a client; both must refuse it with `label`, quickly.
fn refused(what: &str, label: &str, judge: &Contexts, make: impl Fn() -> Minted) {
    let (client, server) = presenting(make(), judge);
    let begun = Instant::now();
    let (_, seen) = meet((client, judge), (judge.server(Alpn::Native).unwrap(), judge), Alpn::Native);
    assert_eq!(seen.label(), label, "{what}, of a client: {seen:?}");
    let (seen, _) = meet((judge.client(Alpn::Native).unwrap(), judge), (server, judge), Alpn::Native);
    assert_eq!(seen.label(), label, "{what}, of a server: {seen:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{what} took {:?}", begun.elapsed());
}

#[test]
fn certificates_against_the_standard_are_refused_in_both_roles_each_with_its_label() {
    let root = Root::new("root");
    let judge = contexts(root.identity(DB));
    let rows: Vec<(&str, CertificateParams)> = vec![
        ("two_uri_sans", with(|p| p.subject_alt_names.push(uri("spiffe://td/other")))),
        ("two_uri_sans", with(|p| p.subject_alt_names.push(uri("https://td/")))),
        ("no_uri_san", with(|p| p.subject_alt_names = vec![rcgen::SanType::DnsName("td".try_into().unwrap())])),
        ("ca_leaf", with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("key_cert_sign_leaf", with(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))),
        ("crl_sign_leaf", with(|p| p.key_usages.push(KeyUsagePurpose::CrlSign))),
        ("key_usage", with(|p| p.key_usages.clear())),
        ("key_usage", with(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement])),
        ("key_usage", with(|p| (p.key_usages, p.custom_extensions) = (vec![], vec![key_usage(false)]))),
        ("no_path", with(|p| p.subject_alt_names = vec![uri("spiffe://td")])),
        ("not_spiffe", with(|p| p.subject_alt_names = vec![uri("http://td/ns/shop/sa/web")])),
        ("not_spiffe", with(|p| p.subject_alt_names = vec![uri("spiffe://td/a//b")])),
        ("wrong_trust_domain", with(|p| p.subject_alt_names = vec![uri("spiffe://other/ns/shop/sa/web")])),
        ("expired", with(|p| at(p, -7200, -3600))),
        ("not_yet_valid", with(|p| at(p, 3600, 7200))),
        ("not_yet_valid", with(|p| at(p, 30, 7200))),
        ("eku", with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])),
        ("eku", with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
    ];
    for (label, params) in &rows {
        refused(label, label, &judge, || root.mint(params));
    }
    for good in [
        with(|p| p.extended_key_usages.clear()),
        with(|p| (p.key_usages, p.custom_extensions) = (vec![], vec![key_usage(true)])),
        with(|p| p.subject_alt_names.push(rcgen::SanType::DnsName("web".try_into().unwrap()))),
        with(|p| at(p, -3600, 60)),
    ] {
        refused("a good one", "ok", &judge, || root.mint(&good));
    }
}

#[test]
fn certificates_of_the_wrong_authority_are_refused_in_both_roles_each_with_its_label() {
    let root = Root::new("root");
    let judge = contexts(root.identity(DB));
    refused("self-signed", "self_signed", &judge, || {
        self_signed(&with(|p| p.distinguished_name.push(DnType::CommonName, "me")))
    });
    refused("unknown issuer", "unknown_issuer", &judge, || Root::new("stranger").mint(&workload(WEB)));
    refused("same name, other key", "bad_signature", &judge, || Root::new("root").mint(&workload(WEB)));
    refused("through an intermediate", "ok", &judge, || below(&root.intermediate("middle"), &[]));
    refused("an authority that must not sign", "signing_usage", &judge, || {
        let mut params = with(|p| p.distinguished_name.push(DnType::CommonName, "middle"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names.clear();
        below(&root.intermediate_of(params), &[])
    });
    refused("an authority with a path", "signing_id", &judge, || {
        let mut params = with(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        below(&root.intermediate_of(params), &[])
    });
}

/// A leaf that `issuer` signed, presented with it and `more`.
fn below(issuer: &Root, more: &[Root]) -> Minted {
    let mut minted = issuer.mint(&workload(WEB));
    minted.chain.push(issuer.der.clone());
    minted.chain.extend(more.iter().map(|root| root.der.clone()));
    minted
}

#[test]
fn chains_that_are_too_long_are_refused_before_they_cost_anything() {
    let root = Root::new("root");
    let judge = contexts(root.identity(DB));
    refused("100 deep", "chain_too_long", &judge, || {
        let mut chain = vec![root.intermediate("1")];
        for depth in 2..100 {
            chain.push(chain[depth - 2].intermediate(&depth.to_string()));
        }
        let last = chain.pop().unwrap();
        chain.reverse();
        below(&last, &chain)
    });
    refused("a megabyte", "chain_too_long", &judge, || {
        let mut minted = root.mint(&workload(WEB));
        minted.chain.extend(std::iter::repeat_n(root.intermediate("x").der, 3500));
        assert!(minted.chain.iter().map(|der| der.len()).sum::<usize>() > 1 << 20);
        minted
    });
    refused("one certificate of 40 KB", "chain_too_long", &judge, || {
        root.mint(&with(|p| {
            let names = (0..2000).map(|n| rcgen::SanType::DnsName(format!("long-name-{n:06}.td").try_into().unwrap()));
            p.subject_alt_names.extend(names);
        }))
    });
    // Each could be the issuer of each: thousands of paths, of which webpki tries as many as 100 signatures allow.
    refused("seven of one name", "chain_too_long", &judge, || {
        let stranger = Root::new("twin");
        let twins: Vec<Root> = (0..6).map(|_| stranger.intermediate("twin")).collect();
        below(&stranger.intermediate("twin"), &twins)
    });
}

#[test]
fn a_revoked_peer_is_refused_and_found_among_live_connections() {
    let root = Root::new("root");
    let (bad, good) = (root.mint(&workload(WEB)), root.mint(&workload(WEB)));
    let mut parts = root.parts(DB);
    parts.crls.push(root.revoke(&bad.chain).0);
    let judge = contexts(Identity::verify(parts, SystemTime::now()).unwrap());
    assert!(judge.identity().revoked(&bad.chain) && !judge.identity().revoked(&good.chain));
    let copy = |minted: &Minted| Minted {
        chain: minted.chain.clone(),
        pem: String::new(),
        key: minted.key.clone_key(),
        key_pem: String::new(),
    };
    refused("revoked", "revoked", &judge, || copy(&bad));
    refused("not revoked", "ok", &judge, || copy(&good));
}

#[test]
fn a_federated_peer_is_believed_only_by_the_bundle_of_its_own_trust_domain() {
    let (root, other) = (Root::new("root"), Root::new("other"));
    let mut parts = root.parts(DB);
    parts.federated.push(("other".into(), vec![other.der.clone()]));
    let judge = contexts(Identity::verify(parts, SystemTime::now()).unwrap());
    let foreign = "spiffe://other/ns/shop/sa/web";
    // The stranger believes nobody here, so only what the judge sees counts.
    let (_, seen) = {
        let (client, _) = presenting(other.mint(&workload(foreign)), &judge);
        meet((client, &judge), (judge.server(Alpn::Native).unwrap(), &judge), Alpn::Native)
    };
    assert_eq!(seen.peer.unwrap().as_str(), foreign);
    refused("its authority, our domain", "unknown_issuer", &judge, || other.mint(&workload(WEB)));
    refused("our authority, its domain", "unknown_issuer", &judge, || root.mint(&workload(foreign)));
}

#[test]
fn a_peer_without_a_certificate_is_refused() {
    let judge = contexts(Root::new("root").identity(DB));
    let mut client = (*judge.client(Alpn::Native).unwrap()).clone();
    client.client_auth_cert_resolver = Arc::new(Nobody);
    let (client, server) =
        meet((Arc::new(client), &judge), (judge.server(Alpn::Native).unwrap(), &judge), Alpn::Native);
    assert_eq!((client.label(), server.label()), ("peer_alert", "no_certificate"));
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
