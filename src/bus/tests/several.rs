//! Several buses, what passes on each, and messages that wait for another one.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::*;
use crate::App;
use crate::config::{Config, ConfigBuilder};
use crate::handler::HandlerError;
use crate::message::{BusNameStamp, RouterContextStamp};
use crate::testing::TestApp;

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    /// What its handler does.
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Then {
    Succeed,
    Fail,
}

#[derive(Serialize, Deserialize)]
struct Shipped {
    id: u64,
}

#[derive(Serialize, Deserialize)]
struct Count {
    customer: u64,
}

impl Message for Order {
    const TYPE: &'static str = r"App\Order";
}

impl Message for Shipped {
    const TYPE: &'static str = r"App\Shipped";
}

impl Message for Count {
    const TYPE: &'static str = r"App\Count";
}

/// Says what it has shipped once the order is through.
async fn order(order: Order, bus: Bus) -> Result<(), HandlerError> {
    let events = bus.named("event.bus")?;
    let waits = events.dispatch(&Shipped { id: order.id }).after_current().await?;
    assert!(waits.is_deferred() && !waits.is_queued());
    if order.then == Then::Fail { Err("no stock")? } else { Ok(()) }
}

async fn count(count: Count) -> Result<u64, HandlerError> {
    Ok(count.customer * 2)
}

/// Adds the bus's name to a header, and refuses where it is named to.
async fn note(mut envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
    if envelope.message_type() == "refused" {
        return Err(DispatchError::Refused(format!("not on {}", next.bus().name())));
    }
    envelope.add(&RouterContextStamp { host: next.bus().name().to_owned(), ..serde_json::from_str("{}").unwrap() });
    next.run(envelope).await
}

fn config() -> ConfigBuilder {
    Config::builder()
        .transport("orders", "in-memory://")
        .transport("events", "in-memory://")
        .route(Order::TYPE, ["orders"])
        .route(Shipped::TYPE, ["events"])
        .bus("command.bus", json!({}))
        .bus("query.bus", json!({ "middleware": ["note"] }))
        .bus("event.bus", json!({ "default_middleware": "allow_no_handlers" }))
        .default_bus("command.bus")
}

fn app() -> TestApp {
    let app = App::builder().config(config()).named_middleware("note", from_fn(note)).handle(order).handle(count);
    app.test().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_received_message_passes_the_bus_that_it_was_dispatched_on() {
    let app = app();
    let dispatched = app.bus_named("event.bus").unwrap().dispatch(&Shipped { id: 1 }).await.unwrap();
    assert_eq!(dispatched.envelope().last::<BusNameStamp>().unwrap().bus_name, "event.bus");
    // There it needs no handler.
    assert_eq!(app.work_until_idle().await.handled, 1);
    app.failed::<Shipped>().assert_none();

    app.dispatch(&Shipped { id: 2 }).await.unwrap();
    app.work_until_idle().await;
    assert_eq!(app.failed::<Shipped>().only().id, 2, "on the command bus it needs one");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_an_unknown_bus_is_kept_and_that_of_an_unnamed_one_is_handled() {
    let app = app();
    let on = |name: &str, id| {
        let envelope = Envelope::new(&Order { id, then: Then::Succeed }).unwrap();
        app.dispatch_envelope(envelope).stamp(BusNameStamp { bus_name: name.to_owned() })
    };
    on("querry.bus", 1).await.unwrap();
    on("messenger.bus.default", 2).await.unwrap();
    app.work_until_idle().await;
    assert_eq!(app.failed::<Order>().only().id, 1);
    assert!(app.to_string().contains(r#"unknown bus "querry.bus", did you mean "query.bus"?"#), "{app}");
    assert_eq!(app.handled::<Order>().only().id, 2);
}

#[tokio::test]
async fn without_named_buses_every_name_is_the_only_one() {
    let config = Config::builder().transport("queries", "in-memory://").route(Count::TYPE, ["queries"]);
    let app = App::builder().config(config).handle(count).test().unwrap();
    assert_eq!(app.bus().name(), "messenger.bus.default");
    app.dispatch(&Count { customer: 1 }).stamp(BusNameStamp { bus_name: "command.bus".to_owned() }).await.unwrap();
    assert_eq!(app.work_until_idle().await.handled, 1);
}

#[tokio::test]
async fn a_query_returns_what_its_one_handler_returned() {
    let app = app();
    let queries = app.bus_named("query.bus").unwrap();
    assert_eq!(queries.query::<u64>(&Count { customer: 21 }).await.unwrap(), 42);
    let error = queries.query::<String>(&Count { customer: 21 }).await.unwrap_err().to_string();
    assert!(
        error.starts_with(r#""App\Count" has no result: "#) && error.contains("has returned something else"),
        "{error}"
    );
    let error = app.bus().query::<u64>(&Order { id: 1, then: Then::Succeed }).await.unwrap_err();
    assert_eq!(error.to_string(), r#""App\Order" has no result: it is queued on orders, and is handled later"#);
    let events = app.bus_named("event.bus").unwrap();
    let error = events.query::<u64>(&serde_json::Value::Null).await.unwrap_err();
    assert_eq!(error.to_string(), r#""anything" has no result: no handler has handled it"#);
    let event = events.dispatch(&serde_json::Value::Null).await.unwrap();
    assert!(event.is_unhandled() && !event.is_handled() && !event.is_queued());
}

#[tokio::test]
async fn named_middleware_is_on_the_buses_that_name_it() {
    let app = app();
    let refused = || Envelope::from_json("refused", "{}");
    let error = app.bus_named("query.bus").unwrap().dispatch_envelope(refused()).await.unwrap_err();
    assert_eq!(error.to_string(), "not on query.bus");
    let error = app.dispatch_envelope(refused()).await.unwrap_err();
    assert!(matches!(error, DispatchError::NoHandler { .. }), "{error}");
    let error = app.bus_named("event.buss").map(drop).unwrap_err();
    assert!(error.to_string().contains(r#"did you mean "event.bus"?"#), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_message_is_dispatched_when_it_was_handled_and_dropped_when_it_failed() {
    let app = app();
    for (id, then) in [(1, Then::Succeed), (2, Then::Fail)] {
        app.dispatch(&Order { id, then }).await.unwrap();
    }
    app.work_until_idle().await;
    assert_eq!(app.failed::<Order>().only().id, 2);
    assert_eq!(app.sent::<Shipped>().only().id, 1);
}

#[tokio::test(start_paused = true)]
async fn if_what_waits_fails_the_message_is_tried_again_with_all_its_handlers() {
    async fn orders(order: Order, bus: Bus) -> Result<(), HandlerError> {
        for id in [order.id, order.id + 1] {
            bus.dispatch(&Shipped { id }).after_current().await?;
        }
        Ok(())
    }
    async fn shipped(shipped: Shipped) -> Result<(), HandlerError> {
        if shipped.id == 1 { Err("the printer is out of paper")? } else { Ok(()) }
    }
    let config = Config::builder().transport("orders", "in-memory://").route(Order::TYPE, ["orders"]);
    let app = App::builder().config(config).handle(orders).handle(shipped).test().unwrap();
    app.dispatch(&Order { id: 1, then: Then::Succeed }).await.unwrap();
    let worked = app.work_until_idle().await;
    assert_eq!((worked.handled, worked.failed), (0, 4));
    assert_eq!(app.handled::<Shipped>().len(), 4, "one does not hold up the other");
    let shown = app.to_string();
    assert!(shown.contains("of the messages that waited for it failed:\n- \"App\\Shipped\": "), "{shown}");
    assert!(shown.contains("the printer is out of paper"), "{shown}");
}

#[tokio::test]
async fn outside_of_a_handler_nothing_waits() {
    let app = app();
    let dispatched = app.dispatch(&Shipped { id: 1 }).after_current().await.unwrap();
    assert!(dispatched.is_queued() && !dispatched.is_deferred());
}

fn problems(config: ConfigBuilder) -> Vec<String> {
    let built = App::builder().config(config).handle(count).build();
    match built {
        Ok(app) => app.warnings().map(|problem| format!("{}: {}", problem.path, problem.message)).collect(),
        Err(error) => vec![error.to_string()],
    }
}

#[test]
fn mistakes_in_buses_are_told() {
    for (settings, expected) in [
        (json!({ "middleware": ["validaton_of_mine"] }), r#"unknown middleware "validaton_of_mine""#),
        (json!({ "middleware": ["tracable"] }), r#"did you mean "traceable"?"#),
        (json!({ "middleware": "send_message" }), r#""send_message" is there already"#),
        (json!({ "middleware": [{ "doctrine_transaction": ["custom"] }] }), "has no effect: handlers here have"),
        (json!({ "default_middleware": false }), "messages on this bus are neither sent nor handled here"),
        (json!({ "default_middleware": "maybe" }), "must be true, false or allow_no_handlers"),
        (json!({ "middelware": [] }), r#"did you mean "middleware"?"#),
    ] {
        let found = problems(Config::builder().bus("a.bus", &settings));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{settings}: {found:?}");
    }
    for settings in [
        json!({ "middleware": ["messenger.middleware.traceable", { "id": "router_context" }, "doctrine_ping_connection"] }),
        json!({ "default_middleware": false, "middleware": ["send_message", "handle_message"] }),
        json!({ "default_middleware": { "enabled": true, "allow_no_senders": false } }),
    ] {
        assert_eq!(problems(Config::builder().bus("a.bus", &settings)), Vec::<String>::new(), "{settings}");
    }
    let two = Config::builder().bus("a", json!({})).bus("b", json!({}));
    assert!(problems(two.clone())[0].contains("`default_bus` is missing"));
    assert!(problems(two.default_bus("neither"))[0].contains(r#"unknown bus "neither"; known: a, b"#));
}

#[tokio::test]
async fn a_bus_without_the_usual_middleware_loses_nothing() {
    let config = Config::builder()
        .transport("queries", "in-memory://")
        .route(Count::TYPE, ["queries"])
        .bus("sends", json!({ "default_middleware": false, "middleware": ["send_message"] }));
    let app = App::builder().config(config).handle(count).test().unwrap();
    app.dispatch(&Count { customer: 1 }).await.unwrap();
    app.work_until_idle().await;
    app.handled::<Count>().assert_none();
    app.failed::<Count>().assert_count(1);
    assert!(app.to_string().contains(r#"nothing on the bus "sends" has taken "App\Count""#), "{app}");
}

#[tokio::test]
async fn on_a_strict_bus_a_message_must_be_routed() {
    let strict = json!({ "default_middleware": { "allow_no_senders": false } });
    let app = App::builder().config(Config::builder().bus("strict", strict)).handle(count).test().unwrap();
    let error = app.dispatch(&Count { customer: 1 }).await.unwrap_err().to_string();
    assert_eq!(
        error,
        r#""App\Count" is not routed to any transport, and the bus "strict" has `allow_no_senders: false`"#
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_middleware_gives_its_handlers_get() {
    async fn counted(
        _: Count,
        Extension(tenant): Extension<String>,
        other: Option<Extension<u8>>,
    ) -> Result<String, HandlerError> {
        assert!(other.is_none());
        Ok(tenant)
    }
    async fn tenant(envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        next.with_extension("first".to_owned()).with_extension("ada".to_owned()).run(envelope).await
    }
    let app = App::builder().config(Config::builder()).middleware(from_fn(tenant)).handle(counted).test().unwrap();
    assert_eq!(app.bus().query::<String>(&Count { customer: 1 }).await.unwrap(), "ada");
}
