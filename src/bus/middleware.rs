//! Middleware: code that every message passes through.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Bus, DispatchError};
use crate::handler::CancellationToken;
use crate::message::Envelope;

/// Is called for each message: when it is dispatched, and again (with a
/// [`ReceivedStamp`](crate::message::ReceivedStamp)) when a worker has received it.
///
/// An async function is the simplest middleware, see [`from_fn`]. A type of your own can hold data:
///
/// ```
/// use minutely::bus::{DispatchError, Middleware, Next};
/// use minutely::message::Envelope;
///
/// struct Log { prefix: String }
///
/// #[minutely::async_trait]
/// impl Middleware for Log {
///     async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
///         println!("{}: {} passes", self.prefix, envelope.message_type());
///         next.run(envelope).await
///     }
/// }
/// ```
#[async_trait]
pub trait Middleware: Send + Sync {
    /// Passes the message on with `next.run(envelope)`, and may act before and after that. An error refuses the
    /// message.
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError>;
}

/// Middleware from an async function.
///
/// ```
/// use minutely::App;
/// use minutely::bus::{DispatchError, Next, from_fn};
/// use minutely::message::Envelope;
///
/// async fn log(envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
///     println!("{} passes", envelope.message_type());
///     next.run(envelope).await
/// }
///
/// let app = App::builder().middleware(from_fn(log));
/// ```
pub fn from_fn<F, R>(function: F) -> impl Middleware + 'static
where
    F: Fn(Envelope, Next) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Envelope, DispatchError>> + Send + 'static,
{
    FromFn(function)
}

struct FromFn<F>(F);

#[async_trait]
impl<F, R> Middleware for FromFn<F>
where
    F: Fn(Envelope, Next) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Envelope, DispatchError>> + Send + 'static,
{
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        (self.0)(envelope, next).await
    }
}

#[async_trait]
impl<M: Middleware + ?Sized> Middleware for Arc<M> {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        (**self).handle(envelope, next).await
    }
}

/// The middleware that comes after this one, ending with sending or handling the message.
pub struct Next {
    bus: Bus,
    /// The index of the next middleware.
    position: usize,
    cancellation: CancellationToken,
}

impl Next {
    pub(super) fn first(bus: Bus, cancellation: CancellationToken) -> Self {
        Self { bus, position: 0, cancellation }
    }

    /// The bus, to dispatch further messages.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Is cancelled when the worker that received the message is asked to stop.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }

    /// Passes the message on. Returns it as it is when the last middleware has finished.
    pub async fn run(self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        let Self { bus, position, cancellation } = self;
        match bus.middleware.get(position).map(Arc::clone) {
            Some(middleware) => middleware.handle(envelope, Self { bus, position: position + 1, cancellation }).await,
            None => Ok(envelope),
        }
    }
}
