//! A way to a server that can be cut.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

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
        let (cut, cuts) = watch::channel(0);
        let (end, ended) = tokio::sync::oneshot::channel();
        let (told, port_of) = mpsc::channel();
        let server = server.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
                told.send(listener.local_addr().unwrap().port()).unwrap();
                tokio::select! {
                    () = serve(listener, server, cuts) => {}
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

async fn serve(listener: TcpListener, server: String, cuts: watch::Receiver<u32>) {
    let mut tunnels = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, mut cuts) = (server.clone(), cuts.clone());
        cuts.mark_unchanged();
        tunnels.spawn(async move {
            let Ok(mut server) = TcpStream::connect(server).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}
