//! `auto-fallback://NAME?target=T&fallback=F`: queues while somebody consumes, and handles (or queues elsewhere) when
//! nobody does. Contao's `contao-auto-fallback` transport.
//!
//! Only sending decides. Consuming and counting this transport is consuming and counting its target, always.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;

use super::{
    Counting, KeepingAlive, Listing, MessageId, Moving, Prefetching, Received, Releasing, Resting, Sent, SettingUp,
    Transport, TransportError, TransportSpec, Waking,
};
use crate::config::{Problem, TransportConfig};
use crate::message::Encoded;

/// `contao-auto-fallback` is what Contao calls it.
pub(super) const SCHEMES: [&str; 2] = ["auto-fallback", "contao-auto-fallback"];

/// Knows whether somebody consumes a transport.
#[async_trait]
pub trait Liveness: Send + std::marker::Sync {
    /// Is any of these being consumed? `false` when that cannot be found out: the fallback strands nothing.
    async fn is_running(&self, transports: &[&str]) -> bool;
}

/// Sends to its target while that is being consumed, else to its fallback.
pub struct AutoFallback {
    name: String,
    target: Arc<dyn Transport>,
    fallback: Arc<dyn Transport>,
    liveness: Arc<dyn Liveness>,
}

impl AutoFallback {
    /// A transport of this name between these two.
    pub fn new(
        name: impl Into<String>,
        target: Arc<dyn Transport>,
        fallback: Arc<dyn Transport>,
        liveness: Arc<dyn Liveness>,
    ) -> Self {
        Self { name: name.into(), target, fallback, liveness }
    }

    /// A worker may have been told to consume this name, or its target's; where the target is an auto-fallback too,
    /// also that one's target.
    async fn is_running(&self) -> bool {
        let mut names = vec![self.name.as_str(), self.target.name()];
        names.extend(self.target.target());
        self.liveness.is_running(&names).await
    }

    async fn send_to_fallback(&self, message: &Encoded, delay: Duration, why: String) -> Result<Sent, TransportError> {
        Ok(because(self.fallback.send(message, delay).await?, why))
    }
}

#[async_trait]
impl Transport for AutoFallback {
    fn name(&self) -> &str {
        &self.name
    }

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
        match self.target.send(message, delay).await {
            Ok(sent) => Ok(because(sent, format!("\"{name}\" is running"))),
            Err(error) => {
                tracing::warn!(transport = %name, %error, "the target did not take a message; its fallback does");
                let why = format!("\"{name}\" is running, but \"{}\" did not take the message", self.target.name());
                self.send_to_fallback(message, delay, why).await
            }
        }
    }

    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        self.target.receive(up_to).await
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.target.ack(ids).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.target.reject(ids).await
    }

    fn consumable(&self) -> bool {
        self.target.consumable()
    }

    fn target(&self) -> Option<&str> {
        Some(self.target.target().unwrap_or(self.target.name()))
    }

    async fn close(&self) {
        self.target.close().await;
    }

    fn counting(&self) -> Option<&dyn Counting> {
        self.target.counting()
    }

    fn setting_up(&self) -> Option<&dyn SettingUp> {
        self.target.setting_up()
    }

    fn listing(&self) -> Option<&dyn Listing> {
        self.target.listing()
    }

    fn releasing(&self) -> Option<&dyn Releasing> {
        self.target.releasing()
    }

    fn keeping_alive(&self) -> Option<&dyn KeepingAlive> {
        self.target.keeping_alive()
    }

    fn resting(&self) -> Option<&dyn Resting> {
        self.target.resting()
    }

    fn waking(&self) -> Option<&dyn Waking> {
        self.target.waking()
    }

    fn prefetching(&self) -> Option<&dyn Prefetching> {
        self.target.prefetching()
    }

    fn moving(&self) -> Option<&dyn Moving> {
        self.target.moving()
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
    let [target, fallback] = ["target", "fallback"].map(|option| {
        let found = options.text(option).unwrap_or_default();
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
    use super::super::{InMemory, Sync};
    use super::*;

    /// Says that the transports in it are running.
    struct Running(&'static [&'static str]);

    #[async_trait]
    impl Liveness for Running {
        async fn is_running(&self, transports: &[&str]) -> bool {
            transports.iter().any(|transport| self.0.contains(transport))
        }
    }

    /// A transport whose store is down.
    struct Down;

    #[async_trait]
    impl Transport for Down {
        fn name(&self) -> &str {
            "queue"
        }
        async fn send(&self, _message: &Encoded, _delay: Duration) -> Result<Sent, TransportError> {
            Err(TransportError::NotSetUp { transport: "queue".into(), what: "everything".into() })
        }
        async fn receive(&self, _up_to: usize) -> Result<Vec<Received>, TransportError> {
            Ok(vec![])
        }
        async fn ack(&self, _ids: &[MessageId]) -> Result<(), TransportError> {
            Ok(())
        }
        async fn reject(&self, _ids: &[MessageId]) -> Result<(), TransportError> {
            Ok(())
        }
    }

    fn prio(running: &'static [&'static str], target: Arc<dyn Transport>) -> AutoFallback {
        AutoFallback::new("prio", target, Arc::new(Sync::new("sync")), Arc::new(Running(running)))
    }

    fn queue() -> Arc<dyn Transport> {
        Arc::new(InMemory::new("queue"))
    }

    async fn send(transport: &AutoFallback) -> Sent {
        transport.send(&Encoded::default(), Duration::ZERO).await.unwrap()
    }

    #[tokio::test]
    async fn a_message_is_queued_while_the_name_or_its_target_is_consumed() {
        for running in [&["prio"], &["queue"]] {
            let Sent::Queued { transport, reason, .. } = send(&prio(running, queue())).await else { panic!() };
            assert_eq!((transport.as_str(), reason.unwrap().as_str()), ("queue", "\"prio\" is running"));
        }
    }

    #[tokio::test]
    async fn a_message_is_handled_at_once_while_nobody_consumes() {
        let sent = send(&prio(&["other"], queue())).await;
        assert_eq!(sent, Sent::HandleNow { reason: "\"prio\" is not running".into() });
    }

    #[tokio::test]
    async fn the_fallback_takes_what_a_running_target_cannot() {
        let Sent::HandleNow { reason } = send(&prio(&["prio"], Arc::new(Down))).await else { panic!() };
        assert_eq!(reason, "\"prio\" is running, but \"queue\" did not take the message");
    }

    #[tokio::test]
    async fn consuming_and_counting_go_to_the_target_through_any_number_of_auto_fallbacks() {
        let inner = AutoFallback::new("inner", queue(), Arc::new(Sync::new("sync")), Arc::new(Running(&["queue"])));
        let outer = prio(&["queue"], Arc::new(inner));
        assert_eq!(outer.target(), Some("queue"));
        let Sent::Queued { id, .. } = send(&outer).await else { panic!() };
        assert_eq!(outer.counting().unwrap().pending(10).await.unwrap(), 1);
        assert_eq!(outer.receive(10).await.unwrap()[0].id, id);
        outer.ack(&[id]).await.unwrap();
        assert_eq!(outer.counting().unwrap().counts(10).await.unwrap(), Default::default());
    }
}
