//! A worker inside the application's own process.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::task::JoinHandle;

use super::App;
use crate::config::{ConsumeOptions, Problem};
use crate::error::Error;
use crate::transport::{Received, TransportError, Transports};
use crate::worker::{InProcessWorker, Presence, StopReason, StopToken, Taken, Worker, WorkerSummary, only, owner};

/// How often a message that is handled by itself is kept alive; more often where `redeliver_timeout` is short.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A worker to be started in this process. Created by [`App::worker`].
#[must_use = "nothing is consumed until the worker is started"]
pub struct WorkerBuilder {
    app: App,
    transports: Vec<String>,
    options: ConsumeOptions,
    is_brief: bool,
}

/// A worker that runs in this process. If this is dropped, it goes on until the runtime ends.
#[must_use = "the messages in flight of a worker that is not stopped are delivered again"]
pub struct WorkerHandle {
    stop: StopToken,
    task: JoinHandle<Result<WorkerSummary, TransportError>>,
}

impl App {
    /// A worker in this process, which consumes these transports. The first one has priority.
    ///
    /// ```no_run
    /// # async fn example(app: minutely::App) -> Result<(), minutely::Error> {
    /// let worker = app.worker(["mail", "thumbs"]).concurrency(4).spawn()?;
    /// // … the application runs …
    /// let summary = worker.stop().await?;
    /// println!("{} handled, {} failed", summary.handled, summary.failed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Messages that this process dispatches wake it at once. `status` shows it separately from the workers that a
    /// supervisor starts: it has no slot, and does not count towards their `max`. `stop-workers` does not stop it,
    /// because nothing would start it again.
    ///
    /// If the process is killed, the messages that this worker was handling are delivered again after the transport's
    /// `redeliver_timeout`, an hour by default (on `amqp:` at once, because the broker notices). Messages of workers that a
    /// supervisor starts are put back at its next tick.
    pub fn worker<T: Into<String>>(&self, transports: impl IntoIterator<Item = T>) -> WorkerBuilder {
        let transports = transports.into_iter().map(Into::into).collect();
        WorkerBuilder { app: self.clone(), transports, options: ConsumeOptions::default(), is_brief: false }
    }

    /// A worker that consumes these transports, of those with several queues as far as the options say.
    pub(crate) fn new_worker(&self, transports: &[String], options: ConsumeOptions) -> Result<Worker, Error> {
        if !self.handles_messages() {
            return Err(Error::NoHandler);
        }
        let narrowed = self.narrowed_to(transports, &options.queues)?;
        let (bus, heartbeats) = (self.bus.clone(), self.heartbeats.clone());
        let parts = &self.worker_parts;
        Ok(Worker::new(&self.config, bus, &narrowed, parts, heartbeats, transports, options)?)
    }

    /// A worker that handles one message, which was taken from this transport, keeps it alive, and then stops.
    pub(crate) fn worker_for(&self, transport: &str, message: Received) -> Result<(Worker, Arc<Taken>), Error> {
        let mut transports = Transports::clone(&self.transports);
        let from = transports.target(transport)?;
        let Some((only, taken)) = only(&from, message, transports.serializers()) else {
            let (what, why) = ("be consumed", "it keeps no messages");
            return Err(TransportError::Unsupported { transport: transport.to_owned(), what, why }.into());
        };
        transports.insert(only);
        let options = ConsumeOptions { limit: Some(1), keepalive: Some(KEEPALIVE), ..ConsumeOptions::default() };
        let (bus, heartbeats, consumed) = (self.bus.clone(), self.heartbeats.clone(), [transport.to_owned()]);
        let worker = Worker::new(&self.config, bus, &transports, &self.worker_parts, heartbeats, &consumed, options)?;
        Ok((worker.brief(true), taken))
    }

    /// The transports. Those to consume are limited to the given queues, if there are any.
    fn narrowed_to(&self, consumed: &[String], queues: &[String]) -> Result<Transports, Error> {
        let mut transports = Transports::clone(&self.transports);
        if queues.is_empty() {
            return Ok(transports);
        }
        for name in consumed {
            let transport = transports.target(name)?;
            let Some(of_transport) = &transport.queues else {
                let why = "--queues is for transports with several queues (amqp:)";
                return Err(Error::Queues(format!("transport \"{name}\" has one queue; {why}")));
            };
            let known = of_transport.names();
            if let Some(unknown) = queues.iter().find(|queue| !known.contains(queue)) {
                let known = known.iter().map(String::as_str);
                return Err(Error::Queues(Problem::unknown("", "queue", unknown, known).message));
            }
            transports.insert(of_transport.only(queues));
        }
        Ok(transports)
    }
}

impl WorkerBuilder {
    /// Takes all options at once, in place of those said before: as a command line has them, for example.
    pub fn options(mut self, options: ConsumeOptions) -> Self {
        self.options = options;
        self
    }

    /// Handles up to this many messages at once. Default: 1.
    pub fn concurrency(mut self, messages: usize) -> Self {
        self.options.concurrency = messages;
        self
    }

    /// Ends after this many messages.
    pub fn limit(mut self, messages: u64) -> Self {
        self.options.limit = Some(messages);
        self
    }

    /// Ends after this many failures.
    pub fn failure_limit(mut self, failures: u64) -> Self {
        self.options.failure_limit = Some(failures);
        self
    }

    /// Ends after this long.
    pub fn time_limit(mut self, time: Duration) -> Self {
        self.options.time_limit = Some(time);
        self
    }

    /// How long to wait before polling again if no message was pending and the store does not wake consumers. Default:
    /// 1 s.
    pub fn sleep(mut self, time: Duration) -> Self {
        self.options.sleep = time;
        self
    }

    /// Keeps messages alive at this interval, so that those with slow handlers are not delivered again.
    pub fn keepalive(mut self, every: Duration) -> Self {
        self.options.keepalive = Some(every);
        self
    }

    /// Moves messages that nothing here can handle to the failure transport, even if a transport has nothing else.
    pub fn move_unhandleable(mut self) -> Self {
        self.options.move_unhandleable = true;
        self
    }

    /// Does not call what [`AppBuilder::reset`](crate::AppBuilder::reset) has added.
    pub fn no_reset(mut self) -> Self {
        self.options.no_reset = true;
        self
    }

    /// Consumes only these queues, for transports with several (amqp:).
    pub fn queues<T: Into<String>>(mut self, queues: impl IntoIterator<Item = T>) -> Self {
        self.options.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Ends when no message is pending. Has no heartbeat: producers must not rely on it.
    pub(crate) fn brief(mut self) -> Self {
        self.is_brief = true;
        self
    }

    /// Starts the worker as a task of the current runtime. Fails if a transport does not exist or cannot be consumed,
    /// or if there is no handler.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> Result<WorkerHandle, Error> {
        let (worker, presence) = self.build()?;
        let stop = StopToken::new();
        let mut stopping = stop.clone();
        let task = tokio::spawn(async move {
            let summary = worker.run(&owner(), &mut stopping).await;
            drop(presence);
            summary
        });
        Ok(WorkerHandle { stop, task })
    }

    /// Works until a limit is reached, or until `shutdown` is ready; then finishes its current messages.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<WorkerSummary, Error> {
        let (worker, presence) = self.build()?;
        let (mut stop, owner) = (StopToken::new(), owner());
        let asked = stop.clone();
        let summary = {
            let mut running = pin!(worker.run(&owner, &mut stop));
            tokio::select! {
                summary = &mut running => summary,
                () = shutdown => {
                    asked.request(StopReason::Requested);
                    running.await
                }
            }
        };
        drop(presence);
        Ok(summary?)
    }

    fn build(self) -> Result<(Worker, Option<Presence>), Error> {
        let Self { app, transports, options, is_brief } = self;
        let worker = app.new_worker(&transports, options.clone())?.brief(is_brief);
        let in_process = InProcessWorker {
            transports,
            concurrency: options.concurrency,
            pid: std::process::id(),
            started_at: Utc::now(),
        };
        let presence = Presence::announce(&app.config.state_dir, &in_process);
        let presence = presence.inspect_err(|error| {
            let dir = app.config.state_dir.display();
            tracing::warn!("`status` does not show this worker, because {dir} cannot be written to: {error}");
        });
        Ok((worker, presence.ok()))
    }
}

impl WorkerHandle {
    /// Asks the worker to finish its current messages and to end, and waits until it has ended. Returns what it has
    /// done.
    pub async fn stop(self) -> Result<WorkerSummary, Error> {
        self.request_stop();
        self.wait().await
    }

    /// Asks the worker to finish its current messages and to end. Does not wait.
    pub fn request_stop(&self) {
        self.stop.request(StopReason::Requested);
    }

    /// Waits until the worker ends by itself, at a limit for example.
    pub async fn wait(self) -> Result<WorkerSummary, Error> {
        match self.task.await {
            Ok(summary) => Ok(summary?),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Error::Aborted),
            },
        }
    }

    /// Whether the worker has ended.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}
