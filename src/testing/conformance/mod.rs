//! Tests of the behaviour that every transport must have: for the transports of this crate, and for yours.
//!
//! [`conformance!`](crate::conformance) generates a module of tests from a name, a list of abilities and a closure that
//! opens a queue. Add `minutely` with the feature `testing` to your development dependencies:
//!
//! ```
//! # use std::path::Path;
//! # use std::sync::Arc;
//! # use minutely::transport::{InMemory, Transport};
//! # fn open_shelf(dir: &Path, queue: &str) -> Transport { Transport::queue(queue, Arc::new(InMemory::new(queue))) }
//! minutely::conformance!(shelf, [counting, stable_ids], |dir, queue, options| open_shelf(dir, queue));
//! ```
//!
//! `cargo test shelf::` runs them.
//!
//! # The closure
//!
//! It is called with a folder, the name of a queue, and options as YAML, and returns a [`Transport`].
//!
//! - The folder stands for a store: queues opened with the same folder are in the same store, and queues opened with
//!   different folders in different stores. Each test has a folder of its own, which is empty at first and deleted in
//!   the end. A transport to a server can use the folder's name for a database, for example.
//! - The queues are called `a` and `b`. If a queue is opened twice, it is the same queue, opened as if by another
//!   process: do not share a connection.
//! - The options are `{}`, unless an ability below says otherwise. [`open`] takes folder, name and options as they are,
//!   and opens a queue by its factory, as the configuration of an application does.
//!
//! The expression for the closure is evaluated once for each test. It can be a block that starts what the test needs,
//! and that leaves the test with `return` if a server is missing.
//!
//! # Abilities
//!
//! Every transport is tested against the contract of [`Sender`](crate::transport::Sender) and
//! [`Receiver`](crate::transport::Receiver). The list says what else this one can do. Each word adds tests. If a word
//! is missing or superfluous, the test `it_can_do_what_is_declared` fails.
//!
//! | a part of [`Transport`] | what its tests need |
//! | --- | --- |
//! | `counting` | |
//! | `setting_up` | |
//! | `listing` | `stable_ids` |
//! | `taking` | `listing` |
//! | `releasing` | |
//! | `keeping_alive` | `releasing`, and the option `redeliver_timeout` in seconds |
//! | `parking` | |
//! | `retrying` | |
//! | `moving` | two queues of one folder between which messages move in one step |
//! | `waking` | |
//! | `prefetching` | |
//! | `queues` | the option `queues: {a: ~, b: ~}`, with which the transport has two queues or more |
//! | `connecting` | |
//!
//! | a property of the store | what it means |
//! | --- | --- |
//! | `stable_ids` | a message is received with the id that sending it returned, each time, and no other ever has it |
//! | `full_batches` | `receive(n)` returns `n` messages if that many are due |
//! | `header_order` | headers come back in their order |
//! | `binary_bodies` | a body may be any bytes; without it, one that is not UTF-8 is refused |
//! | `any_delay` | a delay of centuries is kept; without it, a delay that is too long is refused |
//! | `redelivery` | messages in flight are pending again after the option `redeliver_timeout`, in seconds |
//! | `auto_setup` | with the option `auto_setup: false`, only `setup` creates the store |
//! | `release_by_others` | any process may release, and only by the receipt of the last delivery |

#[doc(hidden)]
pub mod capabilities;
#[doc(hidden)]
pub mod contract;
mod stage;
#[doc(hidden)]
pub mod store;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;

#[doc(hidden)]
pub use stage::Stage;

use crate::config::{Secret, TransportConfig};
use crate::transport::{Factory, FactoryContext, Liveness, Transport, Transports};

/// Generates a module of tests that check a transport against its contract, see
/// [`testing::conformance`](crate::testing::conformance).
#[macro_export]
macro_rules! conformance {
    ($module:ident, [$($ability:ident),* $(,)?], $open:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports, reason = "the closure may need nothing from outside")]
            use super::*;

            #[test]
            fn it_can_do_what_is_declared() {
                let declared = [$(::core::stringify!($ability)),*];
                $crate::testing::conformance::run($open, async |stage| {
                    $crate::testing::conformance::capabilities::it_can_do_what_is_declared(stage, &declared).await;
                });
            }

            $crate::__conformance!($open; contract);
            $($crate::__conformance!($open; $ability);)*
        }
    };
}

/// The tests that each ability adds.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($open:expr; contract) => {
        $crate::__conformance!($open; contract:
            a_message_is_sent_received_once_and_gone_when_acknowledged
            a_rejected_message_is_gone
            messages_are_received_in_the_order_they_were_sent
            many_messages_sent_at_once_are_received_in_their_order
            messages_sent_at_once_keep_their_delays
            messages_sent_at_once_by_several_are_all_stored
            a_message_that_is_refused_keeps_no_other_out
            sending_nothing_at_once_stores_nothing
            a_receiver_gets_no_more_than_it_asks_for
            other_queues_are_not_affected
            a_delayed_message_waits_for_its_time
            a_delay_is_never_cut_short
            a_delay_of_any_length_is_kept_or_refused
            eight_consumers_lose_no_message_and_get_none_twice
            many_messages_are_acknowledged_at_once
            a_body_of_a_mebibyte_survives
            any_json_text_survives_byte_for_byte
            a_body_that_is_not_text_survives_or_is_refused
            unknown_stamps_and_headers_survive
            unknown_ids_are_skipped
            nothing_is_received_from_a_missing_store
        );
    };
    ($open:expr; counting) => {
        $crate::__conformance!($open; capabilities:
            pending_delayed_and_in_flight_are_counted_separately
            counting_stops_at_the_cap
            a_missing_store_counts_as_empty
        );
    };
    ($open:expr; setting_up) => {
        $crate::__conformance!($open; capabilities: setting_up_may_be_repeated_by_many_at_once);
    };
    ($open:expr; listing) => {
        $crate::__conformance!($open; capabilities:
            messages_are_listed_by_pages_and_found_without_being_received
            a_missing_message_is_not_found
        );
    };
    ($open:expr; taking) => {
        $crate::__conformance!($open; capabilities:
            a_taken_message_is_in_flight_for_all_and_can_be_finished
            a_taken_message_is_kept_alive_and_finished_after_that
            of_several_that_take_a_message_one_gets_it
        );
    };
    ($open:expr; releasing) => {
        $crate::__conformance!($open; capabilities:
            a_released_message_is_delivered_again_at_once
            releasing_affects_only_messages_in_flight
        );
    };
    ($open:expr; keeping_alive) => {
        $crate::__conformance!($open; capabilities:
            a_message_kept_alive_is_not_delivered_again
            a_message_kept_alive_is_released_by_its_new_receipt
            keeping_alive_affects_only_messages_in_flight
        );
    };
    ($open:expr; parking) => {
        $crate::__conformance!($open; capabilities: parked_messages_are_counted_and_resumed);
    };
    ($open:expr; retrying) => {
        $crate::__conformance!($open; capabilities:
            a_retry_replaces_the_message_and_keeps_one_copy
            a_retry_is_never_too_early
            a_retry_does_not_bring_a_finished_message_back
        );
    };
    ($open:expr; moving) => {
        $crate::__conformance!($open; capabilities:
            a_message_moves_to_another_queue_in_one_step
            a_message_does_not_move_to_another_store
            a_moved_message_is_out_of_reach_of_its_former_consumer
            a_finished_message_is_not_moved
        );
    };
    ($open:expr; waking) => {
        $crate::__conformance!($open; capabilities: a_waiting_consumer_is_woken);
    };
    ($open:expr; prefetching) => {
        $crate::__conformance!($open; capabilities:
            what_is_fetched_ahead_is_received_or_returned
            nothing_is_fetched_ahead_until_it_is_allowed
        );
    };
    ($open:expr; queues) => {
        $crate::__conformance!($open; capabilities:
            each_queue_is_received_from_and_counted_alone
            a_retry_goes_back_to_its_own_queue
        );
    };
    ($open:expr; connecting) => {
        $crate::__conformance!($open; capabilities:
            queues_of_one_store_name_the_same_server
            a_connection_that_was_closed_opens_again
            what_was_said_before_closing_is_done
        );
    };
    ($open:expr; stable_ids) => {
        $crate::__conformance!($open; store:
            a_message_is_received_with_the_id_it_was_sent_with
            messages_sent_at_once_are_received_with_their_ids
            a_message_that_comes_again_has_the_same_id
            an_id_is_never_given_to_another_message
        );
    };
    ($open:expr; full_batches) => {
        $crate::__conformance!($open; store: a_receiver_gets_as_many_as_it_asks_for);
    };
    ($open:expr; header_order) => {
        $crate::__conformance!($open; store: headers_keep_their_order);
    };
    ($open:expr; binary_bodies) => {
        $crate::__conformance!($open; store: a_body_that_is_not_text_survives);
    };
    ($open:expr; any_delay) => {
        $crate::__conformance!($open; store: a_delay_of_centuries_is_no_error);
    };
    ($open:expr; redelivery) => {
        $crate::__conformance!($open; store:
            a_message_in_flight_is_delivered_again_after_the_redeliver_timeout_and_not_before
            a_message_in_flight_for_too_long_is_shown_as_pending
        );
    };
    ($open:expr; auto_setup) => {
        $crate::__conformance!($open; store: without_auto_setup_a_missing_store_is_an_error_that_says_so);
    };
    ($open:expr; release_by_others) => {
        $crate::__conformance!($open; store:
            a_message_is_released_by_another_process
            a_former_consumer_can_neither_release_a_message_nor_keep_it_alive
        );
    };
    ($open:expr; $part:ident: $($behaviour:ident)*) => {
        $(
            #[test]
            fn $behaviour() {
                $crate::testing::conformance::run($open, $crate::testing::conformance::$part::$behaviour);
            }
        )*
    };
    ($open:expr; $unknown:ident) => {
        ::core::compile_error!(::core::concat!(
            "`", ::core::stringify!($unknown), "` is no ability; the documentation of minutely::testing::conformance lists them"
        ));
    };
}

/// Opens a queue with its factory, as an application does: with its name in the configuration, its DSN, options as
/// YAML, and this folder as the project's.
///
/// # Panics
///
/// If the factory refuses the description. The message has the problems.
pub fn open(factory: Arc<dyn Factory>, dir: &Path, queue: &str, dsn: &str, options: &str) -> Arc<Transport> {
    let config = TransportConfig {
        name: queue.to_owned(),
        path: format!("transports.{queue}"),
        dsn: Secret(dsn.to_owned()),
        options: serde_yaml::from_str(options).expect("options in YAML"),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    };
    let context = FactoryContext {
        project_dir: dir.to_owned(),
        state_dir: dir.join("var"),
        connections: IndexMap::new(),
        liveness: Arc::new(NobodyConsumes),
    };
    let transports = Transports::new(&IndexMap::from([(queue.to_owned(), config)]), &[factory], &context);
    let transports = transports.unwrap_or_else(|problems| panic!("{dsn}: {problems:?}"));
    transports.get(queue).expect("it was made just now")
}

struct NobodyConsumes;

#[async_trait]
impl Liveness for NobodyConsumes {
    async fn is_running(&self, _transports: &[&str]) -> bool {
        false
    }
}

/// Runs one test.
#[doc(hidden)]
pub fn run<T: Into<Arc<Transport>>>(
    open: impl Fn(&Path, &str, &str) -> T + Send + Sync + 'static,
    behaviour: impl AsyncFnOnce(&Stage),
) {
    let stage = Stage::new(move |dir, queue, options| open(dir, queue, options).into());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a test has a runtime").block_on(behaviour(&stage));
}
