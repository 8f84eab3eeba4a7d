//! What every store of the cache does, and what happens while it is down.

use std::any::Any;
use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use minutely::cache::{Cache, CacheError, CacheStore, open_store as open};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, Row, SqliteConnection};

use crate::support::databases::{Database, Server};
use crate::support::private_servers::PrivateServer;
use crate::support::redis_keys::Keys;
use crate::support::{Project, wait_until};

const MINUTE: Duration = Duration::from_secs(60);

/// Where a test's entries are.
struct Stage {
    dsn: String,
    dir: tempfile::TempDir,
    // Dropped at the end of the test.
    _server: Box<dyn Any>,
}

#[derive(Clone, Copy)]
enum Kind {
    Files,
    Sqlite,
    Postgres,
    Mysql,
    Redis,
}

impl Stage {
    async fn new(kind: Kind) -> Option<Self> {
        let on =
            |dsn: String, server: Box<dyn Any>| Some(Self { dsn, dir: tempfile::tempdir().unwrap(), _server: server });
        match kind {
            Kind::Files => on("file:var/cache".to_owned(), Box::new(())),
            Kind::Sqlite => on("sqlite:var/cache.db".to_owned(), Box::new(())),
            Kind::Postgres => Database::create(Server::Postgres).await.and_then(|it| on(it.url(), Box::new(it))),
            Kind::Mysql => Database::create(Server::Mysql).await.and_then(|it| on(it.url(), Box::new(it))),
            Kind::Redis => Keys::create().await.and_then(|it| on(it.cache_dsn(), Box::new(it))),
        }
    }

    /// Opens it as another process would.
    fn open(&self) -> Arc<dyn CacheStore> {
        open(&self.dsn, self.dir.path()).unwrap()
    }
}

macro_rules! on_every_store {
    ($($behaviour:ident)*) => {
        on_every_store!(@ files Files $($behaviour)*);
        on_every_store!(@ sqlite Sqlite $($behaviour)*);
        on_every_store!(@ postgres Postgres $($behaviour)*);
        on_every_store!(@ mysql Mysql $($behaviour)*);
        on_every_store!(@ redis Redis $($behaviour)*);
    };
    (@ $module:ident $kind:ident $($behaviour:ident)*) => {
        mod $module {
            $(
                #[test]
                async fn $behaviour() {
                    if let Some(stage) = super::Stage::new(super::Kind::$kind).await {
                        super::$behaviour(&stage).await;
                    }
                }
            )*
        }
    };
}

on_every_store! {
    an_entry_is_seen_by_others_replaced_and_removed
    an_entry_expires
    groups_and_keys_are_any_text
    names_are_told_apart_to_the_last_byte
    values_are_any_text
    a_refused_claim_changes_nothing
    a_claim_that_is_prolonged_may_end_sooner
    many_write_at_once
    one_of_many_concurrent_claims_succeeds
    setting_up_may_be_repeated_by_many_at_once
}

async fn keys(store: &Arc<dyn CacheStore>, group: &str) -> Vec<String> {
    store.list(group).await.unwrap().into_iter().map(|entry| entry.key).collect()
}

async fn an_entry_is_seen_by_others_replaced_and_removed(stage: &Stage) {
    let (here, there) = (stage.open(), stage.open());
    assert!(keys(&there, "g").await.is_empty());
    there.remove("g", "a").await.unwrap();
    here.put("g", "b", "first", MINUTE).await.unwrap();
    here.put("g", "a", "", MINUTE).await.unwrap();
    here.put("other", "c", "", MINUTE).await.unwrap();
    here.put("g", "b", "second", 2 * MINUTE).await.unwrap();
    let entries = there.list("g").await.unwrap();
    assert_eq!(
        entries.iter().map(|entry| (&*entry.key, &*entry.value)).collect::<Vec<_>>(),
        [("a", ""), ("b", "second")]
    );
    let (now, b) = (SystemTime::now(), &entries[1]);
    let close = |a: SystemTime, b: SystemTime| {
        a.duration_since(b).unwrap_or_else(|error| error.duration()) < Duration::from_secs(10)
    };
    assert!(close(b.written_at, now) && close(b.expires_at, now + 2 * MINUTE), "{b:?}");
    there.remove("g", "b").await.unwrap();
    there.remove("g", "b").await.unwrap();
    assert_eq!(keys(&here, "g").await, ["a"]);
}

async fn an_entry_expires(stage: &Stage) {
    let store = stage.open();
    store.put("g", "short", "", Duration::from_millis(300)).await.unwrap();
    store.put("g", "long", "", MINUTE).await.unwrap();
    let deadline = Instant::now() + MINUTE;
    while keys(&store, "g").await != ["long"] {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A time that no clock ever shows.
    store.put("g", "for ever", "", Duration::from_secs(u64::MAX / 2000)).await.unwrap();
    assert_eq!(keys(&store, "g").await, ["for ever", "long"]);
}

async fn groups_and_keys_are_any_text(stage: &Stage) {
    let store = stage.open();
    let mut names =
        ["a", "A", "ä", "a ", "b/c", "../d", "😀 日本", "e:f", "1:2:3", "'\"`\\", "new\nline"].map(str::to_owned);
    names.sort();
    for group in ["heartbeat/x", "heartbeat/X", "heartbeat/ä:😀"] {
        for name in &names {
            store.put(group, name, name, MINUTE).await.unwrap();
        }
        let entries = store.list(group).await.unwrap();
        assert!(entries.iter().map(|entry| &entry.key).eq(&names), "{entries:?}");
        assert!(entries.iter().map(|entry| &entry.value).eq(&names), "{entries:?}");
    }
    let long = "x".repeat(767);
    match store.put("g", &long, "", MINUTE).await {
        Ok(()) => assert_eq!(keys(&store, "g").await, [long]),
        // No file has such a name.
        Err(error) => assert!(stage.dsn.starts_with("file:"), "{error}"),
    }
}

async fn names_are_told_apart_to_the_last_byte(stage: &Stage) {
    let store = stage.open();
    let long = "x".repeat(190);
    let mut names = [
        "a",
        "A",
        "a ",
        " a",
        "ä",
        "a\u{308}",
        "ß",
        "ss",
        "a\0",
        "a\0b",
        &long,
        &format!("{long}y"),
        &format!("{long}z"),
    ]
    .map(str::to_owned);
    names.sort();
    for name in &names {
        store.put("g", name, name, MINUTE).await.unwrap();
        assert!(store.claim(&format!("g {name}"), "a", name, MINUTE).await.unwrap());
    }
    assert_eq!(keys(&store, "g").await, names);
    for name in &names {
        assert_eq!(store.list(&format!("g {name}")).await.unwrap()[0].value, *name);
    }
}

async fn values_are_any_text(stage: &Stage) {
    let store = stage.open();
    let long = "😀\n\0'\\".repeat(20_000);
    for value in ["", "\0", "a\0b", "1:2:3", "\u{feff}", "NULL", &long] {
        store.put("g", "a", value, MINUTE).await.unwrap();
        assert_eq!(store.list("g").await.unwrap()[0].value, value);
        store.remove("g", "a").await.unwrap();
        assert!(store.claim("g", "a", value, MINUTE).await.unwrap());
        assert_eq!(store.list("g").await.unwrap()[0].value, value);
        assert!(store.claim("g", "a", value, MINUTE).await.unwrap());
        assert!(!store.claim("g", "a", &format!("{value} "), MINUTE).await.unwrap());
        store.unclaim("g", "a", value).await.unwrap();
        assert!(keys(&store, "g").await.is_empty());
    }
}

/// Failed attempts of other hosts to claim a slot do not extend the claim of a host that died.
async fn a_refused_claim_changes_nothing(stage: &Stage) {
    let (dead, waiting) = (stage.open(), stage.open());
    assert!(dead.claim("places", "0", "dead", Duration::from_millis(500)).await.unwrap());
    let end = Instant::now() + Duration::from_secs(10);
    while !waiting.claim("places", "0", "waiting", MINUTE).await.unwrap() {
        assert!(Instant::now() < end, "{:?}", waiting.list("places").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let entry = waiting.list("places").await.unwrap().remove(0);
    assert!(entry.value == "waiting" && entry.expires_at > SystemTime::now() + MINUTE / 2, "{entry:?}");
    assert!(!dead.claim("places", "0", "dead", Duration::from_millis(1)).await.unwrap());
    let after = waiting.list("places").await.unwrap().remove(0);
    let moved = after.expires_at.duration_since(entry.expires_at).unwrap_or_else(|error| error.duration());
    assert!(moved < Duration::from_secs(5), "{entry:?} {after:?}");
}

async fn a_claim_that_is_prolonged_may_end_sooner(stage: &Stage) {
    let store = stage.open();
    assert!(store.claim("places", "0", "a", MINUTE).await.unwrap());
    assert!(store.claim("places", "0", "a", Duration::from_millis(200)).await.unwrap());
    let end = Instant::now() + Duration::from_secs(10);
    while !store.claim("places", "0", "b", MINUTE).await.unwrap() {
        assert!(Instant::now() < end, "{:?}", store.list("places").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn many_write_at_once(stage: &Stage) {
    let writers = (0..8).map(|writer| {
        let store = stage.open();
        tokio::spawn(async move {
            for n in 0..20 {
                store.put("g", &format!("own {writer}"), &n.to_string(), MINUTE).await.unwrap();
                store.put("g", "shared", &n.to_string(), MINUTE).await.unwrap();
            }
        })
    });
    join_all(writers.collect::<Vec<_>>()).await.into_iter().for_each(|end| end.unwrap());
    let entries = stage.open().list("g").await.unwrap();
    assert_eq!(entries.len(), 9);
    assert!(entries[..8].iter().all(|entry| entry.value == "19"), "{entries:?}");
}

async fn one_of_many_concurrent_claims_succeeds(stage: &Stage) {
    for place in 0..5 {
        let claims = (0..8).map(|host| {
            let store = stage.open();
            tokio::spawn(async move {
                store.claim("places", &place.to_string(), &format!("host {host}"), MINUTE).await.unwrap()
            })
        });
        let got: Vec<bool> = join_all(claims.collect::<Vec<_>>()).await.into_iter().map(|got| got.unwrap()).collect();
        assert_eq!(got.iter().filter(|got| **got).count(), 1, "{got:?}");
    }
    let store = stage.open();
    let entries = store.list("places").await.unwrap();
    assert_eq!(entries.len(), 5);
    let (owner, other) = (entries[0].value.as_str(), "nobody known");
    // Its owner can extend it; others cannot change it.
    assert!(store.claim("places", "0", owner, 2 * MINUTE).await.unwrap());
    assert!(store.list("places").await.unwrap()[0].expires_at > SystemTime::now() + MINUTE);
    store.unclaim("places", "0", other).await.unwrap();
    assert!(!store.claim("places", "0", other, MINUTE).await.unwrap());
    store.unclaim("places", "0", owner).await.unwrap();
    assert!(store.claim("places", "0", other, Duration::from_millis(1)).await.unwrap());
    // Anyone can take an expired claim.
    let deadline = Instant::now() + MINUTE;
    while !store.claim("places", "0", "the next", MINUTE).await.unwrap() {
        assert!(Instant::now() < deadline);
    }
    store.unclaim("no such group", "0", other).await.unwrap();
}

async fn setting_up_may_be_repeated_by_many_at_once(stage: &Stage) {
    let stores: Vec<_> = (0..8).map(|_| stage.open()).collect();
    join_all(stores.iter().map(|store| store.set_up())).await.into_iter().for_each(|result| result.unwrap());
    let stores: HashSet<String> = stores.iter().map(|store| store.location()).collect();
    assert_eq!(stores.len(), 1);
}

#[test]
fn mistakes_are_found_with_their_place() {
    for (dsn, expected) in [
        ("sync://", "cannot be a cache"),
        ("nonsense", "starts with a scheme"),
        ("file:", "it has no path: write file:relative/path or file:///absolute/path"),
        ("amqp://u:hunter2@h/", "\"amqp:\""),
        ("postgres://u:hunter2@h/d?table_name=a%3Bb", "table_name is a name"),
        ("mysql://u:hunter2@h/d?prefix=x", "unknown option \"prefix\""),
        ("redis://:hunter2@h/nonsense", "number of a database"),
        ("redis://:hunter2@h?stream=x", "unknown option \"stream\""),
        ("mysql://u:hunter2@h", "names no database"),
        ("doctrine://nowhere", "unknown connection \"nowhere\""),
    ] {
        let problems = open(dsn, Path::new("/")).err().unwrap();
        let text: String = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect();
        assert!(text.starts_with("cache.") && text.contains(expected) && !text.contains("hunter2"), "{dsn}: {text}");
    }
}

async fn execute(database: &Database, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    match database.server() {
        Server::Postgres => drop(PgConnection::connect(&database.url()).await.unwrap().execute(sql).await.unwrap()),
        Server::Mysql => drop(MySqlConnection::connect(&database.url()).await.unwrap().execute(sql).await.unwrap()),
    }
}

async fn on_databases() -> Vec<(Database, Arc<dyn CacheStore>)> {
    let mut stages = vec![];
    for server in [Server::Postgres, Server::Mysql] {
        if let Some(database) = Database::create(server).await {
            let store = open(&database.url(), Path::new("/")).unwrap();
            stages.push((database, store));
        }
    }
    stages
}

#[test]
async fn a_table_of_another_shape_is_left_alone_and_reported() {
    for (database, store) in on_databases().await {
        execute(&database, "CREATE TABLE minutely_cache (id INT)").await;
        let errors = [
            store.put("g", "a", "", MINUTE).await.err(),
            store.list("g").await.err(),
            store.claim("g", "a", "me", MINUTE).await.err(),
            store.set_up().await.err(),
        ];
        for error in errors {
            let error = error.unwrap().to_string();
            assert!(error.contains(&store.location()) && error.contains("choose another table_name"), "{error}");
        }
    }
}

/// Otherwise dead workers would count as alive for as long as the clock was set back.
#[test]
async fn an_entry_from_before_the_servers_clock_was_set_back_is_ignored() {
    for (database, store) in on_databases().await {
        store.put("g", "a", "before", MINUTE).await.unwrap();
        let day = 86_400_000;
        let sql = format!("UPDATE minutely_cache SET written_at = written_at + {day}, expires_at = expires_at + {day}");
        execute(&database, &sql).await;
        assert!(keys(&store, "g").await.is_empty());
        assert!(store.claim("g", "a", "now", MINUTE).await.unwrap());
        assert_eq!(store.list("g").await.unwrap()[0].value, "now");
    }
    let Some(redis) = Keys::create().await else { return };
    let store = open(&redis.cache_dsn(), Path::new("/")).unwrap();
    let hours = Duration::from_secs(3600);
    for (ahead, believed) in [(Duration::from_secs(1), true), (hours, false)] {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + ahead;
        let field = format!("{}:{}:before", begun.as_millis(), (begun + MINUTE).as_millis());
        ::redis::cmd("HSET").arg(redis.stream("g")).arg("a").arg(field).exec(&mut redis.connect(0).unwrap()).unwrap();
        assert_eq!(keys(&store, "g").await.len(), usize::from(believed));
        assert_eq!(store.claim("g", "a", "now", MINUTE).await.unwrap(), !believed);
    }
}

#[test]
async fn expired_entries_are_removed_from_time_to_time() {
    const MANY_WRITES: u32 = 1000;
    let old: Vec<String> = (0..1500).map(|n| format!("('g', '{n}', '', 0, 1)")).collect();
    let old = format!("INSERT INTO minutely_cache VALUES {}", old.join(", "));
    for (database, store) in on_databases().await {
        store.put("g", "alive", "", 10 * MINUTE).await.unwrap();
        execute(&database, &old).await;
        let mut writes = 0;
        while count(&database).await > 1 {
            assert!(writes < MANY_WRITES, "entries that expired long ago are still there");
            store.put("g", "alive", "", 10 * MINUTE).await.unwrap();
            writes += 1;
        }
        assert_eq!(keys(&store, "g").await, ["alive"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open("sqlite:cache.db", dir.path()).unwrap();
    store.put("g", "alive", "", 10 * MINUTE).await.unwrap();
    let path = format!("sqlite:{}", dir.path().join("cache.db").display());
    let mut file = SqliteConnection::connect(&path).await.unwrap();
    file.execute(AssertSqlSafe(old)).await.unwrap();
    let mut writes = 0;
    while file.fetch_one("SELECT COUNT(*) FROM minutely_cache").await.unwrap().get::<i64, _>(0) > 1 {
        assert!(writes < MANY_WRITES, "entries that expired long ago are still there");
        store.put("g", "alive", "", 10 * MINUTE).await.unwrap();
        writes += 1;
    }
    assert_eq!(keys(&store, "g").await, ["alive"]);
}

async fn count(database: &Database) -> i64 {
    let sql = "SELECT COUNT(*) FROM minutely_cache";
    match database.server() {
        Server::Postgres => PgConnection::connect(&database.url()).await.unwrap().fetch_one(sql).await.unwrap().get(0),
        Server::Mysql => MySqlConnection::connect(&database.url()).await.unwrap().fetch_one(sql).await.unwrap().get(0),
    }
}

#[test]
async fn foreign_data_under_our_redis_keys_is_left_alone() {
    let Some(redis) = Keys::create().await else { return };
    let store = open(&redis.cache_dsn(), Path::new("/")).unwrap();
    let mut connection = redis.connect(0).unwrap();
    ::redis::cmd("SET").arg(redis.stream("g")).arg("precious").exec(&mut connection).unwrap();
    store.put("g", "a", "", MINUTE).await.unwrap_err();
    store.list("g").await.unwrap_err();
    let kept: String = ::redis::cmd("GET").arg(redis.stream("g")).query(&mut connection).unwrap();
    assert_eq!(kept, "precious");
    // A field that is not an entry does no harm.
    let odd: &[u8] = b"\xff\xfe";
    ::redis::cmd("HSET").arg(redis.stream("h")).arg("a").arg("what?").arg(odd).arg(odd).exec(&mut connection).unwrap();
    assert!(keys(&store, "h").await.is_empty());
    assert!(store.claim("h", "a", "me", MINUTE).await.unwrap());
    assert_eq!(keys(&store, "h").await, ["a"]);
}

/// A server that does not respond delays no writer, and only one reader.
#[test]
async fn one_caller_at_a_time_tries_a_store_that_is_down() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("redis://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let cache = Arc::new(Cache::new(open(&dsn, Path::new("/")).unwrap()));
    assert!(!cache.put("g", "a", "", MINUTE).await.unwrap_err().known);
    let (begun, mut slow) = (Instant::now(), 0);
    // The pause of five seconds, and one attempt after it.
    while begun.elapsed() < Duration::from_millis(6500) {
        let asking = (0..4).map(|n: u32| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                let begun = Instant::now();
                match n {
                    0 => cache.put("g", "a", "", MINUTE).await.unwrap_err(),
                    1 => cache.list("g").await.unwrap_err(),
                    2 => cache.claim("g", "a", "me", MINUTE).await.unwrap_err(),
                    _ => cache.list_recent("g").await.unwrap_err(),
                };
                begun.elapsed()
            })
        });
        let took = join_all(asking.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap);
        slow += took.filter(|took| *took > Duration::from_millis(500)).count();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(slow, 1);
}

/// A server that is gone, and one that accepts connections and sends nothing.
#[test]
async fn a_store_that_is_down_does_not_delay_every_call() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for scheme in ["postgres://u@", "mysql://u@", "redis://"] {
        for port in [silent.local_addr().unwrap().port(), closed] {
            let cache = Cache::new(
                open(
                    &format!("{scheme}127.0.0.1:{port}{}", if scheme == "redis://" { "" } else { "/d" }),
                    Path::new("/"),
                )
                .unwrap(),
            );
            let begun = Instant::now();
            let error: CacheError = cache.list_recent("g").await.unwrap_err();
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert!(error.to_string().contains(&port.to_string()) && !error.known, "{error}");
            let begun = Instant::now();
            for _ in 0..1000 {
                assert!(cache.list_recent("g").await.unwrap_err().known);
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
    }
}

#[test]
async fn a_store_that_comes_back_is_used_again() {
    for server in [Server::Postgres, Server::Mysql] {
        let Some(mut server) = PrivateServer::start(server) else { return };
        let store = open(&server.admin_url(), Path::new("/")).unwrap();
        store.put("g", "a", "", 10 * MINUTE).await.unwrap();
        server.kill();
        store.list("g").await.unwrap_err();
        server.start_again();
        assert_eq!(keys(&store, "g").await, ["a"]);
    }
}

/// Two hosts that share queue and cache.
fn hosts(database: &Database) -> [Project; 2] {
    [1, 2].map(|_| {
        let url = database.url();
        Project::new(&format!(
            r#"
cache: {url}
transports:
  mail: auto-fallback://mail?target=mail_queue&fallback=sync
  mail_queue: "{url}?queue_name=mail"
  sync: sync://
routing: {{'*': mail}}
handlers:
  Note: {{exec: [sh, -c, 'cat >> handled; echo >> handled']}}
"#
        ))
    })
}

fn on_a_database(server: Server) -> Option<Database> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(Database::create(server))
}

#[test]
fn hosts_see_each_others_workers_and_stop_them() {
    for server in [Server::Postgres, Server::Mysql] {
        let Some(database) = on_a_database(server) else { return };
        let [a, b] = hosts(&database);
        assert_eq!(a.json(&["dispatch", "Note", "1"])["outcome"], "handled");
        let mut worker = b.start("worker", &["consume", "mail", "--sleep=50ms"]);
        wait_until("the worker is seen on the other host", || a.is_running("mail"));
        assert_eq!(a.json(&["dispatch", "Note", "2"])["outcome"], "queued");
        wait_until("the message is handled", || b.lines("handled") == ["2"]);
        a.run(&["stop-workers"]).succeeds();
        assert_eq!(worker.ends(), Some(0));
        assert_eq!(a.json(&["dispatch", "Note", "3"])["outcome"], "handled");
        assert_eq!(a.lines("handled"), ["1", "3"]);
    }
}

/// As `hosts`, with a cache of its own for each, and queues in files.
fn host_with(cache: &str) -> Project {
    Project::new(&format!(
        r#"
cache: "{cache}"
transports:
  mail: auto-fallback://mail?target=mail_queue&fallback=sync
  mail_queue: "sqlite:q.db"
  sync: sync://
routing: {{'*': mail}}
handlers:
  Note: {{exec: [sh, -c, 'cat >> handled; echo >> handled']}}
workers:
  - {{transports: [mail], autoscale: {{desired_size: 10, min: 1, max: 1}}}}
"#
    ))
}

#[test]
fn hosts_share_a_cache_on_redis_by_its_prefix() {
    let Some(redis) = Keys::create_blocking() else { return };
    let [a, b] = [1, 2].map(|_| host_with(&redis.cache_dsn()));
    let stranger = host_with(&format!("{}other:", redis.cache_dsn()));
    let mut worker = b.start("worker", &["consume", "mail", "--sleep=50ms"]);
    wait_until("the worker is seen on the other host", || a.is_running("mail"));
    assert!(!stranger.is_running("mail"), "another project's workers are not ours");
    stranger.run(&["stop-workers"]).succeeds();
    assert!(a.is_running("mail") && !worker.is_over());
    a.run(&["stop-workers"]).succeeds();
    assert_eq!(worker.ends(), Some(0));
    assert!(!a.is_running("mail"));
}

#[test]
fn a_cache_that_does_not_respond_stops_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = host_with(&format!("postgres://u:hunter2@127.0.0.1:{}/d", silent.local_addr().unwrap().port()));
    let begun = Instant::now();
    let run = host.run(&["dispatch", "Note", "1"]).succeeds();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(run.stderr.contains("heartbeats cannot be read"), "{run:?}");
    assert_eq!(host.lines("handled"), ["1"]);

    host.run(&["dispatch", "Note", "2", "--transport=mail_queue"]).succeeds();
    let mut supervisor = host.start("supervise", &["supervise"]);
    wait_until("a worker handles it", || host.lines("handled") == ["1", "2"]);
    let status = host.run(&["status"]).exits(1);
    assert!(status.stdout.contains("A supervisor is at work") && status.stdout.contains('?'), "{status:?}");
    assert_eq!(status.stderr.matches("no response within 1 s").count(), 1, "reported once: {status:?}");
    let status: serde_json::Value = host.run(&["status", "--format=json"]).exits(1).json();
    assert_eq!(status["transports"][0]["running"], serde_json::Value::Null);
    assert_eq!(status["workers"].as_array().unwrap().len(), 1);
    supervisor.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    for text in [run.stderr, host.lines("supervise.err").join("\n"), host.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_dispatch_goes_on_without_the_cache() {
    let Some(database) = on_a_database(Server::Postgres) else { return };
    let [host, _] = hosts(&database);
    let config = std::fs::read_to_string(host.file("config.yaml")).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let without = config.replace(&format!("cache: {}", database.url()), &format!("cache: redis://127.0.0.1:{closed}"));
    host.write("config.yaml", without);
    assert_eq!(host.json(&["dispatch", "Note", "1"])["outcome"], "handled");
    let error = host.run(&["stop-workers"]).exits(1).stderr;
    assert!(error.contains(&format!("127.0.0.1:{closed}")), "{error}");
    // A worker works nevertheless.
    host.run(&["dispatch", "Note", "2", "--transport=mail_queue"]).succeeds();
    host.run(&["consume", "mail", "--limit=1", "--time-limit=30"]).succeeds();
    assert_eq!(host.lines("handled"), ["1", "2"]);
}
