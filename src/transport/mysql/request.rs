//! What is asked of a MySQL connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::SqlStr;

use super::super::rdbms::Statement;
use super::queries::Queries;

/// A busy consumer deletes finished rows after so many. An idle one does not wait for that.
const PURGE_AFTER: u64 = 500;

/// How many ids one statement names at most.
const IDS: usize = 1024;

/// What is asked of a connection.
pub(crate) enum Request {
    /// One statement that gives rows, or changes one.
    Run(Statement),
    /// One that inserts a row, whose id it gives.
    Insert(Statement),
    /// Statements that can be repeated if not all of them are done.
    Change(Vec<Statement>),
    /// Messages are done with.
    Finish { finish: Vec<Statement>, purge: Purge },
    /// If there is a row to lock, inserts one and finishes the first, in one transaction. Gives the new row's id.
    Move { lock: Statement, insert: Statement, finish: Statement },
    /// Receives messages.
    Take(Take),
}

/// Receives up to so many messages.
pub(crate) struct Take {
    pub(super) queries: Arc<Queries>,
    pub(super) queue: String,
    pub(super) now: String,
    pub(super) cutoff: String,
    pub(super) up_to: i64,
    pub(super) purge: Purge,
}

impl Take {
    pub(super) fn up_to(&self) -> usize {
        usize::try_from(self.up_to).unwrap_or(usize::MAX)
    }

    pub(super) fn any_due(&self) -> Statement {
        let statement = Statement::of(&self.queries.any_due).bind(self.queue.as_str()).bind(self.now.as_str());
        statement.bind(self.queue.as_str()).bind(self.cutoff.as_str()).bind(self.now.as_str())
    }

    pub(super) fn never_received(&self, skip_locked: bool) -> Statement {
        let sql = self.queries.take_new.on(skip_locked);
        Statement::of(sql).bind(self.queue.as_str()).bind(self.now.as_str()).bind(self.up_to)
    }

    pub(super) fn in_flight_too_long(&self, skip_locked: bool) -> Statement {
        let sql = self.queries.take_late.on(skip_locked);
        let statement = Statement::of(sql).bind(self.queue.as_str()).bind(self.cutoff.as_str());
        statement.bind(self.now.as_str()).bind(self.up_to)
    }

    pub(super) fn mark(&self, ids: &[i64]) -> Vec<Statement> {
        for_ids(ids, |number| self.queries.mark(number), |statement| statement.bind(self.now.as_str()))
    }
}

/// Deletes finished rows now and then.
#[derive(Clone)]
pub(crate) struct Purge {
    statement: Statement,
    /// How many rows may be finished and not deleted.
    finished: Arc<AtomicU64>,
}

impl Purge {
    /// The first occasion is used at once, as others may have left rows behind.
    pub(super) fn new(statement: Statement) -> Self {
        Self { statement, finished: Arc::new(AtomicU64::new(PURGE_AFTER)) }
    }

    pub(super) fn statement(&self) -> &Statement {
        &self.statement
    }

    /// So many rows more are finished.
    pub(super) fn count(&self, finished: u64) {
        self.finished.fetch_add(finished, Ordering::Relaxed);
    }

    pub(super) fn is_due(&self) -> bool {
        self.finished.load(Ordering::Relaxed) >= PURGE_AFTER
    }

    pub(super) fn has_work(&self) -> bool {
        self.finished.load(Ordering::Relaxed) > 0
    }

    /// Rows have been deleted, with or without `more` left.
    pub(super) fn done(&self, more: bool) {
        self.finished.store(if more { PURGE_AFTER } else { 0 }, Ordering::Relaxed);
    }
}

/// Statements that name all of these ids. Their arguments are what `bind` adds, and the ids.
///
/// The lists are filled up to powers of two with an id that is there already, so that there are few statements for a
/// connection to prepare and remember.
pub(super) fn for_ids(
    ids: &[i64],
    sql: impl Fn(usize) -> SqlStr,
    bind: impl Fn(Statement) -> Statement,
) -> Vec<Statement> {
    let statement = |ids: &[i64]| {
        let width = ids.len().next_power_of_two();
        let filling = ids.last().into_iter().cycle();
        let ids = ids.iter().chain(filling).take(width);
        ids.fold(bind(Statement::of(&sql(width))), |statement, id| statement.bind(*id))
    };
    ids.chunks(IDS).map(statement).collect()
}
