//! The cache in an SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row;

use super::{Argument, EntryRow, Failed, SqlDatabase};
use crate::connection::sql::sqlite::{Database, DatabaseError, Statement};

/// A database file.
pub(super) struct SqliteFile {
    pub(super) database: Arc<Database>,
    pub(super) table: String,
}

impl SqliteFile {
    fn failed(&self, error: DatabaseError) -> Failed {
        if error.is_missing(&self.table) { Failed::Missing } else { Failed::Otherwise(Box::new(error)) }
    }
}

#[async_trait]
impl SqlDatabase for SqliteFile {
    fn location(&self) -> String {
        self.database.path().display().to_string()
    }

    async fn run(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<EntryRow>, Failed> {
        let mut statement = Statement::new(sql);
        for argument in arguments {
            statement = match argument {
                Argument::Text(text) => statement.bind(text),
                Argument::Number(number) => statement.bind(number),
            };
        }
        let rows = self.database.run(statement).await.map_err(|error| self.failed(error))?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            Ok(EntryRow { key: row.try_get(0)?, value: row.try_get(1)?, age: row.try_get(2)?, left: row.try_get(3)? })
        };
        let rows: Result<Vec<EntryRow>, sqlx::Error> = rows.iter().map(read).collect();
        rows.map_err(|error| Failed::Otherwise(Box::new(error)))
    }

    async fn create(&self, sql: &str) -> Result<(), Failed> {
        self.database.create(&[Statement::new(sql)]).await.map(drop).map_err(|error| self.failed(error))
    }
}
