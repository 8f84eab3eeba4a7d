//! Reads `serve`: where requests are answered, and within which bounds.

use std::net::SocketAddr;
use std::time::Duration;

use super::Secret;
use super::definition::{Definition, Kind, Setting};
use super::section::{Node, Reader, join};

/// The key `serve`.
pub(super) const SERVE: Definition =
    Definition::new("serve", Kind::Section(SERVE_KEYS), "requests by HTTP: see [HTTP](http.md)").or("as below");

const SERVE_KEYS: &[Definition] = &[
    LISTEN.definition,
    TOKEN,
    MAX_BODY.definition,
    MAX_CONNECTIONS.definition,
    READ_TIMEOUT.definition,
    REQUEST_TIMEOUT.definition,
    CONSUME_TIME.definition,
];

const LISTEN: Setting<String> =
    Setting::text("listen", "127.0.0.1:8060", "the address and port on which the command `serve` listens");
const TOKEN: Definition = Definition::new(
    "token",
    Kind::Text("text"),
    "what requests must have in the header `Authorization: Bearer TOKEN`; 16 characters or more",
)
.example("%env(MINUTELY_TOKEN)%");
const MAX_BODY: Setting<u64> =
    Setting::whole("max_body", 1, 1 << 30, "1048576", "the longest body of a request, in bytes");
const MAX_CONNECTIONS: Setting<u64> =
    Setting::whole("max_connections", 1, 10_000, "32", "the most connections that the command `serve` has at once");
const READ_TIMEOUT: Setting<Duration> = Setting::duration(
    "read_timeout",
    "10s",
    "how long a client may take for the head of a request, and again for its body; idle connections are closed after it",
);
const REQUEST_TIMEOUT: Setting<Duration> = Setting::duration(
    "request_timeout",
    "60s",
    "how long a request is worked on before the client is told to look later",
);
const CONSUME_TIME: Setting<Duration> =
    Setting::duration("consume_time", "2s", "how long a request to consume begins to handle messages");

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// How requests are answered.
#[derive(Debug, Clone)]
pub(crate) struct ServeConfig {
    /// Where `serve` listens.
    #[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "only `serve` listens"))]
    pub(crate) listen: SocketAddr,
    /// What requests must show.
    pub(crate) token: Option<Secret>,
    /// The longest body, in bytes.
    pub(crate) max_body: usize,
    /// How many connections there are at once.
    #[cfg_attr(not(feature = "serve"), allow(dead_code, reason = "only `serve` has connections"))]
    pub(crate) max_connections: usize,
    /// How long a client may take to send a request's head, or its body.
    pub(crate) read_timeout: Duration,
    /// How long the answer may take.
    pub(crate) request_timeout: Duration,
    /// How long a request begins to handle messages.
    pub(crate) consume_time: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: default_listen(),
            token: None,
            max_body: size(MAX_BODY.default_value()),
            max_connections: size(MAX_CONNECTIONS.default_value()),
            read_timeout: READ_TIMEOUT.default_value(),
            request_timeout: REQUEST_TIMEOUT.default_value(),
            consume_time: CONSUME_TIME.default_value(),
        }
    }
}

pub(super) fn read_serve(node: Node, reader: &mut Reader) -> ServeConfig {
    let expected = "a mapping such as {listen: 127.0.0.1:8060, token: '%env(MINUTELY_TOKEN)%'}";
    let Some(mut section) = node.section(SERVE_KEYS, expected, reader) else { return ServeConfig::default() };
    let path = section.path.clone();
    let listen = section.take("listen").and_then(|node| {
        let text = node.text("an IP address and a port", reader)?;
        let address = text.parse().ok();
        if address.is_none() {
            reader.error(&node.path, "must be an IP address and a port, such as 127.0.0.1:8060 or [::1]:8060");
        }
        address
    });
    let token = section.take("token").and_then(|node| {
        let token = node.text("text", reader)?;
        match wrong_with_token(&token) {
            None => Some(Secret(token)),
            // The token itself is not shown.
            Some(wrong) => {
                reader.error(&node.path, wrong);
                None
            }
        }
    });
    let mut positive = |setting: &Setting<Duration>| {
        let duration = section.get(setting, reader);
        if duration.is_zero() {
            reader.error(&join(&path, setting.definition.name), "must be more than 0");
        }
        duration
    };
    let read_timeout = positive(&READ_TIMEOUT);
    let request_timeout = positive(&REQUEST_TIMEOUT);
    let consume_time = positive(&CONSUME_TIME);
    ServeConfig {
        listen: listen.unwrap_or_else(default_listen),
        token,
        max_body: size(section.get(&MAX_BODY, reader)),
        max_connections: size(section.get(&MAX_CONNECTIONS, reader)),
        read_timeout,
        request_timeout,
        consume_time,
    }
}

/// What keeps a text from being a token.
fn wrong_with_token(token: &str) -> Option<&'static str> {
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("must be letters, digits and punctuation of ASCII, without spaces: it stands in a header")
    } else if token.len() < SHORTEST_TOKEN {
        Some("is shorter than 16 characters, and could be guessed; `openssl rand -hex 32` makes a good one")
    } else {
        None
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8060))
}

/// The bounds of the settings are far below what does not fit.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::read_text;
    use super::*;

    fn read(text: &str) -> (ServeConfig, Vec<String>) {
        let (config, problems) = read_text(text, Path::new("/app/config.yaml")).unwrap();
        (config.serve, problems.list.iter().map(|problem| format!("{} {}", problem.path, problem.message)).collect())
    }

    #[test]
    fn without_a_section_it_listens_on_loopback_and_has_no_token() {
        let (serve, problems) = read("transports: {}");
        assert_eq!(problems, Vec::<String>::new());
        assert!(serve.listen.ip().is_loopback() && serve.token.is_none());
        assert_eq!(LISTEN.default_value(), serve.listen.to_string());
        assert_eq!((serve.max_body, serve.max_connections), (1 << 20, 32));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_token() {
        for (text, told) in [
            ("token: short-secret", "serve.token is shorter than 16"),
            ("token: 'a secret with spaces in it'", "serve.token must be letters"),
            ("token: \"a-long-secret-with-a-\\nline\"", "serve.token must be letters"),
            ("listen: localhost", "serve.listen must be an IP address and a port"),
            ("listen: 127.0.0.1", "serve.listen must be an IP address and a port"),
            ("max_body: 0", "serve.max_body must be a whole number"),
            ("read_timeout: 0", "serve.read_timeout must be more than 0"),
            ("tokn: x", "serve unknown key"),
        ] {
            let (_, problems) = read(&format!("serve: {{{text}}}"));
            assert!(problems.len() == 1 && problems[0].starts_with(told), "{text}: {problems:?}");
            assert!(!problems[0].contains("secret"), "{problems:?}");
        }
    }
}
