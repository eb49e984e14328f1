//! Who may talk to whom. One command makes a private certificate authority, one certificate for the head and one for the
//! scope; the authority's own key is thrown away, so that nobody can ever be added quietly.
//!
//! The role is in the certificate: the head's may only serve and the scope's may only call (extended key usage), and the
//! head's carries the name that callers ask for. TLS 1.3 checks all of it on both sides before any byte of ours moves.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::LinkError;

/// Name in the head's certificate.
pub(super) const HEAD_NAME: &str = "head.kinesin.internal";
const SCOPE_NAME: &str = "scope.kinesin.internal";
/// Spoken in the handshake; another program on the port is refused there.
const ALPN: &[u8] = b"kinesin/1";

/// Which side a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives tiles.
    Head,
    /// Sends tiles.
    Scope,
}

/// A side's certificate and key, and the authority that the other side must come from.
#[derive(Clone, Debug)]
pub struct Keys {
    folder: PathBuf,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Role {
    fn stem(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Scope => "scope",
        }
    }
}

/// Writes `ca.pem`, `head.pem`, `head.key`, `scope.pem` and `scope.key` into `dir`. Give the head machine the first three
/// and the microscope's machine `ca.pem` and the last two. Keys are readable by their owner only.
///
/// # Errors
/// Where one of the files exists, unless `overwrite`: a running head would lose its scope.
pub fn make_keys(dir: &Path, overwrite: bool) -> Result<(), LinkError> {
    let names = ["ca.pem", "head.pem", "head.key", "scope.pem", "scope.key"];
    if let Some(path) = names.iter().map(|n| dir.join(n)).find(|p| p.exists() && !overwrite) {
        return Err(LinkError::KeysExist { path });
    }
    fs::create_dir_all(dir).map_err(|e| LinkError::keys(dir, e))?;
    let made = |e: rcgen::Error| LinkError::keys(dir, e);

    let mut authority = CertificateParams::new(Vec::new()).map_err(made)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name.push(DnType::CommonName, "kinesin link");
    let authority_key = KeyPair::generate().map_err(made)?;
    let certificate = authority.self_signed(&authority_key).map_err(made)?;
    write(&dir.join("ca.pem"), &certificate.pem(), 0o644)?;
    let issuer = Issuer::new(authority, authority_key);

    for (role, name, usage) in [
        (Role::Head, HEAD_NAME, ExtendedKeyUsagePurpose::ServerAuth),
        (Role::Scope, SCOPE_NAME, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).map_err(made)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![usage];
        leaf.distinguished_name.push(DnType::CommonName, role.stem());
        let key = KeyPair::generate().map_err(made)?;
        let certificate = leaf.signed_by(&key, &issuer).map_err(made)?;
        write(&dir.join(format!("{}.pem", role.stem())), &certificate.pem(), 0o644)?;
        write(&dir.join(format!("{}.key", role.stem())), &key.serialize_pem(), 0o600)?;
    }
    Ok(())
}

impl Keys {
    /// Reads `ca.pem` and the side's certificate and key from `dir`.
    pub fn load(dir: &Path, role: Role) -> Result<Self, LinkError> {
        let certificate = |name: String| {
            let path = dir.join(name);
            let pem = fs::read(&path).map_err(|e| LinkError::keys(&path, e))?;
            CertificateDer::from_pem_slice(&pem).map_err(|e| LinkError::keys(&path, format!("{e:?}")))
        };
        let path = dir.join(format!("{}.key", role.stem()));
        let pem = fs::read(&path).map_err(|e| LinkError::keys(&path, e))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| LinkError::keys(&path, format!("{e:?}")))?;
        Ok(Self {
            folder: dir.to_owned(),
            authority: certificate("ca.pem".to_owned())?,
            certificate: certificate(format!("{}.pem", role.stem()))?,
            key: Arc::new(key),
        })
    }

    pub(super) fn server(&self) -> Result<quinn::crypto::rustls::QuicServerConfig, LinkError> {
        let bad = |e: String| LinkError::keys(&self.folder, e);
        let roots = Arc::new(self.roots()?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(|e| bad(e.to_string()))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would skip nothing that matters here, and early data could be replayed: neither is used.
        tls.send_tls13_tickets = 0;
        quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|e| bad(e.to_string()))
    }

    pub(super) fn client(&self) -> Result<quinn::crypto::rustls::QuicClientConfig, LinkError> {
        let bad = |e: String| LinkError::keys(&self.folder, e);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(|e| bad(e.to_string()))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|e| bad(e.to_string()))
    }

    #[cfg(test)]
    pub(super) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    fn roots(&self) -> Result<RootCertStore, LinkError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(|e| LinkError::keys(&self.folder.join("ca.pem"), e))?;
        Ok(roots)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), LinkError> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        // The mode above only counts for a new file.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e: std::io::Error| LinkError::keys(path, e))
}
