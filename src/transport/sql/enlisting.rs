//! Storing a message in a transaction of the caller's, so that it exists exactly if that is committed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::super::{Enlisting, Sent, TransportError};
use super::Timestamp;
use super::dialect::Dialect;
use super::table::{Table, first_id};
use crate::connection::sql::{CallersConnection, SqlConnection};
use crate::message::Encoded;

const ACTION: &str = "sending in a transaction";

/// Why a message cannot be stored on a caller's connection.
pub(crate) enum NotEnlisted {
    /// It is to a database of another kind.
    OtherKind,
    /// It is to another database, which this says.
    OtherDatabase(String),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for NotEnlisted {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

#[async_trait]
impl<D: Dialect> Enlisting for Table<D> {
    /// On a server, a table that is missing is created before, on a connection of our own: in MySQL, creating one would commit
    /// the caller's transaction. Consumers are not notified here, where nothing is committed yet.
    async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        message: &Encoded,
        delay: Duration,
    ) -> Result<Sent, TransportError> {
        let content = self.content(message)?;
        if D::IS_CREATED_APART && self.options.auto_setup && !self.is_created.load(Ordering::Relaxed) {
            self.set_up().await?;
            self.is_created.store(true, Ordering::Relaxed);
        }
        let now = Timestamp::now();
        let create = self.options.auto_setup;
        let rows = self.dialect.send_in(connection, content, now, now.after(delay), create).await;
        let rows = rows.map_err(|error| match error {
            NotEnlisted::OtherKind => TransportError::Unsupported {
                transport: self.name.clone(),
                what: "store messages in this transaction",
                why: "it is one of another kind of database",
            },
            NotEnlisted::OtherDatabase(other) => {
                let text = format!("the transaction is on {other}, and the queue in {}", self.connection.location());
                TransportError::store(&self.name, ACTION, std::io::Error::other(text))
            }
            NotEnlisted::Sql(error) => {
                // Somebody may have removed the table: it is looked for again the next time.
                self.is_created.store(false, Ordering::Relaxed);
                self.unreadable(ACTION, error)
            }
        })?;
        let id = first_id(&rows).map_err(|error| self.unreadable(ACTION, error))?;
        Ok(self.queued(id))
    }
}
