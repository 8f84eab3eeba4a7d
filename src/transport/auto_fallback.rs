//! `auto-fallback://NAME?target=T&fallback=F`: sends to a queue while somebody consumes it, and handles messages now (or
//! queues them elsewhere) when nobody does. Contao's `contao-auto-fallback` transport.
//!
//! It only sends. Whoever consumes or counts it consumes or counts its target: see [`Transports::target`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;

#[cfg(doc)]
use super::Transports;
use super::{Sender, Sent, Transport, TransportError, TransportSpec};
use crate::config::{Definition, Problem, Setting, TransportConfig};
use crate::message::Encoded;

/// `contao-auto-fallback` is what Contao calls it.
pub(super) const SCHEMES: [&str; 2] = ["auto-fallback", "contao-auto-fallback"];

/// What may be said of an auto-fallback, in the DSN or under `options:`.
pub(super) const OPTIONS: [Definition; 2] = [TARGET.definition, FALLBACK.definition];
const TARGET: Setting<Option<String>> =
    Setting::text("target", "", "where messages go while `NAME` or the target is being consumed")
        .of_kind("transport")
        .optional()
        .required();
const FALLBACK: Setting<Option<String>> =
    Setting::text("fallback", "", "where they go otherwise: `sync`, or another queue")
        .of_kind("transport")
        .optional()
        .required();

/// Knows whether somebody consumes a transport.
#[async_trait]
pub trait Liveness: Send + Sync {
    /// Whether any of these is being consumed. `false` when that cannot be found out: the fallback strands nothing.
    async fn is_running(&self, transports: &[&str]) -> bool;
}

/// Sends to its target while that is being consumed, else to its fallback.
pub(super) struct AutoFallback {
    pub(super) name: String,
    pub(super) target: Arc<Transport>,
    pub(super) fallback: Arc<Transport>,
    /// The names that a worker may have been told to consume so that messages on the target are handled: this one's, the
    /// target's, and, where that is an auto-fallback, its target's.
    pub(super) consumed_as: Vec<String>,
    pub(super) liveness: Arc<dyn Liveness>,
}

impl AutoFallback {
    async fn is_running(&self) -> bool {
        let names: Vec<&str> = self.consumed_as.iter().map(String::as_str).collect();
        self.liveness.is_running(&names).await
    }

    async fn send_to_fallback(&self, message: &Encoded, delay: Duration, why: String) -> Result<Sent, TransportError> {
        Ok(because(self.fallback.sender.send(message, delay).await?, why))
    }
}

#[async_trait]
impl Sender for AutoFallback {
    /// To the target while somebody consumes, else to the fallback.
    ///
    /// When the target is being consumed but cannot take the message (its store is down, full, not set up), the fallback
    /// takes it as well: producers are to work whether or not the queue does. Where the failure left open whether the
    /// target has stored the message, it may then be handled twice, which at-least-once delivery allows for; failing
    /// the dispatch instead would make its caller try again, to the same effect.
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let name = &self.name;
        if !self.is_running().await {
            return self.send_to_fallback(message, delay, format!("\"{name}\" is not running")).await;
        }
        match self.target.sender.send(message, delay).await {
            Ok(sent) => Ok(because(sent, format!("\"{name}\" is running"))),
            Err(error) => {
                tracing::warn!(transport = %name, %error, "the target did not take a message; its fallback does");
                let why = format!("\"{name}\" is running, but \"{}\" did not take the message", self.target.name());
                self.send_to_fallback(message, delay, why).await
            }
        }
    }
}

fn because(sent: Sent, why: String) -> Sent {
    match sent {
        Sent::Queued { transport, id, .. } => Sent::Queued { transport, id, reason: Some(why) },
        Sent::HandleNow { .. } => Sent::HandleNow { reason: why },
    }
}

/// The names of the transports that an auto-fallback stands between.
pub(super) struct References {
    pub(super) target: String,
    pub(super) fallback: String,
}

/// Reads an auto-fallback's DSN and options. Whether the two it names fit is seen once they are made.
pub(super) fn references(
    spec: &TransportSpec,
    configs: &IndexMap<String, TransportConfig>,
) -> Result<References, Vec<Problem>> {
    let mut options = spec.options();
    let (own, name) = (spec.dsn.host(), &spec.name);
    if own != name {
        let scheme = spec.dsn.scheme();
        let message = format!("the DSN names \"{own}\", but this is transport \"{name}\": write {scheme}://{name}?…");
        options.push(spec.dsn_problem(message));
    }
    let [target, fallback] = [TARGET, FALLBACK].map(|setting| {
        let option = setting.definition.name;
        let found = options.get(&setting).unwrap_or_default();
        let known = || configs.keys().map(String::as_str).filter(|known| known != name);
        if found.is_empty() {
            options
                .refuse(option, format!("{option} is missing: name one of {}", known().collect::<Vec<_>>().join(", ")));
        } else if !configs.contains_key(&found) {
            options.push(Problem::unknown(spec.option_path(option), &format!("{option} transport"), &found, known()));
        }
        found
    });
    options.finish()?;
    Ok(References { target, fallback })
}

#[cfg(test)]
mod tests {
    use super::super::{InMemory, SyncTransport, Transports};
    use super::*;

    /// Says that the transports in it are running.
    struct Running(&'static [&'static str]);

    #[async_trait]
    impl Liveness for Running {
        async fn is_running(&self, transports: &[&str]) -> bool {
            transports.iter().any(|transport| self.0.contains(transport))
        }
    }

    /// A store that is down.
    struct Down;

    #[async_trait]
    impl Sender for Down {
        async fn send(&self, _message: &Encoded, _delay: Duration) -> Result<Sent, TransportError> {
            Err(TransportError::NotSetUp { transport: "queue".into(), what: "everything".into() })
        }
    }

    /// `prio` between `queue` and `sync`.
    fn transports(running: &'static [&'static str], queue: impl Into<Transport>) -> Transports {
        let mut transports = Transports::default();
        transports.insert(queue);
        transports.insert(SyncTransport::new("sync"));
        transports.insert_auto_fallback("prio", "queue", "sync", Arc::new(Running(running))).unwrap();
        transports
    }

    async fn send(transports: &Transports, name: &str) -> Sent {
        transports.get(name).unwrap().sender.send(&Encoded::default(), Duration::ZERO).await.unwrap()
    }

    #[tokio::test]
    async fn a_message_is_queued_while_the_name_or_its_target_is_consumed() {
        for running in [&["prio"], &["queue"]] {
            let Sent::Queued { transport, reason, .. } =
                send(&transports(running, InMemory::new("queue")), "prio").await
            else {
                panic!()
            };
            assert_eq!((transport.as_str(), reason.unwrap().as_str()), ("queue", "\"prio\" is running"));
        }
    }

    #[tokio::test]
    async fn a_message_is_handled_at_once_while_nobody_consumes() {
        let sent = send(&transports(&["other"], InMemory::new("queue")), "prio").await;
        assert_eq!(sent, Sent::HandleNow { reason: "\"prio\" is not running".into() });
    }

    #[tokio::test]
    async fn the_fallback_takes_what_a_running_target_cannot() {
        let transports = transports(&["prio"], Transport::sender("queue", Arc::new(Down)));
        let Sent::HandleNow { reason } = send(&transports, "prio").await else { panic!() };
        assert_eq!(reason, "\"prio\" is running, but \"queue\" did not take the message");
    }

    #[tokio::test]
    async fn whoever_consumes_an_auto_fallback_consumes_its_target_through_any_number_of_them() {
        let mut transports = transports(&["queue"], InMemory::new("queue"));
        transports.insert_auto_fallback("outer", "prio", "sync", Arc::new(Running(&["queue"]))).unwrap();
        assert!(transports.get("outer").unwrap().receiver.is_none());
        let target = transports.target("outer").unwrap();
        assert_eq!(target.name(), "queue");
        let Sent::Queued { id, .. } = send(&transports, "outer").await else { panic!() };
        assert_eq!(target.receiver.as_ref().unwrap().receive(10).await.unwrap()[0].id, id);
    }

    #[test]
    fn an_auto_fallback_stands_between_transports_that_there_are() {
        let mut transports = transports(&[], InMemory::new("queue"));
        for (target, fallback) in [("queeu", "sync"), ("queue", "snyc")] {
            let result = transports.insert_auto_fallback("a", target, fallback, Arc::new(Running(&[])));
            assert!(matches!(result, Err(TransportError::Unknown(name)) if name == target || name == fallback));
            assert!(transports.get("a").is_err());
        }
    }
}
