//! Dispatches messages: through middleware, to the transports that the routing names, or to the handlers.
//!
//! ```text
//! dispatch ─▶ the application's middleware ─▶ send ─▶ a transport, which queues it
//!                                              └─ no routing, or the transport says "now" ─▶ handle ─▶ handlers
//! received ─▶ the application's middleware ────────────────────────────────────────────────▶ handle ─▶ handlers
//! ```

mod dispatch;
mod error;
mod handle;
mod middleware;
mod notify;
mod panic;
mod routing;
mod send;

pub use dispatch::{Dispatch, Dispatched, HandledNow, HandlerResult, Queued};
pub use error::{DispatchError, HandlingFailed};
pub use middleware::{Middleware, Next, from_fn};
pub(crate) use panic::caught;
pub(crate) use routing::Routing;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::handler::{Argument, CancellationToken, HandlerContext, HandlerError, Handlers};
use crate::message::{Envelope, Message};
use crate::transport::Transports;

use handle::HandleMiddleware;
use notify::LocalWorkers;
use send::SendMiddleware;

/// Dispatches messages. Clones share one bus.
///
/// ```
/// use minutely::App;
/// use minutely::config::Config;
/// use minutely::message::Message;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendEmail { to: String }
///
/// impl Message for SendEmail {
///     const TYPE: &'static str = r"App\Message\SendEmail";
/// }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let config = Config::builder().transport("mail", "in-memory://").route(SendEmail::TYPE, ["mail"]);
/// let bus = App::builder().config(config).build()?.bus();
///
/// let dispatched = bus.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
/// assert_eq!(dispatched.queued()[0].queued_on, "mail");
/// # Ok::<(), minutely::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Bus {
    middleware: Arc<[Arc<dyn Middleware>]>,
    local_workers: LocalWorkers,
}

impl Bus {
    /// A bus whose messages pass `middleware` in this order before they are sent or handled.
    pub(crate) fn new(
        middleware: Vec<Arc<dyn Middleware>>,
        routing: Arc<Routing>,
        transports: Arc<Transports>,
        handlers: Arc<Handlers>,
    ) -> Self {
        let mut all = middleware;
        let local_workers = LocalWorkers::default();
        all.push(Arc::new(SendMiddleware {
            routing,
            transports,
            handlers: Arc::clone(&handlers),
            local_workers: local_workers.clone(),
        }));
        all.push(Arc::new(HandleMiddleware { handlers }));
        Self { middleware: all.into(), local_workers }
    }

    /// Sends a message to the transports that the routing names, or handles it at once if there are none. Nothing
    /// happens until the [`Dispatch`] is awaited; before that it takes a delay, transports and stamps.
    pub fn dispatch<M: Message>(&self, message: &M) -> Dispatch {
        Dispatch::new(self.clone(), Envelope::new(message).map_err(DispatchError::Unwritable))
    }

    /// Dispatches a message that is in its envelope already, with stamps of its own.
    pub fn dispatch_envelope(&self, envelope: Envelope) -> Dispatch {
        Dispatch::new(self.clone(), Ok(envelope))
    }

    /// Notifies a worker of this process when this bus has queued a message for it that is due now.
    pub(crate) fn notify_of(&self, queues: impl Iterator<Item = String>) -> Arc<Notify> {
        self.local_workers.add(queues.collect())
    }

    async fn run(&self, envelope: Envelope, cancellation: CancellationToken) -> Result<Envelope, DispatchError> {
        Next::first(self.clone(), cancellation).run(envelope).await
    }

    /// Handles a message that was received from a transport, as its [`ReceivedStamp`](crate::message::ReceivedStamp)
    /// says. A panic becomes an error, so that the worker can retry the message. `cancellation` tells handlers that the
    /// worker is asked to stop.
    pub(crate) async fn handle_received(
        &self,
        envelope: Envelope,
        cancellation: CancellationToken,
    ) -> Result<Envelope, DispatchError> {
        let handled = caught(self.run(envelope, cancellation)).await;
        handled.unwrap_or_else(|text| Err(DispatchError::Panicked(text)))
    }
}

/// For handlers that dispatch further messages.
impl Argument for Bus {
    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let bus = context.extension::<Self>().cloned();
        bus.ok_or_else(|| HandlerError::failed("the handler was not called by a bus"))
    }
}

#[cfg(test)]
mod tests;
