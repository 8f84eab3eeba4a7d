//! What concerns PostgreSQL alone: Symfony's table and trigger, notifications, and what is said when something is wrong.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minutely::transport::{Sent, Transport, TransportError, built_in_factories};
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use crate::databases::Server;
use crate::private_servers::PrivateServer;
use crate::stage::{DEADLINE, Kind, Stage, ids, message, message_of, open, receive_bodies, send, send_later};

const INTERVAL: Duration = Duration::from_secs(60);

/// What Symfony Messenger 5.4 creates, as PostgreSQL describes it.
const SYMFONYS_TABLE: &str = "
    CREATE TABLE messenger_messages (id BIGSERIAL NOT NULL, body TEXT NOT NULL, headers TEXT NOT NULL,
        queue_name VARCHAR(190) NOT NULL, created_at TIMESTAMP(0) WITHOUT TIME ZONE NOT NULL,
        available_at TIMESTAMP(0) WITHOUT TIME ZONE NOT NULL,
        delivered_at TIMESTAMP(0) WITHOUT TIME ZONE DEFAULT NULL, PRIMARY KEY(id));
    CREATE INDEX IDX_75EA56E0FB7336F0 ON messenger_messages (queue_name);
    CREATE INDEX IDX_75EA56E0E3BD61CE ON messenger_messages (available_at);
    CREATE INDEX IDX_75EA56E016BA31DB ON messenger_messages (delivered_at);";
const SYMFONYS_FUNCTION: &str = "
    BEGIN
        PERFORM pg_notify('messenger_messages', NEW.queue_name::text);
        RETURN NEW;
    END;
";

async fn stage() -> Option<(Stage, PgConnection)> {
    let stage = Stage::new(Kind::Postgres).await?;
    let connection = PgConnection::connect(&stage.database().url()).await.unwrap();
    Some((stage, connection))
}

async fn text(connection: &mut PgConnection, sql: &str) -> String {
    let sql = format!("SELECT ({sql})::text");
    connection.fetch_one(AssertSqlSafe(sql)).await.unwrap().get::<Option<String>, _>(0).unwrap_or_default()
}

/// The columns, indexes and triggers of a table, as text.
async fn shape(connection: &mut PgConnection) -> String {
    let columns = "SELECT string_agg(concat_ws(' ', column_name, data_type, character_maximum_length, \
                   datetime_precision, is_nullable, column_default), ', ' ORDER BY ordinal_position) \
                   FROM information_schema.columns WHERE table_name = 'messenger_messages'";
    let indexes = "SELECT string_agg(indexdef, ', ' ORDER BY indexdef) FROM pg_indexes \
                   WHERE tablename = 'messenger_messages' AND indexname NOT LIKE '%_due'";
    text(connection, columns).await + &text(connection, indexes).await
}

async fn trigger(connection: &mut PgConnection) -> String {
    text(connection, "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'notify_trigger'").await
}

/// Makes a transport listen, and sees to it that nothing from before wakes it.
async fn listen(transport: &dyn Transport) {
    transport.waking().unwrap().wake().await.unwrap();
    assert!(transport.receive(1).await.unwrap().is_empty());
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn the_table_and_the_trigger_are_those_of_symfony() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let symfonys = shape(&mut connection).await;
    connection.execute("DROP TABLE messenger_messages").await.unwrap();

    stage.open("a").setting_up().unwrap().setup().await.unwrap();
    let ours = shape(&mut connection).await;
    // Symfony's three indexes stand where one stands here.
    assert!(symfonys.starts_with(ours.split("CREATE").next().unwrap()), "{ours}\n{symfonys}");
    let source = text(&mut connection, "SELECT prosrc FROM pg_proc WHERE proname = 'notify_messenger_messages'").await;
    assert_eq!(source, SYMFONYS_FUNCTION);
    assert_eq!(
        trigger(&mut connection).await,
        "CREATE TRIGGER notify_trigger AFTER INSERT OR UPDATE ON public.messenger_messages FOR EACH ROW \
         EXECUTE FUNCTION notify_messenger_messages()"
    );
}

#[tokio::test]
async fn symfonys_table_is_left_as_it_is_but_for_a_trigger_that_is_missing() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let before = shape(&mut connection).await;
    let transport = stage.open("a");
    send(&*transport, "{}").await;
    assert_eq!(trigger(&mut connection).await, "");
    transport.setting_up().unwrap().setup().await.unwrap();
    assert!(trigger(&mut connection).await.contains("EXECUTE FUNCTION notify_messenger_messages()"));
    assert_eq!(shape(&mut connection).await, before);
}

#[tokio::test]
async fn rows_that_symfony_wrote_are_read_and_ours_look_the_same() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    connection
        .execute(
            r#"INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at) VALUES ('{"n":1}',
            '{"type":"App\\Message\\Test","Content-Type":"application\/json"}', 'a', timezone('UTC', now()),
            timezone('UTC', now()) - interval '1 second')"#,
        )
        .await
        .unwrap();
    let transport = stage.open("a");
    let received = transport.receive(1).await.unwrap();
    assert_eq!(message_of(&received[0]), &message("{\"n\":1}"));

    // Half of all fractions would be rounded into the future, where the columns have none.
    for _ in 0..20 {
        send(&*transport, "{\"n\":2}").await;
        let ahead = "SELECT count(*) FROM messenger_messages WHERE available_at > timezone('UTC', clock_timestamp())";
        assert_eq!(text(&mut connection, ahead).await, "0");
    }
    let row = connection.fetch_one("SELECT * FROM messenger_messages ORDER BY id DESC LIMIT 1").await.unwrap();
    assert_eq!((row.get::<&str, _>("body"), row.get::<&str, _>("queue_name")), ("{\"n\":2}", "a"));
    let headers: serde_json::Value = serde_json::from_str(row.get("headers")).unwrap();
    assert_eq!(headers["type"], "App\\Message\\Test");
}

#[tokio::test]
async fn damaged_rows_are_received_for_what_they_are() {
    let Some((stage, mut connection)) = stage().await else { return };
    let transport = stage.open("a");
    send(&*transport, "last").await;
    connection.execute("UPDATE messenger_messages SET headers = 'nonsense'").await.unwrap();
    let received = transport.receive(1).await.unwrap();
    let damaged = received[0].message.as_ref().unwrap_err();
    assert_eq!((&*damaged.body, &*damaged.headers), (&b"last"[..], &b"nonsense"[..]));
}

#[tokio::test]
async fn a_table_in_a_schema_is_the_one_symfony_means() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute("CREATE SCHEMA queues").await.unwrap();
    let transport = stage.open_with("a", "{table_name: queues.Jobs}");
    let mut listener = PgListener::connect(&stage.database().url()).await.unwrap();
    listener.listen("queues.Jobs").await.unwrap();
    let id = send(&*transport, "{}").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "a");
    // Symfony does not quote the name, and PostgreSQL folds what is not quoted.
    assert_eq!(text(&mut connection, "SELECT count(*) FROM queues.jobs").await, "1");
    assert_eq!(ids(&transport.receive(1).await.unwrap()), [id]);
}

#[tokio::test]
async fn a_nul_byte_is_refused_with_its_reason() {
    let Some((stage, _connection)) = stage().await else { return };
    let transport = stage.open("a");
    let error = error_text(transport.send(&message("a\0b"), Duration::ZERO).await);
    assert!(error.contains("\"a\"") && error.contains("NUL"), "{error}");
    // Escaped as JSON escapes it there is nothing against it.
    send(&*transport, r#""\u0000""#).await;
    assert_eq!(receive_bodies(&*transport).await, [r#""\u0000""#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_wakes_who_waits_for_its_queue_and_nobody_else() {
    let Some((stage, _connection)) = stage().await else { return };
    let (consumer, other, producer) = (stage.open("a"), stage.open("b"), stage.open("a"));
    assert_eq!(consumer.waking().unwrap().poll_interval(), None);
    listen(&*consumer).await;
    listen(&*other).await;
    assert_eq!(consumer.waking().unwrap().poll_interval(), Some(INTERVAL));
    let mut quickest = DEADLINE;
    for _ in 0..5 {
        let (woken, sent) = tokio::join!(
            async {
                consumer.waking().unwrap().wake().await.unwrap();
                let received = consumer.receive(1).await.unwrap();
                assert_eq!(received.len(), 1);
                (Instant::now(), ids(&received))
            },
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                send(&*producer, "{}").await;
                Instant::now()
            }
        );
        consumer.ack(&woken.1).await.unwrap();
        assert!(consumer.receive(1).await.unwrap().is_empty());
        quickest = quickest.min(woken.0.saturating_duration_since(sent));
    }
    // On a busy machine one or the other takes longer.
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
    let wake = other.waking().unwrap().wake();
    assert!(tokio::time::timeout(Duration::from_millis(300), wake).await.is_err());
}

#[tokio::test]
async fn a_delayed_message_and_one_to_be_redelivered_wake_in_time() {
    let Some((stage, _connection)) = stage().await else { return };
    let transport = stage.open_with("a", "{redeliver_timeout: 2}");
    listen(&*transport).await;
    send_later(&*transport, "later", Duration::from_secs(2)).await;
    for _ in 0..2 {
        let start = Instant::now();
        while transport.receive(1).await.unwrap().is_empty() {
            let wake = transport.waking().unwrap().wake();
            tokio::time::timeout(DEADLINE, wake).await.unwrap().unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        // The first time as it was delayed, the second because nobody acknowledged it.
        assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn without_notifications_nothing_is_promised() {
    let Some((stage, mut connection)) = stage().await else { return };
    let without = stage.open_with("a", "{use_notify: false}");
    without.setting_up().unwrap().setup().await.unwrap();
    assert!(without.waking().is_none());
    assert_eq!(trigger(&mut connection).await, "");
    // A table without the trigger tells of nothing, so it has to be looked at as often as others.
    let waiting = stage.open("a");
    let error = error_text(waiting.waking().unwrap().wake().await);
    assert!(error.contains("notify_trigger") && error.contains("minutely setup"), "{error}");
    assert_eq!(waiting.waking().unwrap().poll_interval(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_queues_of_a_database_share_one_connection() {
    let Some((stage, mut connection)) = stage().await else { return };
    let factories = built_in_factories();
    let url = stage.database().url();
    let queues: Vec<Arc<dyn Transport>> = ["high", "normal", "low"]
        .map(|queue| open(queue, &format!("{url}?queue_name={queue}"), "{}", &factories, stage.dir()))
        .into();
    for queue in &queues {
        listen(&**queue).await;
        send(&**queue, "{}").await;
    }
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'minutely'";
    assert_eq!(text(&mut connection, count).await, "1");
    drop(queues);
    let deadline = Instant::now() + DEADLINE;
    while text(&mut connection, count).await != "0" {
        assert!(Instant::now() < deadline, "the connection is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_table_of_another_shape_is_an_error() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute("CREATE TABLE messenger_messages (id uuid PRIMARY KEY, name text)").await.unwrap();
    let transport = stage.open("a");
    for error in [
        error_text(transport.send(&message("{}"), Duration::ZERO).await),
        error_text(transport.receive(1).await),
        error_text(transport.counting().unwrap().pending(1).await),
    ] {
        assert!(error.starts_with("transport \"a\": "), "{error}");
        assert!(error.contains(stage.database().name()) && error.contains("another table_name"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_named_without_the_password() {
    let Some(mut server) = PrivateServer::start(Server::Postgres) else { return };
    let mut connection = PgConnection::connect(&server.admin_url()).await.unwrap();
    connection.execute("ALTER USER postgres PASSWORD 'p@ss/w:rd'").await.unwrap();
    connection.execute("CREATE USER reader PASSWORD 'reads'").await.unwrap();
    connection.execute("CREATE DATABASE other").await.unwrap();
    server.ask_for_passwords();
    send_as(&server, "postgres:p%40ss%2Fw%3Ard", "postgres").await.unwrap();
    let place = format!("127.0.0.1:{}/", server.port());
    for (login, database, expected) in [
        ("postgres:hunter2", "postgres", "check user name and password"),
        ("nobody:hunter2", "postgres", "check user name and password"),
        ("postgres:p%40ss%2Fw%3Ard", "missing", "create the database"),
        ("reader:reads", "other", "grant this user"),
    ] {
        let error = error_text(send_as(&server, login, database).await);
        assert!(error.contains("\"a\"") && error.contains(&place) && error.contains(expected), "{error}");
        assert!(!["hunter2", "p@ss", "p%40ss"].iter().any(|secret| error.contains(secret)), "{error}");
    }
    server.kill();
    let error = error_text(send_as(&server, "postgres:hunter2", "postgres").await);
    assert!(error.contains(&place) && error.contains("check that the server runs"), "{error}");
}

async fn send_as(server: &PrivateServer, login: &str, database: &str) -> Result<Sent, TransportError> {
    let transport = open("a", &server.url(login, database), "{}", &built_in_factories(), Path::new("/"));
    transport.send(&message("{}"), Duration::ZERO).await
}
