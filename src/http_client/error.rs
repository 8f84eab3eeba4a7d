//! Why a request was not answered.

use std::error::Error;
use std::io;

use crate::causes::{append, causes};
use crate::connection::trust::NoAuthorities;
use crate::threads;

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
    /// The system refuses what a connection needs: an open file, for example.
    #[error("cannot connect: {0}")]
    Refused(#[source] io::Error),
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
        if let Some(refusal) = refusal(error).filter(|_| error.is_connect()) {
            return Self::Refused(refusal);
        }
        // Hyper's own text says only in which step it was. The outermost cause is one of hyper's too.
        let causes = append(String::new(), causes(error));
        if error.is_connect() { Self::Connect(causes) } else { Self::NoAnswer(causes) }
    }

    pub(super) fn from_body(error: &hyper::Error) -> Self {
        // Hyper's own text says only in which step it was. The outermost cause is one of hyper's too.
        let causes = append(String::new(), causes(error));
        Self::Body(if causes.is_empty() { error.to_string() } else { causes })
    }
}

/// The refusal of the system that is behind an error, if one is.
fn refusal(error: &(dyn Error + 'static)) -> Option<io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_system = error.downcast_ref::<io::Error>();
        if let Some(refusal) = of_system.filter(|error| threads::is_refusal(error)) {
            return refusal.raw_os_error().map(io::Error::from_raw_os_error);
        }
        // The source of one that wraps another is that one's source, and not that one.
        let within = of_system.and_then(io::Error::get_ref);
        cause = within.map(|within| within as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_refusal_is_found_behind_other_errors() {
        let within = |errno: Errno| io::Error::other(io::Error::other(HttpError::Lookup(errno.into())));
        assert_eq!(refusal(&within(Errno::EMFILE)).and_then(|error| error.raw_os_error()), Some(Errno::EMFILE as i32));
        assert!(refusal(&within(Errno::ECONNREFUSED)).is_none());
    }
}
