//! Which trace a message belongs to: the trace context of the W3C, as tools for tracing understand it.
//!
//! It travels in two plain headers, `traceparent` and `tracestate`. Each hop has a span of its own: the dispatch of a message,
//! and each handling of it. Nothing is recorded here.

use std::fmt;
use std::str::FromStr;

use super::Envelope;

/// The headers, and the variables of programs in capital letters.
pub(crate) const PARENT: &str = "traceparent";
pub(crate) const STATE: &str = "tracestate";

/// The longest `tracestate` that is passed on, in bytes.
const LONGEST_STATE: usize = 512;

/// The trace that something belongs to, and the span that is its cause ([W3C Trace
/// Context](https://www.w3.org/TR/trace-context/)). Its `Display` is a `traceparent`.
///
/// A handler gets that of its message as the argument `Option<TraceContext>`; it says which span handles the message. What
/// the handler dispatches on the bus that it is given belongs to the same trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<String>,
}

/// A text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a traceparent is 00-, 32 hexadecimal digits, -, 16 of them, -, and 2 of them, in small letters")]
pub struct NoTraceContext;

impl TraceContext {
    /// The id of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The id of the span: 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// What the tools on the way have noted (`tracestate`).
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The same with a `tracestate`. One that is too long, or holds anything but printable ASCII, is left out.
    #[must_use]
    pub fn with_state(mut self, state: Option<&str>) -> Self {
        let is_valid = |state: &&str| {
            (1..=LONGEST_STATE).contains(&state.len()) && state.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        };
        self.state = state.filter(is_valid).map(str::to_owned);
        self
    }

    /// A new span, whose cause this one is.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: fastrand::u64(1..), ..self.clone() }
    }

    /// That of a message, if it has one.
    pub(crate) fn of(envelope: &Envelope) -> Option<Self> {
        let headers = envelope.headers();
        let context: Self = headers.get(PARENT)?.parse().ok()?;
        Some(context.with_state(headers.get(STATE)))
    }

    /// That which the process was started with: the variables `TRACEPARENT` and `TRACESTATE`.
    pub(crate) fn of_process() -> Option<Self> {
        let context: Self = std::env::var("TRACEPARENT").ok()?.parse().ok()?;
        Some(context.with_state(std::env::var("TRACESTATE").ok().as_deref()))
    }

    /// Writes it on a message.
    pub(crate) fn write(&self, envelope: &mut Envelope) {
        envelope.set_header(PARENT, &self.to_string());
        match &self.state {
            Some(state) => envelope.set_header(STATE, state),
            None => envelope.remove_header(STATE),
        }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    /// Reads a `traceparent`. Of a later version, that part is read which this one has.
    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let version = hex(text, 0, 2)?;
        let is_complete = text.len() == 55 || (version > 0 && text.as_bytes().get(55) == Some(&b'-'));
        let dashes = [2, 35, 52].into_iter().all(|at| text.as_bytes().get(at) == Some(&b'-'));
        if version == 0xff || !is_complete || !dashes {
            return Err(NoTraceContext);
        }
        let (trace_id, span_id, flags) = (hex(text, 3, 32)?, hex(text, 36, 16)?, hex(text, 53, 2)?);
        let (Ok(span_id), Ok(flags)) = (u64::try_from(span_id), u8::try_from(flags)) else {
            return Err(NoTraceContext);
        };
        if trace_id == 0 || span_id == 0 {
            return Err(NoTraceContext);
        }
        Ok(Self { trace_id, span_id, flags: flags & 1, state: None })
    }
}

/// So many hexadecimal digits, in small letters.
fn hex(text: &str, from: usize, digits: usize) -> Result<u128, NoTraceContext> {
    let part = text.get(from..from + digits).ok_or(NoTraceContext)?;
    if !part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(NoTraceContext);
    }
    u128::from_str_radix(part, 16).map_err(|_| NoTraceContext)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!((context.span_id().as_str(), context.is_sampled()), ("00f067aa0ba902b7", true));
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_ne!(child.span_id(), context.span_id());
        let later = format!("cc{}-what-the-future-holds", &EXAMPLE[2..]);
        assert_eq!(later.parse::<TraceContext>().unwrap().to_string(), EXAMPLE);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for text in [
            "",
            "00",
            &EXAMPLE[..54],
            &format!("{EXAMPLE}-more"),
            &format!("cc{}.more", &EXAMPLE[2..]),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("00-4", "ff-4"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NoTraceContext), "{text}");
        }
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(context.clone().with_state(Some("a=1,b=2")).state(), Some("a=1,b=2"));
        assert_eq!(context.clone().with_state(Some("a=\n")).state(), None);
        assert_eq!(context.with_state(Some(&"x".repeat(513))).state(), None);
    }
}
