//! The one connection that a process has to an AMQP broker. Each transport has channels of its own on it.

mod address;
mod error;
mod stream;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::Mutex;

pub(crate) use self::address::{Address, OPTIONS};
pub(crate) use self::error::AmqpFailure;
use self::stream::AmqpRuntime;
use super::Location;

/// A connection to a broker. Opens with the first channel.
pub(crate) struct AmqpConnection {
    address: Address,
    location: Location,
    connection: Mutex<Option<Connection>>,
}

impl AmqpConnection {
    pub(crate) fn new(address: Address) -> Self {
        Self { location: address.location(), address, connection: Mutex::new(None) }
    }

    /// The broker and the virtual host.
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// A new channel, on a new connection if the last one has ended.
    pub(crate) async fn channel(&self) -> Result<Channel, AmqpFailure> {
        let mut connection = self.connection.lock().await;
        let open = match connection.take().filter(|connection| connection.status().connected()) {
            Some(open) => open,
            None => self.connect().await?,
        };
        let channel = open.create_channel().await;
        *connection = Some(open);
        channel.map_err(|error| self.failure(error))
    }

    /// Closes the connection until the next channel is opened.
    pub(crate) fn close_idle(&self) {
        // While another task opens it, there is nothing to close.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }

    /// An error that the driver reported.
    pub(crate) fn failure(&self, error: lapin::Error) -> AmqpFailure {
        AmqpFailure::new(&self.location, error)
    }

    async fn connect(&self) -> Result<Connection, AmqpFailure> {
        let Address { host, port, vhost, user, password, tls, connection_name, .. } = &self.address;
        let uri = AMQPUri {
            scheme: if tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: user.clone(), password: password.clone() },
                host: host.clone(),
                port: *port,
            },
            vhost: vhost.clone(),
            query: AMQPQueryString {
                frame_max: self.address.frame_max,
                channel_max: self.address.channel_max,
                heartbeat: self.address.heartbeat,
                auth_mechanism: self.address.external_login.then_some(SASLMechanism::External),
                ..AMQPQueryString::default()
            },
        };
        let properties = ConnectionProperties::default().with_connection_name(connection_name.as_str().into());
        let tls = tls.clone();
        let open = async move |uri: AMQPUri, _: AmqpRuntime| {
            Ok(stream::connect(&uri.authority.host, uri.authority.port, tls.as_ref()).await?)
        };
        let connecting = Connection::connector(uri, stream::runtime(), open, properties);
        match tokio::time::timeout(self.address.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failure(error)),
            Err(_) => {
                let seconds = self.address.connect_timeout.as_secs_f32();
                Err(AmqpFailure::own(&self.location, format!("no connection within {seconds} seconds")))
            }
        }
    }
}
