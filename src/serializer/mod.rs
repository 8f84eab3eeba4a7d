//! How messages are written for their transports, and read again.
//!
//! A transport stores an [`Encoded`]: a body and headers. By default that is what Symfony Messenger's JSON serializer
//! writes. A [`Serializer`] writes another form: `serializer` in the configuration names one for all transports or for
//! one of them, and [`AppBuilder::serializer`](crate::AppBuilder::serializer) adds those of an application.
//!
//! Each of minutely's own does one thing, and is put around the one below it:
//!
//! ```text
//! encrypted    the whole message is one ciphertext (encrypt)
//!   signed     the body has a signature; what is encrypted needs none (signing)
//!     foreign  what another application writes (type, type_field)
//!     json     Symfony's JSON; reads PHP's serialize() too (the default)
//! ```
//!
//! A message keeps its form wherever it goes: for a retry it is written by the serializer that has read it, and on the failure
//! transport it is read by the serializer of the transport that it came from.

#[cfg(feature = "encryption")]
mod encrypted;
mod foreign;
mod json;
#[cfg(feature = "encryption")]
mod key;
mod php;
mod registry;
#[cfg(feature = "signing")]
mod signed;

#[cfg(feature = "encryption")]
pub(crate) use key::new_key;
pub(crate) use registry::{Interfaces, Serializers};

use std::fmt::Display;

use thiserror::Error;

use crate::message::{Encoded, Envelope, UndecodableError};

/// Says that a message is encrypted, and by which key.
pub(crate) const ENCRYPTED: &str = "X-Minutely-Encrypted";

/// Writes messages for their stores, and reads them.
///
/// ```
/// use minutely::message::{Encoded, Envelope, Headers, UndecodableError};
/// use minutely::serializer::{Serializer, SerializerError};
///
/// /// Lines such as `order 17`, for an old program.
/// struct Orders;
///
/// impl Serializer for Orders {
///     fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
///         let message: serde_json::Value = serde_json::from_slice(envelope.body()).map_err(SerializerError::new)?;
///         let body = format!("order {}", message["id"]).into();
///         Ok(Encoded { body, headers: envelope.headers().clone() })
///     }
///
///     fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
///         let line = std::str::from_utf8(&encoded.body).ok().and_then(|line| line.strip_prefix("order "));
///         let id: Option<u64> = line.and_then(|id| id.parse().ok());
///         let id = id.ok_or_else(|| UndecodableError::Form("the body is not `order NUMBER`".into()))?;
///         let envelope = Envelope::from_json(r"App\Message\Order", format!(r#"{{"id":{id}}}"#));
///         // The stamps: how often it was retried, for example.
///         Ok(encoded.headers.iter().fold(envelope, |envelope, (name, value)| envelope.with_header(name, value)))
///     }
/// }
///
/// # let message = Envelope::from_json(r"App\Message\Order", r#"{"id":17}"#);
/// let stored = Orders.encode(&message)?;
/// assert_eq!(Orders.decode(&stored).unwrap().body(), message.body());
///
/// use minutely::{App, config::Config};
/// let config = Config::builder()
///     .transport_with("orders", serde_json::json!({"dsn": "in-memory://", "serializer": "orders"}));
/// let app = App::builder().config(config).serializer("orders", Orders).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Serializer: Send + Sync {
    /// Writes a message: a new one, or a received one that is retried or moved to the failure transport. Then all
    /// [headers](Envelope::headers) have to be written too, because they hold the stamps.
    ///
    /// An error fails the dispatch. A received message is kept as it was received.
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError>;

    /// Reads a message. What cannot be read is kept on the failure transport, with the reason, which must not contain
    /// parts of the message.
    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError>;

    /// A message that nothing here can handle, or even read, with the stamps of this envelope too. They say what is wrong with
    /// it, and where it came from. Adds them as headers, unless it is overridden.
    fn stamp(&self, encoded: &Encoded, stamps: &Envelope) -> Encoded {
        stamps.stamp(encoded)
    }
}

/// Why a message cannot be written.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SerializerError(String);

impl SerializerError {
    /// An error with this text, which must not contain parts of the message.
    pub fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }
}
