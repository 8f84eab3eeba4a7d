//! Workers as processes on database servers: what they cost while idle, and how they survive a restart of the server.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, Row};

use crate::support::databases::{Database, Server};
use crate::support::private_servers::PrivateServer;
use crate::support::{Project, wait_until};

/// Two queues on one server.
const CONFIG: &str = r#"
transports:
  high: "doctrine://default?queue_name=high"
  low: "doctrine://default?queue_name=low"
routing: {'*': low}
handlers:
  Note: {exec: [sh, -c, 'cat >> handled; echo >> handled']}
workers:
  - {transports: [low], autoscale: {desired_size: 10, min: 0, max: 1}}
"#;

/// Lines that change when another connection to this database does something.
const POSTGRES_CONNECTIONS: &str = "SELECT pid::text || ' ' || state || ' ' || coalesce(query_start::text, '') \
     FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1";
const MYSQL_CONNECTIONS: &str = "SELECT CAST(id AS CHAR) FROM information_schema.processlist \
     WHERE db = DATABASE() AND id <> CONNECTION_ID()";

fn project(url: &str) -> Project {
    let project = Project::new(CONFIG);
    project.write(".env", format!("DATABASE_URL={url}\n"));
    project
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn postgres_connections(database: &Database) -> Vec<String> {
    block_on(async {
        let mut connection = PgConnection::connect(&database.url()).await.unwrap();
        let rows = connection.fetch_all(POSTGRES_CONNECTIONS).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    })
}

fn mysql_connections(database: &Database) -> Vec<String> {
    block_on(async {
        let mut connection = MySqlConnection::connect(&database.url()).await.unwrap();
        let rows = connection.fetch_all(MYSQL_CONNECTIONS).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    })
}

fn dispatch(project: &Project, body: &str) {
    let report = project.json(&["dispatch", "Note", body]);
    assert_eq!(report["outcome"], "queued", "{report}");
}

#[test]
fn an_idle_worker_on_postgres_sends_no_queries_and_has_one_connection() {
    let Some(database) = block_on(Database::create(Server::Postgres)) else { return };
    let project = project(&database.url());
    let _worker = project.start("worker", &["consume", "high", "low", "--sleep=100ms"]);
    let mut before = vec![];
    let mut since = Instant::now();
    wait_until("the worker is quiet", || {
        let now = postgres_connections(&database);
        if now != before || now.is_empty() {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    });
    assert_eq!(before.len(), 1, "{before:?}");
    let begun = Instant::now();
    dispatch(&project, "1");
    wait_until("the message is handled", || project.lines("handled") == ["1"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "not by looking for it once a minute");
}

/// A worker that sleeps for longer than the test lasts.
#[test]
fn an_idle_worker_on_mysql_handles_dispatches_of_this_host_at_once() {
    let Some(database) = block_on(Database::create(Server::Mysql)) else { return };
    let project = project(&database.url());
    let _worker = project.start("worker", &["consume", "high", "low", "--sleep=3600"]);
    wait_until("the worker runs", || project.is_running("low"));
    for n in ["1", "2", "3"] {
        dispatch(&project, n);
        wait_until("the message is handled", || project.lines("handled").last().is_some_and(|last| last == n));
    }
}

#[test]
fn an_idle_worker_on_mysql_has_one_connection() {
    let Some(database) = block_on(Database::create(Server::Mysql)) else { return };
    let project = project(&database.url());
    let _worker = project.start("worker", &["consume", "high", "low", "--sleep=100ms"]);
    dispatch(&project, "1");
    wait_until("the message is handled", || project.lines("handled") == ["1"]);
    wait_until("one connection is left", || mysql_connections(&database).len() == 1);
}

fn a_worker_outlasts_its_server(server: Server) {
    let Some(mut server) = PrivateServer::start(server) else { return };
    let project = project(&server.admin_url());
    let mut worker = project.start("worker", &["consume", "high", "low", "--sleep=100ms"]);
    dispatch(&project, "1");
    wait_until("the first message is handled", || project.lines("handled") == ["1"]);
    server.kill();
    wait_until("the worker notices", || project.log().contains("trying again"));
    server.start_again();
    dispatch(&project, "2");
    wait_until("the second message is handled", || project.lines("handled") == ["1", "2"]);
    assert!(!worker.is_over());
}

#[test]
fn a_worker_outlasts_its_postgres_server() {
    a_worker_outlasts_its_server(Server::Postgres);
}

#[test]
fn a_worker_outlasts_its_mysql_server() {
    a_worker_outlasts_its_server(Server::Mysql);
}

#[test]
fn a_supervisor_has_no_connection_between_its_ticks() {
    for server in [Server::Postgres, Server::Mysql] {
        let Some(database) = block_on(Database::create(server)) else { return };
        let project = project(&database.url());
        let _supervisor = project.start("supervisor", &["supervise"]);
        wait_until("the supervisor runs", || project.is_running("low"));
        wait_until("it holds no connection", || match server {
            Server::Postgres => postgres_connections(&database).is_empty(),
            Server::Mysql => mysql_connections(&database).is_empty(),
        });
    }
}

/// Workers that need `max` connections, and the supervisor one.
const TWELVE_CONNECTIONS: &str = r#"
failure_transport: failed
transports:
  high: "doctrine://default?queue_name=high"
  low: "doctrine://default?queue_name=low"
  failed: "doctrine://default?queue_name=failed"
handlers: {'*': {exec: ['true']}}
workers:
  - {transports: [high, low], autoscale: {desired_size: 10, max: 8}}
  - {transports: [low], autoscale: {desired_size: 10, max: 3}}
"#;

fn warnings(project: &Project, arguments: &[&str]) -> String {
    let arguments = [&["config", "check"], arguments].concat();
    project.run(&arguments).succeeds().stderr
}

fn warned_of_the_limit(url: &str, server: &str) {
    let project = Project::new(TWELVE_CONNECTIONS);
    project.write(".env", format!("DATABASE_URL={url}\n"));
    let warning = warnings(&project, &[]);
    let expected = format!("up to 12 connections to {server} (11 of workers, 1 of the supervisor");
    assert!(warning.contains(&expected) && warning.contains("it allows 11"), "{warning}");
    assert_eq!(warnings(&project, &["--offline"]), "");
    project.write("config.yaml", TWELVE_CONNECTIONS.replace("max: 8", "max: 7"));
    assert_eq!(warnings(&project, &[]), "");
}

#[test]
fn there_is_a_warning_about_more_connections_than_postgres_allows() {
    let Some(database) = block_on(Database::create(Server::Postgres)) else { return };
    block_on(async {
        let mut connection = PgConnection::connect(&database.url()).await.unwrap();
        let limit = format!("ALTER DATABASE {} CONNECTION LIMIT 11", database.name());
        connection.execute(AssertSqlSafe(limit)).await.unwrap();
    });
    let url = url::Url::parse(&database.url()).unwrap();
    warned_of_the_limit(&database.url(), &url[url::Position::BeforeHost..url::Position::BeforePath]);
}

#[test]
fn there_is_a_warning_about_more_connections_than_mysql_allows() {
    let Some(database) = block_on(Database::create(Server::Mysql)) else { return };
    let user = database.name();
    let administer = |sql: String| {
        block_on(async {
            let mut connection = MySqlConnection::connect(&database.url()).await.unwrap();
            connection.execute(AssertSqlSafe(sql)).await.unwrap();
        });
    };
    for host in ["%", "localhost"] {
        administer(format!("CREATE USER '{user}'@'{host}' IDENTIFIED BY 'hunter2' WITH MAX_USER_CONNECTIONS 11"));
        administer(format!("GRANT ALL ON {user}.* TO '{user}'@'{host}'"));
    }
    let mut url = url::Url::parse(&database.url()).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let warned = std::panic::catch_unwind(|| {
        warned_of_the_limit(url.as_str(), &url[url::Position::BeforeHost..url::Position::BeforePath]);
        let project = Project::new(TWELVE_CONNECTIONS);
        project.write(".env", format!("DATABASE_URL={}\n", url.as_str().replace("hunter2", "hunter3")));
        let warning = warnings(&project, &[]);
        assert!(warning.contains("password") && !warning.contains("hunter3"), "{warning}");
    });
    for host in ["%", "localhost"] {
        administer(format!("DROP USER '{user}'@'{host}'"));
    }
    warned.unwrap();
}

/// A body that a text column refuses is still moved to the failure transport, in another form.
#[test]
fn a_body_that_the_failure_transport_cannot_hold_is_kept_as_text() {
    let Some(database) = block_on(Database::create(Server::Postgres)) else { return };
    let project = project(&database.url());
    project.write(
        "config.yaml",
        r#"
failure_transport: failed
transports:
  here: "sqlite:q.db"
  failed: "doctrine://default?queue_name=failed"
handlers: {Other: {exec: ['true']}}
"#,
    );
    project.run(&["setup"]).succeeds();
    block_on(async {
        let url = format!("sqlite://{}", project.file("q.db").display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let row = "INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at) \
             VALUES (X'3000ff25', '{\"type\":\"Note\"}', 'default', '2026-01-01 00:00:00', '2026-01-01 00:00:00')";
        connection.execute(row).await.unwrap();
    });
    project.run(&["consume", "here", "--limit=1", "--time-limit=30"]).succeeds();
    assert_eq!((project.pending("here"), project.pending("failed")), (0, 1));
    let (body, headers): (String, String) = block_on(async {
        let mut connection = PgConnection::connect(&database.url()).await.unwrap();
        let row = connection.fetch_one("SELECT body, headers FROM messenger_messages").await.unwrap();
        (row.get(0), row.get(1))
    });
    assert_eq!(body, "0%00%FF%25");
    assert!(headers.contains("X-Minutely-Damaged-Body") && headers.contains(r#""type":"Note""#), "{headers}");
}

#[test]
fn a_message_that_fails_does_not_make_the_next_one_wait_for_the_sleep() {
    let Some(database) = block_on(Database::create(Server::Mysql)) else { return };
    let config = CONFIG.replace("handlers:", "handlers:\n  Fail: {exec: [sh, -c, 'exit 65']}");
    let failed = "transports:\n  failed: \"doctrine://default?queue_name=failed\"";
    let project = Project::new(&format!("failure_transport: failed\n{}", config.replacen("transports:", failed, 1)));
    project.write(".env", format!("DATABASE_URL={}\n", database.url()));
    for n in 0..3 {
        project.run(&["dispatch", "Fail", "{}"]).succeeds();
        dispatch(&project, &n.to_string());
    }
    let mut worker = project.start("worker", &["consume", "high", "low", "--limit=6", "--sleep=300"]);
    assert_eq!(worker.ends(), Some(0));
    assert_eq!(project.lines("handled"), ["0", "1", "2"]);
    assert_eq!(project.pending("failed"), 3);
}
