//! Where an AMQP broker is, and as whom to connect: what a DSN and its options say about that.

use std::time::Duration;

use crate::config::{Options, TransportSpec};
use crate::connection::Location;
use crate::connection::tls::Tls;

/// How long connecting may take, where nothing else is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker, a virtual host on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, as it holds the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) tls: Option<Tls>,
    pub(super) connection_name: String,
    pub(super) heartbeat: Option<u16>,
    pub(super) frame_max: Option<u32>,
    pub(super) channel_max: Option<u16>,
    pub(super) connect_timeout: Duration,
}

impl Address {
    /// Reads the address out of the description of a transport; gives also the exchange in its path.
    pub(crate) fn read(spec: &TransportSpec, options: &mut Options<'_>) -> (Self, Option<String>) {
        let dsn = &spec.dsn;
        if dsn.hosts().len() > 1 {
            let message = "it names several hosts: name one, or an address that leads to all of them";
            options.push(spec.dsn_problem(message));
        }
        let mut segments = dsn.path_segments().iter();
        let vhost = segments.next().filter(|vhost| !vhost.is_empty()).cloned();
        let exchange = segments.next().filter(|exchange| !exchange.is_empty()).cloned();
        if segments.next().is_some() {
            let message = "its path is /vhost/exchange, and no more; a \"/\" in a name is written as %2f";
            options.push(spec.dsn_problem(message));
        }
        let is_tls = dsn.scheme() == "amqps";
        let (host, vhost_option) = (options.text("host"), options.text("vhost"));
        let (login, user, password) = (options.text("login"), options.text("user"), options.text("password"));
        let port = options.number_or_default("port", u16::MAX.into()).and_then(|port| u16::try_from(port).ok());
        let tls = Tls::read_files(spec, options, is_tls);
        let address = Self {
            host: Some(dsn.host().to_owned())
                .filter(|host| !host.is_empty())
                .or(host)
                .unwrap_or_else(|| "localhost".to_owned()),
            port: dsn.port().or(port).unwrap_or(if is_tls { 5671 } else { 5672 }),
            vhost: vhost.or(vhost_option).unwrap_or_else(|| "/".to_owned()),
            user: dsn.user().map(str::to_owned).or(login).or(user).unwrap_or_else(|| "guest".to_owned()),
            password: dsn.password().map(str::to_owned).or(password).unwrap_or_else(|| "guest".to_owned()),
            tls,
            connection_name: options.text("connection_name").unwrap_or_else(|| "minutely".to_owned()),
            heartbeat: options
                .number_or_default("heartbeat", u16::MAX.into())
                .and_then(|seconds| u16::try_from(seconds).ok()),
            frame_max: options
                .number_or_default("frame_max", u32::MAX.into())
                .and_then(|bytes| u32::try_from(bytes).ok()),
            channel_max: options
                .number_or_default("channel_max", u16::MAX.into())
                .and_then(|most| u16::try_from(most).ok()),
            connect_timeout: options.timeout("connect_timeout", CONNECT_TIMEOUT),
        };
        (address, exchange)
    }

    /// As errors name it: `host:port/vhost`.
    pub(super) fn location(&self) -> Location {
        Location::on_host(&self.host, self.port, self.vhost.trim_start_matches('/'))
    }
}
