//! A message to be dispatched, and the result of dispatching it.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::outlet::Outlet;
use super::{Bus, DispatchError};
use crate::handler::CancellationToken;
use crate::message::{
    DeduplicateStamp, DelayStamp, DispatchAfterCurrentBusStamp, DuplicateStamp, Envelope, HandledNowStamp,
    HandledStamp, SentStamp, Stamp, TraceContext, TransportNamesStamp, UnhandledStamp,
};

/// A message that is dispatched when this is awaited.
///
/// ```
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl minutely::message::Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
/// use std::time::Duration;
///
/// # async fn example(app: minutely::App) -> Result<(), minutely::Error> {
/// let message = SendEmail { to: "ada@example.com".into() };
/// let dispatched = app.dispatch(&message).delay(Duration::from_secs(300)).to(["mail"]).await?;
/// for queued in dispatched.queued() {
///     println!("queued on {} as {}", queued.queued_on, queued.id);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is dispatched until this is awaited"]
pub struct Dispatch {
    bus: Bus,
    envelope: Result<Envelope, DispatchError>,
}

impl Dispatch {
    pub(super) fn new(bus: Bus, envelope: Result<Envelope, DispatchError>) -> Self {
        Self { bus, envelope }
    }

    /// Whether it claims a key that others with the same key are dropped for.
    pub(super) fn claims_a_key(&self) -> bool {
        self.envelope.as_ref().is_ok_and(|envelope| envelope.last::<DeduplicateStamp>().is_some())
    }

    /// Delays the message: it is delivered no sooner than this (to the millisecond). A message that is handled during
    /// its dispatch is not delayed.
    pub fn delay(self, delay: Duration) -> Self {
        self.stamp(DelayStamp { delay: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) })
    }

    /// Sends the message to these transports, whatever the routing says.
    pub fn to<T: Into<String>>(self, transports: impl IntoIterator<Item = T>) -> Self {
        self.stamp(TransportNamesStamp { transport_names: transports.into_iter().map(Into::into).collect() })
    }

    /// In a handler: dispatches the message only after the message that is being handled was handled well, and not at all
    /// if it fails. Outside of a handler it changes nothing. For the bus that the handler was given as an argument; a bus
    /// that it has from elsewhere does not know what is being handled.
    pub fn after_current(self) -> Self {
        self.stamp(DispatchAfterCurrentBusStamp {})
    }

    /// Says which trace the message belongs to. In a handler that is the one of the message that is being handled; this
    /// takes its place.
    pub fn trace(mut self, context: &TraceContext) -> Self {
        self.bus.scope.trace = Some(Arc::new(context.clone()));
        self
    }

    /// Dispatches the message, and this stores it.
    pub(super) async fn run_with(self, outlet: Outlet) -> Result<Dispatched, DispatchError> {
        Ok(Dispatched { envelope: self.bus.run_with(self.envelope?, outlet).await? })
    }

    /// Adds a stamp.
    pub fn stamp<S: Stamp>(mut self, stamp: S) -> Self {
        self.envelope = self.envelope.map(|envelope| envelope.with(&stamp));
        self
    }
}

impl IntoFuture for Dispatch {
    type Output = Result<Dispatched, DispatchError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { bus, envelope } = self;
        async move { Ok(Dispatched { envelope: bus.run(envelope?, CancellationToken::default()).await? }) }.boxed()
    }
}

/// The result of a dispatch: the message is queued, was handled here, or both if it was sent to several transports.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatched {
    envelope: Envelope,
}

/// A queue that holds a dispatched message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Queued {
    /// The transport it was sent to.
    pub transport: String,
    /// The transport that holds it: another one if `transport` is an auto-fallback.
    pub queued_on: String,
    /// Its id there.
    pub id: String,
    /// Why it is there, if there was a choice.
    pub reason: Option<String>,
}

/// Why a message was handled during its dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HandledNow {
    /// The transport that did not queue it; `None` if the message is not routed to any.
    pub transport: Option<String>,
    /// Why it was not queued.
    pub reason: String,
}

/// A handler that handled the message during its dispatch, and what it returned.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HandlerResult {
    /// The handler's name.
    pub handler: String,
    /// What it returned; null for `()`.
    pub result: serde_json::Value,
}

impl Dispatched {
    /// The queues that hold the message, in the order it was sent to them. Empty if it was only handled.
    pub fn queued(&self) -> Vec<Queued> {
        let stamps = self.envelope.all::<SentStamp>().into_iter();
        stamps
            .map(|SentStamp { transport_name, queued_on, id, reason }| Queued {
                transport: transport_name,
                queued_on,
                id,
                reason,
            })
            .collect()
    }

    /// Why it was handled during the dispatch, for each transport that did not queue it. Empty if it was only queued. There may
    /// have been no handler ([`is_unhandled`](Self::is_unhandled)).
    pub fn handled_now(&self) -> Vec<HandledNow> {
        let stamps = self.envelope.all::<HandledNowStamp>().into_iter();
        stamps
            .map(|HandledNowStamp { transport_name, reason }| HandledNow { transport: transport_name, reason })
            .collect()
    }

    /// What the handlers returned that handled the message during the dispatch. Empty if it was only queued.
    /// [`result`](Self::result) is for messages with one handler.
    pub fn results(&self) -> Vec<HandlerResult> {
        let stamps = self.envelope.all::<HandledStamp>().into_iter();
        stamps.map(|HandledStamp { result, handler_name }| HandlerResult { handler: handler_name, result }).collect()
    }

    /// What its one handler returned, read as `T`. An error if it was queued, or if it has another number of handlers.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, DispatchError> {
        let no_result = |why: String| {
            let message_type = self.envelope.message_type().to_owned();
            DispatchError::NoResult { message_type, why }
        };
        if let Some(sent) = self.envelope.last::<SentStamp>() {
            return Err(no_result(format!("it is queued on {}, and is handled later", sent.queued_on)));
        }
        let mut results = self.results();
        match results.pop() {
            Some(HandlerResult { handler, result }) if results.is_empty() => {
                let read = serde_json::from_value(result);
                read.map_err(|error| no_result(format!("{handler} has returned something else: {error}")))
            }
            None => Err(no_result("no handler has handled it".to_owned())),
            Some(last) => {
                let names: Vec<String> = results.into_iter().chain([last]).map(|result| result.handler).collect();
                Err(no_result(format!("it has more than one handler: {}", names.join(", "))))
            }
        }
    }

    /// Whether it waits until the message that is being handled was handled well
    /// ([`DispatchAfterCurrentBusStamp`]).
    pub fn is_deferred(&self) -> bool {
        self.envelope.last::<DispatchAfterCurrentBusStamp>().is_some()
    }

    /// Whether it was not dispatched, because a message with the same key is pending
    /// ([`DeduplicateStamp`](crate::message::DeduplicateStamp)).
    pub fn is_duplicate(&self) -> bool {
        self.envelope.last::<DuplicateStamp>().is_some()
    }

    /// Whether at least one queue holds it.
    pub fn is_queued(&self) -> bool {
        self.envelope.last::<SentStamp>().is_some()
    }

    /// Whether it was handled during the dispatch.
    pub fn is_handled(&self) -> bool {
        self.envelope.last::<HandledNowStamp>().is_some() && !self.is_unhandled()
    }

    /// Whether it was to be handled during the dispatch, and there is no handler for it. Its bus allows that
    /// (`allow_no_handlers`): nobody is interested in this event.
    pub fn is_unhandled(&self) -> bool {
        self.envelope.last::<UnhandledStamp>().is_some()
    }

    /// The message with all its stamps.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The message with all its stamps.
    pub fn into_envelope(self) -> Envelope {
        self.envelope
    }
}
