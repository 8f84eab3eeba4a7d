//! Which request is for what, who may ask, and how long the answer may take.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::reply::Reply;
use super::token::Token;
use super::{consume, cron, dispatch};
use crate::app::App;
use crate::config::ServeConfig;
use crate::message::TraceContext;
use crate::schedule::Scheduler;

/// What starts the jobs that requests may start; or why there is none.
pub(crate) type NewScheduler = Box<dyn Fn() -> Result<Scheduler, String> + Send + Sync>;

/// Answers requests.
pub(crate) struct Service {
    pub(super) app: App,
    pub(super) new_scheduler: NewScheduler,
    /// Of several requests to run jobs, one at a time looks.
    pub(super) cron_turn: Mutex<()>,
    token: Token,
    /// Whether the program is about to end; and who works for a request has a receiver of it.
    stopping: watch::Sender<bool>,
}

/// There is no token, so nothing is answered.
#[derive(Debug, Error)]
#[error(
    "serve.token is missing: requests must show it. Set `serve: {{token: '%env(MINUTELY_TOKEN)%'}}` in the configuration, and \
     this variable, in .env.local for example, to what `openssl rand -hex 32` prints"
)]
pub(crate) struct NoToken;

/// What a request begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// The header `Authorization`.
    pub(crate) authorization: Option<&'a [u8]>,
    /// How long the body is, if that is known.
    pub(crate) length: Option<u64>,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Does it answer?
    Health,
    /// Run what is due.
    Cron,
    /// Consume for a moment.
    Consume,
    /// Dispatch a message.
    Dispatch,
}

const ENDPOINTS: &[Endpoint] = &[Endpoint::Health, Endpoint::Cron, Endpoint::Consume, Endpoint::Dispatch];

impl Endpoint {
    /// The one at this path.
    pub(super) fn at(path: &str) -> Option<Self> {
        ENDPOINTS.iter().copied().find(|endpoint| endpoint.path() == path)
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Cron => "/cron",
            Self::Consume => "/api/_action/message-queue/consume",
            Self::Dispatch => "/dispatch",
        }
    }

    /// The methods, as the header `Allow` lists them.
    fn methods(self) -> &'static str {
        match self {
            Self::Health => "GET, HEAD",
            // Many pingers can only get. Nothing gets by accident, as the token is in a header.
            Self::Cron => "POST, GET",
            Self::Consume | Self::Dispatch => "POST",
        }
    }
}

impl Service {
    /// Fails without a token.
    pub(crate) fn new(app: &App, new_scheduler: NewScheduler) -> Result<Self, NoToken> {
        let token = Token::new(app.config.serve.token.clone().ok_or(NoToken)?);
        let stopping = watch::Sender::new(false);
        Ok(Self { app: app.clone(), new_scheduler, cron_turn: Mutex::new(()), token, stopping })
    }

    pub(crate) fn config(&self) -> &ServeConfig {
        &self.app.config.serve
    }

    /// What a request asks for; or the answer, where its body is of no interest.
    pub(crate) fn admit(&self, head: Head<'_>) -> Result<Endpoint, Reply> {
        let Head { method, path, authorization, length } = head;
        let endpoint = Endpoint::at(path);
        if endpoint != Some(Endpoint::Health) {
            self.authorize(authorization)?;
        }
        let Some(endpoint) = endpoint else {
            let paths: Vec<&str> = ENDPOINTS.iter().map(|endpoint| endpoint.path()).collect();
            return Err(Reply::error(404, format!("there is nothing at this path; there is {}", paths.join(", "))));
        };
        if endpoint.methods().split(", ").all(|allowed| allowed != method) {
            let text = format!("{path} takes {}", endpoint.methods().replace(", ", " or "));
            return Err(Reply::error(405, text).with("Allow", endpoint.methods()));
        }
        if length.is_some_and(|length| length > self.config().max_body as u64) {
            return Err(self.too_large());
        }
        Ok(endpoint)
    }

    fn authorize(&self, authorization: Option<&[u8]>) -> Result<(), Reply> {
        let refused = match authorization {
            Some(header) if self.token.is_shown_by(header) => return Ok(()),
            Some(_) => {
                "the token is wrong: the header must be `Authorization: Bearer TOKEN`, with serve.token of the \
                        configuration"
            }
            None => {
                "the header `Authorization: Bearer TOKEN` is missing, with serve.token of the configuration. If it was sent, \
                 your web server did not hand on the header; for Apache: `CGIPassAuth On` in .htaccess"
            }
        };
        Err(Reply::error(401, refused).with("WWW-Authenticate", "Bearer"))
    }

    pub(crate) fn too_large(&self) -> Reply {
        Reply::error(413, format!("the body is longer than {} bytes (serve.max_body)", self.config().max_body))
    }

    pub(crate) fn too_slow(&self) -> Reply {
        let limit = self.config().read_timeout;
        Reply::error(408, format!("the request did not arrive within {limit:?} (serve.read_timeout)"))
    }

    /// Does what was asked for. What takes too long for an answer goes on, and so does what nobody waits for any more.
    /// `trace` is what the request belongs to.
    pub(crate) async fn respond(
        self: &Arc<Self>,
        endpoint: Endpoint,
        body: Bytes,
        trace: Option<TraceContext>,
    ) -> Reply {
        let (service, at_work) = (Arc::clone(self), self.stopping.subscribe());
        let work = tokio::spawn(async move {
            let reply = match endpoint {
                Endpoint::Health => Reply::new(200, json!({ "status": "ok" })),
                Endpoint::Cron => cron::run(&service).await,
                Endpoint::Consume => consume::run(&service, &body).await,
                Endpoint::Dispatch => dispatch::run(&service, &body, trace).await,
            };
            drop(at_work);
            reply
        });
        let limit = self.config().request_timeout;
        match timeout(limit, work).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                tracing::error!(path = endpoint.path(), %error, "a request could not be answered");
                Reply::error(500, "something went wrong here; the log under state_dir says what")
            }
            Err(_) => {
                tracing::warn!(path = endpoint.path(), "not done within {limit:?}; it goes on");
                let text = format!(
                    "not done within {limit:?} (serve.request_timeout); it may still be done, so do not repeat it at once"
                );
                Reply::error(504, text)
            }
        }
    }

    /// From now on, requests only finish what they have in hand.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Until the program is about to end.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }

    /// Waits until nothing is done for requests any more, for at most this long. `false` if something goes on. Then ends what
    /// handlers have kept for the messages of further requests.
    pub(crate) async fn finish(&self, at_most: Duration) -> bool {
        let is_done = timeout(at_most, pin!(self.stopping.closed())).await.is_ok();
        self.app.handlers.worker_stopped().await;
        is_done
    }
}
