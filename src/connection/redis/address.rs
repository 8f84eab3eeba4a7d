//! Reads the address of a Redis server and the login from a DSN and its options.

use std::path::PathBuf;

use redis::io::tcp::TcpSettings;
use redis::{
    ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};

use crate::config::{Definition, OptionReader, Setting, TransportSpec};
use crate::connection::Location;
use crate::connection::tls::{SSL, Tls};

const PORT: u16 = 6379;

/// The options of a connection, in the DSN or under `options:`.
pub(crate) const OPTIONS: [Definition; 13] = [
    DATABASE.definition,
    PASSWORD.definition,
    TLS.definition,
    SSL,
    Definition::ignored(
        "lazy",
        &["true", "1", "on", "yes"],
        "a connection is opened when it is first needed, and no sooner",
    ),
    Definition::ignored("persistent_id", &[], "a process keeps its connection while it runs, and closes it at its end"),
    Definition::ignored("retry_interval", &["0"], "when to connect again is decided by the worker"),
    Definition::ignored("read_timeout", &["0", "0.0"], "an answer may take 30 seconds"),
    Definition::ignored("timeout", &["0", "0.0"], "connecting may take 10 seconds"),
    Definition::refused(
        "cluster",
        &["false", "0", "off", "no"],
        "a cluster's nodes could not change both the stream and the delayed messages in one step",
    ),
    Definition::refused("sentinel_master", &[], NO_SENTINEL),
    Definition::refused("redis_sentinel", &[], NO_SENTINEL),
    Definition::refused(
        "host",
        &[],
        "the server is named before the path, and is one: a cluster's nodes could not change both the stream and the \
         delayed messages in one step",
    ),
];
const DATABASE: Setting<u64> =
    Setting::whole("dbindex", 0, u32::MAX as u64, "0", "the number of the database on the server");
const PASSWORD: Setting<Option<String>> =
    Setting::text("auth", "", "a password, instead of the one in the DSN").optional();
const TLS: Setting<bool> = Setting::php_flag("tls", "false", "encrypt the connection, as `rediss:` does");
const NO_SENTINEL: &str = "Sentinel is not asked here: name the primary itself, or an address that follows it";

/// A server, a database on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, because it contains the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    server: Server,
    user: Option<String>,
    password: Option<String>,
    database: u32,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Server {
    Host { name: String, port: u16, tls: Option<Tls> },
    Socket(PathBuf),
}

impl Address {
    /// Reads the address from the description of a transport.
    pub(crate) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Self {
        let dsn = &spec.dsn;
        if dsn.hosts().len() > 1 {
            let why = "it names several hosts, a cluster: name one server. In a cluster the stream and the delayed messages \
                       would be on different nodes, and no step could change both";
            options.push(spec.dsn_problem(why));
        }
        let is_tls = options.get(&TLS) || matches!(dsn.scheme(), "rediss" | "valkeys");
        let tls = Tls::read_ssl_map(spec, options, is_tls);
        let server = match dsn.host() {
            "" if dsn.path().trim_matches('/').is_empty() => {
                Server::Host { name: "127.0.0.1".to_owned(), port: PORT, tls }
            }
            "" => Server::Socket(dsn.path().into()),
            name => Server::Host { name: name.to_owned(), port: dsn.port().unwrap_or(PORT), tls },
        };
        let (user, password) = match (dsn.user(), dsn.password()) {
            // `redis://secret@host`
            (Some(secret), None) => (None, Some(secret.to_owned())),
            (user, password) => (user.map(str::to_owned), password.map(str::to_owned)),
        };
        let auth = options.get(&PASSWORD);
        let database = u32::try_from(options.get(&DATABASE)).unwrap_or(u32::MAX);
        match auth {
            Some(auth) => Self { server, user: None, password: Some(auth), database },
            None => Self { server, user, password, database },
        }
    }

    /// The address of a cache, whose DSN may name a database by its number.
    pub(crate) fn read_with_database(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Self {
        let mut address = Self::read(spec, options);
        let path = if spec.dsn.host().is_empty() { "" } else { spec.dsn.path().trim_matches('/') };
        match path.parse() {
            Ok(database) => address.database = database,
            Err(_) if path.is_empty() => {}
            Err(_) => options.push(spec.dsn_problem("its path is the number of a database, or nothing")),
        }
        address
    }

    /// The address in the driver's form.
    pub(super) fn connection_info(&self) -> RedisResult<ConnectionInfo> {
        let address = match self.server.clone() {
            Server::Host { name, port, tls: None } => ConnectionAddr::Tcp(name, port),
            Server::Host { name, port, tls: Some(_) } => {
                ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None }
            }
            Server::Socket(path) => ConnectionAddr::Unix(path),
        };
        let mut redis =
            RedisConnectionInfo::default().set_db(self.database.into()).set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.user {
            redis = redis.set_username(user);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password);
        }
        // Without Nagle's algorithm: a request in several parts must not wait for a delayed acknowledgement of the
        // first.
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(address.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp))
    }

    /// The certificates to trust besides the system's, and this side's certificate.
    pub(super) fn certificates(&self) -> Option<TlsCertificates> {
        let Server::Host { tls: Some(tls), .. } = &self.server else { return None };
        let pem = |text: &String| text.clone().into_bytes();
        let client_tls = tls
            .identity
            .as_ref()
            .map(|(certificate, key)| ClientTlsConfig { client_cert: pem(certificate), client_key: pem(key) });
        let root_cert = tls.authorities.as_ref().map(pem);
        (client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert })
    }

    /// As errors name it: `host:port/database`.
    pub(super) fn location(&self) -> Location {
        match &self.server {
            Server::Host { name, port, .. } => Location::on_host(name, *port, self.database),
            Server::Socket(path) => Location::on_socket(path.display(), self.database),
        }
    }
}
