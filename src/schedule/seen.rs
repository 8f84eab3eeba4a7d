//! Spans of due times that were seen to and whose keys are forgotten: arithmetic on times.
//!
//! A span is a key of its own and never changes, so that hosts which write at the same time take nothing from each other: what
//! counts are all of them together.

use chrono::{DateTime, TimeDelta, Utc};

use super::shared_state::{key_of, parse_time};
use super::timing::Schedule;

/// So many spans are kept. Of more, the oldest become one.
const KEPT_SPANS: usize = 16;

const PREFIX: &str = "seen ";

/// All due times from the first to the last were seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

impl Span {
    pub(super) fn key(self) -> String {
        format!("{PREFIX}{} {}", key_of(self.from), key_of(self.to))
    }

    pub(super) fn parse(key: &str) -> Option<Self> {
        let (from, to) = key.strip_prefix(PREFIX)?.split_once(' ')?;
        Some(Self { from: parse_time(from)?, to: parse_time(to)? })
    }
}

/// The spans after these due times, in their order, are forgotten too. A due time goes on with a span if it is the next one, or
/// later by `near` at most. Otherwise it begins one: the clock may have gone wrong in between.
pub(super) fn with_forgotten(
    mut spans: Vec<Span>,
    forgotten: &[DateTime<Utc>],
    schedule: &Schedule,
    near: TimeDelta,
) -> Vec<Span> {
    spans.extend(forgotten.iter().map(|due| Span { from: *due, to: *due }));
    spans.sort();
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        let goes_on = |last: &Span| {
            span.from - last.to <= near || schedule.next_after(last.to).is_some_and(|next| next >= span.from)
        };
        match joined.last_mut() {
            Some(last) if goes_on(last) => last.to = last.to.max(span.to),
            _ => joined.push(span),
        }
    }
    let surplus = joined.len().saturating_sub(KEPT_SPANS);
    if let (Some(first), Some(oldest)) = (joined.first().copied(), joined.get_mut(surplus)) {
        oldest.from = first.from;
    }
    joined.split_off(surplus)
}
