//! `auto-fallback://NAME?target=T&fallback=F`: sends messages to a queue while a worker consumes it. Otherwise handles
//! them at once, or sends them to another queue. Contao's `contao-auto-fallback` transport.
//!
//! It only sends. To consume or count it means to consume or count its target: see [`Transports::target`](super::Transports::target).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;

use super::{Addressing, Sender, Sent, ToSend, Transport, TransportError, TransportSpec};
use crate::config::{Definition, Problem, Setting, TransportConfig};
use crate::message::{AmqpStamp, Encoded};

/// `contao-auto-fallback` is Contao's name for it.
pub(super) const SCHEMES: [&str; 2] = ["auto-fallback", "contao-auto-fallback"];

/// The options of an auto-fallback, in the DSN or under `options:`.
pub(super) const OPTIONS: [Definition; 2] = [TARGET.definition, FALLBACK.definition];
const TARGET: Setting<String> =
    Setting::text("target", "", "where messages go while `NAME` or the target is being consumed")
        .of_kind("transport")
        .required();
const FALLBACK: Setting<String> =
    Setting::text("fallback", "", "where they go otherwise: `sync`, or another queue").of_kind("transport").required();

/// Knows whether a transport is being consumed.
#[async_trait]
pub(crate) trait Liveness: Send + Sync {
    /// Whether any of these transports is being consumed. `false` if that cannot be found out: no message is stranded
    /// by the fallback.
    async fn is_running(&self, transports: &[&str]) -> bool;
}

/// Sends to its target while that is being consumed, and otherwise to its fallback.
pub(super) struct AutoFallback {
    pub(super) name: String,
    pub(super) target: Arc<Transport>,
    pub(super) fallback: Arc<Transport>,
    /// The names under which a worker may consume the target: this transport's, the target's, and if that is an
    /// auto-fallback, its target's.
    pub(super) consumed_as: Vec<String>,
    pub(super) liveness: Arc<dyn Liveness>,
}

impl AutoFallback {
    async fn is_running(&self) -> bool {
        let names: Vec<&str> = self.consumed_as.iter().map(String::as_str).collect();
        self.liveness.is_running(&names).await
    }

    /// Sends to the target while it is being consumed, and otherwise to the fallback.
    async fn send_either(
        &self,
        message: &Encoded,
        delay: Duration,
        stamp: Option<&AmqpStamp>,
    ) -> Result<Sent, TransportError> {
        let name = &self.name;
        let to_fallback = async |why: String| Ok(because(self.fallback.pass_on(message, delay, stamp).await?, why));
        if !self.is_running().await {
            return to_fallback(format!("\"{name}\" is not running")).await;
        }
        match self.target.pass_on(message, delay, stamp).await {
            // A mistake in the configuration, which the fallback would hide: a message might be plain there that has to be
            // encrypted.
            Err(error @ TransportError::Unwritable { .. }) => Err(error),
            Ok(sent) => Ok(because(sent, format!("\"{name}\" is running"))),
            Err(error) => {
                tracing::warn!(transport = %name, %error, "the target did not take a message; the fallback does");
                to_fallback(self.refused()).await
            }
        }
    }

    fn refused(&self) -> String {
        format!("\"{}\" is running, but \"{}\" did not take the message", self.name, self.target.name())
    }
}

impl AutoFallback {
    /// The same for many messages. Whether the target is being consumed is asked once.
    async fn send_all_to_either(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let name = &self.name;
        if !self.is_running().await {
            let why = format!("\"{name}\" is not running");
            return because_all(self.fallback.pass_on_all(messages).await, &why);
        }
        let mut results = because_all(self.target.pass_on_all(messages).await, &format!("\"{name}\" is running"));
        let is_refused = |result: &Result<Sent, TransportError>| {
            result.as_ref().is_err_and(|error| !matches!(error, TransportError::Unwritable { .. }))
        };
        let refused: Vec<usize> = (0..results.len()).filter(|n| is_refused(&results[*n])).collect();
        if let Some(Err(error)) = refused.first().map(|first| &results[*first]) {
            let number = refused.len();
            tracing::warn!(transport = %name, %error, messages = number, "the target did not take messages; the fallback does");
            let rest: Vec<ToSend> = refused.iter().map(|n| messages[*n].clone()).collect();
            let why = self.refused();
            let taken = because_all(self.fallback.pass_on_all(&rest).await, &why);
            for (n, result) in refused.into_iter().zip(taken) {
                results[n] = result;
            }
        }
        results
    }
}

#[async_trait]
impl Addressing for AutoFallback {
    async fn send_with(&self, message: &Encoded, delay: Duration, stamp: &AmqpStamp) -> Result<Sent, TransportError> {
        self.send_either(message, delay, Some(stamp)).await
    }
}

#[async_trait]
impl Sender for AutoFallback {
    /// Sends to the target while it is being consumed, and otherwise to the fallback.
    ///
    /// If the target is being consumed but cannot store the message (its store is down, full, or not set up), the
    /// fallback gets it too: producers have to work whether or not the queue does. The message may then be handled
    /// twice, if the target has stored it despite the error. At-least-once delivery allows that, and an error would
    /// make the caller try again to the same effect.
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        self.send_either(message, delay, None).await
    }

    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        self.send_all_to_either(messages).await
    }
}

fn because_all(results: Vec<Result<Sent, TransportError>>, why: &str) -> Vec<Result<Sent, TransportError>> {
    results.into_iter().map(|sent| Ok(because(sent?, why.to_owned()))).collect()
}

fn because(sent: Sent, why: String) -> Sent {
    match sent {
        Sent::Queued { transport, id, .. } => Sent::Queued { transport, id, reason: Some(why) },
        Sent::HandleNow { .. } => Sent::HandleNow { reason: why },
    }
}

/// The names of the two transports that an auto-fallback chooses between.
pub(super) struct References {
    pub(super) target: String,
    pub(super) fallback: String,
}

/// Reads an auto-fallback's DSN and options. Whether the two transports fit is checked when they have been created.
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
        // Its absence is reported below, with the names there are.
        let found = options.get(&setting.optional()).unwrap_or_default();
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

    /// Reports these transports as running.
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

    /// The auto-fallback `prio`, with the target `queue` and the fallback `sync`.
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
    async fn a_message_is_handled_at_once_while_the_target_is_not_consumed() {
        let sent = send(&transports(&["other"], InMemory::new("queue")), "prio").await;
        assert_eq!(sent, Sent::HandleNow { reason: "\"prio\" is not running".into() });
    }

    #[tokio::test]
    async fn the_fallback_takes_what_a_running_target_refuses() {
        let transports = transports(&["prio"], Transport::sender("queue", Arc::new(Down)));
        let Sent::HandleNow { reason } = send(&transports, "prio").await else { panic!() };
        assert_eq!(reason, "\"prio\" is running, but \"queue\" did not take the message");
    }

    #[tokio::test]
    async fn consuming_an_auto_fallback_consumes_its_target_also_when_nested() {
        let mut transports = transports(&["queue"], InMemory::new("queue"));
        transports.insert_auto_fallback("outer", "prio", "sync", Arc::new(Running(&["queue"]))).unwrap();
        assert!(transports.get("outer").unwrap().receiver.is_none());
        let target = transports.target("outer").unwrap();
        assert_eq!(target.name(), "queue");
        let Sent::Queued { id, .. } = send(&transports, "outer").await else { panic!() };
        assert_eq!(target.receiver.as_ref().unwrap().receive(10).await.unwrap()[0].id, id);
    }

    #[test]
    fn an_auto_fallback_needs_transports_that_exist() {
        let mut transports = transports(&[], InMemory::new("queue"));
        for (target, fallback) in [("queeu", "sync"), ("queue", "snyc")] {
            let result = transports.insert_auto_fallback("a", target, fallback, Arc::new(Running(&[])));
            assert!(matches!(result, Err(TransportError::Unknown(name)) if name == target || name == fallback));
            assert!(transports.get("a").is_err());
        }
    }
}
