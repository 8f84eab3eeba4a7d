//! Dispatches a message in a transaction of the caller's.

use std::fmt;
use std::future::IntoFuture;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::{Sqlite, SqliteConnection, Transaction};
use tokio::sync::mpsc;

use super::outlet::Outlet;
use super::{Dispatch, DispatchError, Dispatched, Tx};
use crate::connection::sql::CallersConnection;

/// A transaction that the caller has begun: `&mut` of sqlx's `Transaction`, of [`Tx`] in a handler, or of a connection on
/// which one is open, to SQLite, PostgreSQL or MySQL.
pub struct OpenTransaction<'t>(CallersConnection<'t>);

impl fmt::Debug for OpenTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenTransaction")
    }
}

impl<'t> From<&'t mut SqliteConnection> for OpenTransaction<'t> {
    fn from(connection: &'t mut SqliteConnection) -> Self {
        Self(CallersConnection::Sqlite(connection))
    }
}

impl<'t> From<&'t mut Transaction<'_, Sqlite>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Transaction<'_, Sqlite>) -> Self {
        Self(CallersConnection::Sqlite(transaction))
    }
}

impl<'t> From<&'t mut Tx<Sqlite>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Tx<Sqlite>) -> Self {
        Self(CallersConnection::Sqlite(transaction))
    }
}

#[cfg(feature = "postgres")]
impl<'t> From<&'t mut sqlx::PgConnection> for OpenTransaction<'t> {
    fn from(connection: &'t mut sqlx::PgConnection) -> Self {
        Self(CallersConnection::Postgres(connection))
    }
}

#[cfg(feature = "postgres")]
impl<'t> From<&'t mut Transaction<'_, sqlx::Postgres>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Transaction<'_, sqlx::Postgres>) -> Self {
        Self(CallersConnection::Postgres(transaction))
    }
}

#[cfg(feature = "postgres")]
impl<'t> From<&'t mut Tx<sqlx::Postgres>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Tx<sqlx::Postgres>) -> Self {
        Self(CallersConnection::Postgres(transaction))
    }
}

#[cfg(feature = "mysql")]
impl<'t> From<&'t mut sqlx::MySqlConnection> for OpenTransaction<'t> {
    fn from(connection: &'t mut sqlx::MySqlConnection) -> Self {
        Self(CallersConnection::Mysql(connection))
    }
}

#[cfg(feature = "mysql")]
impl<'t> From<&'t mut Transaction<'_, sqlx::MySql>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Transaction<'_, sqlx::MySql>) -> Self {
        Self(CallersConnection::Mysql(transaction))
    }
}

#[cfg(feature = "mysql")]
impl<'t> From<&'t mut Tx<sqlx::MySql>> for OpenTransaction<'t> {
    fn from(transaction: &'t mut Tx<sqlx::MySql>) -> Self {
        Self(CallersConnection::Mysql(transaction))
    }
}

/// A message that is stored in a transaction when this is awaited: it exists exactly if the transaction is committed, which
/// is left to the caller. Before that, no worker sees it.
///
/// ```
/// # use minutely::App;
/// # use minutely::message::Message;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { id: i64 }
/// # impl Message for OrderPlaced { const TYPE: &'static str = r"App\Message\OrderPlaced"; }
/// # async fn example(app: App, pool: sqlx::SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// sqlx::query("INSERT INTO orders VALUES (?)").bind(7).execute(&mut *tx).await?;
/// app.dispatch_in(&mut tx, &OrderPlaced { id: 7 }).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
///
/// - The message is routed as always, to one transport, which must be a queue in a table of the transaction's database: `sqlite:`,
///   `postgres:` or `mysql:`. Another kind of database is an error, as is
///   another file of SQLite, and nothing is stored. On a server, the transaction must be on the database that the queue is in: a
///   table of the queue's name on another database would get the message.
/// - An auto-fallback stands for its target: the message is queued there, whether or not somebody consumes it. Handled at once,
///   its handler would not see what is not committed yet, or act on what is then rolled back.
/// - After an error, roll back: the database may have ended the transaction.
/// - A message with a [`DeduplicateStamp`](crate::message::DeduplicateStamp) is refused, as its key would stay claimed after
///   a rollback; so is one that waits for another ([`after_current`](Dispatch::after_current)).
#[must_use = "nothing is dispatched until this is awaited"]
pub struct DispatchIn<'t> {
    dispatch: Dispatch,
    connection: CallersConnection<'t>,
}

impl Dispatch {
    /// Stores the message in a transaction of the caller's: `bus.dispatch(&message).delay(hour).in_transaction(&mut tx)`.
    pub fn in_transaction<'t>(self, transaction: impl Into<OpenTransaction<'t>>) -> DispatchIn<'t> {
        DispatchIn { dispatch: self, connection: transaction.into().0 }
    }
}

impl<'t> IntoFuture for DispatchIn<'t> {
    type Output = Result<Dispatched, DispatchError>;
    type IntoFuture = BoxFuture<'t, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        run(self.dispatch, self.connection).boxed()
    }
}

async fn run(dispatch: Dispatch, mut connection: CallersConnection<'_>) -> Result<Dispatched, DispatchError> {
    let (outlet, mut submissions) = mpsc::unbounded_channel();
    let mut chain = dispatch.run_with(Outlet::in_transaction(outlet)).boxed();
    let mut is_submitted = false;
    loop {
        tokio::select! {
            biased;
            result = &mut chain => return result.and_then(|dispatched| stored(dispatched, is_submitted)),
            Some(submission) = submissions.recv() => {
                is_submitted = true;
                let (transport, envelope) = (&submission.transport, &submission.envelope);
                let result = transport.send_in(connection.reborrow(), envelope, submission.delay).await;
                let _ = submission.answer.send(result);
            }
        }
    }
}

/// Without an error, the message is in the transaction.
fn stored(dispatched: Dispatched, is_submitted: bool) -> Result<Dispatched, DispatchError> {
    if is_submitted {
        return Ok(dispatched);
    }
    let message_type = dispatched.envelope().message_type().to_owned();
    let why = "no middleware of the bus has sent it: it was handled, or taken, at once".to_owned();
    Err(DispatchError::NotInTransaction { message_type, why })
}
