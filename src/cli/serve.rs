//! `minutely serve`: answer requests by HTTP.

use std::net::SocketAddr;

use super::requests::service;
use super::signals::Signals;
use super::{App, End, Failure, GlobalArgs, Result};
use crate::serve::Server;

/// What this command is called.
pub(super) const NAMES: &[&str] = &["serve"];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Requests:
  POST /cron       start the jobs that are due and the workers that are needed
  POST /dispatch   dispatch a message: {\"type\": …, \"body\": …}
  POST /api/_action/message-queue/consume
                   consume for two seconds, as Shopware's endpoint: {\"receiver\": …}
  GET /health      say that the server runs

All but /health need the header `Authorization: Bearer TOKEN`, with serve.token of the configuration. There is no TLS: put a web \
server in front before anybody else may connect.

SIGTERM, SIGINT (Ctrl-C) and SIGQUIT end it when the requests at hand are answered, after 30 seconds at most. Jobs and workers that \
it has started go on.

Example:
  curl -H \"Authorization: Bearer $TOKEN\" -X POST http://127.0.0.1:8060/cron")]
pub(super) struct Args {
    /// Listen here instead of where the configuration says
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(app: &App, args: &Args, global: &GlobalArgs) -> Result<End> {
    let service = service(app, NAMES, global)?;
    let mut signals = Signals::listen()?;
    let address = args.listen.unwrap_or(app.config.serve.listen);
    let server = Server::bind(service, address)
        .await
        .map_err(|error| Failure::Failed(format!("cannot listen on {address} (serve.listen, --listen): {error}")))?;
    let address = server.address()?;
    tracing::info!("listening on http://{address}; SIGTERM or Ctrl-C stops");
    if !address.ip().is_loopback() {
        tracing::warn!(
            "others can connect to {address}, and there is no TLS: what they send, the token too, can be read on the way"
        );
    }
    if server.run(signals.next()).await {
        tracing::info!("all requests are answered");
        Ok(End::Well)
    } else {
        Err(Failure::Failed("stopped while requests were still at work".to_owned()))
    }
}
