//! Dispatches messages: through middleware, to the transports that the routing names, or to the handlers.
//!
//! ```text
//! dispatch ─▶ the application's middleware ─▶ send ─▶ a transport, which queues it
//!                                              └─ no routing, or the transport says "now" ─▶ handle ─▶ handlers
//! received ─▶ the application's middleware ────────────────────────────────────────────────▶ handle ─▶ handlers
//! ```
//!
//! An application may have several buses, each with middleware of its own (`chain` puts them together). A received message
//! passes the one that it was dispatched on.

mod bus_name;
mod buses;
mod chain;
mod deduplicate;
mod deferred;
mod dispatch;
mod dispatch_all;
mod dispatch_in;
mod error;
mod handle;
mod middleware;
mod notify;
mod outlet;
mod router_context;
mod routing;
#[cfg(feature = "validation")]
mod schema;
mod scope;
mod send;
mod traceable;
mod transaction;
mod validation;

pub(crate) use chain::Parts;
pub use dispatch::{Dispatch, Dispatched, HandledNow, HandlerResult, Queued};
pub use dispatch_all::DispatchAll;
pub use dispatch_in::{DispatchIn, OpenTransaction};
pub use error::{DelayedFailed, DispatchError, HandlingFailed};
pub use middleware::{Extension, Middleware, Next, from_fn};
pub(crate) use routing::Routing;
#[cfg(feature = "validation")]
pub(crate) use schema::add_schemas;
pub use transaction::{Tx, transaction};
pub(crate) use validation::Checks;
pub use validation::{ValidationFailed, Violation};

use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::handler::{Argument, CancellationToken, HandlerContext, HandlerError, Place, caught};
use crate::message::{BusNameStamp, Envelope, Message, ReceivedStamp, TraceContext};

use buses::Buses;
use outlet::Outlet;
use scope::Scope;

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
    /// All buses of the application.
    buses: Arc<Buses>,
    /// Which of them this is.
    index: usize,
    /// What is being handled, in a handler.
    scope: Scope,
}

impl Bus {
    /// Sends a message to the transports that the routing names, or handles it at once if there are none. Nothing
    /// happens until the [`Dispatch`] is awaited; before that it takes a delay, transports and stamps.
    pub fn dispatch<M: Message>(&self, message: &M) -> Dispatch {
        Dispatch::new(self.clone(), Envelope::new(message).map_err(DispatchError::Unwritable))
    }

    /// Dispatches messages of one type at once, for what is stored together is stored sooner. Nothing happens until the
    /// [`DispatchAll`] is awaited; its result says for each message what became of it. Messages of several types, or
    /// with stamps of their own, are a `DispatchAll` that is collected of [`Dispatch`]es.
    pub fn dispatch_all<'m, M: Message>(&self, messages: impl IntoIterator<Item = &'m M>) -> DispatchAll {
        messages.into_iter().map(|message| self.dispatch(message)).collect()
    }

    /// Stores a message in a transaction that the caller has begun, so that it exists exactly if that is committed: see
    /// [`DispatchIn`]. With a delay or stamps: `bus.dispatch(&message).delay(hour).in_transaction(&mut tx)`.
    pub fn dispatch_in<'t, M: Message>(
        &self,
        transaction: impl Into<OpenTransaction<'t>>,
        message: &M,
    ) -> DispatchIn<'t> {
        self.dispatch(message).in_transaction(transaction)
    }

    /// Dispatches a message that is in its envelope already, with stamps of its own.
    pub fn dispatch_envelope(&self, envelope: Envelope) -> Dispatch {
        Dispatch::new(self.clone(), Ok(envelope))
    }

    /// Dispatches a message that one handler handles at once, and returns what that handler returned, read as `T`. On a
    /// query bus, this is how callers ask. An error if the message was queued, or if it has another number of handlers.
    ///
    /// ```
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct CountOrders { customer: u64 }
    /// # impl minutely::message::Message for CountOrders { const TYPE: &'static str = r"App\Query\CountOrders"; }
    /// # async fn example(app: minutely::App) -> Result<(), minutely::Error> {
    /// let orders: u64 = app.bus_named("query.bus")?.query(&CountOrders { customer: 7 }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn query<T: DeserializeOwned>(&self, message: &impl Message) -> Result<T, DispatchError> {
        self.dispatch(message).await?.result()
    }

    /// Notifies a worker of this process when this bus has queued a message for it that is due now.
    pub(crate) fn notify_of(&self, queues: impl Iterator<Item = String>) -> Arc<Notify> {
        self.buses.local_workers.add(queues.collect())
    }

    async fn run(&self, envelope: Envelope, cancellation: CancellationToken) -> Result<Envelope, DispatchError> {
        Next::first(self.clone(), cancellation, Vec::new()).run(self.traced(envelope)).await
    }

    /// Dispatches a message that this stores.
    async fn run_with(&self, envelope: Envelope, outlet: Outlet) -> Result<Envelope, DispatchError> {
        let next = Next::first(self.clone(), CancellationToken::default(), Vec::new());
        next.with_outlet(Some(outlet)).run(self.traced(envelope)).await
    }

    /// A message that is dispatched belongs to the trace that it names, or to that of what is being handled.
    fn traced(&self, mut envelope: Envelope) -> Envelope {
        if envelope.last::<ReceivedStamp>().is_none()
            && let Some(cause) = TraceContext::of(&envelope).or_else(|| self.scope.trace.as_deref().cloned())
        {
            let span = cause.child();
            tracing::debug!(
                trace_id = span.trace_id(),
                span_id = span.span_id(),
                parent_id = cause.span_id(),
                message_type = envelope.message_type(),
                "dispatch"
            );
            span.write(&mut envelope);
        }
        envelope
    }

    /// Handles a message that was received from a transport, as its [`ReceivedStamp`](crate::message::ReceivedStamp)
    /// says, on the bus that it names. A panic becomes an error, so that the worker can retry the message. `cancellation`
    /// tells handlers that the worker is asked to stop; `place` is where the worker handles the message.
    pub(crate) async fn handle_received(
        &self,
        envelope: Envelope,
        cancellation: CancellationToken,
        place: Arc<Place>,
    ) -> Result<Envelope, DispatchError> {
        let name = envelope.last::<BusNameStamp>().map(|stamp| stamp.bus_name);
        let bus = Self { index: self.buses.of_received(name.as_deref())?, ..self.clone() };
        let next = Next::first(bus.clone(), cancellation, vec![place]);
        let handled = caught(next.run(bus.traced(envelope))).await;
        handled.unwrap_or_else(|text| Err(DispatchError::Panicked(text)))
    }
}

/// For handlers that dispatch further messages: the bus that handles their message, which also leads to the
/// [others](Bus::named).
impl Argument for Bus {
    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let bus = context.extension::<Self>().cloned();
        bus.ok_or_else(|| HandlerError::failed("the handler was not called by a bus"))
    }
}

#[cfg(test)]
mod tests;
