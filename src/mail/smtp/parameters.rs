//! What the parameters of a DSN say about a mail server.

use std::net::IpAddr;

use lettre::transport::smtp::client::{Certificate, TlsParameters};

use super::session::with_causes;
use crate::config::{Dsn, Problem};

const KNOWN: [&str; 6] = ["verify_peer", "auto_tls", "require_tls", "local_domain", "ca_file", "source_ip"];

/// Parameters of Symfony without an effect here, and why.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    ("restart_threshold", OWN_CONNECTION),
    ("restart_threshold_sleep", OWN_CONNECTION),
    ("ping_threshold", OWN_CONNECTION),
    ("max_per_second", "the `rate_limiter` of a transport says how many of its messages are begun in a time"),
];
const OWN_CONNECTION: &str = "each mail has a connection of its own";

pub(super) struct Parameters {
    verify_peer: bool,
    pub(super) auto_tls: bool,
    pub(super) require_tls: bool,
    pub(super) local_domain: Option<String>,
    ca_file: Option<String>,
    pub(super) source_ip: Option<IpAddr>,
}

impl Parameters {
    pub(super) fn read(dsn: &Dsn, path: &str, warnings: &mut Vec<Problem>) -> Result<Self, Vec<Problem>> {
        let mut read = Self {
            verify_peer: true,
            auto_tls: true,
            require_tls: false,
            local_domain: None,
            ca_file: None,
            source_ip: None,
        };
        let mut problems = Vec::new();
        for (name, value) in dsn.parameters() {
            let mut flag = |read: &mut bool| match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "on" | "yes" => *read = true,
                "0" | "false" | "off" | "no" | "" => *read = false,
                _ => problems.push(Problem::error(path, format!("its parameter {name} must be true or false"))),
            };
            match name {
                "verify_peer" => flag(&mut read.verify_peer),
                "auto_tls" => flag(&mut read.auto_tls),
                "require_tls" => flag(&mut read.require_tls),
                "local_domain" => read.local_domain = Some(value.to_owned()),
                "ca_file" => read.ca_file = Some(value.to_owned()),
                "source_ip" => match value.trim_matches(['[', ']']).parse() {
                    Ok(address) => read.source_ip = Some(address),
                    Err(_) => problems.push(Problem::error(path, "its parameter source_ip must be an IP address")),
                },
                "peer_fingerprint" => {
                    let why = "its parameter peer_fingerprint is not supported; use `ca_file`, or leave it out";
                    problems.push(Problem::error(path, why));
                }
                name => match WITHOUT_EFFECT.iter().find(|(known, _)| *known == name) {
                    Some((_, why)) => {
                        warnings
                            .push(Problem::warning(path, format!("its parameter {name} has no effect here: {why}")));
                    }
                    None => problems.push(Problem::unknown(path, "parameter", name, KNOWN)),
                },
            }
        }
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }

    pub(super) fn tls(&self, host: &str) -> Result<TlsParameters, String> {
        let mut builder = TlsParameters::builder(host.to_owned());
        if !self.verify_peer {
            builder = builder.dangerous_accept_invalid_certs(true).dangerous_accept_invalid_hostnames(true);
        }
        if let Some(file) = &self.ca_file {
            let pem = std::fs::read(file).map_err(|error| format!("its ca_file cannot be read: {error}"))?;
            let certificate =
                Certificate::from_pem(&pem).map_err(|error| format!("its ca_file is not PEM: {error}"))?;
            builder = builder.add_root_certificate(certificate);
        }
        builder.build().map_err(|error| format!("TLS cannot be used: {}", with_causes(&error)))
    }
}
