//! Queues for messages. Each transport is a file or folder, and a factory that is found by the DSN's scheme creates it.
//!
//! A [`Transport`] consists of small parts. A [`Sender`] stores messages. A [`Receiver`] delivers them to consumers,
//! and removes them when they were handled. Everything else (counting, setting up, listing, …) is an optional part of
//! its own, and `None` if a transport cannot do it. The traits say what each call must guarantee, and a suite of tests
//! (`minutely::testing::conformance`, feature `testing`) checks every transport against them.
//!
//! A message in a store is *pending* (due, waiting), *delayed* (waiting to become due) or *in flight* (received by a
//! consumer that has not acknowledged it; pending again after `redeliver_timeout`).
//!
//! ```text
//!             send                receive                ack | reject
//!   (nothing) ────▶ delayed ─▶ pending ────▶ in flight ─────────────▶ (gone)
//!                      ▲          ▲              │
//!                      │          └── release ───┤  redeliver_timeout
//!                      └───────────── retry ─────┘
//! ```
//!
//! # A transport of your own
//!
//! Two traits for its queue, and one for its factory, which an application adds with
//! [`AppBuilder::transport`](crate::AppBuilder::transport). This one keeps messages in memory, at `shelf://`:
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::{Duration, Instant};
//!
//! use async_trait::async_trait;
//! use minutely::config::Problem;
//! use minutely::message::Encoded;
//! use minutely::transport::{
//!     Factory, FactoryContext, MessageId, Receipt, Received, Receiver, Sender, Sent, Transport, TransportError,
//!     TransportSpec,
//! };
//!
//! #[derive(Default)]
//! struct Shelf {
//!     name: String,
//!     messages: Mutex<BTreeMap<u64, Stored>>,
//! }
//!
//! struct Stored {
//!     message: Encoded,
//!     /// When it is due; if it is in flight, when it is due again.
//!     due: Instant,
//! }
//!
//! const REDELIVER_TIMEOUT: Duration = Duration::from_secs(3600);
//! const LONGEST_DELAY: Duration = Duration::from_secs(100 * 365 * 86_400);
//!
//! #[async_trait]
//! impl Sender for Shelf {
//!     async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
//!         let mut messages = self.messages.lock().unwrap();
//!         let id = messages.last_key_value().map_or(1, |(last, _)| last + 1);
//!         let due = Instant::now() + delay.min(LONGEST_DELAY);
//!         messages.insert(id, Stored { message: message.clone(), due });
//!         Ok(Sent::Queued { transport: self.name.clone(), id: MessageId(id.to_string()), reason: None })
//!     }
//! }
//!
//! #[async_trait]
//! impl Receiver for Shelf {
//!     async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
//!         let now = Instant::now();
//!         let mut messages = self.messages.lock().unwrap();
//!         let due = messages.iter_mut().filter(|(_, stored)| stored.due <= now).take(up_to);
//!         let taken = due.map(|(id, stored)| {
//!             stored.due = now + REDELIVER_TIMEOUT;
//!             let (id, message) = (MessageId(id.to_string()), Ok(stored.message.clone()));
//!             Received { id, receipt: Receipt::default(), message }
//!         });
//!         Ok(taken.collect())
//!     }
//!
//!     async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
//!         let mut messages = self.messages.lock().unwrap();
//!         // Ids that are unknown, or of messages that are gone, are skipped.
//!         for id in ids.iter().filter_map(|id| id.0.parse::<u64>().ok()) {
//!             messages.remove(&id);
//!         }
//!         Ok(())
//!     }
//!
//!     async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
//!         self.ack(ids).await
//!     }
//! }
//!
//! struct ShelfFactory;
//!
//! impl Factory for ShelfFactory {
//!     fn schemes(&self) -> &'static [&'static str] {
//!         &["shelf"]
//!     }
//!
//!     fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
//!         // It has no options: any option is reported as a mistake.
//!         spec.options().finish()?;
//!         let shelf = Shelf { name: spec.name.clone(), ..Shelf::default() };
//!         Ok(Transport::queue(&spec.name, Arc::new(shelf)))
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let shelf = Shelf { name: "mail".into(), ..Shelf::default() };
//! let mail = Transport::queue("mail", Arc::new(shelf));
//! mail.sender.send(&Encoded::default(), Duration::ZERO).await?;
//! let receiver = mail.receiver.unwrap();
//! let received = receiver.receive(10).await?;
//! assert_eq!(received.len(), 1);
//! assert!(receiver.receive(10).await?.is_empty());
//! receiver.ack(&[received[0].id.clone()]).await?;
//! # Ok::<(), TransportError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "amqp")]
mod amqp;
mod auto_fallback;
mod capabilities;
mod contract;
mod delivery;
mod error;
mod factory;
mod in_memory;
mod options;
#[cfg(feature = "redis")]
mod redis;
mod registry;
mod sql;
mod sync;
mod transports;

pub(crate) use auto_fallback::Liveness;
pub use capabilities::{
    Addressing, Browsing, Connecting, Counting, KeepingAlive, Listing, Migrating, Moving, Parking, Place, Prefetching,
    Releasing, Retrying, SchemaChange, SettingUp, Taking, Waking,
};
pub(crate) use contract::Enlisting;
pub use contract::{Queues, Receiver, Sender, ToSend, Transport};
pub use delivery::{Counts, Damaged, Delivery, Listed, MessageId, PARKED_FOR, Receipt, Received, Sent};
pub use error::TransportError;
pub use factory::{Factory, FactoryContext};
pub use in_memory::{InMemory, InMemoryFactory};
pub(crate) use registry::{built_in_factories, built_in_factories_on};
#[cfg(test)]
pub(crate) use sync::SyncTransport;
pub use transports::Transports;
pub(crate) use transports::scheme_options;

pub use crate::config::dsn::{Dsn, Host};
pub use crate::config::spec::{OptionReader, TransportSpec};
