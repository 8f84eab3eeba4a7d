//! Handlers for messages that Symfony brings along: what the message says is run or requested, if the configuration
//! wants that.

mod captured;
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
