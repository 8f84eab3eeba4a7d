//! What an answer means for the message: its status decides.

use std::time::{Duration, SystemTime};

use chrono::DateTime;
use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::failure;
use crate::handler::stream::batch::{Answers, read_answers};
use crate::handler::{HandlerError, Verdict};

/// A shorter delay is none: the retry strategy's is used.
const SHORTEST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay that a server may ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 3600);

/// The verdict for a message that was answered with this status; `None` if it is handled.
pub(in crate::handler) fn verdict(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Verdict> {
    let delay = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now));
    match (status.as_u16(), delay) {
        (200..=299, _) => None,
        // At once would be sooner than after any other failure.
        (429 | 503, Some(delay)) => Some(Verdict::RetryAlways(Some(delay).filter(|delay| *delay >= SHORTEST_DELAY))),
        (408 | 425 | 429, _) => Some(Verdict::Retry),
        (400..=499, _) => Some(Verdict::Unrecoverable),
        _ => Some(Verdict::Retry),
    }
}

/// What the body of an answer with 2xx says about the messages of a batch. Where it says nothing about them, all are handled.
pub(super) fn of_batch(ids: &[u64], body: &[u8], longest: usize) -> Result<Answers, HandlerError> {
    let unclear = |why: String| {
        let text = format!("what the answer says about the messages of the batch cannot be understood: {why}");
        Err(failure("NoAnswer", Verdict::Retry, text))
    };
    let speaks = match body.trim_ascii_start().first() {
        Some(b'[') => true,
        Some(b'{') if body.len() <= longest => serde_json::from_slice::<Value>(body)
            .is_ok_and(|answer| ["ok", "error"].iter().any(|key| answer.get(*key).is_some())),
        _ => false,
    };
    match speaks {
        true if body.len() > longest => unclear(format!("it is longer than {longest} bytes")),
        true => read_answers(ids, body).or_else(unclear),
        false => Ok(vec![Ok(Value::Null); ids.len()]),
    }
}

/// The delay that `Retry-After` asks for: seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let delay = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is more than the longest delay.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = SystemTime::from(DateTime::parse_from_rfc2822(value).ok()?);
        date.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(LONGEST_DELAY))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_status_decides_about_the_message() {
        let of = |status: u16, retry_after: Option<&str>| {
            let headers = retry_after.map(|value| (RETRY_AFTER, value.parse().unwrap())).into_iter().collect();
            // Wed, 21 Oct 2015 07:28:00 GMT
            verdict(StatusCode::from_u16(status).unwrap(), &headers, UNIX_EPOCH + Duration::from_secs(1_445_412_480))
        };
        let after = |seconds| Some(Verdict::RetryAlways(Some(Duration::from_secs(seconds))));
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(of(status, None), None, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 304, 300] {
            assert_eq!(of(status, None), Some(Verdict::Retry), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 410, 413, 422] {
            assert_eq!(of(status, Some("5")), Some(Verdict::Unrecoverable), "{status}");
        }
        for (value, expected) in [
            ("120", after(120)),
            ("0", Some(Verdict::RetryAlways(None))),
            ("1", after(1)),
            ("99999999999999999999999", after(24 * 3600)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", after(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(Verdict::RetryAlways(None))),
            ("soon", Some(Verdict::Retry)),
            ("-5", Some(Verdict::Retry)),
            ("", Some(Verdict::Retry)),
        ] {
            assert_eq!((of(429, Some(value)), of(503, Some(value))), (expected, expected), "{value}");
            assert_eq!(of(500, Some(value)), Some(Verdict::Retry));
        }
    }

    #[test]
    fn the_answer_to_a_batch_speaks_for_each_message_or_for_all() {
        let of = |body: &str| {
            let answers = of_batch(&[1, 2], body.as_bytes(), 1000).map_err(|error| error.message)?;
            Ok::<_, String>(answers.iter().map(Result::is_ok).collect::<Vec<_>>())
        };
        for body in ["", "thanks", r#"{"status":"accepted"}"#, r#"{"ok":true}"#, "7", &" ".repeat(2000), "{"] {
            assert_eq!(of(body), Ok(vec![true, true]), "{body}");
        }
        assert_eq!(of(r#"{"error":"down"}"#), Ok(vec![false, false]));
        assert_eq!(of(r#"[{"id":2,"error":"no"},{"id":1,"ok":true}]"#), Ok(vec![true, false]));
        assert_eq!(of(r#"[{"id":2,"ok":true}]"#), Ok(vec![false, true]));
        for (body, why) in [("[", "EOF"), (&format!("[{}", " ".repeat(2000)), "longer than 1000 bytes")] {
            assert!(of(body).unwrap_err().contains(why), "{body:.10}");
        }
    }
}
