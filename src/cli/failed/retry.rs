//! `minutely failed retry`: handles failed messages again, now and in this process.

use serde_json::{Value, json};

use super::{
    Answered, App, Candidate, Choice, End, Failed, Failures, Result, ask, can_ask, escaped, is_being_handled,
    no_such_message, one_line, show,
};
use crate::cli::Failure;
use crate::cli::output::{self, Format, FormatArg};
use crate::cli::signals::Signals;
use crate::config::RateLimit;
use crate::transport::Received;
use crate::worker::{StopReason, StopToken, owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Handles the messages one after the other, those with these IDs or all that are there now. On a terminal it shows each \
message and asks: retry, skip or delete. With --force it retries without asking.

A message that is handled is gone. One that fails again stays on the failure transport, as it does with \
`minutely consume`: the transport's retry strategy says when it is tried again, and without a retry left it is parked. \
The handler sees the transport on which the message failed first, and only the handlers that have not succeeded yet run.

No worker gets a message that is being retried here; one that a worker has already is told and left alone. SIGINT and \
SIGTERM let the current message finish; a second one breaks it off and gives it back. If the program is killed, the \
message can be retried when `redeliver_timeout` is over; on Redis after a minute, on AMQP at once.

Exit code 0 if all went well; 1 if a message failed again, was not there, was left alone or was not tried because of a \
signal; 3 if there are no handlers.

Examples:
  minutely failed retry
  minutely failed retry 20 30 --force")]
pub(in super::super) struct Args {
    /// The messages; all if none is named
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Do not ask
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    format: FormatArg,
}

/// What has become of a message.
enum Retried {
    Handled,
    /// With the reason why it could not be removed after that.
    NotRemoved(String),
    FailedAgain(Option<String>),
    /// Not begun, because the program was asked to stop.
    Stopped,
    /// Not begun, because of the transport's rate limit.
    NoPermit,
}

/// What to do with a message.
enum Answer {
    Retry,
    Skip,
    Delete,
    Quit,
    /// A signal.
    Stop,
}

#[derive(Default)]
struct Count {
    handled: u64,
    failed: u64,
    deleted: u64,
    /// Not to be had.
    left: u64,
    missing: u64,
    /// Handled, but still on the transport.
    not_removed: u64,
    /// Left where they are because of a signal.
    not_tried: u64,
}

pub(super) async fn run(app: &App, args: &Args, verbose: bool) -> Result<End> {
    let failures = Failures::choose(app, &args.choice)?;
    if !failures.can_take() {
        let name = &failures.name;
        return Err(Failure::Usage(format!(
            "transport \"{name}\" cannot receive single messages; the command `consume {name}` handles all of them again"
        )));
    }
    if !args.force && !can_ask() {
        let text = "there is no terminal to ask on what to do with each message; --force retries without asking";
        return Err(Failure::Usage(text.to_owned()));
    }
    if !app.handles_messages() {
        output::error(crate::app::NO_HANDLER);
        return Ok(End::Stuck);
    }
    let mut retry = Retry {
        app,
        failures: &failures,
        args,
        verbose,
        signals: Signals::listen()?,
        is_stopping: false,
        count: Count::default(),
        told: Vec::new(),
    };
    let mut walk = failures.walk(&args.ids, |_| true).await?;
    while let Some(candidate) = walk.next().await? {
        let goes_on = if retry.signals.have_come() {
            retry.stop_before(&candidate).await?;
            false
        } else {
            retry.message(candidate).await?
        };
        if !goes_on {
            if retry.is_stopping {
                retry.count.not_tried += walk.remaining();
            }
            break;
        }
    }
    // One that was there at the beginning was handled or removed by others, and no one asked for it by its id.
    if !args.ids.is_empty() {
        for id in walk.missing() {
            output::error(&no_such_message(&failures, &id));
            retry.count.missing += 1;
        }
    }
    retry.end()
}

struct Retry<'a> {
    app: &'a App,
    failures: &'a Failures,
    args: &'a Args,
    verbose: bool,
    signals: Signals,
    is_stopping: bool,
    count: Count,
    /// What programs are told about each message.
    told: Vec<Value>,
}

impl Retry<'_> {
    /// Retries, skips or deletes a message. Returns whether to go on.
    async fn message(&mut self, candidate: Candidate) -> Result<bool> {
        let failed = &candidate.failed;
        let (id, class) = (failed.id.clone(), failed.class().to_owned());
        let answer = if failed.in_flight || self.args.force { Answer::Retry } else { self.ask(failed).await };
        match answer {
            Answer::Retry | Answer::Delete => {}
            Answer::Skip => {
                self.failures.leave(&candidate).await?;
                return Ok(true);
            }
            Answer::Quit => {
                self.failures.leave(&candidate).await?;
                return Ok(false);
            }
            Answer::Stop => {
                self.stop_before(&candidate).await?;
                return Ok(false);
            }
        }
        // A person may take hours to answer.
        let taken = if failed.in_flight { None } else { self.failures.take(candidate).await? };
        let Some(taken) = taken else {
            output::error(&is_being_handled(&id));
            self.count.left += 1;
            self.tell(&id.0, &class, "left", None);
            return Ok(true);
        };
        if matches!(answer, Answer::Delete) {
            self.failures.remove(&taken).await?;
            self.count.deleted += 1;
            self.tell(&id.0, &class, "deleted", None);
            return Ok(true);
        }
        let keeps_id = taken.id == id;
        match self.handle(taken).await? {
            Retried::Handled => {
                self.count.handled += 1;
                self.tell(&id.0, &class, "handled", None);
            }
            Retried::NotRemoved(error) => {
                self.count.not_removed += 1;
                self.tell(&id.0, &class, "handled but not removed", Some(error));
            }
            Retried::FailedAgain(error) => {
                self.count.failed += 1;
                self.tell(&id.0, &class, "failed again", error);
                if keeps_id && self.failures.find(&id.0).await?.is_none() {
                    output::warning(&format!(
                        "message {} is no longer there: it was removed or handled elsewhere meanwhile, or has another id now",
                        escaped(&id.0)
                    ));
                }
            }
            Retried::Stopped => self.count.not_tried += 1,
            Retried::NoPermit => {
                output::error(&self.no_permit(&id.0));
                (self.is_stopping, self.count.not_tried) = (true, self.count.not_tried + 1);
            }
        }
        Ok(!self.is_stopping)
    }

    /// A signal came before this message was tried.
    async fn stop_before(&mut self, candidate: &Candidate) -> Result<()> {
        self.is_stopping = true;
        self.count.not_tried += 1;
        self.failures.leave(candidate).await
    }

    /// Says what has become of a message.
    fn tell(&mut self, id: &str, class: &str, what: &str, error: Option<String>) {
        match self.args.format.format {
            Format::Text => {
                let error = error.map(|error| format!(": {}", one_line(&error))).unwrap_or_default();
                output::line(format_args!("{what}: {} {}{error}", escaped(id), escaped(class)));
            }
            Format::Json => {
                self.told.push(json!({ "id": id, "class": class, "outcome": what.replace(' ', "_"), "error": error }));
            }
        }
    }

    async fn ask(&mut self, failed: &Failed) -> Answer {
        show::print(failed, self.verbose);
        loop {
            let line = match ask("Retry (r), skip (s), delete (d), quit (q)?", &mut self.signals).await {
                Answered::Line(line) => line,
                Answered::EndOfInput => return Answer::Quit,
                Answered::Signal => return Answer::Stop,
            };
            match line.as_str() {
                "r" | "retry" | "y" | "yes" => return Answer::Retry,
                "s" | "skip" | "n" | "no" => return Answer::Skip,
                "d" | "delete" => return Answer::Delete,
                "q" | "quit" => return Answer::Quit,
                _ => {}
            }
        }
    }

    /// A worker on just this message. The first signal lets it finish, the second one breaks it off.
    async fn handle(&mut self, received: Received) -> Result<Retried> {
        let delivery = received.delivery();
        let (worker, taken) = self.app.worker_for(&self.failures.name, received)?;
        let (mut stop, owner) = (StopToken::new(), owner());
        let at_signal = stop.clone();
        let summary = {
            let mut run = Box::pin(worker.run(&owner, &mut stop));
            loop {
                tokio::select! {
                    summary = &mut run => break Some(summary?),
                    () = self.signals.next() => {
                        if std::mem::replace(&mut self.is_stopping, true) {
                            // Ends what the handler has started.
                            break None;
                        }
                        at_signal.request(StopReason::OsSignal);
                    }
                }
            }
        };
        let was_begun = summary.as_ref().is_none_or(|summary| summary.handled + summary.failed > 0);
        if summary.is_none() || !was_begun {
            // A worker that was stopped before it began does not know the message.
            if let Some(releasing) = &self.failures.transport.releasing {
                releasing.release(std::slice::from_ref(&delivery)).await?;
            }
        }
        let Some(summary) = summary else {
            return Err(Failure::Failed("stopped at once; the current message is back where it was".to_owned()));
        };
        match (summary.handled, summary.failed) {
            (0, 0) if self.is_stopping => Ok(Retried::Stopped),
            (0, 0) if !taken.was_received() && self.rate_limit().is_some() => Ok(Retried::NoPermit),
            (0, 0) => Err(Failure::Failed(summary.problem.unwrap_or_else(|| "the message was not handled".to_owned()))),
            (0, _) => Ok(Retried::FailedAgain(taken.error())),
            _ => Ok(taken.why_not_removed().map_or(Retried::Handled, Retried::NotRemoved)),
        }
    }

    fn rate_limit(&self) -> Option<&RateLimit> {
        self.app.config.transports.get(&self.failures.name)?.rate_limit.as_ref()
    }

    fn no_permit(&self, id: &str) -> String {
        let numbers = |limit: &RateLimit| format!(" ({} in {:?})", limit.limit, limit.interval);
        format!(
            "message {} was not tried: the rate limit of transport \"{}\"{} is reached, or its cache does not answer; try again later",
            escaped(id),
            self.failures.name,
            self.rate_limit().map(numbers).unwrap_or_default()
        )
    }

    fn end(self) -> Result<End> {
        let Count { handled, failed, deleted, left, missing, not_removed, not_tried } = self.count;
        match self.args.format.format {
            Format::Text => {
                let parts = [
                    ("handled", handled),
                    ("handled but not removed", not_removed),
                    ("failed again", failed),
                    ("deleted", deleted),
                    ("left alone", left),
                    ("not there", missing),
                ];
                let parts = parts.iter().filter(|(what, count)| *count > 0 || *what == "handled");
                let parts: Vec<String> = parts.map(|(what, count)| format!("{what}: {count}")).collect();
                output::line(parts.join(", "));
            }
            Format::Json => output::json(&json!({
                "transport": self.failures.name, "handled": handled, "not_removed": not_removed, "failed": failed,
                "deleted": deleted, "left": left, "missing": missing, "not_tried": not_tried, "messages": self.told,
            }))?,
        }
        if not_tried > 0 {
            output::error(&format!("stopped; {not_tried} not tried"));
        }
        let is_well = failed + left + missing + not_removed + not_tried == 0;
        Ok(if is_well { End::Well } else { End::Failed })
    }
}
