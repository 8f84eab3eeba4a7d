//! `minutely failed remove`: removes failed messages without handling them.

use super::{App, Choice, End, Failed, Failures, PAGE, Result, ask, can_ask, escaped};
use crate::cli::Failure;
use crate::cli::output;
use crate::cli::signals::Signals;
use crate::transport::{MessageId, Receiver};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
On a terminal it asks first, unless --force is given. A message that a worker is handling is left alone, and told. The \
exit code is 1 if a message was not there or was left.

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
}

/// How many messages were removed, and how many were not.
#[derive(Default)]
struct Count {
    removed: u64,
    left: u64,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let failures = Failures::choose(app, &args.choice)?;
    let Some(receiver) = failures.transport.receiver.clone() else {
        return Err(Failure::Usage(format!("transport \"{}\" keeps no messages", failures.name)));
    };
    if !args.force && !can_ask() {
        let text = "nothing is removed without a question, and there is no terminal to ask on; --force removes without";
        return Err(Failure::Usage(text.to_owned()));
    }
    let count =
        if args.all { all(&failures, &*receiver, args).await? } else { chosen(&failures, &*receiver, args).await? };
    let Count { removed, left } = count;
    output::line(format_args!("removed from {}: {removed}", failures.name));
    Ok(if left == 0 { End::Well } else { End::Failed })
}

async fn chosen(failures: &Failures, receiver: &dyn Receiver, args: &Args) -> Result<Count> {
    let mut count = Count::default();
    let mut signals = if args.force { None } else { Some(Signals::listen()?) };
    for id in &args.ids {
        let Some(failed) = failures.find(id).await?.map(Failed::new) else {
            output::error(&failures.no_such_message(id));
            count.left += 1;
            continue;
        };
        if failed.in_flight {
            output::error(&failures.is_being_handled(id));
            count.left += 1;
            continue;
        }
        if args.show_messages || !args.force {
            output::line(failed.summary());
        }
        if let Some(signals) = &mut signals {
            match ask("Remove it? (y/N)", signals).await.as_deref() {
                Some("y" | "yes") => {}
                Some(_) => continue,
                None => break,
            }
        }
        receiver.reject(std::slice::from_ref(&failed.id)).await?;
        count.removed += 1;
    }
    Ok(count)
}

async fn all(failures: &Failures, receiver: &dyn Receiver, args: &Args) -> Result<Count> {
    let mut count = Count::default();
    if !args.force {
        let of = args.class_filter.as_ref().map(|class| format!(" of type {}", escaped(class))).unwrap_or_default();
        let question = format!("Remove all messages{of} from {}? (y/N)", failures.name);
        if !matches!(ask(&question, &mut Signals::listen()?).await.as_deref(), Some("y" | "yes")) {
            return Ok(count);
        }
    }
    let mut after: Option<MessageId> = None;
    loop {
        let page = failures.page(after.as_ref()).await?;
        after = page.last().map(|listed| listed.received.id.clone());
        let is_last = page.len() < PAGE;
        let mut ids = Vec::new();
        for failed in page.into_iter().map(Failed::new).filter(|failed| failed.is_of(args.class_filter.as_ref())) {
            if failed.in_flight {
                output::error(&failures.is_being_handled(&failed.id.0));
                count.left += 1;
                continue;
            }
            if args.show_messages {
                output::line(failed.summary());
            }
            ids.push(failed.id);
        }
        receiver.reject(&ids).await?;
        count.removed += ids.len() as u64;
        if is_last {
            return Ok(count);
        }
        tracing::info!(removed = count.removed, "removing");
    }
}
