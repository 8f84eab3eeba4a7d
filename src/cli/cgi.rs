//! `minutely cgi`: answer one request, for a web server that runs CGI programs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::requests::service;
use super::signals::Signals;
use super::{App, End, Failure, GlobalArgs, Result};
use crate::serve::Reply;
use crate::serve::cgi::{self, Step};

/// What this command is called.
pub(super) const NAMES: &[&str] = &["cgi"];

/// How long may go on what was not done in time for the answer.
const FINISH_TIMEOUT: Duration = Duration::from_secs(600);
/// The same, after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Answers the same requests as `minutely serve`. The path is what follows the program's name: /cgi-bin/minutely.cgi/cron. A web \
server starts it, by a file in its folder for CGI programs, which it may execute:

  #!/bin/sh
  exec /home/me/app/minutely --config /home/me/app/config.yaml cgi

Apache hands the token on only with `CGIPassAuth On`, in .htaccess for example.")]
pub(super) struct Args {}

pub(super) async fn run(app: &App, _: &Args, global: &GlobalArgs) -> Result<End> {
    let step = cgi::step();
    if let Step::NoRequest = step {
        let text =
            "`cgi` is started by a web server, which sets REQUEST_METHOD; see `--help`. `serve` answers by itself";
        return Err(Failure::Usage(text.to_owned()));
    }
    let service = Arc::new(service(app, NAMES, global)?);
    let Step::Second(admitted) = step else {
        cgi::write(&cgi::admit(&service));
        return Ok(End::Well);
    };
    let mut signals = Signals::listen()?;
    let answer = async {
        cgi::write(&cgi::respond(&service, admitted).await);
        // What takes longer than the web server waits.
        service.finish(FINISH_TIMEOUT).await
    };
    let mut answer = pin!(answer);
    tokio::select! {
        done = &mut answer => if !done {
            tracing::error!("a request took too long, and was interrupted");
        },
        () = signals.next() => {
            service.stop();
            // The web server may still pass on what is said within a moment.
            let _ = timeout(STOP_TIMEOUT, answer).await;
        }
    }
    Ok(End::Well)
}

/// Answers a request with what keeps this program from looking at it. What exactly is wrong is told to standard error, which
/// the web server logs.
pub(super) fn fail() {
    if !matches!(cgi::step(), Step::NoRequest) {
        cgi::write(&Reply::error(
            500,
            "this program cannot start; the log of the web server says why, and so does `config check`",
        ));
    }
}
