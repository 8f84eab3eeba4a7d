//! Connects to a broker, with TLS where its address says so.
//!
//! The driver could do TLS as well. It would bring readers of certificate formats that nothing here needs, which are a tenth of what
//! is compiled.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::{AsyncRead as FuturesRead, AsyncWrite as FuturesWrite, Stream};
use lapin::AsyncTcpStream;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::connection::tls::Tls;
use crate::threads;

/// What the driver runs on.
pub(super) type AmqpRuntime = Runtime<RuntimeParts<Tokio, Network>>;

/// A connection with or without TLS, as the driver wants it.
type Connected = Compat<Box<dyn Connection>>;

pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The current runtime.
pub(super) fn runtime() -> AmqpRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), Network(Tokio::current())))
}

/// Opens a connection.
pub(super) async fn connect(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<AsyncTcpStream<Connected>> {
    // Only in a DSN has an address brackets.
    let host = host.trim_matches(['[', ']']);
    threads::wait_for_lookup_thread(host).await?;
    let plain = TcpStream::connect((host, port)).await?;
    plain.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(connected(plain)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let config = tls.client_config().map_err(io::Error::other)?;
    Ok(connected(TlsConnector::from(Arc::new(config)).connect(name, plain).await?))
}

fn connected(connection: impl Connection + 'static) -> AsyncTcpStream<Connected> {
    AsyncTcpStream::Plain((Box::new(connection) as Box<dyn Connection>).compat())
}

/// Tokio's, but for the type of its connections.
#[derive(Clone, Debug)]
pub(super) struct Network(Tokio);

impl Reactor for Network {
    type TcpStream = Connected;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl FuturesRead + FuturesWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = TcpStream::connect(address);
        async move { Ok((Box::new(connecting.await?) as Box<dyn Connection>).compat()) }
    }
}
