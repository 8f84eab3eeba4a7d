//! One crontab line becomes a process manager with autoscaling workers, around a message bus that shares its queues
//! with Symfony Messenger.

#![warn(missing_docs)]

pub mod bus;
pub mod cache;
pub mod config;
pub mod handler;
pub mod heartbeat;
pub mod message;
pub mod supervisor;
pub mod transport;
pub mod worker;
