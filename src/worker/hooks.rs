//! Hooks of the configuration: programs and URLs that a worker tells what happens.
//!
//! A hook never delays a message. Each has a task of its own, which makes one call at a time; what happens during a call, and
//! until [`every`](HookConfig) has passed, waits for the next call, which tells all of it at once. The first
//! [`MOST_EVENTS`] are told one by one, as are the worker's start and end, and the others are counted.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock;
use crate::config::{Config, HandlerAction, HandlerConfig, HookConfig};
use crate::events::{Event, EventMessage};
use crate::handler::{CancellationToken, Handler, HandlerContext, States, caught, from_config};
use crate::message::{Envelope, ErrorDetailsStamp};

/// The most events that one call tells one by one.
const MOST_EVENTS: usize = 50;

/// The longest body that is told, in bytes.
const LONGEST_BODY: usize = 64 * 1024;

/// The longest text of an error that is told, in bytes.
const LONGEST_ERROR: usize = 8 * 1024;

/// How long an ending worker waits for its hooks.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// What hooks get as the type of what they are sent.
const TYPE: &str = "minutely.events";

/// The hooks of an application.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Vec<Hook>);

#[derive(Clone)]
struct Hook {
    config: HookConfig,
    call: Arc<dyn Handler>,
}

impl Hooks {
    /// Those of the configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self(
            config
                .hooks
                .iter()
                .map(|hook| Hook { config: hook.clone(), call: call(&hook.action, &config.dir) })
                .collect(),
        )
    }

    /// Starts their tasks. `worker` names the worker.
    pub(super) fn start(&self, worker: &str) -> RunningHooks {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let about = json!({ "worker": worker, "host": host, "pid": std::process::id() });
        let (mut queues, mut tasks) = (Vec::new(), JoinSet::new());
        for hook in &self.0 {
            let queue = Arc::new(Queue { hook: hook.clone(), waiting: Mutex::default(), changed: Notify::new() });
            tasks.spawn(Arc::clone(&queue).call_until_closed(about.clone()));
            queues.push(queue);
        }
        RunningHooks { queues, tasks: Mutex::new(tasks) }
    }
}

fn call(action: &HandlerAction, dir: &Path) -> Arc<dyn Handler> {
    from_config(
        &HandlerConfig { action: action.clone(), from_transports: Vec::new(), bus: None, priority: 0, batch: None },
        dir,
    )
}

/// The hooks of a worker that runs.
pub(super) struct RunningHooks {
    queues: Vec<Arc<Queue>>,
    tasks: Mutex<JoinSet<()>>,
}

impl RunningHooks {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Notes an event for the hooks that want it. Never waits.
    pub(super) fn tell(&self, event: &Event<'_>) {
        for queue in &self.queues {
            queue.add(event);
        }
    }

    /// Makes the last calls, and waits for them, but not for long.
    pub(super) async fn finish(&self) {
        for queue in &self.queues {
            queue.waiting().is_closed = true;
            queue.changed.notify_one();
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = timeout(LAST_CALLS, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("hooks have not ended within {} s, and are ended", LAST_CALLS.as_secs());
        }
    }
}

/// What waits for a hook.
struct Queue {
    hook: Hook,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    events: Vec<Value>,
    /// How many more there were.
    left_out: u64,
    /// The worker ends.
    is_closed: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, event: &Event<'_>) {
        let Some(name) = name_of(event).filter(|name| self.hook.config.on.iter().any(|on| on == name)) else { return };
        let mut waiting = self.waiting();
        // One of each, and what nobody wants to miss.
        let is_of_worker = matches!(event, Event::WorkerStarted { .. } | Event::WorkerStopped { .. });
        if is_of_worker || waiting.events.len() < MOST_EVENTS {
            waiting.events.push(record(name, event, self.hook.config.include_body));
        } else {
            waiting.left_out += 1;
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The events for the next call, when there are any. `None` when there are none and the worker ends.
    async fn next(&self) -> Option<(Vec<Value>, u64)> {
        loop {
            {
                let mut waiting = self.waiting();
                if !waiting.events.is_empty() {
                    return Some((std::mem::take(&mut waiting.events), std::mem::take(&mut waiting.left_out)));
                }
                if waiting.is_closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    async fn call_until_closed(self: Arc<Self>, about: Value) {
        while let Some((events, left_out)) = self.next().await {
            let begun = Instant::now();
            let mut body = about.clone();
            body["events"] = events.into();
            body["left_out"] = left_out.into();
            self.call(&body).await;
            // An ending worker does not wait.
            let pause = sleep_until(begun + self.hook.config.every);
            let closed = async {
                while !self.waiting().is_closed {
                    self.changed.notified().await;
                }
            };
            tokio::select! {
                () = pause => {}
                () = closed => {}
            }
        }
    }

    async fn call(&self, body: &Value) {
        let envelope = Envelope::from_json(TYPE, body.to_string());
        let (states, cancellation) = (States::default(), CancellationToken::default());
        let context = HandlerContext::new(&envelope, &states, &cancellation, &[]);
        let called =
            caught(timeout(self.hook.config.timeout + Duration::from_secs(10), self.hook.call.handle(&context)));
        let error = match called.await {
            Ok(Ok(Ok(_))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) => "it has not ended in time".to_owned(),
            Err(panic) => panic,
        };
        tracing::warn!(hook = self.hook.call.name(), error, "a hook has failed; what it was told is not told again");
    }
}

/// The name of an event, if hooks can have it.
fn name_of(event: &Event<'_>) -> Option<&'static str> {
    Some(match event {
        Event::MessageFailed { .. } => "failed",
        Event::MessageRetried { .. } => "retried",
        Event::MessageGivenUp { .. } => "parked",
        Event::RateLimited { .. } => "rate_limited",
        Event::WorkerStarted { .. } => "worker_started",
        Event::WorkerStopped { .. } => "worker_stopped",
        _ => return None,
    })
}

/// An event as hooks get it.
fn record(name: &str, event: &Event<'_>, include_body: bool) -> Value {
    let time = chrono::DateTime::<Utc>::from(clock::now()).to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut record = Map::from_iter([("event".to_owned(), name.into()), ("time".to_owned(), time.into())]);
    let more = match event {
        Event::MessageFailed { message, error, will_retry } => {
            add_message(&mut record, message, error, include_body);
            json!({ "will_retry": will_retry })
        }
        Event::MessageRetried { message, error, delay } => {
            add_message(&mut record, message, error, include_body);
            json!({ "delay": u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) })
        }
        Event::MessageGivenUp { message, error, kept_on } => {
            add_message(&mut record, message, error, include_body);
            json!({ "kept_on": kept_on })
        }
        Event::RateLimited { transport, wait } => {
            json!({ "transport": transport, "wait": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) })
        }
        Event::WorkerStarted { transports } => json!({ "transports": transports }),
        Event::WorkerStopped { handled, failed, reason } => {
            json!({ "handled": handled, "failed": failed, "reason": reason })
        }
        _ => Value::Null,
    };
    if let Value::Object(more) = more {
        record.extend(more);
    }
    record.into()
}

fn add_message(record: &mut Map<String, Value>, message: &EventMessage, error: &ErrorDetailsStamp, include_body: bool) {
    let text = &error.exception_message;
    let error = json!({
        "class": error.exception_class,
        "code": error.exception_code,
        "message": text[..text.floor_char_boundary(LONGEST_ERROR)],
    });
    let about: [(&str, Value); 5] = [
        ("transport", message.transport.as_str().into()),
        ("id", message.id.as_str().into()),
        ("type", message.envelope.message_type().into()),
        ("attempt", message.attempt().into()),
        ("error", error),
    ];
    record.extend(about.map(|(name, value)| (name.to_owned(), value)));
    if include_body {
        let body = message.envelope.body();
        // One that is too long is told by its length.
        let (name, value): (&str, Value) = if body.len() > LONGEST_BODY {
            ("body_length", body.len().into())
        } else {
            let text = || String::from_utf8_lossy(body).into_owned().into();
            ("body", serde_json::from_slice(body).unwrap_or_else(|_| text()))
        };
        record.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::config::ExecConfig;
    use crate::handler::HandlerError;

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes a second for each call, and notes what it gets.
    #[derive(Default)]
    struct Noting(Mutex<Vec<Value>>);

    #[async_trait]
    impl Handler for Noting {
        fn name(&self) -> &str {
            "noting"
        }

        async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
            self.0.lock().unwrap().push(serde_json::from_slice(context.envelope().body()).unwrap());
            tokio::time::sleep(SECOND).await;
            Err(HandlerError::failed("it fails, which nobody minds"))
        }
    }

    fn hooks(on: &[&str], include_body: bool) -> (Hooks, Arc<Noting>) {
        let noting = Arc::new(Noting::default());
        let config = HookConfig {
            on: on.iter().map(|on| (*on).to_owned()).collect(),
            action: HandlerAction::Exec(ExecConfig { exec: Vec::new(), timeout: None }),
            timeout: 5 * SECOND,
            every: 10 * SECOND,
            include_body,
        };
        (Hooks(vec![Hook { config, call: Arc::clone(&noting) as Arc<dyn Handler> }]), noting)
    }

    fn message(body: &str) -> EventMessage {
        let envelope = Envelope::from_json(r"App\Mail", body.to_owned());
        EventMessage { id: "7".to_owned(), transport: "mail".to_owned(), envelope }
    }

    fn error() -> ErrorDetailsStamp {
        ErrorDetailsStamp {
            exception_class: "E".to_owned(),
            exception_code: 3.into(),
            exception_message: "broken".to_owned(),
            flatten_exception: Value::Null,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_events_becomes_a_few_calls_and_none_is_uncounted() {
        let (hooks, noted) = hooks(&["failed"], false);
        let running = hooks.start("w");
        let (message, error) = (message(r#"{"secret":1}"#), error());
        let failed = Event::MessageFailed { message: &message, error: &error, will_retry: true };
        running.tell(&failed);
        tokio::time::sleep(SECOND / 2).await;
        for _ in 0..200 {
            running.tell(&failed);
            running.tell(&Event::WorkerRunning { is_idle: false });
        }
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(noted.0.lock().unwrap().len(), 1, "the next call is ten seconds after the first");
        tokio::time::sleep(5 * SECOND).await;
        running.tell(&failed);
        running.finish().await;
        let calls = std::mem::take(&mut *noted.0.lock().unwrap());
        let counts: Vec<(usize, u64)> = calls
            .iter()
            .map(|call| (call["events"].as_array().unwrap().len(), call["left_out"].as_u64().unwrap()))
            .collect();
        assert_eq!(counts, [(1, 0), (50, 150), (1, 0)], "the last call does not wait");
        let event = &calls[0]["events"][0];
        assert_eq!((&event["event"], &event["type"]), (&"failed".into(), &r"App\Mail".into()));
        assert_eq!((&event["attempt"], &event["will_retry"]), (&1.into(), &true.into()));
        assert_eq!(event["error"], json!({ "class": "E", "code": 3, "message": "broken" }));
        assert!(!calls[0].to_string().contains("secret"), "{event}");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_told_only_where_they_are_asked_for_and_not_if_they_are_long() {
        let (hooks, noted) = hooks(&["parked"], true);
        let running = hooks.start("w");
        let error = error();
        for body in [r#"{"a":1}"#.to_owned(), "x".repeat(LONGEST_BODY + 1)] {
            let message = message(&body);
            running.tell(&Event::MessageGivenUp { message: &message, error: &error, kept_on: Some("failed") });
        }
        running.finish().await;
        let calls = std::mem::take(&mut *noted.0.lock().unwrap());
        let events = calls[0]["events"].as_array().unwrap();
        assert_eq!((&events[0]["body"], &events[0]["kept_on"]), (&json!({ "a": 1 }), &"failed".into()));
        assert_eq!(events[1]["body_length"], LONGEST_BODY + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_worker_is_told_whatever_else_happens() {
        let (hooks, noted) = hooks(&["failed", "worker_stopped"], false);
        let running = hooks.start("w");
        let (message, error) = (message("{}"), error());
        for _ in 0..60 {
            running.tell(&Event::MessageFailed { message: &message, error: &error, will_retry: true });
        }
        running.tell(&Event::WorkerStopped { handled: 0, failed: 60, reason: "asked" });
        running.finish().await;
        let calls = std::mem::take(&mut *noted.0.lock().unwrap());
        let last = calls[0]["events"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["event"], &calls[0]["left_out"]), (&"worker_stopped".into(), &10.into()));
    }
}
