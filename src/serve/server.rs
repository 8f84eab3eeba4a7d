//! Sockets: accepts connections, reads requests, writes the answers of [`Service`]; each within a bound.
//!
//! | bound | what happens |
//! | --- | --- |
//! | `max_connections` at once | a further one gets 503, without a look at its request |
//! | `read_timeout` for a request's head, also between two requests of a connection | 408, or nothing where nothing came |
//! | `read_timeout` for its body | 408 |
//! | `max_body`, [`MAX_HEAD`] | 413, 431 |
//! | [`CONNECTION_LIFETIME`] | after the request at hand the connection is closed |
//!
//! Whoever shows no token is answered once, and the connection closed. TLS is left to a proxy.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::reply::Reply;
use super::service::{Endpoint, Head, Service};
use crate::message::TraceContext;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How many connections beyond `max_connections` are told that there are too many. Further ones are closed at once.
const MAX_REFUSALS: usize = 8;
/// A connection is closed after this long, between two requests.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);
/// How long a closed connection is read from: a client that still sends would otherwise lose the answer.
const LINGER: Duration = Duration::from_secs(1);
/// The pause after the system has refused a connection: it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long it has refused none until that is taken to be over.
const REFUSALS_OVER: Duration = Duration::from_secs(60);
/// How long requests may take that go on when the server is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that listens.
pub(crate) struct Server {
    listener: TcpListener,
    service: Arc<Service>,
}

/// What a connection needs.
#[derive(Clone)]
struct Context {
    service: Arc<Service>,
    /// Whether the server is about to end.
    stopping: watch::Receiver<bool>,
}

impl Server {
    /// Begins to listen.
    pub(crate) async fn bind(service: Service, address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, service: Arc::new(service) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until `stop`; then finishes those that are at work. `false` if some went on for too long.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) -> bool {
        let Self { listener, service } = self;
        let limit = service.config().max_connections;
        let (connections, refusals) = (Arc::new(Semaphore::new(limit)), Arc::new(Semaphore::new(MAX_REFUSALS)));
        let stopping = watch::Sender::new(false);
        let mut stop = pin!(stop);
        let mut refused_at: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, as a rule. Said once, until it has been over for a while.
                    if refused_at.replace(Instant::now()).is_none_or(|at| at.elapsed() > REFUSALS_OVER) {
                        tracing::warn!("connections cannot be accepted: {error}{}", crate::threads::advice(&error));
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Ok(permit) = Arc::clone(&connections).try_acquire_owned() {
                let context = Context { service: Arc::clone(&service), stopping: stopping.subscribe() };
                tokio::spawn(async move {
                    serve(stream, context).await;
                    drop(permit);
                });
            } else if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    let reply = Reply::error(503, "too many connections at once (serve.max_connections); try again");
                    close_with(stream, &reply.with("Retry-After", "1")).await;
                    drop(permit);
                });
            }
        }
        drop(listener);
        service.stop();
        stopping.send_replace(true);
        let end = Instant::now() + STOP_TIMEOUT;
        let all = u32::try_from(limit).unwrap_or(u32::MAX);
        // First the answers: a connection ends when its request is answered.
        let answered = timeout(STOP_TIMEOUT, connections.acquire_many(all)).await.is_ok();
        service.finish(end.saturating_duration_since(Instant::now())).await && answered
    }
}

/// Answers the requests of a connection, one after the other.
async fn serve(stream: TcpStream, context: Context) {
    let Context { service, mut stopping } = context;
    let read_timeout = service.config().read_timeout;
    let (limit, too_slow) = (service.config().request_timeout + 2 * read_timeout, service.too_slow());
    let answer = service_fn(move |request| -> BoxFuture<'static, _> {
        let service = Arc::clone(&service);
        Box::pin(async move { Ok::<_, Infallible>(answer(&service, request).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .max_buf_size(MAX_HEAD)
        // A client may close its side when it has sent its request.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), answer);
    let ended = {
        let mut running = pin!(poll_fn(|context| connection.poll_without_shutdown(context)));
        tokio::select! {
            ended = &mut running => Some(ended),
            _ = stopping.wait_for(|stopping| *stopping) => None,
            () = sleep(CONNECTION_LIFETIME) => None,
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            let running = poll_fn(|context| connection.poll_without_shutdown(context));
            match timeout(limit, running).await {
                Ok(ended) => ended,
                // Its client does not take the answer.
                Err(_) => return,
            }
        }
    };
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    match ended {
        Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => close_with(stream, &too_slow).await,
        Err(error) if error.is_timeout() => {}
        Err(error) => {
            tracing::debug!(%error, "a connection has failed");
            linger(stream).await;
        }
        Ok(()) => linger(stream).await,
    }
}

async fn answer(service: &Arc<Service>, request: hyper::Request<Incoming>) -> hyper::Response<Full<Bytes>> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let admitted = service.admit(Head {
        method: head.method.as_str(),
        path: head.uri.path(),
        authorization: head.headers.get(AUTHORIZATION).map(|value| value.as_bytes()),
        length: body.size_hint().exact(),
    });
    let (reply, closes) = match admitted {
        Err(reply) => (reply, true),
        // Everybody may ask, and nobody keeps a connection by that.
        Ok(Endpoint::Health) => (service.respond(Endpoint::Health, Bytes::new(), None).await, true),
        Ok(endpoint) => match read(service, body).await {
            Ok(body) => (service.respond(endpoint, body, trace_of(&head.headers)).await, false),
            Err(reply) => (reply, true),
        },
    };
    // The path may hold what is secret where somebody has put a token there. So it is told only of known ones.
    let path = Some(head.uri.path()).filter(|_| reply.status != 401 && reply.status != 404).unwrap_or_default();
    tracing::debug!(method = %head.method, path, status = reply.status, took = ?begun.elapsed(), "a request");
    response(&reply, closes)
}

/// The trace that a request belongs to.
fn trace_of(headers: &HeaderMap) -> Option<TraceContext> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let context: TraceContext = text("traceparent")?.parse().ok()?;
    Some(context.with_state(text("tracestate")))
}

async fn read(service: &Service, body: Incoming) -> Result<Bytes, Reply> {
    let config = service.config();
    match timeout(config.read_timeout, Limited::new(body, config.max_body).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(service.too_large()),
        Ok(Err(_)) => Err(Reply::error(400, "the request ends in the middle of its body")),
        Err(_) => Err(service.too_slow()),
    }
}

fn response(reply: &Reply, closes: bool) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::builder().status(reply.status).header(CONTENT_TYPE, "application/json");
    for (name, value) in &reply.headers {
        response = response.header(*name, *value);
    }
    if closes {
        response = response.header(CONNECTION, "close");
    }
    // Status and headers are this program's own.
    response.body(Full::from(reply.text())).unwrap_or_default()
}

/// Answers without a look at the request, and closes the connection.
async fn close_with(mut stream: TcpStream, reply: &Reply) {
    let text = reply.text();
    let mut response = format!("HTTP/1.1 {} {}\r\nContent-Type: application/json\r\n", reply.status, reply.reason());
    for (name, value) in &reply.headers {
        response.push_str(&format!("{name}: {value}\r\n"));
    }
    response.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len()));
    if let Ok(Ok(())) = timeout(LINGER, stream.write_all(response.as_bytes())).await {
        linger(stream).await;
    }
}

/// Closes a connection so that the client gets the answer: what it still sends is read for a moment. To close while there is
/// something unread resets the connection.
async fn linger(mut stream: TcpStream) {
    let end = Instant::now() + LINGER;
    let _ = stream.shutdown().await;
    let mut rest = [0; 4096];
    loop {
        tokio::select! {
            read = stream.read(&mut rest) => if !matches!(read, Ok(1..)) { return },
            () = sleep_until(end) => return,
        }
    }
}
