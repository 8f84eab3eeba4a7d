//! Errors of AMQP brokers: they name the broker, and say what to do.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use thiserror::Error;

use crate::connection::Location;
use crate::threads;

/// Why a request to a broker failed. Names the broker and the virtual host, without secrets.
#[derive(Debug, Clone, Error)]
#[error("{location}: {reason}{}", self.advice())]
pub(crate) struct AmqpFailure {
    /// `host:port/vhost`
    location: Location,
    reason: Reason,
}

#[derive(Debug, Clone, Error)]
enum Reason {
    #[error("{}", plainly(.0))]
    Driver(#[source] lapin::Error),
    #[error("{0}")]
    Own(String),
}

impl AmqpFailure {
    pub(crate) fn new(location: &Location, error: lapin::Error) -> Self {
        Self { location: location.clone(), reason: Reason::Driver(error) }
    }

    pub(crate) fn own(location: &Location, reason: impl Into<String>) -> Self {
        Self { location: location.clone(), reason: Reason::Own(reason.into()) }
    }

    /// Whether an exchange or queue is missing.
    pub(crate) fn is_missing(&self) -> bool {
        self.kind() == Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
    }

    /// The broker's own text.
    pub(crate) fn reason(&self) -> String {
        self.reason.to_string()
    }

    fn kind(&self) -> Option<AMQPErrorKind> {
        match &self.reason {
            Reason::Driver(error) => match error.kind() {
                ErrorKind::ProtocolError(error) => Some(error.kind().clone()),
                _ => None,
            },
            Reason::Own(_) => None,
        }
    }

    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self.kind() {
            Some(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)) => {
                "; it is there with other properties: make the options equal to those, or set auto_setup=false"
            }
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
                "; check user and password, and what this user may do: rabbitmqctl list_permissions"
            }
            Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => {
                "; check the virtual host in the DSN's path, and that this user may use it"
            }
            _ => "",
        }
    }
}

/// An error without the text that the driver adds to each.
fn plainly(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::IOError(error) => format!("{error}{}", threads::advice(error)),
        ErrorKind::ProtocolError(error) => error.get_message().as_str().to_owned(),
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
            "the connection is closed".to_owned()
        }
        ErrorKind::MissingHeartbeatError => "the broker has sent no heartbeat for too long".to_owned(),
        ErrorKind::InvalidProtocolVersion(_) => "the server there does not speak AMQP 0-9-1".to_owned(),
        _ => error.to_string(),
    }
}
