//! One crontab line becomes a process manager with autoscaling workers, around a message bus that shares its queues
//! with Symfony Messenger.
//!
//! The program `minutely` needs no code: a `config.yaml` names transports, workers and handlers. This crate is for Rust
//! applications that define messages and handlers of their own. They dispatch, and work in the same process or in
//! others:
//!
//! ```
//! use minutely::App;
//! use minutely::config::Config;
//! use minutely::handler::{HandlerError, State};
//! use minutely::message::Message;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct SendEmail { to: String }
//!
//! impl Message for SendEmail {
//!     const TYPE: &'static str = r"App\Message\SendEmail";
//! }
//!
//! #[derive(Clone)]
//! struct Mailer { sender: String }
//!
//! // A handler's arguments are its message and what else it needs, in any order: `handler::Argument` lists them.
//! async fn send_email(message: SendEmail, State(mailer): State<Mailer>) -> Result<(), HandlerError> {
//!     println!("{} writes to {}", mailer.sender, message.to);
//!     Ok(())
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), minutely::Error> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let config_dir = folder.path();
//! let config = Config::builder().transport("mail", "in-memory://").route(SendEmail::TYPE, ["mail"]);
//! let app = App::builder()
//!     .config(config) // or config_file("config.yaml")
//! #    .dir(config_dir)
//!     .state(Mailer { sender: "shop@example.com".into() })
//!     .handle(send_email)
//!     .build()?;
//!
//! let worker = app.worker(["mail"]).concurrency(4).limit(1).spawn()?;
//! let dispatched = app.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
//! assert_eq!(dispatched.queued()[0].queued_on, "mail");
//! let summary = worker.wait().await?;
//! assert_eq!(summary.handled, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Its binary carries the same commands as the program, `myapp cron` for example. As the whole of `main`:
//!
//! ```no_run
//! # use minutely::App;
//! fn main() -> std::process::ExitCode {
//!     minutely::cli::main(App::builder().program(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")))
//! }
//! ```
//!
//! or among commands of its own: [`cli::Command`].
//!
//! `docs/rust.md` in the repository has an example for each question: state, middleware, own stamps, own transports,
//! tests (with the feature `testing`) and more.
//!
//! | for an application | |
//! | --- | --- |
//! | [`App`] | dispatches, and has workers and a supervisor in its process |
//! | [`config`] | a configuration in code, and what is wrong with one |
//! | [`message`] | messages, envelopes and stamps |
//! | `mail` | mail as a message (feature `mail`) |
//! | [`serializer`] | how messages are written, and a form of your own |
//! | [`handler`] | what handles messages, and the arguments of handlers |
//! | [`bus`] | middleware, and what became of a dispatch |
//! | [`cli`] | minutely's commands in a program of your own |
//! | `testing` | an application with its queues in memory (feature `testing`) |
//!
//! | for a transport of your own | |
//! | --- | --- |
//! | [`transport`] | the traits of a transport, and the factory that makes it |
//! | [`config::Setting`] | its options |
//! | `testing::conformance` | the tests that every transport passes (feature `testing`) |
//!
//! | cargo feature | |
//! | --- | --- |
//! | `postgres`, `mysql`, `redis`, `amqp` | these transports, and caches on the first three; on by default |
//! | `http` | scheduled jobs that request a URL; on by default |
//! | `testing` | what applications and transports are tested with |
//!
//! Without them there are SQLite, `in-memory:`, `sync:` and `auto-fallback:`, and about half as many crates to build.
//!
//! Types of other crates in signatures are [`message::Bytes`], `serde_json::Value` and what clap, serde and
//! `async_trait` derive.

mod app;
mod bounded_text;
pub mod bus;
// For `tests/it`, which holds every store of the cache to one suite.
#[doc(hidden)]
pub mod cache;
mod causes;
pub mod cli;
mod clock;
pub mod config;
mod connection;
mod descriptors;
// The pages describe the program with everything in it.
#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "redis", feature = "amqp"))]
mod docs;
mod error;
mod events;
// For `fuzz/`.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handler;
mod heartbeat;
#[cfg(feature = "http")]
mod http_client;
#[cfg(feature = "mail")]
pub mod mail;
mod memory;
pub mod message;
mod record;
mod schedule;
pub mod serializer;
mod serve;
mod state_files;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod threads;
pub mod transport;
mod tuning;
mod worker;

pub use app::{App, AppBuilder, Job, SupervisorBuilder, SupervisorHandle, WorkerBuilder, WorkerHandle};
pub use async_trait::async_trait;
pub use error::Error;
pub use events::{Event, EventMessage};
pub use worker::{FailedAttempt, RetryStrategy, StopReason, WorkerSummary};
