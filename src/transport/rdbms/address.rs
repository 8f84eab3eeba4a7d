//! Where a server is, and as whom to connect: what a DSN, or the URL of a Doctrine connection, says about that.

use std::collections::BTreeMap;

use super::super::{Dsn, Options, TransportSpec};

/// The parameters that a connection may have.
pub(crate) struct Names {
    /// Those that mean something here.
    pub(crate) used: &'static [&'static str],
    /// Those that Doctrine knows and that have no meaning, or nothing to choose, here.
    pub(crate) ignored: &'static [&'static str],
}

/// A server, a database on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, as it holds the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// A name or address, or the absolute path of a Unix socket or its folder.
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) database: Option<String>,
    parameters: BTreeMap<&'static str, String>,
}

impl Address {
    /// Reads the address out of a transport's description, and its parameters too.
    ///
    /// In the URL of a Doctrine connection any parameter may stand, as the connection is for others too. In a DSN of the
    /// transport's own the parameters are among its options, and unknown ones are mistakes.
    pub(crate) fn read(spec: &TransportSpec, options: &mut Options<'_>, names: &Names) -> Self {
        let store = &spec.store;
        if store.hosts().len() > 1 {
            options.push(spec.dsn_problem("it names several hosts: name the one to connect to"));
        }
        let mut parameters = BTreeMap::new();
        for name in names.used {
            let value = if spec.dsn == spec.store {
                options.text(name)
            } else {
                store.parameters().find(|(key, _)| key == name).map(|(_, value)| value.to_owned())
            };
            parameters.extend(value.map(|value| (*name, value)));
        }
        if spec.dsn == spec.store {
            for name in names.ignored {
                options.text(name);
            }
        }
        Self::of(store, parameters)
    }

    /// The address in a URL without parameters.
    #[cfg(test)]
    pub(crate) fn parse(url: &str) -> Self {
        Self::of(&Dsn::parse(url).unwrap(), BTreeMap::new())
    }

    fn of(store: &Dsn, parameters: BTreeMap<&'static str, String>) -> Self {
        let filled = |text: &str| if text.is_empty() { None } else { Some(text.to_owned()) };
        Self {
            user: store.user().map(str::to_owned),
            password: store.password().map(str::to_owned),
            host: filled(store.host()),
            port: store.port(),
            database: filled(store.path().trim_start_matches('/')),
            parameters,
        }
    }

    /// A parameter's value.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// As errors name it: `host:port/database`.
    pub(crate) fn place(&self, default_host: &str, default_port: u16) -> String {
        let host = self.host.as_deref().unwrap_or(default_host);
        let database = self.database.as_deref().unwrap_or_default();
        let port = self.port.unwrap_or(default_port);
        match host {
            socket if socket.starts_with('/') => format!("{socket}/{database}"),
            address if address.contains(':') => format!("[{address}]:{port}/{database}"),
            name => format!("{name}:{port}/{database}"),
        }
    }
}
