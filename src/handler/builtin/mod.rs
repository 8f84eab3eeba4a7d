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

/// The message in an envelope.
fn read<T: DeserializeOwned>(envelope: &Envelope) -> Result<T, HandlerError> {
    serde_json::from_slice(envelope.body()).map_err(|error| {
        let message = format!("the body of {} cannot be understood: {error}", envelope.message_type());
        HandlerError { class: "minutely::handler::WrongBody".to_owned(), ..HandlerError::unrecoverable(message) }
    })
}
