//! Every transport is held to its contract by the suite that authors of transports use too
//! (`minutely::testing::conformance`), and each to what it alone does, in a file of its own.
//!
//! A new transport is a new `Kind` in `stage.rs` and a `conformance!` here. What every transport does is added to the
//! suite.

mod amqp_login;
mod amqp_negotiation;
mod amqp_server;
mod mysql_server;
mod postgres_server;
mod redis_claims;
mod redis_server;
mod restarts;
mod sql_dsns;
mod sql_tables;
mod sqlite_file;
mod stage;

use stage::{Kind, Stores};

/// The closure that opens queues of a transport in stores of a test's own. Leaves the test where there is no server.
macro_rules! on {
    ($kind:ident) => {{
        let Some(stores) = Stores::new(Kind::$kind) else { return };
        move |dir, queue, options| stores.open(dir, queue, options)
    }};
}

minutely::conformance!(
    in_memory,
    [
        counting,
        setting_up,
        listing,
        taking,
        releasing,
        keeping_alive,
        parking,
        retrying,
        moving,
        waking,
        stable_ids,
        full_batches,
        header_order,
        binary_bodies,
        any_delay,
        redelivery,
        release_by_others
    ],
    on!(InMemory)
);

minutely::conformance!(
    sqlite,
    [
        counting,
        setting_up,
        listing,
        taking,
        releasing,
        keeping_alive,
        parking,
        retrying,
        moving,
        waking,
        stable_ids,
        full_batches,
        header_order,
        binary_bodies,
        any_delay,
        redelivery,
        auto_setup,
        release_by_others
    ],
    on!(Sqlite)
);

minutely::conformance!(
    postgres,
    [
        counting,
        setting_up,
        listing,
        taking,
        releasing,
        keeping_alive,
        parking,
        retrying,
        moving,
        waking,
        connecting,
        stable_ids,
        full_batches,
        header_order,
        any_delay,
        redelivery,
        auto_setup,
        release_by_others
    ],
    on!(Postgres)
);

minutely::conformance!(
    mysql,
    [
        counting,
        setting_up,
        listing,
        taking,
        releasing,
        keeping_alive,
        parking,
        retrying,
        moving,
        waking,
        connecting,
        stable_ids,
        full_batches,
        header_order,
        any_delay,
        redelivery,
        auto_setup,
        release_by_others
    ],
    on!(Mysql)
);

minutely::conformance!(
    redis,
    [
        counting,
        setting_up,
        listing,
        taking,
        releasing,
        keeping_alive,
        parking,
        retrying,
        moving,
        waking,
        connecting,
        stable_ids,
        full_batches,
        header_order,
        any_delay,
        redelivery,
        auto_setup,
        release_by_others
    ],
    on!(Redis)
);

// The broker lends messages to connections, and has neither ids for them nor a say about time.
minutely::conformance!(
    amqp,
    [
        counting,
        setting_up,
        releasing,
        parking,
        retrying,
        waking,
        prefetching,
        queues,
        connecting,
        binary_bodies,
        auto_setup
    ],
    on!(Amqp)
);
