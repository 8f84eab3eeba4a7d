//! Answers requests: runs the jobs that are due, consumes for a moment, dispatches messages.
//!
//! | question | module |
//! | --- | --- |
//! | Which request is for what, and who may ask? | `service` |
//! | What does each do? | `cron`, `consume`, `dispatch` |
//! | How does a request come in? | `server` (sockets, for `minutely serve`), `cgi` (a process for each request) |
//!
//! `service` knows neither sockets nor CGI: it takes a request's head, then its body, and gives a [`Reply`]. The head comes
//! first, so that the body of a request that is refused is not read.
//!
//! What a request has begun is finished, also when its client goes away: it runs in a task of its own, and the end of the
//! program waits for it, for a while.

pub(crate) mod cgi;
mod consume;
mod cron;
mod dispatch;
mod reply;
#[cfg(feature = "serve")]
mod server;
mod service;
mod token;

pub(crate) use reply::Reply;
#[cfg(feature = "serve")]
pub(crate) use server::Server;
pub(crate) use service::Service;
