//! Where messages are stored that are not stored one by one: a dispatch of many at once, or one in a caller's transaction,
//! takes them from where they would be sent, stores them, and answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};

use crate::message::Envelope;
use crate::transport::{Sent, Transport, TransportError};

/// Takes messages at the place where they would be sent.
#[derive(Clone)]
pub(super) struct Outlet {
    submissions: mpsc::UnboundedSender<Submission>,
    /// Which of the dispatched messages this is.
    number: usize,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// Together with others. They are handled one after the other, as if they were dispatched so.
    Together(Arc<Mutex<()>>),
    /// In a caller's transaction.
    InTransaction,
}

/// A message that is to be stored.
pub(super) struct Submission {
    /// Which of the dispatched messages it is.
    pub(super) number: usize,
    pub(super) transport: Arc<Transport>,
    pub(super) envelope: Envelope,
    pub(super) delay: Duration,
    pub(super) answer: oneshot::Sender<Result<Sent, TransportError>>,
}

impl Outlet {
    pub(super) fn together(
        submissions: mpsc::UnboundedSender<Submission>,
        number: usize,
        turn: Arc<Mutex<()>>,
    ) -> Self {
        Self { submissions, number, kind: Kind::Together(turn) }
    }

    pub(super) fn in_transaction(submissions: mpsc::UnboundedSender<Submission>) -> Self {
        Self { submissions, number: 0, kind: Kind::InTransaction }
    }

    pub(super) fn is_transaction(&self) -> bool {
        matches!(self.kind, Kind::InTransaction)
    }

    /// Hands a message over, and waits until it is stored.
    pub(super) async fn send(
        &self,
        transport: &Arc<Transport>,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<Sent, TransportError> {
        let (answer, answered) = oneshot::channel();
        let (number, transport_of, envelope_of) = (self.number, Arc::clone(transport), envelope.clone());
        let submission = Submission { number, transport: transport_of, envelope: envelope_of, delay, answer };
        let error = match self.submissions.send(submission) {
            Ok(()) => match answered.await {
                Ok(result) => return result,
                Err(_) => "the dispatch was given up",
            },
            // A middleware has passed the message on in a task of its own, and did not wait for it.
            Err(_) if !self.is_transaction() => return transport.send(envelope, delay).await,
            Err(_) => "the dispatch in the transaction has ended",
        };
        Err(TransportError::store(transport.name(), "sending", std::io::Error::other(error)))
    }

    /// Waits until the message may be handled here.
    pub(super) async fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        match &self.kind {
            Kind::Together(turn) => Some(Arc::clone(turn).lock_owned().await),
            Kind::InTransaction => None,
        }
    }
}
