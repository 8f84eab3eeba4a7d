//! Where an AMQP broker is, and as whom to connect: what a DSN and its options say about that.

use std::time::Duration;

use crate::config::{Definition, OptionReader, Setting, TransportSpec};
use crate::connection::Location;
use crate::connection::tls::{FILES, Tls};

/// What may be said of a connection, in the DSN or under `options:`.
pub(crate) const OPTIONS: [Definition; 21] = [
    HOST.definition,
    PORT.definition,
    VHOST.definition,
    USER.definition,
    LOGIN.definition,
    PASSWORD.definition,
    FILES[0],
    FILES[1],
    FILES[2],
    CONNECT_TIMEOUT.definition,
    HEARTBEAT.definition,
    FRAME_MAX.definition,
    CHANNEL_MAX.definition,
    CONNECTION_NAME.definition,
    Definition::ignored(
        "persistent",
        &["false", "0"],
        "a process keeps its connection while it runs, and closes it at its end",
    ),
    Definition::ignored("retry", &[], "when to connect again is decided by the worker"),
    Definition::ignored("read_timeout", &["0", "0.0"], "a broker that has vanished is found out by `heartbeat`"),
    Definition::ignored(
        "write_timeout",
        &["0", "0.0"],
        "how long the broker may take to confirm a message is `confirm_timeout`",
    ),
    Definition::ignored("rpc_timeout", &["0", "0.0"], "a broker that has vanished is found out by `heartbeat`"),
    Definition::refused(
        "verify",
        &["true", "1", "on", "yes"],
        "the broker is always verified; name its authority with `cacert`",
    ),
    SASL_METHOD.definition,
];
const HOST: Setting<Option<String>> = Setting::text("host", "", "the broker, if the DSN names none").or("`localhost`");
const PORT: Setting<Option<u64>> =
    Setting::whole("port", 0, u16::MAX as u64, "0", "its port, if the DSN names none").or("5672; `amqps:` 5671");
const VHOST: Setting<Option<String>> =
    Setting::text("vhost", "", "the virtual host, if the DSN's path names none").or("`/`");
const USER: Setting<Option<String>> = Setting::text("user", "", "the user, if the DSN names none").or("`guest`");
const LOGIN: Setting<Option<String>> = Setting::text("login", "", "the same as `user`").or("`guest`");
const PASSWORD: Setting<Option<String>> =
    Setting::text("password", "", "the password, if the DSN has none").or("`guest`");
const SASL_METHOD: Setting<String> = Setting::text(
    "sasl_method",
    "0",
    "how to log in, by the number that php-amqp has for it or by its name: 0 `plain`, with user and password; 1 `external`, \
     with the client's certificate `cert`",
)
.matching("0|1|plain|external|PLAIN|EXTERNAL", "0 (plain) or 1 (external)");
const CONNECT_TIMEOUT: Setting<Duration> =
    Setting::timeout("connect_timeout", "10", "seconds that connecting may take");
const HEARTBEAT: Setting<Option<u64>> =
    Setting::whole("heartbeat", 0, u16::MAX as u64, "0", "seconds between two heartbeats; 0 is the default")
        .or("the broker's");
const FRAME_MAX: Setting<Option<u64>> =
    Setting::whole("frame_max", 0, u32::MAX as u64, "0", "the longest frame, in bytes; 0 is the default")
        .or("the broker's");
const CHANNEL_MAX: Setting<Option<u64>> =
    Setting::whole("channel_max", 0, u16::MAX as u64, "0", "the most channels on a connection; 0 is the default")
        .or("the broker's");
const CONNECTION_NAME: Setting<String> =
    Setting::text("connection_name", "minutely", "the connection's name in the broker's lists");

/// A number; 0 means the default.
fn nonzero<T: TryFrom<u64>>(setting: &Setting<Option<u64>>, options: &mut OptionReader<'_>) -> Option<T> {
    options.get(setting).filter(|number| *number > 0).and_then(|number| T::try_from(number).ok())
}

/// A broker, a virtual host on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, because it contains the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) tls: Option<Tls>,
    /// The broker takes the user from the client's certificate.
    pub(super) external_login: bool,
    pub(super) connection_name: String,
    pub(super) heartbeat: Option<u16>,
    pub(super) frame_max: Option<u32>,
    pub(super) channel_max: Option<u16>,
    pub(super) connect_timeout: Duration,
}

impl Address {
    /// Reads the address from the description of a transport. Also returns the exchange in its path.
    pub(crate) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>) -> (Self, Option<String>) {
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
        let (host, vhost_option) = (options.get(&HOST), options.get(&VHOST));
        let (login, user, password) = (options.get(&LOGIN), options.get(&USER), options.get(&PASSWORD));
        let port = nonzero(&PORT, options);
        let tls = Tls::read_files(spec, options, is_tls);
        let method = options.get(&SASL_METHOD);
        let external_login = method == "1" || method.eq_ignore_ascii_case("external");
        if external_login && tls.as_ref().is_none_or(|tls| tls.identity.is_none()) {
            let message =
                "sasl_method: EXTERNAL logs in by the client's certificate: it needs amqps:, `cert` and `key`";
            options.refuse("sasl_method", message);
        }
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
            external_login,
            connection_name: options.get(&CONNECTION_NAME),
            heartbeat: nonzero(&HEARTBEAT, options),
            frame_max: nonzero(&FRAME_MAX, options),
            channel_max: nonzero(&CHANNEL_MAX, options),
            connect_timeout: options.get_nonzero(&CONNECT_TIMEOUT),
        };
        (address, exchange)
    }

    /// As errors name it: `host:port/vhost`.
    pub(super) fn location(&self) -> Location {
        Location::on_host(&self.host, self.port, self.vhost.trim_start_matches('/'))
    }
}
