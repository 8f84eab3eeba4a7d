//! Tests of what every transport does.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests: the names say what is expected"
)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use super::Stage;
use super::stage::{DEADLINE, HOUR, bodies, ids, message, message_of};
use crate::message::Encoded;
use crate::transport::{Counts, MessageId, ToSend, TransportError};

/// How far two clocks of a host may disagree within a second: a store measures by another one than these tests.
pub(super) const CLOCKS: Duration = Duration::from_micros(100);

/// The time between two messages that are due one after the other.
const DUE_EVERY: Duration = Duration::from_micros(1_070);

/// Very long delays. A store need not support all of them.
pub(super) const CENTURIES: [Duration; 3] =
    [Duration::from_secs(500 * 365 * 86400), Duration::from_millis(u64::MAX), Duration::MAX];

/// A message with headers that are hard to store.
pub(super) fn with_odd_headers() -> Encoded {
    let mut message = message("{}");
    for (name, value) in [
        (r"X-Message-Stamp-App\Stamp\Tenant", r#"[{"id": 7 , "x":null}]"#),
        ("x-empty", ""),
        ("A \"quoted\" näme\n", "line\r\nline \u{0} \u{1f} ' \\ \u{1f600}"),
        ("", "no name"),
    ] {
        message.headers.insert(name, value);
    }
    message
}

pub async fn a_message_is_sent_received_once_and_gone_when_acknowledged(stage: &Stage) {
    let (producer, consumer) = (stage.open("a"), stage.open("a"));
    producer.send("{\"n\":1}").await;
    let received = consumer.receive(10).await;
    assert_eq!(received.len(), 1);
    assert_eq!(message_of(&received[0]), &message("{\"n\":1}"));
    assert!(consumer.receive(10).await.is_empty());
    assert!(producer.receive(10).await.is_empty(), "no other consumer receives it either");
    consumer.ack(&received).await;
    producer.is_empty().await;
}

pub async fn a_rejected_message_is_gone(stage: &Stage) {
    let queue = stage.open("a");
    queue.send("{}").await;
    queue.receiver().reject(&ids(&queue.receive(1).await)).await.unwrap();
    queue.is_empty().await;
}

pub async fn messages_are_received_in_the_order_they_were_sent(stage: &Stage) {
    let queue = stage.open("a");
    for n in 0..30 {
        queue.send(n.to_string()).await;
    }
    let mut order = Vec::new();
    while order.len() < 30 {
        order.extend(bodies(&queue.receive(7).await));
    }
    assert_eq!(order, (0..30).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// More than a store takes in one step.
pub async fn many_messages_sent_at_once_are_received_in_their_order(stage: &Stage) {
    const MESSAGES: usize = 1500;
    let queue = stage.open("a");
    let messages: Vec<ToSend> = (0..MESSAGES).map(|n| to_send(n.to_string(), Duration::ZERO)).collect();
    let sent = queue.sender.send_all(&messages).await;
    assert_eq!(sent.len(), MESSAGES);
    let ids: HashSet<MessageId> = sent.into_iter().map(|sent| queue.queued(sent)).collect();
    assert_eq!(ids.len(), MESSAGES, "each has an id of its own");
    let received = stage.open("a").receive_all().await;
    assert_eq!(bodies(&received), (0..MESSAGES).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub async fn messages_sent_at_once_keep_their_delays(stage: &Stage) {
    let queue = stage.open("a");
    let second = Duration::from_secs(1);
    let messages =
        [("0", HOUR), ("1", Duration::ZERO), ("2", second), ("3", Duration::ZERO), ("4", HOUR), ("5", second)];
    let began = Instant::now();
    for sent in queue.sender.send_all(&messages.map(|(body, delay)| to_send(body, delay))).await {
        queue.queued(sent);
    }
    let mut received = Vec::new();
    while received.len() < 4 {
        let message = queue.receive_eventually().await;
        let body = bodies(std::slice::from_ref(&message)).remove(0);
        assert!(["1", "3"].contains(&body.as_str()) || began.elapsed() + CLOCKS >= second, "{body} came too early");
        received.push(body);
        queue.ack(&[message]).await;
    }
    received.sort();
    assert_eq!(received, ["1", "2", "3", "5"]);
    queue.holds(Counts { delayed: 2, ..Counts::default() }).await;
}

pub async fn a_message_that_is_refused_keeps_no_other_out(stage: &Stage) {
    let queue = stage.open("a");
    let mut messages: Vec<ToSend> = (0..5).map(|n| to_send(n.to_string(), Duration::ZERO)).collect();
    messages[2].message.body = b"a\0\xff".to_vec().into();
    // So large that it makes a step of its own.
    messages[3].message.body = format!("\"{}\"", "x".repeat(2 << 20)).into();
    let sent = queue.sender.send_all(&messages).await;
    assert_eq!(sent.len(), 5);
    let mut expected = Vec::new();
    for (n, sent) in sent.into_iter().enumerate() {
        match sent {
            Err(TransportError::Unstorable { .. }) if n == 2 => {}
            sent => {
                queue.queued(sent);
                expected.push(messages[n].message.body.clone());
            }
        }
    }
    let received = queue.receive_all().await;
    let found: Vec<_> = received.iter().map(|received| message_of(received).body.clone()).collect();
    assert!(found == expected, "{} received, of {}", found.len(), expected.len());
}

pub async fn sending_nothing_at_once_stores_nothing(stage: &Stage) {
    let queue = stage.open("a");
    assert!(queue.sender.send_all(&[]).await.is_empty());
    queue.send("{}").await;
    assert!(queue.sender.send_all(&[]).await.is_empty());
    assert_eq!(queue.receive_all().await.len(), 1);
}

pub async fn messages_sent_at_once_by_several_are_all_stored(stage: &Stage) {
    const EACH: usize = 200;
    let senders = (0..4).map(|sender| {
        let queue = stage.open("a");
        tokio::spawn(async move {
            let messages: Vec<ToSend> = (0..EACH).map(|n| to_send(format!("[{sender},{n}]"), Duration::ZERO)).collect();
            let sent = queue.sender.send_all(&messages).await;
            sent.into_iter().map(|sent| queue.queued(sent)).collect::<Vec<_>>()
        })
    });
    let senders: Vec<_> = senders.collect();
    let ids: Vec<MessageId> = join_all(senders).await.into_iter().flat_map(|sent| sent.unwrap()).collect();
    assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), 4 * EACH);
    let received = bodies(&stage.open("a").receive_all().await);
    assert_eq!(received.len(), 4 * EACH);
    for sender in 0..4 {
        let own = received.iter().filter(|body| body.starts_with(&format!("[{sender},")));
        let expected = (0..EACH).map(|n| format!("[{sender},{n}]"));
        assert!(own.cloned().eq(expected), "those of one sender are received in their order");
    }
}

fn to_send(body: impl Into<Bytes>, delay: Duration) -> ToSend {
    ToSend { message: message(body), delay }
}

pub async fn a_receiver_gets_no_more_than_it_asks_for(stage: &Stage) {
    let queue = stage.open("a");
    for n in 0..5 {
        queue.send(n.to_string()).await;
    }
    assert!(queue.receive(0).await.is_empty());
    let first = queue.receive(2).await.len();
    assert!((1..=2).contains(&first), "{first}: some are due");
    let second = queue.receive(usize::MAX).await.len();
    assert_eq!(first + second + queue.receive_all().await.len(), 5);
}

pub async fn other_queues_are_not_affected(stage: &Stage) {
    let (a, b) = (stage.open("a"), stage.open("b"));
    let id = a.send("{}").await;
    b.is_empty().await;
    b.receiver().ack(std::slice::from_ref(&id)).await.unwrap();
    b.receiver().reject(&[id]).await.unwrap();
    assert_eq!(a.receive(10).await.len(), 1);
}

pub async fn a_delayed_message_waits_for_its_time(stage: &Stage) {
    let queue = stage.open("a");
    queue.send_later("much later", HOUR).await;
    let sent = Instant::now();
    queue.send_later("later", Duration::from_secs(1)).await;
    queue.send("now").await;
    // On a busy machine, both may be due by then.
    let mut received = vec![queue.receive_eventually().await, queue.receive_eventually().await];
    assert!(sent.elapsed() + CLOCKS >= Duration::from_secs(1), "{:?}", sent.elapsed());
    received.extend(queue.receive_all().await);
    let mut bodies = bodies(&received);
    bodies.sort();
    assert_eq!(bodies, ["later", "now"]);
}

/// A store with a resolution of its own, such as a millisecond, must round up.
pub async fn a_delay_is_never_cut_short(stage: &Stage) {
    const MESSAGES: u32 = 30;
    let (producer, consumer) = (stage.open("a"), stage.open("a"));
    // The first creates the store, and the second tells how long sending takes: all are to be sent before any is due.
    producer.send_later("", HOUR).await;
    let start = Instant::now();
    producer.send_later("", HOUR).await;
    let shortest = Duration::from_millis(50) + 2 * MESSAGES * start.elapsed().min(Duration::from_millis(25));
    // They are due at different fractions of a millisecond.
    let delays: Vec<Duration> = (0..MESSAGES).map(|n| shortest + n * DUE_EVERY).collect();
    let producer = &producer;
    let sent: Vec<Instant> = join_all(delays.iter().enumerate().map(|(n, delay)| async move {
        let before = Instant::now();
        producer.send_later(n.to_string(), *delay).await;
        before
    }))
    .await;
    let (first, mut left) = (sent[0], delays.len());
    while left > 0 {
        for received in consumer.receive(1000).await {
            let at = Instant::now();
            let n: usize = bodies(std::slice::from_ref(&received))[0].parse().unwrap();
            let waited = at.duration_since(sent[n]);
            assert!(
                waited + CLOCKS >= delays[n],
                "delayed by {:?}, the message came after {waited:?}: {:?} early",
                delays[n],
                delays[n] - waited
            );
            consumer.ack(&[received]).await;
            left -= 1;
        }
        assert!(first.elapsed() < DEADLINE, "{left} of {MESSAGES} delayed messages are missing");
        // Asked all the time at first, so that a message that is early by a fraction of a millisecond is seen.
        match first.elapsed() < shortest + Duration::from_millis(200) {
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub async fn a_delay_of_any_length_is_kept_or_refused(stage: &Stage) {
    let queue = stage.open("a");
    for delay in CENTURIES {
        let sent = queue.sender.send(&message("{}"), delay).await;
        assert!(matches!(sent, Ok(_) | Err(TransportError::Unstorable { .. })), "{delay:?}: {sent:?}");
    }
    assert!(queue.receive(3).await.is_empty(), "none is due");
}

pub async fn eight_consumers_lose_no_message_and_get_none_twice(stage: &Stage) {
    const MESSAGES: usize = 300;
    let handled = Arc::new(AtomicUsize::new(0));
    let producers = (0..2).map(|producer| {
        let queue = stage.open("a");
        tokio::spawn(async move {
            for n in (producer..MESSAGES).step_by(2) {
                queue.send(n.to_string()).await;
            }
        })
    });
    let consumers = (1..=8).map(|batch| {
        let (queue, handled) = (stage.open("a"), Arc::clone(&handled));
        tokio::spawn(async move {
            let (mut seen, mut progress) = (Vec::new(), (0, Instant::now()));
            while handled.load(Ordering::Relaxed) < MESSAGES {
                let received = queue.receive(batch).await;
                seen.extend(bodies(&received));
                queue.ack(&received).await;
                let so_far = handled.fetch_add(received.len(), Ordering::Relaxed) + received.len();
                if so_far > progress.0 {
                    progress = (so_far, Instant::now());
                }
                assert!(progress.1.elapsed() < DEADLINE, "{so_far} of {MESSAGES} messages arrived");
                if received.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            seen
        })
    });
    let (producers, consumers): (Vec<_>, Vec<_>) = (producers.collect(), consumers.collect());
    join_all(producers).await.into_iter().for_each(|end| end.unwrap());
    let seen: Vec<String> = join_all(consumers).await.into_iter().flat_map(|seen| seen.unwrap()).collect();
    assert_eq!(seen.len(), MESSAGES);
    assert_eq!(seen.into_iter().collect::<HashSet<_>>().len(), MESSAGES);
    stage.open("a").is_empty().await;
}

pub async fn many_messages_are_acknowledged_at_once(stage: &Stage) {
    let queue = stage.open("a");
    for n in 0..150 {
        queue.send(n.to_string()).await;
    }
    let received = queue.receive_all().await;
    assert_eq!(received.len(), 150);
    queue.ack(&received[..140]).await;
    queue.holds(Counts { in_flight: 10, ..Counts::default() }).await;
    queue.ack(&received).await;
    queue.ack(&[]).await;
    queue.is_empty().await;
}

pub async fn a_body_of_a_mebibyte_survives(stage: &Stage) {
    let queue = stage.open("a");
    let body = format!("\"{}\"", "äöü€😀\\n".repeat(1 << 17));
    assert!(body.len() > 1 << 20);
    queue.send(body.clone()).await;
    assert!(bodies(&queue.receive(1).await) == [body], "it is another one");
}

pub async fn any_json_text_survives_byte_for_byte(stage: &Stage) {
    let queue = stage.open("a");
    let texts = [
        "null",
        " { \"a\" :\t1.0e+3,\r\n\"a\":2 } ",
        r#""\u0000 \ud800 \uD83D\uDE00 \/ \" \\ ' ` ; -- ?1 :a $b""#,
        "\"\u{7f} \u{80} \u{2028} \u{feff} \u{fffd} \u{ffff} \u{10ffff}\"",
        "\"Ω ẍ e\u{301} 日本語 עברית 👩‍👩‍👧‍👦\"",
        "",
    ];
    for text in texts {
        queue.send(text).await;
    }
    assert_eq!(bodies(&queue.receive_all().await), texts);
}

pub async fn a_body_that_is_not_text_survives_or_is_refused(stage: &Stage) {
    let queue = stage.open("a");
    let body: Vec<u8> = (0..=255).rev().collect();
    match queue.sender.send(&message(body.clone()), Duration::ZERO).await {
        Ok(_) => assert_eq!(message_of(&queue.receive(1).await[0]).body, body),
        Err(error) => {
            assert!(matches!(error, TransportError::Unstorable { .. }), "{error}");
            queue.is_empty().await;
        }
    }
}

pub async fn unknown_stamps_and_headers_survive(stage: &Stage) {
    let queue = stage.open("a");
    let bare = Encoded { body: "{}".into(), ..Encoded::default() };
    for message in [&with_odd_headers(), &bare] {
        queue.sender.send(message, Duration::ZERO).await.unwrap();
    }
    let received = queue.receive_all().await;
    assert_eq!([message_of(&received[0]), message_of(&received[1])], [&with_odd_headers(), &bare]);
}

pub async fn unknown_ids_are_skipped(stage: &Stage) {
    let queue = stage.open("a");
    queue.send("{}").await;
    let received = queue.receive(1).await.remove(0);
    let mut ids = ["999999999", "no id at all", ""].map(|id| MessageId(id.to_owned())).to_vec();
    queue.receiver().reject(&ids).await.unwrap();
    ids.push(received.id);
    queue.receiver().ack(&ids).await.unwrap();
    queue.receiver().ack(&ids).await.unwrap();
    queue.is_empty().await;
}

pub async fn nothing_is_received_from_a_missing_store(stage: &Stage) {
    let queue = stage.open("a");
    assert!(queue.receive(1).await.is_empty());
    queue.receiver().ack(&[MessageId("1".to_owned())]).await.unwrap();
}
