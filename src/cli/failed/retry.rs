//! `minutely failed retry`: handles failed messages again, now and in this process.

use std::sync::Arc;

use super::{App, Choice, End, Failed, Failures, PAGE, Result, ask, can_ask, escaped, one_line};
use crate::cli::Failure;
use crate::cli::output;
use crate::cli::signals::Signals;
use crate::transport::{MessageId, Received, Taking};
use crate::worker::{StopReason, StopToken, owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Handles the messages one after the other, those with these IDs or all that are there now. On a terminal it shows each \
message and asks: retry, skip or delete. With --force it retries without asking.

A message that is handled is gone. One that fails again stays on the failure transport, as it does with \
`minutely consume`: the transport's retry strategy says when it is tried again, and without a retry left it is parked. \
The handler sees the transport on which the message failed first. No worker gets a message that is being retried here (on \
Redis, one that is started by hand may); one that a worker has already is told and left alone. If the program is killed meanwhile, the message can be retried \
when `redeliver_timeout` is over.

Exit code 0 if all went well; 1 if a message failed again, was not there or was left alone; 3 if there are no handlers.

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
}

/// What has become of a message.
enum Retried {
    Handled,
    FailedAgain,
    /// Not begun, because the program was asked to stop.
    Stopped,
}

/// What to do with a message.
enum Answer {
    Retry,
    Skip,
    Delete,
    Stop,
}

#[derive(Default)]
struct Count {
    handled: u64,
    failed: u64,
    deleted: u64,
    /// Not there, or not to be had.
    left: u64,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let failures = Failures::choose(app, &args.choice)?;
    let Some(taking) = failures.transport.taking.clone() else {
        let name = &failures.name;
        return Err(Failure::Usage(format!(
            "transport \"{name}\" cannot receive single messages; the command `consume {name}` handles all of them again"
        )));
    };
    if !args.force && !can_ask() {
        let text = "there is no terminal to ask on what to do with each message; --force retries without asking";
        return Err(Failure::Usage(text.to_owned()));
    }
    if !app.handles_messages() {
        output::error(crate::app::NO_HANDLER);
        return Ok(End::Stuck);
    }
    // Fixed before the first retry: those that fail again may come back under other ids.
    let ids = if args.ids.is_empty() {
        all_ids(&failures).await?
    } else {
        args.ids.iter().map(|id| MessageId(id.clone())).collect()
    };
    let signals = Signals::listen()?;
    let mut retry = Retry { app, failures, taking, signals, is_stopping: false, count: Count::default() };
    for id in &ids {
        if !retry.message(id, args).await? {
            break;
        }
    }
    let Count { handled, failed, deleted, left } = retry.count;
    let parts = [("handled", handled), ("failed again", failed), ("deleted", deleted), ("left alone", left)];
    let told: Vec<String> = parts
        .iter()
        .filter(|(what, count)| *count > 0 || *what == "handled")
        .map(|(what, n)| format!("{what}: {n}"))
        .collect();
    output::line(told.join(", "));
    Ok(if failed + left == 0 { End::Well } else { End::Failed })
}

async fn all_ids(failures: &Failures) -> Result<Vec<MessageId>> {
    let mut ids = Vec::new();
    loop {
        let page = failures.page(ids.last()).await?;
        let is_last = page.len() < PAGE;
        ids.extend(page.into_iter().map(|listed| listed.received.id));
        if is_last {
            return Ok(ids);
        }
    }
}

struct Retry<'a> {
    app: &'a App,
    failures: Failures,
    taking: Arc<dyn Taking>,
    signals: Signals,
    is_stopping: bool,
    count: Count,
}

impl Retry<'_> {
    /// Retries, skips or deletes a message. Returns whether to go on.
    async fn message(&mut self, id: &MessageId, args: &Args) -> Result<bool> {
        let Some(failed) = self.failures.find(&id.0).await?.map(Failed::new) else {
            // One that was there a moment ago was handled or removed by others, and no one asked for it by its id.
            if !args.ids.is_empty() {
                output::error(&self.failures.no_such_message(&id.0));
                self.count.left += 1;
            }
            return Ok(true);
        };
        let answer = if failed.in_flight || args.force { Answer::Retry } else { self.ask(&failed).await };
        match answer {
            Answer::Retry | Answer::Delete => {}
            Answer::Skip => return Ok(true),
            Answer::Stop => return Ok(false),
        }
        // A person may take hours to answer.
        let Some(taken) = self.taking.take(id).await? else {
            output::error(&self.failures.is_being_handled(&id.0));
            self.count.left += 1;
            return Ok(true);
        };
        if matches!(answer, Answer::Delete) {
            if let Some(receiver) = &self.failures.transport.receiver {
                receiver.reject(std::slice::from_ref(&taken.id)).await?;
            }
            self.count.deleted += 1;
            return Ok(true);
        }
        let class = escaped(failed.class());
        let id = escaped(&id.0);
        match self.handle(taken).await? {
            Retried::Handled => {
                self.count.handled += 1;
                output::line(format_args!("handled: {id} {class}"));
            }
            Retried::FailedAgain => {
                self.count.failed += 1;
                output::line(format_args!("failed again: {id} {class}{}", self.why(&failed.id).await));
            }
            Retried::Stopped => {}
        }
        Ok(!self.is_stopping)
    }

    async fn ask(&mut self, failed: &Failed) -> Answer {
        output::line(failed.summary());
        loop {
            match ask("Retry (r), skip (s), delete (d), quit (q)?", &mut self.signals).await.as_deref() {
                Some("r" | "retry" | "y" | "yes") => return Answer::Retry,
                Some("s" | "skip" | "n" | "no") => return Answer::Skip,
                Some("d" | "delete") => return Answer::Delete,
                Some("q" | "quit") | None => return Answer::Stop,
                Some(_) => {}
            }
        }
    }

    /// A worker on just this message. The first signal lets it finish, the second one breaks it off.
    async fn handle(&mut self, taken: Received) -> Result<Retried> {
        let worker = self.app.worker_for(&self.failures.name, taken)?;
        let (mut stop, owner) = (StopToken::new(), owner());
        let at_signal = stop.clone();
        let run = worker.run(&owner, &mut stop);
        tokio::pin!(run);
        let summary = loop {
            tokio::select! {
                summary = &mut run => break summary?,
                () = self.signals.next() => {
                    if std::mem::replace(&mut self.is_stopping, true) {
                        let text = "stopped at once; the current message can be retried when redeliver_timeout is over";
                        return Err(Failure::Failed(text.to_owned()));
                    }
                    at_signal.request(StopReason::OsSignal);
                }
            }
        };
        Ok(match (summary.handled, summary.failed) {
            (0, 0) if self.is_stopping => Retried::Stopped,
            (0, _) => Retried::FailedAgain,
            _ => Retried::Handled,
        })
    }

    /// The error of a message that failed again, if it has kept its id. The log has it in any case.
    async fn why(&self, id: &MessageId) -> String {
        let found = self.failures.find(&id.0).await.ok().flatten().map(Failed::new);
        let error = found.and_then(|failed| failed.error());
        error.map(|error| format!(": {}", one_line(&error))).unwrap_or_default()
    }
}
