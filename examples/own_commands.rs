//! minutely's commands beside the application's own, in one clap parser.
//!
//! ```text
//! cargo run --example own_commands -- greet Ada
//! cargo run --example own_commands -- queue consume greetings --limit=1 -v
//! cargo run --example own_commands -- queue --help
//! ```

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use minutely::config::Config;
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

#[derive(Parser)]
#[command(version, about = "Greets people, later")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// `--config` and `-v` of minutely's commands.
    #[command(flatten)]
    global: minutely::cli::GlobalArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Queue a greeting
    Greet { name: String },
    /// Queues and workers; the crontab line is `own_commands queue cron`
    #[command(subcommand)]
    Queue(minutely::cli::Command),
}

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Message for Greet {
    const TYPE: &'static str = "greet";
}

async fn greet(message: Greet) {
    println!("hello {}", message.name);
}

fn builder() -> AppBuilder {
    let config = Config::builder()
        .transport("greetings", "sqlite:var/own_commands.db?queue_name=greetings")
        .transport("failed", "sqlite:var/own_commands.db?queue_name=failed")
        .failure_transport("failed")
        .route(Greet::TYPE, ["greetings"])
        .worker(serde_json::json!({ "transports": ["greetings"], "autoscale": { "desired_size": 10, "max": 2 } }));
    App::builder().config(config).handle(greet)
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Greet { name } => queue_greeting(name).await,
        Command::Queue(command) => minutely::cli::run(command.with(cli.global), builder()).await,
    }
}

async fn queue_greeting(name: String) -> ExitCode {
    let dispatched = match builder().build() {
        Ok(app) => app.dispatch(&Greet { name }).await.map_err(minutely::Error::from),
        Err(error) => Err(error),
    };
    match dispatched {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_commands_of_both_are_understood() {
        let cli = Cli::try_parse_from(["own_commands", "queue", "config", "check", "--offline"]).unwrap();
        let Command::Queue(command) = cli.command else { panic!("another command") };
        assert_eq!(minutely::cli::run(command, builder()).await, ExitCode::SUCCESS);
        assert!(Cli::try_parse_from(["own_commands", "greet", "Ada"]).is_ok());
        let consume = ["own_commands", "queue", "consume", "greetings", "--limit=1", "-v"];
        assert_eq!(Cli::try_parse_from(consume).unwrap().global.verbosity.verbose, 1);
    }
}
