//! One crontab line becomes a process manager with autoscaling workers, around a message bus that shares its queues
//! with Symfony Messenger.
//!
//! The program `minutely` needs no code: a `config.yaml` names transports, workers and handlers. This crate is for Rust
//! applications that define messages and handlers of their own; their binary then carries the same commands:
//!
//! ```no_run
//! use minutely::App;
//! use minutely::handler::HandlerError;
//! use minutely::message::Message;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct SendEmail { to: String }
//!
//! impl Message for SendEmail {
//!     const TYPE: &'static str = r"App\Message\SendEmail";
//! }
//!
//! async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
//!     println!("to {}", message.to);
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     minutely::cli::main(App::builder().handle(send_email))
//! }
//! ```
//!
//! Each module's first line says its one job; modules depend only on those listed below them:
//! [`cli`], [`app`], [`supervisor`], [`worker`], [`heartbeat`], [`bus`], [`handler`], [`transport`], [`cache`],
//! `connection`, [`message`], [`config`].

#![warn(missing_docs)]

pub mod app;
mod bounded_text;
pub mod bus;
pub mod cache;
pub mod cli;
mod clock;
pub mod config;
mod connection;
#[cfg(test)]
mod docs;
pub mod handler;
pub mod heartbeat;
pub mod message;
pub mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod threads;
pub mod transport;
pub mod worker;

pub use app::{App, AppBuilder};
