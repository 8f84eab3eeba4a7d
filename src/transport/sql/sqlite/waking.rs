//! Wakes a waiting consumer when a process has written to the database file, and when a delayed message becomes due.

use std::io;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::super::super::{TransportError, Waking};
use super::super::{NEVER, Table};
use super::Sqlite;

const ACTION: &str = "waiting for messages";
/// How long the queue is checked again after a write, with doubling pauses: its transaction may not be committed yet.
/// With a disk that takes longer, the message is found at the next write, or at the consumer's next poll.
const SETTLING: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The shortest pause between two checks while other processes write all the time.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

#[async_trait]
impl Waking for Table<Sqlite> {
    /// Checks for messages whenever a process, including this one, writes to the file. A check takes microseconds, and
    /// is needed because the write may concern another queue.
    async fn wake(&self) -> Result<(), TransportError> {
        let (mut pause, mut last) = (FIRST_PAUSE, None::<(u64, Instant)>);
        loop {
            let changes = self.connection.watch().look().map_err(|error| self.unwatched(&error))?;
            if let Some((_, looked)) =
                last.replace((changes.count, Instant::now())).filter(|(n, _)| *n != changes.count)
            {
                pause = if looked.elapsed() < 2 * BUSY_PAUSE { pause.min(BUSY_PAUSE) } else { FIRST_PAUSE };
            }
            let Some(mut wait) = self.time_without_write().await? else { return Ok(()) };
            if changes.last.elapsed() < SETTLING {
                wait = wait.min(pause);
                let at_least = wait.min(BUSY_PAUSE);
                tokio::time::sleep(at_least).await;
                wait -= at_least;
                pause *= 2;
            }
            tokio::select! {
                changed = self.connection.watch().changed(changes) => changed.map_err(|error| self.unwatched(&error))?,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl Table<Sqlite> {
    /// How long it is until a message becomes due, or due again, without a write. `None` if one is due.
    async fn time_without_write(&self) -> Result<Option<Duration>, TransportError> {
        let Some(mut row) = self.next_due(ACTION).await? else { return Ok(Some(NEVER)) };
        if row.number(2).map_err(|error| self.unreadable(ACTION, error))? != 0 {
            return Ok(None);
        }
        Ok(Some(self.time_to_due(ACTION, &mut row)?.clamp(FIRST_PAUSE, NEVER)))
    }

    fn unwatched(&self, error: &io::Error) -> TransportError {
        tracing::debug!(transport = self.name, %error, "changes of the file are not watched");
        self.error(ACTION, self.connection.unwatched(error))
    }
}
