//! Wakes a waiting consumer by PostgreSQL's notifications, and when a delayed message becomes due.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::super::super::{TransportError, Waking};
use super::super::{NEVER, Table};
use super::Postgres;
use crate::connection::sql::Statement;
use crate::connection::sql::postgres::{Channels, Request};

/// Stands for not listening: no channel has this many notifications.
const NOT_LISTENING: u64 = u64::MAX;

/// The notifications of one queue.
pub(crate) struct Notifications {
    channels: Arc<Channels>,
    /// The table's name as configured, which Symfony's trigger and consumers use as the channel.
    channel: String,
    count: watch::Receiver<u64>,
    /// The number of notifications at the last poll; [`NOT_LISTENING`] if the connection did not listen then.
    seen: AtomicU64,
    check_interval: Option<Duration>,
    /// Whether the table has a trigger. Otherwise only producers that notify by themselves wake consumers.
    has_trigger: OnceLock<bool>,
}

impl Notifications {
    pub(super) fn new(channels: Arc<Channels>, table: &str, queue: &str, check_interval: Option<Duration>) -> Self {
        let count = channels.subscribe(table, queue);
        let channel = table.to_owned();
        Self {
            channels,
            channel,
            count,
            seen: AtomicU64::new(NOT_LISTENING),
            check_interval,
            has_trigger: OnceLock::new(),
        }
    }

    /// Called before a poll, which finds all messages that were notified so far.
    pub(super) fn before_poll(&self) {
        let seen = if self.is_listening() { *self.count.borrow() } else { NOT_LISTENING };
        self.seen.store(seen, Ordering::Relaxed);
    }

    fn is_listening(&self) -> bool {
        self.channels.is_listening_on(&self.channel)
    }

    async fn next(&self) {
        let (mut count, seen) = (self.count.clone(), self.seen.load(Ordering::Relaxed));
        // It cannot fail: the sender is held here.
        let _ = count.wait_for(|count| *count != seen).await;
    }
}

#[async_trait]
impl Waking for Table<Postgres> {
    async fn wake(&self) -> Result<(), TransportError> {
        let Some(notifications) = &self.dialect.notifications else { return std::future::pending().await };
        // Another queue of the table may have made the connection listen.
        if !notifications.is_listening() || notifications.has_trigger.get().is_none() {
            self.listen(notifications).await?;
        }
        if notifications.seen.load(Ordering::Relaxed) == NOT_LISTENING {
            // There was no notification of messages that arrived between the last poll and now, so they have to be
            // polled for.
            return Ok(());
        }
        let next = self.time_to_next_due("waiting for messages").await?;
        tokio::select! {
            () = notifications.next() => {}
            () = tokio::time::sleep(next) => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        let notifications =
            self.dialect.notifications.as_ref().filter(|notifications| {
                notifications.is_listening() && notifications.has_trigger.get() == Some(&true)
            })?;
        Some(notifications.check_interval.unwrap_or(NEVER))
    }
}

impl Table<Postgres> {
    async fn listen(&self, notifications: &Notifications) -> Result<(), TransportError> {
        let action = "waiting for messages";
        if self.options.auto_setup {
            // With the trigger, so that the first message wakes this consumer, whoever sends it.
            self.set_up().await?;
        }
        let trigger = Statement::of(&self.dialect.queries.has_trigger).bind(self.dialect.queries.table.as_str());
        let has_trigger = self.run(action, Request::Run(trigger)).await?.is_some_and(|rows| !rows.is_empty());
        let _ = notifications.has_trigger.set(has_trigger);
        self.run(action, Request::Listen(notifications.channel.clone())).await.map(drop)
    }
}
