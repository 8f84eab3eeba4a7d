//! `POST /dispatch`: takes a message, for programs in any language.

use std::future::IntoFuture;

use serde_json::json;

use super::reply::Reply;
use super::service::Service;
use crate::app::{Outgoing, OutgoingError, dispatch_report};
use crate::bus::{DispatchError, Queued};
use crate::message::{SentStamp, TraceContext};

pub(super) async fn run(service: &Service, body: &[u8], trace: Option<TraceContext>) -> Reply {
    let message = match read(body) {
        Ok(message) => Outgoing { trace, ..message },
        Err(reply) => return reply,
    };
    let dispatch = match service.app.dispatch_outgoing(message) {
        Ok(dispatch) => dispatch,
        Err(error @ (OutgoingError::UnknownTransport(_) | OutgoingError::UnknownBus(_))) => {
            return Reply::error(400, error.to_string());
        }
        Err(error) => return Reply::error(422, error.to_string()),
    };
    match dispatch.into_future().await {
        Ok(dispatched) => {
            // Queued: others will handle it.
            let status = if dispatched.is_queued() { 202 } else { 200 };
            Reply::new(status, dispatch_report(&dispatched))
        }
        Err(error) => failed(&error),
    }
}

fn read(body: &[u8]) -> Result<Outgoing, Reply> {
    Outgoing::from_json(body).map_err(|error| {
        let status = if matches!(&error, OutgoingError::NotWritten(error) if !error.is_data()) { 400 } else { 422 };
        let what = if matches!(error, OutgoingError::NotWritten(_)) { "the body: " } else { "" };
        Reply::error(status, format!("{what}{error}"))
    })
}

/// What went wrong, and which queues have the message nevertheless: to dispatch it again is to handle it twice there.
fn failed(error: &DispatchError) -> Reply {
    let (status, sent): (u16, Vec<SentStamp>) = match error {
        DispatchError::Unwritable(_)
        | DispatchError::Invalid(_)
        | DispatchError::NoHandler { .. }
        | DispatchError::UnknownBus(_)
        | DispatchError::NoSender { .. }
        | DispatchError::NotTaken { .. }
        | DispatchError::NotInTransaction { .. }
        | DispatchError::Refused(_) => (422, Vec::new()),
        DispatchError::Sending { sent, .. } => (503, sent.clone()),
        DispatchError::Handling(failed) => (500, failed.envelope.all()),
        DispatchError::Delayed(failed) => (500, failed.envelope.all()),
        DispatchError::NoResult { .. } | DispatchError::Panicked(_) => (500, Vec::new()),
    };
    let queued = sent.into_iter().map(|SentStamp { transport_name, queued_on, id, reason }| Queued {
        transport: transport_name,
        queued_on,
        id,
        reason,
    });
    let queued: Vec<Queued> = queued.collect();
    if status >= 500 {
        tracing::warn!(%error, status, queued = queued.len(), "a message that was to be dispatched for a request was not");
    }
    Reply::new(status, json!({ "error": error.to_string(), "queued": queued }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_body_stays_as_it_is_written() {
        let message = read(br#"{"type":"a","body":{"b": 1.0, "a": 12345678901234567890123},"delay":1.5}"#).unwrap();
        assert_eq!(message.body, r#"{"b": 1.0, "a": 12345678901234567890123}"#);
        assert_eq!(message.delay, Some(Duration::from_millis(1500)));
        assert_eq!(read(br#"{"type":"a"}"#).unwrap().body, "{}");
        assert_eq!(read(br#"{"type":"a","body":null}"#).unwrap().body, "{}");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (body, status) in [
            (&b""[..], 400),
            (b"{", 400),
            (b"[]", 422),
            (b"{}", 422),
            (br#"{"type":1}"#, 422),
            (br#"{"type":"a","delay":"soon"}"#, 422),
            (br#"{"type":"a","delay":-1}"#, 422),
            (br#"{"type":"a","delay":1e300}"#, 422),
            (br#"{"type":"a","dely":1}"#, 422),
            (b"{\"type\":\"\xff\"}", 400),
        ] {
            assert_eq!(
                read(body).map_err(|reply| reply.status).err(),
                Some(status),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
    }
}
