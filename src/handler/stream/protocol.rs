//! The lines that go to a stream program and come from it: see `docs/stream.md`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::handler::metadata::Metadata;
use crate::handler::{HandlerError, Verdict};
use crate::message::{Envelope, Headers, TraceContext};

/// How much of an error's text is kept, in bytes. Every further retry carries it in its headers.
const LONGEST_ERROR: usize = 4096;
/// How much of its class is kept.
const LONGEST_CLASS: usize = 200;

/// The longest delay that an answer may ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(365 * 86_400);

#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    r#type: &'a str,
    message_id: String,
    transport: String,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    headers: Headers,
    body: &'a RawValue,
}

/// The line for a message, without its end. `trace` is the span that handles it.
pub(super) fn request(id: u64, envelope: &Envelope, trace: Option<&TraceContext>) -> Result<Vec<u8>, HandlerError> {
    // It is JSON if it was received; one dispatched in code may be anything.
    let body = serde_json::from_slice(envelope.body())
        .map_err(|error| HandlerError::unrecoverable(format!("the message's body is not JSON: {error}")))?;
    let Metadata { id: message_id, transport, attempt } = Metadata::of(envelope);
    let (r#type, headers) = (envelope.message_type(), envelope.json_headers());
    let (traceparent, tracestate) = (trace.map(TraceContext::to_string), trace.and_then(TraceContext::state));
    let request = Request { id, r#type, message_id, transport, attempt, traceparent, tracestate, headers, body };
    let mut line = serde_json::to_vec(&request)
        .map_err(|error| HandlerError::unrecoverable(format!("the message cannot be written as JSON: {error}")))?;
    // Within texts they are escaped, so these only stand between the parts of a body that was written on several lines.
    for byte in &mut line {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    Ok(without_unicodes_line_ends(line))
}

/// The same with U+2028 and U+2029 escaped, which only occur within texts: some languages take them for the end of a line.
fn without_unicodes_line_ends(line: Vec<u8>) -> Vec<u8> {
    let is_end = |bytes: &[u8]| matches!(bytes, [0xe2, 0x80, 0xa8 | 0xa9]);
    if !line.windows(3).any(is_end) {
        return line;
    }
    let (mut escaped, mut rest) = (Vec::with_capacity(line.len() + 8), line.as_slice());
    while let Some(at) = rest.windows(3).position(is_end) {
        escaped.extend_from_slice(&rest[..at]);
        escaped.extend_from_slice(if rest[at + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
        rest = &rest[at + 3..];
    }
    escaped.extend_from_slice(rest);
    escaped
}

#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) id: Option<u64>,
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    result: Value,
    error: Option<String>,
    /// Yes, no, or `"always"`.
    retry: Option<Value>,
    /// Milliseconds.
    delay: Option<Value>,
    class: Option<String>,
    /// In PHP, some exceptions have a text here.
    #[serde(default)]
    code: Value,
    /// The message failed, and the worker is to stop.
    #[serde(default)]
    stop_worker: bool,
}

/// What an answer to the message `id` says. An error says why it is none.
pub(super) fn read_answer(id: u64, line: &[u8]) -> Result<Result<Value, HandlerError>, String> {
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".to_owned());
    }
    let answer: Answer = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if answer.id.is_some_and(|of| of != id) {
        return Err(format!("it is for message {}, and not for {id}", answer.id.unwrap_or_default()));
    }
    understand(answer)
}

pub(super) fn understand(answer: Answer) -> Result<Result<Value, HandlerError>, String> {
    if let (true, None) = (answer.ok, &answer.error) {
        return Ok(Ok(answer.result));
    }
    let Some(error) = answer.error else {
        return Err("it has neither `\"ok\": true` nor an `error`".to_owned());
    };
    if answer.ok {
        return Err("it has both `\"ok\": true` and an `error`".to_owned());
    }
    let delay = answer.delay.as_ref().map(read_delay).transpose()?;
    let verdict = match (answer.retry, delay) {
        (Some(Value::Bool(false)), _) => Verdict::Unrecoverable,
        (Some(Value::String(word)), delay) if word == "always" => Verdict::RetryAlways(delay),
        (None | Some(Value::Bool(true)), Some(delay)) => Verdict::RetryAlways(Some(delay)),
        (None | Some(Value::Bool(true)), None) => Verdict::Retry,
        _ => return Err("`retry` must be true, false or \"always\"".to_owned()),
    };
    let class = answer.class.filter(|class| !class.is_empty()).unwrap_or("minutely::stream::Failed".to_owned());
    let (class, message) = (cut(class, LONGEST_CLASS), cut(error, LONGEST_ERROR));
    let code = answer.code.as_i64().unwrap_or_default();
    Ok(Err(HandlerError { verdict, class, code, message, stops_worker: answer.stop_worker }))
}

/// A delay in milliseconds: a fraction of one is rounded up.
fn read_delay(delay: &Value) -> Result<Duration, String> {
    let wrong = || "`delay` must be a number of milliseconds that is not negative".to_owned();
    let delay = match delay.as_u64() {
        Some(delay) => Duration::from_millis(delay),
        None => {
            let delay = delay.as_f64().filter(|delay| *delay >= 0.0).ok_or_else(wrong)?;
            // More than fits is more than the longest delay.
            Duration::try_from_secs_f64(delay.ceil() / 1000.0).unwrap_or(LONGEST_DELAY)
        }
    };
    Ok(delay.min(LONGEST_DELAY))
}

/// The beginning of a text.
pub(super) fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DelayStamp, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp};

    #[test]
    fn a_message_is_one_line_with_all_that_is_known_of_it() {
        let envelope = Envelope::from_json(r"App\Mail", "{\n  \"text\": \"a\\nb\",\r\n  \"n\": 1.0\n}\n")
            .with(&TransportMessageIdStamp { id: 7.into() })
            .with(&ReceivedStamp { transport_name: "mail".into() })
            .with(&RedeliveryStamp { retry_count: 2, redelivered_at: String::new() })
            .with(&DelayStamp { delay: 5 });
        let line = request(3, &envelope, None).unwrap();
        assert!(!line.contains(&b'\n'));
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value.get("traceparent").or(value.get("tracestate")), None, "it belongs to no trace");
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = parent.parse::<TraceContext>().unwrap().with_state(Some("a=1"));
        let traced: Value = serde_json::from_slice(&request(3, &envelope, Some(&trace)).unwrap()).unwrap();
        assert_eq!((&traced["traceparent"], &traced["tracestate"]), (&parent.into(), &"a=1".into()));
        assert_eq!((&value["id"], &value["type"], &value["message_id"]), (&3.into(), &r"App\Mail".into(), &"7".into()));
        assert_eq!((&value["transport"], &value["attempt"]), (&"mail".into(), &3.into()));
        assert_eq!(value["body"], serde_json::json!({ "text": "a\nb", "n": 1.0 }));
        let delay = &value["headers"][r"X-Message-Stamp-Symfony\Component\Messenger\Stamp\DelayStamp"];
        assert_eq!(delay, r#"[{"delay":5}]"#);
        let ends = request(1, &Envelope::from_json("a", "\"é\u{2028}\u{2029}\u{2028}x\""), None).unwrap();
        assert!(ends.ends_with("\"é\\u2028\\u2029\\u2028x\"}".as_bytes()));
        let error = request(1, &Envelope::from_json("a", "no JSON"), None).unwrap_err();
        assert_eq!(error.verdict, Verdict::Unrecoverable);
    }

    #[test]
    fn an_answer_decides_about_the_message() {
        let of = |line: &str| read_answer(3, line.as_bytes()).unwrap();
        assert_eq!(of(r#"{"ok":true}"#).unwrap(), Value::Null);
        assert_eq!(of(r#"{"id":3,"ok":true,"result":[1],"more":1}"#).unwrap(), serde_json::json!([1]));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (line, verdict) in [
            (r#"{"error":"e"}"#, Verdict::Retry),
            (r#"{"id":3,"ok":false,"error":"e","retry":true}"#, Verdict::Retry),
            (r#"{"error":"e","retry":false}"#, Verdict::Unrecoverable),
            (r#"{"error":"e","retry":false,"delay":5}"#, Verdict::Unrecoverable),
            (r#"{"error":"e","retry":"always"}"#, Verdict::RetryAlways(None)),
            (r#"{"error":"e","delay":2000}"#, Verdict::RetryAlways(seconds(2))),
            (r#"{"error":"e","retry":"always","delay":3000}"#, Verdict::RetryAlways(seconds(3))),
            (r#"{"error":"e","delay":18446744073709551615}"#, Verdict::RetryAlways(Some(LONGEST_DELAY))),
            (r#"{"error":"e","delay":1e300}"#, Verdict::RetryAlways(Some(LONGEST_DELAY))),
            (r#"{"error":"e","delay":1499.2}"#, Verdict::RetryAlways(Some(Duration::from_millis(1500)))),
            (r#"{"error":"e","delay":null,"retry":null,"code":"42S02"}"#, Verdict::Retry),
            (r#"{"error":"e","code":1.5}"#, Verdict::Retry),
        ] {
            let error = of(line).unwrap_err();
            assert_eq!((error.verdict, error.message.as_str()), (verdict, "e"), "{line}");
            assert_eq!((error.class.as_str(), error.code), ("minutely::stream::Failed", 0));
        }
        assert!(of(r#"{"error":"e","stop_worker":true}"#).unwrap_err().stops_worker);
        let error = of(&format!(r#"{{"error":"{}","class":"App\\Broken","code":7}}"#, "é".repeat(5000))).unwrap_err();
        assert_eq!((error.class.as_str(), error.code, error.message.len()), (r"App\Broken", 7, LONGEST_ERROR));
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        for (line, why) in [
            ("", "it is no JSON object"),
            ("hello", "it is no JSON object"),
            ("[3,true]", "it is no JSON object"),
            ("{", "EOF"),
            ("{}", "neither"),
            (r#"{"ok":false}"#, "neither"),
            (r#"{"ok":true,"error":"e"}"#, "both"),
            (r#"{"id":2,"ok":true}"#, "it is for message 2, and not for 3"),
            (r#"{"error":"e","retry":"sometimes"}"#, r#"`retry` must be true, false or "always""#),
            (r#"{"error":"e","retry":1}"#, r#"`retry` must be true, false or "always""#),
            (r#"{"error":"e","delay":-1}"#, "`delay` must be a number of milliseconds"),
            (r#"{"error":"e","delay":"5"}"#, "`delay` must be a number of milliseconds"),
            (r#"{"ok":true,"ok":true}"#, "duplicate"),
            (r#"{"id":3,"type":"A","message_id":"","body":{}}"#, "neither"),
            (&format!("{{\"result\":{}", "[".repeat(100_000)), "recursion limit"),
        ] {
            let error = read_answer(3, line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line:.50}: {error}");
        }
        assert!(read_answer(3, b"{\"error\":\"\xff\"}").is_err());
    }
}
