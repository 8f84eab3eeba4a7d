//! Tests that MySQL executes the statements by ranges of the index, however many rows there are.

use sqlx::{AssertSqlSafe, Executor, MySqlConnection, Row};

use super::queries::Queries;
use crate::connection::sql::live;

/// A table with 10,000 rows in the queue `q`, some of them delayed and some in flight, and as many in another queue.
async fn table(database: &str) -> MySqlConnection {
    let mut connection: MySqlConnection =
        live::connect("MINUTELY_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/").await;
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {database}"))).await.unwrap();
    connection.execute(AssertSqlSafe(format!("USE {database}"))).await.unwrap();
    connection.execute(Queries::new("t").set_up).await.unwrap();
    let insert = "INSERT INTO t (body, headers, queue_name, created_at, available_at, delivered_at)";
    let first = "VALUES ('x', '{}', 'q', NOW(), '2026-01-01', NULL), ('x', '{}', 'other', NOW(), '2026-01-01', NULL)";
    connection.execute(AssertSqlSafe(format!("{insert} {first}"))).await.unwrap();
    for _ in 0..13 {
        let again = "SELECT body, headers, queue_name, created_at, available_at + INTERVAL id SECOND, \
                     IF(id % 20 < 2, available_at, NULL) FROM t";
        connection.execute(AssertSqlSafe(format!("{insert} {again}"))).await.unwrap();
    }
    connection.execute("ANALYZE TABLE t").await.unwrap();
    connection
}

/// The table, the index and the remarks of each step of the plan. The arguments have the types of the columns.
async fn plan(connection: &mut MySqlConnection, sql: &str, arguments: &[&str]) -> Vec<[String; 3]> {
    let mut sql = sql.to_owned();
    for argument in arguments {
        sql = sql.replacen('?', argument, 1);
    }
    assert!(!sql.contains('?'), "{sql}");
    let rows = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN {sql}"))).await.unwrap();
    let text = |row: &sqlx::mysql::MySqlRow, column| row.get::<Option<String>, _>(column).unwrap_or_default();
    rows.iter().map(|row| [text(row, "table"), text(row, "key"), text(row, "Extra")]).collect()
}

#[tokio::test]
#[ignore = "needs a MySQL or MariaDB server"]
async fn every_query_is_a_range_of_the_index() {
    let database = format!("minutely_plans_{}", std::process::id());
    let mut connection = table(&database).await;
    let queries = Queries::new("t");
    let (queue, now, cutoff) = ("'q'", "'2026-01-01 02:00:00'", "'2026-01-01 01:00:00'");
    let pending = [queue, now, "100", queue, cutoff, now, "100"];
    let all = [&pending[..], &[queue, now, "100", queue, cutoff, "100"]].concat();
    let mut steps = vec![];
    for (sql, arguments) in [
        (&queries.any_due, &[queue, now, queue, cutoff, now][..]),
        (&queries.next_due, &[queue, now, queue, cutoff]),
        (queries.take_new.on(true), &[queue, now, "100"]),
        (queries.take_late.on(true), &[queue, cutoff, now, "100"]),
        (&queries.count_pending, &pending),
        (&queries.count_all, &all),
    ] {
        let plan = plan(&mut connection, sql.as_str(), arguments).await;
        steps.extend(plan.into_iter().filter(|[table, ..]| table == "t"));
    }
    let listed = plan(&mut connection, queries.list.as_str(), &[cutoff, queue, "9000", "50"]).await;
    connection.execute(AssertSqlSafe(format!("DROP DATABASE {database}"))).await.unwrap();
    assert_eq!(steps.len(), 2 + 2 + 1 + 1 + 2 + 4);
    for [_, key, extra] in steps {
        assert_eq!(key, "t_due", "{extra}");
        assert!(!extra.contains("filesort") && !extra.contains("temporary"), "{extra}");
    }
    assert!(!listed[0][1].is_empty(), "{listed:?}");
}
