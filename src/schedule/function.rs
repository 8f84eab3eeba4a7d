//! The run of a job that is a Rust function.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::bus::Bus;
use crate::handler::{CancellationToken, Due, Handler, HandlerContext, HandlerError, Handlers, Output, caught};
use crate::message::Envelope;

/// How long a function that is asked to end may take before it is dropped, as with programs.
const GRACE: Duration = Duration::from_secs(5);
/// How long is waited for a function to be dropped. One that computes cannot be.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);

type Lines = Output<fn(&str)>;

tokio::task_local! {
    /// The output of the run whose function this task calls.
    static OUTPUT: Arc<Lines>;
}

/// The functions of an application's jobs.
#[derive(Clone, Default)]
pub(crate) struct Functions {
    by_name: Arc<HashMap<String, Arc<dyn Handler>>>,
    /// They have the states.
    handlers: Arc<Handlers>,
}

/// A function that runs.
pub(super) struct Running {
    pub task: JoinHandle<Result<Value, HandlerError>>,
    output: Arc<Lines>,
    cancellation: CancellationToken,
}

impl Functions {
    pub(crate) fn new(by_name: HashMap<String, Arc<dyn Handler>>, handlers: Arc<Handlers>) -> Self {
        Self { by_name: Arc::new(by_name), handlers }
    }

    /// Calls the function of a job. `None` where there is none of this name.
    pub(super) fn start(&self, job: &str, due: Due, bus: &Bus) -> Option<Running> {
        let function = Arc::clone(self.by_name.get(job)?);
        let (handlers, bus) = (Arc::clone(&self.handlers), bus.clone());
        let (output, cancellation) = (Arc::new(Lines::new(|_| ())), CancellationToken::new());
        let token = cancellation.clone();
        let called = async move {
            // A job has no message; arguments that need one are refused by the compiler.
            let envelope = Envelope::from_json("", "null");
            let extensions: [&(dyn Any + Send + Sync); 2] = [&bus, &due];
            let context = HandlerContext::new(&envelope, &handlers.states, &token, &extensions);
            let called = caught(async { function.handle(&context).await }).await;
            called.unwrap_or_else(|text| Err(HandlerError::failed(format!("it panicked: {text}"))))
        };
        Some(Running { task: tokio::spawn(OUTPUT.scope(Arc::clone(&output), called)), output, cancellation })
    }
}

impl Running {
    /// Asks the function to end, and drops it after a while. Returns whether it has ended: one that computes, and never waits for
    /// anything, ends with the process alone.
    pub(super) async fn end(&mut self) -> bool {
        self.cancellation.cancel();
        if timeout(GRACE, &mut self.task).await.is_ok() {
            return true;
        }
        self.task.abort();
        timeout(DROPPED_WITHIN, &mut self.task).await.is_ok()
    }

    /// Adds what the function has returned to its output. Returns it as text, if there is something.
    pub(super) fn returned(&self, value: &Value) -> Option<String> {
        let text = match value {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        text.lines().for_each(|line| self.output.line(line.as_bytes()));
        Some(text)
    }

    /// The last lines of its output.
    pub(super) fn last_lines(&self) -> String {
        self.output.last_lines()
    }
}

/// Keeps the events of a job's function as the output of its run.
pub(crate) fn capture<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Capture.with_filter(LevelFilter::INFO)
}

struct Capture;

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let _ = OUTPUT.try_with(|output| {
            let mut text = Text::default();
            event.record(&mut text);
            let Text { message, fields } = text;
            output.line(format!("{} {message}{fields}", event.metadata().level()).as_bytes());
        });
    }
}

/// An event as a line: its message, and its fields after that.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
