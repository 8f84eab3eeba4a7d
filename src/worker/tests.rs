//! Workers in this process, whose waits take no time: tokio's clock is paused, and jumps ahead when all tasks wait.

use serde::{Deserialize, Serialize};

use super::*;
use crate::App;
use crate::handler::{Attempt, HandlerError};
use crate::message::{Message, RedeliveryStamp, SentToFailureTransportStamp};
use crate::testing::{TestApp, Worked};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

const CONFIG: &str = "
failure_transport: failed
transports:
  high: 'redis://localhost/high'
  low: {dsn: 'redis://localhost/low', retry_strategy: {max_retries: 2, delay: 600000, multiplier: 2, jitter: 0}}
  failed: 'redis://localhost/failed'
routing: {Note: low}
";

/// What its handler does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Note {
    Succeed,
    FailUntil(u32),
    NeverTryAgain,
    /// Whatever the strategy says.
    TryAgainUntil(u32),
    DispatchAnew,
    TakeLong,
}

impl Message for Note {
    const TYPE: &'static str = "Note";
}

async fn note(note: Note, Attempt(attempt): Attempt, bus: Bus) -> Result<(), HandlerError> {
    match note {
        Note::FailUntil(last) if attempt < last => Err(HandlerError::failed("not yet")),
        Note::TryAgainUntil(last) if attempt < last => Err(HandlerError::recoverable("busy", Some(MINUTE))),
        Note::NeverTryAgain => Err(HandlerError::unrecoverable("never")),
        Note::DispatchAnew => Ok(bus.dispatch(&Note::DispatchAnew).delay(HOUR).await.map(drop)?),
        Note::TakeLong => {
            tokio::time::sleep(10 * MINUTE + SECOND).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn app() -> TestApp {
    App::builder().config_text(CONFIG).handle(note).test().unwrap_or_else(|error| panic!("{error}"))
}

async fn dispatch(app: &TestApp, note: Note) {
    app.dispatch(&note).await.unwrap();
}

/// Works until nothing is left. Returns how many messages were handled, how many attempts failed, and how long that
/// took by tokio's clock.
async fn work(app: &TestApp) -> (u64, u64, Duration) {
    let begun = Instant::now();
    let Worked { handled, failed, .. } = app.work_until_idle().await;
    (handled, failed, begun.elapsed())
}

/// Whether a time is as expected, plus what the waits of a worker add.
fn is_about(time: Duration, expected: Duration) -> bool {
    time >= expected && time < expected + 2 * SECOND
}

#[tokio::test(start_paused = true)]
async fn a_message_is_handled_when_its_delay_is_over() {
    let app = app();
    app.dispatch(&Note::Succeed).delay(HOUR).await.unwrap();
    app.work_for(HOUR - SECOND).await;
    app.handled::<Note>().assert_none();
    let (handled, _, took) = work(&app).await;
    assert_eq!(handled, 1);
    assert!(is_about(took, SECOND), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_comes_when_the_strategy_says() {
    let app = app();
    dispatch(&app, Note::FailUntil(3)).await;
    let (handled, failed, took) = work(&app).await;
    assert_eq!((handled, failed), (1, 2));
    assert!(is_about(took, (10 + 20) * MINUTE), "{took:?}");
    let stamp = app.handled::<Note>().only().envelope.last::<RedeliveryStamp>().unwrap();
    assert_eq!(stamp.retry_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_retries_left_goes_to_the_failure_transport() {
    let app = app();
    dispatch(&app, Note::FailUntil(4)).await;
    let (handled, failed, took) = work(&app).await;
    assert_eq!((handled, failed), (0, 3));
    assert!(is_about(took, (10 + 20) * MINUTE), "{took:?}");
    assert_eq!(app.failed::<Note>().only().transport.as_deref(), Some("failed"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_again_stays_on_the_failure_transport() {
    let app = app();
    dispatch(&app, Note::NeverTryAgain).await;
    work(&app).await;
    let summary = app.worker(["failed"]).limit(1).spawn().unwrap().wait().await.unwrap();
    assert_eq!((summary.handled, summary.failed), (0, 1));
    assert_eq!(app.failed::<Note>().only().transport.as_deref(), Some("failed"));
}

#[tokio::test(start_paused = true)]
async fn an_unrecoverable_failure_is_tried_once() {
    let app = app();
    dispatch(&app, Note::NeverTryAgain).await;
    let (handled, failed, _) = work(&app).await;
    assert_eq!((handled, failed), (0, 1));
    assert!(app.failed::<Note>().only().error.unwrap().ends_with("never"));
}

#[tokio::test(start_paused = true)]
async fn a_recoverable_failure_is_retried_beyond_the_strategy_after_its_own_delay() {
    let app = app();
    dispatch(&app, Note::TryAgainUntil(6)).await;
    let (handled, failed, took) = work(&app).await;
    assert_eq!((handled, failed), (1, 5));
    assert!(is_about(took, 5 * MINUTE), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_transport_has_priority() {
    let app = app();
    for (note, transport) in [(Note::Succeed, "low"), (Note::FailUntil(1), "high"), (Note::FailUntil(0), "low")] {
        app.dispatch(&note).to([transport]).await.unwrap();
    }
    work(&app).await;
    let order: Vec<Note> = app.handled::<Note>().iter().map(|handled| handled.message).collect();
    assert_eq!(order, [Note::FailUntil(1), Note::Succeed, Note::FailUntil(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_ends_at_its_time_limit_and_delayed_messages_stay_queued() {
    let app = app();
    dispatch(&app, Note::DispatchAnew).await;
    let begun = Instant::now();
    let summary = app.worker(["low"]).sleep(HOUR).time_limit(10 * HOUR + MINUTE).spawn().unwrap().wait().await.unwrap();
    assert_eq!((summary.handled, summary.reason), (11, StopReason::TimeLimit));
    assert!(is_about(begun.elapsed(), 10 * HOUR + MINUTE), "{:?}", begun.elapsed());
    assert_eq!(app.queued::<Note>().only().delay, HOUR);
}

#[tokio::test(start_paused = true)]
async fn several_messages_are_handled_at_once() {
    let app = app();
    for _ in 0..3 {
        dispatch(&app, Note::TakeLong).await;
    }
    let begun = Instant::now();
    let summary = app.worker(["low"]).concurrency(3).limit(3).spawn().unwrap().wait().await.unwrap();
    assert_eq!(summary.handled, 3);
    assert!(is_about(begun.elapsed(), 10 * MINUTE + SECOND), "{:?}", begun.elapsed());
}

/// The handler takes longer than a heartbeat lasts.
#[tokio::test(start_paused = true)]
async fn a_long_handler_does_not_look_dead() {
    let app = app();
    dispatch(&app, Note::TakeLong).await;
    let watched = async {
        let mut seen = Vec::new();
        for _ in 0..10 {
            tokio::time::sleep(MINUTE).await;
            seen.push(app.heartbeats.of("low").await.unwrap().len());
        }
        seen
    };
    let ((handled, ..), seen) = tokio::join!(work(&app), watched);
    assert_eq!((handled, seen), (1, vec![1; 10]));
    assert_eq!(app.heartbeats.of("low").await.unwrap(), [], "it is withdrawn at the end");
}

struct Hourly;

impl RetryStrategy for Hourly {
    fn is_retryable(&self, attempt: &FailedAttempt<'_>) -> bool {
        assert_eq!(attempt.transport, "low");
        attempt.retries < 3
    }

    fn delay(&self, attempt: &FailedAttempt<'_>) -> Duration {
        if attempt.error.exception_message.ends_with("not yet") { HOUR } else { SECOND }
    }
}

#[tokio::test(start_paused = true)]
async fn a_strategy_in_code_decides_about_retries() {
    let app = App::builder().config_text(CONFIG).handle(note).retry_strategy("low", Hourly).test().unwrap();
    dispatch(&app, Note::FailUntil(4)).await;
    let (handled, failed, took) = work(&app).await;
    assert_eq!((handled, failed), (1, 3));
    assert!(is_about(took, 3 * HOUR), "{took:?}");
    dispatch(&app, Note::NeverTryAgain).await;
    assert_eq!(work(&app).await.1, 1, "it is not asked");
}

#[test]
fn a_strategy_that_nothing_uses_and_a_name_without_a_strategy_are_mistakes() {
    let problem = |config: &str, name: &str| {
        let built = App::builder().config_text(config).handle(note).retry_strategy(name, Hourly).build();
        built.map(drop).unwrap_err().to_string()
    };
    let found = problem(CONFIG, "lwo");
    assert!(found.contains("unknown transport \"lwo\", did you mean \"low\"?"), "{found}");
    let found = problem("transports: {low: {dsn: 'in-memory://', retry_strategy: {service: houry}}}", "hourly");
    assert!(found.contains("unknown retry strategy \"houry\", did you mean \"hourly\"?"), "{found}");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_again_elsewhere_keeps_its_origin() {
    let config = CONFIG.replace(
        "failed: 'redis://localhost/failed'",
        "failed: {dsn: 'redis://localhost/failed', failure_transport: last}\n  last: 'redis://localhost/last'",
    );
    let app = App::builder().config_text(config).handle(note).test().unwrap();
    dispatch(&app, Note::NeverTryAgain).await;
    work(&app).await;
    app.worker(["failed"]).limit(1).spawn().unwrap().wait().await.unwrap();
    let failed = app.failed::<Note>().only();
    let origins = failed.envelope.all::<SentToFailureTransportStamp>();
    assert_eq!((failed.transport.as_deref(), origins.len()), (Some("last"), 1));
    assert_eq!(origins[0].original_receiver_name, "low");
}
