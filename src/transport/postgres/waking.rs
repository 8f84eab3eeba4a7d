//! Wakes a waiting consumer by PostgreSQL's notifications, and when a message becomes due of which nothing tells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::super::rdbms::{Statement, Table};
use super::super::sql::NEVER;
use super::super::{TransportError, Waking};
use super::Postgres;
use super::bells::Bells;
use super::session::Request;

/// No bell rings so often.
const UNHEARD: u64 = u64::MAX;

/// The notifications of one queue.
pub(crate) struct Notifications {
    bells: Arc<Bells>,
    /// The table's name as it is configured: what Symfony's trigger and Symfony's consumers take.
    channel: String,
    bell: watch::Receiver<u64>,
    /// How often the bell had rung when messages were last looked for; [`UNHEARD`] where it was not heard then.
    seen: AtomicU64,
    check_interval: Option<Duration>,
    /// Has the table a trigger? Otherwise only producers that notify by themselves are heard.
    has_trigger: OnceLock<bool>,
}

impl Notifications {
    pub(super) fn new(bells: Arc<Bells>, table: &str, queue: &str, check_interval: Option<Duration>) -> Self {
        let bell = bells.bell(table, queue);
        let channel = table.to_owned();
        Self { bells, channel, bell, seen: AtomicU64::new(UNHEARD), check_interval, has_trigger: OnceLock::new() }
    }

    /// Messages are going to be looked for: what has been told up to now is found by that.
    pub(super) fn look(&self) {
        let seen = if self.are_heard() { *self.bell.borrow() } else { UNHEARD };
        self.seen.store(seen, Ordering::Relaxed);
    }

    fn are_heard(&self) -> bool {
        self.bells.are_heard_on(&self.channel)
    }

    async fn rung(&self) {
        let (mut bell, seen) = (self.bell.clone(), self.seen.load(Ordering::Relaxed));
        // Fails when there are no bells any more, and they are held here.
        let _ = bell.wait_for(|rung| *rung != seen).await;
    }
}

#[async_trait]
impl Waking for Table<Postgres> {
    async fn wake(&self) -> Result<(), TransportError> {
        let Some(notifications) = &self.dialect.notifications else { return std::future::pending().await };
        // Another queue of the table may have made the connection listen.
        if !notifications.are_heard() || notifications.has_trigger.get().is_none() {
            self.listen(notifications).await?;
        }
        if notifications.seen.load(Ordering::Relaxed) == UNHEARD {
            // Nothing told of what came between the last look and now, so it has to be looked for.
            return Ok(());
        }
        let next = self.time_to_next_due("waiting for messages").await?;
        tokio::select! {
            () = notifications.rung() => {}
            () = tokio::time::sleep(next) => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        let notifications = self
            .dialect
            .notifications
            .as_ref()
            .filter(|notifications| notifications.are_heard() && notifications.has_trigger.get() == Some(&true))?;
        Some(notifications.check_interval.unwrap_or(NEVER))
    }
}

impl Table<Postgres> {
    async fn listen(&self, notifications: &Notifications) -> Result<(), TransportError> {
        let action = "waiting for messages";
        if self.options.auto_setup {
            // With the trigger, whoever sends the first message.
            self.set_up().await?;
        }
        let trigger = Statement::of(&self.dialect.queries.has_trigger).bind(self.dialect.queries.table.as_str());
        let has_trigger = self.run(action, Request::Run(trigger)).await?.is_some_and(|rows| !rows.is_empty());
        let _ = notifications.has_trigger.set(has_trigger);
        self.run(action, Request::Listen(notifications.channel.clone())).await.map(drop)
    }
}
