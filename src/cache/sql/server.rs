//! The cache on a PostgreSQL or MySQL server.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::{Argument, EntryRow, Failed, SqlDatabase};
use crate::connection::sql::{Fault, Row, ServerError, Session, SharedConnection, Statement, Value};

/// A database on a server.
pub(super) struct Server<S: Session> {
    pub(super) connection: Arc<SharedConnection<S>>,
}

impl<S: Session> Server<S> {
    async fn perform(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<Row>, Failed> {
        let mut statement = Statement::of(&AssertSqlSafe(sql.to_owned()).into_sql_str());
        for argument in arguments {
            statement = match argument {
                Argument::Text(text) => statement.bind(Value::Bytes(text.into_bytes())),
                Argument::Number(number) => statement.bind(number),
            };
        }
        self.connection.perform(statement).await.map_err(|error| match error.fault() {
            Fault::Missing => Failed::Missing,
            _ => Failed::Otherwise(Box::new(error)),
        })
    }

    fn read(&self, mut row: Row) -> Result<EntryRow, ServerError> {
        let mut read = || {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let (key, value) = (text(row.take_text(0)?), text(row.take_text(1)?));
            Ok(EntryRow { key, value, age: row.number(2)?, left: row.number(3)? })
        };
        read().map_err(|error| self.connection.error(error))
    }
}

#[async_trait]
impl<S: Session> SqlDatabase for Server<S> {
    fn location(&self) -> String {
        self.connection.location().to_string()
    }

    async fn run(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<EntryRow>, Failed> {
        let rows = self.perform(sql, arguments).await?;
        let rows: Result<Vec<EntryRow>, ServerError> = rows.into_iter().map(|row| self.read(row)).collect();
        rows.map_err(|error| Failed::Otherwise(Box::new(error)))
    }

    async fn create(&self, sql: &str) -> Result<(), Failed> {
        self.perform(sql, Vec::new()).await.map(drop)
    }

    fn close_idle(&self) {
        self.connection.close_idle();
    }
}
