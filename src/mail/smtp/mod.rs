//! Sends mail to a server by SMTP. Each mail has a connection of its own.

mod parameters;
mod secrets;
mod session;

use std::net::IpAddr;
use std::time::Duration;

use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::TlsParameters;
use lettre::transport::smtp::extension::ClientId;

use super::draft::Prepared;
use super::error::MailError;
use crate::config::{Dsn, Problem};
use crate::threads;

use parameters::Parameters;
use secrets::Secrets;
use session::Session;

/// The port of `smtp://` if none is named, and of `smtps://`.
const PORT: u16 = 25;
const TLS_PORT: u16 = 465;
/// A server at this port speaks TLS from the beginning, also after `smtp://`, as in Symfony.
const PORT_OF_TLS: u16 = 465;

/// How a server is reached.
pub(super) struct Smtp {
    host: String,
    port: u16,
    /// As errors show it.
    server: String,
    encryption: Encryption,
    login: Option<Credentials>,
    secrets: Secrets,
    /// What this host calls itself.
    hello: ClientId,
    /// The address of this host that connections come from.
    source: Option<IpAddr>,
    timeout: Duration,
}

/// When TLS begins.
enum Encryption {
    FromTheBeginning(TlsParameters),
    /// With STARTTLS, or there is no mail.
    Required(TlsParameters),
    /// With STARTTLS, if the server offers it.
    IfOffered(TlsParameters),
    Never,
}

impl Smtp {
    pub(super) fn new(
        dsn: &Dsn,
        path: &str,
        timeout: Duration,
        warnings: &mut Vec<Problem>,
    ) -> Result<Self, Vec<Problem>> {
        let problem = |what: &str| vec![Problem::error(path, what)];
        let host = dsn.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(problem("names no server: expected smtp://user:password@host:port"));
        }
        let parameters = Parameters::read(dsn, path, warnings)?;
        let is_tls = dsn.scheme() == "smtps" || dsn.port() == Some(PORT_OF_TLS);
        let port =
            dsn.port().filter(|port| *port != 0).unwrap_or(if dsn.scheme() == "smtps" { TLS_PORT } else { PORT });
        let tls = || parameters.tls(&host).map_err(|why| problem(&why));
        let encryption = match (is_tls, parameters.auto_tls, parameters.require_tls) {
            (true, ..) => Encryption::FromTheBeginning(tls()?),
            (false, _, true) => Encryption::Required(tls()?),
            (false, true, false) => Encryption::IfOffered(tls()?),
            (false, false, false) => Encryption::Never,
        };
        let password = dsn.password().unwrap_or_default();
        Ok(Self {
            server: format!("{}:{port}", dsn.host()),
            host,
            port,
            encryption,
            login: dsn.user().map(|user| Credentials::new(user.to_owned(), password.to_owned())),
            secrets: Secrets::of(dsn.user().unwrap_or_default(), password),
            hello: parameters.local_domain.map_or_else(ClientId::default, ClientId::Domain),
            source: parameters.source_ip,
            timeout,
        })
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), MailError> {
        let server = &self.server;
        threads::wait_for_lookup_thread(&self.host)
            .await
            .map_err(|error| MailError::temporary(format!("the host name of {server} cannot be looked up: {error}")))?;
        let mut session = Session::begin(self).await?;
        let sent = session.send(mail).await;
        // To one that no longer answers there is nothing to say.
        if sent.as_ref().err().is_none_or(MailError::is_answer) {
            session.quit().await;
        }
        sent
    }
}
