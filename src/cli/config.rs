//! `minutely config`: look at the configuration.

use clap::Subcommand;
use serde_json::{Value, json};

use super::consume::check_workers;
use super::output::{self, Format, FormatArg};
use super::{AppBuilder, End, Global, Result, told};
use crate::config::Problem;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say everything that is wrong or doubtful in the configuration
    Check(Check),
}

#[derive(clap::Args)]
#[command(after_help = "Exit code 0: it can be used, perhaps with warnings. 2: it cannot.")]
struct Check {
    #[command(flatten)]
    format: FormatArg,
}

pub(super) fn run(app: AppBuilder, global: &Global, args: &Args) -> Result<End> {
    let Command::Check(check) = &args.command;
    let loaded = app.load(&global.config, check_workers);
    let (problems, valid) = match &loaded {
        Ok(app) => (&app.warnings, true),
        Err(problems) => (problems, false),
    };
    match check.format.format {
        Format::Json => {
            let list: Vec<Value> = problems.list.iter().map(as_json).collect();
            output::json(&json!({ "file": problems.file, "valid": valid, "problems": list }))?;
        }
        Format::Text => {
            if !valid {
                output::error(&told(problems));
            }
            for problem in problems.warnings() {
                output::warning(&format!("{}: {}: {}", problems.file, problem.path, problem.message));
            }
            if let Ok(app) = &loaded {
                let (transports, workers) = (app.config.transports.len(), app.config.workers.len());
                output::line(format_args!("{} is valid: {transports} transports, {workers} workers", problems.file));
            }
        }
    }
    Ok(if valid { End::Well } else { End::Misconfigured })
}

fn as_json(problem: &Problem) -> Value {
    let severity = if problem.warning { "warning" } else { "error" };
    json!({ "path": problem.path, "severity": severity, "message": problem.message })
}
