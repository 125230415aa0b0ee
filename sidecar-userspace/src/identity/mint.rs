//! Certificates for tests, good ones and bad ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::{Identity, Names, Parts};
use crate::config;

const HOUR: Duration = Duration::from_secs(3600);

/// An authority.
pub(crate) struct Root {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) struct Minted {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) pem: String,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) key_pem: String,
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What a good leaf is made of.
pub(crate) fn workload(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Root {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(authority(name))
    }

    pub(crate) fn of(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// An authority that this one vouches for.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_of(authority(name))
    }

    pub(crate) fn intermediate_of(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn mint(&self, params: &CertificateParams) -> Minted {
        let key = KeyPair::generate().unwrap();
        minted(&params.signed_by(&key, &self.issuer).unwrap(), &key)
    }

    /// A list that revokes these certificates.
    pub(crate) fn revoke(&self, chain: &[CertificateDer<'_>]) -> (CertificateRevocationListDer<'static>, String) {
        let now = SystemTime::now();
        let revoked = |der: &CertificateDer<'_>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(super::svid::parse(der).unwrap().raw_serial()),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: chain.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        (list.der().clone(), list.pem().unwrap())
    }

    /// A good identity.
    pub(crate) fn identity(&self, id: &str) -> Identity {
        Identity::verify(self.parts(id), SystemTime::now()).unwrap()
    }

    /// A good set.
    pub(crate) fn parts(&self, id: &str) -> Parts {
        let Minted { chain, key, .. } = self.mint(&workload(id));
        let [chain_name, key_name, roots, crls] = ["cert.pem", "key.pem", "roots.pem", "crl.pem"].map(str::to_owned);
        let names = Names { chain: chain_name, key: key_name, roots, crls };
        Parts { chain, key, roots: vec![self.der.clone()], federated: Vec::new(), crls: Vec::new(), names }
    }
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(params: &CertificateParams) -> Minted {
    let key = KeyPair::generate().unwrap();
    minted(&params.self_signed(&key).unwrap(), &key)
}

fn minted(certificate: &rcgen::Certificate, key: &KeyPair) -> Minted {
    Minted {
        chain: vec![certificate.der().clone()],
        pem: certificate.pem(),
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        key_pem: key.serialize_pem(),
    }
}

/// A directory that goes away with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("identity-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn files(&self, crl: bool) -> config::IdentityFiles {
        let at = |name: &str| self.0.join(name);
        config::IdentityFiles {
            cert: at("cert.pem"),
            key: at("key.pem"),
            roots: at("roots.pem"),
            crl: crl.then(|| at("crl.pem")),
        }
    }

    /// Replaces the set at once, as the kubelet does.
    pub(crate) fn swap(&self, set: &str, files: &[(&str, &str)]) {
        let folder = self.0.join(set);
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
            let link = self.0.join(name);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        let fresh = self.0.join("..data_tmp");
        symlink(set, &fresh).unwrap();
        fs::rename(&fresh, self.0.join("..data")).unwrap();
    }

    pub(crate) fn swap_to(&self, set: &str, minted: &Minted, roots: &str) {
        self.swap(set, &[("cert.pem", &minted.pem), ("key.pem", &minted.key_pem), ("roots.pem", roots)]);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
