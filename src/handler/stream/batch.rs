//! What goes to a program or a server for several messages at once, and what its answers say about each of them.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::protocol::{self, Answer, cut};
use crate::handler::HandlerError;
use crate::message::{Envelope, TraceContext};

/// How much of an answer to no message is shown, in bytes.
const SHOWN: usize = 200;

/// What a handler says about each message of a batch.
pub(in crate::handler) type Answers = Vec<Result<Value, HandlerError>>;

/// The messages of a batch as JSON, with their numbers. Those that cannot be written fail by themselves.
pub(in crate::handler) struct Requests {
    pub(in crate::handler) ids: Vec<u64>,
    pub(in crate::handler) lines: Vec<Vec<u8>>,
    /// For each message of the batch, why it cannot be written.
    unwritable: Vec<Option<HandlerError>>,
}

impl Requests {
    /// The first message gets this number. Each belongs to its own trace.
    pub(in crate::handler) fn new(messages: &[Envelope], first_id: u64) -> Self {
        let mut requests = Self { ids: Vec::new(), lines: Vec::new(), unwritable: Vec::new() };
        for (id, message) in (first_id..).zip(messages) {
            let trace = TraceContext::of(message).map(|cause| cause.child());
            match protocol::request(id, message, trace.as_ref()) {
                Ok(line) => {
                    requests.ids.push(id);
                    requests.lines.push(line);
                    requests.unwritable.push(None);
                }
                Err(error) => requests.unwritable.push(Some(error)),
            }
        }
        requests
    }

    /// The first message that can be written.
    pub(in crate::handler) fn first<'a>(&self, messages: &'a [Envelope]) -> Option<&'a Envelope> {
        messages.iter().zip(&self.unwritable).find(|(_, error)| error.is_none()).map(|(message, _)| message)
    }

    /// All of them as a list.
    pub(in crate::handler) fn list(&self) -> Vec<u8> {
        let mut list = vec![b'['];
        list.extend(self.lines.join(&b','));
        list.push(b']');
        list
    }

    /// The result of each message of the batch, where these are the answers to those that were written; or the failure of all.
    pub(in crate::handler) fn results(self, answered: Result<Answers, HandlerError>) -> Answers {
        let mut answers = answered.unwrap_or_else(|error| vec![Err(error); self.ids.len()]).into_iter();
        let of = |error: Option<HandlerError>| match error {
            Some(error) => Err(error),
            None => answers.next().unwrap_or_else(|| Err(missing(""))),
        };
        self.unwritable.into_iter().map(of).collect()
    }
}

/// What the answers to a batch say, in the order of its messages. A message fails if what is said about it is unclear; what is
/// said about no message is left aside, with a warning. An error says why there are no answers at all.
pub(in crate::handler) fn read_answers(ids: &[u64], text: &[u8]) -> Result<Answers, String> {
    let answers: Vec<Box<RawValue>> = if text.trim_ascii_start().first() == Some(&b'{') {
        let answer: Answer = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if answer.id.is_none() {
            return Ok(vec![protocol::understand(answer)?; ids.len()]);
        }
        // It is for one of them.
        vec![serde_json::from_slice(text).map_err(|error| error.to_string())?]
    } else {
        serde_json::from_slice(text).map_err(|error| error.to_string())?
    };
    let (mut by_id, mut surplus): (HashMap<u64, Result<Value, HandlerError>>, Vec<String>) = Default::default();
    for answer in &answers {
        let Some(id) = id_of(answer).filter(|id| ids.contains(id)) else {
            surplus.push(cut(answer.get().to_owned(), SHOWN));
            continue;
        };
        let said = serde_json::from_str(answer.get()).map_err(|error| error.to_string());
        let said = said.and_then(protocol::understand).unwrap_or_else(|why| Err(unclear(&why)));
        match by_id.remove(&id) {
            Some(before) if before.is_ok() != said.is_ok() => {
                by_id.insert(id, Err(unclear("it has two, which contradict each other")));
            }
            Some(before) => drop(by_id.insert(id, before)),
            None => drop(by_id.insert(id, said)),
        }
    }
    let hint = surplus.first().map(|first| {
        tracing::warn!(answers = surplus.len(), first, "answers to no message of the batch are left aside");
        format!("; it has answers without the `id` of one of its messages, such as {first}")
    });
    let missing = || Err(missing(hint.as_deref().unwrap_or_default()));
    Ok(ids.iter().map(|id| by_id.remove(id).unwrap_or_else(missing)).collect())
}

fn missing(hint: &str) -> HandlerError {
    HandlerError::failed(format!("there is no answer to this message of its batch{hint}"))
}

fn unclear(why: &str) -> HandlerError {
    HandlerError::failed(format!("the answer to this message of its batch is unclear: {why}"))
}

fn id_of(answer: &RawValue) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    // A list would be read as well, as the fields in their order.
    let text = answer.get().trim_start();
    text.starts_with('{').then(|| serde_json::from_str::<Numbered>(text).ok()).flatten().map(|answer| answer.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Result<Value, String>>, String> {
        let answers = read_answers(&[3, 4], text.as_bytes())?;
        Ok(answers.into_iter().map(|answer| answer.map_err(|error| error.message)).collect())
    }

    #[test]
    fn a_batch_is_answered_message_by_message_or_as_a_whole() {
        let both = of(r#"[{"id":4,"error":"e"},{"id":3,"ok":true,"result":1}]"#);
        assert_eq!(both, Ok(vec![Ok(1.into()), Err("e".to_owned())]));
        assert_eq!(of(r#"{"ok":true}"#), Ok(vec![Ok(Value::Null), Ok(Value::Null)]));
        assert_eq!(of(r#"{"error":"all"}"#), Ok(vec![Err("all".to_owned()), Err("all".to_owned())]));
        for (text, why) in [("ok", "expected"), ("", "EOF"), ("{}", "neither"), ("7", "invalid type")] {
            let error = of(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn only_messages_whose_answer_is_missing_or_unclear_fail() {
        for (answer, why) in [
            ("", "there is no answer to this message"),
            (r#", {"id":5,"ok":true}"#, r#"such as {"id":5,"ok":true}"#),
            (r#", {"ok":true}, [4], 4, {"id":"4","ok":true}"#, r#"such as {"ok":true}"#),
            (r#", {"id":4}"#, "is unclear: it has neither"),
            (r#", {"id":4,"ok":true,"error":"e"}"#, "is unclear: it has both"),
            (r#", {"id":4,"ok":"yes"}"#, "is unclear: invalid type"),
            (r#", {"id":4,"ok":true},{"id":4,"error":"e"}"#, "contradict each other"),
        ] {
            let answers = of(&format!(r#"[{{"id":3,"ok":true}}{answer}]"#)).unwrap();
            assert_eq!(answers[0], Ok(Value::Null), "{answer}");
            let error = answers[1].as_ref().unwrap_err();
            assert!(error.contains(why), "{answer}: {error}");
        }
        let said_twice =
            of(r#"[{"id":3,"ok":true,"result":1},{"id":3,"ok":true},{"id":4,"error":"a"},{"id":4,"error":"b"}]"#);
        assert_eq!(said_twice, Ok(vec![Ok(1.into()), Err("a".to_owned())]));
        let one = of(r#"{"id":3,"ok":true}"#).unwrap();
        assert!(one[0].is_ok() && one[1].is_err(), "{one:?}");
    }
}
