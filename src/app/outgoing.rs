//! A message that comes as text from outside (a command line, a request), and what became of it as JSON.

use std::time::Duration;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;

use super::App;
use crate::bus::{Dispatch, Dispatched};
use crate::config::{Problem, parse_duration};
use crate::message::{Envelope, TraceContext};

/// A message as text.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Its type.
    pub message_type: String,
    /// Its body, which must be JSON.
    pub body: String,
    /// Deliver it no sooner than this.
    pub delay: Option<Duration>,
    /// Send it to these transports, whatever the routing says; as the routing says if there are none.
    pub transports: Vec<String>,
    /// On this bus; on the default one if there is none.
    pub bus: Option<String>,
    /// With these stamps, each a class and its values as JSON.
    pub stamps: Vec<(String, String)>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// A message as a JSON object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    message_type: String,
    /// As it is written: JSON that is read and written again may differ.
    body: Option<Box<RawValue>>,
    delay: Option<Delay>,
    #[serde(default)]
    transports: Vec<String>,
    bus: Option<String>,
    /// The values of each class.
    #[serde(default)]
    stamps: IndexMap<String, Box<RawValue>>,
}

/// Seconds, or a text such as `5m`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Delay {
    Seconds(f64),
    Text(String),
}

impl Outgoing {
    /// Reads a message that is written as a JSON object.
    pub(crate) fn from_json(text: &[u8]) -> Result<Self, OutgoingError> {
        let written = serde_json::from_slice::<Written>(text).map_err(OutgoingError::NotWritten)?;
        let delay = written.delay.map(|delay| match delay {
            Delay::Seconds(seconds) => parse_duration(&seconds.to_string()),
            Delay::Text(text) => parse_duration(&text),
        });
        let delay = delay.transpose().map_err(|error| OutgoingError::Delay(error.to_string()))?;
        let body = written.body.map_or_else(|| "{}".to_owned(), |body| body.get().to_owned());
        let Written { message_type, transports, bus, stamps, .. } = written;
        let stamps = stamps.into_iter().map(|(class, values)| (class, values.get().to_owned())).collect();
        Ok(Self { message_type, body, delay, transports, bus, stamps, trace: None })
    }
}

/// Why a message cannot be dispatched.
#[derive(Debug, Error)]
pub(crate) enum OutgoingError {
    #[error(r#"it must be JSON such as {{"type":"App\\Message\\Note","body":{{"id":1}},"delay":"5m"}}: {0}"#)]
    NotWritten(serde_json::Error),
    #[error("delay: {0}")]
    Delay(String),
    #[error("the message's type is empty")]
    NoType,
    #[error("the message is not JSON: {0}; expected JSON such as '{{\"id\":1}}'")]
    NotJson(String),
    #[error("{0}")]
    UnknownTransport(String),
    #[error("{0}")]
    UnknownBus(String),
    #[error("{0}")]
    Stamp(String),
}

impl App {
    /// What dispatches this message, once it is awaited.
    pub(crate) fn dispatch_outgoing(&self, message: Outgoing) -> Result<Dispatch, OutgoingError> {
        let Outgoing { message_type, body, delay, transports, bus, stamps, trace } = message;
        for name in &transports {
            if !self.config.transports.contains_key(name) {
                let known = self.config.transports.keys().map(String::as_str);
                return Err(OutgoingError::UnknownTransport(Problem::unknown("", "transport", name, known).message));
            }
        }
        if message_type.is_empty() {
            return Err(OutgoingError::NoType);
        }
        serde_json::from_str::<&serde_json::value::RawValue>(&body)
            .map_err(|error| OutgoingError::NotJson(error.to_string()))?;
        let bus = bus.map_or_else(|| Ok(self.bus()), |name| self.bus_named(&name));
        let bus = bus.map_err(|error| OutgoingError::UnknownBus(error.to_string()))?;
        let mut envelope = Envelope::from_json(&message_type, body);
        for (class, values) in &stamps {
            envelope.add_stamp(class, values).map_err(OutgoingError::Stamp)?;
        }
        let mut dispatch = bus.dispatch_envelope(envelope);
        if let Some(trace) = &trace {
            dispatch = dispatch.trace(trace);
        }
        if let Some(delay) = delay {
            dispatch = dispatch.delay(delay);
        }
        if !transports.is_empty() {
            dispatch = dispatch.to(transports);
        }
        Ok(dispatch)
    }
}

/// What became of a message. It may have gone to several transports: the first is told at the top, all of them under
/// `sent`. What handlers have returned stands under `results`.
pub(crate) fn dispatch_report(dispatched: &Dispatched) -> Value {
    let queued = dispatched.queued().into_iter().map(|stamp| {
        json!({
            "outcome": "queued", "transport": stamp.transport, "queued_on": stamp.queued_on, "id": stamp.id,
            "reason": stamp.reason,
        })
    });
    let outcome = if dispatched.is_unhandled() { "unhandled" } else { "handled" };
    let handled = dispatched
        .handled_now()
        .into_iter()
        .map(|stamp| json!({ "outcome": outcome, "transport": stamp.transport, "id": null, "reason": stamp.reason }));
    let all: Vec<_> = queued.chain(handled).collect();
    let nothing = || if dispatched.is_duplicate() { json!({ "outcome": "duplicate" }) } else { json!({}) };
    let mut report = all.first().cloned().unwrap_or_else(nothing);
    report["sent"] = all.into();
    report["results"] = json!(dispatched.results());
    report
}
