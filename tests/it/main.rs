//! Tests from outside the crate: one program, with a module for each subject.
//!
//! `cargo test --test it worker::` runs one module, and `cargo test --test it NAME` the tests with this in their names.
//! Tests that need a server are ignored if there is none; `support` has their stores.

#![allow(unreachable_pub, reason = "a program has no public items, and `pub` says what a module is for")]

#[macro_use]
extern crate harness;

mod axum_example;
mod bad_input;
mod bulk;
mod buses;
mod cache;
mod cgi;
mod conformance;
mod cron_jobs;
mod crontab;
mod dispatch;
mod documentation;
mod embedded;
mod failed;
mod fetching_on_amqp;
mod first_use;
mod function_jobs;
mod http_handlers;
mod http_jobs;
mod in_transaction;
mod interop;
mod limits;
mod mail;
mod own_transports_options;
mod redis_behind_others;
mod schema;
mod serializers;
mod serve;
mod several_hosts;
mod stream;
mod supervision;
mod supervisor_in_process;
mod support;
mod symfony_documentation;
mod transport_options;
mod worker;
mod worker_events;
mod worker_in_trouble;
mod worker_on_amqp;
mod worker_on_redis;
mod worker_on_sql;

fn main() -> std::process::ExitCode {
    // They test applications by their processes, which are this program.
    let program = axum_example::instead_of_tests().or_else(embedded::instead_of_tests);
    if let Some(code) = program.or_else(function_jobs::instead_of_tests) {
        return code;
    }
    harness::run(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/", file!())))
}
