//! One request by the Common Gateway Interface (RFC 3875): the environment and standard input have it, standard output takes
//! the answer.
//!
//! It takes two steps, because the environment has what a request's headers say, the token among them, and all that this
//! program starts inherits it. The first step looks at the request's head, and executes the program again in an environment
//! without these variables. The second one reads the body and answers.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{dup2_stderr, dup2_stdout};

use super::reply::Reply;
use super::service::{Endpoint, Head, Service};
use crate::message::TraceContext;
use crate::supervisor::REQUEST_VARIABLE;

/// What web servers set for a CGI program, besides what begins with [`PREFIXES`].
const VARIABLES: &[&str] = &[
    "AUTH_TYPE",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "CONTEXT_DOCUMENT_ROOT",
    "CONTEXT_PREFIX",
    "DOCUMENT_ROOT",
    "DOCUMENT_URI",
    "GATEWAY_INTERFACE",
    "HTTPS",
    "PATH_INFO",
    "PATH_TRANSLATED",
    "QUERY_STRING",
    "REQUEST_METHOD",
    "REQUEST_SCHEME",
    "REQUEST_URI",
    "SCRIPT_FILENAME",
    "SCRIPT_NAME",
    "SERVER_ADDR",
    "SERVER_ADMIN",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SIGNATURE",
    "SERVER_SOFTWARE",
    "UNIQUE_ID",
];
/// Request headers, what Apache passes on from before a rewriting, who asks, and TLS.
const PREFIXES: &[&str] = &["HTTP_", "REDIRECT_", "REMOTE_", "SSL_"];
/// Not of a request: by which certificates servers are verified.
const CERTIFICATES: &[&str] = &["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How far a request has come.
pub(crate) enum Step {
    /// A request comes in.
    First,
    /// It was admitted.
    Second(Admitted),
    /// Somebody has called the program who is no web server.
    NoRequest,
}

/// A request whose head is in order.
pub(crate) struct Admitted {
    endpoint: Endpoint,
    length: usize,
}

/// Which step this process is to do.
pub(crate) fn step() -> Step {
    // First of all: a web server may have inherited the other variable, and whatever it passes on is a request to be looked at.
    if env::var_os("REQUEST_METHOD").is_some() {
        return Step::First;
    }
    env::var(REQUEST_VARIABLE).ok().as_deref().and_then(Admitted::parse).map_or(Step::NoRequest, Step::Second)
}

impl Admitted {
    fn parse(text: &str) -> Option<Self> {
        let (path, length) = text.split_once(' ')?.1.split_once(' ')?;
        Some(Self { endpoint: Endpoint::at(path)?, length: length.parse().ok()? })
    }
}

/// The first step. Returns only with an answer: where the request is refused, or the program cannot be executed again.
pub(crate) fn admit(service: &Service) -> Reply {
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let length = variable("CONTENT_LENGTH");
    let length: u64 = match length.to_str().map(str::trim) {
        Some("") => 0,
        Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => length.parse().unwrap_or(u64::MAX),
        _ => return Reply::error(400, "CONTENT_LENGTH must be a number"),
    };
    let (method, path) = (variable("REQUEST_METHOD"), variable("PATH_INFO"));
    // Apache adds the prefix to what a rewriting rule has set.
    let authorization = ["HTTP_AUTHORIZATION", "REDIRECT_HTTP_AUTHORIZATION"].into_iter().find_map(env::var_os);
    let head = Head {
        method: &method.to_string_lossy(),
        path: &path.to_string_lossy(),
        authorization: authorization.as_deref().map(OsStr::as_bytes),
        length: Some(length),
    };
    match service.admit(head) {
        Ok(endpoint) => {
            let error = again(&format!("{} {} {length}", head.method, endpoint.path()));
            tracing::error!(%error, "the program could not be executed again");
            Reply::error(500, "the program could not be executed again; the log under state_dir says why")
        }
        Err(reply) => reply,
    }
}

/// Executes this program again, without the request in its environment.
fn again(admitted: &str) -> io::Error {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_request(name)) {
        command.env_remove(name);
    }
    // What the request belongs to is looked at when it is read.
    for (name, header) in [("TRACEPARENT", "HTTP_TRACEPARENT"), ("TRACESTATE", "HTTP_TRACESTATE")] {
        match env::var_os(header) {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(arguments).env(REQUEST_VARIABLE, admitted).exec()
}

fn is_of_request(name: &OsString) -> bool {
    let is_one_of = |variables: &[&str]| variables.iter().any(|variable| name == variable);
    let begins = PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    is_one_of(VARIABLES) || (begins && !is_one_of(CERTIFICATES))
}

/// The second step.
pub(crate) async fn respond(service: &Arc<Service>, admitted: Admitted) -> Reply {
    let Admitted { endpoint, length } = admitted;
    // Nothing else goes on in this process yet, so that it may wait.
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    match stdin.and_then(|stdin| read_body(stdin, length, service.config().read_timeout)) {
        Ok(body) if body.len() == length => service.respond(endpoint, body, TraceContext::of_process()).await,
        Ok(_) => Reply::error(400, "the request ends in the middle of its body"),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => service.too_slow(),
        Err(error) => Reply::error(400, format!("the body cannot be read: {error}")),
    }
}

/// Reads this many bytes, or up to the end.
fn read_body(mut from: impl Read + AsFd, length: usize, within: Duration) -> io::Result<Bytes> {
    let end = Instant::now() + within;
    let mut body = Vec::new();
    let mut part = [0; 16 << 10];
    while body.len() < length {
        let left = end.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], wait) {
            _ if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::EINTR) => continue,
            ready => ready?,
        };
        let most = part.len().min(length - body.len());
        match from.read(&mut part[..most])? {
            0 => break,
            read => body.extend_from_slice(&part[..read]),
        }
    }
    Ok(body.into())
}

/// Writes the answer, and closes standard output and error: the web server takes that for the end, whatever goes on here.
pub(crate) fn write(reply: &Reply) {
    let text = reply.text();
    let mut response = format!("Status: {} {}\r\nContent-Type: application/json\r\n", reply.status, reply.reason());
    for (name, value) in &reply.headers {
        response.push_str(&format!("{name}: {value}\r\n"));
    }
    response.push_str(&format!("Content-Length: {}\r\n\r\n", text.len()));
    let request = env::var("REQUEST_METHOD").or_else(|_| env::var(REQUEST_VARIABLE)).unwrap_or_default();
    if request.split(' ').next() != Some("HEAD") {
        response.push_str(&text);
    }
    let mut stdout = io::stdout().lock();
    // The client may have gone away.
    let _ = stdout.write_all(response.as_bytes()).and_then(|()| stdout.flush());
    if let Ok(nowhere) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stdout(&nowhere);
        let _ = dup2_stderr(&nowhere);
    }
}
