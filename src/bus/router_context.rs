//! `router_context`: the address that links in a message's mails and pages begin with goes on to the messages that its
//! handlers dispatch.

use std::sync::Arc;

use async_trait::async_trait;

use super::{DispatchError, Middleware, Next};
use crate::message::{Envelope, ReceivedStamp, RouterContextStamp};

pub(super) struct RouterContext;

#[async_trait]
impl Middleware for RouterContext {
    async fn handle(&self, mut envelope: Envelope, mut next: Next) -> Result<Envelope, DispatchError> {
        match envelope.last::<RouterContextStamp>() {
            Some(own) => next.scope_mut().router = Some(Arc::new(own)),
            None if envelope.last::<ReceivedStamp>().is_none() => {
                if let Some(context) = &next.scope().router {
                    envelope.add(&**context);
                }
            }
            // Not that of another message.
            None => next.scope_mut().router = None,
        }
        next.run(envelope).await
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::App;
    use crate::bus::Bus;
    use crate::config::Config;
    use crate::handler::HandlerError;
    use crate::message::Message;

    #[derive(Serialize, Deserialize)]
    struct Order(u32);

    impl Message for Order {
        const TYPE: &'static str = "Order";
    }

    #[derive(Serialize, Deserialize)]
    struct Mail(u32);

    impl Message for Mail {
        const TYPE: &'static str = "Mail";
    }

    async fn order(order: Order, bus: Bus) -> Result<(), HandlerError> {
        Ok(bus.dispatch(&Mail(order.0)).await.map(drop)?)
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_of_links_goes_on_to_what_handlers_dispatch() {
        let config = Config::builder()
            .transport("orders", "in-memory://")
            .transport("mail", "in-memory://")
            .route(Order::TYPE, ["orders"])
            .route(Mail::TYPE, ["mail"])
            .bus("links.bus", json!({ "middleware": ["router_context"] }));
        let app = App::builder().config(config).handle(order).test().unwrap();
        let request = RouterContextStamp { host: "shop.example".to_owned(), ..serde_json::from_str("{}").unwrap() };
        app.dispatch(&Order(1)).stamp(request.clone()).await.unwrap();
        app.dispatch(&Order(2)).await.unwrap();
        app.worker(["orders"]).limit(2).spawn().unwrap().wait().await.unwrap();
        let sent = app.sent::<Mail>();
        let links: Vec<_> = sent.iter().map(|mail| (mail.0, mail.envelope.last::<RouterContextStamp>())).collect();
        assert_eq!(links, [(1, Some(request)), (2, None)]);
    }
}
