//! The heartbeat of one worker, from a task of its own: a handler that runs for ten minutes does not look dead.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Heartbeats;

/// Pings for a worker until it is stopped.
pub struct Pulse {
    heartbeats: Heartbeats,
    transports: Vec<String>,
    owner: String,
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Pulse {
    /// Pings every transport now, and again often enough that a ping of `ttl` never runs out, even when some fail.
    pub async fn start(heartbeats: Heartbeats, transports: Vec<String>, owner: String, ttl: Duration) -> Self {
        ping(&heartbeats, &transports, &owner, ttl).await;
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn({
            let (heartbeats, transports, owner) = (heartbeats.clone(), transports.clone(), owner.clone());
            async move {
                while tokio::time::timeout(ttl / 4, &mut ended).await.is_err() {
                    ping(&heartbeats, &transports, &owner, ttl).await;
                }
            }
        });
        Self { heartbeats, transports, owner, task, end }
    }

    /// Takes the heartbeat back, so that producers fall back at once. A worker that dies instead is believed alive for
    /// the rest of its `ttl`.
    pub async fn stop(self) {
        // A ping under way is waited for, and not cut off: it could still be written after the withdrawal.
        let _ = self.end.send(());
        let _ = self.task.await;
        for transport in &self.transports {
            if let Err(error) = self.heartbeats.withdraw(transport, &self.owner).await {
                tracing::warn!(transport, %error, "the heartbeat could not be withdrawn; it expires by itself");
            }
        }
    }
}

async fn ping(heartbeats: &Heartbeats, transports: &[String], owner: &str, ttl: Duration) {
    for transport in transports {
        if let Err(error) = heartbeats.beat(transport, owner, ttl).await {
            tracing::warn!(transport, %error, "no heartbeat; producers may handle messages themselves");
        }
    }
}
