//! `minutely config`: look at the configuration.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::output::{self, Format, FormatArg};
use super::{App, Application, End, Result, build, problem_text};
use crate::config::{Problem, Problems};
use crate::supervisor::{ServerConnections, connections};

/// How long a server may take to tell its limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Report everything that is wrong or doubtful in the configuration
    Check(Check),
    /// Print the JSON schema of the configuration, for editors
    Schema(Schema),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The schema is JSON Schema, draft 2020-12. It describes all keys, and the options of all transports that this program \
has. An editor with a YAML language server completes and checks by it:

  minutely config schema > config.schema.json
  sed -i '1i # yaml-language-server: $schema=config.schema.json' config.yaml

`minutely config check` finds more, such as transports that do not exist, and wrong values in a DSN.")]
struct Schema {}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The servers that workers use are asked how many connections they allow. Nothing is changed there. A server that \
cannot be reached is a warning.

Exit code 0: the configuration can be used, perhaps with warnings. 2: it cannot.")]
struct Check {
    /// Check the file alone, and connect to nothing
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// `advice` is for one whose configuration is not there.
pub(super) async fn run(app: Application, args: &Args, advice: &str) -> Result<End> {
    let check = match &args.command {
        Command::Check(check) => check,
        Command::Schema(Schema {}) => {
            let schema = app.config_schema();
            output::line(format_args!("{schema:#}"));
            return Ok(End::Well);
        }
    };
    let mut loaded = build(app, advice);
    if let Ok(app) = &mut loaded
        && !check.offline
    {
        let found = check_connections(app).await;
        let mut warnings = Problems::clone(&app.warnings);
        warnings.list.extend(found);
        app.warnings = Arc::new(warnings);
    }
    let (problems, valid) = match &loaded {
        Ok(app) => (&*app.warnings, true),
        Err(problems) => (problems, false),
    };
    match check.format.format {
        Format::Json => {
            let list: Vec<Value> = problems.list.iter().map(as_json).collect();
            output::json(&json!({ "file": problems.file, "valid": valid, "problems": list }))?;
        }
        Format::Text => {
            if !valid {
                output::error(&problem_text(problems));
            }
            for problem in problems.warnings() {
                output::warning(&format!("{}: {}: {}", problems.file, problem.path, problem.message));
            }
            if let Ok(app) = &loaded {
                let counts = [
                    (app.config.transports.len(), "transport"),
                    (app.config.workers.len(), "worker definition"),
                    (app.jobs.len(), "scheduled job"),
                ];
                let counts = counts.map(|(count, of)| number(count, of));
                let counts = format_args!("{}, {} and {}", counts[0], counts[1], counts[2]);
                output::line(format_args!("{} is valid: {counts}", problems.file));
            }
        }
    }
    Ok(if valid { End::Well } else { End::Misconfigured })
}

/// Do the servers allow as many connections as workers may need?
async fn check_connections(app: &App) -> Vec<Problem> {
    let asked = connections(&app.config, &app.transports).into_iter().map(async |needed| {
        let connecting = needed.transport.connecting.as_ref()?;
        let ServerConnections { server, workers, supervisor, .. } = &needed;
        let message = match tokio::time::timeout(ANSWER_TIMEOUT, connecting.limit()).await {
            Ok(Ok(Some(limit))) if needed.total() > limit => format!(
                "up to {} connections to {server} ({workers} of workers, {supervisor} of the supervisor, and those of \
                 programs that dispatch come on top), and it allows {limit}: lower autoscale.max, or raise the limit",
                needed.total()
            ),
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("{server} does not answer within {} s", ANSWER_TIMEOUT.as_secs()),
        };
        Some(Problem::warning("workers", message))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// `1 transport`, `2 transports`.
fn number(count: usize, of: &str) -> String {
    if count == 1 { format!("1 {of}") } else { format!("{count} {of}s") }
}

fn as_json(problem: &Problem) -> Value {
    let severity = if problem.warning { "warning" } else { "error" };
    json!({ "path": problem.path, "severity": severity, "message": problem.message })
}
