//! `sync://`: nothing waits; a message that is sent here is handled during its dispatch.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Context, Factory, MessageId, Received, Sent, Transport, TransportError, TransportSpec};
use crate::config::Problem;
use crate::message::Encoded;

/// Hands every message back to be handled at once.
#[derive(Debug)]
pub struct Sync {
    name: String,
}

impl Sync {
    /// A transport of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    fn unsupported(&self, what: &'static str) -> TransportError {
        let why = "it handles messages during their dispatch and keeps none";
        TransportError::Unsupported { transport: self.name.clone(), what, why }
    }
}

#[async_trait]
impl Transport for Sync {
    fn name(&self) -> &str {
        &self.name
    }

    /// Nothing is stored. A delay is not waited for, as in Symfony.
    async fn send(&self, _message: &Encoded, _delay: Duration) -> Result<Sent, TransportError> {
        Ok(Sent::HandleNow { reason: format!("transport \"{}\" is synchronous", self.name) })
    }

    async fn receive(&self, _up_to: usize) -> Result<Vec<Received>, TransportError> {
        Err(self.unsupported("be consumed"))
    }

    async fn ack(&self, _ids: &[MessageId]) -> Result<(), TransportError> {
        Err(self.unsupported("acknowledge messages"))
    }

    async fn reject(&self, _ids: &[MessageId]) -> Result<(), TransportError> {
        Err(self.unsupported("reject messages"))
    }

    fn consumable(&self) -> bool {
        false
    }
}

/// Makes [`Sync`] transports. They have no options.
#[derive(Debug, Default)]
pub struct SyncFactory;

impl Factory for SyncFactory {
    fn schemes(&self) -> &'static [&'static str] {
        &["sync"]
    }

    fn create(&self, spec: &TransportSpec, _context: &Context) -> Result<Arc<dyn Transport>, Vec<Problem>> {
        spec.options().finish()?;
        Ok(Arc::new(Sync::new(&spec.name)))
    }
}
