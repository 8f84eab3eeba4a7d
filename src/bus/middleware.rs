//! Middleware: code that every message passes through.

use std::any::{Any, type_name};
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::outlet::Outlet;
use super::{Bus, DispatchError, Scope};
use crate::handler::{Argument, CancellationToken, HandlerContext, HandlerError};
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
    /// What handlers get.
    extensions: Vec<Arc<dyn Any + Send + Sync>>,
    /// What stores the message, if its transport does not do it by itself.
    outlet: Option<Outlet>,
}

impl Next {
    pub(super) fn first(
        bus: Bus,
        cancellation: CancellationToken,
        extensions: Vec<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        Self { bus, position: 0, cancellation, extensions, outlet: None }
    }

    pub(super) fn with_outlet(self, outlet: Option<Outlet>) -> Self {
        Self { outlet, ..self }
    }

    /// Whether the message is stored in a transaction of the caller's.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.outlet.as_ref().is_some_and(Outlet::is_transaction)
    }

    pub(super) fn outlet(&self) -> Option<&Outlet> {
        self.outlet.as_ref()
    }

    /// The bus, to dispatch further messages.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Is cancelled when the worker that received the message is asked to stop.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }

    /// Gives the handlers of this message a value, which they get as the argument [`Extension<T>`]. Another value of the
    /// same type replaces it.
    #[must_use]
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(0, Arc::new(value));
        self
    }

    /// Passes the message on. Returns it as it is when the last middleware has finished.
    pub async fn run(mut self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        match self.bus.chain().middleware.get(self.position).map(Arc::clone) {
            Some(middleware) => {
                self.position += 1;
                middleware.handle(envelope, self).await
            }
            None => Ok(envelope),
        }
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.bus.scope
    }

    pub(super) fn scope_mut(&mut self) -> &mut Scope {
        &mut self.bus.scope
    }

    /// What handlers get.
    pub(super) fn extensions(&self) -> impl Iterator<Item = &(dyn Any + Send + Sync)> {
        self.extensions.iter().map(|extension| &**extension)
    }
}

/// A value that a middleware gives to the handlers of a message, with [`Next::with_extension`]. A message without one
/// fails; use `Option<Extension<T>>` for a value that may be missing.
///
/// ```
/// use minutely::App;
/// use minutely::bus::{DispatchError, Extension, Next, from_fn};
/// use minutely::message::Envelope;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl minutely::message::Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
///
/// #[derive(Clone)]
/// struct Tenant(String);
///
/// async fn find_tenant(envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
///     let tenant = Tenant(envelope.headers().get("X-Tenant").unwrap_or("none").to_owned());
///     next.with_extension(tenant).run(envelope).await
/// }
///
/// async fn send_email(message: SendEmail, Extension(tenant): Extension<Tenant>) {
///     println!("{} writes to {}", tenant.0, message.to);
/// }
///
/// let app = App::builder().middleware(from_fn(find_tenant)).handle(send_email);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<T>(pub T);

impl<T: Clone + Send + Sync + 'static> Argument for Extension<T> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let found = context.extension::<T>().cloned().map(Self);
        found.ok_or_else(|| HandlerError::failed(format!("no middleware has given a {}", type_name::<T>())))
    }
}

impl<T: Clone + Send + Sync + 'static> Argument for Option<Extension<T>> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(context.extension::<T>().cloned().map(Extension))
    }
}
