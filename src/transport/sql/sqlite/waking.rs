//! Wakes a waiting consumer when somebody has written to the database file, and when a delayed message becomes due.

use std::io;
use std::str;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::super::super::{TransportError, Waking};
use super::super::{NEVER, Timestamp, time_from_text};
use super::Sqlite;
use crate::connection::sql::sqlite::DatabaseError;

/// For how long after a write its transaction may take to be committed: so long the queue is looked into again, after pauses
/// that double. A disk that takes longer leaves the message to the next write or the consumer's own next look.
const SETTLING: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// While others write all the time, the queue is looked into no more often than this.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

#[async_trait]
impl Waking for Sqlite {
    /// Looks for messages whenever somebody writes to the file, this process included: that is a question of some
    /// microseconds, and what is written concerns other queues too.
    async fn wake(&self) -> Result<(), TransportError> {
        let (mut pause, mut last) = (FIRST_PAUSE, None::<(u64, Instant)>);
        loop {
            let changes = self.database.watch().look().map_err(|error| self.unwatched(error))?;
            if let Some((_, looked)) =
                last.replace((changes.count, Instant::now())).filter(|(n, _)| *n != changes.count)
            {
                pause = if looked.elapsed() < 2 * BUSY_PAUSE { pause.min(BUSY_PAUSE) } else { FIRST_PAUSE };
            }
            let Some(mut wait) = self.time_to_next_due().await? else { return Ok(()) };
            if changes.last.elapsed() < SETTLING {
                wait = wait.min(pause);
                let at_least = wait.min(BUSY_PAUSE);
                tokio::time::sleep(at_least).await;
                wait -= at_least;
                pause *= 2;
            }
            tokio::select! {
                changed = self.database.watch().changed(changes) => changed.map_err(|error| self.unwatched(error))?,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl Sqlite {
    /// How long it is until a message becomes due, or due again, without a write. None when one is due.
    async fn time_to_next_due(&self) -> Result<Option<Duration>, TransportError> {
        let action = "waiting for messages";
        let rows = self.run(action, self.at(&self.queries.next_due, Timestamp::now())).await?.unwrap_or_default();
        let Some(row) = rows.first() else { return Ok(Some(NEVER)) };
        let read = || Ok((row.try_get::<bool, _>(0)?, time(row, 1)?, time(row, 2)?));
        let (any_due, due, received) = read().map_err(|error| self.unreadable(action, error))?;
        if any_due {
            return Ok(None);
        }
        // "Before" the cutoff is a second more.
        let again = self.options.redeliver_timeout + Duration::from_secs(1);
        let next = due.into_iter().chain(received.and_then(|received| received.checked_add(again))).min();
        let wait = next.map(|next| next.duration_since(SystemTime::now()).unwrap_or_default());
        Ok(Some(wait.map_or(NEVER, |wait| wait.clamp(FIRST_PAUSE, NEVER))))
    }

    fn unwatched(&self, source: io::Error) -> TransportError {
        tracing::debug!(transport = self.name, error = %source, "changes of the file are not watched");
        self.error("waiting for messages", DatabaseError::Path { path: self.database.path().to_owned(), source })
    }
}

fn time(row: &SqliteRow, column: usize) -> Result<Option<SystemTime>, sqlx::Error> {
    let text = row.try_get::<Option<Vec<u8>>, _>(column)?.unwrap_or_default();
    Ok(str::from_utf8(&text).ok().and_then(time_from_text))
}
