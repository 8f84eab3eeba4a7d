//! The run of a job that requests a URL.

use crate::config::HttpRequest;
use crate::handler::Output;
use crate::http_client::{HttpClient, HttpError, Response};

/// The longest answer that is read, in bytes. Only its last lines are kept, and the first megabyte is in the log.
const LONGEST_ANSWER: usize = 64 << 20;

/// Requests the URL, and reads the answer to its end. Any other status than 2xx is a failure. Returns why it has failed, with what
/// was sent where.
pub(super) async fn request(request: &HttpRequest, output: &Output<impl Fn(&str)>) -> Result<(), String> {
    let failed = |error: HttpError| format!("{}: {error}", what(request));
    let mut response = HttpClient::new().send(request).await.map_err(failed)?;
    let mut answer = format!("{} answers {}", what(request), response.status);
    if response.url != request.url {
        answer = format!("{answer} (redirected to {})", response.url);
    }
    output.line(answer.as_bytes());
    let read = read(&mut response, output).await;
    if !response.status.is_success() {
        // What is wrong with it is said by its status.
        return Err(answer);
    }
    read.map_err(|why| format!("{answer}, but {why}"))
}

/// What is sent where, without secrets.
pub(super) fn what(request: &HttpRequest) -> String {
    format!("{} {}", request.method, request.url)
}

async fn read(response: &mut Response, output: &Output<impl Fn(&str)>) -> Result<(), String> {
    let (mut line, mut length) = (Vec::new(), 0);
    let ended = loop {
        match response.chunk().await {
            Err(error) => break Err(error.to_string()),
            Ok(None) => break Ok(()),
            Ok(Some(bytes)) => {
                length += bytes.len();
                if length > LONGEST_ANSWER {
                    break Err(format!("is longer than {} MiB; the rest was not read", LONGEST_ANSWER >> 20));
                }
                output.take(&bytes, &mut line);
            }
        }
    };
    output.line(&line);
    ended
}
