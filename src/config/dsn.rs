//! Parses DSNs: `scheme://user:password@host:port/path?option=value`.
//!
//! A DSN only looks like a URL. `sqlite:var/queue.db` has no host, `redis://one:6379,two:6379` has two, and
//! `redis://secret@/run/redis.sock` has a password but no host. A URL parser refuses all of them. So the structure is
//! parsed here, and only escapes and query parameters are read as in a URL.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;
use thiserror::Error;

/// A parsed DSN. Percent-escapes are decoded.
///
/// Only `Debug` and `Display` hide passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<Host>,
    path: String,
    segments: Vec<String>,
    parameters: Vec<(String, String)>,
}

/// One of a DSN's hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Host {
    /// A host name or address (IPv6 without its brackets), or another name as in `doctrine://default`. May be empty.
    pub name: String,
    /// The port, if there is one.
    pub port: Option<u16>,
}

/// Why a text is not a DSN. Does not repeat the text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum DsnError {
    /// It does not start with a scheme.
    #[error("a DSN starts with a scheme, as in \"sync://\" or \"sqlite:var/queue.db\"; this one does not")]
    NoScheme,
    /// It has a `#`, which would cut off the rest.
    #[error("a DSN cannot contain \"#\"; write it as %23 in a user name, password or file name")]
    Fragment,
    /// The text after the host's colon is not a port.
    #[error(
        "the port is not a number from 0 to 65535; if there is no port, a user name or password holds one of / ? # @ : \
         which must be percent-encoded there"
    )]
    Port,
    /// The escapes of a part are not valid UTF-8.
    #[error("the percent-escapes in the {0} are not valid UTF-8")]
    Escapes(&'static str),
}

impl Dsn {
    /// Parses a DSN.
    pub(crate) fn parse(text: &str) -> Result<Self, DsnError> {
        let (scheme, rest) = text.trim().split_once(':').ok_or(DsnError::NoScheme)?;
        if !is_scheme(scheme) {
            return Err(DsnError::NoScheme);
        }
        if rest.contains('#') {
            return Err(DsnError::Fragment);
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = &*one_authority(scheme, place);
        let (authority, path) = match place.strip_prefix("//") {
            Some(place) => place.split_at(place.find('/').unwrap_or(place.len())),
            None => ("", place),
        };
        // The last @, as in PHP's parse_url(), because passwords often contain one that is not escaped.
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (not_empty(decode(user, "user name")?), not_empty(decode(password, "password")?)),
            None => (None, None),
        };
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts: if hosts.is_empty() {
                vec![]
            } else {
                hosts.split(',').map(Host::parse).collect::<Result<_, _>>()?
            },
            segments: segments(path)?,
            path: decode(path, "path")?,
            parameters: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        })
    }

    /// The part before the first colon, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user name. In a Redis DSN without a password, this *is* the password: never show it.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password. Never show it.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The first host's name; empty if there is none.
    pub fn host(&self) -> &str {
        self.hosts.first().map_or("", |host| &host.name)
    }

    /// The first host's port.
    pub fn port(&self) -> Option<u16> {
        self.hosts.first().and_then(|host| host.port)
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The path after the host, with its leading slash. In a DSN without `//`, everything before the parameters.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The segments of the path. A slash written as `%2F` does not separate segments.
    pub fn path_segments(&self) -> &[String] {
        &self.segments
    }

    /// The query parameters, in order. Their values may contain passwords.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// `//one:1/a,scheme://user@two:2/b`, several DSNs as Symfony reads them, as one: `//one:1,two:2/b`. The login is that of
/// the first, the path that of the last.
fn one_authority<'t>(scheme: &str, place: &'t str) -> Cow<'t, str> {
    let separator = format!(",{scheme}://");
    let Some((first, others)) = place.strip_prefix("//").and_then(|place| place.split_once(&separator)) else {
        return Cow::Borrowed(place);
    };
    let parts = |dsn: &'t str| dsn.split_at(dsn.find('/').unwrap_or(dsn.len()));
    let (mut joined, mut last) = (format!("//{}", parts(first).0), "");
    for dsn in others.split(&separator) {
        let (authority, path) = parts(dsn);
        joined.push(',');
        joined.push_str(authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts));
        last = path;
    }
    Cow::Owned(joined + last)
}

fn segments(path: &str) -> Result<Vec<String>, DsnError> {
    path.trim_start_matches('/').trim_end_matches('/').split('/').map(|segment| decode(segment, "path")).collect()
}

impl Host {
    fn parse(text: &str) -> Result<Self, DsnError> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => {
                (address, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some(rest) }))
            }
            None => match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None | Some("") => None,
            Some(port) => Some(port.parse().map_err(|_| DsnError::Port)?),
        };
        Ok(Self { name: decode(name, "host")?, port })
    }
}

impl fmt::Display for Dsn {
    /// The DSN with `***` for everything that may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if !self.hosts.is_empty() || self.user.is_some() || !self.path.starts_with(|c| c != '/') {
            write!(f, "//")?;
        }
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "{user}:***@")?,
            // `redis://secret@host`: a user name without a password may be the password.
            (Some(_), None) => write!(f, "***@")?,
            (None, Some(_)) => write!(f, ":***@")?,
            (None, None) => {}
        }
        for (n, host) in self.hosts.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let (open, close) = if host.name.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{}{close}", host.name)?;
            if let Some(port) = host.port {
                write!(f, ":{port}")?;
            }
        }
        f.write_str(&self.path)?;
        for (n, (key, value)) in self.parameters.iter().enumerate() {
            let value = if is_secret(key) { "***" } else { value };
            write!(f, "{}{key}={value}", if n == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

/// RFC 3986: a letter, then letters, digits, `+`, `-` and `.`.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Whether the value of a parameter must not be shown. (`auth` and `password` in Redis, `secret_key` in SQS, …)
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["pass", "auth", "secret", "token", "key"].iter().any(|word| key.contains(word))
}

fn decode(text: &str, part: &'static str) -> Result<String, DsnError> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(DsnError::Escapes(part)),
    }
}

fn not_empty(text: String) -> Option<String> {
    if text.is_empty() { None } else { Some(text) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Dsn {
        Dsn::parse(text).unwrap()
    }

    #[test]
    fn every_kind_of_dsn_is_parsed() {
        let cases = [
            ("sync://", "sync", "", ""),
            ("in-memory://", "in-memory", "", ""),
            ("sqlite:var/queue.db?queue_name=x", "sqlite", "", "var/queue.db"),
            ("sqlite:///var/lib/queue.db", "sqlite", "", "/var/lib/queue.db"),
            ("sqlite:////var/lib/queue.db", "sqlite", "", "//var/lib/queue.db"),
            ("pdo-sqlite:///srv/my%20app/queue.db", "pdo-sqlite", "", "/srv/my app/queue.db"),
            ("doctrine://default?table_name=t", "doctrine", "default", ""),
            (
                "contao-auto-fallback://contao_prio_high?target=a&fallback=b",
                "contao-auto-fallback",
                "contao_prio_high",
                "",
            ),
            ("auto-fallback://Caf%C3%A9", "auto-fallback", "Café", ""),
            ("amqp://guest:guest@localhost:5672/%2f/messages", "amqp", "localhost", "///messages"),
            ("redis:///var/run/redis.sock", "redis", "", "/var/run/redis.sock"),
            ("redis://secret@/var/run/redis.sock", "redis", "", "/var/run/redis.sock"),
            ("REDIS://[::1]:6379/messages", "redis", "::1", "/messages"),
        ];
        for (text, scheme, host, path) in cases {
            let dsn = parse(text);
            assert_eq!((dsn.scheme(), dsn.host(), dsn.path()), (scheme, host, path), "{text}");
        }
    }

    #[test]
    fn logins_ports_and_hosts_are_read() {
        let dsn = parse("mysql://us%40er:p%3A%2f%25@db:3306/app");
        assert_eq!((dsn.user(), dsn.password(), dsn.port()), (Some("us@er"), Some("p:/%"), Some(3306)));
        let dsn = parse("mysql://user:p@ss@db/app");
        assert_eq!((dsn.password(), dsn.host()), (Some("p@ss"), "db"));
        let dsn = parse("redis://one:6379,two:6380,three/messages");
        let hosts: Vec<_> = dsn.hosts().iter().map(|host| (host.name.as_str(), host.port)).collect();
        assert_eq!(hosts, [("one", Some(6379)), ("two", Some(6380)), ("three", None)]);
        let same = parse("redis://one:6379,redis://two:6380/old,redis://u:p@three/messages");
        assert_eq!((same.hosts(), same.path()), (dsn.hosts(), "/messages"));
        let dsn = parse("redis://:p@one,redis://:p@two");
        assert_eq!((dsn.password(), dsn.hosts().len(), dsn.path()), (Some("p"), 2, ""));
    }

    #[test]
    fn parameters_keep_their_order_and_are_decoded() {
        let dsn = parse("sqlite:a.db?b=1&a=two+words&c=%26%3D&empty");
        let parameters: Vec<_> = dsn.parameters().collect();
        assert_eq!(parameters, [("b", "1"), ("a", "two words"), ("c", "&="), ("empty", "")]);
    }

    #[test]
    fn a_text_that_is_not_a_dsn_is_refused_and_not_repeated() {
        let cases = [
            ("", DsnError::NoScheme),
            ("async", DsnError::NoScheme),
            ("hunter2@host:5432", DsnError::NoScheme),
            ("amqp://u:hunter2#x@host/", DsnError::Fragment),
            ("amqp://u:hunter2/x@host/", DsnError::Port),
            ("amqp://host:99999/", DsnError::Port),
            ("amqp://[::1]hunter2/", DsnError::Port),
            ("amqp://u:hunter2%ff@host/", DsnError::Escapes("password")),
        ];
        for (text, error) in cases {
            let found = Dsn::parse(text).unwrap_err();
            assert!(!format!("{found} {found:?}").contains("hunter2"));
            assert_eq!(found, error, "{text}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("mysql://app:hunter2@db:3306/app?charset=utf8", "mysql://app:***@db:3306/app?charset=utf8"),
            ("redis://hunter2@[::1]:6379/messages", "redis://***@[::1]:6379/messages"),
            ("redis://:hunter2@h", "redis://:***@h"),
            ("redis://h?auth=hunter2&dbindex=1", "redis://h?auth=***&dbindex=1"),
            ("x:y?Password=hunter2&secret_key=hunter2", "x:y?Password=***&secret_key=***"),
            ("sqlite:var/q.db", "sqlite:var/q.db"),
            ("sqlite:///var/q.db", "sqlite:///var/q.db"),
            ("sync://", "sync://"),
        ];
        for (text, shown) in cases {
            assert_eq!(parse(text).to_string(), shown);
            assert_eq!(format!("{:?}", parse(text)), format!("Dsn({shown})"));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", dsn in "[a-z]{1,3}:/{0,3}[a-z@:/?&=%,\\[\\]#]*") {
            let _ = Dsn::parse(&text);
            let _ = Dsn::parse(&dsn).map(|dsn| dsn.to_string());
        }

        #[test]
        fn an_encoded_password_is_decoded_and_never_shown(password in "[^a-z*]{4,20}") {
            let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
            let dsn = parse(&format!("mysql://app:{encoded}@db/app"));
            prop_assert_eq!(dsn.password(), Some(password.as_str()));
            prop_assert_eq!(dsn.to_string(), "mysql://app:***@db/app");
        }
    }
}
