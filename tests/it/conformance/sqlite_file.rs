//! SQLite alone: the file, what others write into it, and many processes at once.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use minutely::message::{Envelope, UndecodableError};
use minutely::transport::{Counts, MessageId, Sent, TransportError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use super::stage::{
    DEADLINE, Kind, Queue, Stage, bodies, ids, message, message_of, open, receive_bodies, send, send_later,
};

/// What Symfony Messenger 7.2 creates on SQLite.
const SYMFONYS_TABLE: &str = "
    CREATE TABLE messenger_messages (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, body CLOB NOT NULL, headers CLOB
        NOT NULL, queue_name VARCHAR(190) NOT NULL, created_at DATETIME NOT NULL, available_at DATETIME NOT NULL,
        delivered_at DATETIME DEFAULT NULL);
    CREATE INDEX IDX_75EA56E0FB7336F0 ON messenger_messages (queue_name);
    CREATE INDEX IDX_75EA56E0E3BD61CE ON messenger_messages (available_at);
    CREATE INDEX IDX_75EA56E016BA31DB ON messenger_messages (delivered_at);";

/// Set in the processes that the tests below start of this test program: what they are to do, and where.
const ROLE: &str = "MINUTELY_TEST_ROLE";
const DIR: &str = "MINUTELY_TEST_DIR";

fn open_file(dir: &Path) -> Arc<Queue> {
    open("a", "sqlite:var/queue.db?queue_name=a", "{}", dir)
}

async fn raw(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).create_if_missing(true).connect().await.unwrap()
}

/// The file that Symfony has created, and our transport on it.
async fn symfonys(stage: &Stage) -> (SqliteConnection, Arc<Queue>) {
    std::fs::create_dir(stage.dir().join("var")).unwrap();
    let mut connection = raw(&stage.dir().join("var/queue.db")).await;
    connection.execute(SYMFONYS_TABLE).await.unwrap();
    (connection, open_file(stage.dir()))
}

/// Inserts a row as SQL expressions.
async fn insert(connection: &mut SqliteConnection, body: &str, headers: &str, delivered_at: &str) {
    let sql = format!(
        "INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at, delivered_at) \
         VALUES ({body}, {headers}, 'a', datetime('now'), datetime('now'), {delivered_at})"
    );
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
async fn rows_that_symfony_wrote_are_read_and_ours_look_the_same() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, transport) = symfonys(&stage).await;
    insert(
        &mut connection,
        "'{\"n\":1}'",
        r#"'{"type":"App\\Message\\Test","Content-Type":"application\/json"}'"#,
        "NULL",
    )
    .await;
    let received = transport.receive(1).await.unwrap();
    assert_eq!(message_of(&received[0]), &message("{\"n\":1}"));

    send(&transport, "{\"n\":2}").await;
    let sql = "SELECT *, typeof(body) || typeof(headers) || typeof(available_at) AS types, \
               available_at BETWEEN datetime('now', '-60 seconds') AND datetime('now') AS now \
               FROM messenger_messages ORDER BY id";
    let rows = connection.fetch_all(sql).await.unwrap();
    let delivered_at: Option<String> = rows[0].get("delivered_at");
    assert_eq!(delivered_at.unwrap().len(), "2026-01-31 10:00:00".len());
    assert_eq!(rows[1].get::<&str, _>("types"), "texttexttext");
    assert!(rows[1].get::<bool, _>("now"));
    assert_eq!(rows[1].get::<&str, _>("body"), "{\"n\":2}");
    assert_eq!(rows[1].get::<&str, _>("queue_name"), "a");
    let headers: serde_json::Value = serde_json::from_str(rows[1].get("headers")).unwrap();
    assert_eq!(headers["type"], "App\\Message\\Test");
}

#[test]
async fn symfonys_table_is_left_as_it_is() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, transport) = symfonys(&stage).await;
    let schema = "SELECT group_concat(sql, ';') FROM sqlite_master";
    let before: String = connection.fetch_one(schema).await.unwrap().get(0);
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    send(&transport, "{}").await;
    let after: String = connection.fetch_one(schema).await.unwrap().get(0);
    assert_eq!(before, after);
}

/// Waits until the queue's consumer is woken, and has something to take.
async fn woken(consumer: &Queue) -> Vec<String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let wake = tokio::time::timeout(DEADLINE, consumer.waking.as_ref().unwrap().wake());
        wake.await.expect("it is woken").unwrap();
        let received = consumer.receive(10).await.unwrap();
        if !received.is_empty() {
            consumer.ack(&ids(&received)).await.unwrap();
            return bodies(&received);
        }
        assert!(Instant::now() < deadline, "it is woken for nothing");
    }
}

#[test]
async fn a_message_of_another_program_wakes_at_once() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, transport) = symfonys(&stage).await;
    connection.execute("PRAGMA synchronous = FULL").await.unwrap();
    let mut quickest = DEADLINE;
    for n in 0..10 {
        let sent = async {
            // It is waited for by then, or else looked for.
            tokio::time::sleep(Duration::from_millis(30)).await;
            let begun = Instant::now();
            insert(&mut connection, &format!("'{n}'"), "'{}'", "NULL").await;
            begun
        };
        let (bodies, begun) = tokio::join!(woken(&transport), sent);
        assert_eq!(bodies, [n.to_string()]);
        quickest = quickest.min(begun.elapsed());
    }
    // On a busy machine one or the other takes longer.
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
}

#[test]
async fn a_message_for_another_queue_wakes_nobody() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (a, b) = (stage.open("a"), stage.open("b"));
    send(&b, "{}").await;
    let wake = tokio::time::timeout(Duration::from_millis(700), a.waking.as_ref().unwrap().wake());
    let (waited, _) = tokio::join!(wake, send(&b, "{}"));
    assert!(waited.is_err());
}

#[test]
async fn a_consumer_waits_for_a_missing_file_and_for_one_that_replaces_it() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let consumer = stage.open("a");
    let error = error_text(consumer.waking.as_ref().unwrap().wake().await);
    assert!(error.contains("queue.db") && error.contains("\"a\""), "no folder, nothing to watch: {error}");
    let folder = stage.dir().join("var");
    std::fs::create_dir(&folder).unwrap();
    for n in 0..3 {
        let sent = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for name in ["queue.db", "queue.db-wal", "queue.db-shm"] {
                let _ = std::fs::remove_file(folder.join(name));
            }
            send(&stage.open("a"), n.to_string()).await;
        };
        let (bodies, ()) = tokio::join!(woken(&consumer), sent);
        assert_eq!(bodies, [n.to_string()]);
    }
}

#[test]
async fn a_consumer_is_woken_through_a_symbolic_link() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, _) = symfonys(&stage).await;
    std::os::unix::fs::symlink("var/queue.db", stage.dir().join("link.db")).unwrap();
    let consumer = open("a", "sqlite:link.db?queue_name=a", "{}", stage.dir());
    let sent = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        insert(&mut connection, "'1'", "'{}'", "NULL").await;
    };
    let (bodies, ()) = tokio::join!(woken(&consumer), sent);
    assert_eq!(bodies, ["1"]);
}

#[test]
async fn a_delayed_message_and_one_to_be_redelivered_wake_in_time() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let transport = stage.open_with("a", "{redeliver_timeout: 2}");
    send_later(&transport, "later", Duration::from_secs(2)).await;
    for _ in 0..2 {
        let start = Instant::now();
        while transport.receive(1).await.unwrap().is_empty() {
            let wake = transport.waking.as_ref().unwrap().wake();
            tokio::time::timeout(DEADLINE, wake).await.unwrap().unwrap();
        }
        // The first time as it was delayed, the second because nobody acknowledged it.
        assert!(start.elapsed() > Duration::from_millis(1900), "{:?}", start.elapsed());
    }
}

#[test]
async fn messages_in_flight_at_a_php_worker_are_left_to_it_until_they_time_out() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, transport) = symfonys(&stage).await;
    insert(&mut connection, "'late'", "'{}'", "datetime('now', '-3602 seconds')").await;
    insert(&mut connection, "'in hand'", "'{}'", "datetime('now', '-3500 seconds')").await;
    let counts = transport.counting.as_ref().unwrap().counts(10).await.unwrap();
    assert_eq!(counts, Counts { pending: 1, delayed: 0, in_flight: 1 });
    assert_eq!(receive_bodies(&transport).await, ["late"]);
}

#[test]
async fn damaged_rows_are_received_as_damaged_and_block_nothing() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let (mut connection, transport) = symfonys(&stage).await;
    let damaged = ["'nonsense'", "''", "X'ff00fe'", "CAST(X'7b22ff223a2278227d' AS TEXT)", "7", "'{\"a\":[]}'"];
    for headers in damaged {
        insert(&mut connection, "X'00ff'", headers, "NULL").await;
    }
    insert(&mut connection, r#"'O:36:\"Symfony\\...'"#, "'[]'", "NULL").await;
    insert(&mut connection, "CAST(X'22610062ff22' AS TEXT)", "'{\"type\":\"t\"}'", "NULL").await;
    insert(&mut connection, "42", "'{\"type\":\"t\"}'", "NULL").await;

    let received = transport.receive(100).await.unwrap();
    assert_eq!(received.len(), damaged.len() + 3);
    for received in &received[..damaged.len()] {
        let damaged = received.message.as_ref().unwrap_err();
        assert_eq!(damaged.body.as_ref(), b"\0\xff");
        assert!(matches!(damaged.error, UndecodableError::Headers(_)));
    }
    assert_eq!(received[2].message.as_ref().unwrap_err().headers.as_ref(), b"\xff\0\xfe");
    let php = message_of(&received[damaged.len()]);
    assert!(php.headers.is_empty());
    assert!(matches!(Envelope::decode(php), Err(UndecodableError::Php(_))));
    assert_eq!(message_of(&received[damaged.len() + 1]).body.as_ref(), b"\"a\0b\xff\"");
    assert_eq!(message_of(&received[damaged.len() + 2]).body.as_ref(), b"42");
    assert_eq!(transport.listing.as_ref().unwrap().list(None, 100).await.unwrap().len(), received.len());
    transport.ack(&ids(&received)).await.unwrap();
    assert_eq!(transport.counting.as_ref().unwrap().counts(9).await.unwrap(), Counts::default());
}

#[test]
async fn nothing_is_created_before_the_first_message() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let transport = open_file(stage.dir());
    assert!(transport.receive(1).await.unwrap().is_empty());
    assert_eq!(transport.counting.as_ref().unwrap().pending(1).await.unwrap(), 0);
    assert!(!stage.dir().join("var").exists());
    send(&transport, "{}").await;
    assert!(stage.dir().join("var/queue.db").exists());
}

#[test]
async fn a_deleted_file_is_created_again_and_the_old_one_dropped() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let transport = open_file(stage.dir());
    send(&transport, "old").await;
    std::fs::remove_dir_all(stage.dir().join("var")).unwrap();
    assert!(transport.receive(1).await.unwrap().is_empty());
    send(&transport, "new").await;
    assert_eq!(receive_bodies(&open_file(stage.dir())).await, ["new"]);
}

#[test]
async fn a_file_that_is_not_a_database_is_reported_and_left_alone() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let file = stage.dir().join("notes.txt");
    let text = "these are notes, and no database\n".repeat(100);
    std::fs::write(&file, &text).unwrap();
    let transport = open("a", "sqlite:notes.txt", "{}", stage.dir());
    for error in [
        error_text(transport.send(&message("{}"), Duration::ZERO).await),
        error_text(transport.receive(1).await),
        error_text(transport.setting_up.as_ref().unwrap().setup().await),
    ] {
        assert!(error.contains("transport \"a\"") && error.contains(file.to_str().unwrap()), "{error}");
        assert!(error.contains("is no SQLite database"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
async fn an_impossible_path_is_reported() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    std::fs::write(stage.dir().join("file"), "").unwrap();
    let under_a_file = open("a", "sqlite:file/queue.db", "{}", stage.dir());
    let error = error_text(under_a_file.send(&message("{}"), Duration::ZERO).await);
    assert!(error.contains(stage.dir().join("file").to_str().unwrap()), "{error}");

    std::fs::create_dir(stage.dir().join("folder")).unwrap();
    let folder = open("a", "sqlite:folder", "{}", stage.dir());
    let error = error_text(folder.send(&message("{}"), Duration::ZERO).await);
    assert!(error.contains(stage.dir().join("folder").to_str().unwrap()), "{error}");
    assert!(error.contains("must be a file's"), "{error}");
}

#[test]
async fn a_table_of_another_shape_is_an_error() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    std::fs::create_dir(stage.dir().join("var")).unwrap();
    raw(&stage.dir().join("var/queue.db")).await.execute("CREATE TABLE messenger_messages (x)").await.unwrap();
    let error = error_text(open_file(stage.dir()).send(&message("{}"), Duration::ZERO).await);
    assert!(error.contains("messenger_messages has no column named"), "{error}");
}

#[test]
async fn a_writer_waits_for_a_lock_and_a_reader_does_not() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let transport = open_file(stage.dir());
    send(&transport, "1").await;
    let mut other = raw(&stage.dir().join("var/queue.db")).await;
    let transaction = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert_eq!(transport.counting.as_ref().unwrap().pending(9).await.unwrap(), 1);
    let waiting = tokio::spawn({
        let transport = open_file(stage.dir());
        async move { send(&transport, "2").await }
    });
    let again = open_file(stage.dir());
    assert_eq!(again.listing.as_ref().unwrap().list(None, 9).await.unwrap().len(), 1);
    assert!(!waiting.is_finished());
    transaction.commit().await.unwrap();
    waiting.await.unwrap();
    assert_eq!(receive_bodies(&transport).await, ["1", "2"]);
}

#[test]
async fn thirty_connections_can_create_the_file_at_once() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let tasks = (0..30).map(|task| {
        let transport = open_file(stage.dir());
        tokio::spawn(async move {
            let mut taken = vec![];
            for n in 0..5 {
                send(&transport, format!("{task}.{n}")).await;
                let received = transport.receive(1).await.unwrap();
                taken.extend(bodies(&received));
                transport.ack(&ids(&received)).await.unwrap();
            }
            taken
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut taken: Vec<String> = join_all(tasks).await.into_iter().flat_map(|end| end.unwrap()).collect();
    taken.extend(receive_bodies(&open_file(stage.dir())).await);
    assert_eq!(taken.len(), 150);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 150);
}

/// Starts this test program as another process in which only `another_process` runs, in the given role.
fn process(role: &str, dir: &Path) -> Command {
    process_in(Command::new(std::env::current_exe().unwrap()), role, dir)
}

fn process_in(mut command: Command, role: &str, dir: &Path) -> Command {
    command.args(["--exact", "conformance::sqlite_file::another_process", "--nocapture", "--quiet"]);
    command.env(ROLE, role).env(DIR, dir).stdout(Stdio::piped());
    command
}

/// What runs in the processes that other tests start. Run as a test like any other, it has nothing to do.
#[test]
async fn another_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let transport = open_file(Path::new(&std::env::var(DIR).unwrap()));
    match role.as_str() {
        "send 20" => {
            for _ in 0..20 {
                send(&transport, "{}").await;
            }
        }
        // Says "sent ID" for every message, until it is killed.
        "send" => loop {
            println!("\nsent {}", send(&transport, "{}").await);
        },
        // Says so for every message, until one is refused.
        "fill" => loop {
            match transport.send(&message("x".repeat(1000)), Duration::ZERO).await {
                Ok(Sent::Queued { id, .. }) => println!("\nsent {id}"),
                refused => break println!("\nrefused: {}", refused.unwrap_err()),
            }
        },
        role => panic!("unknown role {role}"),
    }
}

#[test]
async fn processes_that_create_the_file_at_once_lose_nothing() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let processes: Vec<_> = (0..12).map(|_| process("send 20", stage.dir()).spawn().unwrap()).collect();
    for process in processes {
        let output = tokio::task::spawn_blocking(|| process.wait_with_output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(open_file(stage.dir()).counting.as_ref().unwrap().pending(1000).await.unwrap(), 240);
}

#[test]
async fn a_message_reported_as_queued_survives_the_death_of_its_sender() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    let mut sender = process("send", stage.dir()).spawn().unwrap();
    let mut lines = BufReader::new(sender.stdout.take().unwrap()).lines();
    let mut sent = vec![];
    while sent.len() < 40 {
        let line = lines.next().expect("the sender ended by itself").unwrap();
        sent.extend(line.strip_prefix("sent ").map(str::to_owned));
    }
    sender.kill().unwrap();
    sender.wait().unwrap();
    sent.extend(lines.filter_map(|line| line.ok()?.strip_prefix("sent ").map(str::to_owned)));
    let transport = open_file(stage.dir());
    let stored: HashSet<MessageId> = ids(&transport.receive(100_000).await.unwrap()).into_iter().collect();
    // The last line may have been cut off in the middle, the others were whole.
    sent.pop();
    assert!(sent.iter().all(|id| stored.contains(&MessageId(id.clone()))));
}

#[test]
async fn on_a_full_disk_queued_messages_are_kept_and_others_refused() {
    let stage = Stage::new(Kind::Sqlite).await.unwrap();
    send(&open_file(stage.dir()), "{}").await;
    // Files of at most 256 KiB stand in for a full disk.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    let output = process_in(limited, "fill", stage.dir()).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let sent: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("sent ")).collect();
    let refused = output.lines().find_map(|line| line.strip_prefix("refused: ")).expect(&output);
    assert!(refused.contains(stage.dir().join("var/queue.db").to_str().unwrap()), "{refused}");
    assert!(refused.contains("limit is used up"), "{refused}");
    assert!(!sent.is_empty());
    let transport = open_file(stage.dir());
    send(&transport, "{}").await;
    let stored = ids(&transport.receive(100_000).await.unwrap());
    assert_eq!(stored.len(), sent.len() + 2);
    assert!(sent.iter().all(|id| stored.contains(&MessageId((*id).to_owned()))));
}
