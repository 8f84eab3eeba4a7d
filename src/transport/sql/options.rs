//! The options that the queues of all SQL transports have.

use std::time::Duration;

use super::super::options::REDELIVER_TIMEOUT;
use crate::config::{Definition, OptionReader, Setting};
use crate::connection::sql::is_identifier;

/// The options of a queue in a table, in the DSN or under `options:`. The defaults are Symfony Messenger's.
pub(super) const OPTIONS: [Definition; 4] =
    [TABLE_NAME.definition, QUEUE_NAME.definition, REDELIVER_TIMEOUT.definition, AUTO_SETUP.definition];
const TABLE_NAME: Setting<String> = Setting::text(
    "table_name",
    "messenger_messages",
    "the table's name, of letters, digits and `_`; on a server also with its schema or database: `queues.messages`",
);
const QUEUE_NAME: Setting<String> = Setting::text(
    "queue_name",
    "default",
    "the queue's name, of at most 190 characters; one table can hold several queues",
);
const AUTO_SETUP: Setting<bool> = Setting::php_flag(
    "auto_setup",
    "true",
    "create the table if it is missing, at the latest when the first message is sent",
);

/// The width of the column `queue_name`; SQLite does not enforce it, the servers do.
const QUEUE_NAME_MAX: usize = 190;

/// One queue in one table.
#[derive(Debug, Clone)]
pub(super) struct QueueOptions {
    /// The table, an identifier.
    pub(super) table: String,
    /// The value of its column `queue_name`.
    pub(super) queue: String,
    /// How long a message may be in flight before it is pending again.
    pub(super) redeliver_timeout: Duration,
    /// Whether to create the table if it is missing.
    pub(super) auto_setup: bool,
}

impl QueueOptions {
    /// Reads `table_name`, `queue_name`, `redeliver_timeout` and `auto_setup`.
    pub(super) fn read(options: &mut OptionReader<'_>) -> Self {
        let rule = "is a name of letters, digits and _, not starting with a digit or \"sqlite_\"";
        Self::read_where(options, is_identifier, rule)
    }

    /// The same, for tables that may be in a schema: `table_name: schema.table`.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(super) fn read_with_schema(options: &mut OptionReader<'_>) -> Self {
        let rule = "is a name of letters, digits and _, not starting with a digit, perhaps with a schema: schema.table";
        Self::read_where(options, is_identifier_with_schema, rule)
    }

    fn read_where(options: &mut OptionReader<'_>, fits: fn(&str) -> bool, rule: &str) -> Self {
        let table = options.get(&TABLE_NAME);
        if !fits(&table) {
            options.refuse("table_name", format!("table_name {rule}; found \"{table}\""));
        }
        let queue = options.get(&QUEUE_NAME);
        if queue.chars().count() > QUEUE_NAME_MAX {
            options
                .refuse("queue_name", format!("queue_name has at most {QUEUE_NAME_MAX} characters; this one has more"));
        }
        let redeliver_timeout = options.get(&REDELIVER_TIMEOUT);
        let auto_setup = options.get(&AUTO_SETUP);
        Self { table, queue, redeliver_timeout, auto_setup }
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn is_identifier_with_schema(text: &str) -> bool {
    let (schema, table) = text.split_once('.').map_or((None, text), |(schema, table)| (Some(schema), table));
    schema.is_none_or(is_identifier) && is_identifier(table)
}
