//! What messages pass that are checked, deduplicated, traced, or handled in a transaction.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Sqlite, SqlitePool};

use super::super::*;
use crate::App;
use crate::config::{Config, ConfigBuilder};
use crate::handler::{HandlerError, HandlerOptions, State};
use crate::message::{DeduplicateStamp, TraceContext, ValidationStamp};

#[derive(Serialize, Deserialize)]
struct Order {
    id: i64,
}

impl Message for Order {
    const TYPE: &'static str = r"App\Order";
}

async fn order(_: Order) {}

fn queued() -> ConfigBuilder {
    Config::builder().transport("orders", "in-memory://").route(Order::TYPE, ["orders"])
}

fn refused(error: DispatchError) -> String {
    assert!(matches!(error, DispatchError::Invalid(_)), "{error}");
    error.to_string()
}

#[cfg(feature = "validation")]
#[tokio::test]
async fn invalid_messages_are_refused_and_go_to_the_failure_transport_without_a_retry() {
    let schema = json!({
        "properties": { "id": { "type": "integer", "minimum": 1 }, "card": { "type": "string", "maxLength": 4 } },
        "additionalProperties": false,
    });
    let rules = json!({ "App\\*": { "schema": schema, "groups": { "import": { "required": ["source"] } } } });
    let app = App::builder().config(queued().set("validation", rules)).handle(order).test().unwrap();
    app.dispatch(&Order { id: 1 }).await.unwrap();
    let wrong = Envelope::from_json(Order::TYPE, r#"{"id":0,"card":"4111 1111","more":"secret"}"#);
    let error = refused(app.dispatch_envelope(wrong).await.unwrap_err());
    assert!(error.starts_with(r#""App\Order" is invalid: "#), "{error}");
    for part in [
        "/id: value is less than the minimum of 1",
        "/card: value is longer than 4 characters",
        "Additional properties",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("4111") && !error.contains("secret"), "{error}");
    let groups = ValidationStamp { groups: vec!["import".into()] };
    let error = refused(app.dispatch(&Order { id: 0 }).stamp(groups).await.unwrap_err());
    assert_eq!(error, r#""App\Order" is invalid: "source" is a required property"#);

    let groups = |name: &str| ValidationStamp { groups: vec![name.into()] };
    let error = refused(app.dispatch(&Order { id: 1 }).stamp(groups("imports")).await.unwrap_err());
    assert_eq!(
        error,
        r#""App\Order" is invalid: unknown validation group "imports", did you mean "import"? known: Default, import"#
    );

    // As another application sends it, which does not check.
    let wire = Envelope::from_json(Order::TYPE, r#"{"id":-1}"#).encode();
    app.transports().get("orders").unwrap().sender.send(&wire, std::time::Duration::ZERO).await.unwrap();
    let worked = app.work_until_idle().await;
    assert_eq!((worked.handled, worked.failed), (1, 1));
    assert!(app.to_string().contains("/id: value is less than the minimum of 1"), "{app}");
    let of_php = Envelope::from_json(Order::TYPE, r#"{"id":1}"#).with(&groups("of PHP")).encode();
    app.transports().get("orders").unwrap().sender.send(&of_php, std::time::Duration::ZERO).await.unwrap();
    app.work_until_idle().await;
    assert_eq!(app.failed::<Order>().len(), 4);
}

#[cfg(feature = "validation")]
#[test]
fn broken_schemas_are_mistakes_and_refer_to_files_beside_them_alone() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "{}").unwrap();
    write("id.json", r#"{"type":"integer"}"#);
    write("good.json", r#"{"properties":{"id":{"$ref":"id.json"}}}"#);
    write("good.yaml", "properties: {id: {$ref: id.json}}");
    write("net.json", r#"{"$ref":"https://example.com/id.json"}"#);
    write("leaves.json", r#"{"$ref":"../../../../etc/hostname"}"#);
    write("broken.json", "{");
    write("wrong.json", r#"{"properties":{"id":{"type":"integr"}}}"#);
    write("pattern.json", r#"{"pattern":"("}"#);
    let problems = |schema: serde_json::Value| {
        let config = Config::builder().set("validation", json!({ "App\\Order": { "schema": schema } }));
        match App::builder().config(config).dir(dir.path()).handle(order).build() {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    for schema in
        [json!("good.json"), json!("./good.yaml"), json!({ "$ref": "id.json" }), json!({ "required": ["id"] })]
    {
        assert_eq!(problems(schema.clone()), "", "{schema}");
    }
    for (schema, expected) in [
        (json!("none.json"), "none.json cannot be read: No such file"),
        (json!("."), "it is no file"),
        (json!(outside.path()), "is outside of the configuration's folder"),
        (json!("broken.json"), "cannot be understood: EOF"),
        (json!("wrong.json"), "the schema is wrong: /properties/id/type: "),
        (json!("pattern.json"), "the schema is wrong: /pattern: "),
        (json!("net.json"), "https://example.com/id.json is not read"),
        (json!("leaves.json"), "the schema is wrong: "),
        (json!({ "type": 7 }), "the schema is wrong: /type: "),
    ] {
        let found = problems(schema.clone());
        assert!(found.contains(expected), "{schema}: {found}");
    }
}

#[tokio::test]
async fn a_check_in_code_says_what_is_wrong() {
    fn positive(order: &Order) -> Result<(), Violation> {
        if order.id > 0 { Ok(()) } else { Err(Violation::at("/id", "must be positive")) }
    }
    let app = App::builder().config(queued()).validate(positive).handle(order).test().unwrap();
    app.dispatch(&Order { id: 1 }).await.unwrap();
    let error = refused(app.dispatch(&Order { id: 0 }).await.unwrap_err());
    assert_eq!(error, r#""App\Order" is invalid: /id: must be positive"#);
    let error = refused(app.dispatch_envelope(Envelope::from_json(Order::TYPE, "[]")).await.unwrap_err());
    assert!(error.contains("is invalid: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn one_message_with_a_key_is_pending_at_a_time() {
    let app = App::builder().config(queued()).handle(order).test().unwrap();
    let once = |key: &str| app.dispatch(&Order { id: 1 }).stamp(DeduplicateStamp::new(key));
    assert!(once("daily").await.unwrap().is_queued());
    let dropped = once("daily").await.unwrap();
    assert!(dropped.is_duplicate() && !dropped.is_queued() && !dropped.is_handled());
    assert!(once("weekly").await.unwrap().is_queued());
    app.work_until_idle().await;
    assert!(once("daily").await.unwrap().is_queued(), "the first was handled");
    app.sent::<Order>().assert_count(3);

    // The claim ends by itself if nobody handles the message.
    let short = || DeduplicateStamp { ttl: Some(60.0), ..DeduplicateStamp::new("short") };
    assert!(app.dispatch(&Order { id: 1 }).stamp(short()).await.unwrap().is_queued());
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert!(app.dispatch(&Order { id: 1 }).stamp(short()).await.unwrap().is_queued());
}

#[tokio::test(start_paused = true)]
async fn a_message_may_follow_while_the_one_with_its_key_is_being_handled() {
    async fn again(order: Order, bus: Bus) -> Result<(), HandlerError> {
        if order.id > 0 {
            let stamp = DeduplicateStamp { only_deduplicate_in_queue: order.id == 2, ..DeduplicateStamp::new("key") };
            bus.dispatch(&Order { id: 0 }).stamp(stamp).await?;
        }
        Ok(())
    }
    for (id, sent) in [(1, 1), (2, 2)] {
        let app = App::builder().config(queued()).handle(again).test().unwrap();
        let stamp = DeduplicateStamp { only_deduplicate_in_queue: id == 2, ..DeduplicateStamp::new("key") };
        app.dispatch(&Order { id }).stamp(stamp).await.unwrap();
        app.work_until_idle().await;
        app.sent::<Order>().assert_count(sent);
    }
}

#[tokio::test]
async fn what_could_not_be_queued_keeps_no_key() {
    let app = App::builder().config(Config::builder()).handle(order).test().unwrap();
    let stamp = || DeduplicateStamp::new("key");
    for _ in 0..2 {
        assert!(app.dispatch(&Order { id: 1 }).stamp(stamp()).await.unwrap().is_handled());
        let nobody = Envelope::from_json("nobody", "{}");
        app.dispatch_envelope(nobody).stamp(stamp()).await.unwrap_err();
    }
}

#[tokio::test]
async fn messages_of_a_handler_belong_to_the_trace_of_its_own() {
    async fn traced(order: Order, trace: Option<TraceContext>, bus: Bus) -> Result<String, HandlerError> {
        if order.id == 1 {
            bus.dispatch(&Order { id: 2 }).await?;
        }
        Ok(trace.map(|trace| trace.to_string()).unwrap_or_default())
    }
    let app = App::builder().config(queued()).handle(traced).test().unwrap();
    let caller: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let caller = caller.with_state(Some("vendor=1"));
    let sent = app.dispatch(&Order { id: 1 }).trace(&caller).await.unwrap();
    app.work_until_idle().await;
    let mut spans = vec![caller.to_string(), sent.envelope().headers().get("traceparent").unwrap().to_owned()];
    for handled in app.handled::<Order>() {
        assert_eq!(handled.envelope.headers().get("tracestate"), Some("vendor=1"));
        spans.push(handled.envelope.headers().get("traceparent").unwrap().to_owned());
        spans.push(handled.envelope.all::<crate::message::HandledStamp>()[0].result.as_str().unwrap().to_owned());
    }
    // The caller, the first message twice (as sent and as received), its handler, the second message and its handler.
    assert_eq!(spans.len(), 6);
    assert_eq!(spans[1], spans[2]);
    assert!(spans.iter().all(|span| span.starts_with(&format!("00-{}-", caller.trace_id()))), "{spans:?}");
    let distinct: std::collections::HashSet<_> = spans.iter().collect();
    assert_eq!(distinct.len(), 5, "{spans:?}");

    let plain = app.dispatch(&Order { id: 2 }).await.unwrap();
    assert_eq!(plain.envelope().headers().get("traceparent"), None);
}

/// A pool on a file of its own, with a table.
async fn pool(dir: &std::path::Path) -> SqlitePool {
    let pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", dir.join("orders.db").display())).await.unwrap();
    sqlx::query("CREATE TABLE orders (id INTEGER)").execute(&pool).await.unwrap();
    pool
}

async fn count(pool: &SqlitePool) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn handlers_share_a_transaction_that_is_undone_when_one_fails() {
    async fn store(order: Order, mut tx: Tx<Sqlite>) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO orders VALUES (?)").bind(order.id).execute(&mut *tx).await?;
        Ok(())
    }
    async fn fail_once(_: Order, mut tx: Tx<Sqlite>, State(calls): State<Arc<AtomicU32>>) -> Result<(), HandlerError> {
        let stored: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(&mut *tx).await?;
        assert_eq!(stored, 1, "it sees what the other has written");
        if calls.fetch_add(1, Ordering::Relaxed) == 0 { Err("busy")? } else { Ok(()) }
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let config = queued().set(
        "transports",
        json!({ "orders": {
        "dsn": "in-memory://", "retry_strategy": { "delay": 0 },
    } }),
    );
    let app = App::builder().config(config).middleware(transaction(pool.clone())).state(Arc::new(AtomicU32::new(0)));
    let app = app.handle(store).handle(fail_once).test().unwrap();
    app.dispatch(&Order { id: 1 }).await.unwrap();
    let worked = app.work_until_idle().await;
    assert_eq!((worked.handled, worked.failed, count(&pool).await), (1, 1, 1));
}

#[tokio::test]
async fn a_transaction_that_a_task_still_holds_is_not_committed() {
    async fn leak(order: Order, mut tx: Tx<Sqlite>) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO orders VALUES (?)").bind(order.id).execute(&mut *tx).await?;
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(tx);
        });
        Ok(())
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let app =
        App::builder().config(Config::builder()).middleware(transaction(pool.clone())).handle(leak).test().unwrap();
    let error = app.dispatch(&Order { id: 1 }).await.unwrap_err().to_string();
    assert!(error.contains("could not be committed: a task that a handler has started still holds it"), "{error}");
    assert_eq!(count(&pool).await, 0);
}

#[tokio::test]
async fn a_handler_of_one_bus_is_called_for_messages_on_that_bus_alone() {
    let config = Config::builder().bus("a", json!({})).bus("b", json!({})).default_bus("a");
    let app = App::builder().config(config).handle_with(HandlerOptions::new().bus("b"), order).test().unwrap();
    let error = app.dispatch(&Order { id: 1 }).await.unwrap_err();
    assert!(matches!(error, DispatchError::NoHandler { .. }));
    assert!(error.to_string().ends_with(r#" on the bus "a": its handlers are for those on b"#), "{error}");
    app.bus_named("b").unwrap().dispatch(&Order { id: 1 }).await.unwrap();
    let config = Config::builder().bus("a", json!({}));
    let built = App::builder().config(config).handle_with(HandlerOptions::new().bus("c"), order).build();
    assert!(built.map(drop).unwrap_err().to_string().contains("unknown bus \"c\""));
}
