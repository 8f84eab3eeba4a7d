//! `minutely failed remove`: removes failed messages without handling them.

use serde_json::{Value, json};

use super::progress::Progress;
use super::{
    Answered, App, Candidate, Choice, End, Failures, Result, ask, can_ask, escaped, is_being_handled, no_such_message,
};
use crate::cli::Failure;
use crate::cli::output::{self, Format, FormatArg};
use crate::cli::signals::Signals;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
On a terminal it asks first, unless --force is given. A message that is being handled is left alone, and told. The exit \
code is 1 if a message was not there or was left, or if a signal ended it before all were removed.

Examples:
  minutely failed remove 20 30 --show-messages
  minutely failed remove --all --class-filter='App\\Message\\Old' --force")]
pub(in super::super) struct Args {
    /// The messages
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Remove all messages
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long)]
    force: bool,
    /// Show each message
    #[arg(long)]
    show_messages: bool,
    /// With --all: only messages of this type
    #[arg(long, value_name = "TYPE", requires = "all")]
    class_filter: Option<String>,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let failures = Failures::choose(app, &args.choice)?;
    if !failures.can_take() {
        return Err(Failure::Usage(format!("transport \"{}\" cannot remove single messages", failures.name)));
    }
    if !args.force && !can_ask() {
        let text = "nothing is removed without a question, and there is no terminal to ask on; --force removes without";
        return Err(Failure::Usage(text.to_owned()));
    }
    let mut signals = if args.force { None } else { Some(Signals::listen()?) };
    if args.all
        && let Some(signals) = &mut signals
    {
        let of = args.class_filter.as_ref().map(|class| format!(" of type {}", escaped(class))).unwrap_or_default();
        let question = format!("Remove all messages{of} from {}? (y/N)", failures.name);
        match confirm(&question, signals).await {
            Confirmed::Yes => {}
            Confirmed::No | Confirmed::EndOfInput => return Ok(End::Well),
            Confirmed::Stop => return Err(Failure::Failed("stopped; nothing was removed".to_owned())),
        }
    }
    let end = remove(&failures, args, signals).await?;
    if args.all
        && let Some(hidden) = failures.hides(app)
    {
        output::warning(&hidden);
    }
    Ok(end)
}

/// What was answered to a yes-or-no question.
enum Confirmed {
    Yes,
    No,
    EndOfInput,
    /// A signal came instead.
    Stop,
}

async fn confirm(question: &str, signals: &mut Signals) -> Confirmed {
    match ask(question, signals).await {
        Answered::Line(line) if matches!(line.as_str(), "y" | "yes") => Confirmed::Yes,
        Answered::Line(_) => Confirmed::No,
        Answered::EndOfInput => Confirmed::EndOfInput,
        Answered::Signal => Confirmed::Stop,
    }
}

async fn remove(failures: &Failures, args: &Args, mut signals: Option<Signals>) -> Result<End> {
    let (mut removed, mut left, mut missing, mut not_tried) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut messages: Vec<Value> = Vec::new();
    let mut progress = Progress::new("removed:", None);
    let mut walk = failures.walk(&args.ids, |failed| failed.is_of(args.class_filter.as_ref())).await?;
    while let Some(candidate) = walk.next().await? {
        let failed = &candidate.failed;
        // One at a time, where there are no ids.
        if args.all && !failed.is_of(args.class_filter.as_ref()) {
            failures.leave(&candidate).await?;
            continue;
        }
        let (id, class, summary) = (failed.id.clone(), failed.class().to_owned(), failed.summary());
        let is_text = args.format.format == Format::Text;
        if is_text && (args.show_messages || (!args.all && !args.force)) {
            progress.clear();
            output::line(&summary);
        }
        if let Some(signals) = signals.as_mut().filter(|_| !args.all) {
            let answer = confirm("Remove it? (y/N)", signals).await;
            if !matches!(answer, Confirmed::Yes) {
                failures.leave(&candidate).await?;
            }
            match answer {
                Confirmed::Yes => {}
                Confirmed::No => continue,
                Confirmed::EndOfInput => break,
                Confirmed::Stop => {
                    not_tried = 1 + walk.remaining();
                    break;
                }
            }
        }
        let is_removed = remove_one(failures, candidate).await?;
        if is_removed {
            removed += 1;
            progress.step();
        } else {
            left += 1;
            progress.clear();
            output::error(&is_being_handled(&id));
        }
        if args.format.format == Format::Json {
            messages.push(json!({ "id": id.0, "class": class, "removed": is_removed }));
        }
    }
    drop(progress);
    // Of all that there were, others may have handled some.
    if !args.all {
        for id in walk.missing() {
            output::error(&no_such_message(failures, &id));
            missing += 1;
        }
    }
    match args.format.format {
        Format::Text => {
            let others = [("left alone", left), ("not there", missing)];
            let others = others.iter().filter(|(_, count)| *count > 0);
            let others: String = others.map(|(what, count)| format!(", {what}: {count}")).collect();
            output::line(format_args!("removed from {}: {removed}{others}", failures.name));
        }
        Format::Json => output::json(&json!({
            "transport": failures.name, "removed": removed, "left": left, "missing": missing, "not_tried": not_tried,
            "messages": messages,
        }))?,
    }
    if not_tried > 0 {
        output::error(&format!("stopped; {not_tried} not tried"));
    }
    Ok(if left + missing + not_tried == 0 { End::Well } else { End::Failed })
}

/// Takes a message before it removes it, so that no worker has it. Returns whether that was possible.
async fn remove_one(failures: &Failures, candidate: Candidate) -> Result<bool> {
    if candidate.failed.in_flight {
        return Ok(false);
    }
    let Some(received) = failures.take(candidate).await? else { return Ok(false) };
    failures.remove(&received).await?;
    Ok(true)
}
