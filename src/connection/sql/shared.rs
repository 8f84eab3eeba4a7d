//! The one connection that a process has to an SQL server.
//!
//! A task holds the connection and performs requests one after the other. So a caller that stops waiting leaves nothing
//! half done, and while the task is idle, it can listen to the server.
//!
//! The first request opens the connection, and the first request after it broke opens it again. A request in progress
//! when it breaks fails. A request that meets another connection's lock is repeated with random pauses, up to a time
//! limit. That is safe because it has changed nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::connection::SqlConnection;
use super::error::{Fault, SqlError};
use super::patience::Patience;
use super::session::Session;
use super::statement::Row;
use crate::connection::Location;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one attempt at a request may take: longer than the server lets it wait for a lock. Ends the wait for a
/// server that is gone without closing the connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection that was idle for longer is checked before use: servers and routers drop idle connections.
const IDLE: Duration = Duration::from_secs(1);
/// How long that check may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a server. Opens with the first request, and closes when it is dropped.
pub(crate) struct SharedConnection<S: Session> {
    settings: Arc<S::Settings>,
    location: Location,
    jobs: Mutex<Option<mpsc::UnboundedSender<Command<S>>>>,
}

/// What the task has to do.
enum Command<S: Session> {
    /// Perform a request.
    Perform(Job<S>),
    /// Close the connection until the next request.
    CloseIdle,
}

struct Job<S: Session> {
    request: S::Request,
    since: Instant,
    answer: oneshot::Sender<Result<Vec<Row>, SqlError>>,
}

impl<S: Session> SharedConnection<S> {
    /// A connection that is not open yet.
    pub(crate) fn new(settings: S::Settings, location: Location) -> Self {
        Self { settings: Arc::new(settings), location, jobs: Mutex::new(None) }
    }

    /// The server, without the database.
    pub(crate) fn server(&self) -> &str {
        self.location.server()
    }

    /// The settings for connecting.
    #[cfg(feature = "postgres")]
    pub(crate) fn settings(&self) -> &S::Settings {
        &self.settings
    }

    fn submit(&self, job: Job<S>) {
        let mut jobs = self.jobs();
        let mut command = Command::Perform(job);
        if let Some(open) = jobs.as_ref() {
            match open.send(command) {
                Ok(()) => return,
                // The task's runtime is gone, and the task with it.
                Err(mpsc::error::SendError(unsent)) => command = unsent,
            }
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(command);
        *jobs = Some(sender);
        let (settings, location) = (Arc::clone(&self.settings), self.location.clone());
        tokio::spawn(Task { settings, location, session: None, used: Instant::now(), refused: None }.run(receiver));
    }

    fn jobs(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Command<S>>>> {
        // At worst, a panic while the lock is held leaves a superfluous task.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Session> SqlConnection for SharedConnection<S> {
    type Request = S::Request;

    /// Performs a request to its end, even if the caller stops waiting.
    async fn perform(&self, request: S::Request) -> Result<Vec<Row>, SqlError> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job { request, since: Instant::now(), answer });
        answered.await.unwrap_or_else(|_| Err(own_error(&self.location, "the program is ending")))
    }

    fn location(&self) -> &str {
        self.location.as_str()
    }

    fn error(&self, error: sqlx::Error) -> SqlError {
        driver_error::<S>(&self.location, &error)
    }

    fn close_idle(&self) {
        if let Some(jobs) = self.jobs().as_ref() {
            let _ = jobs.send(Command::CloseIdle);
        }
    }
}

/// An error of the driver.
fn driver_error<S: Session>(location: &Location, error: &sqlx::Error) -> SqlError {
    SqlError::new(location.as_str(), plainly(error), S::fault(error), S::advice(error))
}

/// An error found here.
fn own_error(location: &Location, reason: &'static str) -> SqlError {
    SqlError::new(location.as_str(), reason, Fault::Broken, "")
}

/// An error without the text that sqlx adds to each.
fn plainly(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} ({code})", error.message()),
            None => error.message().to_owned(),
        },
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        error => error.to_string(),
    }
}

/// The state of the task.
struct Task<S: Session> {
    settings: Arc<S::Settings>,
    location: Location,
    session: Option<S>,
    /// When the session was last seen to work.
    used: Instant,
    /// When connecting last failed, and why.
    refused: Option<(Instant, SqlError)>,
}

impl<S: Session> Task<S> {
    async fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Command<S>>) {
        loop {
            let command = tokio::select! {
                command = jobs.recv() => command,
                () = ended(self.session.as_mut()) => {
                    self.session = None;
                    continue;
                }
            };
            match command {
                // The caller stopped waiting before the request was started.
                Some(Command::Perform(job)) if job.answer.is_closed() => {}
                Some(Command::Perform(job)) => {
                    let answer = self.answer(&job).await;
                    let _ = job.answer.send(answer);
                }
                Some(Command::CloseIdle) => self.close().await,
                // The connection is no longer used.
                None => return self.close().await,
            }
        }
    }

    async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = timeout(CLOSE_TIMEOUT, session.close()).await;
        }
    }

    /// Tries until the request succeeds, fails for another reason than a lock, or has taken too long.
    async fn answer(&mut self, job: &Job<S>) -> Result<Vec<Row>, SqlError> {
        let patience = Patience::new();
        loop {
            let answer = self.attempt(job).await;
            if !patience.tries_again(&answer).await {
                return answer;
            }
        }
    }

    async fn attempt(&mut self, job: &Job<S>) -> Result<Vec<Row>, SqlError> {
        // Taken out, so that it is dropped if the request is aborted.
        let mut session = self.session(job.since).await?;
        let limit = if S::takes_long(&job.request) { Duration::MAX } else { REQUEST_TIMEOUT };
        let error = match timeout(limit, session.perform(&job.request)).await {
            Ok(Ok(rows)) => {
                self.keep(session);
                return Ok(rows);
            }
            Ok(Err(error)) => driver_error::<S>(&self.location, &error),
            Err(_) => own_error(&self.location, "no response within a minute"),
        };
        if error.fault() != Fault::Broken && session.is_open() {
            self.keep(session);
        }
        Err(error)
    }

    fn keep(&mut self, session: S) {
        self.session = Some(session);
        self.used = Instant::now();
    }

    /// The open session, or a new one.
    async fn session(&mut self, since: Instant) -> Result<S, SqlError> {
        if let Some(mut session) = self.session.take()
            && (self.used.elapsed() < IDLE || matches!(timeout(PING_TIMEOUT, session.ping()).await, Ok(Ok(()))))
        {
            return Ok(session);
        }
        // Callers that waited while connecting failed do not wait for it to fail again.
        if let Some((at, error)) = &self.refused
            && *at > since
        {
            return Err(error.clone());
        }
        let error = match timeout(CONNECT_TIMEOUT, S::connect(&self.settings)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => driver_error::<S>(&self.location, &error),
            Err(_) => own_error(&self.location, "no connection within 10 seconds"),
        };
        self.refused = Some((Instant::now(), error.clone()));
        Err(error)
    }
}

/// Returns when a session has ended by itself. Never returns if there is none.
async fn ended<S: Session>(session: Option<&mut S>) {
    match session {
        Some(session) => session.idle().await,
        None => std::future::pending().await,
    }
}
