//! Workers in this process, whose waits take no time: tokio's clock is paused, and jumps ahead when all tasks wait.

use serde::{Deserialize, Serialize};

use super::*;
use crate::App;
use crate::handler::{Attempt, CurrentWorker, HandlerError, State, States};
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
    StopWorker,
    FailAndStopWorker,
}

impl Message for Note {
    const TYPE: &'static str = "Note";
}

async fn note(note: Note, Attempt(attempt): Attempt, bus: Bus, worker: CurrentWorker) -> Result<(), HandlerError> {
    match note {
        Note::StopWorker => {
            worker.stop_after_this();
            Ok(())
        }
        Note::FailAndStopWorker => Err(HandlerError::failed("enough").stopping_worker()),
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

#[tokio::test(start_paused = true)]
async fn a_handler_stops_its_worker_whether_it_succeeds_or_fails() {
    for (note, counts) in [(Note::StopWorker, (1, 0)), (Note::FailAndStopWorker, (0, 1))] {
        let app = app();
        dispatch(&app, note).await;
        dispatch(&app, Note::Succeed).await;
        let summary = app.worker(["low"]).spawn().unwrap().wait().await.unwrap();
        assert_eq!((summary.handled, summary.failed), counts, "{note:?}");
        assert_eq!(summary.reason, StopReason::Handler);
        // The failed one waits for its retry.
        app.queued::<Note>().assert_count(if note == Note::StopWorker { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_holds_one_transport_up_and_not_the_others() {
    let config = CONFIG.replace(
        "'redis://localhost/high'",
        "{dsn: 'redis://localhost/high', rate_limiter: {policy: token_bucket, limit: 2, rate: {interval: 1h}}}",
    );
    let app = App::builder().config_text(config).handle(note).test().unwrap_or_else(|error| panic!("{error}"));
    for transport in ["high", "high", "high", "high", "low", "low", "low"] {
        app.dispatch(&Note::Succeed).to([transport]).await.unwrap();
    }
    let (first, ..) = (app.work_for(MINUTE).await, ());
    assert_eq!(first.handled, 5, "two with a permit, and those of the other transport");
    app.queued::<Note>().assert_count(2);
    let (handled, _, took) = work(&app).await;
    assert_eq!(handled, 2);
    assert!(is_about(took, 2 * HOUR - MINUTE), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_in_its_order_and_a_panic_of_who_is_told_does_no_harm() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let config = CONFIG.replace(
        "'redis://localhost/high'",
        "{dsn: 'redis://localhost/high', rate_limiter: {policy: fixed_window, limit: 1, interval: 1m}}",
    );
    let app = App::builder().config_text(config).handle(note).on({
        let told = Arc::clone(&told);
        move |event: &Event<'_>| {
            let text = match event {
                Event::MessageSent { sent, .. } => format!("sent to {}", sent.queued_on),
                Event::MessageReceived { message } => format!("received, try {}", message.attempt()),
                Event::MessageHandled { message } => format!("handled from {}", message.transport),
                Event::MessageFailed { error, will_retry, .. } => {
                    format!("failed: {} {will_retry}", error.exception_message)
                }
                Event::MessageRetried { delay, .. } => format!("retried in {} s", delay.as_secs()),
                Event::MessageGivenUp { kept_on, .. } => format!("kept on {kept_on:?}"),
                Event::RateLimited { transport, .. } => format!("{transport} is limited"),
                Event::WorkerRunning { is_idle: false } => return,
                Event::WorkerRunning { is_idle: true } => "idle".to_owned(),
                Event::WorkerStarted { transports } => format!("started on {}", transports.join(", ")),
                Event::WorkerStopped { handled, failed, reason } => format!("stopped: {handled}, {failed}, {reason}"),
            };
            told.lock().unwrap().push(text);
            assert!(!matches!(event, Event::MessageReceived { .. }), "the function panics");
        }
    });
    let app = app.test().unwrap_or_else(|error| panic!("{error}"));
    let take = || std::mem::take(&mut *told.lock().unwrap());
    dispatch(&app, Note::FailUntil(2)).await;
    let worker = |queue: &str, limit| app.worker([queue]).limit(limit).sleep(HOUR).spawn().unwrap().wait();
    worker("low", 2).await.unwrap();
    let told = take().into_iter().filter(|text| text != "idle").collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            "sent to low",
            "started on low",
            "received, try 1",
            "failed: note: not yet true",
            "retried in 600 s",
            "received, try 2",
            "handled from low",
            "stopped: 1, 1, the message limit is reached",
        ]
        .map(|text| text.replace("note:", &format!("{}:", std::any::type_name_of_val(&note))))
    );
    dispatch(&app, Note::NeverTryAgain).await;
    worker("low", 1).await.unwrap();
    let told = take();
    assert!(told.contains(&"kept on Some(\"failed\")".to_owned()), "{told:?}");
    for _ in 0..2 {
        app.dispatch(&Note::Succeed).to(["high"]).await.unwrap();
    }
    worker("high", 2).await.unwrap();
    let told = take();
    let limited = told.iter().filter(|text| *text == "high is limited").count();
    assert!((1..4).contains(&limited), "{told:?}");
}

#[derive(Clone, Default)]
struct Seen(Arc<std::sync::Mutex<Vec<&'static str>>>);

impl Seen {
    fn add(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn seen(note: Note, State(seen): State<Seen>) -> Result<(), HandlerError> {
    seen.add("handled");
    if note == Note::NeverTryAgain { Err(HandlerError::unrecoverable("never")) } else { Ok(()) }
}

async fn reset(states: States) -> Result<(), HandlerError> {
    let seen = states.created::<Seen>().ok_or("no state")?;
    seen.add("reset");
    let resets = seen.0.lock().unwrap().iter().filter(|what| **what == "reset").count();
    if resets == 3 { panic!("the third time") } else { Ok(()) }
}

#[tokio::test(start_paused = true)]
async fn what_handlers_share_is_reset_after_each_message_and_a_worker_that_cannot_do_so_stops() {
    let noted = Seen::default();
    let app = App::builder().config_text(CONFIG).state(noted.clone()).handle(seen).reset(reset);
    let app = app.test().unwrap_or_else(|error| panic!("{error}"));
    for note in [Note::Succeed, Note::NeverTryAgain, Note::Succeed, Note::Succeed, Note::Succeed] {
        dispatch(&app, note).await;
    }
    let summary = app.worker(["low"]).spawn().unwrap().wait().await.unwrap();
    assert_eq!((summary.handled, summary.failed, summary.reason), (2, 1, StopReason::NotReset));
    assert_eq!(noted.take(), ["handled", "reset"].repeat(3));
    assert_eq!(app.queued::<Note>().iter().filter(|note| note.transport.as_deref() == Some("low")).count(), 2);
    app.worker(["low"]).no_reset().limit(2).spawn().unwrap().wait().await.unwrap();
    assert_eq!(noted.take(), ["handled"; 2]);
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

/// The keepalive interval that was asked for is longer than `redeliver_timeout`.
#[tokio::test(start_paused = true)]
async fn a_short_redeliver_timeout_shortens_the_keepalive() {
    let folder = tempfile::tempdir().unwrap();
    let low = "transports: {low: 'in-memory://?redeliver_timeout=4'}\nrouting: {Note: low}";
    let config = format!("state_dir: '{}'\n{low}", folder.path().display());
    let app = App::builder().config_text(&config).handle(note).build().unwrap();
    app.dispatch(&Note::TakeLong).await.unwrap();
    let worker = || app.worker(["low"]).keepalive(5 * SECOND).limit(1).spawn().unwrap();
    let (first, second) = (worker(), worker());
    tokio::time::sleep(5 * MINUTE).await;
    first.request_stop();
    second.request_stop();
    let handled = [first.wait().await.unwrap().handled, second.wait().await.unwrap().handled];
    assert_eq!(handled.iter().sum::<u64>(), 1, "delivered to both: {handled:?}");
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
