//! `minutely failed`: shows, retries and removes the messages on a failure transport.

mod failures;
mod progress;
mod remove;
mod retry;
mod show;

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::counts::is_failure_transport;
use super::output;
use super::signals::Signals;
use super::{App, End, Failure, Result, known};
use crate::message::{
    Encoded, Envelope, ErrorDetailsStamp, RedeliveryStamp, SentToFailureTransportStamp, UndecodableError,
};
use crate::serializer::{ENCRYPTED, Serializer};
use crate::transport::{MessageId, Received};

use failures::{Candidate, Failures};

pub(super) use remove::Args as RemoveArgs;
pub(super) use retry::Args as RetryArgs;
pub(super) use show::Args as ShowArgs;

#[derive(clap::Subcommand, Clone, Debug)]
pub(super) enum Action {
    /// Show the messages that failed for good, or all about one of them
    Show(ShowArgs),
    /// Handle failed messages again, now and in this process
    Retry(RetryArgs),
    /// Remove failed messages without handling them
    Remove(RemoveArgs),
}

pub(super) async fn run(app: &App, action: &Action, verbose: bool) -> Result<End> {
    match action {
        Action::Show(args) => show::run(app, args, verbose).await,
        Action::Retry(args) => retry::run(app, args, verbose).await,
        Action::Remove(args) => remove::run(app, args).await,
    }
}

/// The `--transport` option.
#[derive(clap::Args, Clone, Debug)]
struct Choice {
    /// The failure transport; by default the one that `failure_transport` names
    #[arg(long, value_name = "TRANSPORT")]
    transport: Option<String>,
}

/// A message that was read, and what has read it.
type Decoded = std::result::Result<(Envelope, Arc<dyn Serializer>), UndecodableError>;

/// What there is to say about a failed message.
struct Failed {
    id: MessageId,
    /// `None` if the message cannot be read.
    envelope: Option<Envelope>,
    /// As it is stored, or what can be read of it.
    stored: Encoded,
    /// Why it cannot be read.
    unreadable: Option<String>,
    in_flight: bool,
}

impl Failed {
    fn new(received: Received, in_flight: bool, decode: impl FnOnce(&Encoded) -> Decoded) -> Self {
        let Received { id, message, .. } = received;
        let (stored, envelope) = match message {
            Ok(encoded) => {
                let envelope = decode(&encoded).map(|(envelope, _)| envelope).map_err(|error| error.to_string());
                (encoded, envelope)
            }
            Err(damaged) => (Encoded { body: damaged.body, ..Encoded::default() }, Err(damaged.error.to_string())),
        };
        let unreadable = envelope.as_ref().err().cloned();
        Self { id, envelope: envelope.ok(), stored, unreadable, in_flight }
    }

    /// Whether it is encrypted in its store. Then its body is not shown.
    fn is_encrypted(&self) -> bool {
        self.stored.headers.contains_key(ENCRYPTED)
    }

    fn class(&self) -> &str {
        let header = || self.stored.headers.get("type");
        self.envelope.as_ref().map(Envelope::message_type).or_else(header).unwrap_or("(unreadable)")
    }

    fn is_of(&self, class: Option<&String>) -> bool {
        class.is_none_or(|class| class.trim_start_matches('\\') == self.class())
    }

    /// Its stamps, also those of a message that cannot be read, as far as they can.
    fn stamps(&self) -> Envelope {
        self.envelope.clone().unwrap_or_else(|| Envelope::stamps_of(&self.stored))
    }

    fn failed_at(&self) -> Option<String> {
        self.stamps().last::<RedeliveryStamp>().map(|stamp| stamp.redelivered_at)
    }

    fn error(&self) -> Option<String> {
        let error = self.stamps().last::<ErrorDetailsStamp>().map(|stamp| stamp.exception_message);
        error.or_else(|| self.unreadable.clone())
    }

    fn origin(&self) -> Option<String> {
        self.stamps().last::<SentToFailureTransportStamp>().map(|stamp| stamp.original_receiver_name)
    }

    /// One line about it.
    fn summary(&self) -> String {
        let error = self.error().map(|error| format!(": {}", one_line(&error))).unwrap_or_default();
        format!("{} {}{error}", escaped(&self.id.0), escaped(self.class()))
    }
}

fn no_such_message(failures: &Failures, id: &str) -> String {
    format!("there is no message \"{}\" on transport \"{}\"", escaped(id), failures.name)
}

fn is_being_handled(id: &MessageId) -> String {
    format!(
        "message {} is being handled by a worker or another `failed retry`, or was until that died; it is left alone, and \
         can be had when redeliver_timeout is over",
        escaped(&id.0)
    )
}

/// Characters that a terminal obeys instead of showing them are written as escapes.
fn escaped(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if obeyed(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// A text on one line. Of a long one, the beginning and the end: an error begins with the handler's name, and ends with
/// what went wrong.
fn one_line(text: &str) -> String {
    const MOST: usize = 120;
    const BEGINNING: usize = 50;
    let line: Vec<char> = escaped(text.lines().next().unwrap_or_default()).chars().collect();
    if line.len() <= MOST {
        return line.into_iter().collect();
    }
    let end = &line[line.len() - (MOST - BEGINNING - 1)..];
    line[..BEGINNING].iter().chain(['…'].iter()).chain(end).collect()
}

/// Whether there is someone to ask.
fn can_ask() -> bool {
    io::stdin().is_terminal()
}

/// What came of a question.
enum Answered {
    /// In lower case.
    Line(String),
    EndOfInput,
    /// A signal asks the program to end.
    Signal,
}

async fn ask(question: &str, signals: &mut Signals) -> Answered {
    let _ = write!(io::stderr(), "{question} ");
    let (answer, answered) = oneshot::channel();
    // A thread of its own, which does not hold up the end of the program.
    let reading = std::thread::Builder::new().spawn(move || {
        // A terminal may send anything, not only UTF-8.
        let mut line = Vec::new();
        let read = io::stdin().lock().read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0);
        let _ = answer.send(read.then(|| String::from_utf8_lossy(&line).trim().to_lowercase()));
    });
    if let Err(error) = reading {
        output::error(&format!("the answer cannot be read: {error}"));
        return Answered::EndOfInput;
    }
    tokio::select! {
        answer = answered => answer.ok().flatten().map_or(Answered::EndOfInput, Answered::Line),
        () = signals.next() => {
            let _ = writeln!(io::stderr());
            Answered::Signal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{escaped, one_line};

    #[test]
    fn a_terminal_gets_no_characters_that_it_would_obey() {
        assert_eq!(escaped("a\u{1b}[2J\u{202e}ä\r\u{9b}"), "a\\u{1b}[2J\\u{202e}ä\\u{d}\\u{9b}");
        assert_eq!(one_line("first\nsecond"), "first");
        let long = one_line(&format!("{} exit code 3", "ä".repeat(500)));
        assert!(long.chars().count() == 120 && long.starts_with("ää") && long.ends_with("ä exit code 3"), "{long}");
    }
}
