//! Sends mail to a server by SMTP.

use std::time::Duration;

use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::{Category, Severity};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use super::draft::Prepared;
use super::error::MailError;
use crate::config::{Dsn, Problem};
use crate::threads;

/// The port of `smtp://` if none is named, and of `smtps://`.
const PORT: u16 = 25;
const TLS_PORT: u16 = 465;
/// A server at this port speaks TLS from the beginning, also after `smtp://`, as in Symfony.
const PORT_OF_TLS: u16 = 465;

/// How a server is reached.
pub(super) struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    host: String,
    /// As errors show it.
    server: String,
    timeout: Duration,
}

/// What the parameters of a DSN say.
struct Parameters {
    verify_peer: bool,
    auto_tls: bool,
    require_tls: bool,
    local_domain: Option<String>,
    ca_file: Option<String>,
}

impl Smtp {
    pub(super) fn new(dsn: &Dsn, path: &str, timeout: Duration) -> Result<Self, Vec<Problem>> {
        let problem = |what: &str| vec![Problem::error(path, what)];
        let host = dsn.host().to_owned();
        if host.is_empty() {
            return Err(problem("names no server: expected smtp://user:password@host:port"));
        }
        let parameters = Parameters::read(dsn, path)?;
        let is_tls = dsn.scheme() == "smtps" || dsn.port() == Some(PORT_OF_TLS);
        let port =
            dsn.port().filter(|port| *port != 0).unwrap_or(if dsn.scheme() == "smtps" { TLS_PORT } else { PORT });
        let tls = || parameters.tls(&host).map_err(|why| problem(&why));
        let tls = match (is_tls, parameters.auto_tls, parameters.require_tls) {
            (true, ..) => Tls::Wrapper(tls()?),
            (false, _, true) => Tls::Required(tls()?),
            (false, true, false) => Tls::Opportunistic(tls()?),
            (false, false, false) => Tls::None,
        };
        let mut builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&host).port(port).tls(tls).timeout(Some(timeout));
        if let Some(user) = dsn.user() {
            builder =
                builder.credentials(Credentials::new(user.to_owned(), dsn.password().unwrap_or_default().to_owned()));
        }
        if let Some(domain) = &parameters.local_domain {
            builder = builder.hello_name(ClientId::Domain(domain.clone()));
        }
        let server = format!("{host}:{port}");
        Ok(Self { transport: builder.build(), host, server, timeout })
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), MailError> {
        let server = &self.server;
        threads::wait_for_lookup_thread(&self.host)
            .await
            .map_err(|error| MailError::temporary(format!("the host name of {server} cannot be looked up: {error}")))?;
        let sending = self.transport.send_raw(&mail.envelope, &mail.content);
        match tokio::time::timeout(self.timeout, sending).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => {
                let seconds = self.timeout.as_secs_f64();
                Err(MailError::temporary(format!(
                    "the mail server {server} has not taken it within {seconds} s (`mailer.timeout`)"
                )))
            }
        }
    }

    /// What another attempt may mend: all but what the server refuses for good. A refused login is not the mail's fault.
    fn failed(&self, error: &lettre::transport::smtp::Error) -> MailError {
        let text = format!("the mail server {}: {}", self.server, with_causes(error));
        let Some(code) = error.status() else { return MailError::temporary(text) };
        let number = i64::from(u16::from(code));
        // 530, 535 and others.
        let is_login = code.category == Category::Unspecified3;
        let is_permanent = code.severity == Severity::PermanentNegativeCompletion && !is_login;
        let error = if is_permanent { MailError::permanent(text) } else { MailError::temporary(text) };
        error.with_code(number)
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Parameters {
    fn read(dsn: &Dsn, path: &str) -> Result<Self, Vec<Problem>> {
        const KNOWN: [&str; 5] = ["verify_peer", "auto_tls", "require_tls", "local_domain", "ca_file"];
        /// Of Symfony, and about how it holds connections.
        const WITHOUT_EFFECT: [&str; 6] = [
            "peer_fingerprint",
            "restart_threshold",
            "restart_threshold_sleep",
            "ping_threshold",
            "max_per_second",
            "source_ip",
        ];
        let mut read =
            Self { verify_peer: true, auto_tls: true, require_tls: false, local_domain: None, ca_file: None };
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
                "peer_fingerprint" | "source_ip" => {
                    problems.push(Problem::error(
                        path,
                        format!("its parameter {name} is not supported; use `ca_file`, or leave it out"),
                    ));
                }
                name if WITHOUT_EFFECT.contains(&name) => {}
                name => problems.push(Problem::unknown(path, "parameter", name, KNOWN)),
            }
        }
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }

    fn tls(&self, host: &str) -> Result<TlsParameters, String> {
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
