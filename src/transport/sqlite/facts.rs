//! The cache in an SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row;

use super::super::sql_facts::{Argument, FactRow, Failed, Statements, Words};
use super::database::{Database, DatabaseError, Statement};

pub(super) const WORDS: Words = Words {
    now: "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    key: "TEXT",
    value: "TEXT",
    time: "INTEGER",
    numbered: true,
    on_conflict: true,
    quote: '"',
};

/// Statements for facts, in a file.
pub(super) struct Facts {
    pub(super) database: Arc<Database>,
    pub(super) table: String,
}

impl Facts {
    fn failed(&self, error: DatabaseError) -> Failed {
        if error.is_missing(&self.table) { Failed::Missing } else { Failed::Otherwise(Box::new(error)) }
    }
}

#[async_trait]
impl Statements for Facts {
    fn place(&self) -> String {
        self.database.path().display().to_string()
    }

    async fn run(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<FactRow>, Failed> {
        let mut statement = Statement::new(sql);
        for argument in arguments {
            statement = match argument {
                Argument::Text(text) => statement.bind(text),
                Argument::Number(number) => statement.bind(number),
            };
        }
        let rows = self.database.run(statement).await.map_err(|error| self.failed(error))?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            Ok(FactRow { key: row.try_get(0)?, value: row.try_get(1)?, age: row.try_get(2)?, left: row.try_get(3)? })
        };
        let rows: Result<Vec<FactRow>, sqlx::Error> = rows.iter().map(read).collect();
        rows.map_err(|error| Failed::Otherwise(Box::new(error)))
    }

    async fn create(&self, sql: &str) -> Result<(), Failed> {
        self.database.create(&[Statement::new(sql)]).await.map(drop).map_err(|error| self.failed(error))
    }
}
