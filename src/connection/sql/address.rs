//! Reads the address of a server and the login from a DSN, or from the URL of a Doctrine connection.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::{Definition, Dsn, Kind, OptionReader, Setting, Support, TransportSpec};
use crate::connection::Location;

/// The kind of parameters whose value is a file's path.
const FILE: &str = "file";

/// A parameter of the connection.
pub(super) const fn parameter(name: &'static str, help: &'static str) -> Definition {
    Definition::new(name, Kind::Text("text"), help).of_connection()
}

/// A parameter of the connection that names a file.
pub(super) const fn file(name: &'static str, help: &'static str) -> Definition {
    Definition::new(name, Kind::Text(FILE), help).of_connection()
}

/// A parameter that PHP needs, and that is read from the server here.
pub(super) const fn hint(name: &'static str) -> Definition {
    Definition::accepted(name, "means nothing here: the server is asked").of_connection()
}

/// A server, a database on it, and a login. Transports with equal addresses share a connection.
///
/// It has no `Debug`, because it contains the password.
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

/// A path in the form that drivers accept: text.
fn absolute(spec: &TransportSpec, path: &str) -> String {
    spec.file(path).to_str().map_or_else(|| path.to_owned(), str::to_owned)
}

impl Address {
    /// Reads the address and its parameters from a transport's description.
    ///
    /// The URL of a Doctrine connection may have any parameter, because other programs use it too. In a transport's own
    /// DSN, the parameters are options of the transport, and unknown ones are mistakes.
    pub(super) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>, known: &[Definition]) -> Self {
        let store = &spec.store;
        if store.hosts().len() > 1 {
            options.push(spec.dsn_problem("it names several hosts: name the one to connect to"));
        }
        let mut parameters = BTreeMap::new();
        for definition in known.iter().filter(|definition| definition.support == Support::Used) {
            let name = definition.name;
            let value = if spec.dsn == spec.store {
                options.get(&Setting::<Option<String>>::of(*definition))
            } else {
                store.parameters().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
            };
            let is_file = matches!(definition.kind, Kind::Text(FILE));
            let value = value.map(|value| if is_file { absolute(spec, &value) } else { value });
            parameters.extend(value.map(|value| (name, value)));
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

    /// Whether the address says that the server is on this host. Then nobody else can read what is sent, and encrypting
    /// it would take longer than everything else about connecting.
    pub(crate) fn is_this_host(&self, default_host: &str) -> bool {
        let host = self.host.as_deref().unwrap_or(default_host);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// As errors name it: `host:port/database`.
    pub(in crate::connection) fn location(&self, default_host: &str, default_port: u16) -> Location {
        let database = self.database.as_deref().unwrap_or_default();
        match self.host.as_deref().unwrap_or(default_host) {
            socket if socket.starts_with('/') => Location::on_socket(socket, database),
            host => Location::on_host(host, self.port.unwrap_or(default_port), database),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use indexmap::IndexMap;
    use serde_yaml::Mapping;

    use super::*;
    use crate::config::{Secret, TransportConfig};

    #[test]
    fn files_in_a_dsn_and_in_the_url_of_a_connection_are_relative_to_the_config_files_folder() {
        let known = [parameter("mode", ""), file("ca", "")];
        let url = "mysql://h/app?ca=certs/ca.pem&mode=certs";
        for dsn in [url, "doctrine://default"] {
            let config = TransportConfig {
                name: "a".to_owned(),
                path: "transports.a".to_owned(),
                dsn: Secret(dsn.to_owned()),
                options: Mapping::new(),
                retry: None,
                failure_transport: None,
                rate_limit: None,
                serializer: None,
            };
            let connections = IndexMap::from([("default".to_owned(), Secret(url.to_owned()))]);
            let spec = TransportSpec::new(&config, &connections, Path::new("/project")).unwrap();
            let spec = spec.with_options(known.to_vec());
            let address = Address::read(&spec, &mut spec.options(), &known);
            assert_eq!(address.parameter("ca"), Some("/project/certs/ca.pem"));
            assert_eq!(address.parameter("mode"), Some("certs"));
        }
    }
}
