//! A queue in a table: the transport that SQLite, PostgreSQL and MySQL share.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::super::{
    Counting, Counts, Delivery, KeepingAlive, Listed, Listing, MessageId, Moving, Parking, Place, Receipt, Received,
    Receiver, Releasing, Retrying, SettingUp, Taking, Transport, TransportError,
};
use super::dialect::{Dialect, Request};
use super::row::{Content, Stored};
use super::{NEVER, QueueOptions, RECEIPT_REPEATS, Timestamp, by_receipt, time_from_text};
use crate::connection::sql::{Fault, Row, SqlConnection, SqlError};
use crate::message::{Encoded, headers_to_json};

/// What is done when a table is created.
pub(super) const SETTING_UP: &str = "setting up";

/// A queue in a table.
pub(crate) struct Table<D: Dialect> {
    pub(super) name: String,
    pub(super) options: QueueOptions,
    pub(super) connection: Arc<D::Connection>,
    pub(super) dialect: D,
    /// Whether the table was seen, by a message that is stored in a caller's transaction.
    pub(super) is_created: AtomicBool,
}

impl<D: Dialect> Table<D> {
    pub(super) fn new(name: &str, options: QueueOptions, connection: Arc<D::Connection>, dialect: D) -> Self {
        Self { name: name.to_owned(), options, connection, dialect, is_created: AtomicBool::new(false) }
    }

    /// Reads or changes rows. `None` if the table is missing, and will be created with the first message.
    pub(super) async fn run(
        &self,
        action: &'static str,
        request: Request<D>,
    ) -> Result<Option<Vec<Row>>, TransportError> {
        match self.connection.perform(request).await {
            Ok(rows) => Ok(Some(rows)),
            Err(error) if error.is_missing() && self.options.auto_setup => Ok(None),
            Err(error) => Err(self.error(action, error)),
        }
    }

    /// Creates the table if it is missing.
    pub(super) async fn set_up(&self) -> Result<(), TransportError> {
        // If the table cannot be created, report that, and not that it is missing.
        self.create().await.map_err(|error| TransportError::store(&self.name, SETTING_UP, error))
    }

    /// Creates what is missing.
    pub(super) async fn create(&self) -> Result<(), SqlError> {
        if self.is_set_up().await? {
            return Ok(());
        }
        match self.connection.perform(self.dialect.set_up()).await {
            Ok(_) => Ok(()),
            // Another process may have created it first.
            Err(error) => {
                if self.is_set_up().await.unwrap_or(false) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    pub(super) async fn is_set_up(&self) -> Result<bool, SqlError> {
        match self.connection.perform(self.dialect.is_set_up()).await {
            Ok(rows) => Ok(!rows.is_empty()),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn error(&self, action: &'static str, error: SqlError) -> TransportError {
        let location = self.connection.location();
        let what = match error.fault() {
            Fault::NoFile => format!("the database {location}"),
            Fault::Missing => format!("table \"{}\" in {location}", self.options.table),
            _ => return TransportError::store(&self.name, action, error),
        };
        TransportError::NotSetUp { transport: self.name.clone(), what }
    }

    pub(super) fn unreadable(&self, action: &'static str, error: sqlx::Error) -> TransportError {
        self.error(action, self.connection.error(error))
    }

    /// The message in the form of the columns.
    pub(super) fn content(&self, message: &Encoded) -> Result<Content, TransportError> {
        let unstorable = |what: &str| {
            let why = format!("the body {what}, which a text column cannot hold; use JSON or base64");
            TransportError::Unstorable { transport: self.name.clone(), why }
        };
        let body = D::body(&message.body).map_err(unstorable)?;
        Ok(Content { body, headers: headers_to_json(&message.headers) })
    }

    /// Notifies consumers that wait for messages in this queue.
    pub(super) fn notify(&self) {
        self.dialect.notify(&self.options.table, &self.options.queue);
    }

    /// How long it is until a message becomes due, or due again, without a notification. Zero if that has happened
    /// since the query.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(super) async fn time_to_next_due(&self, action: &'static str) -> Result<Duration, TransportError> {
        match self.next_due(action).await? {
            Some(mut row) => self.time_to_due(action, &mut row),
            None => Ok(NEVER),
        }
    }

    /// The result of [`Dialect::next_due`].
    pub(super) async fn next_due(&self, action: &'static str) -> Result<Option<Row>, TransportError> {
        let now = Timestamp::now();
        let rows = self.run(action, self.dialect.next_due(now, self.cutoff(now))).await?;
        Ok(rows.and_then(|mut rows| rows.pop()))
    }

    /// How long it is until the earlier of the times in this result.
    pub(super) fn time_to_due(&self, action: &'static str, row: &mut Row) -> Result<Duration, TransportError> {
        let mut time = |field| {
            let text = row.take_text(field).map_err(|error| self.unreadable(action, error))?;
            Ok::<_, TransportError>(std::str::from_utf8(&text).ok().and_then(time_from_text))
        };
        // A second more, because messages must have been received *before* the cutoff.
        let again = self.options.redeliver_timeout + Duration::from_secs(1);
        let (due, received) = (time(0)?, time(1)?);
        let next = due.into_iter().chain(received.and_then(|received| received.checked_add(again))).min();
        Ok(next.map_or(NEVER, |next| next.duration_since(SystemTime::now()).unwrap_or_default()))
    }

    fn cutoff(&self, now: Timestamp) -> Timestamp {
        now.before(self.options.redeliver_timeout)
    }

    /// Changes the rows of these messages.
    async fn change(
        &self,
        action: &'static str,
        ids: &[MessageId],
        request: impl FnOnce(&[i64]) -> Request<D>,
    ) -> Result<(), TransportError> {
        let numbers: Vec<i64> = ids.iter().filter_map(number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        self.run(action, request(&numbers)).await.map(drop)
    }
}

#[async_trait]
impl<D: Dialect> Receiver for Table<D> {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        if up_to == 0 {
            return Ok(vec![]);
        }
        let now = Timestamp::now();
        let request = self.dialect.receive(limit(up_to), now, self.cutoff(now));
        let rows = self.run(action, request).await?.unwrap_or_default();
        let messages = rows.into_iter().map(Stored::read).collect::<Result<Vec<_>, _>>();
        let mut messages = messages.map_err(|error| self.unreadable(action, error))?;
        messages.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(messages.into_iter().map(|stored| stored.received(now.receipt())).collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.change("acknowledging", ids, |ids| self.dialect.finish(ids)).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.change("rejecting", ids, |ids| self.dialect.finish(ids)).await
    }
}

#[async_trait]
impl<D: Dialect> Counting for Table<D> {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap, false).await.map(|counts| counts.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(cap, true).await
    }
}

impl<D: Dialect> Table<D> {
    async fn count(&self, cap: u64, all: bool) -> Result<Counts, TransportError> {
        let action = "counting";
        let now = Timestamp::now();
        let request = self.dialect.count(i64::try_from(cap).unwrap_or(i64::MAX), all, now, self.cutoff(now));
        let Some(row) = self.run(action, request).await?.and_then(|mut rows| rows.pop()) else {
            return Ok(Counts::default());
        };
        let number = |field| row.number(field).map(|number| u64::try_from(number).unwrap_or(0));
        let read =
            || Ok(Counts { pending: cap.min(number(0)? + number(1)?), delayed: number(2)?, in_flight: number(3)? });
        read().map_err(|error| self.unreadable(action, error))
    }

    async fn look(&self, request: Request<D>) -> Result<Vec<Listed>, TransportError> {
        let action = "listing";
        let rows = self.run(action, request).await?.unwrap_or_default();
        let listed = rows.into_iter().map(|row| {
            let in_flight = row.number(4)? != 0;
            Stored::read(row).map(|stored| stored.listed(in_flight))
        });
        listed.collect::<Result<_, _>>().map_err(|error| self.unreadable(action, error))
    }
}

#[async_trait]
impl<D: Dialect> SettingUp for Table<D> {
    async fn setup(&self) -> Result<(), TransportError> {
        self.set_up().await
    }
}

#[async_trait]
impl<D: Dialect> Listing for Table<D> {
    async fn list(&self, after: Option<&MessageId>, up_to: usize) -> Result<Vec<Listed>, TransportError> {
        // Ids start at 1. Nothing comes after something that was never an id.
        let Some(after) = after.map_or(Some(0), number) else { return Ok(vec![]) };
        self.look(self.dialect.list(after, limit(up_to), self.cutoff(Timestamp::now()))).await
    }

    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError> {
        let Some(id) = number(id) else { return Ok(None) };
        Ok(self.look(self.dialect.find(id, self.cutoff(Timestamp::now()))).await?.pop())
    }
}

#[async_trait]
impl<D: Dialect> Taking for Table<D> {
    async fn take(&self, id: &MessageId) -> Result<Option<Received>, TransportError> {
        let action = "receiving";
        let Some(id) = number(id) else { return Ok(None) };
        let now = Timestamp::now();
        let rows = self.run(action, self.dialect.take(id, now, self.cutoff(now))).await?;
        let Some(row) = rows.and_then(|mut rows| rows.pop()) else { return Ok(None) };
        let stored = Stored::read(row).map_err(|error| self.unreadable(action, error))?;
        Ok(Some(stored.received(now.receipt())))
    }
}

#[async_trait]
impl<D: Dialect> Releasing for Table<D> {
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        for (received_at, ids) in by_receipt(deliveries) {
            self.run("releasing", self.dialect.release(&ids, received_at)).await?;
        }
        self.notify();
        Ok(())
    }

    fn receipt_repeats_within(&self) -> Duration {
        RECEIPT_REPEATS
    }
}

#[async_trait]
impl<D: Dialect> Parking for Table<D> {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        Ok(self.counts(cap).await?.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        self.run("resuming parked messages", self.dialect.resume(Timestamp::now())).await?;
        self.notify();
        Ok(())
    }
}

#[async_trait]
impl<D: Dialect> KeepingAlive for Table<D> {
    fn redeliver_timeout(&self) -> Duration {
        self.options.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], now: SystemTime) -> Result<(), TransportError> {
        for (received_at, ids) in by_receipt(deliveries) {
            self.run("keeping alive", self.dialect.keep_alive(&ids, received_at, Timestamp::at(now))).await?;
        }
        Ok(())
    }

    fn receipt_at(&self, now: SystemTime) -> Option<Receipt> {
        Some(Timestamp::at(now).receipt())
    }
}

#[async_trait]
impl<D: Dialect> Retrying for Table<D> {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let action = "retrying";
        let Some(id) = number(id) else { return Ok(()) };
        let content = self.content(message)?;
        self.run(action, self.dialect.retry(id, content, Timestamp::now().after(delay))).await?;
        self.notify();
        Ok(())
    }
}

#[async_trait]
impl<D: Dialect> Moving for Table<D> {
    /// Within one table the message keeps its id.
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError> {
        let action = "moving";
        let same_database = |place: &&TablePlace<D>| place.database == self.connection.location();
        let Some(destination) = destination.get::<TablePlace<D>>().filter(same_database) else { return Ok(None) };
        let Some(number) = number(id) else { return Ok(Some(id.clone())) };
        let content = self.content(message)?;
        let (now, TablePlace { table, queue, .. }) = (Timestamp::now(), destination);
        if *table == self.options.table {
            self.run(action, self.dialect.move_within(number, content, now, queue)).await?;
            self.dialect.notify(table, queue);
            return Ok(Some(id.clone()));
        }
        match self.connection.perform(self.dialect.move_to(number, content, now, table, queue)).await {
            Ok(rows) if rows.is_empty() => Ok(Some(id.clone())),
            Ok(rows) => {
                self.dialect.notify(table, queue);
                first_id(&rows).map(Some).map_err(|error| self.unreadable(action, error))
            }
            // Sending creates the table, if that is allowed.
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(self.error(action, error)),
        }
    }

    fn place(&self) -> Place {
        Place::new(TablePlace::<D> {
            database: self.connection.location().to_owned(),
            table: self.options.table.clone(),
            queue: self.options.queue.clone(),
            dialect: PhantomData,
        })
    }
}

/// The location of a queue.
struct TablePlace<D> {
    /// The server and the database, or the file.
    database: String,
    table: String,
    queue: String,
    /// Databases of different kinds may have the same name.
    dialect: PhantomData<fn() -> D>,
}

impl<D> fmt::Debug for TablePlace<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {:?} of table {:?} in {}", self.queue, self.table, self.database)
    }
}

impl<D: Dialect> Table<D> {
    /// The transport, with the capabilities that every table has.
    pub(super) fn transport(self: &Arc<Self>) -> Transport {
        let mut transport = Transport::queue(&self.name, Arc::clone(self));
        transport.counting = Some(self.clone());
        transport.setting_up = Some(self.clone());
        transport.migrating = Some(self.clone());
        transport.listing = Some(self.clone());
        transport.taking = Some(self.clone());
        transport.releasing = Some(self.clone());
        transport.keeping_alive = Some(self.clone());
        transport.parking = Some(self.clone());
        transport.retrying = Some(self.clone());
        transport.moving = Some(self.clone());
        transport.enlisting = Some(self.clone());
        transport
    }
}

fn number(id: &MessageId) -> Option<i64> {
    id.0.parse().ok()
}

fn limit(up_to: usize) -> i64 {
    i64::try_from(up_to).unwrap_or(i64::MAX)
}

pub(super) fn first_id(rows: &[Row]) -> Result<MessageId, sqlx::Error> {
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(MessageId(row.number(0)?.to_string()))
}
