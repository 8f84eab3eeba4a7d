//! `sync://`: nothing is queued. A message that is sent here is handled during its dispatch.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Factory, FactoryContext, Sender, Sent, Transport, TransportError, TransportSpec};
use crate::config::Problem;
use crate::message::Encoded;

pub(super) const SCHEMES: &[&str] = &["sync"];

/// Returns every message to be handled at once.
#[derive(Debug)]
pub struct SyncTransport {
    name: String,
}

impl SyncTransport {
    /// A transport of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

#[async_trait]
impl Sender for SyncTransport {
    /// Stores nothing. A delay is ignored, as in Symfony.
    async fn send(&self, _message: &Encoded, _delay: Duration) -> Result<Sent, TransportError> {
        Ok(Sent::HandleNow { reason: format!("transport \"{}\" is synchronous", self.name) })
    }
}

impl From<SyncTransport> for Transport {
    fn from(sync: SyncTransport) -> Self {
        Self::sender(sync.name.clone(), Arc::new(sync))
    }
}

/// Creates [`SyncTransport`]s. They have no options.
#[derive(Debug, Default)]
pub(super) struct SyncFactory;

impl Factory for SyncFactory {
    fn schemes(&self) -> &'static [&'static str] {
        SCHEMES
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        spec.options().finish()?;
        Ok(SyncTransport::new(&spec.name).into())
    }
}
