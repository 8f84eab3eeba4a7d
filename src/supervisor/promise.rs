//! The supervisor's own heartbeat: "I am going to look at these transports again".
//!
//! While a supervisor is at work it promises this for every definition: a worker that ends now is replaced at the next
//! tick, and a definition at zero workers gets one when something comes. The promise reaches from one cron to the next.
//!
//! A promise that outlives its supervisor is a risk: when the crontab line has been removed, nobody keeps it, and messages
//! are queued that nobody takes. So at its end a supervisor keeps the promise only where nobody else can speak:
//!
//! - Workers that are programs of their own cannot ping. As long as one lives, the promise stands.
//! - A definition that rests at zero (`min: 0`) would never be woken again without it.
//! - Everybody else's workers ping for themselves, and take it back when they stop. The promise ends here, so that after
//!   the last one's stop producers fall back at once.

use std::path::Path;

use crate::config::WorkerDefinition;
use crate::heartbeat::{Heartbeats, PROMISE_TTL};

pub(super) struct Promises {
    heartbeats: Heartbeats,
    owner: String,
}

impl Promises {
    pub(super) fn new(heartbeats: Heartbeats, state_dir: &Path) -> Self {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // The same for the next supervisor of this state directory, and another one on every other host.
        Self { heartbeats, owner: format!("supervisor-{host}-{}", state_dir.display()) }
    }

    /// For a supervisor that is at work.
    pub(super) async fn make(&self, transports: &[String]) {
        for transport in transports {
            if let Err(error) = self.heartbeats.beat(transport, &self.owner, PROMISE_TTL).await {
                tracing::warn!(transport, %error, "no promise; producers may handle messages themselves");
            }
        }
    }

    /// For a supervisor that ends and is followed by another one. `live` is how many workers the definition has.
    pub(super) async fn hand_over(&self, transports: &[String], definition: &WorkerDefinition, live: usize) {
        if speaks_for(definition, live) { self.make(transports).await } else { self.take_back(transports).await }
    }

    /// For a supervisor that ends and is not followed.
    pub(super) async fn take_back(&self, transports: &[String]) {
        for transport in transports {
            if let Err(error) = self.heartbeats.withdraw(transport, &self.owner).await {
                tracing::warn!(transport, %error, "a promise could not be taken back; it expires by itself");
            }
        }
    }
}

/// Is there nobody else who could say that the definition's transports are looked after?
fn speaks_for(definition: &WorkerDefinition, live: usize) -> bool {
    match (live, &definition.command) {
        (0, _) => definition.autoscale.min == 0,
        (_, Some(_)) => true,
        (_, None) => false,
    }
}
