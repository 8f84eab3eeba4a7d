//! Names the server of a connection in errors and in `config check`.

use std::fmt;
use std::sync::Arc;

/// A server and the part of it that is used: a database or a virtual host. Without user and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    text: Arc<str>,
    /// How many bytes of the text are the server.
    server: usize,
}

impl Location {
    /// A server in the network: `host:port/part`, `[::1]:port/part`.
    pub(crate) fn on_host(host: &str, port: u16, part: impl fmt::Display) -> Self {
        let server = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self::of(&server, part)
    }

    /// A server behind a Unix socket: `/run/server.sock/part`.
    #[cfg(any(feature = "postgres", feature = "mysql", feature = "redis"))]
    pub(crate) fn on_socket(path: impl fmt::Display, part: impl fmt::Display) -> Self {
        Self::of(&path.to_string(), part)
    }

    /// Several servers that stand for one: `main@one:26379,two:26379/part`.
    #[cfg(feature = "redis")]
    pub(crate) fn on_several(servers: &str, part: impl fmt::Display) -> Self {
        Self::of(servers, part)
    }

    fn of(server: &str, part: impl fmt::Display) -> Self {
        Self { text: format!("{server}/{part}").into(), server: server.len() }
    }

    /// Server and part. Equal for all connections to the same.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The server alone: `host:port`, or its socket.
    pub(crate) fn server(&self) -> &str {
        &self.text[..self.server]
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_the_server_and_the_part_that_is_used() {
        for (location, text, server) in [
            (Location::on_host("db", 5432, "app"), "db:5432/app", "db:5432"),
            (Location::on_host("db", 5432, ""), "db:5432/", "db:5432"),
            (Location::on_host("::1", 5672, "a/b"), "[::1]:5672/a/b", "[::1]:5672"),
            #[cfg(any(feature = "postgres", feature = "mysql", feature = "redis"))]
            (Location::on_socket("/run/redis.sock", 3), "/run/redis.sock/3", "/run/redis.sock"),
        ] {
            assert_eq!((location.as_str(), location.server()), (text, server));
        }
    }
}
