//! What every transport does, as one function each.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use minutely::message::Encoded;
use minutely::transport::{Counts, MessageId, REST, Receipt, TransportError};

use super::stage::{
    DEADLINE, Queue, Stage, bodies, deliveries, ids, message, message_of, never_received, receive_all, receive_bodies,
    receive_eventually, send, send_later,
};

const HOUR: Duration = Duration::from_secs(3600);

async fn counts(transport: &Queue) -> Counts {
    transport.counting.as_ref().unwrap().counts(1000).await.unwrap()
}

/// These counts, as far as the transport knows them.
async fn are(transport: &Queue, expected: Counts) {
    let counting = transport.counting.as_ref().unwrap();
    let (delayed, in_flight) =
        if counting.counts_pending_only() { (0, 0) } else { (expected.delayed, expected.in_flight) };
    let counts = counting.counts(1000).await.unwrap();
    assert_eq!(counts, Counts { delayed, in_flight, ..expected });
}

pub async fn it_can_do_what_it_is_said_to(stage: &Stage) {
    let transport = stage.open("a");
    assert!(transport.counting.is_some() && transport.setting_up.is_some() && transport.releasing.is_some());
    assert!(transport.retrying.is_some());
    let of_a_store = [transport.listing.is_some(), transport.keeping_alive.is_some(), transport.moving.is_some()];
    assert_eq!(of_a_store, [!stage.abilities().broker; 3]);
    assert_eq!(transport.queues.is_some(), stage.abilities().broker);
    assert_eq!(transport.waking.is_some(), stage.abilities().waking);
}

pub async fn a_message_is_sent_received_once_and_gone_when_acknowledged(stage: &Stage) {
    let (producer, consumer) = (stage.open("a"), stage.open("a"));
    let sent = message("{\"n\":1}");
    let id = send(&*producer, "{\"n\":1}").await;
    let received = consumer.receive(10).await.unwrap();
    assert!(stage.abilities().broker || ids(&received) == [id]);
    assert_eq!(received.len(), 1);
    assert_eq!(message_of(&received[0]), &sent);
    assert!(consumer.receive(10).await.unwrap().is_empty());
    consumer.ack(&ids(&received)).await.unwrap();
    assert_eq!(counts(&*producer).await, Counts::default());
}

pub async fn a_rejected_message_is_gone(stage: &Stage) {
    let transport = stage.open("a");
    send(&*transport, "{}").await;
    transport.reject(&ids(&transport.receive(1).await.unwrap())).await.unwrap();
    assert_eq!(counts(&*transport).await, Counts::default());
}

pub async fn messages_come_in_the_order_they_were_sent(stage: &Stage) {
    let transport = stage.open("a");
    for n in 0..30 {
        send(&*transport, n.to_string()).await;
    }
    let mut order = vec![];
    while order.len() < 30 {
        order.extend(bodies(&transport.receive(7).await.unwrap()));
    }
    assert_eq!(order, (0..30).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub async fn a_receiver_gets_no_more_than_it_asks_for(stage: &Stage) {
    let transport = stage.open("a");
    for n in 0..5 {
        send(&*transport, n.to_string()).await;
    }
    assert!(transport.receive(0).await.unwrap().is_empty());
    let first = transport.receive(2).await.unwrap().len();
    assert!(first == 2 || (first == 1 && stage.abilities().broker));
    let second = transport.receive(usize::MAX).await.unwrap().len();
    assert!(first + second == 5 || stage.abilities().broker);
    assert_eq!(first + second + receive_all(&*transport).await.len(), 5);
}

pub async fn another_queue_is_not_touched(stage: &Stage) {
    let (a, b) = (stage.open("a"), stage.open("b"));
    let id = send(&*a, "{}").await;
    assert!(b.receive(10).await.unwrap().is_empty());
    assert_eq!(counts(&*b).await, Counts::default());
    if let Some(listing) = &b.listing {
        assert!(listing.list(None, 10).await.unwrap().is_empty());
        assert!(listing.find(&id).await.unwrap().is_none());
    }
    b.ack(std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(a.receive(10).await.unwrap().len(), 1);
}

pub async fn a_delayed_message_waits_for_its_time(stage: &Stage) {
    let transport = stage.open("a");
    send_later(&*transport, "much later", HOUR).await;
    let sent = Instant::now();
    send_later(&*transport, "later", Duration::from_secs(1)).await;
    send(&*transport, "now").await;
    // On a busy machine both may be due by the time that is looked.
    let mut received = vec![receive_eventually(&*transport).await, receive_eventually(&*transport).await];
    assert!(sent.elapsed() >= Duration::from_millis(998), "{:?}", sent.elapsed());
    received.extend(receive_all(&*transport).await);
    let mut bodies = bodies(&received);
    bodies.sort();
    assert_eq!(bodies, ["later", "now"]);
}

pub async fn a_delay_is_never_cut_short(stage: &Stage) {
    let transport = stage.open("a");
    let delay = Duration::from_millis(700);
    // Some keep whole milliseconds.
    let least = delay - Duration::from_millis(2);
    let mut sent = Instant::now();
    send_later(&*transport, "1", delay).await;
    let received = receive_eventually(&*transport).await;
    assert!(sent.elapsed() >= least, "{:?}", sent.elapsed());
    sent = Instant::now();
    transport.retrying.as_ref().unwrap().retry(&received.id, &message("2"), delay).await.unwrap();
    assert_eq!(bodies(&[receive_eventually(&*transport).await]), ["2"]);
    assert!(sent.elapsed() >= least, "{:?}", sent.elapsed());
}

pub async fn a_delay_of_centuries_is_no_error(stage: &Stage) {
    let transport = stage.open("a");
    if stage.abilities().broker {
        // It would come after 49 days, and is rather not taken.
        let sent = transport.send(&message("{}"), Duration::from_secs(50 * 86400)).await;
        return assert!(matches!(sent, Err(TransportError::Unstorable { .. })));
    }
    for delay in [Duration::from_secs(500 * 365 * 86400), Duration::from_millis(u64::MAX), Duration::MAX] {
        send_later(&*transport, "{}", delay).await;
    }
    assert_eq!(counts(&*transport).await, Counts { delayed: 3, ..Counts::default() });
}

pub async fn a_message_in_flight_comes_back_after_the_redeliver_timeout_and_not_before(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let transport = stage.open_with("a", "{redeliver_timeout: 1}");
    let id = send(&*transport, "{}").await;
    let before = Instant::now();
    assert_eq!(transport.receive(1).await.unwrap()[0].id, id);
    let again = receive_eventually(&*transport).await;
    assert_eq!(again.id, id);
    assert!(before.elapsed() >= Duration::from_secs(1), "{:?}", before.elapsed());
}

pub async fn pending_delayed_and_in_flight_are_counted_apart(stage: &Stage) {
    let transport = stage.open("a");
    for _ in 0..6 {
        send(&*transport, "{}").await;
    }
    for _ in 0..2 {
        send_later(&*transport, "{}", HOUR).await;
    }
    transport.receive(1).await.unwrap();
    are(&*transport, Counts { pending: 5, delayed: 2, in_flight: 1 }).await;
    assert_eq!(transport.counting.as_ref().unwrap().pending(100).await.unwrap(), 5);
}

pub async fn counting_stops_at_the_cap(stage: &Stage) {
    let transport = stage.open("a");
    for _ in 0..5 {
        send(&*transport, "{}").await;
        send_later(&*transport, "{}", HOUR).await;
    }
    let counting = transport.counting.as_ref().unwrap();
    assert_eq!(counting.pending(3).await.unwrap(), 3);
    assert_eq!(counting.pending(0).await.unwrap(), 0);
    assert_eq!(counting.pending(u64::MAX).await.unwrap(), 5);
    let delayed = if counting.counts_pending_only() { 0 } else { 4 };
    assert_eq!(counting.counts(4).await.unwrap(), Counts { pending: 4, delayed, in_flight: 0 });
}

pub async fn eight_consumers_lose_no_message_and_get_none_twice(stage: &Stage) {
    const MESSAGES: usize = 300;
    let handled = Arc::new(AtomicUsize::new(0));
    let producers = (0..2).map(|producer| {
        let transport = stage.open("a");
        tokio::spawn(async move {
            for n in (producer..MESSAGES).step_by(2) {
                send(&*transport, n.to_string()).await;
            }
        })
    });
    let consumers = (1..=8).map(|batch| {
        let (transport, handled) = (stage.open("a"), Arc::clone(&handled));
        tokio::spawn(async move {
            let (mut seen, deadline) = (vec![], Instant::now() + DEADLINE);
            while handled.load(Ordering::Relaxed) < MESSAGES {
                assert!(Instant::now() < deadline, "messages are missing");
                let received = transport.receive(batch).await.unwrap();
                seen.extend(bodies(&received));
                transport.ack(&ids(&received)).await.unwrap();
                if handled.fetch_add(received.len(), Ordering::Relaxed) < MESSAGES && received.is_empty() {
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
    assert_eq!(counts(&*stage.open("a")).await, Counts::default());
}

pub async fn many_messages_are_acknowledged_at_once(stage: &Stage) {
    let transport = stage.open("a");
    for n in 0..150 {
        send(&*transport, n.to_string()).await;
    }
    let received = receive_all(&*transport).await;
    assert_eq!(received.len(), 150);
    transport.ack(&ids(&received)[..140]).await.unwrap();
    are(&*transport, Counts { in_flight: 10, ..Counts::default() }).await;
    transport.ack(&ids(&received)).await.unwrap();
    transport.ack(&[]).await.unwrap();
    assert_eq!(counts(&*transport).await, Counts::default());
}

pub async fn a_body_of_a_mebibyte_survives(stage: &Stage) {
    let transport = stage.open("a");
    let body = format!("\"{}\"", "äöü€😀\\n".repeat(1 << 17));
    assert!(body.len() > 1 << 20);
    send(&*transport, body.clone()).await;
    assert!(bodies(&transport.receive(1).await.unwrap()) == [body]);
}

pub async fn any_text_json_allows_survives_byte_for_byte(stage: &Stage) {
    let transport = stage.open("a");
    let texts = [
        "null",
        " { \"a\" :\t1.0e+3,\r\n\"a\":2 } ",
        r#""\u0000 \ud800 \uD83D\uDE00 \/ \" \\ ' ` ; -- ?1 :a $b""#,
        "\"\u{7f} \u{80} \u{2028} \u{feff} \u{fffd} \u{ffff} \u{10ffff}\"",
        "\"Ω ẍ e\u{301} 日本語 עברית 👩‍👩‍👧‍👦\"",
        "",
    ];
    for text in texts {
        send(&*transport, text).await;
    }
    assert_eq!(receive_bodies(&*transport).await, texts);
}

pub async fn a_body_that_is_no_text_survives(stage: &Stage) {
    let transport = stage.open("a");
    let all_bytes: Vec<u8> = (0..=255).rev().collect();
    if !stage.abilities().bytes {
        // What cannot be kept as it is must not be taken.
        let error = transport.send(&message(all_bytes), Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("is not UTF-8"), "{error}");
        assert_eq!(counts(&*transport).await, Counts::default());
        return;
    }
    for body in [all_bytes, b"\0".to_vec(), b"a\0b".to_vec()] {
        send(&*transport, body.clone()).await;
        assert_eq!(message_of(&transport.receive(1).await.unwrap()[0]).body, body);
    }
}

pub async fn unknown_stamps_and_headers_survive_in_their_order(stage: &Stage) {
    let transport = stage.open("a");
    let mut sent = message("{}");
    for (name, value) in [
        (r"X-Message-Stamp-App\Stamp\Tenant", r#"[{"id": 7 , "x":null}]"#),
        ("x-empty", ""),
        ("A \"quoted\" näme\n", "line\r\nline \u{0} \u{1f} ' \\ \u{1f600}"),
        ("", "no name"),
    ] {
        sent.headers.insert(name.to_owned(), value.to_owned());
    }
    let bare = Encoded { body: "{}".into(), ..Encoded::default() };
    for message in [&sent, &bare] {
        transport.send(message, Duration::ZERO).await.unwrap();
    }
    let received = receive_all(&*transport).await;
    assert_eq!([message_of(&received[0]), message_of(&received[1])], [&sent, &bare]);
    // AMQP's tables have no order, and neither do PHP's consumers need one.
    assert!(stage.abilities().broker || message_of(&received[0]).headers.keys().eq(sent.headers.keys()));
}

pub async fn ids_that_are_not_there_are_passed_over(stage: &Stage) {
    let transport = stage.open("a");
    send(&*transport, "{}").await;
    let received = transport.receive(1).await.unwrap().remove(0);
    let mut ids = vec![MessageId("999999999".into()), MessageId("no id at all".into()), MessageId(String::new())];
    let absent = never_received(&ids, &received.receipt);
    transport.releasing.as_ref().unwrap().release(&absent).await.unwrap();
    transport.reject(&ids).await.unwrap();
    if !stage.abilities().broker {
        transport.keeping_alive.as_ref().unwrap().keep_alive(&absent, SystemTime::now()).await.unwrap();
        for absent in &ids {
            assert!(transport.listing.as_ref().unwrap().find(absent).await.unwrap().is_none());
        }
    }
    ids.push(received.id);
    transport.ack(&ids).await.unwrap();
    transport.ack(&ids).await.unwrap();
    assert_eq!(counts(&*transport).await, Counts::default());
}

pub async fn without_auto_setup_a_missing_store_is_an_error_that_says_so(stage: &Stage) {
    if !stage.abilities().setup {
        return;
    }
    let transport = stage.open_with("a", "{auto_setup: false}");
    let not_set_up = |error| matches!(error, TransportError::NotSetUp { transport, .. } if transport == "a");
    assert!(not_set_up(transport.send(&message("{}"), Duration::ZERO).await.unwrap_err()));
    assert!(not_set_up(transport.receive(1).await.unwrap_err()));
    assert!(not_set_up(transport.counting.as_ref().unwrap().pending(1).await.unwrap_err()));
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    send(&*transport, "{}").await;
    assert_eq!(receive_bodies(&*transport).await, ["{}"]);
}

pub async fn setting_up_may_be_repeated_by_many_at_once(stage: &Stage) {
    let transports: Vec<_> = (0..8).map(|_| stage.open("a")).collect();
    let setups = transports.iter().map(|transport| transport.setting_up.as_ref().unwrap().setup());
    join_all(setups).await.into_iter().for_each(|result| result.unwrap());
    send(&*transports[0], "{}").await;
    transports[0].setting_up.as_ref().unwrap().setup().await.unwrap();
    assert_eq!(receive_bodies(&*transports[1]).await, ["{}"]);
}

pub async fn nothing_is_found_in_a_store_that_is_not_there_yet(stage: &Stage) {
    let transport = stage.open("a");
    let id = MessageId("1".into());
    assert_eq!(counts(&*transport).await, Counts::default());
    assert_eq!(transport.counting.as_ref().unwrap().pending(5).await.unwrap(), 0);
    assert!(transport.receive(1).await.unwrap().is_empty());
    if let Some(listing) = &transport.listing {
        assert!(listing.list(None, 5).await.unwrap().is_empty());
        assert!(listing.find(&id).await.unwrap().is_none());
    }
    transport.ack(std::slice::from_ref(&id)).await.unwrap();
    transport.releasing.as_ref().unwrap().release(&never_received(&[id], &Receipt::default())).await.unwrap();
}

pub async fn messages_are_listed_by_pages_and_found_without_being_taken(stage: &Stage) {
    let transport = stage.open("a");
    let Some(listing) = &transport.listing else { return };
    let mut sent = vec![];
    for n in 0..4 {
        sent.push(send(&*transport, n.to_string()).await);
    }
    sent.push(send_later(&*transport, "4", HOUR).await);
    transport.receive(1).await.unwrap();

    let first = listing.list(None, 3).await.unwrap();
    let second = listing.list(Some(&first[2].received.id), 3).await.unwrap();
    let all: Vec<_> = first.iter().chain(&second).collect();
    assert!(all.iter().map(|listed| &listed.received.id).eq(&sent));
    assert!(all.iter().map(|listed| listed.in_flight).eq([true, false, false, false, false]));
    let due_in = |n: usize| all[n].available_at.unwrap().duration_since(std::time::SystemTime::now());
    assert!(due_in(1).is_err());
    // Some keep whole seconds, and round up.
    assert!((Duration::from_secs(3500)..=HOUR + Duration::from_secs(1)).contains(&due_in(4).unwrap()));
    assert!(listing.list(Some(&sent[4]), 3).await.unwrap().is_empty());

    let found = listing.find(&sent[2]).await.unwrap().unwrap();
    assert_eq!(message_of(&found.received), &message("2"));
    assert_eq!(counts(&*transport).await, Counts { pending: 3, delayed: 1, in_flight: 1 });
}

pub async fn a_released_message_is_pending_at_once(stage: &Stage) {
    let (consumer, supervisor) = (stage.open("a"), stage.open("a"));
    for n in 0..3 {
        send(&*consumer, n.to_string()).await;
    }
    let received = consumer.receive(2).await.unwrap();
    // A broker takes back what was lent to a connection when that ends, and at no other's word.
    let releaser = if stage.abilities().broker { &consumer } else { &supervisor };
    releaser.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    // It may be on its way to the same consumer again.
    if !stage.abilities().broker {
        assert_eq!(counts(&*supervisor).await, Counts { pending: 3, ..Counts::default() });
    }
    let mut bodies = vec![];
    while bodies.len() < 3 {
        bodies.push(String::from_utf8(message_of(&receive_eventually(&*consumer).await).body.to_vec()).unwrap());
    }
    assert_eq!(bodies, ["0", "1", "2"]);
}

pub async fn releasing_touches_only_what_is_in_flight(stage: &Stage) {
    let transport = stage.open("a");
    send(&*transport, "{}").await;
    let received = transport.receive(1).await.unwrap();
    transport.ack(&ids(&received)).await.unwrap();
    let delayed = send_later(&*transport, "{}", HOUR).await;
    let neither = never_received(&[delayed, received[0].id.clone()], &received[0].receipt);
    transport.releasing.as_ref().unwrap().release(&neither).await.unwrap();
    are(&*transport, Counts { delayed: 1, ..Counts::default() }).await;
}

pub async fn who_had_a_message_before_neither_releases_nor_keeps_it(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (before, now) = (stage.open("a"), stage.open("a"));
    let in_flight = Counts { in_flight: 1, ..Counts::default() };
    let releasing = before.releasing.as_ref().unwrap();
    for by_retry in [true, false] {
        send(&*before, "{}").await;
        let stale = deliveries(&before.receive(1).await.unwrap());
        if by_retry {
            before.retrying.as_ref().unwrap().retry(&stale[0].id, &message("{}"), Duration::ZERO).await.unwrap();
        } else {
            // Within this time the next receipt may look like this one.
            tokio::time::sleep(releasing.receipt_repeats_within()).await;
            releasing.release(&stale).await.unwrap();
        }
        let received = receive_eventually(&*now).await;
        releasing.release(&stale).await.unwrap();
        assert_eq!(counts(&*now).await, in_flight, "by_retry: {by_retry}");
        before.keeping_alive.as_ref().unwrap().keep_alive(&stale, SystemTime::now()).await.unwrap();
        now.releasing.as_ref().unwrap().release(&[received.delivery()]).await.unwrap();
        assert_eq!(counts(&*now).await, Counts { pending: 1, ..Counts::default() }, "its own receipt is still valid");
        now.ack(&[receive_eventually(&*now).await.id]).await.unwrap();
    }
}

pub async fn a_message_kept_alive_is_released_by_its_new_receipt(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (consumer, supervisor) = (stage.open("a"), stage.open("a"));
    send(&*consumer, "{}").await;
    let mut held = deliveries(&consumer.receive(1).await.unwrap());
    let keeping = consumer.keeping_alive.as_ref().unwrap();
    let later = SystemTime::now() + Duration::from_secs(7);
    keeping.keep_alive(&held, later).await.unwrap();
    // Whoever does not know whether that has worked shows both.
    held[0].receipts.extend(keeping.receipt_at(later));
    supervisor.releasing.as_ref().unwrap().release(&held).await.unwrap();
    assert_eq!(counts(&*supervisor).await, Counts { pending: 1, ..Counts::default() });
}

pub async fn a_message_kept_alive_does_not_come_back(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (consumer, other) =
        (stage.open_with("a", "{redeliver_timeout: 3}"), stage.open_with("a", "{redeliver_timeout: 3}"));
    let id = send(&*consumer, "{}").await;
    let mut held = deliveries(&consumer.receive(1).await.unwrap());
    let keeping = consumer.keeping_alive.as_ref().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let now = SystemTime::now();
        keeping.keep_alive(&held, now).await.unwrap();
        held[0].receipts = keeping.receipt_at(now).map_or_else(|| held[0].receipts.clone(), |receipt| vec![receipt]);
        assert!(other.receive(1).await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(receive_eventually(&*other).await.id, id);
    // One that was never received is not made to look so.
    let pending = send(&*consumer, "{}").await;
    let held = never_received(std::slice::from_ref(&pending), &held[0].receipts[0]);
    keeping.keep_alive(&held, SystemTime::now()).await.unwrap();
    assert_eq!(ids(&consumer.receive(1).await.unwrap()), [pending]);
}

pub async fn a_retry_replaces_the_message_and_keeps_one_copy(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (transport, other) = (stage.open("a"), stage.open("a"));
    let retrying = transport.retrying.as_ref().unwrap();
    send(&*transport, "first").await;
    let received = transport.receive(1).await.unwrap();
    let mut second = message("second");
    second.headers.insert("x".into(), "y".into());
    retrying.retry(&received[0].id, &second, Duration::ZERO).await.unwrap();
    // In tables not in the second in which it was received, so that the next delivery can be told from this one.
    let again = receive_eventually(&*other).await;
    assert_eq!(message_of(&again), &second);
    assert_eq!(counts(&*other).await, Counts { in_flight: 1, ..Counts::default() });
    other.retrying.as_ref().unwrap().retry(&again.id, &message("third"), HOUR).await.unwrap();
    assert_eq!(counts(&*other).await, Counts { delayed: 1, ..Counts::default() });
}

pub async fn a_retry_does_not_bring_a_finished_message_back(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let transport = stage.open("a");
    send(&*transport, "{}").await;
    let id = transport.receive(1).await.unwrap().remove(0).id;
    transport.ack(std::slice::from_ref(&id)).await.unwrap();
    transport.retrying.as_ref().unwrap().retry(&id, &message("{}"), Duration::ZERO).await.unwrap();
    let place = stage.open("b").moving.as_ref().unwrap().place();
    assert!(transport.moving.as_ref().unwrap().move_to(&id, &message("{}"), &place).await.unwrap().is_some());
    for queue in ["a", "b"] {
        assert_eq!(counts(&*stage.open(queue)).await, Counts::default());
    }
}

pub async fn what_rests_is_counted_and_resumed(stage: &Stage) {
    let queue = stage.open("a");
    let resting = queue.resting.as_ref().unwrap();
    resting.resume().await.unwrap();
    send(&*queue, "held").await;
    let held = queue.receive(1).await.unwrap().remove(0);
    for n in 0..3 {
        send(&*queue, n.to_string()).await;
        let [received] = &queue.receive(1).await.unwrap()[..] else { panic!() };
        let message = received.message.as_ref().unwrap();
        queue.retrying.as_ref().unwrap().retry(&received.id, message, REST).await.unwrap();
    }
    assert!(queue.receive(9).await.unwrap().is_empty());
    let other = stage.open("a");
    assert_eq!(other.resting.as_ref().unwrap().resting(9).await.unwrap(), 3);
    assert_eq!(other.resting.as_ref().unwrap().resting(2).await.unwrap(), 2);
    other.resting.as_ref().unwrap().resume().await.unwrap();
    assert_eq!(resting.resting(9).await.unwrap(), 0);
    let mut bodies = Vec::new();
    while bodies.len() < 3 {
        for received in queue.receive(3).await.unwrap() {
            bodies.push(received.message.unwrap().body);
            queue.ack(&[received.id]).await.unwrap();
        }
    }
    bodies.sort();
    assert_eq!(bodies, ["0", "1", "2"], "and what is in flight stays so");
    queue.ack(&[held.id]).await.unwrap();
}

pub async fn a_message_moves_to_another_queue_in_one_step(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    moves(&*stage.open("a"), &*stage.open("b")).await;
}

pub async fn a_message_moves_to_another_table_in_one_step(stage: &Stage) {
    if !stage.abilities().tables {
        return;
    }
    let (source, destination) = (stage.open("a"), stage.open_with("b", "{table_name: other}"));
    // While the other table is not there, the message stays, and the caller is told to send it.
    send(&*source, "{}").await;
    let id = source.receive(1).await.unwrap().remove(0).id;
    let place = destination.moving.as_ref().unwrap().place();
    assert_eq!(source.moving.as_ref().unwrap().move_to(&id, &message("{}"), &place).await.unwrap(), None);
    source.ack(&[id]).await.unwrap();
    destination.setting_up.as_ref().unwrap().setup().await.unwrap();
    moves(&*source, &*destination).await;
}

async fn moves(source: &Queue, destination: &Queue) {
    send(source, "as sent").await;
    let received = source.receive(1).await.unwrap();
    let place = destination.moving.as_ref().unwrap().place();
    let id = source.moving.as_ref().unwrap().move_to(&received[0].id, &message("as moved"), &place).await.unwrap();
    assert_eq!(counts(source).await, Counts::default());
    assert_eq!(counts(destination).await, Counts { pending: 1, ..Counts::default() });
    let moved = destination.receive(10).await.unwrap();
    assert_eq!(moved[0].id, id.unwrap());
    assert_eq!(message_of(&moved[0]), &message("as moved"));
}

pub async fn a_message_does_not_move_to_another_store(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (source, destination) = (stage.open("a"), stage.open_elsewhere("a").await);
    destination.setting_up.as_ref().unwrap().setup().await.unwrap();
    send(&*source, "{}").await;
    let id = source.receive(1).await.unwrap().remove(0).id;
    let place = destination.moving.as_ref().unwrap().place();
    assert_eq!(source.moving.as_ref().unwrap().move_to(&id, &message("{}"), &place).await.unwrap(), None);
    assert_eq!(counts(&*source).await, Counts { in_flight: 1, ..Counts::default() });
    assert_eq!(counts(&*destination).await, Counts::default());
}

pub async fn a_moved_message_is_out_of_reach_of_its_former_consumer(stage: &Stage) {
    if stage.abilities().broker {
        return;
    }
    let (source, destination) = (stage.open("a"), stage.open("b"));
    send(&*source, "{}").await;
    let id = source.receive(1).await.unwrap().remove(0).id;
    let place = destination.moving.as_ref().unwrap().place();
    source.moving.as_ref().unwrap().move_to(&id, &message("{}"), &place).await.unwrap();
    // A consumer that had the message first, and was too slow.
    source.ack(std::slice::from_ref(&id)).await.unwrap();
    source.retrying.as_ref().unwrap().retry(&id, &message("{}"), Duration::ZERO).await.unwrap();
    assert_eq!(counts(&*source).await, Counts::default());
    assert_eq!(counts(&*destination).await, Counts { pending: 1, ..Counts::default() });
}

pub async fn a_waiting_consumer_is_woken(stage: &Stage) {
    if !stage.abilities().waking {
        return;
    }
    let (consumer, producer) = (stage.open("a"), stage.open("a"));
    let wake = || tokio::time::timeout(DEADLINE, consumer.waking.as_ref().unwrap().wake());
    // By a message that is there already; the caller has not seen it if it came after its last look.
    send(&*producer, "1").await;
    wake().await.unwrap().unwrap();
    consumer.ack(&ids(&consumer.receive(1).await.unwrap())).await.unwrap();
    // By one that comes while it waits.
    let (woken, ()) = tokio::join!(wake(), async { drop(send(&*producer, "2").await) });
    woken.unwrap().unwrap();
    consumer.ack(&ids(&consumer.receive(1).await.unwrap())).await.unwrap();
    // By the time of a delayed one.
    send_later(&*producer, "3", Duration::from_millis(50)).await;
    let deadline = Instant::now() + DEADLINE;
    while consumer.receive(1).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline);
        wake().await.unwrap().unwrap();
    }
}
