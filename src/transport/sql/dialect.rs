//! What differs between the kinds of databases.

use super::row::{Content, text};
use super::schema::Part;
use super::{NotEnlisted, Timestamp};
use crate::connection::sql::{CallersConnection, Row, SqlConnection, Value};

/// The request type of a dialect.
pub(crate) type Request<D> = <<D as Dialect>::Connection as SqlConnection>::Request;

/// Creates the requests of a queue in a table. `now` and `due` are as in the columns. Messages received before `cutoff`
/// have been in flight for too long. Ids that are not in the queue, or finished, are skipped.
pub(crate) trait Dialect: Sized + Send + Sync + 'static {
    /// The connection that the requests are for.
    type Connection: SqlConnection;

    /// Whether a table is created on a connection of our own, and not in a caller's transaction.
    const IS_CREATED_APART: bool;

    /// Returns a row if the table exists, with everything that belongs to it.
    fn is_set_up(&self) -> Request<Self>;
    /// Creates what is missing.
    fn set_up(&self) -> Request<Self>;
    /// The statements that create the table and everything that belongs to it in an empty database.
    fn schema(&self) -> Vec<String>;
    /// Returns a row with the name of each column of the table. None if the table is missing.
    fn columns(&self) -> Request<Self>;
    /// What belongs to the table besides its columns.
    fn parts(&self) -> Vec<Part>;
    /// Changes the schema by statements that are one step. May take long.
    fn alter(&self, step: &[String]) -> Request<Self>;
    /// Stores a message. Returns its id.
    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request<Self>;
    /// Stores messages, all or none. Returns their ids, ascending in the order of the messages.
    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request<Self>;
    /// Stores a message on a connection of the caller's. Returns its id. With `create`, a table that is created there is
    /// created if it is missing.
    fn send_in(
        &self,
        connection: CallersConnection<'_>,
        content: Content,
        now: Timestamp,
        due: Timestamp,
        create: bool,
    ) -> impl Future<Output = Result<Vec<Row>, NotEnlisted>> + Send;
    /// Receives messages. Returns a row for each, in any order.
    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Returns how many messages were never received, have been in flight for too long, are delayed, and are in flight.
    /// The last two only with `all`.
    fn count(&self, cap: i64, all: bool, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Returns when the next delayed message is due, and when the message was received that has been in flight the
    /// longest.
    fn next_due(&self, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Returns a row for each message, with whether it is in flight, in the order of their ids.
    fn list(&self, after: i64, limit: i64, cutoff: Timestamp) -> Request<Self>;
    /// Returns a row as in `list`.
    fn find(&self, id: i64, cutoff: Timestamp) -> Request<Self>;
    /// Receives one message, whether it is due or not. Returns a row as `receive` does; none if it is in flight.
    fn take(&self, id: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Finishes messages: they leave the queue.
    fn finish(&self, ids: &[i64]) -> Request<Self>;
    /// Makes messages pending that are in flight since `received_at`.
    fn release(&self, ids: &[i64], received_at: &str) -> Request<Self>;
    /// Sets the time at which messages in flight were received from `received_at` to `now`.
    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Timestamp) -> Request<Self>;
    /// Makes delayed messages due.
    fn resume(&self, now: Timestamp) -> Request<Self>;
    /// Replaces a message.
    fn retry(&self, id: i64, content: Content, due: Timestamp) -> Request<Self>;
    /// Replaces a message and moves it to another queue of the table.
    fn move_within(&self, id: i64, content: Content, now: Timestamp, queue: &str) -> Request<Self>;
    /// Moves a message, as `content`, to another table. Returns its id there.
    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request<Self>;

    /// A body in the form of the table's text column, or why the column cannot hold it.
    fn body(body: &[u8]) -> Result<Value, &'static str> {
        text(body).map(Value::from)
    }

    /// Notifies waiting consumers that a message in this queue has become pending or delayed, if the request did not do
    /// so.
    fn notify(&self, _table: &str, _queue: &str) {}
}
