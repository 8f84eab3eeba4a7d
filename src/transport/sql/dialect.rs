//! What each kind of database has its own way for.

use super::Timestamp;
use super::row::{Content, text};
use crate::connection::sql::{SqlConnection, Value};

/// The request type of a dialect.
pub(crate) type Request<D> = <<D as Dialect>::Connection as SqlConnection>::Request;

/// The requests that a queue in a table makes. `now` and `due` are as in the columns; what was received before `cutoff`
/// has been in flight for too long. Ids that are not in the queue, or finished, are passed over.
pub(crate) trait Dialect: Sized + Send + Sync + 'static {
    /// What the requests are for.
    type Connection: SqlConnection;

    /// Gives a row if the table is there, with all that belongs to it.
    fn is_set_up(&self) -> Request<Self>;
    /// Creates what is missing.
    fn set_up(&self) -> Request<Self>;
    /// Gives the id.
    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request<Self>;
    /// Gives rows for [`Content`], in any order.
    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Gives how many were never received, have been in flight for too long, are delayed, and are in flight. The last
    /// two only if `all`.
    fn count(&self, cap: i64, all: bool, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Gives when the next delayed message is due, and when the one was received that has been in flight the longest.
    fn next_due(&self, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    /// Gives rows for [`Content`], with whether they are in flight, in the order of their ids.
    fn list(&self, after: i64, limit: i64, cutoff: Timestamp) -> Request<Self>;
    /// Gives a row as `list` does.
    fn find(&self, id: i64, cutoff: Timestamp) -> Request<Self>;
    /// Makes messages leave.
    fn finish(&self, ids: &[i64]) -> Request<Self>;
    /// Makes messages pending that are in flight since `received_at`.
    fn release(&self, ids: &[i64], received_at: &str) -> Request<Self>;
    /// Makes messages that are in flight since `received_at` be so from `now` on.
    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Timestamp) -> Request<Self>;
    /// Makes delayed messages due.
    fn resume(&self, now: Timestamp) -> Request<Self>;
    /// Replaces a message.
    fn retry(&self, id: i64, content: Content, due: Timestamp) -> Request<Self>;
    /// Replaces a message and moves it to another queue of the table.
    fn move_within(&self, id: i64, content: Content, now: Timestamp, queue: &str) -> Request<Self>;
    /// Moves a message, as `content`, to another table. Gives its id there.
    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request<Self>;

    /// A body as the table's column of text holds it, or what is in the way.
    fn body(body: &[u8]) -> Result<Value, &'static str> {
        text(body).map(Value::from)
    }

    /// A message in this queue has become pending or delayed: tells those who wait for it, where the request did not.
    fn notify(&self, _table: &str, _queue: &str) {}
}
