//! minutely and the real Symfony Messenger on the same queues.

mod amqp;
mod both;
mod contao;
mod php;
mod redis;
mod serialization;
mod signatures;
mod sql;

pub use php::Symfony;
