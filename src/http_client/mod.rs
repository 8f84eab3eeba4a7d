//! Requests URLs: over TLS, through the proxy that the environment names, and where a server redirects them to.
//!
//! A request is as the configuration describes it ([`HttpRequest`]). There is no time limit here; whoever sends one sets it.

mod connector;
mod error;

use std::future::poll_fn;
use std::pin::Pin;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use url::{Origin, Url};

use self::connector::Connector;
pub(crate) use self::error::HttpError;
use crate::config::{HttpRequest, HttpUrl};
use crate::threads;

/// How many redirects are followed.
const REDIRECTS: usize = 10;

const NAME: &str = concat!("minutely/", env!("CARGO_PKG_VERSION"));

/// Sends requests, and keeps connections for further ones. Clones share them.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
}

/// What a server has answered.
pub(crate) struct Response {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// Who has answered: after redirects another URL than the request's.
    pub(crate) url: HttpUrl,
    body: Incoming,
}

/// What is sent to a URL, the request's own or one that it was redirected to.
struct Hop {
    url: Url,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    /// It is not followed to where it would go without its body.
    is_whole: bool,
}

impl HttpClient {
    /// Reads the system's certificates, and the proxies in the environment. Opens no connection.
    pub(crate) fn new() -> Self {
        let connector = Connector::new();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new());
        Self { client: builder.build(connector.clone()), connector }
    }

    /// Sends a request, and again to where it is redirected. Returns when the last answer begins, whatever its status is.
    pub(crate) async fn send(&self, request: &HttpRequest) -> Result<Response, HttpError> {
        self.follow(Hop::first(request)?).await
    }

    /// The same, for a request whose body is what matters: fails where it is redirected as a GET, which has none.
    pub(crate) async fn send_whole(&self, request: &HttpRequest) -> Result<Response, HttpError> {
        self.follow(Hop { is_whole: true, ..Hop::first(request)? }).await
    }

    async fn follow(&self, mut hop: Hop) -> Result<Response, HttpError> {
        for _ in 0..=REDIRECTS {
            let response = self.send_once(&hop).await?;
            let (parts, body) = response.into_parts();
            let location = parts.headers.get(LOCATION).filter(|_| is_redirect(parts.status));
            let Some(location) = location else {
                let (status, headers) = (parts.status, parts.headers);
                return Ok(Response { status, headers, url: HttpUrl(hop.url), body });
            };
            hop = hop.redirected(parts.status, location)?;
        }
        Err(HttpError::TooManyRedirects(REDIRECTS))
    }

    async fn send_once(&self, hop: &Hop) -> Result<hyper::Response<Incoming>, HttpError> {
        let uri: Uri = hop.uri()?;
        if hop.url.scheme() == "https" {
            self.connector.check_authorities()?;
        }
        let lookup = self.connector.looks_up(&uri);
        threads::wait_for_lookup_thread(&lookup).await.map_err(HttpError::Lookup)?;
        let mut request = Request::new(Full::new(hop.body.clone()));
        *request.uri_mut() = uri;
        *request.method_mut() = hop.method.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(NAME));
        if let Some(login) = basic_authorization(&hop.url)? {
            headers.insert(AUTHORIZATION, login);
        }
        if let Some(login) = self.connector.login_at_proxy(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, login);
        }
        for (name, value) in &hop.headers {
            request.headers_mut().insert(name, value.clone());
        }
        self.client.request(request).await.map_err(|error| HttpError::from_client(&error))
    }
}

impl Response {
    /// The next part of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match frame.transpose().map_err(|error| HttpError::from_body(&error))? {
                None => return Ok(None),
                // Trailers say nothing here.
                Some(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Hop {
    fn first(request: &HttpRequest) -> Result<Self, HttpError> {
        let invalid = |what: &str| HttpError::Unsendable(what.to_owned());
        let headers = request.headers.iter().map(|(name, value)| {
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("the name of a header"))?;
            let mut value =
                HeaderValue::from_bytes(value.0.as_bytes()).map_err(|_| invalid("the value of a header"))?;
            value.set_sensitive(true);
            Ok((header, value))
        });
        let body = request.body.as_ref().map(|body| Bytes::copy_from_slice(body.0.as_bytes()));
        Ok(Self {
            url: request.url.0.clone(),
            method: Method::from_bytes(request.method.as_bytes()).map_err(|_| invalid("the method"))?,
            headers: headers.collect::<Result<_, _>>()?,
            body: body.unwrap_or_default(),
            is_whole: false,
        })
    }

    fn uri(&self) -> Result<Uri, HttpError> {
        let mut url = self.url.clone();
        // Neither is sent as a part of the address.
        url.set_fragment(None);
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        url.as_str().parse().map_err(|_| HttpError::Unsendable("the URL".to_owned()))
    }

    /// What is sent next, by the rules of fetch: <https://fetch.spec.whatwg.org/#http-redirect-fetch>. What may be secret goes
    /// to no other host, and nothing goes from TLS to plain text.
    fn redirected(self, status: StatusCode, location: &HeaderValue) -> Result<Self, HttpError> {
        let location = str::from_utf8(location.as_bytes()).ok();
        let mut url = location
            .and_then(|location| self.url.join(location).ok())
            .ok_or(HttpError::Redirect("to what is no URL".to_owned()))?;
        let shown = HttpUrl(url.clone());
        match (self.url.scheme(), url.scheme()) {
            (_, "https") | ("http", "http") => {}
            ("https", "http") => return Err(HttpError::Redirect(format!("from https to {shown}"))),
            _ => return Err(HttpError::Redirect("to what is neither https: nor http:".to_owned())),
        }
        let becomes_get = match status {
            StatusCode::SEE_OTHER => self.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        };
        let stays = is_same_host(&self.url, &url);
        // Also where it would go there as a GET: without its body, it is not what was asked for.
        if !stays && !self.body.is_empty() {
            return Err(HttpError::Redirect(format!("with what it sends, to another host: {shown}")));
        }
        if self.is_whole && becomes_get {
            let status = status.as_u16();
            let why = format!("by {status} to {shown}, where a GET would go without what it sends; write that URL");
            return Err(HttpError::Redirect(why));
        }
        let (method, body) = if becomes_get { (Method::GET, Bytes::new()) } else { (self.method, self.body) };
        if stays && url.username().is_empty() && url.password().is_none() {
            let _ = url.set_username(self.url.username()).and_then(|()| url.set_password(self.url.password()));
        }
        let headers = self.headers.into_iter().filter(|(name, _)| stays && !(becomes_get && is_of_body(name)));
        Ok(Self { url, method, headers: headers.collect(), body, is_whole: self.is_whole })
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn is_of_body(name: &HeaderName) -> bool {
    name.as_str().starts_with("content-")
}

/// Is it the same server, or the same host by TLS instead of plain text?
fn is_same_host(from: &Url, to: &Url) -> bool {
    let by_tls = |url: &Url| {
        let Origin::Tuple(scheme, host, port) = url.origin() else { return url.origin() };
        if scheme == "http" && port == 80 { Origin::Tuple("https".to_owned(), host, 443) } else { url.origin() }
    };
    from.origin() == to.origin() || by_tls(from) == to.origin()
}

/// The user name and password of a URL.
fn basic_authorization(url: &Url) -> Result<Option<HeaderValue>, HttpError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let login = [decoded(url.username()), b":".to_vec(), decoded(url.password().unwrap_or_default())].concat();
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(login)))
        .map_err(|_| HttpError::Unsendable("the login in the URL".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
