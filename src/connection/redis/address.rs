//! Reads the address of a Redis server and the login from a DSN and its options.

use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};
use serde_yaml::Value;

use crate::config::{Definition, Kind, OptionReader, Setting, TransportSpec};
use crate::connection::Location;
use crate::connection::tls::{SSL, Tls};

const PORT: u16 = 6379;

/// The options of a connection, in the DSN or under `options:`.
pub(crate) const OPTIONS: [Definition; 13] = [
    DATABASE.definition,
    PASSWORD.definition,
    TLS.definition,
    SSL,
    TIMEOUT.definition,
    READ_TIMEOUT.definition,
    SENTINEL_MASTER.definition,
    REDIS_SENTINEL.definition,
    CLUSTER.definition,
    HOSTS,
    Definition::ignored(
        "lazy",
        &["true", "1", "on", "yes"],
        "a connection is opened when it is first needed, and no sooner",
    ),
    Definition::ignored("persistent_id", &[], "a process keeps its connection while it runs, and closes it at its end"),
    Definition::ignored("retry_interval", &["0"], "when to connect again is decided by the worker"),
];
const DATABASE: Setting<u64> =
    Setting::whole("dbindex", 0, u32::MAX as u64, "0", "the number of the database on the server");
const PASSWORD: Setting<Option<String>> =
    Setting::text("auth", "", "a password, instead of the one in the DSN").optional();
const TLS: Setting<bool> = Setting::php_flag("tls", "false", "encrypt the connection, as `rediss:` does");
const TIMEOUT: Setting<Duration> =
    Setting::timeout("timeout", "10", "seconds that connecting may take; 0 is the default");
const READ_TIMEOUT: Setting<Duration> =
    Setting::timeout("read_timeout", "30", "seconds that an answer may take; 0 is the default");
const SENTINEL_MASTER: Setting<Option<String>> = Setting::text(
    "sentinel_master",
    "",
    "the servers named are sentinels; connect to the primary that they know by this name",
)
.optional();
const REDIS_SENTINEL: Setting<Option<String>> =
    Setting::text("redis_sentinel", "", "the same as `sentinel_master`").optional();
const CLUSTER: Setting<bool> = Setting::php_flag(
    "cluster",
    "false",
    "the server is a node of a cluster, as several servers without a sentinel are",
);
const HOSTS: Definition = Definition::new(
    "host",
    Kind::Either(&[Kind::Map(&Kind::Anything), Kind::List(&Kind::Text("host:port"))]),
    "several servers, in place of the one in the DSN: `redis:?host[one:6379]&host[two:6379]`",
)
.or("that of the DSN");

/// A server, a database on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, because it contains the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    server: Server,
    tls: Option<Tls>,
    user: Option<String>,
    password: Option<String>,
    database: u32,
    pub(super) connect_timeout: Duration,
    pub(super) answer_timeout: Duration,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Server {
    Host(String, u16),
    Socket(PathBuf),
    Several(Several),
}

/// Servers that know where the one is that has the keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Several {
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) lookup: Lookup,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Lookup {
    /// They are sentinels, and the primary has this name.
    Sentinel(String),
    /// They are nodes of a cluster, and the keys have this hash tag, which is the same as to be in one slot.
    Cluster(String),
}

impl Address {
    /// Reads the address from the description of a transport.
    pub(crate) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Self {
        let dsn = &spec.dsn;
        let is_tls = options.get(&TLS) || matches!(dsn.scheme(), "rediss" | "valkeys");
        let tls = Tls::read_ssl_map(spec, options, is_tls);
        let server = read_server(spec, options);
        let (user, password) = match (dsn.user(), dsn.password()) {
            // `redis://secret@host`
            (Some(secret), None) => (None, Some(secret.to_owned())),
            (user, password) => (user.map(str::to_owned), password.map(str::to_owned)),
        };
        let auth = options.get(&PASSWORD);
        let database = u32::try_from(options.get(&DATABASE)).unwrap_or(u32::MAX);
        let (user, password) = match auth {
            Some(auth) => (None, Some(auth)),
            None => (user, password),
        };
        let (connect_timeout, answer_timeout) = (options.get_nonzero(&TIMEOUT), options.get_nonzero(&READ_TIMEOUT));
        let tls = tls.filter(|_| !matches!(server, Server::Socket(_)));
        let address = Self { server, tls, user, password, database, connect_timeout, answer_timeout };
        if address.is_cluster() && database != 0 {
            options.refuse("dbindex", "dbindex: a cluster has only the database 0");
        }
        address
    }

    /// The address of a cache, whose DSN may name a database by its number.
    pub(crate) fn read_with_database(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Self {
        let mut address = Self::read(spec, options);
        let path = if address.is_socket() { "" } else { spec.dsn.path().trim_matches('/') };
        match path.parse() {
            Ok(0) => {}
            Ok(_) if address.is_cluster() => options.push(spec.dsn_problem("a cluster has only the database 0")),
            Ok(database) => address.database = database,
            Err(_) if path.is_empty() => {}
            Err(_) => options.push(spec.dsn_problem("its path is the number of a database, or nothing")),
        }
        address
    }

    /// Whether the whole path of the DSN is that of a socket.
    pub(crate) fn is_socket(&self) -> bool {
        matches!(self.server, Server::Socket(_))
    }

    /// Whether all keys must have one hash tag.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(&self.server, Server::Several(Several { lookup: Lookup::Cluster(_), .. }))
    }

    /// In a cluster, the address of the node for keys that begin with this name. Returns whether that is one node: the name
    /// has a hash tag, as `{orders}` has. Without a cluster, it always is.
    pub(crate) fn select_node(&mut self, name: &str) -> bool {
        let Server::Several(Several { lookup: Lookup::Cluster(of), .. }) = &mut self.server else { return true };
        match hash_tag(name) {
            Some(tag) => {
                tag.clone_into(of);
                true
            }
            None => false,
        }
    }

    /// The servers to ask, if there are several.
    pub(super) fn several(&self) -> Option<&Several> {
        match &self.server {
            Server::Several(several) => Some(several),
            _ => None,
        }
    }

    /// A client for the server, if there is one only.
    pub(super) fn client(&self) -> RedisResult<Option<Client>> {
        match &self.server {
            Server::Host(name, port) => self.client_to(name, *port, true).map(Some),
            Server::Socket(path) => self.client_at(ConnectionAddr::Unix(path.clone()), true).map(Some),
            Server::Several(_) => Ok(None),
        }
    }

    /// A client for a server, with this login or with none.
    pub(super) fn client_to(&self, host: &str, port: u16, login: bool) -> RedisResult<Client> {
        let host = host.to_owned();
        let address = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        self.client_at(address, login)
    }

    fn client_at(&self, address: ConnectionAddr, login: bool) -> RedisResult<Client> {
        let info = self.connection_info(address, login)?;
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }

    fn connection_info(&self, address: ConnectionAddr, login: bool) -> RedisResult<ConnectionInfo> {
        let mut redis = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if login {
            redis = redis.set_db(self.database.into());
            if let Some(user) = &self.user {
                redis = redis.set_username(user);
            }
            if let Some(password) = &self.password {
                redis = redis.set_password(password);
            }
        }
        // Without Nagle's algorithm: a request in several parts must not wait for a delayed acknowledgement of the
        // first.
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(address.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp))
    }

    /// The certificates to trust besides the system's, and this side's certificate.
    fn certificates(&self) -> Option<TlsCertificates> {
        let tls = self.tls.as_ref()?;
        let pem = |text: &String| text.clone().into_bytes();
        let client_tls = tls
            .identity
            .as_ref()
            .map(|(certificate, key)| ClientTlsConfig { client_cert: pem(certificate), client_key: pem(key) });
        let root_cert = tls.authorities.as_ref().map(pem);
        (client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert })
    }

    /// As errors name it: `host:port/database`, `name@sentinel:port,…/database`, `node:port,…/{tag}`.
    pub(super) fn location(&self) -> Location {
        let several = match &self.server {
            Server::Host(name, port) => return Location::on_host(name, *port, self.database),
            Server::Socket(path) => return Location::on_socket(path.display(), self.database),
            Server::Several(several) => several,
        };
        let hosts: Vec<String> = several.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let hosts = hosts.join(",");
        match &several.lookup {
            Lookup::Sentinel(primary) => Location::on_several(&format!("{primary}@{hosts}"), self.database),
            Lookup::Cluster(tag) => Location::on_several(&hosts, format_args!("{{{tag}}}")),
        }
    }
}

/// Where the server is: in the DSN, or under `host`.
fn read_server(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Server {
    let dsn = &spec.dsn;
    let mut hosts: Vec<_> = dsn.hosts().iter().map(|host| (host.name.clone(), host.port.unwrap_or(PORT))).collect();
    if let Some(given) = options.tree(&HOSTS) {
        if !hosts.is_empty() {
            options.refuse("host", "host: the DSN names a server too; name all of them in one place");
        }
        hosts = match hosts_of(&given) {
            Some(hosts) => hosts,
            None => {
                options.refuse("host", "host is a map of servers, as in `redis:?host[one:6379]&host[two:6379]`");
                hosts
            }
        };
    }
    let sentinel = [&SENTINEL_MASTER, &REDIS_SENTINEL].map(|setting| options.get(setting)).into_iter().flatten();
    let sentinel = sentinel.filter(|primary| !primary.trim().is_empty()).reduce(|first, second| {
        if first != second {
            options.refuse("redis_sentinel", "redis_sentinel and sentinel_master have different values");
        }
        first
    });
    let is_cluster = options.get(&CLUSTER) || (hosts.len() > 1 && sentinel.is_none());
    let lookup = match sentinel {
        Some(_) if is_cluster => {
            options.refuse("cluster", "a cluster has no sentinels: leave `cluster` or `sentinel_master` out");
            return Server::Host(String::new(), PORT);
        }
        Some(primary) => Some(Lookup::Sentinel(primary)),
        None => is_cluster.then(|| Lookup::Cluster(String::new())),
    };
    if hosts.is_empty() && (lookup.is_some() || dsn.path().trim_matches('/').is_empty()) {
        hosts.push(("127.0.0.1".to_owned(), PORT));
    }
    match (lookup, hosts.first()) {
        (Some(lookup), _) => Server::Several(Several { hosts, lookup }),
        (None, Some((name, port))) => Server::Host(name.clone(), *port),
        (None, None) => Server::Socket(dsn.path().into()),
    }
}

/// Servers from a map whose keys they are, as Symfony has it, or from a list.
fn hosts_of(given: &Value) -> Option<Vec<(String, u16)>> {
    let names: Vec<&str> = match given {
        Value::Sequence(hosts) => hosts.iter().map(Value::as_str).collect::<Option<_>>()?,
        Value::Mapping(hosts) => {
            let is_list = hosts.keys().all(|key| key.as_u64().is_some() || key.as_str().is_some_and(is_number));
            hosts
                .iter()
                .map(|(key, value)| if is_list { value.as_str() } else { key.as_str() })
                .collect::<Option<_>>()?
        }
        _ => return None,
    };
    names.into_iter().map(host_and_port).collect()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, PORT),
    };
    (!host.is_empty()).then(|| (host.trim_matches(['[', ']']).to_owned(), port))
}

/// The part of a key's name in braces, if it has one: it alone says in which slot the key is.
fn hash_tag(key: &str) -> Option<&str> {
    let (tag, _) = key.split_once('{')?.1.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tag_is_what_the_first_braces_hold() {
        for (key, tag) in [
            ("{orders}", Some("orders")),
            ("app:{orders}:high", Some("orders")),
            ("{a}{b}", Some("a")),
            ("orders", None),
            ("{}orders", None),
            ("}orders{", None),
        ] {
            assert_eq!(hash_tag(key), tag, "{key}");
        }
    }
}
