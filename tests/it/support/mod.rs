//! What tests run on: a project folder with the program in it, and stores of a test's own on servers.

pub mod applications;
pub mod databases;
pub mod exchanges;
pub mod http_server;
pub mod mail_server;
pub mod private_broker;
pub mod private_redis;
pub mod private_servers;
mod project;
pub mod proxy;
pub mod redis_keys;

pub use project::{Project, Run, Running, process_exists, wait_until};
