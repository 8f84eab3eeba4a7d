//! Sending to a queue in a table: one message, or many in few steps.

use std::time::Duration;

use async_trait::async_trait;

use super::super::{MessageId, Sender, Sent, ToSend, TransportError};
use super::Timestamp;
use super::dialect::Dialect;
use super::row::Content;
use super::table::{SETTING_UP, Table, first_id};
use crate::connection::sql::{Fault, SqlConnection, SqlError};
use crate::message::Encoded;

const ACTION: &str = "sending";

/// The most messages that are stored in one step.
const CHUNK: usize = 1024;
/// The most bytes of one step, unless it is of one message: below all limits of servers (MySQL 5.6 takes 1 MiB).
const CHUNK_BYTES: usize = 512 * 1024;

#[async_trait]
impl<D: Dialect> Sender for Table<D> {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let content = self.content(message)?;
        let now = Timestamp::now();
        let send = || self.connection.perform(self.dialect.send(content.clone(), now, now.after(delay)));
        let rows = match send().await {
            Err(error) if error.is_missing() && self.options.auto_setup => {
                self.set_up().await?;
                send().await
            }
            result => result,
        };
        let rows = rows.map_err(|error| self.error(ACTION, error))?;
        let id = first_id(&rows).map_err(|error| self.unreadable(ACTION, error))?;
        self.notify();
        Ok(self.queued(id))
    }

    /// Up to [`CHUNK`] messages are stored in one step. If the database refuses them, each is tried alone, so that one that
    /// it cannot hold keeps no other out.
    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let mut results: Vec<Option<Result<Sent, TransportError>>> = Vec::with_capacity(messages.len());
        let mut storable = Vec::with_capacity(messages.len());
        for (n, ToSend { message, delay }) in messages.iter().enumerate() {
            results.push(match self.content(message) {
                Ok(content) => {
                    storable.push(Storable { n, content, delay: *delay });
                    None
                }
                Err(error) => Some(Err(error)),
            });
        }
        let mut failed: Option<Failed> = None;
        for chunk in chunks(storable) {
            let stored = match &failed {
                Some(failed) => Err(failed.clone()),
                None => self.store(&chunk).await,
            };
            match stored {
                Ok(ids) => {
                    for (one, id) in chunk.iter().zip(ids) {
                        results[one.n] = Some(Ok(self.queued(MessageId(id.to_string()))));
                    }
                }
                Err(failure) if failure.error.fault() == Fault::Refused && chunk.len() > 1 => {
                    for one in &chunk {
                        results[one.n] = Some(self.send(&messages[one.n].message, one.delay).await);
                    }
                }
                Err(failure) => {
                    for one in &chunk {
                        results[one.n] = Some(Err(self.failure(&failure)));
                    }
                    // A single one may have been too large for the connection: the next tells whether the server is there.
                    failed = Some(failure).filter(|_| chunk.len() > 1);
                }
            }
        }
        self.notify();
        // Each has a result by now: it was refused above, or was in a chunk.
        results.into_iter().flatten().collect()
    }
}

/// A message that the columns can hold, with its place among all.
struct Storable {
    n: usize,
    content: Content,
    delay: Duration,
}

/// What failed, and why.
#[derive(Clone)]
struct Failed {
    action: &'static str,
    error: SqlError,
}

impl<D: Dialect> Table<D> {
    /// Stores messages, all or none. Returns their ids.
    async fn store(&self, chunk: &[Storable]) -> Result<Vec<i64>, Failed> {
        let send = || {
            let now = Timestamp::now();
            let rows = chunk.iter().map(|one| (one.content.clone(), now.after(one.delay))).collect();
            self.connection.perform(self.dialect.send_all(rows, now))
        };
        let rows = match send().await {
            Err(error) if error.is_missing() && self.options.auto_setup => {
                self.create().await.map_err(|error| Failed { action: SETTING_UP, error })?;
                send().await
            }
            result => result,
        };
        let failed = |error| Failed { action: ACTION, error };
        let ids = rows.map_err(failed)?.iter().map(|row| row.number(0)).collect::<Result<Vec<_>, _>>();
        let mut ids = ids.map_err(|error| failed(self.connection.error(error)))?;
        // Ids are given out in the order of the messages. Not every server promises to return them in that order.
        ids.sort_unstable();
        match ids.len() == chunk.len() {
            true => Ok(ids),
            false => Err(failed(self.connection.error(sqlx::Error::RowNotFound))),
        }
    }

    fn failure(&self, failed: &Failed) -> TransportError {
        match failed.action {
            SETTING_UP => TransportError::store(&self.name, SETTING_UP, failed.error.clone()),
            action => self.error(action, failed.error.clone()),
        }
    }

    pub(super) fn queued(&self, id: MessageId) -> Sent {
        Sent::Queued { transport: self.name.clone(), id, reason: None }
    }
}

/// Puts messages together as far as one step is to take them.
fn chunks(messages: Vec<Storable>) -> Vec<Vec<Storable>> {
    let (mut chunks, mut bytes) = (Vec::<Vec<Storable>>::new(), 0);
    for message in messages {
        let size = message.content.size();
        match chunks.last_mut().filter(|chunk| chunk.len() < CHUNK && bytes + size <= CHUNK_BYTES) {
            Some(chunk) => {
                chunk.push(message);
                bytes += size;
            }
            None => {
                chunks.push(vec![message]);
                bytes = size;
            }
        }
    }
    chunks
}
