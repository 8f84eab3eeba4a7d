//! Tests that PostgreSQL executes the statements by ranges of the index, however many rows there are.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::queries::Queries;
use crate::connection::sql::live;

/// A table with 20,000 rows in the queue `q`, some of them delayed and some in flight, and as many in another queue. It
/// is dropped with the connection.
async fn table() -> PgConnection {
    let mut connection: PgConnection =
        live::connect("MINUTELY_TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres").await;
    connection.execute("SET search_path = pg_temp").await.unwrap();
    for statement in Queries::new("t", false).set_up {
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    let rows = "INSERT INTO t (body, headers, queue_name, created_at, available_at, delivered_at) \
                SELECT 'x', '{}', CASE n % 2 WHEN 0 THEN 'q' ELSE 'other' END, now(), \
                timestamp '2026-01-01' + n * interval '1 second', \
                CASE WHEN n % 20 < 2 THEN timestamp '2026-01-01' + n * interval '1 second' END \
                FROM generate_series(1, 40000) n";
    connection.execute(rows).await.unwrap();
    connection.execute("ANALYZE t").await.unwrap();
    connection
}

/// The plans of a statement: for these arguments, and for any arguments.
async fn plans(connection: &mut PgConnection, sql: &str, arguments: &str) -> [String; 2] {
    connection.execute(AssertSqlSafe(format!("PREPARE p AS {sql}"))).await.unwrap();
    let mut plans = [String::new(), String::new()];
    for (mode, plan) in ["force_custom_plan", "force_generic_plan"].into_iter().zip(&mut plans) {
        connection.execute(AssertSqlSafe(format!("SET plan_cache_mode = {mode}"))).await.unwrap();
        let rows = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN EXECUTE p ({arguments})"))).await.unwrap();
        *plan = rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect();
    }
    connection.execute("DEALLOCATE p").await.unwrap();
    plans
}

#[tokio::test]
#[ignore = "needs a PostgreSQL server"]
async fn every_query_is_a_range_of_the_index() {
    let mut connection = table().await;
    let queries = Queries::new("t", false).numbered;
    let at = "'q', '2026-01-01 08:00:00', '2026-01-01 07:00:00'";
    let limited = format!("{at}, 100");
    for (sql, arguments, ranges) in [
        (&queries.receive, limited.as_str(), 2),
        (&queries.count_pending, &limited, 2),
        (&queries.count_all, &limited, 4),
        (&queries.next_due, at, 2),
    ] {
        for plan in plans(&mut connection, sql.as_str(), arguments).await {
            assert_eq!(plan.matches("Scan using t_due on t").count(), ranges, "{plan}");
            assert!(!plan.contains("Seq Scan") && !plan.contains("Bitmap"), "{plan}");
            // Only the rows of at most two batches are sorted, which the index has selected.
            assert_eq!(plan.matches("Sort Key").count(), usize::from(plan.contains("LockRows")), "{plan}");
        }
    }
    for (sql, arguments) in [
        (&queries.list, "'q', '2026-01-01 07:00:00', 20000, 50"),
        (&queries.delete, "'{1,2,3}', 'q'"),
        (&queries.retry, "'x', '{}', 'q', 7, '2026-01-01 08:00:00'"),
    ] {
        for plan in plans(&mut connection, sql.as_str(), arguments).await {
            assert!(plan.contains("using t_pkey on t") || plan.contains("Bitmap Index Scan on t_pkey"), "{plan}");
            assert!(!plan.contains("Seq Scan"), "{plan}");
        }
    }
}
