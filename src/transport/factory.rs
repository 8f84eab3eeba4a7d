//! What creates the transports of some DSN schemes.

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{Liveness, Transport, TransportSpec};
use crate::config::{Definition, Problem, Secret};

/// What a [`Factory`] needs to create transports, besides their descriptions.
#[derive(Clone)]
pub struct FactoryContext {
    /// The folder that relative paths in DSNs start at.
    pub project_dir: PathBuf,
    /// The folder for files by which processes on this host notify each other.
    pub state_dir: PathBuf,
    /// Database URLs by connection name, for `doctrine://NAME`.
    pub(crate) connections: IndexMap<String, Secret>,
    /// Knows which transports are being consumed.
    pub(crate) liveness: Arc<dyn Liveness>,
}

/// Creates the transports of some DSN schemes. Holds what they share, such as connections.
pub trait Factory: Send + Sync {
    /// The schemes, in lower case.
    fn schemes(&self) -> &'static [&'static str];

    /// The options of its transports, in the DSN or under `options:`. Any other option is a mistake. The JSON schema of
    /// the configuration is generated from them.
    fn options(&self) -> Vec<Definition> {
        Vec::new()
    }

    /// Creates a transport, or reports all mistakes in its description. Opens nothing: a transport connects when it is
    /// first used.
    fn create(&self, spec: &TransportSpec, context: &FactoryContext) -> Result<Transport, Vec<Problem>>;

    /// What a person should know before using such a transport.
    fn warnings(&self, _spec: &TransportSpec) -> Vec<Problem> {
        Vec::new()
    }
}
