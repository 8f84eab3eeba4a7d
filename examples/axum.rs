//! A web server that dispatches, with a worker in the same process, and minutely's commands beside it.
//!
//! ```text
//! cargo run --example axum -- serve
//! curl -i -H 'content-type: application/json' -d '{"to": "ada@example.com"}' http://127.0.0.1:3000/signups
//! cargo run --example axum -- queue stats
//! ```

use std::process::ExitCode;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use clap::{Parser, Subcommand};
use minutely::config::Config;
use minutely::handler::{self, HandlerError};
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "Welcomes those who sign up")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests, and handle what they dispatch
    Serve,
    /// Queues and workers
    #[command(subcommand)]
    Queue(minutely::cli::Command),
}

#[derive(Serialize, Deserialize)]
struct SendWelcome {
    to: String,
}

impl Message for SendWelcome {
    const TYPE: &'static str = "signup.send_welcome";
}

/// What the handlers share.
#[derive(Clone)]
struct Mailer {
    sender: &'static str,
}

async fn send_welcome(
    message: SendWelcome,
    handler::State(mailer): handler::State<Mailer>,
) -> Result<(), HandlerError> {
    if !message.to.contains('@') {
        return Err(HandlerError::unrecoverable(format!("\"{}\" is no address", message.to)));
    }
    println!("{} welcomes {}", mailer.sender, message.to);
    Ok(())
}

fn builder() -> AppBuilder {
    let config = Config::builder()
        .transport("mail", "sqlite:var/axum.db?queue_name=mail")
        .transport("failed", "sqlite:var/axum.db?queue_name=failed")
        .failure_transport("failed")
        .route(SendWelcome::TYPE, ["mail"]);
    App::builder().config(config).state(Mailer { sender: "shop@example.com" }).handle(send_welcome)
}

fn router(app: App) -> Router {
    Router::new().route("/signups", post(sign_up)).with_state(app)
}

async fn sign_up(State(app): State<App>, Json(welcome): Json<SendWelcome>) -> Result<StatusCode, (StatusCode, String)> {
    let dispatched = app.dispatch(&welcome).await;
    dispatched.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve => match serve().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Command::Queue(command) => minutely::cli::run(command, builder()).await,
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let app = builder().build()?;
    let worker = app.worker(["mail"]).concurrency(4).spawn()?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // Ctrl-C, and what systemd and containers send.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    axum::serve(listener, router(app)).with_graceful_shutdown(stopped).await?;
    // What was begun is finished; what is still queued stays there for the next start.
    worker.stop().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn post_signup(app: &App, body: &str) -> StatusCode {
        let request = Request::post("/signups").header("content-type", "application/json");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        router(app.clone()).oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn who_signs_up_is_welcomed() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        assert_eq!(post_signup(&app, r#"{"to": "ada@example.com"}"#).await, StatusCode::ACCEPTED);
        assert_eq!(app.sent::<SendWelcome>().only().to, "ada@example.com");
        app.work_until_idle().await;
        app.handled::<SendWelcome>().assert_count(1);
        Ok(())
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_kept_with_the_reason() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        assert_eq!(post_signup(&app, r#"{"to": "ada"}"#).await, StatusCode::ACCEPTED);
        app.work_until_idle().await;
        let failed = app.failed::<SendWelcome>().only();
        assert!(failed.error.unwrap().ends_with("\"ada\" is no address"));
        Ok(())
    }

    #[tokio::test]
    async fn what_is_no_signup_is_not_dispatched() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        assert_eq!(post_signup(&app, "{}").await, StatusCode::UNPROCESSABLE_ENTITY);
        app.sent::<SendWelcome>().assert_none();
        Ok(())
    }
}
