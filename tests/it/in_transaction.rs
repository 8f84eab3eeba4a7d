//! Messages that are stored in a transaction of the caller's.

use std::time::Duration;

use minutely::App;
use minutely::bus::{Bus, OpenTransaction, Tx, transaction};
use minutely::config::Config;
use minutely::handler::HandlerError;
use minutely::message::{DeduplicateStamp, Message};
use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use sqlx::{AssertSqlSafe, Connection, Database as Driver, Executor, Pool};

use crate::support::databases::{Database, Server};

#[derive(Serialize, Deserialize)]
struct Placed {
    id: i64,
}

impl Message for Placed {
    const TYPE: &'static str = r"App\Placed";
}

fn app(dsn: &str, dir: &std::path::Path) -> App {
    let config = Config::builder()
        .state_dir(dir.join("var"))
        .transport("orders", dsn)
        .transport("prio", "auto-fallback://prio?target=orders&fallback=sync")
        .transport("sync", "sync://")
        .transport("memory", "in-memory://")
        .route(Placed::TYPE, ["orders"]);
    App::builder().config(config).build().unwrap()
}

async fn pending(app: &App) -> u64 {
    let queue = app.transports().get("orders").unwrap();
    queue.counting.clone().unwrap().counts(100).await.unwrap().pending
}

/// A message exists exactly if the transaction with it is committed.
async fn exists_exactly_if_committed<D: Driver>(app: &App, pool: &Pool<D>, create: &'static str, insert: &'static str)
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
    for<'t> OpenTransaction<'t>: From<&'t mut D::Connection>,
{
    let mut connection = pool.acquire().await.unwrap();
    connection.execute(AssertSqlSafe(create)).await.unwrap();
    drop(connection);
    let mut tx = pool.begin().await.unwrap();
    (&mut *tx).execute(AssertSqlSafe(insert)).await.unwrap();
    let dispatched = app.dispatch_in(&mut *tx, &Placed { id: 1 }).await.unwrap();
    assert_eq!(dispatched.queued()[0].queued_on, "orders");
    assert_eq!(pending(app).await, 0, "nobody sees it before the commit");
    tx.rollback().await.unwrap();
    assert_eq!(pending(app).await, 0);

    let mut tx = pool.begin().await.unwrap();
    (&mut *tx).execute(AssertSqlSafe(insert)).await.unwrap();
    for id in 1..=3 {
        app.dispatch_in(&mut *tx, &Placed { id }).await.unwrap();
    }
    let later = app.dispatch(&Placed { id: 4 }).delay(Duration::from_secs(3600));
    later.in_transaction(&mut *tx).await.unwrap();
    // An auto-fallback that nobody consumes queues it all the same.
    let dispatched = app.dispatch(&Placed { id: 5 }).to(["prio"]).in_transaction(&mut *tx).await.unwrap();
    assert_eq!((dispatched.queued()[0].queued_on.as_str(), dispatched.is_handled()), ("orders", false));
    tx.commit().await.unwrap();
    assert_eq!(pending(app).await, 4);
    let queue = app.transports().get("orders").unwrap();
    let received = queue.receiver.clone().unwrap().receive(10).await.unwrap();
    let bodies: Vec<_> = received.iter().map(|one| one.message.as_ref().unwrap().body.clone()).collect();
    assert_eq!(bodies, [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#, r#"{"id":5}"#]);
}

const CREATE: &str = "CREATE TABLE placed (id INTEGER NOT NULL)";
const INSERT: &str = "INSERT INTO placed VALUES (1)";

fn sqlite(dir: &std::path::Path) -> String {
    format!("sqlite://{}/q.db", dir.display())
}

async fn sqlite_pool(dir: &std::path::Path, file: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(dir.join(file)).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal);
    SqlitePool::connect_with(options).await.unwrap()
}

#[test]
async fn on_sqlite_a_message_exists_exactly_if_its_transaction_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let pool = sqlite_pool(dir.path(), "q.db").await;
    exists_exactly_if_committed(&app(&sqlite(dir.path()), dir.path()), &pool, CREATE, INSERT).await;
}

#[test]
async fn on_postgres_a_message_exists_exactly_if_its_transaction_is_committed() {
    let Some(database) = Database::create(Server::Postgres).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = PgPoolOptions::new().connect(&database.url()).await.unwrap();
    exists_exactly_if_committed(&app(&database.url(), dir.path()), &pool, CREATE, INSERT).await;
}

#[test]
async fn on_mysql_a_message_exists_exactly_if_its_transaction_is_committed() {
    let Some(database) = Database::create(Server::Mysql).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = MySqlPoolOptions::new().connect(&database.url()).await.unwrap();
    exists_exactly_if_committed(&app(&database.url(), dir.path()), &pool, CREATE, INSERT).await;
}

/// A consumer that waits is woken by the commit.
async fn wakes<D: Driver>(dsn: &str, dir: &std::path::Path, pool: &Pool<D>)
where
    for<'t> OpenTransaction<'t>: From<&'t mut D::Connection>,
{
    let (producer, consumer) = (app(dsn, dir), app(dsn, dir));
    let queue = consumer.transports().get("orders").unwrap();
    queue.setting_up.clone().unwrap().setup().await.unwrap();
    let (receiver, waking) = (queue.receiver.clone().unwrap(), queue.waking.clone().unwrap());
    let woken = tokio::spawn(async move {
        loop {
            if receiver.receive(1).await.unwrap().len() == 1 {
                return;
            }
            waking.wake().await.unwrap();
        }
    });
    let mut tx = pool.begin().await.unwrap();
    producer.dispatch_in(&mut *tx, &Placed { id: 1 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!woken.is_finished());
    tx.commit().await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), woken).await.expect("it is woken").unwrap();
}

#[test]
async fn a_commit_on_postgres_wakes_a_waiting_consumer() {
    let Some(database) = Database::create(Server::Postgres).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = PgPoolOptions::new().connect(&database.url()).await.unwrap();
    wakes(&database.url(), dir.path(), &pool).await;
}

#[test]
async fn a_commit_on_sqlite_wakes_a_waiting_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let pool = sqlite_pool(dir.path(), "q.db").await;
    wakes(&sqlite(dir.path()), dir.path(), &pool).await;
}

#[test]
async fn what_a_transaction_cannot_hold_is_refused_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, other) = (sqlite_pool(dir.path(), "q.db").await, sqlite_pool(dir.path(), "other.db").await);
    let app = app(&sqlite(dir.path()), dir.path());
    let mut tx = pool.begin().await.unwrap();
    let placed = || app.dispatch(&Placed { id: 1 });
    for (dispatch, why) in [
        (placed().to(["orders", "memory"]), "orders and memory"),
        (placed().to::<&str>([]), "not routed to any transport"),
        (placed().to(["sync"]), "\"sync\" cannot store messages in a transaction"),
        (placed().to(["memory"]), "no queue in a table"),
        (placed().to(["nope"]), "no transport \"nope\""),
        (placed().stamp(DeduplicateStamp::new("a")), "stay claimed after a rollback"),
        (placed().after_current(), "DispatchAfterCurrentBusStamp"),
    ] {
        let error = dispatch.in_transaction(&mut tx).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    tx.commit().await.unwrap();
    let mut tx = other.begin().await.unwrap();
    let error = app.dispatch_in(&mut tx, &Placed { id: 1 }).await.unwrap_err().to_string();
    assert!(error.contains("other.db") && error.contains("q.db"), "{error}");
    drop(tx);
    assert_eq!(pending(&app).await, 0);
    let Some(database) = Database::create(Server::Postgres).await else { return };
    let mut connection = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    let error = app.dispatch_in(&mut tx, &Placed { id: 1 }).await.unwrap_err().to_string();
    assert!(error.contains("another kind of database"), "{error}");
}

#[test]
async fn a_handler_dispatches_in_the_transaction_that_it_shares() {
    async fn place(placed: Placed, bus: Bus, mut tx: Tx<sqlx::Sqlite>) -> Result<(), HandlerError> {
        let next = Placed { id: placed.id + 1 };
        bus.dispatch(&next).to(["orders"]).in_transaction(&mut tx).await?;
        if placed.id == 7 { Err(HandlerError::failed("no")) } else { Ok(()) }
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = sqlite_pool(dir.path(), "q.db").await;
    let config = Config::builder().state_dir(dir.path().join("var")).transport("orders", &sqlite(dir.path()));
    let app = App::builder().config(config).middleware(transaction(pool)).handle(place).build().unwrap();
    app.dispatch(&Placed { id: 7 }).await.unwrap_err();
    assert_eq!(pending(&app).await, 0);
    app.dispatch(&Placed { id: 1 }).await.unwrap();
    assert_eq!(pending(&app).await, 1);
}
