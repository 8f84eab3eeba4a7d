//! The dialect that SQLite and PostgreSQL share: their parameters have numbers (`?1`, `$1`), so that the statements of
//! both take the same arguments in the same order.

use sqlx::SqlStr;

use super::dialect::{Dialect, Request};
use super::row::{Content, text};
use super::schema::Part;
use super::{NotEnlisted, Timestamp};
use crate::connection::sql::{CallersConnection, Row, SqlConnection, Statement, Value};

/// The statements of a table. What each of them returns is said at the method of [`Dialect`] that it serves. The first
/// arguments, from 1 on, are one of these:
///
/// - *at a time*: queue, now, cutoff
/// - *with content*: body, headers, queue
/// - *of ids*: ids, queue
pub(crate) struct Queries {
    /// It has its arguments already.
    pub(super) is_set_up: Statement,
    /// It has its arguments already.
    pub(super) columns: Statement,
    /// With content, now, due.
    pub(super) send: SqlStr,
    /// At a time, limit.
    pub(super) receive: SqlStr,
    /// At a time, the cap. The last two of its columns are zero.
    pub(super) count_pending: SqlStr,
    /// At a time, the cap.
    pub(super) count_all: SqlStr,
    /// At a time.
    pub(super) next_due: SqlStr,
    /// Queue, cutoff, the id to start after, limit.
    pub(super) list: SqlStr,
    /// Queue, cutoff, id.
    pub(super) find: SqlStr,
    /// At a time, id.
    pub(super) take: SqlStr,
    /// Of ids.
    pub(super) delete: SqlStr,
    /// Of ids, the time they were received.
    pub(super) release: SqlStr,
    /// Of ids, the time they were received, now.
    pub(super) keep_alive: SqlStr,
    /// Queue, now.
    pub(super) resume: SqlStr,
    /// With content, id, due.
    pub(super) retry: SqlStr,
    /// With content, id, now, the other queue.
    pub(super) move_within: SqlStr,
}

/// A dialect with numbered parameters. What has the name of a method of [`Dialect`] does the same as that.
pub(crate) trait Numbered: Sized + Send + Sync + 'static {
    type Connection: SqlConnection;

    const IS_CREATED_APART: bool;

    fn queries(&self) -> &Queries;
    fn queue(&self) -> &str;

    fn set_up(&self) -> Request<Self>;
    fn schema(&self) -> Vec<String>;
    fn parts(&self) -> Vec<Part>;
    fn alter(&self, step: &[String]) -> Request<Self>;
    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request<Self>;
    fn send_in(
        &self,
        connection: CallersConnection<'_>,
        send: Statement,
        create: bool,
    ) -> impl Future<Output = Result<Vec<Row>, NotEnlisted>> + Send;
    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self>;
    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request<Self>;

    fn body(body: &[u8]) -> Result<Value, &'static str> {
        text(body).map(Value::from)
    }

    /// A statement at a time.
    fn at(&self, sql: &SqlStr, now: Timestamp, cutoff: Timestamp) -> Statement {
        Statement::of(sql).bind(self.queue()).bind(now.text()).bind(cutoff.text())
    }

    /// A statement with content.
    fn with_content(&self, sql: &SqlStr, content: Content) -> Statement {
        Statement::of(sql).bind(content.body).bind(content.headers).bind(self.queue())
    }

    /// The statement that stores a message.
    fn send_statement(&self, content: Content, now: Timestamp, due: Timestamp) -> Statement {
        self.with_content(&self.queries().send, content).bind(now.text()).bind(due.text())
    }

    /// A statement of ids.
    fn of(&self, sql: &SqlStr, ids: &[i64]) -> Statement {
        Statement::of(sql).bind(ids).bind(self.queue())
    }
}

impl<D: Numbered> Dialect for D {
    type Connection = <D as Numbered>::Connection;

    const IS_CREATED_APART: bool = <D as Numbered>::IS_CREATED_APART;

    fn is_set_up(&self) -> Request<Self> {
        self.queries().is_set_up.clone().into()
    }

    fn set_up(&self) -> Request<Self> {
        Numbered::set_up(self)
    }

    fn schema(&self) -> Vec<String> {
        Numbered::schema(self)
    }

    fn columns(&self) -> Request<Self> {
        self.queries().columns.clone().into()
    }

    fn parts(&self) -> Vec<Part> {
        Numbered::parts(self)
    }

    fn alter(&self, step: &[String]) -> Request<Self> {
        Numbered::alter(self, step)
    }

    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request<Self> {
        self.send_statement(content, now, due).into()
    }

    fn send_in(
        &self,
        connection: CallersConnection<'_>,
        content: Content,
        now: Timestamp,
        due: Timestamp,
        create: bool,
    ) -> impl Future<Output = Result<Vec<Row>, NotEnlisted>> + Send {
        Numbered::send_in(self, connection, self.send_statement(content, now, due), create)
    }

    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request<Self> {
        Numbered::send_all(self, messages, now)
    }

    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self> {
        Numbered::receive(self, up_to, now, cutoff)
    }

    fn count(&self, cap: i64, all: bool, now: Timestamp, cutoff: Timestamp) -> Request<Self> {
        let sql = if all { &self.queries().count_all } else { &self.queries().count_pending };
        self.at(sql, now, cutoff).bind(cap).into()
    }

    fn next_due(&self, now: Timestamp, cutoff: Timestamp) -> Request<Self> {
        self.at(&self.queries().next_due, now, cutoff).into()
    }

    fn list(&self, after: i64, limit: i64, cutoff: Timestamp) -> Request<Self> {
        let statement = Statement::of(&self.queries().list).bind(self.queue()).bind(cutoff.text());
        statement.bind(after).bind(limit).into()
    }

    fn find(&self, id: i64, cutoff: Timestamp) -> Request<Self> {
        Statement::of(&self.queries().find).bind(self.queue()).bind(cutoff.text()).bind(id).into()
    }

    fn take(&self, id: i64, now: Timestamp, cutoff: Timestamp) -> Request<Self> {
        self.at(&self.queries().take, now, cutoff).bind(id).into()
    }

    fn finish(&self, ids: &[i64]) -> Request<Self> {
        self.of(&self.queries().delete, ids).into()
    }

    fn release(&self, ids: &[i64], received_at: &str) -> Request<Self> {
        self.of(&self.queries().release, ids).bind(received_at).into()
    }

    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Timestamp) -> Request<Self> {
        self.of(&self.queries().keep_alive, ids).bind(received_at).bind(now.text()).into()
    }

    fn resume(&self, now: Timestamp) -> Request<Self> {
        Statement::of(&self.queries().resume).bind(self.queue()).bind(now.text()).into()
    }

    fn retry(&self, id: i64, content: Content, due: Timestamp) -> Request<Self> {
        self.with_content(&self.queries().retry, content).bind(id).bind(due.text()).into()
    }

    fn move_within(&self, id: i64, content: Content, now: Timestamp, queue: &str) -> Request<Self> {
        self.with_content(&self.queries().move_within, content).bind(id).bind(now.text()).bind(queue).into()
    }

    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request<Self> {
        Numbered::move_to(self, id, content, now, table, queue)
    }

    fn body(body: &[u8]) -> Result<Value, &'static str> {
        <D as Numbered>::body(body)
    }
}
