//! The SQL of a queue in an SQLite table, and the index that makes it quick.
//!
//! A row is *due* if `available_at` is in the past and `delivered_at` is either NULL (never received) or older than
//! `redeliver_timeout`. The two cases are queried separately. Each is then one range of one index in the right order,
//! so that the cost of a statement depends on how many rows it returns, and not on how many there are.

use sqlx::SqlStr;

use super::super::{Part, numbered};
use crate::connection::sql::{Statement, sql};

/// The statements for one table.
pub(super) struct Queries {
    /// The table's quoted name.
    table: String,
    table_name: String,
    /// Ids are passed as a JSON array. `next_due` has a third column: whether a message is due.
    pub(super) numbered: numbered::Queries,
    pub(super) set_up: [SqlStr; 2],
    /// At a time. Returns a row if at least one message is due.
    pub(super) any_due: SqlStr,
}

impl Queries {
    /// The statements for this table.
    pub(super) fn new(table: &str) -> Self {
        let t = quote(table);
        let never_received = format!("FROM {t} WHERE queue_name = ?1 AND delivered_at IS NULL AND available_at <= ?2");
        let too_long = format!("FROM {t} WHERE queue_name = ?1 AND delivered_at < ?3 AND available_at <= ?2");
        let delayed = format!("FROM {t} WHERE queue_name = ?1 AND delivered_at IS NULL AND available_at > ?2");
        let in_flight = format!("FROM {t} WHERE queue_name = ?1 AND delivered_at >= ?3");
        let oldest = "ORDER BY available_at, id LIMIT ?4";
        let count = |rows: &str| format!("(SELECT COUNT(*) FROM (SELECT 1 {rows} LIMIT ?4))");
        // As bytes: nothing keeps another program from writing text that is not UTF-8.
        let content = "id, CAST(available_at AS BLOB) AS available_at, CAST(body AS BLOB) AS body, \
                       CAST(headers AS BLOB) AS headers";
        let looked_at = format!("{content}, delivered_at IS NOT NULL AND delivered_at >= ?2 AS in_flight");
        let chosen = "id IN (SELECT value FROM json_each(?1)) AND queue_name = ?2";
        let is_set_up = sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE");
        let numbered = numbered::Queries {
            is_set_up: Statement::of(&is_set_up).bind(table),
            columns: Statement::of(&sql("SELECT name FROM pragma_table_info(?1)")).bind(table),
            send: sql(format!(
                "INSERT INTO {t} (body, headers, queue_name, created_at, available_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                 RETURNING id"
            )),
            next_due: sql(format!(
                "SELECT (SELECT CAST(available_at AS BLOB) {delayed} ORDER BY available_at LIMIT 1), \
                 (SELECT CAST(delivered_at AS BLOB) {in_flight} ORDER BY delivered_at LIMIT 1), \
                 EXISTS (SELECT 1 {never_received}) OR EXISTS (SELECT 1 {too_long})"
            )),
            receive: sql(format!(
                "UPDATE {t} SET delivered_at = ?2 WHERE id IN (SELECT id FROM ( \
                 SELECT * FROM (SELECT id, available_at {never_received} {oldest}) UNION ALL \
                 SELECT * FROM (SELECT id, available_at {too_long} {oldest})) {oldest}) RETURNING {content}"
            )),
            count_pending: sql(format!("SELECT {}, {}, 0, 0", count(&never_received), count(&too_long))),
            count_all: sql(format!(
                "SELECT {}, {}, {}, {}",
                count(&never_received),
                count(&too_long),
                count(&delayed),
                count(&in_flight)
            )),
            // The ids first, from an index, so that only the bodies that are shown are read.
            list: sql(format!(
                "SELECT {looked_at} FROM {t} WHERE id IN (SELECT id FROM {t} WHERE queue_name = ?1 AND id > ?3 \
                 ORDER BY id LIMIT ?4) ORDER BY id"
            )),
            find: sql(format!("SELECT {looked_at} FROM {t} WHERE id = ?3 AND queue_name = ?1")),
            take: sql(format!(
                "UPDATE {t} SET delivered_at = ?2 WHERE id = ?4 AND queue_name = ?1 \
                 AND (delivered_at IS NULL OR delivered_at < ?3) RETURNING {content}"
            )),
            delete: sql(format!("DELETE FROM {t} WHERE {chosen}")),
            release: sql(format!("UPDATE {t} SET delivered_at = NULL WHERE {chosen} AND delivered_at = ?3")),
            keep_alive: sql(format!("UPDATE {t} SET delivered_at = ?4 WHERE {chosen} AND delivered_at = ?3")),
            resume: sql(format!(
                "UPDATE {t} SET available_at = ?2 \
                 WHERE queue_name = ?1 AND delivered_at IS NULL AND available_at > ?2"
            )),
            // Not due within the second in which it was received, so that the next receipt differs from the last one.
            retry: sql(format!(
                "UPDATE {t} SET body = ?1, headers = ?2, delivered_at = NULL, \
                 available_at = max(?5, coalesce(datetime(delivered_at, '+1 second'), ?5)) \
                 WHERE id = ?4 AND queue_name = ?3"
            )),
            move_within: sql(format!(
                "UPDATE {t} SET body = ?1, headers = ?2, available_at = ?5, delivered_at = NULL, queue_name = ?6 \
                 WHERE id = ?4 AND queue_name = ?3 RETURNING id"
            )),
        };
        Self {
            set_up: set_up(table).map(sql),
            any_due: sql(format!("SELECT 1 WHERE EXISTS (SELECT 1 {never_received}) OR EXISTS (SELECT 1 {too_long})")),
            table: t,
            table_name: table.to_owned(),
            numbered,
        }
    }

    /// The index, under whatever name.
    pub(super) fn index(&self) -> Part {
        let find = sql(
            "SELECT 1 FROM pragma_index_list(?1) l WHERE l.partial = 0 AND (SELECT group_concat(name) FROM \
             (SELECT name FROM pragma_index_info(l.name) ORDER BY seqno)) LIKE 'queue_name,delivered_at,available_at%'",
        );
        let [_, create] = set_up(&self.table_name);
        Part {
            name: format!("index \"{}_due\"", self.table_name),
            state: Statement::of(&find).bind(self.table_name.as_str()),
            create: vec![vec![create]],
            replace: Vec::new(),
        }
    }

    /// Stores this many messages. Arguments: queue, now, and for each body, headers, due. Returns their ids.
    pub(super) fn send_all(&self, messages: usize) -> SqlStr {
        let rows = (0..messages).map(|n| format!("(?{}, ?{}, ?1, ?2, ?{})", 3 * n + 3, 3 * n + 4, 3 * n + 5));
        sql(format!(
            "INSERT INTO {} (body, headers, queue_name, created_at, available_at) VALUES {} RETURNING id",
            self.table,
            rows.collect::<Vec<_>>().join(", ")
        ))
    }

    /// Copies a message into another table, unless it is gone. Arguments as in `move_within`.
    pub(super) fn copy_into(&self, other: &str) -> SqlStr {
        sql(format!(
            "INSERT INTO {} (body, headers, queue_name, created_at, available_at) SELECT ?1, ?2, ?6, ?5, ?5 \
             WHERE EXISTS (SELECT 1 FROM {} WHERE id = ?4 AND queue_name = ?3) RETURNING id",
            quote(other),
            self.table
        ))
    }
}

/// Symfony's columns. The index differs from Symfony's: `delivered_at` comes before `available_at`, so that every query
/// above is a range of it. Symfony's `messenger:setup-transports` may replace it by its own indexes, which only costs
/// speed.
fn set_up(table: &str) -> [String; 2] {
    let (table, index) = (quote(table), quote(&format!("{table}_due")));
    [
        format!(
            "CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, body CLOB NOT NULL, \
             headers CLOB NOT NULL, queue_name VARCHAR(190) NOT NULL, created_at DATETIME NOT NULL, \
             available_at DATETIME NOT NULL, delivered_at DATETIME DEFAULT NULL)"
        ),
        format!("CREATE INDEX {index} ON {table} (queue_name, delivered_at, available_at, id)"),
    ]
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnection;
    use sqlx::{AssertSqlSafe, Connection, Executor, Row};

    use super::*;

    /// The indexes of all versions of Symfony: single columns up to 7.2, later one with four columns.
    const SYMFONYS: [&[&str]; 2] =
        [&["queue_name", "available_at", "delivered_at"], &["queue_name, available_at, delivered_at, id"]];

    async fn connection(indexes: Option<&[&str]>) -> SqliteConnection {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let [table, index] = set_up("t");
        connection.execute(AssertSqlSafe(table)).await.unwrap();
        match indexes {
            None => drop(connection.execute(AssertSqlSafe(index)).await.unwrap()),
            Some(indexes) => {
                for (n, columns) in indexes.iter().enumerate() {
                    let sql = format!("CREATE INDEX i{n} ON t ({columns})");
                    connection.execute(AssertSqlSafe(sql)).await.unwrap();
                }
            }
        }
        connection
    }

    async fn plan(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
        let rows = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).await.unwrap();
        rows.iter().map(|row| row.get("detail")).collect()
    }

    #[tokio::test]
    async fn every_query_is_a_range_of_the_index() {
        let mut connection = connection(None).await;
        let queries = Queries::new("t");
        for sql in [
            &queries.any_due,
            &queries.numbered.next_due,
            &queries.numbered.receive,
            &queries.numbered.count_pending,
            &queries.numbered.count_all,
            &queries.numbered.list,
        ] {
            let plan = plan(&mut connection, sql.as_str()).await;
            let tables: Vec<_> = plan.iter().filter(|step| step.contains(" t ")).collect();
            assert!(!tables.is_empty() && tables.iter().all(|step| step.starts_with("SEARCH t USING ")), "{plan:#?}");
        }
        let plan = plan(&mut connection, queries.numbered.count_all.as_str()).await.join("\n");
        for range in [
            "delivered_at=? AND available_at<?",
            "delivered_at<?",
            "delivered_at=? AND available_at>?",
            "delivered_at>?",
        ] {
            let step = format!("SEARCH t USING COVERING INDEX t_due (queue_name=? AND {range})");
            assert!(plan.contains(&step), "{range}: {plan}");
        }
    }

    #[tokio::test]
    async fn the_oldest_message_is_found_without_sorting() {
        let mut connection = connection(None).await;
        let sql = "SELECT id FROM t WHERE queue_name = 'q' AND delivered_at IS NULL AND available_at <= 'now' \
                   ORDER BY available_at, id LIMIT 1";
        let plan = plan(&mut connection, sql).await;
        let step = "SEARCH t USING COVERING INDEX t_due (queue_name=? AND delivered_at=? AND available_at<?)";
        assert_eq!(plan, [step]);
    }

    #[tokio::test]
    async fn symfonys_indexes_serve_as_well() {
        for indexes in SYMFONYS {
            let mut connection = connection(Some(indexes)).await;
            let queries = Queries::new("t");
            for sql in [
                &queries.any_due,
                &queries.numbered.next_due,
                &queries.numbered.receive,
                &queries.numbered.count_pending,
                &queries.numbered.count_all,
            ] {
                let plan = plan(&mut connection, sql.as_str()).await;
                assert!(!plan.iter().any(|step| step.starts_with("SCAN t")), "{indexes:?}: {plan:#?}");
            }
        }
    }
}
