//! Connects to servers: through the proxy that the environment names, and with TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::HttpError;
use crate::connection::trust::{self, NoAuthorities};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Connects to servers.
#[derive(Clone)]
pub(super) struct Connector {
    tls: HttpsConnector<Tcp>,
    proxies: Arc<Matcher>,
    /// Why no server can be verified, if none can.
    unverifiable: Option<NoAuthorities>,
}

/// Connects without TLS.
#[derive(Clone)]
struct Tcp {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

/// A connection without TLS.
pub(super) struct TcpConnection {
    io: TokioIo<TcpStream>,
    /// Is the other side a proxy, which is told the whole URL?
    is_proxy: bool,
}

impl Connector {
    pub(super) fn new() -> Self {
        let proxies = Arc::new(Matcher::from_env());
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let (authorities, unverifiable) = trust::system_authorities();
        let config = trust::trusting(authorities).with_no_client_auth();
        let tls = HttpsConnector::from((Tcp { http, proxies: Arc::clone(&proxies) }, config));
        Self { tls, proxies, unverifiable }
    }

    /// An error where no server can be verified.
    pub(super) fn check_authorities(&self) -> Result<(), HttpError> {
        self.unverifiable.clone().map_or(Ok(()), |why| Err(HttpError::NoAuthorities(why)))
    }

    /// The host whose name is looked up to connect there.
    pub(super) fn looks_up(&self, uri: &Uri) -> String {
        let proxy = self.proxies.intercept(uri);
        proxy.as_ref().map_or(uri, |proxy| proxy.uri()).host().unwrap_or_default().to_owned()
    }

    /// What is sent to a proxy that passes on this request. One for TLS gets it when the connection is made.
    pub(super) fn login_at_proxy(&self, uri: &Uri) -> Option<HeaderValue> {
        let proxy = self.proxies.intercept(uri).filter(|_| uri.scheme_str() == Some("http"))?;
        proxy.basic_auth().cloned()
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TcpConnection>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tls.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.tls.call(uri)
    }
}

impl Service<Uri> for Tcp {
    type Response = TcpConnection;
    type Error = BoxError;
    type Future = Connecting<TcpConnection>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&uri) else {
            let connecting = self.http.call(uri);
            return Box::pin(async move { Ok(TcpConnection { io: connecting.await?, is_proxy: false }) });
        };
        let address = proxy.uri().clone();
        if address.scheme_str() != Some("http") {
            let why = "the proxy in the environment is none that is supported; only http:// is";
            return Box::pin(async move { Err(io::Error::other(why).into()) });
        }
        if uri.scheme_str() == Some("https") {
            let mut tunnel = Tunnel::new(address, self.http.clone());
            if let Some(login) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(login.clone());
            }
            let connecting = tunnel.call(uri);
            return Box::pin(async move { Ok(TcpConnection { io: connecting.await?, is_proxy: false }) });
        }
        let connecting = self.http.call(address);
        Box::pin(async move { Ok(TcpConnection { io: connecting.await?, is_proxy: true }) })
    }
}

impl Connection for TcpConnection {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_proxy)
    }
}

impl Read for TcpConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for TcpConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
