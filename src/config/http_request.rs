//! Reads an HTTP request: a URL, or a mapping with the URL and what is sent to it.

use std::fmt;

use indexmap::IndexMap;
use url::Url;

use super::Secret;
use super::definition::{Definition, Kind, Setting};
use super::section::{Node, Reader, join};

/// What may be written for a request.
pub(super) const REQUEST: Kind = Kind::Either(&[Kind::Text("URL"), Kind::Section(KEYS)]);

const KEYS: &[Definition] = &[URL, METHOD.definition, HEADERS, BODY];

/// What may be written for a request that sends a message.
pub(super) const CALL: Kind = Kind::Either(&[Kind::Text("URL"), Kind::Section(CALL_KEYS)]);

const CALL_KEYS: &[Definition] = &[URL, CALL_METHOD.definition, HEADERS];
const CALL_METHOD: Setting<String> = Setting::choice("method", &["POST", "PUT", "PATCH"], "POST", "the method");
const URL: Definition = Definition::new(
    "url",
    Kind::Text("URL"),
    "the address; a user name and password in it are sent as `Authorization: Basic`, to this host alone",
)
.required()
.example("https://example.com/cron");
const METHOD: Setting<String> =
    Setting::choice("method", &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], "GET", "the method");
const HEADERS: Definition =
    Definition::new("headers", Kind::Map(&Kind::Text("text")), "further headers, which are sent to this host alone");
const BODY: Definition =
    Definition::new("body", Kind::Text("text"), "what is sent, with `POST`, `PUT`, `PATCH` or `DELETE`");

const FORM: &str = "a URL such as https://example.com/cron, or a mapping with `url`";

/// Headers that follow from the rest of the request, or are about the connection.
const OWN_HEADERS: [&str; 8] =
    ["connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// A request.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "nothing sends it"))]
pub(crate) struct HttpRequest {
    /// Where it is sent.
    pub(crate) url: HttpUrl,
    /// `GET`, for example.
    pub(crate) method: String,
    /// Further headers. Names and values can be sent.
    pub(crate) headers: IndexMap<String, Secret>,
    /// What is sent.
    pub(crate) body: Option<Secret>,
}

/// The URL of an HTTP request. `Debug` and `Display` show neither user name and password nor the query, which often has a token
/// in it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HttpUrl(pub(crate) Url);

impl HttpUrl {
    /// Parses a URL. The error does not repeat it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text.trim()).map_err(|error| format!("is no URL: {error}; write {FORM}"))?;
        Self::new(url)
    }

    /// A URL that can be requested.
    pub(crate) fn new(url: Url) -> Result<Self, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must be a URL that begins with https:// or http://".to_owned());
        }
        Ok(Self(url))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())?;
        if url.query().is_some() { f.write_str("?***") } else { Ok(()) }
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn read_request(node: Node, reader: &mut Reader) -> Option<HttpRequest> {
    read(node, KEYS, &METHOD, reader)
}

/// A request whose body is a message.
pub(super) fn read_call(node: Node, reader: &mut Reader) -> Option<HttpRequest> {
    read(node, CALL_KEYS, &CALL_METHOD, reader)
}

fn read(node: Node, keys: &'static [Definition], method: &Setting<String>, reader: &mut Reader) -> Option<HttpRequest> {
    if !cfg!(feature = "http") {
        reader.error(&node.path, "HTTP is not in this build: build minutely with its cargo feature `http`");
        return None;
    }
    if !node.is_mapping() {
        let (url, method) = (read_url(&node, FORM, reader)?, method.default_value());
        return Some(HttpRequest { url, method, headers: IndexMap::new(), body: None });
    }
    let mut section = node.section(keys, FORM, reader)?;
    let url = section.require(&URL, reader).and_then(|node| read_url(&node, "a URL", reader));
    let method = section.get(method, reader);
    let headers = section.take("headers").map(|node| read_headers(node, reader)).unwrap_or_default();
    let body = match section.take("body") {
        None => None,
        Some(node) => {
            if matches!(method.as_str(), "GET" | "HEAD") {
                reader.error(&node.path, format!("is not sent with {method}; set `method: POST`, or leave it out"));
            }
            Some(Secret(node.text("text", reader)?))
        }
    };
    Some(HttpRequest { url: url?, method, headers, body })
}

fn read_url(node: &Node, expected: &str, reader: &mut Reader) -> Option<HttpUrl> {
    let text = node.filled_text(expected, reader)?;
    HttpUrl::parse(&text).map_err(|why| reader.error(&node.path, why)).ok()
}

/// Headers that can be sent. Values are not repeated in messages.
fn read_headers(node: Node, reader: &mut Reader) -> IndexMap<String, Secret> {
    let path = node.path.clone();
    let mut headers: IndexMap<String, Secret> = IndexMap::new();
    for (name, node) in node.entries("a mapping of names to texts", reader).unwrap_or_default() {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            reader.error(&node.path, "must be the name of a header, such as Authorization");
        } else if OWN_HEADERS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            reader.error(&node.path, "is set by the request itself");
        } else if headers.keys().any(|other| other.eq_ignore_ascii_case(&name)) {
            reader.error(&join(&path, &name), "is there already");
        }
        let Some(value) = node.text("text", reader) else { continue };
        if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            reader.error(&node.path, "must be one line, without control characters");
        }
        headers.insert(name, Secret(value));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let shown = |text: &str| HttpUrl::parse(text).map(|url| (format!("{url:?}"), url.to_string()));
        let (debug, display) = shown("https://ada:s3cret@example.com:8443/cron/run?token=s3cret#part").unwrap();
        assert_eq!((debug, display.as_str()), (display.clone(), "https://example.com:8443/cron/run?***"));
        assert_eq!(shown("http://[::1]:8080").unwrap().1, "http://[::1]:8080/");
        for wrong in [
            "",
            "example.com/s3cret",
            "ftp://ada:s3cret@example.com",
            "http://",
            "https://a b/s3cret",
            "http://a:99999999/",
        ] {
            let error = shown(wrong).unwrap_err();
            assert!(error.contains("URL") && !error.contains("s3cret"), "{wrong}: {error}");
        }
    }
}
