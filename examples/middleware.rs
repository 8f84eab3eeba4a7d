//! Middleware: a function that sees each message twice, when it is dispatched and when a worker has received it.
//!
//! ```text
//! cargo run --example middleware
//! ```

use std::time::Instant;

use minutely::bus::{DispatchError, Next, from_fn};
use minutely::config::Config;
use minutely::message::{Envelope, Message, ReceivedStamp};
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Note {
    text: String,
}

impl Message for Note {
    const TYPE: &'static str = "note";
}

async fn write_down(note: Note) {
    println!("{}", note.text);
}

/// Says how long each message takes, and whether it is sent or handled.
async fn timing(envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
    let (message_type, begun) = (envelope.message_type().to_owned(), Instant::now());
    let what = if envelope.last::<ReceivedStamp>().is_some() { "handling" } else { "dispatching" };
    let result = next.run(envelope).await;
    println!("{what} {message_type} took {:?}", begun.elapsed());
    result
}

/// Refuses what is too long, before anything is queued.
async fn short_notes_alone(envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
    if envelope.body().len() > 1000 {
        return Err(DispatchError::Refused("a note has at most 1000 bytes".to_owned()));
    }
    next.run(envelope).await
}

fn builder() -> AppBuilder {
    let config = Config::builder().transport("notes", "in-memory://").route(Note::TYPE, ["notes"]);
    App::builder().config(config).middleware(from_fn(timing)).middleware(from_fn(short_notes_alone)).handle(write_down)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = builder().build()?;
    let worker = app.worker(["notes"]).limit(1).spawn()?;
    app.dispatch(&Note { text: "hello".into() }).await?;
    worker.wait().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_note_is_refused_and_not_queued() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        let refused = app.dispatch(&Note { text: "x".repeat(1001) }).await.unwrap_err();
        assert_eq!(refused.to_string(), "a note has at most 1000 bytes");
        app.sent::<Note>().assert_none();

        app.dispatch(&Note { text: "short".into() }).await?;
        app.work_until_idle().await;
        assert_eq!(app.handled::<Note>().only().text, "short");
        Ok(())
    }
}
