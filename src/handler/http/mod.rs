//! A URL as a handler: the message is sent there, and the status of the answer is the result. Several messages at once are one
//! request, whose answer may say something about each.

pub(super) mod answer;

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::timeout;

use super::exec::Output;
use super::metadata::{Metadata, headers_within};
use super::program::with_output;
use super::stream::batch::Requests;
use super::{BatchHandler, Handler, HandlerContext, HandlerError, Verdict};
use crate::clock;
use crate::config::{HttpRequest, Secret};
use crate::http_client::{HttpClient, HttpError, Response};
use crate::message::{Envelope, TraceContext};
use crate::threads;

/// The largest size of the header with all headers of the message, in bytes. Servers refuse longer ones.
const MAX_HEADERS: usize = 4096;

/// How much of an answer is read, in bytes: a longer one is no result.
pub(super) const LONGEST_ANSWER: usize = 64 * 1024;

/// The same for the answer to a batch: a longer one says nothing about its messages.
const LONGEST_ANSWERS: usize = 1 << 20;

/// Requests a URL for each message.
pub(crate) struct Http {
    name: String,
    /// Without the message.
    request: HttpRequest,
    timeout: Duration,
    /// Made for the first message: it reads the system's certificates.
    client: OnceLock<HttpClient>,
}

impl Http {
    /// A handler that sends messages with this request, and waits this long for each answer.
    pub(crate) fn new(request: &HttpRequest, timeout: Duration) -> Self {
        let name = format!("http {} {}", request.method, request.url);
        Self { name, request: request.clone(), timeout, client: OnceLock::new() }
    }

    /// The request for a message.
    fn request(&self, envelope: &Envelope, trace: Option<&TraceContext>) -> Result<HttpRequest, HandlerError> {
        let body = String::from_utf8(envelope.body().to_vec())
            .map_err(|_| failure("Unsendable", Verdict::Unrecoverable, "the message's body is not UTF-8".to_owned()))?;
        let Metadata { id, transport, attempt } = Metadata::of(envelope);
        let stamps = headers_within(MAX_HEADERS / 2, "Minutely-Headers", envelope.json_headers());
        let own = [
            ("Content-Type", "application/json".to_owned()),
            ("Minutely-Message-Type", envelope.message_type().to_owned()),
            ("Minutely-Message-Id", id),
            ("Minutely-Transport", transport),
            ("Minutely-Attempt", attempt.to_string()),
            ("Minutely-Headers", in_ascii(&stamps)),
            ("traceparent", trace.map(TraceContext::to_string).unwrap_or_default()),
            ("tracestate", trace.and_then(TraceContext::state).unwrap_or_default().to_owned()),
        ];
        Ok(self.request_with(own, body))
    }

    /// The request with this body, and with these headers where it has none of their names.
    fn request_with<const N: usize>(&self, own: [(&str, String); N], body: String) -> HttpRequest {
        let mut request = self.request.clone();
        for (name, value) in own {
            let is_set = request.headers.keys().any(|set| set.eq_ignore_ascii_case(name));
            if !is_set && !value.is_empty() {
                request.headers.insert(name.to_owned(), Secret(value));
            }
        }
        request.body = Some(Secret(body));
        request
    }

    /// Sends a request. Returns the body of an answer that says that it is handled. The log names the message in the envelope.
    async fn call(&self, request: HttpRequest, envelope: &Envelope, longest: usize) -> Result<Vec<u8>, HandlerError> {
        let call = self.answer(request, envelope, longest);
        timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err(failure("TimedOut", Verdict::Retry, format!("timed out after {:?}", self.timeout))))
    }

    async fn answer(&self, request: HttpRequest, envelope: &Envelope, longest: usize) -> Result<Vec<u8>, HandlerError> {
        let client = self.client.get_or_init(HttpClient::new);
        let mut response = client.send_whole(&request).await.map_err(|error| not_answered("", &error))?;
        let verdict = answer::verdict(response.status, &response.headers, clock::now());
        let mut text = format!("answered with {}", response.status);
        if response.url != request.url {
            text = format!("{text} (redirected to {})", response.url);
        }
        let (body, ended) = read_answer(&mut response, longest).await;
        let Some(verdict) = verdict else {
            // It may be that its server has failed while it was answering.
            ended.map_err(|error| failure("NoAnswer", Verdict::Retry, format!("{text}, but {error}")))?;
            return Ok(body);
        };
        let (id, message_type) = (Metadata::of(envelope).id, envelope.message_type());
        let output = Output::new(|line: &str| tracing::info!(id, message_type, handler = self.name, "{line}"));
        let mut line = Vec::new();
        output.take(&body, &mut line);
        output.line(&line);
        let failed = failure("Failed", verdict, with_output(text, &output.last_lines()));
        Err(HandlerError { code: response.status.as_u16().into(), ..failed })
    }
}

#[async_trait]
impl Handler for Http {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let request = self.request(context.envelope(), context.trace())?;
        self.call(request, context.envelope(), LONGEST_ANSWER).await.map(result)
    }
}

/// Several messages: a list of them, as for a program that stays, and an answer that may say something about each.
#[async_trait]
impl BatchHandler for Http {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, messages: &[Envelope], _: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>> {
        let requests = Requests::new(messages, 1);
        let Some(first) = requests.first(messages) else { return requests.results(Ok(Vec::new())) };
        // Written as JSON, which is UTF-8.
        let list = String::from_utf8_lossy(&requests.list()).into_owned();
        let count = ("Minutely-Batch", requests.ids.len().to_string());
        let request = self.request_with([("Content-Type", "application/json".to_owned()), count], list);
        let answered = self.call(request, first, LONGEST_ANSWERS).await;
        let answered = answered.and_then(|body| answer::of_batch(&requests.ids, &body, LONGEST_ANSWERS));
        requests.results(answered)
    }
}

/// Reads an answer, or its beginning: a little more than `longest`.
pub(super) async fn read_answer(response: &mut Response, longest: usize) -> (Vec<u8>, Result<(), HttpError>) {
    let mut body = Vec::new();
    while body.len() <= longest {
        match response.chunk().await {
            Ok(Some(bytes)) => body.extend_from_slice(&bytes[..bytes.len().min(longest + 1)]),
            Ok(None) => break,
            Err(error) => return (body, Err(error)),
        }
    }
    (body, Ok(()))
}

/// What the handler returns: an answer that is JSON.
fn result(body: Vec<u8>) -> Value {
    if body.len() > LONGEST_ANSWER {
        tracing::debug!("the answer is longer than {} KiB, and is not kept as a result", LONGEST_ANSWER >> 10);
        return Value::Null;
    }
    serde_json::from_slice(&body).unwrap_or_default()
}

/// The failure that `error` means. `prefix` names the request where the handler's name does not.
pub(super) fn not_answered(prefix: &str, error: &HttpError) -> HandlerError {
    let (class, verdict, advice) = match error {
        HttpError::Unsendable(_) => ("Unsendable", Verdict::Unrecoverable, String::new()),
        // The host has no thread for it, which is not the message's fault.
        HttpError::Lookup(_) => ("NoAnswer", Verdict::NotBegun, String::new()),
        // Nor has it a file for the connection.
        HttpError::Refused(error) => ("NoAnswer", Verdict::NotBegun, threads::advice(error)),
        _ => ("NoAnswer", Verdict::Retry, String::new()),
    };
    failure(class, verdict, format!("{prefix}{error}{advice}"))
}

pub(super) fn failure(class: &str, verdict: Verdict, message: String) -> HandlerError {
    HandlerError { verdict, class: format!("minutely::http::{class}"), ..HandlerError::failed(message) }
}

/// JSON without other characters than those of ASCII, as the value of a header.
fn in_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() && !character.is_ascii_control() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}
