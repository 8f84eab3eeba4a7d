//! What a Redis DSN and its options say: where the server is, and which stream, group and consumer.

use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{
    ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};
use serde_yaml::Value;

use super::super::sql::REDELIVER_TIMEOUT;
use super::super::tls::{self, Tls};
use super::super::{Options, TransportSpec};
use super::entry::Wrapping;

const PORT: u16 = 6379;
const CLAIM_INTERVAL: u64 = 60_000;

/// Options that mean something to php-redis and nothing here: with the values that ask for what is done anyway.
const WITHOUT_EFFECT: [(&str, &[&str], &str); 5] = [
    ("lazy", &["true", "1", "on", "yes"], "a connection is opened when it is first needed, and no sooner"),
    ("persistent_id", &[], "a process keeps its connection while it runs, and closes it at its end"),
    ("retry_interval", &["0"], "when to connect again is decided by the worker"),
    ("read_timeout", &["0", "0.0"], "an answer may take 30 seconds"),
    ("timeout", &["0", "0.0"], "connecting may take 10 seconds"),
];

/// A server, a database on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, as it holds the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
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
    /// As the driver wants it.
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
        // What is written in several parts does not wait for the server's delayed acknowledgement of the first.
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(address.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp))
    }

    /// What there is to trust and to show besides what the system trusts.
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
    pub(super) fn place(&self) -> String {
        match &self.server {
            Server::Host { name, port, .. } if name.contains(':') => format!("[{name}]:{port}/{}", self.database),
            Server::Host { name, port, .. } => format!("{name}:{port}/{}", self.database),
            Server::Socket(path) => format!("{}/{}", path.display(), self.database),
        }
    }
}

/// A queue: a stream, and the group that consumes it.
pub(super) struct Queue {
    pub(super) stream: String,
    pub(super) group: String,
    /// None: a name of its own for each process.
    pub(super) consumer: Option<String>,
    pub(super) auto_setup: bool,
    pub(super) delete_after_ack: bool,
    pub(super) delete_after_reject: bool,
    /// The stream is cut to about so many entries.
    pub(super) stream_max_entries: Option<u64>,
    pub(super) wrapping: Wrapping,
    pub(super) redeliver_timeout: Duration,
    pub(super) claim_interval: Duration,
}

/// Reads a transport's description, and notes what is wrong with it.
pub(super) fn read(spec: &TransportSpec, options: &mut Options<'_>) -> (Address, Queue) {
    let address = read_address(spec, options);
    // With a socket the whole path is its own.
    let path = if spec.dsn.host().is_empty() { "" } else { spec.dsn.path() };
    let mut parts = path.split('/').skip(1).map(|part| if part.is_empty() { None } else { Some(part.to_owned()) });
    let mut named = |name, options: &mut Options<'_>| {
        let given = options.text(name);
        parts.next().flatten().or(given)
    };
    let stream = named("stream", options).unwrap_or_else(|| "messages".to_owned());
    let group = named("group", options).unwrap_or_else(|| "symfony".to_owned());
    let consumer = named("consumer", options);
    if parts.next().is_some() {
        options.push(spec.dsn_problem("its path is /stream/group/consumer, and no more"));
    }
    let wrapping = match options.text("serializer").as_deref() {
        None | Some("1") => Wrapping::Php,
        Some("0") => Wrapping::None,
        Some(_) => {
            let why =
                "serializer is 0 (JSON as it is) or 1 (wrapped by PHP's serializer); others need igbinary or msgpack";
            options.refuse("serializer", why);
            Wrapping::Php
        }
    };
    let queue = Queue {
        stream,
        group,
        consumer,
        auto_setup: options.flag("auto_setup", true),
        delete_after_ack: options.flag("delete_after_ack", true),
        delete_after_reject: options.flag("delete_after_reject", true),
        stream_max_entries: Some(whole(options, "stream_max_entries", 0)).filter(|most| *most > 0),
        wrapping,
        redeliver_timeout: options.seconds("redeliver_timeout", REDELIVER_TIMEOUT),
        claim_interval: Duration::from_millis(whole(options, "claim_interval", CLAIM_INTERVAL)),
    };
    refuse(options);
    (address, queue)
}

/// Reads the description of a cache: the server, and what its keys begin with.
pub(super) fn read_for_cache(spec: &TransportSpec, options: &mut Options<'_>) -> (Address, String) {
    let mut address = read_address(spec, options);
    let path = if spec.dsn.host().is_empty() { "" } else { spec.dsn.path().trim_matches('/') };
    match path.parse() {
        Ok(database) => address.database = database,
        Err(_) if path.is_empty() => {}
        Err(_) => options.push(spec.dsn_problem("its path is the number of a database, or nothing")),
    }
    let prefix = options.text("prefix").unwrap_or_else(|| "minutely:".to_owned());
    refuse(options);
    (address, prefix)
}

fn read_address(spec: &TransportSpec, options: &mut Options<'_>) -> Address {
    let dsn = &spec.dsn;
    if dsn.hosts().len() > 1 {
        let why = "it names several hosts, a cluster: name one server. In a cluster the stream and the delayed messages \
                   would be on different nodes, and no step could change both";
        options.push(spec.dsn_problem(why));
    }
    let is_tls = options.flag("tls", false) || matches!(dsn.scheme(), "rediss" | "valkeys");
    let tls = read_tls(spec, options, is_tls);
    let server = match dsn.host() {
        "" if dsn.path().trim_matches('/').is_empty() => Server::Host { name: "127.0.0.1".to_owned(), port: PORT, tls },
        "" => Server::Socket(dsn.path().into()),
        name => Server::Host { name: name.to_owned(), port: dsn.port().unwrap_or(PORT), tls },
    };
    let (user, password) = match (dsn.user(), dsn.password()) {
        // `redis://secret@host`
        (Some(secret), None) => (None, Some(secret.to_owned())),
        (user, password) => (user.map(str::to_owned), password.map(str::to_owned)),
    };
    let auth = options.text("auth");
    let database = u32::try_from(whole(options, "dbindex", 0)).unwrap_or(u32::MAX);
    match auth {
        Some(auth) => Address { server, user: None, password: Some(auth), database },
        None => Address { server, user, password, database },
    }
}

/// PHP's options for TLS, as far as there is something to choose. None where there is no TLS.
fn read_tls(spec: &TransportSpec, options: &mut Options<'_>, is_tls: bool) -> Option<Tls> {
    let given = match options.tree("ssl") {
        None => return is_tls.then(Tls::default),
        Some(Value::Sequence(none)) if none.is_empty() => return is_tls.then(Tls::default),
        Some(Value::Mapping(given)) => given,
        Some(_) => {
            options.refuse("ssl", "ssl is a map with keys of cafile, capath, local_cert, local_pk");
            return is_tls.then(Tls::default);
        }
    };
    if !is_tls && !given.is_empty() {
        options.refuse("ssl", "ssl is for rediss:, and this connection is not encrypted");
    }
    let (mut tls, mut certificate, mut key) = (Tls::default(), None, None);
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
            let content = tls::certificates(&spec.file(&text));
            content.map_err(|error| options.refuse("ssl", format!("ssl: {name}: {text} cannot be read: {error}"))).ok()
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
                let why =
                    "a connection that does not look whom it talks to is not made; name the authority with `cafile`";
                options.refuse("ssl", format!("ssl: {name}: {why}"));
            }
            _ => {
                let known = "cafile, capath, local_cert, local_pk, verify_peer, verify_peer_name, allow_self_signed";
                options.refuse("ssl", format!("ssl: unknown key \"{name}\"; known: {known}"));
            }
        }
    }
    if key.is_none() {
        // PHP looks for the key in the certificate's file where none is named.
        key.clone_from(&certificate);
    }
    tls.identity = certificate.zip(key);
    is_tls.then_some(tls)
}

fn whole(options: &mut Options<'_>, name: &'static str, default: u64) -> u64 {
    let Some(text) = options.text(name) else { return default };
    text.parse::<u32>().map_or_else(
        |_| {
            options.refuse(name, format!("{name} is a whole number, at most {}; found \"{text}\"", u32::MAX));
            default
        },
        u64::from,
    )
}

/// What Symfony knows and this does not do, by name and with the reason.
fn refuse(options: &mut Options<'_>) {
    for (name, same, why) in WITHOUT_EFFECT {
        options.without_effect(name, same, why);
    }
    if options.flag("cluster", false) {
        options.refuse(
            "cluster",
            "cluster: a cluster's nodes could not change both the stream and the delayed messages in one step",
        );
    }
    let reasons = [
        ("sentinel_master", "Sentinel is not asked here: name the primary itself, or an address that follows it"),
        ("redis_sentinel", "Sentinel is not asked here: name the primary itself, or an address that follows it"),
        (
            "host",
            "the server is named before the path, and is one: a cluster's nodes could not change both the stream and \
                  the delayed messages in one step",
        ),
    ];
    for (name, why) in reasons {
        if options.tree(name).is_some() {
            options.refuse(name, format!("{name}: {why}"));
        }
    }
}
