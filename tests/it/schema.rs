//! `setup --dump-sql`, and `setup` on tables that something else has created.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::databases::{Database, Server};
use crate::support::{Project, Run};

/// An empty database, and a project whose transports are in it and create nothing by themselves.
struct Stage {
    project: Project,
    database: Option<Database>,
}

impl Stage {
    async fn new(server: Option<Server>) -> Option<Self> {
        let database = match server {
            Some(server) => Some(Database::create(server).await?),
            None => None,
        };
        let url = database.as_ref().map_or_else(|| "sqlite:var/data.db".to_owned(), Database::url);
        // The table is the same one for both, and only one of them needs its trigger.
        let quiet = if matches!(server, Some(Server::Postgres)) { "&use_notify=false" } else { "" };
        let config = format!(
            "connections: {{default: '{url}'}}\ncache: doctrine://default\nfailure_transport: failed\ntransports:\n  \
             async: doctrine://default?auto_setup=false\n  \
             failed: doctrine://default?queue_name=failed&auto_setup=false{quiet}\n  \
             other: doctrine://default?table_name=others&auto_setup=false\n  sync: sync://\n\
             handlers: {{Note: {{exec: [touch, handled]}}}}\n"
        );
        Some(Self { project: Project::new(&config), database })
    }

    /// Executes a script with the program that administrators use.
    fn load(&self, script: &str) {
        let mut command = match self.database.as_ref().map(|database| (database.server(), database.url())) {
            None => {
                let file: PathBuf = self.project.file("var/data.db");
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                let mut command = Command::new("sqlite3");
                command.arg("-bail").arg(file);
                command
            }
            Some((Server::Postgres, url)) => {
                let mut command = Command::new("psql");
                command.args(["-q", "-v", "ON_ERROR_STOP=1", &url]);
                command
            }
            Some((Server::Mysql, url)) => {
                let url = url::Url::parse(&url).unwrap();
                let mut command = Command::new("mysql");
                command.args(["--protocol=TCP", "-h", url.host_str().unwrap(), "-u", url.username()]);
                command.args(["-P", &url.port().unwrap_or(3306).to_string(), url.path().trim_start_matches('/')]);
                if let Some(password) = url.password() {
                    command.env("MYSQL_PWD", password);
                }
                command
            }
        };
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        client.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(client.wait().unwrap().success(), "{command:?}\n{script}");
    }

    fn dump(&self, arguments: &[&str]) -> String {
        let run = self.project.run(&[&["setup", "--dump-sql"], arguments].concat()).succeeds();
        assert_eq!(run.stderr, "", "{run:?}");
        run.stdout
    }

    fn is_complete(&self) -> bool {
        self.dump(&[]).lines().all(|line| line.starts_with("-- ") && line.ends_with(": nothing is missing"))
    }
}

/// All changes in the JSON of `setup`, as `async: create table "…"`.
fn changes(printed: &Value) -> Vec<String> {
    let of_one = |one: &Value| {
        let name = one["transport"].as_str().unwrap().to_owned();
        let changes = one["changes"].as_array().unwrap().clone();
        changes.into_iter().map(move |change| format!("{name}: {}", change["what"].as_str().unwrap()))
    };
    printed.as_array().unwrap().iter().flat_map(of_one).collect()
}

async fn the_dumped_sql_creates_all_that_is_needed(server: Option<Server>) {
    let Some(stage) = Stage::new(server).await else { return };
    let all = stage.dump(&["--all"]);
    // Nothing was created, so everything is missing.
    assert_eq!(stage.dump(&[]), all);
    assert_eq!(all.matches("CREATE TABLE").count(), 3, "{all}");
    assert!(all.contains("): as above\n"), "{all}");
    stage.project.run(&["dispatch", "Note", "{}", "--transport=async"]).exits(1);

    stage.load(&all);
    assert!(stage.is_complete(), "{}", stage.dump(&[]));
    assert_eq!(stage.dump(&["--all"]), all);
    let set_up = stage.project.run(&["setup"]).succeeds();
    assert_eq!(set_up.stdout, "async: ready\nfailed: ready\nother: ready\nsync: needs nothing\ncache: ready\n");
    for transport in ["async", "other"] {
        stage.project.run(&["dispatch", "Note", "{}", &format!("--transport={transport}")]).succeeds();
        stage.project.run(&["consume", transport, "--limit=1"]).succeeds();
        assert_eq!(stage.project.pending(transport), 0);
    }
    assert!(stage.project.file("handled").exists());
}

async fn what_is_missing_in_part_is_dumped_in_part(server: Option<Server>) {
    let Some(stage) = Stage::new(server).await else { return };
    let set_up = stage.project.run(&["setup", "other"]).succeeds();
    assert_eq!(set_up.stdout, "other: create table \"others\"\nother: ready\n");
    let printed = stage.project.json(&["setup", "--dump-sql"]);
    let table = "create table \"messenger_messages\"";
    let expected =
        [format!("async: {table}"), format!("failed: {table}"), "cache: create the table of the cache".to_owned()];
    assert_eq!(changes(&printed), expected);
    assert_eq!(printed[3]["location"], Value::Null);
    let of_table = if server == Some(Server::Mysql) { " ON others" } else { "" };
    stage.load(&format!("DROP INDEX others_due{of_table};"));
    let missing = stage.dump(&["other"]);
    assert!(missing.contains("create index \"others_due\"") && !missing.contains("CREATE TABLE"), "{missing}");
    stage.load(&missing);
    assert_eq!(changes(&stage.project.json(&["setup", "--dump-sql", "other"])), Vec::<String>::new());
}

async fn a_table_with_other_columns_is_refused(server: Option<Server>) {
    let Some(stage) = Stage::new(server).await else { return };
    stage.load("CREATE TABLE others (id INTEGER, body TEXT, headers TEXT, queue_name VARCHAR(9));");
    for arguments in [&["setup", "other"][..], &["setup", "--dump-sql", "other"]] {
        let run = stage.project.run(arguments).exits(1);
        let expected = "is not a table of messages: it has no created_at, available_at, delivered_at; choose another";
        assert!(run.stderr.contains(expected), "{run:?}");
    }
}

async fn setting_up_by_several_at_once_creates_all_of_it(server: Option<Server>) {
    let Some(stage) = Stage::new(server).await else { return };
    if server.is_some() {
        // A table that others use.
        stage.project.run(&["setup"]).succeeds();
        let of_table = if server == Some(Server::Mysql) { " ON others" } else { "" };
        stage.load(&format!("DROP INDEX others_due{of_table};"));
    }
    let start = || {
        let mut command = stage.project.command(&["setup"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<_> = (0..4).map(|_| start()).collect();
    for child in all {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(stage.is_complete(), "{}", stage.dump(&[]));
}

macro_rules! on_every_database {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[test] async fn $test() { super::$test(None).await; })*
        }
        mod postgres {
            $(#[test] async fn $test() { super::$test(Some(super::Server::Postgres)).await; })*
        }
        mod mysql {
            $(#[test] async fn $test() { super::$test(Some(super::Server::Mysql)).await; })*
        }
    };
}

on_every_database! {
    the_dumped_sql_creates_all_that_is_needed
    what_is_missing_in_part_is_dumped_in_part
    a_table_with_other_columns_is_refused
    setting_up_by_several_at_once_creates_all_of_it
}

/// The first change that `setup` has made.
fn first_change(run: &Run) -> &str {
    run.stdout.lines().next().unwrap_or_default()
}

#[test]
async fn postgres_what_an_interrupted_setup_has_left_is_replaced() {
    let Some(stage) = Stage::new(Some(Server::Postgres)).await else { return };
    stage.project.run(&["setup"]).succeeds();
    let mut connection = PgConnection::connect(&stage.database.as_ref().unwrap().url()).await.unwrap();
    let invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'messenger_messages_due'::regclass";
    connection.execute(AssertSqlSafe(invalid)).await.unwrap();
    let run = stage.project.run(&["setup", "async"]).succeeds();
    assert_eq!(first_change(&run), "async: replace index \"messenger_messages_due\"");
    assert!(stage.is_complete(), "{}", stage.dump(&[]));
}

/// Such a trigger does not notify of what was released or retried.
#[test]
async fn postgres_a_trigger_for_new_messages_alone_is_replaced_and_a_missing_one_created() {
    let Some(stage) = Stage::new(Some(Server::Postgres)).await else { return };
    stage.project.run(&["setup"]).succeeds();
    stage.load(
        "DROP TRIGGER notify_trigger ON messenger_messages; DROP TRIGGER notify_trigger ON others;
         CREATE TRIGGER notify_trigger AFTER INSERT ON messenger_messages
         FOR EACH ROW EXECUTE PROCEDURE notify_messenger_messages();",
    );
    let run = stage.project.run(&["setup", "async"]).succeeds();
    assert_eq!(first_change(&run), "async: replace trigger \"notify_trigger\" of \"messenger_messages\"");
    let run = stage.project.run(&["setup", "other"]).succeeds();
    assert_eq!(first_change(&run), "other: create trigger \"notify_trigger\" of \"others\"");
    assert!(stage.is_complete(), "{}", stage.dump(&[]));
}

/// Creating an index beside other statements waits for transactions that are older, and stops nobody meanwhile.
#[test]
async fn postgres_others_use_the_table_while_its_index_is_created() {
    let Some(stage) = Stage::new(Some(Server::Postgres)).await else { return };
    stage.project.run(&["setup"]).succeeds();
    stage.load("DROP INDEX messenger_messages_due;");
    let mut connection = PgConnection::connect(&stage.database.as_ref().unwrap().url()).await.unwrap();
    connection.execute("BEGIN; DELETE FROM messenger_messages WHERE id = 0").await.unwrap();
    let mut setup = stage.project.start("setup", &["setup", "async"]);
    let mut second = PgConnection::connect(&stage.database.as_ref().unwrap().url()).await.unwrap();
    let building = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' \
                    AND datname = current_database() AND wait_event_type = 'Lock'";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while second.fetch_all(building).await.unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it does not wait");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stage.project.run(&["dispatch", "Note", "{}", "--transport=async"]).succeeds();
    stage.project.run(&["consume", "async", "--limit=1"]).succeeds();
    connection.execute("COMMIT").await.unwrap();
    assert_eq!(setup.ends(), Some(0), "{:?}", stage.project.lines("setup.err"));
    assert!(stage.is_complete(), "{}", stage.dump(&[]));
}

#[test]
fn what_is_no_sql_is_named_in_a_comment() {
    let project =
        Project::new("transports: {fast: 'redis://h', slow: 'amqp://h', old: 'sqlite:a.db', here: 'sync://'}");
    let run = project.run(&["setup", "--dump-sql", "--all"]).succeeds();
    let names: Vec<_> = run.stderr.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!(names, ["-- fast", "-- slow"], "{run:?}");
    assert!(run.stdout.starts_with("-- old ("), "{run:?}");
    let run = project.run(&["setup", "--all"]).exits(2);
    assert!(run.stderr.contains("--dump-sql"), "{run:?}");
}
