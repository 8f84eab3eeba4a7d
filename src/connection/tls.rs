//! Reads the TLS options of a DSN: the authorities to trust, and this side's certificate. Files are in PEM format.
//!
//! SQL drivers read such files themselves. Their options are part of their addresses.

use std::ffi::OsStr;
use std::path::Path;
use std::{fs, io};

#[cfg(feature = "amqp")]
use rustls::{
    ClientConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
#[cfg(feature = "redis")]
use serde_yaml::Value;

#[cfg(feature = "redis")]
use crate::config::Kind;
#[cfg(feature = "amqp")]
use crate::config::Setting;
use crate::config::{Definition, OptionReader, TransportSpec};
#[cfg(feature = "amqp")]
use crate::connection::trust;

/// The supported ones of PHP's options for TLS. The others would turn off verifying the server.
#[cfg(feature = "redis")]
pub(in crate::connection) const SSL: Definition =
    Definition::new("ssl", Kind::Section(SSL_KEYS), "TLS, as PHP has it; `rediss:` only")
        .or("the system's certificates");
#[cfg(feature = "redis")]
const SSL_KEYS: &[Definition] = &[
    Definition::new("cafile", Kind::Text("file"), "the authorities to trust, instead of the system's"),
    Definition::new("capath", Kind::Text("folder"), "the same as `cafile`, as a folder of such files"),
    Definition::new("local_cert", Kind::Text("file"), "the client's certificate"),
    Definition::new("local_pk", Kind::Text("file"), "the key of `local_cert`").or("in `local_cert`"),
    Definition::refused("verify_peer", YES, UNVERIFIED),
    Definition::refused("verify_peer_name", YES, UNVERIFIED),
    Definition::refused("allow_self_signed", NO, UNVERIFIED),
];
#[cfg(feature = "redis")]
const YES: &[&str] = &["true", "1", "on", "yes"];
#[cfg(feature = "redis")]
const NO: &[&str] = &["false", "0", "off", "no"];
#[cfg(feature = "redis")]
const UNVERIFIED: &str = "the server is always verified; name its authority with `cafile`";

/// php-amqp's options for TLS.
#[cfg(feature = "amqp")]
pub(in crate::connection) const FILES: [Definition; 3] =
    [AUTHORITIES.definition, CERTIFICATE.definition, KEY.definition];
#[cfg(feature = "amqp")]
const AUTHORITIES: Setting<Option<String>> =
    file("cacert", "the authorities to trust besides the system's: a file, or a folder of such files; `amqps:` only");
#[cfg(feature = "amqp")]
const CERTIFICATE: Setting<Option<String>> = file("cert", "the client's certificate; `amqps:` only");
#[cfg(feature = "amqp")]
const KEY: Setting<Option<String>> = file("key", "the key of `cert`; `amqps:` only");

#[cfg(feature = "amqp")]
const fn file(name: &'static str, help: &'static str) -> Setting<Option<String>> {
    Setting::text(name, "", help).of_kind("file").optional()
}

/// The authorities that a connection trusts, and its own certificate. Connections that differ in it are not shared.
///
/// It has no `Debug`, because it contains a private key.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(in crate::connection) struct Tls {
    /// The certificates of authorities to trust.
    pub(in crate::connection) authorities: Option<String>,
    /// This side's certificate and its key.
    pub(in crate::connection) identity: Option<(String, String)>,
}

impl Tls {
    /// Reads the option `ssl`, a map of PHP's options for TLS. `None` without TLS.
    #[cfg(feature = "redis")]
    pub(in crate::connection) fn read_ssl_map(
        spec: &TransportSpec,
        options: &mut OptionReader<'_>,
        is_tls: bool,
    ) -> Option<Self> {
        let given = match options.tree(&SSL) {
            None => return is_tls.then(Self::default),
            Some(Value::Sequence(none)) if none.is_empty() => return is_tls.then(Self::default),
            Some(Value::Mapping(given)) => given,
            Some(_) => {
                options.refuse("ssl", "ssl is a map with keys of cafile, capath, local_cert, local_pk");
                return is_tls.then(Self::default);
            }
        };
        if !is_tls && !given.is_empty() {
            options.refuse("ssl", "ssl is for rediss:, and this connection is not encrypted");
        }
        let (mut tls, mut certificate, mut key) = (Self::default(), None, None);
        for (name, value) in &given {
            let name = name.as_str().unwrap_or_default();
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                _ => String::new(),
            };
            let mut content = || {
                let content = certificates(&spec.file(&text));
                content
                    .map_err(|error| options.refuse("ssl", format!("ssl: {name}: {text} cannot be read: {error}")))
                    .ok()
            };
            let is_yes = matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "on" | "yes");
            match name {
                "cafile" | "capath" => {
                    let found = content().unwrap_or_default();
                    tls.authorities.get_or_insert_default().push_str(&found);
                }
                "local_cert" => certificate = content(),
                "local_pk" => key = content(),
                "verify_peer" | "verify_peer_name" if is_yes => {}
                "allow_self_signed" if !is_yes => {}
                "verify_peer" | "verify_peer_name" | "allow_self_signed" => {
                    options.refuse("ssl", format!("ssl: {name}: {UNVERIFIED}"));
                }
                _ => {
                    let known: Vec<&str> = SSL_KEYS.iter().map(|key| key.name).collect();
                    options.refuse("ssl", format!("ssl: unknown key \"{name}\"; known: {}", known.join(", ")));
                }
            }
        }
        if key.is_none() {
            // If no key is named, PHP looks for it in the certificate's file.
            key.clone_from(&certificate);
        }
        tls.identity = certificate.zip(key);
        is_tls.then_some(tls)
    }

    /// Reads `cacert`, `cert` and `key`, php-amqp's options for TLS. `None` without TLS.
    #[cfg(feature = "amqp")]
    pub(in crate::connection) fn read_files(
        spec: &TransportSpec,
        options: &mut OptionReader<'_>,
        is_tls: bool,
    ) -> Option<Self> {
        let [authorities, certificate, key] =
            [AUTHORITIES, CERTIFICATE, KEY].map(|setting| content_of(&setting, spec, options, is_tls));
        if certificate.is_some() != key.is_some() {
            let message = "cert and key are needed together; one of them is missing";
            options.refuse(if key.is_some() { "key" } else { "cert" }, message);
        }
        is_tls.then(|| Self { authorities, identity: certificate.zip(key) })
    }

    /// For connections that trust these authorities besides the system's, and show this certificate.
    #[cfg(feature = "amqp")]
    pub(in crate::connection) fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let (mut trusted, missing) = trust::system_authorities();
        if let Some(authorities) = &self.authorities {
            for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
                trusted.add(authority.map_err(TlsError::Authorities)?).map_err(TlsError::Authority)?;
            }
        }
        if let Some(missing) = missing.filter(|_| trusted.is_empty()) {
            return Err(missing.into());
        }
        let config = trust::trusting(trusted);
        let Some((certificate, key)) = &self.identity else { return Ok(config.with_no_client_auth()) };
        let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(TlsError::Key)?;
        config.with_client_auth_cert(certificates.map_err(TlsError::Certificate)?, key).map_err(TlsError::Identity)
    }
}

/// Why there can be no TLS.
#[cfg(feature = "amqp")]
#[derive(Debug, thiserror::Error)]
pub(in crate::connection) enum TlsError {
    #[error(transparent)]
    NoAuthorities(#[from] trust::NoAuthorities),
    #[error("the certificates that `cacert` names are not in PEM format: {0}")]
    Authorities(#[source] pem::Error),
    #[error("a certificate that `cacert` names cannot be trusted: {0}")]
    Authority(#[source] rustls::Error),
    #[error("the certificate that `cert` names is not in PEM format: {0}")]
    Certificate(#[source] pem::Error),
    #[error("the file that `key` names has no key in PEM format: {0}")]
    Key(#[source] pem::Error),
    #[error("`cert` and `key` cannot be used: {0}")]
    Identity(#[source] rustls::Error),
}

/// The content of a file that an option names, or of a folder of certificates.
#[cfg(feature = "amqp")]
fn content_of(
    setting: &Setting<Option<String>>,
    spec: &TransportSpec,
    options: &mut OptionReader<'_>,
    is_tls: bool,
) -> Option<String> {
    let name = setting.definition.name;
    let path = options.get(setting)?;
    if !is_tls {
        options.refuse(name, format!("{name} is for amqps:, and this is amqp:, which is not encrypted"));
        return None;
    }
    match certificates(&spec.file(&path)) {
        Ok(content) => Some(content),
        Err(error) => {
            options.refuse(name, format!("{name}: {path} cannot be read: {error}"));
            None
        }
    }
}

/// The certificates in a file, or in the files of a folder, which PHP calls `capath`.
///
/// If the folder has names by which OpenSSL looks certificates up (`5ed36f99.0`, made by `openssl rehash`), only those
/// files are read, because the same certificates are probably there under other names too.
fn certificates(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return fs::read_to_string(path);
    }
    let files: Vec<_> = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let has_name = |fits: fn(&Path) -> bool| {
        let mut fitting: Vec<_> = files.iter().filter(|file| fits(file) && file.is_file()).collect();
        fitting.sort();
        fitting
    };
    let mut chosen = has_name(is_hash);
    if chosen.is_empty() {
        chosen =
            has_name(|file| file.extension().is_some_and(|end| ["pem", "crt", "cer"].map(OsStr::new).contains(&end)));
    }
    if chosen.is_empty() {
        return Err(io::Error::other("the folder has no certificates: no *.pem, *.crt or *.cer"));
    }
    let mut all = String::new();
    for file in chosen {
        all.push_str(&fs::read_to_string(file)?);
        all.push('\n');
    }
    Ok(all)
}

/// Whether OpenSSL looks for files with this name: eight hexadecimal digits, a dot, and a number.
fn is_hash(file: &Path) -> bool {
    let Some((hash, number)) = file.file_name().and_then(OsStr::to_str).and_then(|name| name.split_once('.')) else {
        return false;
    };
    hash.len() == 8
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_from_a_file_and_from_a_folder_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
        assert!(certificates(dir.path()).unwrap_err().to_string().contains("no certificates"));
        write("readme.txt", "hello");
        write("b.pem", "B");
        write("a.crt", "A");
        assert_eq!(certificates(dir.path()).unwrap(), "A\nB\n");
        assert_eq!(certificates(&dir.path().join("b.pem")).unwrap(), "B");
        std::os::unix::fs::symlink("b.pem", dir.path().join("0123abcd.0")).unwrap();
        assert_eq!(certificates(dir.path()).unwrap(), "B\n");
        assert!(certificates(&dir.path().join("missing")).is_err());
    }
}
