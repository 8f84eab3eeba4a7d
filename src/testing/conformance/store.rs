//! Tests of properties that only some stores have.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests: the names say what is expected"
)]

use std::time::{Duration, Instant, SystemTime};

use super::Stage;
use super::contract::{CENTURIES, CLOCKS, with_odd_headers};
use super::stage::{DEADLINE, bodies, deliveries, ids, message, message_of};
use crate::transport::{Counts, ToSend, TransportError};

pub async fn a_message_is_received_with_the_id_it_was_sent_with(stage: &Stage) {
    let (producer, consumer) = (stage.open("a"), stage.open("a"));
    let sent = [producer.send("{}").await, producer.send("{}").await];
    assert_ne!(sent[0], sent[1]);
    assert_eq!(ids(&consumer.receive_all().await), sent);
}

pub async fn messages_sent_at_once_are_received_with_their_ids(stage: &Stage) {
    let queue = stage.open("a");
    let messages: Vec<ToSend> =
        (0..1100).map(|n| ToSend { message: message(n.to_string()), delay: Duration::ZERO }).collect();
    let sent = queue.sender.send_all(&messages).await;
    let sent: Vec<_> = sent.into_iter().map(|sent| queue.queued(sent)).collect();
    let received = queue.receive_all().await;
    assert!(ids(&received) == sent, "they are others, or in another order");
    assert!(bodies(&received).into_iter().eq((0..1100).map(|n| n.to_string())));
}

pub async fn a_message_that_comes_again_has_the_same_id(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("a"));
    let sent = queue.send("{}").await;
    let mut received = queue.receive_eventually().await;
    assert_eq!(received.id, sent);
    if let Some(releasing) = &queue.releasing {
        releasing.release(&[received.delivery()]).await.unwrap();
        received = other.receive_eventually().await;
        assert_eq!(received.id, sent, "after it was released");
    }
    if let Some(listing) = &queue.listing {
        assert_eq!(listing.find(&sent).await.unwrap().map(|listed| listed.received.id), Some(sent));
    }
    other.ack(&[received]).await;
    queue.is_empty().await;
}

/// Whoever still has the id of a finished message must not finish another one by it.
pub async fn an_id_is_never_given_to_another_message(stage: &Stage) {
    let queue = stage.open("a");
    let mut finished = Vec::new();
    for n in 0..5 {
        let sent = queue.send(n.to_string()).await;
        assert!(!finished.contains(&sent), "{sent:?} is the id of a finished message");
        queue.receiver().ack(&finished).await.unwrap();
        let received = queue.receive_eventually().await;
        assert_eq!(bodies(std::slice::from_ref(&received)), [n.to_string()]);
        finished.push(received.id.clone());
        queue.ack(&[received]).await;
    }
    queue.is_empty().await;
}

pub async fn a_receiver_gets_as_many_as_it_asks_for(stage: &Stage) {
    let queue = stage.open("a");
    for n in 0..5 {
        queue.send(n.to_string()).await;
    }
    assert_eq!(queue.receive(2).await.len(), 2);
    assert_eq!(queue.receive(usize::MAX).await.len(), 3);
}

pub async fn headers_keep_their_order(stage: &Stage) {
    let queue = stage.open("a");
    let sent = with_odd_headers();
    queue.sender.send(&sent, Duration::ZERO).await.unwrap();
    let received = queue.receive(1).await;
    assert!(message_of(&received[0]).headers.names().eq(sent.headers.names()), "{received:?}");
}

pub async fn a_body_that_is_not_text_survives(stage: &Stage) {
    let queue = stage.open("a");
    for body in [(0..=255).rev().collect(), b"\0".to_vec(), b"a\0b".to_vec()] {
        queue.send(body.clone()).await;
        assert_eq!(message_of(&queue.receive(1).await[0]).body, body);
    }
}

pub async fn a_delay_of_centuries_is_no_error(stage: &Stage) {
    let queue = stage.open("a");
    for delay in CENTURIES {
        queue.send_later("{}", delay).await;
    }
    queue.holds(Counts { delayed: 3, ..Counts::default() }).await;
}

pub async fn a_message_in_flight_is_delivered_again_after_the_redeliver_timeout_and_not_before(stage: &Stage) {
    let queue = stage.open_with("a", "{redeliver_timeout: 1}");
    queue.send("{}").await;
    let before = Instant::now();
    let received = queue.receive(1).await;
    assert_eq!(received.len(), 1);
    let again = queue.receive_eventually().await;
    assert!(before.elapsed() + CLOCKS >= Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(again.id, received[0].id);
}

/// Otherwise no worker is started for the messages of one that has died.
pub async fn a_message_in_flight_for_too_long_is_shown_as_pending(stage: &Stage) {
    let (queue, other) =
        (stage.open_with("a", "{redeliver_timeout: 1}"), stage.open_with("a", "{redeliver_timeout: 1}"));
    let Some(counting) = &other.counting else { return };
    let sent = queue.send("{}").await;
    let before = Instant::now();
    assert_eq!(queue.receive(1).await.len(), 1);
    // No consumer asks meanwhile.
    while counting.pending(9).await.unwrap() == 0 {
        assert!(before.elapsed() < DEADLINE, "in flight for longer than its `redeliver_timeout`, it is never pending");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(before.elapsed() + CLOCKS >= Duration::from_secs(1), "pending after {:?}", before.elapsed());
    other.holds(Counts { pending: 1, ..Counts::default() }).await;
    if let Some(listing) = &other.listing {
        assert!(
            !listing.find(&sent).await.unwrap().unwrap().in_flight,
            "it is counted as pending, and listed in flight"
        );
    }
}

pub async fn without_auto_setup_a_missing_store_is_an_error_that_says_so(stage: &Stage) {
    let queue = stage.open_with("a", "{auto_setup: false}");
    fn not_set_up<T: std::fmt::Debug>(action: &str, result: Result<T, TransportError>) {
        assert!(
            matches!(&result, Err(TransportError::NotSetUp { transport, .. }) if transport == "a"),
            "{action} with `auto_setup: false` and before `setup`: expected TransportError::NotSetUp of the transport \
             \"a\", found {result:?}"
        );
    }
    not_set_up("send", queue.sender.send(&message("{}"), Duration::ZERO).await);
    not_set_up("receive", queue.receiver().receive(1).await);
    if let Some(counting) = &queue.counting {
        not_set_up("pending", counting.pending(1).await);
        not_set_up("counts", counting.counts(1).await);
    }
    queue.setting_up.as_ref().expect("`auto_setup` needs `setting_up`").setup().await.unwrap();
    queue.send("{}").await;
    assert_eq!(bodies(&queue.receive_all().await), ["{}"]);
}

pub async fn a_message_is_released_by_another_process(stage: &Stage) {
    let (consumer, supervisor) = (stage.open("a"), stage.open("a"));
    for n in 0..3 {
        consumer.send(n.to_string()).await;
    }
    let received = consumer.receive(2).await;
    supervisor.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    supervisor.holds(Counts { pending: 3, ..Counts::default() }).await;
}

pub async fn a_former_consumer_can_neither_release_a_message_nor_keep_it_alive(stage: &Stage) {
    let (before, now) = (stage.open("a"), stage.open("a"));
    let releasing = before.releasing.as_ref().unwrap();
    for by_retry in [true, false] {
        before.send("{}").await;
        let stale = before.receive(1).await;
        let stale_deliveries = deliveries(&stale);
        match &before.retrying {
            Some(retrying) if by_retry => {
                retrying.retry(&stale[0].id, &message("{}"), Duration::ZERO).await.unwrap();
            }
            _ => {
                // Within this time, the next receipt may be equal to this one.
                tokio::time::sleep(releasing.receipt_repeats_within()).await;
                releasing.release(&stale_deliveries).await.unwrap();
            }
        }
        let received = now.receive_eventually().await;
        releasing.release(&stale_deliveries).await.unwrap();
        now.holds(Counts { in_flight: 1, ..Counts::default() }).await;
        assert!(now.receive(1).await.is_empty(), "it stays with who has it now, by_retry: {by_retry}");
        if let Some(keeping_alive) = &before.keeping_alive {
            keeping_alive.keep_alive(&stale_deliveries, SystemTime::now()).await.unwrap();
        }
        now.releasing.as_ref().unwrap().release(&[received.delivery()]).await.unwrap();
        now.holds(Counts { pending: 1, ..Counts::default() }).await;
        let again = now.receive_eventually().await;
        now.ack(&[again]).await;
    }
}
