//! Sends a message to the transports that the routing or a stamp names.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use tokio::sync::OwnedMutexGuard;

use super::notify::LocalWorkers;
use super::outlet::Outlet;
use super::{DispatchError, Middleware, Next, Routing};
use crate::events::{Event, Listeners};
use crate::handler::Handlers;
use crate::message::{DelayStamp, Envelope, HandledNowStamp, ReceivedStamp, SentStamp, TransportNamesStamp};
use crate::transport::{Sent, Transport, Transports};

pub(super) struct SendMiddleware {
    pub(super) routing: Arc<Routing>,
    pub(super) transports: Arc<Transports>,
    /// They know the interfaces of each message type.
    pub(super) handlers: Arc<Handlers>,
    pub(super) local_workers: LocalWorkers,
    /// They want to know what is sent.
    pub(super) listeners: Listeners,
    /// A message that is not routed is handled now.
    pub(super) allow_no_senders: bool,
}

#[async_trait]
impl Middleware for SendMiddleware {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        if envelope.last::<ReceivedStamp>().is_some() {
            return next.run(envelope).await;
        }
        let mut transports = self.transports_for(&envelope)?;
        if next.is_in_transaction() {
            transports = self.in_transaction(&envelope, transports)?;
        }
        if transports.is_empty() && !self.allow_no_senders {
            let (bus, message_type) = (next.bus().name().to_owned(), envelope.message_type().to_owned());
            return Err(DispatchError::NoSender { bus, message_type });
        }
        if transports.is_empty() {
            let reason = format!("\"{}\" is not routed to any transport", envelope.message_type());
            let _turn = turn(&next).await;
            return next.run(envelope.with(&HandledNowStamp { transport_name: None, reason })).await;
        }
        let (envelope, handle_now) = self.send(envelope, &transports, next.outlet()).await?;
        // Handled once, however many transports ask for it, and only after the others have stored the message: a
        // failing handler must not keep it from them.
        if !handle_now {
            return Ok(envelope);
        }
        let _turn = turn(&next).await;
        next.run(envelope).await
    }
}

/// Of messages that are dispatched at once, one is handled at a time.
async fn turn(next: &Next) -> Option<OwnedMutexGuard<()>> {
    next.outlet()?.turn().await
}

impl SendMiddleware {
    /// The transports for the message, each once, by the name that was asked for. Fails before anything is sent if one
    /// does not exist.
    fn transports_for(&self, envelope: &Envelope) -> Result<IndexMap<String, Arc<Transport>>, DispatchError> {
        let names = match envelope.last::<TransportNamesStamp>() {
            Some(stamp) => stamp.transport_names,
            None => {
                let message_type = envelope.message_type();
                self.routing.transports(message_type, &self.handlers.interfaces(message_type, envelope.interfaces()))
            }
        };
        let found = names.into_iter().map(|name| self.transports.get(&name).map(|transport| (name, transport)));
        found.collect::<Result<_, _>>().map_err(|source| DispatchError::Sending { source, sent: Vec::new() })
    }

    /// The one queue that stores a message in a transaction. That of an auto-fallback is its target.
    fn in_transaction(
        &self,
        envelope: &Envelope,
        transports: IndexMap<String, Arc<Transport>>,
    ) -> Result<IndexMap<String, Arc<Transport>>, DispatchError> {
        let names: Vec<String> = transports.into_keys().collect();
        let [name] = names.as_slice() else {
            let why = match names.as_slice() {
                [] => "it is not routed to any transport, so that it would be handled at once".to_owned(),
                names => format!("it is routed to {}, and one transaction is on one database", names.join(" and ")),
            };
            let message_type = envelope.message_type().to_owned();
            return Err(DispatchError::NotInTransaction { message_type, why });
        };
        let queue = self.transports.target(name);
        let queue = queue.map_err(|source| DispatchError::Sending { source, sent: Vec::new() })?;
        Ok(IndexMap::from([(name.clone(), queue)]))
    }

    /// Sends the message to each transport in turn. Also returns whether one of them wants it handled now.
    async fn send(
        &self,
        mut envelope: Envelope,
        transports: &IndexMap<String, Arc<Transport>>,
        outlet: Option<&Outlet>,
    ) -> Result<(Envelope, bool), DispatchError> {
        let delay = envelope.last::<DelayStamp>().map_or(Duration::ZERO, |stamp| Duration::from_millis(stamp.delay));
        let message = envelope.clone().without::<TransportNamesStamp>();
        let mut sent = Vec::new();
        let mut handle_now = false;
        for (name, transport) in transports {
            let transport_name = name.clone();
            let result = match outlet {
                Some(outlet) => outlet.send(transport, &message, delay).await,
                None => transport.send(&message, delay).await,
            };
            match result {
                Ok(Sent::Queued { transport, id, reason }) => {
                    let stamp = SentStamp { transport_name, queued_on: transport, id: id.0, reason };
                    envelope.add(&stamp);
                    self.listeners.tell(&Event::MessageSent { envelope: &envelope, sent: &stamp });
                    // Those in a transaction are not there yet.
                    if delay.is_zero() && outlet.is_none_or(|outlet| !outlet.is_transaction()) {
                        self.local_workers.notify(&stamp.queued_on);
                    }
                    sent.push(stamp);
                }
                Ok(Sent::HandleNow { reason }) => {
                    envelope.add(&HandledNowStamp { transport_name: Some(transport_name), reason });
                    handle_now = true;
                }
                Err(source) => return Err(DispatchError::Sending { source, sent }),
            }
        }
        Ok((envelope, handle_now))
    }
}
