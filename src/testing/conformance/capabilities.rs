//! Tests of the optional parts of transports.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests: the names say what is expected"
)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;

use super::Stage;
use super::contract::CLOCKS;
use super::stage::{DEADLINE, HOUR, Queue, bodies, deliveries, ids, message, message_of, never_received};
use crate::transport::{
    Connecting, Counting, Counts, KeepingAlive, Listing, MessageId, Moving, PARKED_FOR, Prefetching, Receipt, Received,
    Releasing, Taking,
};

/// The part of a transport that a test is about.
macro_rules! part {
    ($name:ident: $Part:ident) => {
        fn $name(queue: &Queue) -> Arc<dyn $Part> {
            queue.$name.clone().expect(concat!("the transport has `", stringify!($name), "`"))
        }
    };
}

part!(counting: Counting);
part!(listing: Listing);
part!(taking: Taking);
part!(releasing: Releasing);
part!(keeping_alive: KeepingAlive);
part!(moving: Moving);
part!(prefetching: Prefetching);
part!(connecting: Connecting);

pub async fn it_can_do_what_is_declared(stage: &Stage, declared: &[&str]) {
    let queue = stage.open("a");
    assert!(queue.receiver.is_some(), "a transport without a receiver cannot be tested");
    for (part, is_there) in [
        ("counting", queue.counting.is_some()),
        ("setting_up", queue.setting_up.is_some()),
        ("listing", queue.listing.is_some()),
        ("taking", queue.taking.is_some()),
        ("releasing", queue.releasing.is_some()),
        ("keeping_alive", queue.keeping_alive.is_some()),
        ("parking", queue.parking.is_some()),
        ("retrying", queue.retrying.is_some()),
        ("moving", queue.moving.is_some()),
        ("waking", queue.waking.is_some()),
        ("prefetching", queue.prefetching.is_some()),
        ("queues", queue.queues.is_some()),
        ("connecting", queue.connecting.is_some()),
    ] {
        assert_eq!(is_there, declared.contains(&part), "`{part}`: is it there (left), is it in the list (right)?");
    }
    for (ability, needed) in [
        ("listing", "stable_ids"),
        ("taking", "listing"),
        ("keeping_alive", "releasing"),
        ("keeping_alive", "redelivery"),
        ("auto_setup", "setting_up"),
        ("release_by_others", "releasing"),
    ] {
        assert!(!declared.contains(&ability) || declared.contains(&needed), "`{ability}` needs `{needed}` in the list");
    }
}

pub async fn pending_delayed_and_in_flight_are_counted_separately(stage: &Stage) {
    let queue = stage.open("a");
    for _ in 0..6 {
        queue.send("{}").await;
    }
    for _ in 0..2 {
        queue.send_later("{}", HOUR).await;
    }
    assert_eq!(queue.receive(1).await.len(), 1);
    queue.holds(Counts { pending: 5, delayed: 2, in_flight: 1 }).await;
    assert_eq!(counting(&queue).pending(100).await.unwrap(), 5);
}

pub async fn counting_stops_at_the_cap(stage: &Stage) {
    let queue = stage.open("a");
    for _ in 0..5 {
        queue.send("{}").await;
        queue.send_later("{}", HOUR).await;
    }
    let counting = counting(&queue);
    assert_eq!(counting.pending(3).await.unwrap(), 3);
    assert_eq!(counting.pending(0).await.unwrap(), 0);
    assert_eq!(counting.pending(u64::MAX).await.unwrap(), 5);
    let delayed = if counting.counts_pending_only() { 0 } else { 4 };
    assert_eq!(counting.counts(4).await.unwrap(), Counts { pending: 4, delayed, in_flight: 0 });
}

pub async fn a_missing_store_counts_as_empty(stage: &Stage) {
    let queue = stage.open("a");
    assert_eq!(counting(&queue).counts(5).await.unwrap(), Counts::default());
    assert_eq!(counting(&queue).pending(5).await.unwrap(), 0);
}

pub async fn setting_up_may_be_repeated_by_many_at_once(stage: &Stage) {
    let queues: Vec<_> = (0..8).map(|_| stage.open("a")).collect();
    let setups = queues.iter().map(|queue| queue.setting_up.as_ref().unwrap().setup());
    join_all(setups).await.into_iter().for_each(|result| result.unwrap());
    queues[0].send("{}").await;
    queues[0].setting_up.as_ref().unwrap().setup().await.unwrap();
    assert_eq!(bodies(&queues[1].receive_all().await), ["{}"]);
}

pub async fn a_taken_message_is_in_flight_for_all_and_can_be_finished(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("a"));
    for (n, delay) in [Duration::ZERO, HOUR].into_iter().enumerate() {
        let sent = queue.send_later(n.to_string(), delay).await;
        let taken = taking(&queue).take(&sent).await.unwrap().unwrap();
        assert_eq!(taken.message.as_ref().unwrap().body, n.to_string().as_bytes());
        assert!(taking(&other).take(&sent).await.unwrap().is_none(), "it is taken");
        assert!(other.receive(1).await.is_empty(), "it is taken");
        let listed = listing(&other).find(&taken.id).await.unwrap().expect("it is kept");
        assert!(listed.in_flight, "it is shown as in flight");
        assert!(taking(&other).take(&taken.id).await.unwrap().is_none(), "it is taken");
        if let Some(parking) = &other.parking {
            parking.resume().await.unwrap();
            assert!(other.receive(1).await.is_empty(), "it is not parked");
        }
        queue.receiver.as_ref().unwrap().ack(std::slice::from_ref(&taken.id)).await.unwrap();
        queue.holds(Counts::default()).await;
        assert!(taking(&queue).take(&sent).await.unwrap().is_none(), "it is gone");
    }
    let sent = queue.send("{}").await;
    let received = queue.receive(1).await;
    assert!(taking(&other).take(&sent).await.unwrap().is_none(), "another consumer has it");
    queue.ack(&received).await;
    if let Some(releasing) = &queue.releasing {
        let sent = queue.send_later("{}", HOUR).await;
        let taken = taking(&queue).take(&sent).await.unwrap().unwrap();
        releasing.release(&[taken.delivery()]).await.unwrap();
        let listed = listing(&other).list(None, 1).await.unwrap().remove(0);
        assert!(!listed.in_flight, "it was released");
        assert!(taking(&other).take(&listed.received.id).await.unwrap().is_some(), "it was released");
    }
}

pub async fn a_taken_message_is_kept_alive_and_finished_after_that(stage: &Stage) {
    let [queue, other] = [(); 2].map(|()| stage.open_with("a", "{redeliver_timeout: 3}"));
    if queue.keeping_alive.is_none() {
        return;
    }
    for finish_it in [true, false] {
        let sent = queue.send("{}").await;
        let taken = taking(&queue).take(&sent).await.unwrap().unwrap();
        let mut held = vec![taken.delivery()];
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            let now = SystemTime::now();
            keeping_alive(&queue).keep_alive(&held, now).await.unwrap();
            if let Some(receipt) = keeping_alive(&queue).receipt_at(now) {
                held[0].receipts = vec![receipt];
            }
            assert!(other.receive(1).await.is_empty());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if finish_it {
            queue.receiver.as_ref().unwrap().ack(std::slice::from_ref(&taken.id)).await.unwrap();
        } else {
            // As after the end of the process that took it.
            let again = other.receive_eventually().await;
            other.ack(&[again]).await;
        }
        queue.holds(Counts::default()).await;
    }
}

pub async fn of_several_that_take_a_message_one_gets_it(stage: &Stage) {
    let queues: Vec<_> = (0..6).map(|_| stage.open("a")).collect();
    let sent = queues[0].send("{}").await;
    let taken = join_all(queues.iter().map(|queue| queue.taking.as_ref().unwrap().take(&sent))).await;
    assert_eq!(taken.into_iter().filter(|taken| taken.as_ref().unwrap().is_some()).count(), 1);
}

pub async fn messages_are_listed_by_pages_and_found_without_being_received(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("b"));
    let mut sent = Vec::new();
    for n in 0..4 {
        sent.push(queue.send(n.to_string()).await);
    }
    sent.push(queue.send_later("4", HOUR).await);
    assert_eq!(queue.receive(1).await.len(), 1);

    let listing_a = listing(&queue);
    let first = listing_a.list(None, 3).await.unwrap();
    let second = listing_a.list(Some(&first[2].received.id), 3).await.unwrap();
    let all: Vec<_> = first.iter().chain(&second).collect();
    assert!(all.iter().map(|listed| &listed.received.id).eq(&sent));
    assert!(all.iter().map(|listed| listed.in_flight).eq([true, false, false, false, false]));
    let due_in = |n: usize| all[n].available_at.map(|at| at.duration_since(SystemTime::now()));
    assert!(due_in(1).is_none_or(|wait| wait.is_err()));
    // Some stores have a resolution of a second, and round up.
    let an_hour = Duration::from_secs(3400)..=HOUR + Duration::from_secs(1);
    assert!(due_in(4).is_none_or(|wait| an_hour.contains(&wait.unwrap())), "{:?}", due_in(4));
    assert!(listing_a.list(Some(&sent[4]), 3).await.unwrap().is_empty());

    let found = listing_a.find(&sent[2]).await.unwrap().unwrap();
    assert_eq!(message_of(&found.received), &message("2"));
    queue.holds(Counts { pending: 3, delayed: 1, in_flight: 1 }).await;
    assert!(listing(&other).list(None, 10).await.unwrap().is_empty());
    assert!(listing(&other).find(&sent[2]).await.unwrap().is_none());
}

pub async fn a_missing_message_is_not_found(stage: &Stage) {
    let queue = stage.open("a");
    let listing = listing(&queue);
    let ids = ["1", "999999999", "no id at all", ""].map(|id| MessageId(id.to_owned()));
    for store_is_there in [false, true] {
        if store_is_there {
            queue.send("{}").await;
            let received = queue.receive(1).await;
            queue.ack(&received).await;
            assert!(listing.find(&received[0].id).await.unwrap().is_none());
        }
        assert!(listing.list(None, 5).await.unwrap().is_empty());
        for id in &ids {
            assert!(listing.find(id).await.unwrap().is_none(), "{id}");
        }
    }
}

pub async fn a_released_message_is_delivered_again_at_once(stage: &Stage) {
    let queue = stage.open("a");
    for n in 0..3 {
        queue.send(n.to_string()).await;
    }
    let received = queue.receive(2).await;
    releasing(&queue).release(&deliveries(&received)).await.unwrap();
    if let Some(listing) = &queue.listing {
        let listed = listing.list(None, 3).await.unwrap();
        assert!(listed.iter().map(|listed| listed.in_flight).eq([false; 3]), "{listed:?}");
    }
    let mut order = Vec::new();
    while order.len() < 3 {
        order.extend(bodies(&[queue.receive_eventually().await]));
    }
    assert_eq!(order, ["0", "1", "2"]);
}

pub async fn releasing_affects_only_messages_in_flight(stage: &Stage) {
    let queue = stage.open("a");
    // In a store that does not exist yet.
    let absent = ["1", "999999999", "no id at all", ""].map(|id| MessageId(id.to_owned()));
    releasing(&queue).release(&never_received(&absent, &Receipt::default())).await.unwrap();
    queue.send("{}").await;
    let received = queue.receive(1).await;
    queue.ack(&received).await;
    let delayed = queue.send_later("{}", HOUR).await;
    let neither: Vec<_> = absent.into_iter().chain([delayed, received[0].id.clone()]).collect();
    releasing(&queue).release(&never_received(&neither, &received[0].receipt)).await.unwrap();
    queue.holds(Counts { delayed: 1, ..Counts::default() }).await;
    assert!(queue.receive(1).await.is_empty());
}

pub async fn a_message_kept_alive_is_not_delivered_again(stage: &Stage) {
    let [consumer, other] = [(); 2].map(|()| stage.open_with("a", "{redeliver_timeout: 3}"));
    consumer.send("{}").await;
    let received = consumer.receive(1).await;
    let mut held = deliveries(&received);
    let keeping_alive = keeping_alive(&consumer);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let now = SystemTime::now();
        keeping_alive.keep_alive(&held, now).await.unwrap();
        if let Some(receipt) = keeping_alive.receipt_at(now) {
            held[0].receipts = vec![receipt];
        }
        assert!(other.receive(1).await.is_empty());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(other.receive_eventually().await.id, received[0].id);
}

pub async fn a_message_kept_alive_is_released_by_its_new_receipt(stage: &Stage) {
    let queue = stage.open_with("a", "{redeliver_timeout: 3600}");
    queue.send("{}").await;
    let mut held = deliveries(&queue.receive(1).await);
    let keeping_alive = keeping_alive(&queue);
    let later = SystemTime::now() + Duration::from_secs(7);
    keeping_alive.keep_alive(&held, later).await.unwrap();
    // A consumer that does not know whether that has succeeded shows both receipts.
    held[0].receipts.extend(keeping_alive.receipt_at(later));
    releasing(&queue).release(&held).await.unwrap();
    queue.holds(Counts { pending: 1, ..Counts::default() }).await;
    assert_eq!(queue.receive_eventually().await.id, held[0].id);
}

pub async fn keeping_alive_affects_only_messages_in_flight(stage: &Stage) {
    let queue = stage.open_with("a", "{redeliver_timeout: 3600}");
    queue.send("{}").await;
    let received = queue.receive(1).await;
    let absent = ["999999999", "no id at all", ""].map(|id| MessageId(id.to_owned()));
    let pending = queue.send("{}").await;
    // A message that was never received is not put in flight.
    let neither: Vec<_> = absent.into_iter().chain([pending]).collect();
    let held = never_received(&neither, &received[0].receipt);
    keeping_alive(&queue).keep_alive(&held, SystemTime::now()).await.unwrap();
    assert_eq!(queue.receive(2).await.len(), 1);
}

pub async fn parked_messages_are_counted_and_resumed(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("a"));
    let parking = queue.parking.clone().unwrap();
    parking.resume().await.unwrap();
    queue.send("held").await;
    let held = queue.receive(1).await;
    for n in 0..3 {
        queue.send(n.to_string()).await;
        let received = queue.receive(1).await;
        match &queue.retrying {
            Some(retrying) => retrying.retry(&received[0].id, message_of(&received[0]), PARKED_FOR).await.unwrap(),
            None => {
                queue.send_later(n.to_string(), PARKED_FOR).await;
                queue.receiver().reject(&ids(&received)).await.unwrap();
            }
        }
    }
    assert!(queue.receive(9).await.is_empty());
    let others_parking = other.parking.clone().unwrap();
    assert_eq!(others_parking.parked(9).await.unwrap(), 3);
    assert_eq!(others_parking.parked(2).await.unwrap(), 2);
    others_parking.resume().await.unwrap();
    assert_eq!(parking.parked(9).await.unwrap(), 0);
    let mut resumed = Vec::new();
    while resumed.len() < 3 {
        let received = queue.receive_eventually().await;
        resumed.extend(bodies(std::slice::from_ref(&received)));
        queue.ack(&[received]).await;
    }
    resumed.sort();
    assert_eq!(resumed, ["0", "1", "2"], "and what is in flight stays so");
    queue.ack(&held).await;
}

pub async fn a_retry_replaces_the_message_and_keeps_one_copy(stage: &Stage) {
    let queue = stage.open("a");
    queue.send("first").await;
    let received = queue.receive(1).await;
    let mut second = message("second");
    second.headers.insert("x", "y");
    let retrying = queue.retrying.clone().unwrap();
    retrying.retry(&received[0].id, &second, Duration::ZERO).await.unwrap();
    // SQL stores do not deliver it again within the same second, so that the next receipt differs.
    let again = queue.receive_eventually().await;
    assert_eq!(message_of(&again), &second);
    assert!(queue.receive(1).await.is_empty(), "there is one copy");
    queue.holds(Counts { in_flight: 1, ..Counts::default() }).await;
    retrying.retry(&again.id, &message("third"), HOUR).await.unwrap();
    assert!(queue.receive(1).await.is_empty(), "it is delayed");
    queue.holds(Counts { delayed: 1, ..Counts::default() }).await;
}

pub async fn a_retry_is_never_too_early(stage: &Stage) {
    let queue = stage.open("a");
    let delay = Duration::from_millis(700);
    queue.send("1").await;
    let received = queue.receive(1).await;
    let retried = Instant::now();
    queue.retrying.as_ref().unwrap().retry(&received[0].id, &message("2"), delay).await.unwrap();
    assert_eq!(bodies(&[queue.receive_eventually().await]), ["2"]);
    assert!(retried.elapsed() + CLOCKS >= delay, "{:?}", retried.elapsed());
}

pub async fn a_retry_does_not_bring_a_finished_message_back(stage: &Stage) {
    let queue = stage.open("a");
    queue.send("{}").await;
    let received = queue.receive(1).await;
    queue.ack(&received).await;
    queue.retrying.as_ref().unwrap().retry(&received[0].id, &message("{}"), Duration::ZERO).await.unwrap();
    queue.is_empty().await;
}

/// A queue, and another one of the same store to which its messages can move.
async fn source_and_destination(stage: &Stage) -> (Queue, Queue) {
    let (source, destination) = (stage.open("a"), stage.open("b"));
    // A transport need not move messages to a queue that is still missing.
    destination.send("the first").await;
    let first = destination.receive(1).await;
    destination.ack(&first).await;
    (source, destination)
}

/// Moves a message to a queue of the same store that is there.
async fn move_to(source: &Queue, received: &Received, moved: &'static str, destination: &Queue) -> MessageId {
    let place = moving(destination).place();
    let id = moving(source).move_to(&received.id, &message(moved), &place).await.unwrap();
    id.expect("move_to returned None: the caller sends the message; but the queue is there, and in the same store")
}

pub async fn a_message_moves_to_another_queue_in_one_step(stage: &Stage) {
    let (source, destination) = source_and_destination(stage).await;
    source.send("as sent").await;
    let received = source.receive(1).await;
    let id = move_to(&source, &received[0], "as moved", &destination).await;
    source.is_empty().await;
    destination.holds(Counts { pending: 1, ..Counts::default() }).await;
    let moved = destination.receive(10).await;
    assert_eq!(ids(&moved), [id], "move_to returns the id of the message in its new queue");
    assert_eq!(message_of(&moved[0]), &message("as moved"));
}

pub async fn a_message_does_not_move_to_another_store(stage: &Stage) {
    let (source, destination) = (stage.open("a"), stage.open_elsewhere("a"));
    if let Some(setting_up) = &destination.setting_up {
        setting_up.setup().await.unwrap();
    }
    source.send("{}").await;
    let received = source.receive(1).await;
    let place = moving(&destination).place();
    let moved = moving(&source).move_to(&received[0].id, &message("{}"), &place).await.unwrap();
    assert_eq!(moved, None, "the destination is in another store");
    source.holds(Counts { in_flight: 1, ..Counts::default() }).await;
    destination.is_empty().await;
}

pub async fn a_moved_message_is_out_of_reach_of_its_former_consumer(stage: &Stage) {
    let (source, destination) = source_and_destination(stage).await;
    source.send("{}").await;
    let received = source.receive(1).await;
    move_to(&source, &received[0], "moved", &destination).await;
    // A consumer that had received the message before, and was too slow.
    source.ack(&received).await;
    if let Some(retrying) = &source.retrying {
        retrying.retry(&received[0].id, &message("{}"), Duration::ZERO).await.unwrap();
    }
    source.is_empty().await;
    assert_eq!(bodies(&destination.receive(10).await), ["moved"]);
}

pub async fn a_finished_message_is_not_moved(stage: &Stage) {
    let (source, destination) = source_and_destination(stage).await;
    source.send("{}").await;
    let received = source.receive(1).await;
    source.ack(&received).await;
    // As if it had been moved, so that the caller does not send it.
    move_to(&source, &received[0], "{}", &destination).await;
    source.is_empty().await;
    destination.is_empty().await;
}

pub async fn a_waiting_consumer_is_woken(stage: &Stage) {
    let (consumer, producer) = (stage.open("a"), stage.open("a"));
    let waking = consumer.waking.clone().unwrap();
    let wake = async || tokio::time::timeout(DEADLINE, waking.wake()).await.expect("it is woken").unwrap();
    // By a message that is there already: it may have arrived after the caller's last poll.
    producer.send("1").await;
    wake().await;
    consumer.ack(&[consumer.receive_eventually().await]).await;
    // By a message that arrives while it waits.
    tokio::join!(wake(), async { drop(producer.send("2").await) });
    consumer.ack(&[consumer.receive_eventually().await]).await;
    // By a delayed message that becomes due.
    producer.send_later("3", Duration::from_millis(50)).await;
    let deadline = Instant::now() + DEADLINE;
    while consumer.receive(1).await.is_empty() {
        assert!(Instant::now() < deadline);
        wake().await;
    }
}

pub async fn what_is_fetched_ahead_is_received_or_returned(stage: &Stage) {
    const MESSAGES: usize = 100;
    let (queue, other) = (stage.open("a"), stage.open("a"));
    for n in 0..MESSAGES {
        queue.send(n.to_string()).await;
    }
    prefetching(&queue).fetch_ahead(true);
    let mut ours = Vec::new();
    for _ in 0..3 {
        ours.extend(queue.receive(16).await);
    }
    ours.extend(prefetching(&queue).stop_fetching().await.unwrap());
    // All others are there for other consumers.
    let mut theirs = Vec::new();
    while ours.len() + theirs.len() < MESSAGES {
        theirs.push(other.receive_eventually().await);
    }
    let mut numbers: Vec<usize> =
        bodies(&[ours.as_slice(), theirs.as_slice()].concat()).iter().map(|body| body.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..MESSAGES), "{numbers:?}");
    queue.ack(&ours).await;
    other.ack(&theirs).await;
    // What has stopped goes on with the next look.
    other.send("more").await;
    let more: [Received; 1] = [queue.receive_eventually().await];
    queue.ack(&more).await;
    queue.is_empty().await;
}

pub async fn nothing_is_fetched_ahead_until_it_is_allowed(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("a"));
    assert!(prefetching(&queue).stop_fetching().await.unwrap().is_empty(), "nothing was received yet");
    for n in 0..5 {
        queue.send(n.to_string()).await;
    }
    let first = queue.receive_eventually().await;
    for _ in 0..4 {
        other.receive_eventually().await;
    }
    assert!(prefetching(&queue).stop_fetching().await.unwrap().is_empty());
    queue.ack(&[first]).await;
}

/// A transport with several queues, and their names.
fn with_queues(stage: &Stage) -> (Queue, Vec<String>) {
    let queue = stage.open_with("a", "{queues: {a: ~, b: ~}}");
    let names = queue.queues.as_ref().expect("the transport has `queues`").names();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert!(names.len() >= 2 && unique.len() == names.len(), "{names:?}");
    (queue, names)
}

pub async fn each_queue_is_received_from_and_counted_alone(stage: &Stage) {
    let (queue, names) = with_queues(stage);
    let sent: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    for body in &sent {
        queue.send(body.clone()).await;
    }
    let (mut seen, mut pending) = (Vec::new(), 0);
    let counted = match &queue.counting {
        Some(counting) => Some(counting.pending(1000).await.unwrap()),
        None => None,
    };
    for name in &names {
        let only = queue.only(name);
        assert_eq!((only.name(), only.queues.as_ref().unwrap().names()), (queue.name(), vec![name.clone()]));
        if let Some(counting) = &only.counting {
            pending += counting.pending(1000).await.unwrap();
        }
        let received = only.receive_all().await;
        seen.extend(bodies(&received));
        only.ack(&received).await;
        only.is_empty().await;
    }
    assert!(counted.is_none_or(|counted| counted == pending), "{counted:?} in all, {pending} in each");
    seen.sort();
    // A message may go to several queues.
    seen.dedup();
    assert_eq!(seen, sent);
    queue.is_empty().await;
}

pub async fn a_retry_goes_back_to_its_own_queue(stage: &Stage) {
    let (queue, names) = with_queues(stage);
    let Some(retrying) = queue.retrying.is_some().then(|| queue.only(&names[0])) else { return };
    for _ in 0..20 {
        queue.send("first").await;
    }
    for name in &names[1..] {
        let other = queue.only(name);
        let received = other.receive_all().await;
        other.ack(&received).await;
    }
    for received in retrying.receive_all().await {
        retrying.retrying.as_ref().unwrap().retry(&received.id, &message("again"), Duration::ZERO).await.unwrap();
    }
    for name in &names[1..] {
        queue.only(name).is_empty().await;
    }
    let again = retrying.receive_all().await;
    assert!(bodies(&again).iter().all(|body| body == "again"));
    retrying.ack(&again).await;
}

pub async fn queues_of_one_store_name_the_same_server(stage: &Stage) {
    let [a, b] = ["a", "b"].map(|queue| connecting(&stage.open(queue)));
    assert_eq!((a.server(), a.connection()), (b.server(), b.connection()));
    assert!(!a.server().is_empty() && !a.connection().is_empty());
    assert_ne!(a.limit().await.unwrap(), Some(0), "this is a connection itself");
}

pub async fn a_connection_that_was_closed_opens_again(stage: &Stage) {
    let queue = stage.open("a");
    // One that was never open.
    connecting(&queue).close_idle();
    for n in 0..3 {
        queue.send(n.to_string()).await;
        connecting(&queue).close_idle();
        let received = queue.receive_eventually().await;
        assert_eq!(bodies(std::slice::from_ref(&received)), [n.to_string()]);
        queue.ack(&[received]).await;
        tokio::time::timeout(DEADLINE, connecting(&queue).close()).await.expect("it closes");
        connecting(&queue).close_idle();
        queue.is_empty().await;
    }
}

pub async fn what_was_said_before_closing_is_done(stage: &Stage) {
    let (queue, other) = (stage.open("a"), stage.open("a"));
    for n in 0..100 {
        queue.send(n.to_string()).await;
    }
    let received = queue.receive_all().await;
    assert_eq!(received.len(), 100);
    queue.ack(&received).await;
    tokio::time::timeout(DEADLINE, connecting(&queue).close()).await.expect("it closes");
    drop(queue);
    other.is_empty().await;
}
