//! Behaviour that only PostgreSQL has: Symfony's table and trigger, notifications, and errors.

use std::path::Path;
use std::time::{Duration, Instant};

use minutely::transport::{Sent, TransportError};
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::stage::{
    DEADLINE, Kind, Queue, Stage, deliveries, ids, message, message_of, open, open_all, receive_bodies, send,
    send_later,
};
use crate::support::databases::Server;
use crate::support::private_servers::PrivateServer;

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

/// Makes a transport listen, so that nothing from before wakes it.
async fn listen(transport: &Queue) {
    transport.waking.as_ref().unwrap().wake().await.unwrap();
    assert!(transport.receive(1).await.unwrap().is_empty());
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
async fn the_table_and_the_trigger_are_those_of_symfony() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let symfonys = shape(&mut connection).await;
    connection.execute("DROP TABLE messenger_messages").await.unwrap();

    stage.open("a").setting_up.as_ref().unwrap().setup().await.unwrap();
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

#[test]
async fn symfonys_table_is_left_as_it_is() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let before = shape(&mut connection).await;
    let transport = stage.open("a");
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    send(&transport, "{}").await;
    listen(&stage.open("b")).await;
    assert_eq!(shape(&mut connection).await, before);
    assert_eq!(trigger(&mut connection).await, "");
}

/// Symfony from 2026 on has no trigger, and notifies by a statement of its own.
#[test]
async fn a_message_from_a_symfony_without_the_trigger_wakes_at_once() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    let consumer = stage.open("a");
    listen(&consumer).await;
    let sent = async {
        let insert = "INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at) VALUES \
                      ('{}', '{}', 'a', timezone('UTC', now()), timezone('UTC', now()) - interval '1 second')";
        connection.execute(insert).await.unwrap();
        connection.execute("SELECT pg_notify('messenger_messages', 'a')").await.unwrap();
    };
    let waking = consumer.waking.as_ref().unwrap();
    let (woken, ()) = tokio::join!(tokio::time::timeout(DEADLINE, waking.wake()), sent);
    woken.unwrap().unwrap();
    assert_eq!(consumer.receive(1).await.unwrap().len(), 1);
    // An earlier Symfony would insert without a notification, so it is polled as often as other stores.
    assert_eq!(waking.poll_interval(), None);
}

#[test]
async fn listeners_are_notified_once_with_and_without_the_trigger() {
    let Some((stage, mut connection)) = stage().await else { return };
    for with_trigger in [false, true] {
        let tables = if with_trigger { ["with", "also_with"] } else { ["without", "also_without"] };
        let [transport, elsewhere] =
            tables.map(|table| stage.open_with("a", &format!("{{table_name: {table}, redeliver_timeout: 9999}}")));
        let neighbour = stage.open_with("b", &format!("{{table_name: {}}}", tables[0]));
        for (transport, table) in [(&transport, tables[0]), (&elsewhere, tables[1])] {
            transport.setting_up.as_ref().unwrap().setup().await.unwrap();
            if !with_trigger {
                let drop = format!("DROP TRIGGER notify_trigger ON {table}");
                connection.execute(AssertSqlSafe(drop)).await.unwrap();
            }
        }
        let mut listener = PgListener::connect(&stage.database().url()).await.unwrap();
        listener.listen_all(tables).await.unwrap();
        let (retrying, moving) = (transport.retrying.as_ref().unwrap(), transport.moving.as_ref().unwrap());
        let expected = |table: usize, queue: &str| vec![format!("{} {queue}", tables[table])];

        let first = send(&transport, "1").await;
        assert_eq!(notifications(&mut listener, &mut connection, tables[0]).await, expected(0, "a"), "sent");
        send_later(&transport, "2", INTERVAL).await;
        assert_eq!(notifications(&mut listener, &mut connection, tables[0]).await, expected(0, "a"), "sent for later");
        send(&transport, "3").await;
        let received = transport.receive(2).await.unwrap();
        let (received, taken) = (ids(&received), deliveries(&received));
        notifications(&mut listener, &mut connection, tables[0]).await;
        transport.releasing.as_ref().unwrap().release(&taken).await.unwrap();
        assert_eq!(
            notifications(&mut listener, &mut connection, tables[0]).await,
            expected(0, "a"),
            "released, two at once"
        );
        retrying.retry(&first, &message("1"), INTERVAL).await.unwrap();
        assert_eq!(notifications(&mut listener, &mut connection, tables[0]).await, expected(0, "a"), "retried");
        let place = neighbour.moving.as_ref().unwrap().place();
        moving.move_to(&first, &message("1"), &place).await.unwrap().unwrap();
        assert_eq!(
            notifications(&mut listener, &mut connection, tables[0]).await,
            expected(0, "b"),
            "moved to another queue"
        );
        let place = elsewhere.moving.as_ref().unwrap().place();
        moving.move_to(&received[1], &message("3"), &place).await.unwrap().unwrap();
        assert_eq!(
            notifications(&mut listener, &mut connection, tables[0]).await,
            expected(1, "a"),
            "moved to another table"
        );
        transport.releasing.as_ref().unwrap().release(&taken).await.unwrap();
        retrying.retry(&received[1], &message("3"), INTERVAL).await.unwrap();
        assert!(
            notifications(&mut listener, &mut connection, tables[0]).await.is_empty(),
            "nothing was there to change"
        );
    }
}

/// The channels and payloads of the notifications that a listener has received.
async fn notifications(listener: &mut PgListener, connection: &mut PgConnection, channel: &str) -> Vec<String> {
    // Notifications come in the order of the commits.
    connection.execute(AssertSqlSafe(format!("SELECT pg_notify('{channel}', 'end')"))).await.unwrap();
    let mut received = vec![];
    loop {
        let notification = listener.recv().await.unwrap();
        if notification.payload() == "end" {
            return received;
        }
        received.push(format!("{} {}", notification.channel(), notification.payload()));
    }
}

#[test]
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
        send(&transport, "{\"n\":2}").await;
        let ahead = "SELECT count(*) FROM messenger_messages WHERE available_at > timezone('UTC', clock_timestamp())";
        assert_eq!(text(&mut connection, ahead).await, "0");
    }
    let row = connection.fetch_one("SELECT * FROM messenger_messages ORDER BY id DESC LIMIT 1").await.unwrap();
    assert_eq!((row.get::<&str, _>("body"), row.get::<&str, _>("queue_name")), ("{\"n\":2}", "a"));
    let headers: serde_json::Value = serde_json::from_str(row.get("headers")).unwrap();
    assert_eq!(headers["type"], "App\\Message\\Test");
}

#[test]
async fn damaged_rows_are_received_as_damaged() {
    let Some((stage, mut connection)) = stage().await else { return };
    let transport = stage.open("a");
    send(&transport, "last").await;
    connection.execute("UPDATE messenger_messages SET headers = 'nonsense'").await.unwrap();
    let received = transport.receive(1).await.unwrap();
    let damaged = received[0].message.as_ref().unwrap_err();
    assert_eq!((&*damaged.body, &*damaged.headers), (&b"last"[..], &b"nonsense"[..]));
}

#[test]
async fn a_table_in_a_schema_is_the_one_that_symfony_uses() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute("CREATE SCHEMA queues").await.unwrap();
    let transport = stage.open_with("a", "{table_name: queues.Jobs}");
    let mut listener = PgListener::connect(&stage.database().url()).await.unwrap();
    listener.listen("queues.Jobs").await.unwrap();
    let id = send(&transport, "{}").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "a");
    // Symfony does not quote the name, and PostgreSQL folds what is not quoted.
    assert_eq!(text(&mut connection, "SELECT count(*) FROM queues.jobs").await, "1");
    assert_eq!(ids(&transport.receive(1).await.unwrap()), [id]);
}

#[test]
async fn a_nul_byte_is_refused_with_its_reason() {
    let Some((stage, _connection)) = stage().await else { return };
    let transport = stage.open("a");
    let error = error_text(transport.send(&message("a\0b"), Duration::ZERO).await);
    assert!(error.contains("\"a\"") && error.contains("NUL"), "{error}");
    // Escaped as JSON escapes it there is nothing against it.
    send(&transport, r#""\u0000""#).await;
    assert_eq!(receive_bodies(&transport).await, [r#""\u0000""#]);
}

#[test]
async fn a_message_wakes_only_consumers_of_its_queue() {
    let Some((stage, _connection)) = stage().await else { return };
    let (consumer, other, producer) = (stage.open("a"), stage.open("b"), stage.open("a"));
    assert_eq!(consumer.waking.as_ref().unwrap().poll_interval(), None);
    listen(&consumer).await;
    listen(&other).await;
    assert_eq!(consumer.waking.as_ref().unwrap().poll_interval(), Some(INTERVAL));
    let mut quickest = DEADLINE;
    for _ in 0..5 {
        let (woken, sent) = tokio::join!(
            async {
                consumer.waking.as_ref().unwrap().wake().await.unwrap();
                let received = consumer.receive(1).await.unwrap();
                assert_eq!(received.len(), 1);
                (Instant::now(), ids(&received))
            },
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                send(&producer, "{}").await;
                Instant::now()
            }
        );
        consumer.ack(&woken.1).await.unwrap();
        assert!(consumer.receive(1).await.unwrap().is_empty());
        quickest = quickest.min(woken.0.saturating_duration_since(sent));
    }
    // On a busy machine one or the other takes longer.
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
    let wake = other.waking.as_ref().unwrap().wake();
    assert!(tokio::time::timeout(Duration::from_millis(300), wake).await.is_err());
}

#[test]
async fn a_delayed_message_and_one_to_be_redelivered_wake_in_time() {
    let Some((stage, _connection)) = stage().await else { return };
    let transport = stage.open_with("a", "{redeliver_timeout: 2}");
    listen(&transport).await;
    send_later(&transport, "later", Duration::from_secs(2)).await;
    for _ in 0..2 {
        let start = Instant::now();
        while transport.receive(1).await.unwrap().is_empty() {
            let wake = transport.waking.as_ref().unwrap().wake();
            tokio::time::timeout(DEADLINE, wake).await.unwrap().unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        // First because its delay is over, then because it was not acknowledged.
        assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    }
}

#[test]
async fn without_notifications_consumers_keep_polling() {
    let Some((stage, mut connection)) = stage().await else { return };
    let without = stage.open_with("a", "{use_notify: false}");
    without.setting_up.as_ref().unwrap().setup().await.unwrap();
    assert!(without.waking.is_none());
    assert_eq!(trigger(&mut connection).await, "");
    send(&without, "{}").await;
    let mut listener = PgListener::connect(&stage.database().url()).await.unwrap();
    listener.listen("messenger_messages").await.unwrap();
    let id = send(&without, "{}").await;
    without.retrying.as_ref().unwrap().retry(&id, &message("{}"), Duration::ZERO).await.unwrap();
    assert!(notifications(&mut listener, &mut connection, "messenger_messages").await.is_empty());
}

#[test]
async fn consumers_of_several_tables_are_woken_over_one_connection() {
    let Some((stage, mut connection)) = stage().await else { return };
    let url = stage.database().url();
    let dsns = ["a", "b"].map(|table| (table, format!("{url}?table_name={table}")));
    let tables = open_all(&dsns, stage.dir());
    for table in &tables {
        listen(table).await;
    }
    for table in &tables {
        let insert = format!(
            "INSERT INTO {} (body, headers, queue_name, created_at, available_at) \
             VALUES ('{{}}', '{{}}', 'default', date_trunc('second', now() at time zone 'UTC'), \
             date_trunc('second', now() at time zone 'UTC'))",
            table.name()
        );
        connection.execute(AssertSqlSafe(insert)).await.unwrap();
        let woken = tokio::time::timeout(DEADLINE, table.waking.as_ref().unwrap().wake()).await;
        woken.expect("a consumer is notified").unwrap();
        assert_eq!(table.receive(1).await.unwrap().len(), 1);
    }
}

#[test]
async fn all_queues_of_a_database_share_one_connection() {
    let Some((stage, mut connection)) = stage().await else { return };
    let url = stage.database().url();
    let dsns = ["high", "normal", "low"].map(|queue| (queue, format!("{url}?queue_name={queue}")));
    let queues = open_all(&dsns, stage.dir());
    for queue in &queues {
        listen(queue).await;
        send(queue, "{}").await;
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

#[test]
async fn a_table_of_another_shape_is_an_error() {
    let Some((stage, mut connection)) = stage().await else { return };
    connection.execute("CREATE TABLE messenger_messages (id uuid PRIMARY KEY, name text)").await.unwrap();
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

/// Encryption between two programs on one host takes most of the time of connecting, and protects nothing.
#[test]
async fn a_connection_within_this_host_is_encrypted_on_demand() {
    let Some(mut server) = PrivateServer::start(Server::Postgres) else { return };
    if !server.encrypt() {
        return;
    }
    let mut connection = PgConnection::connect(&server.admin_url()).await.unwrap();
    connection.execute("CREATE USER encrypted SUPERUSER").await.unwrap();
    let are_encrypted = "SELECT string_agg(DISTINCT ssl::text, '') FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                         WHERE application_name = 'minutely'";
    for (user, parameters, expected) in [
        ("postgres", "", "false"),
        ("postgres", "?sslmode=prefer", "true"),
        ("postgres", "?sslmode=require", "true"),
        ("postgres", "?sslmode=allow", "false"),
        ("encrypted", "", "true"),
        ("encrypted", "?sslmode=allow", "true"),
    ] {
        let dsn = server.url(user, "postgres") + parameters;
        let transport = open("a", &dsn, "{}", Path::new("/"));
        listen(&transport).await;
        assert_eq!(text(&mut connection, are_encrypted).await, expected, "{user} {parameters}");
        drop(transport);
        let deadline = Instant::now() + DEADLINE;
        while !text(&mut connection, are_encrypted).await.is_empty() {
            assert!(Instant::now() < deadline, "the connection is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[test]
async fn a_connection_that_could_not_be_replaced_to_listen_is_opened_again() {
    let Some(server) = PrivateServer::start(Server::Postgres) else { return };
    let mut connection = PgConnection::connect(&server.admin_url()).await.unwrap();
    connection.execute("CREATE USER worker; GRANT ALL ON SCHEMA public TO worker").await.unwrap();
    let transport = open("a", &server.url("worker", "postgres"), "{}", Path::new("/"));
    send(&transport, "{}").await;
    connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC").await.unwrap();
    let refused = tokio::time::timeout(DEADLINE, transport.waking.as_ref().unwrap().wake()).await.unwrap();
    assert!(error_text(refused).contains("grant this user"));
    connection.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC").await.unwrap();
    send(&transport, "{}").await;
}

#[test]
async fn resumed_messages_wake_waiting_consumers() {
    let Some((stage, mut connection)) = stage().await else { return };
    let (consumer, other) = (stage.open("a"), stage.open("a"));
    consumer.setting_up.as_ref().unwrap().setup().await.unwrap();
    // It would notify of every change. Symfony's later versions have no trigger.
    connection.execute("DROP TRIGGER notify_trigger ON messenger_messages").await.unwrap();
    listen(&consumer).await;
    send_later(&other, "{}", Duration::from_secs(3600)).await;
    // The delayed message itself is notified.
    consumer.waking.as_ref().unwrap().wake().await.unwrap();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    other.parking.as_ref().unwrap().resume().await.unwrap();
    tokio::time::timeout(DEADLINE, consumer.waking.as_ref().unwrap().wake()).await.expect("resumed").unwrap();
    assert_eq!(receive_bodies(&consumer).await, ["{}"]);
}

async fn send_as(server: &PrivateServer, login: &str, database: &str) -> Result<Sent, TransportError> {
    let transport = open("a", &server.url(login, database), "{}", Path::new("/"));
    transport.send(&message("{}"), Duration::ZERO).await
}
