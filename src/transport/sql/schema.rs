//! What a table consists of, and how one is brought up to date that Symfony or an earlier version has created.
//!
//! Its columns have been the same since Symfony 4.3, so a table that lacks one is not a table of messages. What it may
//! lack are the parts that a [`Dialect`] names: the index, and on PostgreSQL the trigger.

use std::time::Duration;

use async_trait::async_trait;

use super::super::{Migrating, SchemaChange, TransportError};
use super::Table;
use super::dialect::Dialect;
use crate::connection::sql::{SqlConnection, SqlError, Statement};

/// The columns of a table of messages.
const COLUMNS: [&str; 7] = ["id", "body", "headers", "queue_name", "created_at", "available_at", "delivered_at"];
/// How often a part is tried to be created.
const ATTEMPTS: u32 = 5;
/// How often to look whether another process has created it.
const PAUSE: Duration = Duration::from_millis(200);

/// A part of a table that may be missing.
pub(crate) struct Part {
    /// What it is: `index "messenger_messages_due"`.
    pub(super) name: String,
    /// Returns its state in a row: 1 if it is there, 2 if it has to be replaced, 3 while another process creates it. No
    /// row if it is missing.
    pub(super) state: Statement,
    /// Creates it. Each step is executed completely or not at all.
    pub(super) create: Vec<Vec<String>>,
    /// Replaces it.
    pub(super) replace: Vec<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Present,
    Unusable,
    BeingCreated,
}

impl Part {
    /// The steps that are necessary in this state.
    fn steps(&self, state: State) -> &[Vec<String>] {
        match state {
            State::Missing => &self.create,
            State::Unusable => &self.replace,
            State::Present | State::BeingCreated => &[],
        }
    }

    fn change(&self, state: State) -> SchemaChange {
        let verb = if state == State::Missing { "create" } else { "replace" };
        SchemaChange::new(format!("{verb} {}", self.name), self.steps(state).concat())
    }
}

#[async_trait]
impl<D: Dialect> Migrating for Table<D> {
    fn location(&self) -> &str {
        self.connection.location()
    }

    fn schema(&self) -> SchemaChange {
        SchemaChange::new(format!("create table \"{}\"", self.options.table), self.dialect.schema())
    }

    async fn missing(&self) -> Result<Vec<SchemaChange>, TransportError> {
        if !self.has_table().await? {
            return Ok(vec![self.schema()]);
        }
        let mut changes = Vec::new();
        for part in self.dialect.parts() {
            let state = self.state(&part).await.map_err(|error| self.not_migrated(error))?;
            if !part.steps(state).is_empty() {
                changes.push(part.change(state));
            }
        }
        Ok(changes)
    }

    async fn migrate(&self) -> Result<Vec<SchemaChange>, TransportError> {
        let mut changes = Vec::new();
        if !self.has_table().await? {
            self.set_up().await?;
            changes.push(self.schema());
        }
        for part in self.dialect.parts() {
            changes.extend(self.migrate_part(&part).await.map_err(|error| self.not_migrated(error))?);
        }
        Ok(changes)
    }
}

impl<D: Dialect> Table<D> {
    /// Whether there is a table of messages. It is an error if there is another table.
    async fn has_table(&self) -> Result<bool, TransportError> {
        if !self.is_set_up().await.map_err(|error| self.not_migrated(error))? {
            return Ok(false);
        }
        let rows = self.connection.perform(self.dialect.columns()).await.map_err(|error| self.not_migrated(error))?;
        let names = rows.into_iter().map(|mut row| row.take_text(0)).collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|error| self.unreadable(ACTION, error))?;
        let is_there = |column: &str| names.iter().any(|name| name.eq_ignore_ascii_case(column.as_bytes()));
        let missing: Vec<_> = COLUMNS.into_iter().filter(|column| !is_there(column)).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let (table, place, columns) = (&self.options.table, self.connection.location(), missing.join(", "));
        let why = format!(
            "table \"{table}\" in {place} is not a table of messages: it has no {columns}; choose another table_name, or \
             move the table away"
        );
        Err(TransportError::store(&self.name, ACTION, std::io::Error::other(why)))
    }

    async fn state(&self, part: &Part) -> Result<State, SqlError> {
        let rows = self.connection.perform(part.state.clone().into()).await?;
        let Some(row) = rows.first() else { return Ok(State::Missing) };
        Ok(match row.number(0).map_err(|error| self.connection.error(error))? {
            1 => State::Present,
            3 => State::BeingCreated,
            _ => State::Unusable,
        })
    }

    /// Several processes may do this at once: one creates the part, and the others fail, look, and find it.
    async fn migrate_part(&self, part: &Part) -> Result<Option<SchemaChange>, SqlError> {
        let (mut attempts, mut failed) = (0, None::<SqlError>);
        loop {
            let state = self.state(part).await?;
            match (state, failed.take()) {
                (State::Present, _) => return Ok(None),
                (State::BeingCreated, _) => tokio::time::sleep(PAUSE).await,
                (_, Some(error)) if attempts == ATTEMPTS => return Err(error),
                _ => match self.perform_steps(part.steps(state)).await {
                    Ok(()) => return Ok(Some(part.change(state))),
                    Err(error) => {
                        tracing::debug!(part = part.name, %error, "could not be created");
                        attempts += 1;
                        failed = Some(error);
                    }
                },
            }
        }
    }

    async fn perform_steps(&self, steps: &[Vec<String>]) -> Result<(), SqlError> {
        for step in steps {
            self.connection.perform(self.dialect.alter(step)).await?;
        }
        Ok(())
    }

    fn not_migrated(&self, error: SqlError) -> TransportError {
        TransportError::store(&self.name, ACTION, error)
    }
}

const ACTION: &str = "setting up";
