//! What travels: messages, the envelopes they travel in, the stamps on them, and their form on the wire. No I/O.
//!
//! An [`Envelope`] *is* the wire form that Symfony Messenger's JSON serializer writes: a body of JSON text and a flat
//! map of string headers, one of which names the type, and one per stamp class. Typed values are read from it and
//! written to it on demand. What this side does not know (stamps of a PHP bundle, foreign headers, the exact spelling
//! of the body) therefore survives receive → retry → receive unchanged, because nobody ever took it apart.

mod envelope;
mod stamp;
mod wire;

pub use envelope::{Envelope, Headers};
pub use stamp::{
    BusNameStamp, DelayStamp, ErrorDetailsStamp, HandledNowStamp, HandledStamp, ReceivedStamp, RedeliveryStamp,
    SentStamp, SentToFailureTransportStamp, Stamp, TransportMessageIdStamp, TransportNamesStamp,
};
pub(crate) use wire::{CONTENT_TYPE, TYPE};
pub use wire::{Encoded, UndecodableError, headers_from_json, headers_to_json};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The interface of messages of high priority (Contao's). They go to `contao_prio_high` or `prio_high`, unless `routing`
/// says something else of it.
pub const HIGH_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\HighPriorityMessageInterface";
/// The same for normal priority, and `contao_prio_normal` or `prio_normal`.
pub const NORMAL_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\NormalPriorityMessageInterface";
/// The same for low priority, and `contao_prio_low` or `prio_low`.
pub const LOW_PRIORITY: &str = r"Contao\CoreBundle\Messenger\Message\LowPriorityMessageInterface";

/// A message: plain data with a name that every application sharing the queue agrees on.
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
    /// The type's name on the wire, as Symfony writes it into the `type` header: the PHP class name where the queue is
    /// shared with PHP, any stable name otherwise. Renaming it strands the messages already queued under the old name.
    const TYPE: &'static str;

    /// Further names the message can be routed and handled by, most specific first: what a PHP message's parent
    /// classes and interfaces are to Symfony (`App\Message\AsyncMessageInterface`, say, or [`HIGH_PRIORITY`]). Not sent on
    /// the wire.
    const INTERFACES: &'static [&'static str] = &[];
}
