//! Messages, envelopes, stamps, and their wire format. No I/O.
//!
//! An [`Envelope`] *is* the wire format of Symfony Messenger's JSON serializer: a body of JSON text and a flat map of
//! string headers, one of which names the type, and one per stamp class. Typed values are read and written on demand.
//! Unknown parts (stamps of a PHP bundle, foreign headers, the exact spelling of the body) therefore survive receive →
//! retry → receive unchanged, because they are never parsed. A body that PHP's `serialize()` has written is read into the
//! same form, and goes back as what it was.

mod body;
mod envelope;
mod headers;
mod php;
mod stamp;
mod stamp_text;
mod trace;
mod wire;

pub use body::BodyError;
pub use bytes::Bytes;
pub use envelope::Envelope;
pub use headers::Headers;
pub(crate) use php::{PhpClass, PhpClasses, PhpProperty, class_name};
pub use stamp::{
    AmqpAttributes, AmqpStamp, BusNameStamp, DeduplicateStamp, DelayStamp, DispatchAfterCurrentBusStamp,
    DuplicateStamp, ErrorDetailsStamp, HandledNowStamp, HandledStamp, HandlerArgumentsStamp, ReceivedStamp,
    RedeliveryStamp, RouterContextStamp, SentStamp, SentToFailureTransportStamp, SerializerStamp, Stamp,
    TransportMessageIdStamp, TransportNamesStamp, UnhandledStamp, ValidationStamp,
};
pub use trace::{NoTraceContext, TraceContext};
pub(crate) use wire::{CONTENT_TYPE, STAMP_PREFIX, TYPE};
pub use wire::{Encoded, UndecodableError};
pub(crate) use wire::{headers_from_json, headers_to_json};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Contao's interface for messages of high priority. By default they are routed to `contao_prio_high` or `prio_high`;
/// `routing` for this interface takes precedence.
pub const HIGH_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\HighPriorityMessageInterface";
/// The same for normal priority: `contao_prio_normal` or `prio_normal`.
pub const NORMAL_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\NormalPriorityMessageInterface";
/// The same for low priority: `contao_prio_low` or `prio_low`.
pub const LOW_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\LowPriorityMessageInterface";

/// A message: plain data with a type name shared by all applications on the queue.
///
/// ```
/// use minutely::message::Message;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendEmail { to: String }
///
/// impl Message for SendEmail {
///     const TYPE: &'static str = r"App\Message\SendEmail";
/// }
/// ```
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The type's name in the `type` header: the PHP class name if the queue is shared with PHP, otherwise any stable
    /// name. After a change, messages already queued under the old name can no longer be handled.
    const TYPE: &'static str;

    /// Further names to route and handle the message by, most specific first. They correspond to the parent classes and
    /// interfaces of a PHP message (such as `App\Message\AsyncMessageInterface`, or [`HIGH_PRIORITY`]). Not sent on the
    /// wire.
    const INTERFACES: &'static [&'static str] = &[];
}
