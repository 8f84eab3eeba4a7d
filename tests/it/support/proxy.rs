//! A way to a server that can be cut, or is slow.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// Hands connections on to a server, from a thread of its own, until it goes: then they end, and no new one is made.
pub struct Proxy {
    port: u16,
    cut: watch::Sender<u32>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// At this port; 0 is any that is free.
    pub fn start(server: &str, port: u16) -> Self {
        Self::start_with(server, port, Duration::ZERO, None)
    }

    /// Speaks TLS with its clients.
    pub fn start_encrypted(server: &str, config: ServerConfig) -> Self {
        Self::start_with(server, 0, Duration::ZERO, Some(TlsAcceptor::from(Arc::new(config))))
    }

    /// What is sent to the server arrives there after `delay`, and never if the client has gone by then.
    pub fn start_slow(server: &str, delay: Duration) -> Self {
        Self::start_with(server, 0, delay, None)
    }

    fn start_with(server: &str, port: u16, delay: Duration, tls: Option<TlsAcceptor>) -> Self {
        let (cut, cuts) = watch::channel(0);
        let (end, ended) = tokio::sync::oneshot::channel();
        let (port_sender, port_of) = mpsc::channel();
        let server = server.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
                port_sender.send(listener.local_addr().unwrap().port()).unwrap();
                tokio::select! {
                    () = serve(listener, server, delay, tls, cuts) => {}
                    _ = ended => {}
                }
            });
        });
        Self { port: port_of.recv().unwrap(), cut, end: Some(end), thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections. New ones are made as before.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.end.take().map(|end| end.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(
    listener: TcpListener,
    server: String,
    delay: Duration,
    tls: Option<TlsAcceptor>,
    cuts: watch::Receiver<u32>,
) {
    let mut tunnels = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, mut cuts, tls) = (server.clone(), cuts.clone(), tls.clone());
        cuts.mark_unchanged();
        tunnels.spawn(async move {
            let Ok(mut server) = TcpStream::connect(server).await else { return };
            let hand_on = async {
                if let Some(tls) = tls {
                    let Ok(mut client) = tls.accept(client).await else { return };
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                } else if delay.is_zero() {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                } else {
                    hand_on_late(client, server, delay).await;
                }
            };
            tokio::select! {
                () = hand_on => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

/// Ends with the client, and drops what has not arrived by then.
async fn hand_on_late(client: TcpStream, server: TcpStream, delay: Duration) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (sent, mut under_way) = unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let _ = sent.send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    };
    let write = async {
        while let Some((at, bytes)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            if to_server.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}
