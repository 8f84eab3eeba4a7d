//! A command bus, a query bus and an event bus.
//!
//! ```text
//! cargo run --example query_bus
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use minutely::bus::Bus;
use minutely::config::Config;
use minutely::handler::{HandlerError, State};
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize, Deserialize)]
struct PlaceOrder {
    customer: u64,
    total: u64,
}

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    customer: u64,
}

#[derive(Serialize, Deserialize)]
struct TotalOf {
    customer: u64,
}

impl Message for PlaceOrder {
    const TYPE: &'static str = r"App\Command\PlaceOrder";
}

impl Message for OrderPlaced {
    const TYPE: &'static str = r"App\Event\OrderPlaced";
}

impl Message for TotalOf {
    const TYPE: &'static str = r"App\Query\TotalOf";
}

type Totals = Arc<Mutex<HashMap<u64, u64>>>;

/// The event is dispatched after the order was placed, and not if that fails.
async fn place_order(order: PlaceOrder, bus: Bus, State(totals): State<Totals>) -> Result<(), HandlerError> {
    bus.named("event.bus")?.dispatch(&OrderPlaced { customer: order.customer }).after_current().await?;
    if order.total == 0 {
        return Err(HandlerError::unrecoverable("an order of nothing"));
    }
    *totals.lock().unwrap().entry(order.customer).or_default() += order.total;
    Ok(())
}

async fn total_of(query: TotalOf, State(totals): State<Totals>) -> Result<u64, HandlerError> {
    let totals = totals.lock().unwrap();
    totals.get(&query.customer).copied().ok_or_else(|| HandlerError::unrecoverable("there is no such customer"))
}

fn builder() -> AppBuilder {
    let config = Config::builder()
        .default_bus("command.bus")
        .bus("command.bus", json!({ "middleware": ["traceable"] }))
        .bus("query.bus", json!({}))
        .bus("event.bus", json!({ "default_middleware": { "allow_no_handlers": true } }));
    App::builder().config(config).state(Totals::default()).handle(place_order).handle(total_of)
}

#[tokio::main]
async fn main() -> Result<(), minutely::Error> {
    let app = builder().build()?;
    app.dispatch(&PlaceOrder { customer: 7, total: 20 }).await?;
    let total: u64 = app.bus_named("query.bus")?.query(&TotalOf { customer: 7 }).await?;
    println!("customer 7 has ordered for {total}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_is_answered_and_an_event_needs_no_handler() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        app.dispatch(&PlaceOrder { customer: 7, total: 20 }).await?;
        app.dispatch(&PlaceOrder { customer: 7, total: 3 }).await?;
        app.handled::<OrderPlaced>().assert_count(2);
        let queries = app.bus_named("query.bus")?;
        assert_eq!(queries.query::<u64>(&TotalOf { customer: 7 }).await?, 23);
        let unknown = queries.query::<u64>(&TotalOf { customer: 8 }).await.unwrap_err();
        assert!(unknown.to_string().ends_with("there is no such customer"));
        Ok(())
    }

    #[tokio::test]
    async fn an_order_that_fails_is_no_event() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        app.dispatch(&PlaceOrder { customer: 7, total: 0 }).await.unwrap_err();
        app.handled::<OrderPlaced>().assert_none();
        Ok(())
    }
}
