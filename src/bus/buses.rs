//! The buses of an application, by name.

use std::sync::Arc;

use super::notify::LocalWorkers;
use super::{Bus, DispatchError, Middleware};
use crate::config::{DEFAULT_BUS, Problem};

/// All buses. There is at least the default one.
pub(super) struct Buses {
    pub(super) all: Vec<Chain>,
    /// The index of the default one.
    pub(super) default: usize,
    /// Does the application name its buses? If not, the names on messages mean nothing here.
    pub(super) are_named: bool,
    pub(super) local_workers: LocalWorkers,
}

/// What messages pass on a bus, in order.
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) middleware: Vec<Arc<dyn Middleware>>,
}

impl Buses {
    /// The index of a bus.
    pub(super) fn find(&self, name: &str) -> Result<usize, DispatchError> {
        self.all.iter().position(|chain| chain.name == name).ok_or_else(|| {
            let known = self.all.iter().map(|chain| chain.name.as_str());
            DispatchError::UnknownBus(Problem::unknown("", "bus", name, known).message)
        })
    }

    /// The bus of a message that was received: that with its name, and the default one if it has none.
    ///
    /// An application that does not name its buses has one, which is every application's. Messages that Symfony calls
    /// `messenger.bus.default` are those of applications that do not name theirs.
    pub(super) fn of_received(&self, name: Option<&str>) -> Result<usize, DispatchError> {
        match name {
            Some(name) if self.are_named => match self.find(name) {
                Err(_) if name == DEFAULT_BUS => Ok(self.default),
                found => found,
            },
            _ => Ok(self.default),
        }
    }
}

impl Bus {
    /// The name of the bus.
    pub fn name(&self) -> &str {
        &self.chain().name
    }

    /// Another bus of the application. In a handler, its messages belong to the one that is being handled, as those of
    /// the bus that the handler was given.
    pub fn named(&self, name: &str) -> Result<Self, DispatchError> {
        Ok(Self { index: self.buses.find(name)?, ..self.clone() })
    }

    pub(super) fn chain(&self) -> &Chain {
        &self.buses.all[self.index]
    }
}
