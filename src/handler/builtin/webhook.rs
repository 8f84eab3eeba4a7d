//! Symfony's `PingWebhookMessage`: requests the URL that the message names.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use url::{Url, form_urlencoded};

use super::read;
use crate::clock;
use crate::config::{HttpRequest, HttpUrl, Secret};
use crate::handler::http::{LONGEST_ANSWER, answer, failure, not_answered, read_answer};
use crate::handler::{Handler, HandlerContext, HandlerError, Verdict};
use crate::http_client::HttpClient;

/// How much of an answer is a part of the result, in bytes.
const KEPT: usize = 16 * 1024;

/// Options that say nothing about the request itself.
const WITHOUT_EFFECT: [&str; 5] = ["user_data", "buffer", "http_version", "extra", "max_redirects"];

/// Requests URLs.
pub(crate) struct PingWebhook {
    timeout: Duration,
    client: OnceLock<HttpClient>,
}

#[derive(Deserialize)]
struct PingWebhookMessage {
    method: String,
    url: String,
    #[serde(default)]
    options: Value,
    #[serde(default = "yes")]
    throw: bool,
}

fn yes() -> bool {
    true
}

impl PingWebhook {
    /// A handler that waits this long for an answer, where the message names no shorter time.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, client: OnceLock::new() }
    }

    async fn call(&self, request: &HttpRequest, throws: bool) -> Result<Value, HandlerError> {
        let what = format!("{} {}", request.method, request.url);
        let client = self.client.get_or_init(HttpClient::new);
        let mut response = client.send(request).await.map_err(|error| not_answered(&format!("{what}: "), &error))?;
        let verdict = answer::verdict(response.status, &response.headers, clock::now());
        let (body, _) = read_answer(&mut response, LONGEST_ANSWER).await;
        let content = String::from_utf8_lossy(&body[..body.len().min(KEPT)]).into_owned();
        let status = response.status.as_u16();
        match verdict.filter(|_| throws) {
            None => Ok(json!({ "status": status, "content": content })),
            Some(verdict) => {
                let failed = failure("Failed", verdict, format!("{what} answers {}", response.status));
                Err(HandlerError { code: status.into(), ..failed })
            }
        }
    }
}

#[async_trait]
impl Handler for PingWebhook {
    fn name(&self) -> &str {
        "PingWebhookMessage"
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let message: PingWebhookMessage = read(context.envelope(), "`method` and `url`")?;
        let (request, own) = request(&message).map_err(HandlerError::unrecoverable)?;
        let limit = own.into_iter().chain([self.timeout]).min().unwrap_or(self.timeout);
        timeout(limit, self.call(&request, message.throw)).await.unwrap_or_else(|_| {
            let what = format!("{} {}: timed out after {limit:?}", request.method, request.url);
            Err(failure("TimedOut", Verdict::Retry, what))
        })
    }
}

/// The request that a message asks for, and how long it may take. An error says why there is none; it repeats no values.
fn request(message: &PingWebhookMessage) -> Result<(HttpRequest, Option<Duration>), String> {
    let url = Url::parse(message.url.trim()).map_err(|error| format!("the message's URL is no URL: {error}"))?;
    let mut url = HttpUrl::new(url).map_err(|why| format!("the message's URL {why}"))?;
    let empty = Map::new();
    let options = match &message.options {
        Value::Null => &empty,
        Value::Array(items) if items.is_empty() => &empty,
        Value::Object(options) => options,
        _ => return Err("the message's options are not a map".to_owned()),
    };
    let (mut headers, mut body, mut limit) = (IndexMap::new(), None, None);
    for (name, value) in options {
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("headers", value) => add_headers(value, &mut headers)?,
            ("json", value) => {
                body = Some(value.to_string());
                headers.entry("Content-Type".to_owned()).or_insert_with(|| Secret("application/json".to_owned()));
            }
            ("body", Value::String(text)) => body = Some(text.clone()),
            ("body", Value::Object(fields)) => {
                body =
                    Some(form_urlencoded::Serializer::new(String::new()).extend_pairs(texts(fields, "body")?).finish());
                let form = || Secret("application/x-www-form-urlencoded".to_owned());
                headers.entry("Content-Type".to_owned()).or_insert_with(form);
            }
            ("query", Value::Object(fields)) => {
                url.0.query_pairs_mut().extend_pairs(texts(fields, "query")?);
            }
            ("query", Value::Array(items)) if items.is_empty() => {}
            ("auth_basic", Value::String(login)) => authorize(&mut headers, "Basic", &BASE64.encode(login)),
            ("auth_basic", Value::Array(login)) => {
                let login: Vec<&str> = login.iter().filter_map(Value::as_str).collect();
                authorize(&mut headers, "Basic", &BASE64.encode(login.join(":")));
            }
            ("auth_bearer", Value::String(token)) => authorize(&mut headers, "Bearer", token),
            ("timeout" | "max_duration", value) => {
                let seconds = value.as_f64().filter(|seconds| *seconds > 0.0);
                let own = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                limit = own.into_iter().chain(limit).min();
            }
            (name, _) if WITHOUT_EFFECT.contains(&name) => {}
            (name, _) => {
                return Err(format!(
                    "the message's option {:?} is not supported here",
                    &name[..name.floor_char_boundary(60)]
                ));
            }
        }
    }
    let body = body.map(Secret);
    Ok((HttpRequest { url, method: message.method.to_ascii_uppercase(), headers, body }, limit))
}

fn authorize(headers: &mut IndexMap<String, Secret>, scheme: &str, credentials: &str) {
    headers.insert("Authorization".to_owned(), Secret(format!("{scheme} {credentials}")));
}

/// Headers as Symfony's HTTP client takes them: `{"Name": "value"}`, `{"Name": ["value"]}` or `["Name: value"]`.
fn add_headers(value: &Value, headers: &mut IndexMap<String, Secret>) -> Result<(), String> {
    let wrong = || "the message's headers are not a map of names to texts".to_owned();
    let mut add = |name: &str, value: &Value| {
        let text = match value {
            Value::Array(values) => {
                values.iter().map(Value::as_str).collect::<Option<Vec<_>>>().ok_or_else(wrong)?.join(", ")
            }
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(wrong()),
        };
        let name = name.trim();
        headers.retain(|known, _| !known.eq_ignore_ascii_case(name));
        headers.insert(name.to_owned(), Secret(text));
        Ok(())
    };
    match value {
        Value::Object(map) => map.iter().try_for_each(|(name, value)| add(name, value)),
        Value::Array(lines) => lines.iter().try_for_each(|line| {
            let (name, value) = line.as_str().and_then(|line| line.split_once(':')).ok_or_else(wrong)?;
            add(name, &Value::from(value.trim()))
        }),
        _ => Err(wrong()),
    }
}

/// Fields of a form or a query.
fn texts<'a>(fields: &'a Map<String, Value>, what: &str) -> Result<Vec<(&'a str, String)>, String> {
    let of = |(name, value): (&'a String, &Value)| match value {
        Value::String(text) => Ok((name.as_str(), text.clone())),
        Value::Number(number) => Ok((name.as_str(), number.to_string())),
        Value::Bool(flag) => Ok((name.as_str(), u8::from(*flag).to_string())),
        Value::Null => Ok((name.as_str(), String::new())),
        _ => Err(format!("the message's {what} is nested, which is not supported here")),
    };
    fields.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: Value) -> Result<(HttpRequest, Option<Duration>), String> {
        request(&serde_json::from_value(message).unwrap())
    }

    #[test]
    fn a_request_is_as_symfonys_client_would_send_it() {
        let options = json!({
            "headers": { "X-A": "1", "content-type": "text/x" },
            "json": { "a": [1] },
            "query": { "q": "a b" },
            "auth_basic": ["ada", "s3cret"],
            "timeout": 2.5,
            "max_duration": 0,
        });
        let (request, limit) = read(json!({ "method": "post", "url": "http://h/p?x=1", "options": options })).unwrap();
        assert_eq!((request.url.0.as_str(), request.method.as_str()), ("http://h/p?x=1&q=a+b", "POST"));
        assert_eq!(request.body.unwrap().0, r#"{"a":[1]}"#);
        assert_eq!(
            (request.headers["Authorization"].0.as_str(), limit),
            ("Basic YWRhOnMzY3JldA==", Some(Duration::from_millis(2500)))
        );
        let list = json!({ "headers": ["X-A: 1", "X-B:2"], "body": { "n": 1, "t": "ä" } });
        let (request, _) = read(json!({ "method": "PUT", "url": "http://h", "options": list })).unwrap();
        assert_eq!((request.headers["X-B"].0.as_str(), request.body.unwrap().0.as_str()), ("2", "n=1&t=%C3%A4"));
        assert!(read(json!({ "method": "GET", "url": "http://h", "options": [] })).unwrap().0.body.is_none());
    }

    #[test]
    fn what_cannot_be_sent_is_told_without_its_value() {
        for (message, why) in [
            (json!({ "method": "GET", "url": "s3cret" }), "the message's URL is no URL"),
            (json!({ "method": "GET", "url": "file:///s3cret" }), "must be a URL that begins with"),
            (
                json!({ "method": "GET", "url": "http://h", "options": { "proxy": "s3cret" } }),
                "\"proxy\" is not supported",
            ),
            (json!({ "method": "GET", "url": "http://h", "options": { "headers": ["s3cret"] } }), "headers are not"),
            (
                json!({ "method": "GET", "url": "http://h", "options": { "body": { "a": { "b": "s3cret" } } } }),
                "nested",
            ),
            (json!({ "method": "GET", "url": "http://h", "options": 5 }), "options are not a map"),
        ] {
            let error = read(message).unwrap_err();
            assert!(error.contains(why) && !error.contains("s3cret") && !error.contains("write"), "{error}");
        }
    }
}
