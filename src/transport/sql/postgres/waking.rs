//! Wakes a waiting consumer by PostgreSQL's notifications, and when a message becomes due of which nothing tells.

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

/// No channel has so many notifications.
const NOT_LISTENING: u64 = u64::MAX;

/// The notifications of one queue.
pub(crate) struct Notifications {
    channels: Arc<Channels>,
    /// The table's name as it is configured: what Symfony's trigger and Symfony's consumers take.
    channel: String,
    count: watch::Receiver<u64>,
    /// How many notifications had come in when messages were last looked for; [`NOT_LISTENING`] where nobody listened.
    seen: AtomicU64,
    check_interval: Option<Duration>,
    /// Has the table a trigger? Otherwise only producers that notify by themselves are heard.
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

    /// Messages are going to be looked for, which finds those that notifications have told of up to now.
    pub(super) fn look(&self) {
        let seen = if self.are_listened_to() { *self.count.borrow() } else { NOT_LISTENING };
        self.seen.store(seen, Ordering::Relaxed);
    }

    fn are_listened_to(&self) -> bool {
        self.channels.is_listening_on(&self.channel)
    }

    async fn next(&self) {
        let (mut count, seen) = (self.count.clone(), self.seen.load(Ordering::Relaxed));
        // Fails when the sender is gone, and it is held here.
        let _ = count.wait_for(|count| *count != seen).await;
    }
}

#[async_trait]
impl Waking for Table<Postgres> {
    async fn wake(&self) -> Result<(), TransportError> {
        let Some(notifications) = &self.dialect.notifications else { return std::future::pending().await };
        // Another queue of the table may have made the connection listen.
        if !notifications.are_listened_to() || notifications.has_trigger.get().is_none() {
            self.listen(notifications).await?;
        }
        if notifications.seen.load(Ordering::Relaxed) == NOT_LISTENING {
            // Nothing told of what came between the last look and now, so it has to be looked for.
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
        let notifications = self.dialect.notifications.as_ref().filter(|notifications| {
            notifications.are_listened_to() && notifications.has_trigger.get() == Some(&true)
        })?;
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
