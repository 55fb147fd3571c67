//! TLS: the certificate and the key of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_support::diagnostic::{Diagnostic, input};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Maximum bytes of a certificate or key file (1 MiB).
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The certificate and the private key with which the server encrypts connections.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the certificate chain (PEM, the server's own certificate first) and its private key (PEM). Connections use
    /// TLS 1.2 or 1.3, and HTTP/1.1.
    ///
    /// # Errors
    /// A file cannot be read, has no certificate or key, or the two do not belong together. The error names the file.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, Diagnostic> {
        let wrong = |file: &Path, what: String, help: &str| Diagnostic::new(file.display().to_string(), what, help);
        let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
            .collect::<Result<Vec<_>, pem::Error>>()
            .map_err(|e| wrong(certificate, format!("is not PEM ({e})"), "give a certificate in PEM format"))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "has no certificate".into(), "give a PEM file with BEGIN CERTIFICATE"));
        }
        let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| {
            let help = "give an unencrypted PEM file with BEGIN PRIVATE KEY";
            wrong(key, format!("has no private key ({e})"), help)
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(chain, private))
            .map_err(|e| {
                let what = format!("and {} cannot be used together ({e})", key.display());
                wrong(certificate, what, "give a certificate and the private key that belongs to it")
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.clone())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Diagnostic> {
    input::read_file(file, MAX_PEM_BYTES).map_err(|e| Diagnostic::cannot_read(PathBuf::from(file), &e))
}
