use serde::{Deserialize, Serialize};

use super::*;
use crate::handler::HandlerError;

const CONFIG: &str = "
transports:
  sync: sync://
  queue: {dsn: 'postgres://nowhere/x?table_name=q', options: {queue_name: mail}}
  mail: auto-fallback://mail?target=queue&fallback=sync
routing: {Mail: mail, Note: queue}
cache: redis://nowhere
";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Message for Mail {
    const TYPE: &'static str = "Mail";
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note(u32);

impl Message for Note {
    const TYPE: &'static str = "Note";
}

async fn mail(mail: Mail) -> Result<(), HandlerError> {
    if mail.to.is_empty() { Err(HandlerError::unrecoverable("no address")) } else { Ok(()) }
}

/// Each note leads to the one before.
async fn note(note: Note, bus: crate::bus::Bus) -> Result<(), HandlerError> {
    if note.0 > 0 {
        bus.dispatch(&Note(note.0 - 1)).await?;
    }
    Ok(())
}

fn app() -> TestApp {
    let app = App::builder().config_text(CONFIG).handle(mail).handle(note);
    app.test().unwrap_or_else(|error| panic!("{error}"))
}

fn to(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

/// The text of a panic.
fn panics(action: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).unwrap_err();
    panic.downcast::<String>().map_or_else(|_| "no text".to_owned(), |text| *text)
}

#[tokio::test]
async fn an_auto_fallback_queues_while_a_worker_is_assumed() {
    let app = app();
    app.dispatch(&to("ada")).await.unwrap();
    app.sent::<Mail>().assert_none();
    assert_eq!(app.handled::<Mail>().only().transport.as_deref(), Some("mail"));

    app.assume_worker("mail").await.unwrap();
    app.dispatch(&to("bob")).await.unwrap();
    assert_eq!(app.sent::<Mail>().only().transport.as_deref(), Some("queue"));
    assert_eq!(app.queued::<Mail>().only().to, "bob");
}

#[tokio::test]
async fn idle_is_when_what_handlers_have_dispatched_is_handled_too() {
    let app = app();
    app.dispatch(&Note(3)).await.unwrap();
    assert_eq!(app.work_until_idle().await, Worked { handled: 4, failed: 0 });
    let handled: Vec<u32> = app.handled::<Note>().iter().map(|note| note.message.0).collect();
    assert_eq!(handled, [3, 2, 1, 0]);
    assert_eq!(app.work_until_idle().await, Worked { handled: 0, failed: 0 });
}

#[tokio::test]
async fn under_an_ordinary_clock_what_is_delayed_stays() {
    let app = app();
    app.dispatch(&Note(0)).delay(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(app.work_until_idle().await.handled, 0);
    assert_eq!(app.queued::<Note>().only().delay, Duration::from_secs(3600));
}

#[tokio::test]
async fn what_would_be_discarded_is_seen_to_fail() {
    let app = app();
    app.dispatch(&to("")).to(["queue"]).await.unwrap();
    assert_eq!(app.work_until_idle().await, Worked { handled: 0, failed: 1 });
    assert!(app.failed::<Mail>().only().error.unwrap().contains("no address"));
    assert!(app.dispatch(&to("")).await.is_err(), "handled during the dispatch");
    app.failed::<Mail>().assert_count(2);
}

#[tokio::test]
async fn an_assertion_that_fails_prints_what_happened() {
    let app = app();
    app.dispatch(&Note(0)).delay(Duration::from_secs(90)).await.unwrap();
    app.dispatch(&Note(1)).await.unwrap();
    app.work_until_idle().await;
    let text = panics(|| drop(app.handled::<Mail>().only()));
    assert_eq!(
        text,
        "was handled: expected 1 of type Mail, found 0. This is what happened:
  sent     Note 0 (queue), due after 90 s
  sent     Note 1 (queue)
  sent     Note 0 (queue)
  handled  Note 1 (queue)
  handled  Note 0 (queue)
  waits    Note 0 (queue)
"
    );
    let text = panics(|| app.handled::<Note>().assert_any(|note| note.message.0 == 7));
    assert!(text.starts_with("was handled: expected one of type Note that meets the condition, found 2."), "{text}");
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_errors() {
    let wrong = App::builder().config_text("transports: {a: 'in-memory://'}\nrouting: {Mail: b}");
    let error = wrong.test().err().unwrap().to_string();
    assert!(error.contains("routing"), "{error}");
}
