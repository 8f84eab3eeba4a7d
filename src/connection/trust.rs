//! Whom this side trusts when it connects with TLS, and what it shows of itself.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// No server can be verified.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "no authority for TLS is known here{why}; install the system's certificates (the package `ca-certificates`), or name a file with \
     `SSL_CERT_FILE`"
)]
pub(crate) struct NoAuthorities {
    why: String,
}

/// The authorities that the system trusts, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. The error is for when there are none.
pub(crate) fn system_authorities() -> (RootCertStore, Option<NoAuthorities>) {
    let found = rustls_native_certs::load_native_certs();
    let mut authorities = RootCertStore::empty();
    let (usable, _) = authorities.add_parsable_certificates(found.certs);
    let why = || found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
    let missing = (usable == 0).then(|| NoAuthorities { why: why() });
    (authorities, missing)
}

/// Connections to servers that these authorities have signed.
pub(crate) fn trusting(authorities: RootCertStore) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    versions.expect("ring has the ciphers of TLS 1.2 and 1.3").with_root_certificates(authorities)
}
