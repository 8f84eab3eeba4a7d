//! Behaviour that only MySQL and MariaDB have: Symfony's table and its finished rows, locks, and errors.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use minutely::transport::{Counts, Receipt, Sent, TransportError};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};

use super::stage::{
    DEADLINE, Kind, Stage, deliveries, ids, message, message_of, never_received, open, open_all, receive_bodies,
    receive_eventually, send,
};
use crate::support::databases::Server;
use crate::support::private_servers::PrivateServer;

/// What Symfony Messenger 5.4 creates.
const SYMFONYS_TABLE: &str = "
    CREATE TABLE messenger_messages (id BIGINT AUTO_INCREMENT NOT NULL, body LONGTEXT NOT NULL,
        headers LONGTEXT NOT NULL, queue_name VARCHAR(190) NOT NULL, created_at DATETIME NOT NULL,
        available_at DATETIME NOT NULL, delivered_at DATETIME DEFAULT NULL,
        INDEX IDX_75EA56E0FB7336F0 (queue_name), INDEX IDX_75EA56E0E3BD61CE (available_at),
        INDEX IDX_75EA56E016BA31DB (delivered_at), PRIMARY KEY(id))
        DEFAULT CHARACTER SET utf8mb4 COLLATE `utf8mb4_unicode_ci` ENGINE = InnoDB";

async fn stage() -> Option<(Stage, MySqlConnection)> {
    let stage = Stage::new(Kind::Mysql).await?;
    let connection = MySqlConnection::connect(&stage.database().url()).await.unwrap();
    Some((stage, connection))
}

async fn number(connection: &mut MySqlConnection, sql: &str) -> i64 {
    connection.fetch_one(AssertSqlSafe(format!("SELECT {sql}"))).await.unwrap().get(0)
}

async fn rows(connection: &mut MySqlConnection, condition: &str) -> i64 {
    number(connection, &format!("COUNT(*) FROM messenger_messages WHERE {condition}")).await
}

/// The columns of a table, and how it is kept.
async fn shape(connection: &mut MySqlConnection) -> String {
    let row = connection.fetch_one("SHOW CREATE TABLE messenger_messages").await.unwrap();
    let text: String = row.get(1);
    let lines = text.lines().filter(|line| !line.contains("KEY `"));
    lines.map(|line| line.split(" AUTO_INCREMENT=").next().unwrap().trim_end_matches(',').to_owned() + "\n").collect()
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
async fn the_table_is_that_of_symfony_and_an_existing_one_is_left_as_it_is() {
    let Some((stage, mut connection)) = stage().await else { return };
    stage.open("a").setting_up.as_ref().unwrap().setup().await.unwrap();
    let ours = shape(&mut connection).await;
    connection.execute("DROP TABLE messenger_messages").await.unwrap();
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let symfonys = shape(&mut connection).await;
    assert_eq!(ours.lines().take(8).collect::<Vec<_>>(), symfonys.lines().take(8).collect::<Vec<_>>());
    stage.open("a").setting_up.as_ref().unwrap().setup().await.unwrap();
    assert_eq!(shape(&mut connection).await, symfonys);
}

#[test]
async fn rows_that_symfony_wrote_are_read_and_ours_look_the_same() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let insert = r#"INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at) VALUES
        ('{"n":1}', '{"type":"App\\\\Message\\\\Test","Content-Type":"application\\/json"}', 'a', UTC_TIMESTAMP(),
        UTC_TIMESTAMP())"#;
    connection.execute(insert).await.unwrap();
    let transport = stage.open("a");
    let received = transport.receive(1).await.unwrap();
    assert_eq!(message_of(&received[0]), &message("{\"n\":1}"));
    send(&transport, "{\"n\":2}").await;
    let recent = "body = '{\"n\":2}' AND queue_name = 'a' AND delivered_at IS NULL AND available_at = created_at \
                  AND created_at BETWEEN UTC_TIMESTAMP() - INTERVAL 1 MINUTE AND UTC_TIMESTAMP()";
    assert_eq!(rows(&mut connection, recent).await, 1);
}

#[test]
async fn finished_rows_are_neither_counted_nor_delivered_nor_shown_nor_revived() {
    let Some((stage, mut connection)) = stage().await else { return };
    let transport = stage.open_with("a", "{redeliver_timeout: 0}");
    let id = send(&transport, "{}").await;
    let finish = "UPDATE messenger_messages SET delivered_at = '9999-12-31 23:59:59'";
    connection.execute(finish).await.unwrap();
    let (retrying, moving) = (transport.retrying.as_ref().unwrap(), transport.moving.as_ref().unwrap());
    let listing = transport.listing.as_ref().unwrap();
    assert_eq!(transport.counting.as_ref().unwrap().counts(10).await.unwrap(), Counts::default());
    assert!(listing.list(None, 10).await.unwrap().is_empty() && listing.find(&id).await.unwrap().is_none());
    let finished = never_received(std::slice::from_ref(&id), &Receipt("2026-01-01 00:00:00".into()));
    transport.releasing.as_ref().unwrap().release(&finished).await.unwrap();
    transport.keeping_alive.as_ref().unwrap().keep_alive(&finished, SystemTime::now()).await.unwrap();
    retrying.retry(&id, &message("{}"), Duration::ZERO).await.unwrap();
    moving.move_to(&id, &message("{}"), &stage.open("b").moving.as_ref().unwrap().place()).await.unwrap();
    assert_eq!(rows(&mut connection, "delivered_at = '9999-12-31 23:59:59' AND queue_name = 'a'").await, 1);
    assert!(transport.receive(1).await.unwrap().is_empty());
}

#[test]
async fn an_idle_consumer_deletes_finished_rows() {
    let Some((stage, mut connection)) = stage().await else { return };
    let transport = stage.open("a");
    for _ in 0..3 {
        send(&transport, "{}").await;
    }
    // The first purge happens at once: this is it.
    assert_eq!(transport.receive(3).await.unwrap().len(), 3);
    assert!(transport.receive(1).await.unwrap().is_empty());
    let all = transport.listing.as_ref().unwrap().list(None, 3).await.unwrap();
    let in_flight: Vec<_> = all.into_iter().map(|listed| listed.received).collect();
    transport.ack(&ids(&in_flight)).await.unwrap();
    assert_eq!(rows(&mut connection, "delivered_at = '9999-12-31 23:59:59'").await, 3);
    assert!(transport.receive(1).await.unwrap().is_empty());
    assert_eq!(rows(&mut connection, "TRUE").await, 0);
}

#[test]
async fn a_request_is_repeated_after_a_deadlock() {
    let Some((stage, mut other)) = stage().await else { return };
    let transport = stage.open("a");
    for n in 0..200 {
        send(&transport, n.to_string()).await;
    }
    let received = ids(&transport.receive(200).await.unwrap());
    // The other transaction has the second row and wants the first; ours has the first and wants the second. The server
    // aborts the one that has changed less, which is ours.
    let name = |n: usize| received[n].0.clone();
    other.execute("BEGIN").await.unwrap();
    let touch = |n: String| AssertSqlSafe(format!("UPDATE messenger_messages SET created_at = NOW() WHERE id >= {n}"));
    other.execute(touch(name(1))).await.unwrap();
    let ack = transport.ack(&received[..2]);
    let deadlock = async {
        // The tables of information_schema about locks are cached while they are queried.
        let table = format!("of table `{}`.", stage.database().name());
        let deadline = Instant::now() + DEADLINE;
        let mut observer = MySqlConnection::connect(&stage.database().url()).await.unwrap();
        loop {
            let status: String = observer.fetch_one("SHOW ENGINE INNODB STATUS").await.unwrap().get("Status");
            if status.lines().any(|line| line.contains(&table) && line.ends_with(" waiting")) {
                break;
            }
            assert!(Instant::now() < deadline, "nobody waits for a lock");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        other.execute(touch(name(0))).await.unwrap();
        other.execute("COMMIT").await.unwrap();
    };
    let (acknowledged, ()) = tokio::join!(ack, deadlock);
    acknowledged.unwrap();
    let counts = transport.counting.as_ref().unwrap().counts(1000).await.unwrap();
    assert_eq!(counts, Counts { in_flight: 198, ..Counts::default() });
}

/// The server does not notify consumers; processes on this host notify each other.
#[test]
async fn every_way_of_becoming_pending_wakes_consumers_on_this_host() {
    let Some((stage, mut connection)) = stage().await else { return };
    let (consumer, producer, other) = (stage.open("a"), stage.open("a"), stage.open("b"));
    let elsewhere = stage.open_with("a", "{table_name: other}");
    for transport in [&consumer, &elsewhere] {
        transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    }
    let waking = consumer.waking.as_ref().unwrap();
    let id = send(&producer, "{}").await;
    // Starts to watch, and receives what is there.
    let received = consumer.receive(1).await.unwrap();
    producer.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    tokio::time::timeout(DEADLINE, waking.wake()).await.expect("released").unwrap();

    assert_eq!(ids(&consumer.receive(1).await.unwrap()), std::slice::from_ref(&id));
    producer.retrying.as_ref().unwrap().retry(&id, &message("{}"), Duration::ZERO).await.unwrap();
    tokio::time::timeout(DEADLINE, waking.wake()).await.expect("retried").unwrap();

    receive_eventually(&consumer).await;
    producer.retrying.as_ref().unwrap().retry(&id, &message("{}"), Duration::from_secs(3600)).await.unwrap();
    tokio::time::timeout(DEADLINE, waking.wake()).await.expect("delayed").unwrap();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    producer.parking.as_ref().unwrap().resume().await.unwrap();
    tokio::time::timeout(DEADLINE, waking.wake()).await.expect("resumed").unwrap();

    for from in [&other, &elsewhere] {
        receive_eventually(&consumer).await;
        let id = send(from, "{}").await;
        let quiet = tokio::time::timeout(Duration::from_millis(300), waking.wake()).await;
        assert!(quiet.is_err(), "woken by what is for others");
        from.moving
            .as_ref()
            .unwrap()
            .move_to(&id, &message("{}"), &consumer.moving.as_ref().unwrap().place())
            .await
            .unwrap();
        tokio::time::timeout(DEADLINE, waking.wake()).await.expect("moved").unwrap();
    }
    // Another host's message is found by polling, as often as without waking.
    consumer.receive(10).await.unwrap();
    connection.execute("UPDATE messenger_messages SET delivered_at = NULL").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), waking.wake()).await.is_err());
    assert_eq!(waking.poll_interval(), None);
    assert_ne!(consumer.receive(10).await.unwrap().len(), 0);
}

#[test]
async fn a_message_that_does_not_fit_into_the_table_is_refused_and_not_cut() {
    let Some((stage, mut connection)) = stage().await else { return };
    let table = SYMFONYS_TABLE.replace("utf8mb4_unicode_ci", "utf8mb3_unicode_ci").replace("utf8mb4", "utf8mb3");
    connection.execute(AssertSqlSafe(table)).await.unwrap();
    let transport = stage.open("a");
    let error = error_text(transport.send(&message("\"😀\""), Duration::ZERO).await);
    assert!(error.contains("utf8mb4"), "{error}");
    send(&transport, "\"ä\"").await;
    assert_eq!(receive_bodies(&transport).await, ["\"ä\""]);
}

#[test]
async fn a_table_of_another_shape_is_an_error() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute("CREATE TABLE messenger_messages (id INT PRIMARY KEY, name TEXT)").await.unwrap();
    let transport = stage.open("a");
    for error in [
        error_text(transport.send(&message("{}"), Duration::ZERO).await),
        error_text(transport.receive(1).await),
        error_text(transport.counting.as_ref().unwrap().pending(1).await),
    ] {
        assert!(error.starts_with("transport \"a\": "), "{error}");
        assert!(error.contains(stage.database().name()) && error.contains("another table_name"), "{error}");
    }
}

#[test]
async fn all_queues_of_a_database_share_one_connection() {
    let Some((stage, mut connection)) = stage().await else { return };
    let url = stage.database().url();
    let dsns = ["high", "normal", "low"].map(|queue| (queue, format!("{url}?queue_name={queue}")));
    let queues = open_all(&dsns, stage.dir());
    for queue in &queues {
        send(queue, "{}").await;
    }
    let count = "COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    assert_eq!(number(&mut connection, count).await, 1);
    drop(queues);
    let deadline = Instant::now() + DEADLINE;
    while number(&mut connection, count).await != 0 {
        assert!(Instant::now() < deadline, "the connection is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
async fn a_connection_that_the_server_closed_meanwhile_is_opened_again() {
    let Some((stage, mut connection)) = stage().await else { return };
    let transport = stage.open("a");
    send(&transport, "1").await;
    let count = "COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let find = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let id: i64 = connection.fetch_one(find).await.unwrap().get(0);
    connection.execute(AssertSqlSafe(format!("KILL {id}"))).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while number(&mut connection, count).await != 0 {
        assert!(Instant::now() < deadline, "the connection is still there");
    }
    // One that was used a moment ago is not asked whether it is there still.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    send(&transport, "2").await;
    assert_eq!(receive_bodies(&transport).await, ["1", "2"]);
}

#[test]
async fn a_server_that_refuses_is_named_without_the_password() {
    let Some(mut server) = PrivateServer::start(Server::Mysql) else { return };
    let mut connection = MySqlConnection::connect(&server.admin_url()).await.unwrap();
    for sql in [
        "CREATE DATABASE app",
        "CREATE USER app IDENTIFIED BY 'p@ss/w:rd'",
        "GRANT ALL ON app.* TO app",
        "CREATE USER few IDENTIFIED BY 'few' WITH MAX_USER_CONNECTIONS 1",
        "GRANT ALL ON app.* TO few",
        "CREATE USER reader IDENTIFIED BY 'reads'",
        "CREATE DATABASE other",
        "GRANT SELECT ON other.* TO reader",
    ] {
        connection.execute(sql).await.unwrap();
    }
    send_as(&server, "app:p%40ss%2Fw%3Ard", "app").await.unwrap();
    let _other = MySqlConnection::connect(&server.url("few:few", "app")).await.unwrap();
    let place = format!("127.0.0.1:{}/", server.port());
    for (login, database, expected) in [
        ("app:hunter2", "app", "check user name and password"),
        ("nobody:hunter2", "app", "check user name and password"),
        ("root", "missing", "create the database"),
        ("app:p%40ss%2Fw%3Ard", "mysql", "grant this user access"),
        ("reader:reads", "other", "grant this user what is missing"),
        ("few:few", "app", "allows no more connections"),
    ] {
        let error = error_text(send_as(&server, login, database).await);
        assert!(error.contains("\"a\"") && error.contains(&place) && error.contains(expected), "{error}");
        assert!(!["hunter2", "p@ss", "p%40ss"].iter().any(|secret| error.contains(secret)), "{error}");
    }
    server.kill();
    let error = error_text(send_as(&server, "app:hunter2", "app").await);
    assert!(error.contains(&place) && error.contains("check that the server runs"), "{error}");
}

#[test]
async fn a_connection_within_this_host_is_encrypted_on_demand() {
    let Some(mut server) = PrivateServer::start(Server::Mysql) else { return };
    if !server.encrypt() {
        return;
    }
    let mut connection = MySqlConnection::connect(&server.admin_url()).await.unwrap();
    for sql in [
        "CREATE DATABASE app",
        "CREATE USER plain",
        "GRANT ALL ON app.* TO plain",
        "CREATE USER encrypted REQUIRE SSL",
        "GRANT ALL ON app.* TO encrypted",
    ] {
        connection.execute(sql).await.unwrap();
    }
    let encrypted = async |connection: &mut MySqlConnection| {
        let row = connection.fetch_one("SHOW GLOBAL STATUS LIKE 'Ssl_finished_accepts'").await.unwrap();
        row.get::<String, _>(1).parse::<u64>().unwrap()
    };
    for (user, parameters, expected) in [
        ("plain", "", 0),
        ("plain", "?ssl-mode=preferred", 1),
        ("plain", "?ssl-mode=required", 1),
        ("encrypted", "", 1),
    ] {
        let before = encrypted(&mut connection).await;
        let dsn = server.url(user, "app") + parameters;
        let transport = open("a", &dsn, "{}", Path::new("/"));
        send(&transport, "{}").await;
        assert_eq!(encrypted(&mut connection).await - before, expected, "{user} {parameters}");
    }
}

async fn send_as(server: &PrivateServer, login: &str, database: &str) -> Result<Sent, TransportError> {
    let transport = open("a", &server.url(login, database), "{}", Path::new("/"));
    transport.send(&message("{}"), Duration::ZERO).await
}
