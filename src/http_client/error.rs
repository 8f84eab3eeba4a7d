//! Why a request was not answered.

use std::error::Error;
use std::io;

use crate::connection::trust::NoAuthorities;

/// Why a request was not answered. The texts continue one that names the request, and contain no secrets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// A part of the request that cannot be sent.
    #[error("{0} cannot be sent")]
    Unsendable(String),
    /// No thread to look up the host's name with.
    #[error("the host's name cannot be looked up: {0}")]
    Lookup(#[source] io::Error),
    /// The system has no certificates by which servers are verified.
    #[error(transparent)]
    NoAuthorities(NoAuthorities),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke before the answer began.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The connection broke within the answer.
    #[error("the answer breaks off: {0}")]
    Body(String),
    /// A redirect that is not followed.
    #[error("is redirected {0}; that is not followed")]
    Redirect(String),
    /// It goes in circles, probably.
    #[error("is redirected more than {0} times")]
    TooManyRedirects(usize),
}

impl HttpError {
    pub(super) fn from_client(error: &hyper_util::client::legacy::Error) -> Self {
        let causes = causes(error);
        if error.is_connect() { Self::Connect(causes) } else { Self::NoAnswer(causes) }
    }

    pub(super) fn from_body(error: &hyper::Error) -> Self {
        let causes = causes(error);
        Self::Body(if causes.is_empty() { error.to_string() } else { causes })
    }
}

/// What is behind an error; hyper's own text says only in which step it was. The outermost cause is one of hyper's too.
fn causes(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Many errors repeat their cause in their own text.
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.join(": ")
}
