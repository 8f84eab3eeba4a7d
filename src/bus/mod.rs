//! Dispatches: through middleware, to the transports that routing names, or to the handlers.
//!
//! ```text
//! dispatch ─▶ the application's middleware ─▶ send ─▶ a transport, which queues it
//!                                              └─ no routing, or the transport says "now" ─▶ handle ─▶ handlers
//! received ─▶ the application's middleware ────────────────────────────────────────────────▶ handle ─▶ handlers
//! ```

mod error;
mod handle;
mod middleware;
mod panic;
mod routing;
mod send;

pub use error::{DispatchError, HandlingFailed};
pub use middleware::{Middleware, Next};
pub use routing::Routing;

use std::sync::Arc;

use crate::handler::Handlers;
use crate::message::{Envelope, Message};
use crate::transport::Transports;

use handle::HandleMiddleware;
use panic::caught;
use send::SendMiddleware;

/// Dispatches messages. Clones are one bus.
///
/// ```
/// use std::sync::Arc;
///
/// use minutely::bus::{Bus, Routing};
/// use minutely::handler::{HandlerError, Handlers, Typed};
/// use minutely::message::{Message, SentStamp};
/// use minutely::transport::{InMemory, Transports};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendEmail { to: String }
///
/// impl Message for SendEmail {
///     const TYPE: &'static str = r"App\Message\SendEmail";
/// }
///
/// async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
///     println!("to {}", message.to);
///     Ok(())
/// }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let mut handlers = Handlers::default();
/// handlers.register(SendEmail::TYPE, Arc::new(Typed::new(send_email)));
/// let mut transports = Transports::default();
/// transports.insert(InMemory::new("mail"));
/// let routing = Routing::new([(r"App\Message\*".into(), vec!["mail".into()])].into());
///
/// let bus = Bus::new(vec![], Arc::new(routing), Arc::new(transports), Arc::new(handlers));
/// let envelope = bus.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
/// assert_eq!(envelope.last::<SentStamp>().unwrap().queued_on, "mail");
/// # Ok::<(), minutely::bus::DispatchError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Bus {
    middleware: Arc<[Arc<dyn Middleware>]>,
}

impl Bus {
    /// A bus whose messages see `middleware` in this order before they are sent or handled.
    pub fn new(
        middleware: Vec<Arc<dyn Middleware>>,
        routing: Arc<Routing>,
        transports: Arc<Transports>,
        handlers: Arc<Handlers>,
    ) -> Self {
        let mut all = middleware;
        all.push(Arc::new(SendMiddleware { routing, transports, handlers: Arc::clone(&handlers) }));
        all.push(Arc::new(HandleMiddleware { handlers }));
        Self { middleware: all.into() }
    }

    /// Sends a message where routing says, or handles it at once when routing says nothing. The returned envelope's stamps
    /// tell what happened ([`SentStamp`](crate::message::SentStamp),
    /// [`HandledNowStamp`](crate::message::HandledNowStamp)).
    pub async fn dispatch<M: Message>(&self, message: &M) -> Result<Envelope, DispatchError> {
        let envelope = Envelope::new(message)
            .map_err(|error| DispatchError::Unwritable { message_type: M::TYPE.to_owned(), source: error })?;
        self.dispatch_envelope(envelope).await
    }

    /// Dispatches a message with stamps of its own: a delay, say.
    pub async fn dispatch_envelope(&self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        Next::new(&self.middleware).run(envelope).await
    }

    /// Has a message handled that was received from a transport, as its
    /// [`ReceivedStamp`](crate::message::ReceivedStamp) says. A panic on its way is an error, so that whoever has received
    /// the message can see to it.
    pub async fn handle_received(&self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        let handled = caught(self.dispatch_envelope(envelope)).await;
        handled.unwrap_or_else(|text| Err(DispatchError::Panicked(text)))
    }
}

#[cfg(test)]
mod tests;
