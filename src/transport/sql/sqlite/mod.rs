//! `sqlite:`: a queue in a table of an SQLite file, the same table that Symfony Messenger's Doctrine transport uses.
//!
//! Any number of processes may send and receive at once. A message is received by marking its row (`delivered_at`) and
//! acknowledged by deleting it; both are single statements, so there is no instant at which a killed process leaves
//! something half done. What a killed consumer had in flight is pending again after `redeliver_timeout`.

mod queries;
mod row;
mod waking;

use std::path::PathBuf;
use std::str;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use self::queries::Queries;
use self::row::{ReadRow, bind_message, first_id};
use super::super::{
    Counting, Counts, Delivery, Factory, FactoryContext, KeepingAlive, Listed, Listing, MessageId, Moving, Parking,
    Place, Receipt, Received, Receiver, Releasing, Retrying, Sender, Sent, SettingUp, Transport, TransportError,
    TransportSpec, registry,
};
use super::{QueueOptions, RECEIPT_REPEATS, Timestamp, by_receipt, time_from_text};
use crate::config::{Definition, Problem};
use crate::connection::Connections;
use crate::connection::sql::sqlite::{Database, DatabaseError, Statement, path};
use crate::message::Encoded;

/// A queue in an SQLite file.
pub(crate) struct Sqlite {
    name: String,
    options: QueueOptions,
    database: Arc<Database>,
    queries: Queries,
}

impl Sqlite {
    fn new(name: &str, options: QueueOptions, database: Arc<Database>) -> Self {
        let queries = Queries::new(&options.table);
        Self { name: name.to_owned(), options, database, queries }
    }

    /// Reads or changes rows. None when there are no rows to read or change yet: the table is missing, and is going to
    /// be created by the first message.
    async fn run(&self, action: &'static str, statement: Statement) -> Result<Option<Vec<SqliteRow>>, TransportError> {
        match self.database.run(statement).await {
            Ok(rows) => Ok(Some(rows)),
            Err(error) if error.is_missing(&self.options.table) && self.options.auto_setup => Ok(None),
            Err(error) => Err(self.error(action, error)),
        }
    }

    /// Deletes the rows of these messages; those in other queues, or gone, are passed over.
    async fn delete(&self, action: &'static str, ids: &[MessageId]) -> Result<(), TransportError> {
        let numbers: Vec<i64> = ids.iter().filter_map(number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        self.run(action, self.of(&self.queries.delete, numbers)).await.map(drop)
    }

    /// Ids and queue: `?1`, `?2`.
    fn of(&self, sql: &str, ids: Vec<i64>) -> Statement {
        Statement::new(sql).bind(serde_json::Value::from(ids).to_string()).bind(&self.options.queue)
    }

    /// Queue, now, and the time before which messages in flight have been so for too long: `?1`, `?2`, `?3`.
    fn at(&self, sql: &str, now: Timestamp) -> Statement {
        let cutoff = now.before(self.options.redeliver_timeout);
        Statement::new(sql).bind(&self.options.queue).bind(now.text()).bind(cutoff.text())
    }

    async fn create_table(&self) -> Result<(), DatabaseError> {
        match self.has_table().await {
            Ok(true) => return Ok(()),
            Ok(false) | Err(DatabaseError::NoFile(_)) => {}
            Err(error) => return Err(error),
        }
        let statements = self.queries.create_table.each_ref().map(Statement::new);
        match self.database.create(&statements).await {
            Ok(_) => Ok(()),
            // Somebody else was faster, and that is as good.
            Err(error) => {
                if self.has_table().await.unwrap_or(false) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    async fn has_table(&self) -> Result<bool, DatabaseError> {
        let statement = Statement::new(queries::HAS_TABLE).bind(&self.options.table);
        Ok(!self.database.run(statement).await?.is_empty())
    }

    fn error(&self, action: &'static str, error: DatabaseError) -> TransportError {
        let file = self.database.path().display();
        match error {
            DatabaseError::NoFile(_) => {
                TransportError::NotSetUp { transport: self.name.clone(), what: format!("the database {file}") }
            }
            error if error.is_missing(&self.options.table) => TransportError::NotSetUp {
                transport: self.name.clone(),
                what: format!("table \"{}\" in {file}", self.options.table),
            },
            error => TransportError::store(&self.name, action, error),
        }
    }

    fn unreadable(&self, action: &'static str, source: sqlx::Error) -> TransportError {
        self.error(action, DatabaseError::Sqlite { path: self.database.path().to_owned(), source })
    }
}

#[async_trait]
impl Sender for Sqlite {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let action = "sending";
        let now = Timestamp::now();
        let statement = bind_message(Statement::new(&self.queries.send), message)
            .bind(&self.options.queue)
            .bind(now.text())
            .bind(now.after(delay).text());
        let rows = match self.database.run(statement.clone()).await {
            Err(error) if error.is_missing(&self.options.table) && self.options.auto_setup => {
                self.create_table().await.map_err(|error| self.error("creating the table", error))?;
                self.database.run(statement).await
            }
            result => result,
        };
        let rows = rows.map_err(|error| self.error(action, error))?;
        let id = first_id(&rows).map_err(|error| self.unreadable(action, error))?;
        Ok(Sent::Queued { transport: self.name.clone(), id, reason: None })
    }
}

#[async_trait]
impl Receiver for Sqlite {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        let now = Timestamp::now();
        // Looking first keeps idle workers from taking the write lock, which others have a use for.
        let any = self.run(action, self.at(&self.queries.any_due, now)).await?;
        if any.is_none_or(|rows| rows.is_empty()) {
            return Ok(vec![]);
        }
        let statement = self.at(&self.queries.receive, now).bind(limit(up_to));
        let rows = self.run(action, statement).await?.unwrap_or_default();
        let mut messages = rows.iter().map(ReadRow::read).collect::<Result<Vec<_>, _>>();
        if let Ok(messages) = &mut messages {
            // RETURNING has an order of its own.
            messages.sort_by(|a, b| (&a.available_at, a.id).cmp(&(&b.available_at, b.id)));
        }
        let messages = messages.map_err(|error| self.unreadable(action, error))?;
        Ok(messages.into_iter().map(|row| row.received(now.receipt())).collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.delete("acknowledging", ids).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.delete("rejecting", ids).await
    }
}

#[async_trait]
impl Counting for Sqlite {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(&self.queries.count_pending, cap).await.map(|counts| counts.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(&self.queries.count_all, cap).await
    }
}

impl Sqlite {
    async fn count(&self, sql: &str, cap: u64) -> Result<Counts, TransportError> {
        let action = "counting";
        let statement = self.at(sql, Timestamp::now()).bind(i64::try_from(cap).unwrap_or(i64::MAX));
        let mut counts = Counts::default();
        for row in self.run(action, statement).await?.unwrap_or_default() {
            let number = |column| row.try_get::<i64, _>(column).map(|number| u64::try_from(number).unwrap_or(0));
            let read =
                || Ok(Counts { pending: cap.min(number(0)? + number(1)?), delayed: number(2)?, in_flight: number(3)? });
            counts = read().map_err(|error| self.unreadable(action, error))?;
        }
        Ok(counts)
    }

    async fn look(&self, statement: Statement) -> Result<Vec<Listed>, TransportError> {
        let action = "listing";
        let rows = self.run(action, statement).await?.unwrap_or_default();
        let listed = rows.iter().map(|row| {
            let in_flight = row.try_get("in_flight")?;
            let row = ReadRow::read(row)?;
            let available_at = str::from_utf8(&row.available_at).ok().and_then(time_from_text);
            Ok(Listed { available_at, in_flight, received: row.received(Receipt::default()) })
        });
        listed.collect::<Result<_, _>>().map_err(|error| self.unreadable(action, error))
    }
}

#[async_trait]
impl SettingUp for Sqlite {
    async fn setup(&self) -> Result<(), TransportError> {
        self.create_table().await.map_err(|error| self.error("creating the table", error))
    }
}

#[async_trait]
impl Listing for Sqlite {
    async fn list(&self, after: Option<&MessageId>, up_to: usize) -> Result<Vec<Listed>, TransportError> {
        // Ids start at 1. Nothing comes after what was never an id.
        let Some(after) = after.map_or(Some(0), number) else { return Ok(vec![]) };
        self.look(self.at(&self.queries.list, Timestamp::now()).bind(after).bind(limit(up_to))).await
    }

    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError> {
        let Some(id) = number(id) else { return Ok(None) };
        Ok(self.look(self.at(&self.queries.find, Timestamp::now()).bind(id)).await?.pop())
    }
}

#[async_trait]
impl Releasing for Sqlite {
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        for (received_at, ids) in by_receipt(deliveries) {
            self.run("releasing", self.of(&self.queries.release, ids).bind(received_at)).await?;
        }
        Ok(())
    }

    fn receipt_repeats_within(&self) -> Duration {
        RECEIPT_REPEATS
    }
}

#[async_trait]
impl Parking for Sqlite {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        Ok(self.counts(cap).await?.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        let statement = Statement::new(&self.queries.resume).bind(&self.options.queue).bind(Timestamp::now().text());
        self.run("resuming parked messages", statement).await.map(drop)
    }
}

#[async_trait]
impl KeepingAlive for Sqlite {
    fn redeliver_timeout(&self) -> Duration {
        self.options.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], now: SystemTime) -> Result<(), TransportError> {
        for (received_at, ids) in by_receipt(deliveries) {
            let statement = self.of(&self.queries.keep_alive, ids).bind(received_at).bind(Timestamp::at(now).text());
            self.run("keeping alive", statement).await?;
        }
        Ok(())
    }

    fn receipt_at(&self, now: SystemTime) -> Option<Receipt> {
        Some(Timestamp::at(now).receipt())
    }
}

#[async_trait]
impl Retrying for Sqlite {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let Some(id) = number(id) else { return Ok(()) };
        let statement = bind_message(Statement::new(&self.queries.retry), message)
            .bind(&self.options.queue)
            .bind(id)
            .bind(Timestamp::now().after(delay).text());
        self.run("retrying", statement).await.map(drop)
    }
}

#[async_trait]
impl Moving for Sqlite {
    /// Within one table the message keeps its id.
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError> {
        let Some(destination) = destination.get::<TablePlace>().filter(|place| place.file == self.database.path())
        else {
            return Ok(None);
        };
        let Some(number) = number(id) else { return Ok(Some(id.clone())) };
        let within_table = destination.table == self.options.table;
        let bind = |sql: &str| {
            bind_message(Statement::new(sql), message)
                .bind(&self.options.queue)
                .bind(number)
                .bind(Timestamp::now().text())
                .bind(&destination.queue)
        };
        let moved = if within_table {
            self.database.run(bind(&self.queries.move_within)).await
        } else {
            let insert = bind(&self.queries.copy_into(&destination.table));
            let numbers = serde_json::Value::from(vec![number]).to_string();
            let delete = Statement::new(&self.queries.delete).bind(numbers).bind(&self.options.queue);
            self.database.run_together(&[insert, delete]).await
        };
        match moved {
            Ok(rows) if rows.is_empty() => Ok(Some(id.clone())),
            Ok(rows) => first_id(&rows).map(Some).map_err(|error| self.unreadable("moving", error)),
            // Sending to it creates it, where that is allowed.
            Err(error) if !within_table && error.is_missing(&destination.table) => Ok(None),
            Err(error) => Err(self.error("moving", error)),
        }
    }

    fn place(&self) -> Place {
        Place::new(TablePlace {
            file: self.database.path().to_owned(),
            table: self.options.table.clone(),
            queue: self.options.queue.clone(),
        })
    }
}

/// Where a queue is.
#[derive(Debug)]
struct TablePlace {
    file: PathBuf,
    table: String,
    queue: String,
}

impl Sqlite {
    fn into_transport(self) -> Transport {
        let queue = Arc::new(self);
        let mut transport = Transport::queue(&queue.name, Arc::clone(&queue));
        transport.counting = Some(queue.clone());
        transport.setting_up = Some(queue.clone());
        transport.listing = Some(queue.clone());
        transport.releasing = Some(queue.clone());
        transport.keeping_alive = Some(queue.clone());
        transport.parking = Some(queue.clone());
        transport.waking = Some(queue.clone());
        transport.retrying = Some(queue.clone());
        transport.moving = Some(queue);
        transport
    }
}

fn number(id: &MessageId) -> Option<i64> {
    id.0.parse().ok()
}

fn limit(up_to: usize) -> i64 {
    i64::try_from(up_to).unwrap_or(i64::MAX)
}

/// Makes the transports of `sqlite:`. Those on one file share one connection.
#[derive(Default)]
pub struct SqliteFactory {
    connections: Connections,
}

impl SqliteFactory {
    pub(in crate::transport) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

impl Factory for SqliteFactory {
    fn schemes(&self) -> &'static [&'static str] {
        registry::SQLITE
    }

    fn options(&self) -> Vec<Definition> {
        super::options::OPTIONS.to_vec()
    }

    fn create(&self, spec: &TransportSpec, context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let queue = QueueOptions::read(&mut options);
        let path = path(spec, &context.project_dir);
        if let Err(problem) = &path {
            options.push(problem.clone());
        }
        options.finish()?;
        let path = path.map_err(|problem| vec![problem])?;
        Ok(Sqlite::new(&spec.name, queue, self.connections.sqlite(path)).into_transport())
    }
}
