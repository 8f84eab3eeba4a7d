//! The contract that every transport keeps: each behaviour is one test on each transport.
//!
//! `stage.rs` holds the transports and what they can do, `behaviours.rs` what is expected of them. A new transport is a
//! new `Kind` and a line in `on_every_transport!`; a new behaviour is a function and its name at the end of this file. What
//! concerns one transport alone (damaged files, say) has a file of its own.

mod amqp_server;
mod behaviours;
mod mysql_server;
mod postgres_server;
mod redis_claims;
mod redis_server;
mod restarts;
mod sql_dsns;
mod sqlite_file;
mod stage;

use stage::{Kind, Stage};

/// Makes the tests of one transport.
macro_rules! suite {
    ($module:ident, $kind:expr, $($behaviour:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                async fn $behaviour() {
                    if let Some(stage) = Stage::new($kind).await {
                        behaviours::$behaviour(&stage).await;
                    }
                }
            )*
        }
    };
}

macro_rules! on_every_transport {
    ($($behaviour:ident)*) => {
        suite!(in_memory, Kind::InMemory, $($behaviour)*);
        suite!(sqlite, Kind::Sqlite, $($behaviour)*);
        suite!(postgres, Kind::Postgres, $($behaviour)*);
        suite!(mysql, Kind::Mysql, $($behaviour)*);
        suite!(redis, Kind::Redis, $($behaviour)*);
        suite!(amqp, Kind::Amqp, $($behaviour)*);
    };
}

on_every_transport! {
    it_can_do_what_it_is_said_to
    a_message_is_sent_received_once_and_gone_when_acknowledged
    a_rejected_message_is_gone
    messages_come_in_the_order_they_were_sent
    a_receiver_gets_no_more_than_it_asks_for
    another_queue_is_not_touched
    a_delayed_message_waits_for_its_time
    a_delay_is_never_cut_short
    a_delay_of_centuries_is_no_error
    a_message_in_flight_comes_back_after_the_redeliver_timeout_and_not_before
    pending_delayed_and_in_flight_are_counted_apart
    counting_stops_at_the_cap
    eight_consumers_lose_no_message_and_get_none_twice
    many_messages_are_acknowledged_at_once
    a_body_of_a_mebibyte_survives
    any_text_json_allows_survives_byte_for_byte
    a_body_that_is_no_text_survives
    unknown_stamps_and_headers_survive_in_their_order
    ids_that_are_not_there_are_passed_over
    without_auto_setup_a_missing_store_is_an_error_that_says_so
    setting_up_may_be_repeated_by_many_at_once
    nothing_is_found_in_a_store_that_is_not_there_yet
    messages_are_listed_by_pages_and_found_without_being_taken
    a_released_message_is_pending_at_once
    releasing_touches_only_what_is_in_flight
    who_had_a_message_before_neither_releases_nor_keeps_it
    a_message_kept_alive_is_released_by_its_new_receipt
    a_message_kept_alive_does_not_come_back
    what_rests_is_counted_and_resumed
    a_retry_replaces_the_message_and_keeps_one_copy
    a_retry_does_not_bring_a_finished_message_back
    a_message_moves_to_another_queue_in_one_step
    a_message_moves_to_another_table_in_one_step
    a_message_does_not_move_to_another_store
    a_moved_message_is_out_of_reach_of_its_former_consumer
    a_waiting_consumer_is_woken
}
