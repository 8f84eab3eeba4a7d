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
mod routing;
mod send;

pub use error::{DispatchError, HandlingFailed};
pub use middleware::{Middleware, Next};
pub use routing::Routing;

use std::sync::Arc;

use crate::handler::Handlers;
use crate::message::{Envelope, Message};
use crate::transport::Transports;

use handle::Handle;
use send::Send;

/// Dispatches messages. Clones are one bus.
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
        all.push(Arc::new(Send { routing, transports }));
        all.push(Arc::new(Handle { handlers }));
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
    /// [`ReceivedStamp`](crate::message::ReceivedStamp) says.
    pub async fn handle_received(&self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        self.dispatch_envelope(envelope).await
    }
}
