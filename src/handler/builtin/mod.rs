//! Handlers for messages that Symfony brings along: what the message says is run or requested, if the configuration
//! wants that.

mod run_command;
mod run_process;
#[cfg(feature = "http")]
mod webhook;

pub(super) use run_command::RunCommand;
pub(super) use run_process::RunProcess;
#[cfg(feature = "http")]
pub(super) use webhook::PingWebhook;

use serde::de::DeserializeOwned;

use super::HandlerError;
use super::metadata::Metadata;
use crate::message::Envelope;

/// The message in an envelope. `keys` names what it must have, for an error.
fn read<T: DeserializeOwned>(envelope: &Envelope, keys: &str) -> Result<T, HandlerError> {
    let body = envelope.body();
    let read = match body.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(body).map_err(|error| error.to_string()),
        // A list would be taken for the values of the keys in their order.
        _ => Err(format!("the message must be an object with {keys}")),
    };
    read.map_err(|why| {
        let message = format!("the body of {} cannot be understood: {why}", envelope.message_type());
        HandlerError { class: "minutely::handler::WrongBody".to_owned(), ..HandlerError::unrecoverable(message) }
    })
}

/// Logs what a program prints for a message.
fn log_of(envelope: &Envelope, handler: &str) -> impl Fn(&str) {
    let (id, message_type) = (Metadata::of(envelope).id, envelope.message_type());
    move |line: &str| tracing::info!(id, message_type, handler, "{line}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_message_is_an_object() {
        for body in [r#"["app:send"]"#, r#""app:send""#, "", "null"] {
            let error = read::<Value>(&Envelope::from_json("App", body), "`input`").unwrap_err();
            assert!(error.message.ends_with("the message must be an object with `input`"), "{error}");
        }
        assert!(read::<Value>(&Envelope::from_json("App", "\n{}"), "").is_ok());
    }
}
