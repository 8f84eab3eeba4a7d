//! Messages in the form of another program: here lines such as `order 17`, which an old warehouse writes and reads.
//!
//! ```text
//! cargo run --example own_serializer
//! ```

use minutely::config::Config;
use minutely::handler::{Attempt, HandlerError};
use minutely::message::{Encoded, Envelope, Message, UndecodableError};
use minutely::serializer::{Serializer, SerializerError};
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    number: u64,
}

impl Message for Order {
    const TYPE: &'static str = r"App\Message\Order";
}

struct Lines;

impl Serializer for Lines {
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        let order: Order = envelope.message().map_err(SerializerError::new)?;
        // The headers hold the stamps: how often it was retried, for example.
        Ok(Encoded { body: format!("order {}", order.number).into(), headers: envelope.headers().clone() })
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        let line = std::str::from_utf8(&encoded.body).ok().and_then(|line| line.strip_prefix("order "));
        let number = line.and_then(|number| number.trim_end().parse().ok());
        let number = number.ok_or_else(|| UndecodableError::Form("the body is not `order NUMBER`".into()))?;
        let envelope = Envelope::from_json(Order::TYPE, json!(Order { number }).to_string());
        Ok(encoded.headers.iter().fold(envelope, |envelope, (name, value)| envelope.with_header(name, value)))
    }
}

async fn ship(order: Order, Attempt(attempt): Attempt) -> Result<(), HandlerError> {
    if order.number == 0 && attempt == 1 {
        return Err(HandlerError::failed("the warehouse is closed"));
    }
    println!("order {} is shipped", order.number);
    Ok(())
}

fn builder() -> AppBuilder {
    let config = Config::builder()
        .transport_with("orders", json!({ "dsn": "in-memory://", "serializer": "lines" }))
        .transport("failed", "in-memory://")
        .failure_transport("failed")
        .route(Order::TYPE, ["orders"]);
    App::builder().config(config).serializer("lines", Lines).handle(ship)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = builder().build()?;
    let worker = app.worker(["orders"]).limit(1).spawn()?;
    app.dispatch(&Order { number: 17 }).await?;
    worker.wait().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_of_another_program_are_handled_retried_and_kept() -> Result<(), Box<dyn std::error::Error>> {
        let app = builder().test()?;
        app.dispatch(&Order { number: 17 }).await?;
        let orders = app.transports().get("orders")?;
        for line in ["order 0", "17 orders"] {
            let line = Encoded { body: line.into(), ..Encoded::default() };
            orders.sender.send(&line, Duration::ZERO).await?;
        }
        app.work_until_idle().await;
        let handled: Vec<u64> = app.handled::<Order>().iter().map(|order| order.number).collect();
        assert_eq!(handled, [17, 0]);
        let kept = app.transports().get("failed")?.receiver.as_ref().unwrap().receive(9).await?;
        let [unreadable] = kept.as_slice() else { panic!("{kept:?}") };
        let unreadable = unreadable.message.as_ref().unwrap();
        assert_eq!(unreadable.body, "17 orders");
        let details = unreadable.headers.iter().map(|(_, value)| value).collect::<String>();
        assert!(details.contains("the body is not `order NUMBER`"), "{details}");
        Ok(())
    }

    #[test]
    fn a_message_is_written_as_a_line() {
        let message = Envelope::new(&Order { number: 17 }).unwrap();
        let stored = Lines.encode(&message).unwrap();
        assert_eq!(stored.body, "order 17");
        assert_eq!(Lines.decode(&stored).unwrap().message::<Order>().unwrap(), Order { number: 17 });
    }
}
