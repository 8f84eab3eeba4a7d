//! When a handler is called, and in which order: what a registration says besides the type.

/// When a handler is called, and before which others.
///
/// ```
/// # use minutely::App;
/// # use minutely::message::Message;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
/// use minutely::handler::HandlerOptions;
///
/// async fn send_email(message: SendEmail) {
///     println!("to {}", message.to);
/// }
///
/// let app = App::builder().handle_with(HandlerOptions::new().from_transport("mail").priority(10), send_email);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandlerOptions {
    pub(crate) from_transports: Vec<String>,
    pub(crate) priority: i32,
    pub(crate) bus: Option<String>,
}

impl HandlerOptions {
    /// Is called for every message of its type, in the order in which handlers are added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is called only for messages that a worker has received from this transport, or from one of several where this is said
    /// several times. An auto-fallback and its target are one transport here. A message that is handled during its dispatch comes
    /// from the transport that it was routed to; one without routing comes from none, and all its handlers are called. (All as
    /// in Symfony Messenger.)
    #[must_use]
    pub fn from_transport(mut self, name: impl Into<String>) -> Self {
        self.from_transports.push(name.into());
        self
    }

    /// Is called only for messages on this bus.
    #[must_use]
    pub fn bus(self, name: impl Into<String>) -> Self {
        Self { bus: Some(name.into()), ..self }
    }

    /// Is called before handlers of a lower priority. The default is 0.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    /// Is it for messages on this bus?
    pub(crate) fn is_on(&self, bus: &str) -> bool {
        self.bus.as_ref().is_none_or(|own| own == bus)
    }
}
