//! The SQL of a queue in a PostgreSQL table.
//!
//! A row is *due* if `available_at` is in the past and `delivered_at` is either NULL (never received) or older than
//! `redeliver_timeout`. The two cases are queried separately. Each is then one range of one index in the right order,
//! so that the cost of a statement depends on how many rows it returns, and not on how many there are. `ORDER BY` names
//! `delivered_at` even where it is always NULL, because PostgreSQL would not use the order of the index otherwise.

use sqlx::SqlStr;

use super::super::numbered;
use super::schema::Schema;
use crate::connection::sql::{Statement, sql};

const TABLE: &str = "SELECT 1 WHERE to_regclass($1) IS NOT NULL";
const COLUMNS: &str = "SELECT attname::text FROM pg_attribute \
                       WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
pub(super) const TRIGGER: &str =
    "SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = 'notify_trigger'";

/// The statements for one table. Times are passed as text without a time zone, and cast.
pub(crate) struct Queries {
    /// The table's quoted name.
    pub(super) table: String,
    pub(super) numbered: numbered::Queries,
    pub(super) set_up: Vec<String>,
    pub(super) schema: Schema,
    /// Bodies, headers, queue, now, and when each is due. One notification for all messages.
    pub(super) send_all: SqlStr,
    /// The table's quoted name. Returns a row if the table has a trigger that notifies of every inserted message.
    pub(super) has_trigger: SqlStr,
    notify: bool,
}

impl Queries {
    /// The statements for this table. With `notify`, each statement that makes a message pending or delayed also
    /// notifies listeners, as Symfony's `send` does since January 2026 (before that, its trigger did). If the table has
    /// the trigger too, PostgreSQL delivers only one notification, because the two are equal and in one transaction.
    pub(super) fn new(table_name: &str, notify: bool) -> Self {
        let t = quote(table_name);
        let schema = Schema::new(table_name, notify);
        let change = |statement: String, limit: &str| {
            if notify { notifying(&statement, table_name, limit) } else { statement + " RETURNING id" }
        };
        let new = "queue_name = $1 AND delivered_at IS NULL AND available_at <= $2::timestamp";
        let late = "queue_name = $1 AND delivered_at < $3::timestamp AND available_at <= $2::timestamp";
        let delayed = "queue_name = $1 AND delivered_at IS NULL AND available_at > $2::timestamp";
        let in_flight = "queue_name = $1 AND delivered_at >= $3::timestamp";
        let by_index = "ORDER BY delivered_at, available_at, id LIMIT $4";
        let count = |rows| format!("(SELECT COUNT(*) FROM (SELECT 1 FROM {t} WHERE {rows} {by_index}) counted)");
        let take = |rows| format!("SELECT id, available_at FROM {t} WHERE {rows} {by_index} FOR UPDATE SKIP LOCKED");
        let content = "m.id, to_char(m.available_at, 'YYYY-MM-DD HH24:MI:SS'), m.body, m.headers";
        let looked_at = format!("{content}, m.delivered_at IS NOT NULL AND m.delivered_at >= $2::timestamp");
        let time = |column: &str| format!("to_char({column}, 'YYYY-MM-DD HH24:MI:SS')");
        let chosen = "id = ANY($1) AND queue_name = $2";
        let numbered = numbered::Queries {
            is_set_up: Statement::of(&sql(TABLE)).bind(t.as_str()),
            columns: Statement::of(&sql(COLUMNS)).bind(t.as_str()),
            send: sql(change(
                format!(
                    "INSERT INTO {t} (body, headers, queue_name, created_at, available_at) \
                     VALUES ($1, $2, $3, $4::timestamp, $5::timestamp)"
                ),
                "",
            )),
            // FOR UPDATE keeps PostgreSQL from running a WITH query more than once.
            receive: sql(format!(
                "WITH new AS ({}), late AS ({}), due AS (SELECT id FROM (SELECT * FROM new UNION ALL \
                 SELECT * FROM late) both_halves ORDER BY available_at, id LIMIT $4) \
                 UPDATE {t} m SET delivered_at = $2::timestamp FROM due WHERE m.id = due.id RETURNING {content}",
                take(new),
                take(late)
            )),
            count_pending: sql(format!("SELECT {}, {}, 0::bigint, 0::bigint", count(new), count(late))),
            count_all: sql(format!("SELECT {}, {}, {}, {}", count(new), count(late), count(delayed), count(in_flight))),
            list: sql(format!(
                "SELECT {looked_at} FROM {t} m WHERE m.queue_name = $1 AND m.id > $3 ORDER BY m.id LIMIT $4"
            )),
            find: sql(format!("SELECT {looked_at} FROM {t} m WHERE m.id = $3 AND m.queue_name = $1")),
            take: sql(format!(
                "UPDATE {t} m SET delivered_at = $2::timestamp WHERE m.id = $4 AND m.queue_name = $1 \
                 AND (m.delivered_at IS NULL OR m.delivered_at < $3::timestamp) RETURNING {content}"
            )),
            delete: sql(format!("DELETE FROM {t} WHERE {chosen}")),
            // One notification for all messages.
            release: sql(change(
                format!("UPDATE {t} SET delivered_at = NULL WHERE {chosen} AND delivered_at = $3::timestamp"),
                " LIMIT 1",
            )),
            keep_alive: sql(format!(
                "UPDATE {t} SET delivered_at = $4::timestamp WHERE {chosen} AND delivered_at = $3::timestamp"
            )),
            resume: sql(change(format!("UPDATE {t} SET available_at = $2::timestamp WHERE {delayed}"), " LIMIT 1")),
            // Not due within the second in which it was received, so that the next receipt differs from the last one.
            retry: sql(change(
                format!(
                    "UPDATE {t} SET body = $1, headers = $2, delivered_at = NULL, \
                     available_at = GREATEST($5::timestamp, delivered_at + INTERVAL '1 second') \
                     WHERE id = $4 AND queue_name = $3"
                ),
                "",
            )),
            move_within: sql(change(
                format!(
                    "UPDATE {t} SET body = $1, headers = $2, available_at = $5::timestamp, delivered_at = NULL, \
                     queue_name = $6 WHERE id = $4 AND queue_name = $3"
                ),
                "",
            )),
            next_due: sql(format!(
                "SELECT {}, {} FROM (SELECT (SELECT available_at FROM {t} WHERE {delayed} {first}) AS due, \
                 (SELECT delivered_at FROM {t} WHERE {in_flight} {first}) AS received) times",
                time("due"),
                time("received"),
                first = "ORDER BY delivered_at, available_at, id LIMIT 1",
            )),
        };
        // Sorted before ids are given out, so that these are in the order of the messages.
        let insert = format!(
            "INSERT INTO {t} (body, headers, queue_name, created_at, available_at) \
             SELECT m.body, m.headers, $3, $4::timestamp, m.due::timestamp FROM \
             unnest($1::text[], $2::text[], $5::text[]) WITH ORDINALITY AS m (body, headers, due, n) \
             ORDER BY m.n RETURNING id"
        );
        let send_all = match notify {
            true => {
                format!("WITH new AS ({insert}) SELECT id, (SELECT pg_notify('{table_name}', $3::text)) FROM new")
            }
            false => insert,
        };
        Self {
            send_all: sql(send_all),
            numbered,
            set_up: schema.set_up(),
            schema,
            has_trigger: sql(format!("{TRIGGER} AND tgenabled <> 'D'")),
            table: t,
            notify,
        }
    }

    /// Moves a message into another table, unless it is gone. Arguments as in `move_within`.
    pub(super) fn move_to(&self, other: &str) -> SqlStr {
        let moved = format!("moved AS (DELETE FROM {} WHERE id = $4 AND queue_name = $3 RETURNING id)", self.table);
        let insert = format!(
            "INSERT INTO {} (body, headers, queue_name, created_at, available_at) \
             SELECT $1, $2, $6, $5::timestamp, $5::timestamp FROM moved",
            quote(other)
        );
        sql(if self.notify {
            format!("WITH {moved}, {}", changed_and_notified(&insert, other, ""))
        } else {
            format!("WITH {moved} {insert} RETURNING id")
        })
    }
}

/// A statement that inserts or updates messages, and notifies the table's listeners of their queues. Returns the
/// messages' ids.
fn notifying(statement: &str, table_name: &str, limit: &str) -> String {
    format!("WITH {}", changed_and_notified(statement, table_name, limit))
}

fn changed_and_notified(statement: &str, table_name: &str, limit: &str) -> String {
    format!(
        "changed AS ({statement} RETURNING id, queue_name) \
         SELECT id, pg_notify('{table_name}', queue_name::text) FROM changed{limit}"
    )
}

/// Quotes a table's name, with its schema if it has one. In lower case: Symfony does not quote it, and PostgreSQL
/// converts unquoted names to lower case.
pub(super) fn quote(name: &str) -> String {
    let parts: Vec<String> =
        name.split('.').map(|part| format!("\"{}\"", part.to_ascii_lowercase().replace('"', "\"\""))).collect();
    parts.join(".")
}
