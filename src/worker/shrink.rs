//! Makes a failed message smaller, step by step, until the failure transport can hold it. A store may hold only text,
//! or limit the size of headers.
//!
//! First goes what a failed message can do without; a header names it. What its sender wrote goes last, and only where
//! that is allowed.

use std::cmp::Reverse;
use std::collections::HashSet;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::message::{
    CONTENT_TYPE, Encoded, ErrorDetailsStamp, HandledStamp, Headers, RedeliveryStamp, STAMP_PREFIX,
    SentToFailureTransportStamp, Stamp, TYPE,
};
use crate::transport::Damaged;

/// What is percent-encoded in content that is not text.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Holds headers that could not be read, as they were stored, percent-encoded.
const DAMAGED_HEADERS: &str = "X-Minutely-Damaged-Headers";

/// Says that the body is percent-encoded, because it could not be stored as it was.
const DAMAGED_BODY: &str = "X-Minutely-Damaged-Body";

/// Names the stamps and headers that were left out because the store could not hold them. A header and not a stamp: PHP
/// refuses messages with stamps of unknown classes.
const LEFT_OUT: &str = "X-Minutely-Left-Out";

/// The longest list of what was left out, in bytes.
const MAX_LEFT_OUT: usize = 1024;

/// Prefix of the headers that minutely writes for itself.
const OUR_PREFIX: &str = "X-Minutely-";

/// The longest header that is kept in every form, in bytes. Messages that can be handled have none that is longer.
const MAX_KEPT_HEADER: usize = 2 * MAX_LEFT_OUT;

/// A message whose headers cannot be read, in a form that can be stored again. Nothing is lost.
pub(super) fn encode_damaged(damaged: &Damaged) -> Encoded {
    let headers = percent_encode(&damaged.headers, ESCAPED).to_string();
    Encoded { body: damaged.body.clone(), headers: Headers::from([(DAMAGED_HEADERS, headers)]) }
}

/// Makes a message smaller, step by step.
pub(super) struct Shrinker {
    message: Encoded,
    left_out: Vec<String>,
    /// The last form that has a stamp of each class, and what is left out of it.
    with_all_stamps: Option<(Encoded, Vec<String>)>,
    next: Step,
}

#[derive(Clone, Copy)]
enum Step {
    /// Encodes a body that is not text.
    EncodeBody,
    /// Keeps only the last stamp of each class, and removes PHP's stack traces from errors.
    KeepLatestStamps,
    /// Removes the largest stamps. This step repeats.
    RemoveStamps,
    /// Removes the largest headers, stamps or not. This step repeats.
    RemoveHeaders,
}

impl Shrinker {
    pub(super) fn new(message: &Encoded) -> Self {
        Self { message: message.clone(), left_out: Vec::new(), with_all_stamps: None, next: Step::EncodeBody }
    }

    /// The message as small as it is now.
    pub(super) fn current(&self) -> &Encoded {
        &self.message
    }

    /// The names of what was left out.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Allows removing headers that are not stamps, after removing stamps was not enough. The stamps come back first,
    /// because a single large header may have been the problem. Returns `false` if this was allowed before, or nothing
    /// can be removed.
    pub(super) fn allow_dropping_headers(&mut self) -> bool {
        match self.next {
            Step::RemoveHeaders => false,
            Step::EncodeBody | Step::KeepLatestStamps | Step::RemoveStamps => {
                self.next = Step::RemoveHeaders;
                if let Some((message, left_out)) = self.with_all_stamps.take() {
                    (self.message, self.left_out) = (message, left_out);
                }
                self.shrink()
            }
        }
    }

    /// Makes the message smaller. Returns `false` if that is not possible: only the message itself is left.
    pub(super) fn shrink(&mut self) -> bool {
        loop {
            let changed = match self.next {
                Step::EncodeBody => {
                    self.next = Step::KeepLatestStamps;
                    self.encode_body()
                }
                Step::KeepLatestStamps => {
                    self.next = Step::RemoveStamps;
                    let changed = self.keep_latest_stamps();
                    self.with_all_stamps = Some((self.message.clone(), self.left_out.clone()));
                    changed
                }
                Step::RemoveStamps | Step::RemoveHeaders => return self.remove_largest(),
            };
            if changed {
                return true;
            }
        }
    }

    fn encode_body(&mut self) -> bool {
        let is_text = std::str::from_utf8(&self.message.body).is_ok_and(|text| !text.contains('\0'));
        if !is_text {
            self.message.body = percent_encode(&self.message.body, ESCAPED).to_string().into();
            self.message.headers.insert(DAMAGED_BODY, "percent-encoded");
        }
        !is_text
    }

    fn keep_latest_stamps(&mut self) -> bool {
        let (errors, handled) = (header::<ErrorDetailsStamp>(), header::<HandledStamp>());
        let mut left_out = Vec::new();
        for (name, value) in self.message.headers.iter_mut() {
            // Each HandledStamp names another handler.
            if !name.starts_with(STAMP_PREFIX) || name == handled {
                continue;
            }
            let Ok(stamps) = serde_json::from_str::<Vec<Box<RawValue>>>(value) else { continue };
            let Some(last) = stamps.last() else { continue };
            let without_trace = if name == errors { without_trace(last.get()) } else { None };
            if stamps.len() > 1 {
                left_out.push(format!("older {}", class(name)));
            }
            if without_trace.is_some() {
                left_out.push(format!("flattenException of {}", class(name)));
            }
            if stamps.len() > 1 || without_trace.is_some() {
                *value = format!("[{}]", without_trace.as_deref().unwrap_or(last.get()));
            }
        }
        self.leave_out(left_out)
    }

    fn remove_largest(&mut self) -> bool {
        let all_headers = matches!(self.next, Step::RemoveHeaders);
        // Small stamps that say where the message comes from, and how often it was tried.
        let kept = [header::<RedeliveryStamp>(), header::<SentToFailureTransportStamp>()];
        let handled = header::<HandledStamp>();
        let size = |name: &str, value: &str| name.len() + value.len();
        let is_removable = |name: &str, value: &str| {
            let is_essential = kept.iter().any(|kept| kept == name)
                || [TYPE, CONTENT_TYPE].contains(&name)
                || name.starts_with(OUR_PREFIX);
            if all_headers {
                !is_essential || size(name, value) > MAX_KEPT_HEADER
            } else {
                name.starts_with(STAMP_PREFIX) && !is_essential
            }
        };
        let total: usize = self.message.headers.iter().map(|(name, value)| size(name, value)).sum();
        let mut candidates: Vec<(String, usize)> = self
            .message
            .headers
            .iter()
            .filter(|(name, value)| is_removable(name, value))
            .map(|(name, value)| (name.to_owned(), size(name, value)))
            .collect();
        // Without its HandledStamps, a message is handled again by handlers that have succeeded. They go last.
        candidates.sort_by_key(|(name, size)| (*name == handled, Reverse(*size)));
        let mut removed = Vec::new();
        let mut removed_size = 0;
        for (name, size) in candidates {
            removed.push(name);
            removed_size += size;
            // A quarter at a time, so that thousands of small headers do not take thousands of attempts.
            if removed_size >= total / 4 {
                break;
            }
        }
        let names = removed.iter().map(|name| class(name).to_owned()).collect();
        let removed: HashSet<String> = removed.into_iter().collect();
        self.message.headers.retain(|name, _| !removed.contains(name));
        self.leave_out(names)
    }

    /// Records the names of what was left out, in the header too. Returns whether there are any.
    fn leave_out(&mut self, names: Vec<String>) -> bool {
        if names.is_empty() {
            return false;
        }
        self.left_out.extend(names);
        let mut list = String::new();
        for (n, name) in self.left_out.iter().enumerate() {
            if list.len() + name.len() > MAX_LEFT_OUT {
                list.push_str(&format!(", and {} more", self.left_out.len() - n));
                break;
            }
            if n > 0 {
                list.push_str(", ");
            }
            list.push_str(name);
        }
        self.message.headers.insert(LEFT_OUT, list);
        true
    }
}

/// The name of the header that holds the stamps of a class.
fn header<S: Stamp>() -> String {
    format!("{STAMP_PREFIX}{}", S::CLASS)
}

/// The stamp class that a header holds; for other headers, their name.
fn class(header: &str) -> &str {
    header.strip_prefix(STAMP_PREFIX).unwrap_or(header)
}

/// An `ErrorDetailsStamp` without PHP's stack trace; `None` if it has none.
fn without_trace(stamp: &str) -> Option<String> {
    let mut stamp: serde_json::Map<String, Value> = serde_json::from_str(stamp).ok()?;
    let trace = stamp.get_mut("flattenException").filter(|trace| !trace.is_null())?;
    *trace = Value::Null;
    serde_json::to_string(&stamp).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, String)]) -> Encoded {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let headers = [("type".to_owned(), "Note".to_owned())].into_iter().chain(headers).collect();
        Encoded { body: "{}".into(), headers }
    }

    fn size(message: &Encoded) -> usize {
        message.headers.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The message after each step.
    fn forms(message: &Encoded) -> Vec<Encoded> {
        let mut shrinker = Shrinker::new(message);
        std::iter::from_fn(|| shrinker.shrink().then(|| shrinker.current().clone())).collect()
    }

    #[test]
    fn a_body_that_is_not_text_is_encoded_first() {
        let mut message = message(&[]);
        message.body = b"\xff\0%".to_vec().into();
        let forms = forms(&message);
        assert_eq!(forms.len(), 1);
        assert_eq!(forms[0].body.as_ref(), b"%FF%00%25");
        assert_eq!(forms[0].headers.get(DAMAGED_BODY), Some("percent-encoded"));
    }

    #[test]
    fn older_stamps_and_stack_traces_are_removed_before_the_latest_stamps() {
        let errors = header::<ErrorDetailsStamp>();
        let error = |code: u32, trace: &str| {
            format!(
                r#"{{"exceptionClass":"E","exceptionCode":{code},"exceptionMessage":"no","flattenException":{trace}}}"#
            )
        };
        let value = format!("[{},{}]", error(1, "null"), error(2, r#"{"trace":"long"}"#));
        let forms = forms(&message(&[(&errors, value)]));
        let stamps: Vec<ErrorDetailsStamp> = serde_json::from_str(forms[0].headers.get(&errors).unwrap()).unwrap();
        assert_eq!((stamps.len(), &stamps[0].exception_code), (1, &2.into()));
        assert!(stamps[0].flatten_exception.is_null());
        let class = ErrorDetailsStamp::CLASS;
        let left_out = format!("older {class}, flattenException of {class}");
        assert_eq!(forms[0].headers.get(LEFT_OUT), Some(left_out.as_str()));
        assert!(!forms[1].headers.contains_key(&errors), "then the stamp itself");
        assert_eq!(forms.len(), 2);
    }

    #[test]
    fn the_largest_stamps_are_removed_first_and_other_headers_stay() {
        let big = |kib: usize| format!(r#"[{{"x":"{}"}}]"#, "x".repeat(kib * 1024));
        let handled = header::<HandledStamp>();
        let redelivered = header::<RedeliveryStamp>();
        let message = message(&[
            ("X-Message-Stamp-A", big(10)),
            ("X-Message-Stamp-B", big(100)),
            ("X-Trace", "t".repeat(1024)),
            (&handled, big(200)),
            (&redelivered, r#"[{"retryCount":0,"redeliveredAt":"2026-01-01T00:00:00+00:00"}]"#.to_owned()),
        ]);
        let forms = forms(&message);
        assert!(!forms[0].headers.contains_key("X-Message-Stamp-B"));
        assert!(forms[0].headers.contains_key("X-Message-Stamp-A") && forms[0].headers.contains_key(&handled));
        let last = forms.last().unwrap();
        let names: Vec<&str> = last.headers.names().collect();
        assert_eq!(names, ["type", "X-Trace", redelivered.as_str(), LEFT_OUT]);
        assert_eq!(last.headers.get(LEFT_OUT), Some(&*format!("B, A, {}", HandledStamp::CLASS)));
    }

    #[test]
    fn other_headers_are_removed_only_if_allowed_and_the_type_never() {
        let redelivered = header::<RedeliveryStamp>();
        let message = message(&[
            ("Content-Type", "application/json".to_owned()),
            ("X-Minutely-Parked", "1".to_owned()),
            ("X-Trace", "t".repeat(10)),
            ("X-Message-Stamp-A", r#"[{"a":1}]"#.to_owned()),
            ("X-Pad", "p".repeat(100_000)),
            (&redelivered, r#"[{"retryCount":0,"redeliveredAt":"2026-01-01T00:00:00+00:00"}]"#.to_owned()),
        ]);
        let mut shrinker = Shrinker::new(&message);
        assert!(shrinker.shrink(), "without the stamp");
        assert!(!shrinker.shrink());
        assert!(shrinker.allow_dropping_headers());
        let mut expected = message.headers.clone();
        expected.remove("X-Pad");
        expected.insert(LEFT_OUT, "X-Pad");
        assert_eq!(shrinker.current().headers, expected, "one is enough, the others stay");
        while shrinker.shrink() {}
        assert!(!shrinker.allow_dropping_headers());
        let names: Vec<&str> = shrinker.current().headers.names().collect();
        assert_eq!(names, ["type", "Content-Type", "X-Minutely-Parked", redelivered.as_str(), LEFT_OUT]);
        assert_eq!(shrinker.current().headers.get(LEFT_OUT), Some("X-Pad, A, X-Trace"));
    }

    #[test]
    fn no_message_stays_large_after_all_steps() {
        let redelivered = header::<RedeliveryStamp>();
        let mut message = message(&[(&redelivered, "r".repeat(100_000)), (DAMAGED_HEADERS, "d".repeat(100_000))]);
        message.headers.insert("type", "t".repeat(100_000));
        for n in 0..3000 {
            message.headers.insert(format!("X-{n}"), "x".repeat(40));
        }
        let mut shrinker = Shrinker::new(&message);
        while shrinker.shrink() {}
        let mut steps = 0;
        assert!(shrinker.allow_dropping_headers());
        while shrinker.shrink() {
            steps += 1;
        }
        assert!(steps < 60, "{steps}");
        assert!(size(shrinker.current()) < 4 * MAX_KEPT_HEADER, "{:?}", shrinker.current());
        assert_eq!(shrinker.current().body, message.body);
    }

    #[test]
    fn thousands_of_small_stamps_take_few_steps() {
        let many: Vec<(String, String)> =
            (0..20_000).map(|n| (format!("X-Message-Stamp-C{n}"), r#"[{"a":1}]"#.to_owned())).collect();
        let many: Vec<(&str, String)> = many.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let message = message(&many);
        let forms = forms(&message);
        assert!(forms.len() < 60, "{}", forms.len());
        assert!(forms.windows(2).all(|two| size(&two[1]) < size(&two[0])));
        assert!(size(forms.last().unwrap()) < 2 * MAX_LEFT_OUT);
    }
}
