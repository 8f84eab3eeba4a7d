//! State: what handlers share, a pool of connections for example, and what else a handler can ask for.
//!
//! ```text
//! cargo run --example state
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use minutely::bus::Bus;
use minutely::config::Config;
use minutely::handler::{Attempt, HandlerError, State};
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

/// Stands for a pool of connections. Handlers get clones of it.
#[derive(Clone, Default)]
struct Stock {
    pieces: Arc<AtomicU32>,
}

#[derive(Serialize, Deserialize)]
struct Order {
    pieces: u32,
}

impl Message for Order {
    const TYPE: &'static str = "shop.order";
}

#[derive(Serialize, Deserialize)]
struct Ship {
    pieces: u32,
}

impl Message for Ship {
    const TYPE: &'static str = "shop.ship";
}

/// A handler's arguments are its message and whatever else it needs, in any order.
async fn order(
    State(stock): State<Stock>,
    order: Order,
    Attempt(attempt): Attempt,
    bus: Bus,
) -> Result<(), HandlerError> {
    let taken =
        stock.pieces.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |there| there.checked_sub(order.pieces));
    taken.map_err(|there| format!("try {attempt}: {there} are left"))?;
    bus.dispatch(&Ship { pieces: order.pieces }).await?;
    Ok(())
}

async fn ship(message: Ship) {
    println!("{} pieces are shipped", message.pieces);
}

fn builder() -> AppBuilder {
    let config = Config::builder().transport("orders", "in-memory://").route("*", ["orders"]);
    App::builder().config(config).handle(order).handle(ship)
}

#[tokio::main]
async fn main() -> Result<(), minutely::Error> {
    // Made when a handler first needs it, so that a command that handles nothing does not wait for it.
    let connect = || async { Ok::<_, std::io::Error>(Stock { pieces: Arc::new(10.into()) }) };
    let app = builder().lazy_state(connect).build()?;
    let worker = app.worker(["orders"]).limit(2).spawn()?;
    app.dispatch(&Order { pieces: 3 }).await?;
    worker.wait().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_shipped_and_what_is_not_is_tried_again() -> Result<(), minutely::Error> {
        let stock = Stock { pieces: Arc::new(5.into()) };
        let app = builder().state(stock.clone()).test()?;
        for pieces in [3, 4] {
            app.dispatch(&Order { pieces }).await?;
        }
        app.work_until_idle().await;
        assert_eq!(app.handled::<Ship>().only().pieces, 3);
        assert!(app.failed::<Order>().only().error.unwrap().contains("try 4: 2 are left"));
        assert_eq!(stock.pieces.load(Ordering::Relaxed), 2);
        Ok(())
    }
}
