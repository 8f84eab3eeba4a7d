//! The forms in which a message may be stored, from the fullest to the least: a store may hold text alone, or bound what
//! headers may take. What has to go is what a failed message can do without, and a header names it. What its sender wrote goes
//! last, and only where it is asked for.

use std::cmp::Reverse;
use std::collections::HashSet;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::message::{
    CONTENT_TYPE, Encoded, ErrorDetailsStamp, HandledStamp, Headers, RedeliveryStamp, SentToFailureTransportStamp,
    Stamp, TYPE,
};
use crate::transport::Damaged;

/// What is encoded in them: what is not text, and the sign that says so.
const RAW: &AsciiSet = &CONTROLS.add(b'%');

/// Holds the headers of a message whose headers cannot be read, as they were stored but for percent-encoding.
const DAMAGED_HEADERS: &str = "X-Minutely-Damaged-Headers";

/// Says that a body could not be stored as it was, and is percent-encoded.
const DAMAGED_BODY: &str = "X-Minutely-Damaged-Body";

/// Names the stamps and headers that were left out because the store could not hold them. A header and no stamp: PHP refuses messages
/// with stamps of classes that it does not know.
const LEFT_OUT: &str = "X-Minutely-Left-Out";

/// How long the list of what was left out may become, in bytes.
const LEFT_OUT_MOST: usize = 1024;

/// What minutely writes for itself.
const OUR_PREFIX: &str = "X-Minutely-";

/// How long a header may be that a message keeps in every form. None of them is longer in a message that anybody can handle.
const KEPT_MOST: usize = 2 * LEFT_OUT_MOST;

const STAMP_PREFIX: &str = "X-Message-Stamp-";

/// A message whose headers cannot be read, in a form that can be stored again, with nothing lost.
pub(super) fn repacked(damaged: &Damaged) -> Encoded {
    let raw = percent_encode(&damaged.headers, RAW).to_string();
    Encoded { body: damaged.body.clone(), headers: Headers::from([(DAMAGED_HEADERS.to_owned(), raw)]) }
}

/// A message in ever smaller forms.
pub(super) struct Forms {
    form: Encoded,
    left_out: Vec<String>,
    /// The last form with a stamp of each class, and what is not in it.
    all_classes: Option<(Encoded, Vec<String>)>,
    next: Step,
}

#[derive(Clone, Copy)]
enum Step {
    /// The body as text.
    Text,
    /// Of each stamp the last one, and errors without PHP's stack traces.
    Latest,
    /// Without the largest stamps; this one repeats.
    Fewer,
    /// Without the largest of all headers, be they stamps or not; so does this one.
    Bare,
}

impl Forms {
    pub(super) fn of(message: &Encoded) -> Self {
        Self { form: message.clone(), left_out: Vec::new(), all_classes: None, next: Step::Text }
    }

    /// The form reached so far.
    pub(super) fn current(&self) -> &Encoded {
        &self.form
    }

    /// What is not in it.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Allows forms without headers that are no stamps, where those without stamps alone did not do; their stamps come back,
    /// for one large header may have been the whole trouble. False where this was so before, or nothing can go.
    pub(super) fn leave_out_headers(&mut self) -> bool {
        match self.next {
            Step::Bare => false,
            Step::Text | Step::Latest | Step::Fewer => {
                self.next = Step::Bare;
                if let Some((form, left_out)) = self.all_classes.take() {
                    (self.form, self.left_out) = (form, left_out);
                }
                self.shrink()
            }
        }
    }

    /// Goes on to the next smaller form. False when there is none: everything else is the message itself.
    pub(super) fn shrink(&mut self) -> bool {
        loop {
            let changed = match self.next {
                Step::Text => {
                    self.next = Step::Latest;
                    self.make_text()
                }
                Step::Latest => {
                    self.next = Step::Fewer;
                    let changed = self.keep_the_latest();
                    self.all_classes = Some((self.form.clone(), self.left_out.clone()));
                    changed
                }
                Step::Fewer | Step::Bare => return self.drop_the_largest(),
            };
            if changed {
                return true;
            }
        }
    }

    fn make_text(&mut self) -> bool {
        let is_text = std::str::from_utf8(&self.form.body).is_ok_and(|text| !text.contains('\0'));
        if !is_text {
            self.form.body = percent_encode(&self.form.body, RAW).to_string().into();
            self.form.headers.insert(DAMAGED_BODY.to_owned(), "percent-encoded".to_owned());
        }
        !is_text
    }

    fn keep_the_latest(&mut self) -> bool {
        let (errors, handled) = (header::<ErrorDetailsStamp>(), header::<HandledStamp>());
        let mut left_out = Vec::new();
        for (name, value) in &mut self.form.headers {
            // Each of these says something of its own.
            if !name.starts_with(STAMP_PREFIX) || *name == handled {
                continue;
            }
            let Ok(stamps) = serde_json::from_str::<Vec<Box<RawValue>>>(value) else { continue };
            let Some(last) = stamps.last() else { continue };
            let traceless = if *name == errors { without_trace(last.get()) } else { None };
            if stamps.len() > 1 {
                left_out.push(format!("older {}", class(name)));
            }
            if traceless.is_some() {
                left_out.push(format!("flattenException of {}", class(name)));
            }
            if stamps.len() > 1 || traceless.is_some() {
                *value = format!("[{}]", traceless.as_deref().unwrap_or(last.get()));
            }
        }
        self.leave_out(left_out)
    }

    fn drop_the_largest(&mut self) -> bool {
        let bare = matches!(self.next, Step::Bare);
        // They say where the message comes from and how often it was tried, and are small.
        let kept = [header::<RedeliveryStamp>(), header::<SentToFailureTransportStamp>()];
        let handled = header::<HandledStamp>();
        let size = |name: &str, value: &str| name.len() + value.len();
        let may_go = |name: &String, value: &String| {
            let essential =
                kept.contains(name) || [TYPE, CONTENT_TYPE].contains(&name.as_str()) || name.starts_with(OUR_PREFIX);
            if bare {
                !essential || size(name, value) > KEPT_MOST
            } else {
                name.starts_with(STAMP_PREFIX) && !essential
            }
        };
        let all: usize = self.form.headers.iter().map(|(name, value)| size(name, value)).sum();
        let mut stamps: Vec<(String, usize)> = self
            .form
            .headers
            .iter()
            .filter(|(name, value)| may_go(name, value))
            .map(|(name, value)| (name.clone(), size(name, value)))
            .collect();
        // Without its HandledStamps a message is handled twice by those who have succeeded: they go last.
        stamps.sort_by_key(|(name, size)| (*name == handled, Reverse(*size)));
        let mut dropped = Vec::new();
        let mut less = 0;
        for (name, size) in stamps {
            dropped.push(name);
            less += size;
            // In steps of a quarter, so that thousands of small ones do not take thousands of tries.
            if less >= all / 4 {
                break;
            }
        }
        let names = dropped.iter().map(|name| class(name).to_owned()).collect();
        let dropped: HashSet<String> = dropped.into_iter().collect();
        self.form.headers.retain(|name, _| !dropped.contains(name));
        self.leave_out(names)
    }

    fn leave_out(&mut self, names: Vec<String>) -> bool {
        if names.is_empty() {
            return false;
        }
        self.left_out.extend(names);
        let mut list = String::new();
        for (n, name) in self.left_out.iter().enumerate() {
            if list.len() + name.len() > LEFT_OUT_MOST {
                list.push_str(&format!(", and {} more", self.left_out.len() - n));
                break;
            }
            if n > 0 {
                list.push_str(", ");
            }
            list.push_str(name);
        }
        self.form.headers.insert(LEFT_OUT.to_owned(), list);
        true
    }
}

fn header<S: Stamp>() -> String {
    format!("{STAMP_PREFIX}{}", S::CLASS)
}

fn class(header: &str) -> &str {
    header.strip_prefix(STAMP_PREFIX).unwrap_or(header)
}

/// An `ErrorDetailsStamp` without PHP's stack trace; none where it has none.
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

    /// All forms after the first.
    fn forms(message: &Encoded) -> Vec<Encoded> {
        let mut forms = Forms::of(message);
        std::iter::from_fn(|| forms.shrink().then(|| forms.current().clone())).collect()
    }

    #[test]
    fn a_body_that_is_no_text_is_encoded_first() {
        let mut message = message(&[]);
        message.body = b"\xff\0%".to_vec().into();
        let forms = forms(&message);
        assert_eq!(forms.len(), 1);
        assert_eq!(forms[0].body.as_ref(), b"%FF%00%25");
        assert_eq!(forms[0].headers[DAMAGED_BODY], "percent-encoded");
    }

    #[test]
    fn the_history_goes_before_any_stamp_does_and_stack_traces_go_with_it() {
        let errors = header::<ErrorDetailsStamp>();
        let error = |code: u32, trace: &str| {
            format!(
                r#"{{"exceptionClass":"E","exceptionCode":{code},"exceptionMessage":"no","flattenException":{trace}}}"#
            )
        };
        let value = format!("[{},{}]", error(1, "null"), error(2, r#"{"trace":"long"}"#));
        let forms = forms(&message(&[(&errors, value)]));
        let stamps: Vec<ErrorDetailsStamp> = serde_json::from_str(&forms[0].headers[&errors]).unwrap();
        assert_eq!((stamps.len(), &stamps[0].exception_code), (1, &2.into()));
        assert!(stamps[0].flatten_exception.is_null());
        let class = ErrorDetailsStamp::CLASS;
        assert_eq!(forms[0].headers[LEFT_OUT], format!("older {class}, flattenException of {class}"));
        assert!(!forms[1].headers.contains_key(&errors), "then the stamp itself");
        assert_eq!(forms.len(), 2);
    }

    #[test]
    fn the_largest_stamps_go_first_and_what_is_no_stamp_stays() {
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
        let names: Vec<&str> = last.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["type", "X-Trace", redelivered.as_str(), LEFT_OUT]);
        assert_eq!(last.headers[LEFT_OUT], format!("B, A, {}", HandledStamp::CLASS));
    }

    #[test]
    fn headers_that_are_no_stamps_go_only_where_that_is_allowed_and_never_those_that_say_what_it_is() {
        let redelivered = header::<RedeliveryStamp>();
        let message = message(&[
            ("Content-Type", "application/json".to_owned()),
            ("X-Minutely-Rested", "1".to_owned()),
            ("X-Trace", "t".repeat(10)),
            ("X-Message-Stamp-A", r#"[{"a":1}]"#.to_owned()),
            ("X-Pad", "p".repeat(100_000)),
            (&redelivered, r#"[{"retryCount":0,"redeliveredAt":"2026-01-01T00:00:00+00:00"}]"#.to_owned()),
        ]);
        let mut forms = Forms::of(&message);
        assert!(forms.shrink(), "without the stamp");
        assert!(!forms.shrink());
        assert!(forms.leave_out_headers());
        let mut least = message.headers.clone();
        least.shift_remove("X-Pad");
        least.insert(LEFT_OUT.to_owned(), "X-Pad".to_owned());
        assert_eq!(forms.current().headers, least, "the others stay where that is enough");
        while forms.shrink() {}
        assert!(!forms.leave_out_headers());
        let names: Vec<&str> = forms.current().headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["type", "Content-Type", "X-Minutely-Rested", redelivered.as_str(), LEFT_OUT]);
        assert_eq!(forms.current().headers[LEFT_OUT], "X-Pad, A, X-Trace");
    }

    #[test]
    fn nothing_is_too_large_for_the_last_form() {
        let redelivered = header::<RedeliveryStamp>();
        let mut message = message(&[(&redelivered, "r".repeat(100_000)), (DAMAGED_HEADERS, "d".repeat(100_000))]);
        message.headers.insert("type".to_owned(), "t".repeat(100_000));
        for n in 0..3000 {
            message.headers.insert(format!("X-{n}"), "x".repeat(40));
        }
        let mut forms = Forms::of(&message);
        while forms.shrink() {}
        let mut steps = 0;
        assert!(forms.leave_out_headers());
        while forms.shrink() {
            steps += 1;
        }
        assert!(steps < 60, "{steps}");
        assert!(size(forms.current()) < 4 * KEPT_MOST, "{:?}", forms.current());
        assert_eq!(forms.current().body, message.body);
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
        assert!(size(forms.last().unwrap()) < 2 * LEFT_OUT_MOST);
    }
}
