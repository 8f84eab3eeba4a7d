//! Wakes a waiting consumer by PostgreSQL's notifications, and when a message becomes due of which nothing tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;

use super::super::rdbms::{Row, Statement, Table};
use super::super::sql::{Moment, time_from_text};
use super::super::{Transport, TransportError, Waking};
use super::Postgres;
use super::bells::Bells;
use super::session::Request;

/// Stands in for an interval without end.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Has the lack of a trigger been told?
    told: AtomicBool,
}

impl Notifications {
    pub(super) fn new(bells: Arc<Bells>, table: &str, queue: &str, check_interval: Option<Duration>) -> Self {
        let bell = bells.bell(table, queue);
        let channel = table.to_owned();
        Self { bells, channel, bell, seen: AtomicU64::new(UNHEARD), check_interval, told: AtomicBool::new(false) }
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
        if !notifications.are_heard() {
            self.listen(notifications).await?;
        }
        if notifications.seen.load(Ordering::Relaxed) == UNHEARD {
            // Nothing told of what came between the last look and now, so it has to be looked for.
            return Ok(());
        }
        let next = self.next_due().await?.and_then(|at| at.duration_since(SystemTime::now()).ok());
        tokio::select! {
            () = notifications.rung() => {}
            () = tokio::time::sleep(next.unwrap_or(NEVER)) => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        let notifications = self.dialect.notifications.as_ref().filter(|notifications| notifications.are_heard())?;
        Some(notifications.check_interval.unwrap_or(NEVER))
    }
}

impl Table<Postgres> {
    async fn listen(&self, notifications: &Notifications) -> Result<(), TransportError> {
        let action = "waiting for messages";
        if self.options.auto_setup {
            // What is not there cannot tell of the first message.
            let table = Statement::of(&self.dialect.queries.has_table).bind(self.dialect.queries.table.as_str());
            if self.run(action, Request::Run(table)).await?.is_none_or(|rows| rows.is_empty()) {
                self.set_up().await?;
            }
        }
        let trigger = Statement::of(&self.dialect.queries.notifies).bind(self.dialect.queries.table.as_str());
        if self.run(action, Request::Run(trigger)).await?.is_none_or(|rows| rows.is_empty()) {
            let why = "its table has no trigger \"notify_trigger\"; `minutely setup` creates it";
            if !notifications.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(transport = self.name(), "not woken by new messages, as {why}");
            }
            let (transport, what) = (self.name().to_owned(), "be woken by new messages");
            return Err(TransportError::Unsupported { transport, what, why });
        }
        self.run(action, Request::Listen(notifications.channel.clone())).await.map(drop)
    }

    /// When a message becomes due, or due again, without a notification.
    async fn next_due(&self) -> Result<Option<SystemTime>, TransportError> {
        let now = Moment::now();
        let statement = self.dialect.at(&self.dialect.queries.next_due, now, self.cutoff(now));
        let row = self.run("waiting for messages", Request::Run(statement)).await?.and_then(|mut rows| rows.pop());
        let Some(mut row) = row else { return Ok(None) };
        let mut time = |field| time(&mut row, field).map_err(|error| self.unreadable("waiting for messages", error));
        // "Before" the cutoff is a second more.
        let again = self.options.redeliver_timeout + Duration::from_secs(1);
        let (due, received) = (time(0)?, time(1)?);
        Ok(due.into_iter().chain(received.map(|received| received + again)).min())
    }
}

fn time(row: &mut Row, field: usize) -> Result<Option<SystemTime>, sqlx::Error> {
    let text = row.take_text(field)?;
    Ok(std::str::from_utf8(&text).ok().and_then(time_from_text))
}
