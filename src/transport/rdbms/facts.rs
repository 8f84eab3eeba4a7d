//! The cache on a database server, over the connection that the process's transports there have.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::super::sql_facts::{Argument, FactRow, Failed, Statements};
use super::{Fault, Link, Row, ServerError, Session, Statement, Value};

/// Statements for facts, over a link.
pub(crate) struct Facts<S: Session> {
    pub(crate) link: Arc<Link<S>>,
    /// How a statement is asked for.
    pub(crate) request: fn(Statement) -> S::Request,
}

impl<S: Session> Facts<S> {
    async fn perform(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<Row>, Failed> {
        let mut statement = Statement::of(&AssertSqlSafe(sql.to_owned()).into_sql_str());
        for argument in arguments {
            statement = match argument {
                Argument::Text(text) => statement.bind(Value::Bytes(text.into_bytes())),
                Argument::Number(number) => statement.bind(number),
            };
        }
        self.link.perform((self.request)(statement)).await.map_err(|error| match error.fault() {
            Fault::Missing => Failed::Missing,
            _ => Failed::Otherwise(Box::new(error)),
        })
    }

    fn read(&self, mut row: Row) -> Result<FactRow, ServerError> {
        let mut read = || {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let (key, value) = (text(row.take_text(0)?), text(row.take_text(1)?));
            Ok(FactRow { key, value, age: row.number(2)?, left: row.number(3)? })
        };
        read().map_err(|error| self.link.error(error))
    }
}

#[async_trait]
impl<S: Session> Statements for Facts<S> {
    fn place(&self) -> String {
        self.link.place().to_owned()
    }

    async fn run(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<FactRow>, Failed> {
        let rows = self.perform(sql, arguments).await?;
        let rows: Result<Vec<FactRow>, ServerError> = rows.into_iter().map(|row| self.read(row)).collect();
        rows.map_err(|error| Failed::Otherwise(Box::new(error)))
    }

    async fn create(&self, sql: &str) -> Result<(), Failed> {
        self.perform(sql, Vec::new()).await.map(drop)
    }

    fn rest(&self) {
        self.link.rest();
    }
}
