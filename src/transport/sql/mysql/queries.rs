//! The SQL of a queue in a MySQL or MariaDB table.
//!
//! A row is *due* if `available_at` is in the past and `delivered_at` is either NULL (never received) or older than
//! `redeliver_timeout`. The two cases are queried separately. Each is then one range of one index in the right order,
//! so that the cost of a statement depends on how many rows it returns, and not on how many there are.
//!
//! A row with [`FINISHED`] in `delivered_at` is finished, and will be deleted later.

use sqlx::SqlStr;

use crate::connection::sql::sql;

/// Symfony writes this into `delivered_at` of a message that is acknowledged or rejected, and deletes it later:
/// deleting locks a row's entries in all indexes in another order than receiving does, which leads to deadlocks.
const FINISHED: &str = "'9999-12-31 23:59:59'";

/// The most rows that one purge deletes.
pub(super) const PURGE: u64 = 1000;

/// The statements for one table. The comments name their arguments, in order.
pub(crate) struct Queries {
    table: String,
    /// Table, and schema or NULL.
    pub(super) is_set_up: SqlStr,
    /// Table, and schema or NULL.
    pub(super) columns: SqlStr,
    /// Table, and schema or NULL. Returns a row if the table has the index, under whatever name.
    pub(super) has_index: SqlStr,
    pub(super) set_up: SqlStr,
    /// Body, headers, queue, now, due.
    pub(super) send: SqlStr,
    /// Queue, now, queue, cutoff, now. Columns: whether any due message was never received, and whether any was in
    /// flight for too long.
    pub(super) any_due: SqlStr,
    /// Queue, now, limit. Without `SKIP LOCKED` on servers that do not support it.
    pub(super) take_new: SkipLocked,
    /// Queue, cutoff, now, limit.
    pub(super) take_late: SkipLocked,
    /// Queue, now, cap; queue, cutoff, now, cap.
    pub(super) count_pending: SqlStr,
    /// As `count_pending`, then queue, now, cap; queue, cutoff, cap.
    pub(super) count_all: SqlStr,
    /// Queue, now; queue, cutoff. Columns: when the next delayed message is due, and when the one was received that has
    /// been in flight the longest.
    pub(super) next_due: SqlStr,
    /// Cutoff, queue, id to start after, limit.
    pub(super) list: SqlStr,
    /// Cutoff, queue, id.
    pub(super) find: SqlStr,
    /// Now, queue, id, cutoff. Marks a message as received that is not in flight.
    pub(super) mark_one: SqlStr,
    /// Queue, id.
    pub(super) read_one: SqlStr,
    /// Now, queue, now.
    pub(super) resume: SqlStr,
    /// Body, headers, due, id, queue.
    pub(super) retry: SqlStr,
    /// Body, headers, now, the other queue, id, queue.
    pub(super) move_within: SqlStr,
    /// Id, queue. Locks the message.
    pub(super) lock: SqlStr,
    /// Queue.
    pub(super) purge: SqlStr,
}

/// One statement in two forms.
pub(crate) struct SkipLocked {
    /// Skips rows that others are receiving.
    skipping: SqlStr,
    /// Waits a few milliseconds until the others have received them, and then skips them.
    waiting: SqlStr,
}

impl SkipLocked {
    /// The form for a server with or without `SKIP LOCKED`.
    pub(super) fn on(&self, skip_locked: bool) -> &SqlStr {
        if skip_locked { &self.skipping } else { &self.waiting }
    }
}

impl Queries {
    /// The statements for this table.
    pub(super) fn new(table_name: &str) -> Self {
        let t = quote(table_name);
        let new = "queue_name = ? AND delivered_at IS NULL AND available_at <= ?";
        let late = "queue_name = ? AND delivered_at < ? AND available_at <= ?";
        let delayed = "queue_name = ? AND delivered_at IS NULL AND available_at > ?";
        let in_flight = format!("queue_name = ? AND delivered_at >= ? AND delivered_at < {FINISHED}");
        let count = |rows: &str| format!("(SELECT COUNT(*) FROM (SELECT 1 FROM {t} WHERE {rows} LIMIT ?) counted)");
        let time = |column: &str| format!("DATE_FORMAT({column}, '%Y-%m-%d %H:%i:%s')");
        let content = format!("id, {}, body, headers", time("available_at"));
        let looked_at = format!("{content}, delivered_at IS NOT NULL AND delivered_at >= ?");
        let unfinished = format!("(delivered_at IS NULL OR delivered_at < {FINISHED})");
        let take = |rows: &str, order: &str| {
            let waiting = format!("SELECT {content} FROM {t} WHERE {rows} ORDER BY {order} LIMIT ? FOR UPDATE");
            SkipLocked { skipping: sql(format!("{waiting} SKIP LOCKED")), waiting: sql(waiting) }
        };
        Self {
            is_set_up: sql(
                "SELECT 1 FROM information_schema.tables WHERE table_name = ? AND table_schema = COALESCE(?, DATABASE())",
            ),
            columns: sql("SELECT column_name FROM information_schema.columns \
                 WHERE table_name = ? AND table_schema = COALESCE(?, DATABASE())"),
            has_index: sql(
                "SELECT 1 FROM (SELECT index_name, GROUP_CONCAT(column_name ORDER BY seq_in_index) AS columns_of_it \
                 FROM information_schema.statistics WHERE table_name = ? AND table_schema = COALESCE(?, DATABASE()) \
                 GROUP BY index_name) indexes_of_it \
                 WHERE columns_of_it LIKE 'queue_name,delivered_at,available_at%' LIMIT 1",
            ),
            set_up: sql(set_up(table_name)),
            send: insert(&t),
            any_due: sql(format!(
                "SELECT EXISTS (SELECT 1 FROM {t} WHERE {new}), EXISTS (SELECT 1 FROM {t} WHERE {late})"
            )),
            // The orders are those of the index within the range.
            take_new: take(new, "available_at, id"),
            take_late: take(late, "delivered_at, available_at, id"),
            count_pending: sql(format!("SELECT {}, {}, 0, 0", count(new), count(late))),
            count_all: sql(format!(
                "SELECT {}, {}, {}, {}",
                count(new),
                count(late),
                count(delayed),
                count(&in_flight)
            )),
            next_due: sql(format!(
                "SELECT (SELECT {} FROM {t} WHERE {delayed} ORDER BY available_at LIMIT 1), \
                 (SELECT {} FROM {t} WHERE {in_flight} ORDER BY delivered_at LIMIT 1)",
                time("available_at"),
                time("delivered_at"),
            )),
            list: sql(format!(
                "SELECT {looked_at} FROM {t} WHERE queue_name = ? AND id > ? AND {unfinished} ORDER BY id LIMIT ?"
            )),
            find: sql(format!("SELECT {looked_at} FROM {t} WHERE queue_name = ? AND id = ? AND {unfinished}")),
            mark_one: sql(format!(
                "UPDATE {t} SET delivered_at = ? WHERE queue_name = ? AND id = ? \
                 AND (delivered_at IS NULL OR delivered_at < ?)"
            )),
            read_one: sql(format!("SELECT {content} FROM {t} WHERE queue_name = ? AND id = ?")),
            resume: sql(format!("UPDATE {t} SET available_at = ? WHERE {delayed}")),
            // Not due within the second in which it was received, so that the next receipt differs from the last one.
            // (MySQL assigns columns from left to right, and each expression sees the new values of those before.)
            retry: sql(format!(
                "UPDATE {t} SET body = ?, headers = ?, \
                 available_at = GREATEST(?, COALESCE(delivered_at + INTERVAL 1 SECOND, ?)), delivered_at = NULL \
                 WHERE id = ? AND queue_name = ? AND {unfinished}"
            )),
            move_within: sql(format!(
                "UPDATE {t} SET body = ?, headers = ?, available_at = ?, delivered_at = NULL, queue_name = ? \
                 WHERE id = ? AND queue_name = ? AND {unfinished}"
            )),
            lock: sql(format!("SELECT 1 FROM {t} WHERE id = ? AND queue_name = ? AND {unfinished} FOR UPDATE")),
            purge: sql(format!("DELETE FROM {t} WHERE queue_name = ? AND delivered_at = {FINISHED} LIMIT {PURGE}")),
            table: t,
        }
    }

    /// Marks locked messages as received. Arguments: now, ids.
    pub(super) fn mark(&self, ids: usize) -> SqlStr {
        sql(format!("UPDATE {} SET delivered_at = ? WHERE id IN ({})", self.table, marks(ids)))
    }

    /// Finishes messages. Arguments: queue, ids.
    pub(super) fn finish(&self, ids: usize) -> SqlStr {
        sql(format!(
            "UPDATE {} SET delivered_at = {FINISHED} WHERE queue_name = ? AND id IN ({})",
            self.table,
            marks(ids)
        ))
    }

    /// Makes messages in flight pending. Arguments: queue, the time they were received, ids.
    pub(super) fn release(&self, ids: usize) -> SqlStr {
        sql(format!(
            "UPDATE {} SET delivered_at = NULL WHERE queue_name = ? AND delivered_at = ? AND id IN ({})",
            self.table,
            marks(ids)
        ))
    }

    /// Sets the time at which messages in flight were received to now. Arguments: now, queue, the time they were
    /// received, ids.
    pub(super) fn keep_alive(&self, ids: usize) -> SqlStr {
        sql(format!(
            "UPDATE {} SET delivered_at = ? WHERE queue_name = ? AND delivered_at = ? AND id IN ({})",
            self.table,
            marks(ids)
        ))
    }

    /// Stores this many messages. Arguments, for each: body, headers, queue, now, due.
    pub(super) fn send_all(&self, messages: usize) -> SqlStr {
        sql(format!(
            "INSERT INTO {} (body, headers, queue_name, created_at, available_at) VALUES {}",
            self.table,
            vec!["(?, ?, ?, ?, ?)"; messages].join(", ")
        ))
    }

    /// Inserts a message that is due at once into another table. Arguments: body, headers, the other queue, now, now.
    pub(super) fn send_to(&self, other: &str) -> SqlStr {
        insert(&quote(other))
    }
}

fn insert(table: &str) -> SqlStr {
    sql(format!("INSERT INTO {table} (body, headers, queue_name, created_at, available_at) VALUES (?, ?, ?, ?, ?)"))
}

/// Symfony's table, as Doctrine creates it. The index differs from Symfony's: `delivered_at` comes before
/// `available_at`, so that every query above is a range of it. Symfony's `messenger:setup-transports` may replace it by
/// its own indexes, which only costs speed.
fn set_up(table_name: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (id BIGINT AUTO_INCREMENT NOT NULL, body LONGTEXT NOT NULL, \
         headers LONGTEXT NOT NULL, queue_name VARCHAR(190) NOT NULL, created_at DATETIME NOT NULL, \
         available_at DATETIME NOT NULL, delivered_at DATETIME DEFAULT NULL, \
         INDEX {} {INDEXED}, PRIMARY KEY (id)) \
         DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci ENGINE = InnoDB",
        quote(table_name),
        quote(&index_name(table_name))
    )
}

/// The columns of the index.
const INDEXED: &str = "(queue_name, delivered_at, available_at, id)";

fn index_name(table_name: &str) -> String {
    format!("{}_due", table_name.rsplit('.').next().unwrap_or(table_name))
}

/// The index's name, and the statement that creates it on an existing table.
pub(super) fn index(table_name: &str) -> (String, String) {
    let name = index_name(table_name);
    let create = format!("CREATE INDEX {} ON {} {INDEXED}", quote(&name), quote(table_name));
    (name, create)
}

/// This many question marks, separated by commas.
fn marks(number: usize) -> String {
    vec!["?"; number].join(", ")
}

/// Quotes a table's name, with its database if it has one.
fn quote(name: &str) -> String {
    let parts: Vec<String> = name.split('.').map(|part| format!("`{}`", part.replace('`', "``"))).collect();
    parts.join(".")
}
