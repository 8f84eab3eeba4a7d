//! `POST /api/_action/message-queue/consume`: consumes for two seconds, as Shopware's endpoint of this name does.
//!
//! The worker is in this process, and holds no slot of a worker definition: it does not count towards a `max`. It holds a slot
//! of its own for each receiver, so that no other request of this host, in whichever process, consumes the same one
//! meanwhile. It has no heartbeat, because producers must not rely on who is gone in a moment.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;

use super::reply::Reply;
use super::service::Service;
use crate::bounded_text::bounded;
use crate::config::Problem;
use crate::supervisor::Slots;

/// The longest name of a folder on all common file systems, in bytes.
const LONGEST_NAME: usize = 255;

#[derive(Deserialize)]
struct Request {
    receiver: String,
}

pub(super) async fn run(service: &Service, body: &[u8]) -> Reply {
    let app = &service.app;
    let receiver = match serde_json::from_slice::<Request>(body) {
        Ok(request) => request.receiver,
        Err(error) => {
            return Reply::error(400, format!("the body must be JSON such as {{\"receiver\":\"async\"}}: {error}"));
        }
    };
    if !app.config.transports.contains_key(&receiver) {
        let known = app.config.transports.keys().map(String::as_str);
        return Reply::error(400, Problem::unknown("", "receiver", &receiver, known).message);
    }
    // An auto-fallback and its target are the same queue.
    let target = match app.transports.target(&receiver) {
        Ok(target) if target.receiver.is_some() => target,
        Ok(_) => {
            return Reply::error(400, format!("nothing is queued on \"{receiver}\": its messages are handled at once"));
        }
        Err(error) => return Reply::error(400, error.to_string()),
    };
    let name = bounded(utf8_percent_encode(target.name(), NON_ALPHANUMERIC).to_string(), LONGEST_NAME);
    let _slot = match Slots::of_requests(&app.config.state_dir).claim(&name, 0) {
        Ok(Some(slot)) => slot,
        Ok(None) => return Reply::error(409, format!("another request consumes \"{receiver}\" at the moment")),
        Err(error) => return Reply::error(500, error.to_string()),
    };
    let worker = app.worker([receiver.clone()]).time_limit(service.config().consume_time).brief();
    match worker.run_until(service.stopped()).await {
        Ok(summary) => {
            let (handled, failed) = (summary.handled, summary.failed);
            // Whoever asks every two seconds is not told in the log that there was nothing.
            if handled + failed > 0 {
                tracing::info!(receiver, handled, failed, "consumed for a request: {}", summary.reason);
            }
            let mut body = json!({ "handledMessages": handled, "failedMessages": failed });
            let Some(problem) = summary.problem else { return Reply::new(200, body) };
            body["error"] = problem.into();
            Reply::new(503, body)
        }
        Err(error) => {
            tracing::error!(receiver, %error, "a request could not consume");
            Reply::error(503, error.to_string())
        }
    }
}
