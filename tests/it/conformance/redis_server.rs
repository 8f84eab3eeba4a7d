//! Behaviour that only Redis has: Symfony's entries, consumers and groups, and errors.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use minutely::transport::{Counts, MessageId, Receipt, Sent, TransportError};
use redis::{Connection, FromRedisValue, cmd};

use super::stage::{
    DEADLINE, Kind, Queue, Stage, bodies, deliveries, ids, message, message_of, never_received, open, receive_bodies,
    receive_eventually, send, send_later,
};
use crate::support::applications::{problems, transports};
use crate::support::private_redis::PrivateRedis;

const HOUR: Duration = Duration::from_secs(3600);

/// The message of the tests with the body `{"n":1}`, as PHP's JSON has it.
const JSON: &str = r#"{"body":"{\"n\":1}","headers":{"type":"App\\Message\\Test","Content-Type":"application\/json"}}"#;

/// A test's own keys, and a connection beside the transport's.
pub struct Redis {
    pub stage: Stage,
    connection: Connection,
    /// The key of queue `a`.
    pub stream: String,
}

impl Redis {
    pub async fn new() -> Option<Self> {
        let stage = Stage::new(Kind::Redis).await?;
        let connection = stage.keys().connect(0).unwrap();
        let stream = stage.keys().stream("a");
        Some(Self { stage, connection, stream })
    }

    /// A command; `$` stands for the stream.
    pub fn run<T: FromRedisValue>(&mut self, command: &str, last: &[&str]) -> T {
        let mut words = command.split(' ').map(|word| word.replace('$', &self.stream));
        let mut command = cmd(&words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).arg(last).query(&mut self.connection).unwrap()
    }

    pub fn add(&mut self, field: &str, value: &str) {
        self.run::<String>("XADD $ *", &[field, value]);
    }

    fn consumers(&mut self) -> Vec<String> {
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
            self.run("XINFO CONSUMERS $ symfony", &[]);
        consumers.into_iter().map(|mut info| redis::from_redis_value(info.remove("name").unwrap()).unwrap()).collect()
    }
}

pub async fn counts(transport: &Queue) -> Counts {
    transport.counting.as_ref().unwrap().counts(1000).await.unwrap()
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
async fn entries_are_those_of_symfony() {
    let Some(mut redis) = Redis::new().await else { return };
    for (options, before, after) in [("{}", "s:94:\"", "\";"), ("{serializer: 0}", "", "")] {
        let transport = redis.stage.open_with("a", options);
        let id = send(&transport, "{\"n\":1}").await;
        let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE $ - +", &[]);
        let ours = JSON.replace("\\/", "/");
        assert_eq!(ours.len(), 94);
        assert_eq!(entries, [(id.0.clone(), vec!["message".to_owned(), format!("{before}{ours}{after}")])]);
        transport.reject(&[id]).await.unwrap();

        send_later(&transport, "{\"n\":1}", HOUR).await;
        send_later(&transport, "{\"n\":1}", HOUR).await;
        // The same with either serializer, and two though they are equal.
        let delayed: Vec<String> = redis.run("ZRANGE $__queue 0 -1", &[]);
        assert_eq!(delayed.len(), 2);
        let (start, uniqid) = delayed[0].split_once(",\"uniqid\":\"").unwrap();
        assert_eq!((format!("{start}}}"), uniqid.len()), (ours, "0123456789abcdef\"}".len()));
        let due: Vec<(String, u64)> = redis.run("ZRANGE $__queue 0 0 WITHSCORES", &[]);
        let time: (u64, u64) = redis.run("TIME", &[]);
        assert!((3_590_000..=3_601_000).contains(&(due[0].1 - time.0 * 1000)), "{due:?} {time:?}");
        redis.run::<()>("DEL $ $__queue", &[]);
    }
}

#[test]
async fn entries_are_read_with_and_without_phps_wrapping() {
    let Some(mut redis) = Redis::new().await else { return };
    for options in ["{}", "{serializer: 0}"] {
        let transport = redis.stage.open_with("a", options);
        redis.add("message", JSON);
        redis.add("message", &format!("s:{}:\"{JSON}\";", JSON.len()));
        redis.run::<()>("ZADD $__queue 1", &[&JSON.replace("}}", "},\"uniqid\":\"6b00f078895b92.65632680\"}")]);
        let received = transport.receive(10).await.unwrap();
        assert_eq!(received.len(), 3);
        for received in &received {
            assert_eq!(message_of(received), &message("{\"n\":1}"));
        }
        transport.ack(&ids(&received)).await.unwrap();
    }
}

#[test]
async fn damaged_entries_are_received_as_damaged_and_kept() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open("a");
    redis.add("other", "field");
    for value in ["nonsense", "s:3:\"{}\";", "{}", r#"{"body":{},"headers":{}}"#, r#"{"body":"b","headers":["x"]}"#] {
        redis.add("message", value);
    }
    redis.run::<()>("ZADD $__queue 1", &["delayed nonsense"]);
    let received = transport.receive(10).await.unwrap();
    let damaged: Vec<_> = received.iter().map(|received| received.message.as_ref().unwrap_err()).collect();
    let kept: Vec<_> = damaged.iter().map(|damaged| String::from_utf8_lossy(&damaged.body).into_owned()).collect();
    assert_eq!(
        kept,
        ["other field", "nonsense", "s:3:\"{}\";", "{}", r#"{"body":{},"headers":{}}"#, "b", "delayed nonsense"]
    );
    assert_eq!(&damaged[5].headers[..], b"[\"x\"]");
    let expected = damaged[0].error.to_string();
    assert!(expected.contains("has no field `message`"), "{expected}");
    assert_eq!(counts(&transport).await, Counts { in_flight: 7, ..Counts::default() });
}

#[test]
async fn every_consumer_has_a_name_of_its_own_unless_one_is_set() {
    let Some(mut redis) = Redis::new().await else { return };
    for options in ["{}", "{}", "{consumer: mine}"] {
        let transport = redis.stage.open_with("a", options);
        send(&transport, "{}").await;
        assert_eq!(transport.receive(1).await.unwrap().len(), 1);
    }
    let mut names = redis.consumers();
    names.sort();
    assert_eq!((names.len(), names[0].as_str()), (3, "mine"));
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let ours = format!("minutely:{host}:{}:", std::process::id());
    assert!(names[1].starts_with(&ours) && names[2].starts_with(&ours) && names[1] != names[2], "{names:?}");
}

#[test]
async fn messages_in_flight_at_a_predecessor_of_the_same_name_come_first() {
    let Some(redis) = Redis::new().await else { return };
    let open = || redis.stage.open_with("a", "{consumer: mine}");
    let before = open();
    for n in 0..6 {
        send(&before, n.to_string()).await;
    }
    assert_eq!(before.receive(5).await.unwrap().len(), 5);
    drop(before);
    let after = open();
    assert_eq!(bodies(&after.receive(2).await.unwrap()), ["0", "1"]);
    assert_eq!(bodies(&after.receive(2).await.unwrap()), ["2", "3"]);
    // And what is in its own hands does not come again.
    assert_eq!(bodies(&after.receive(4).await.unwrap()), ["4"]);
    assert_eq!(bodies(&after.receive(4).await.unwrap()), ["5"]);
    assert!(after.receive(4).await.unwrap().is_empty());
}

#[test]
async fn messages_of_phps_consumers_are_not_released_but_received_when_abandoned() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open_with("a", "{redeliver_timeout: 2}");
    let id = send(&transport, "1").await;
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    redis.run::<redis::Value>("XREADGROUP GROUP symfony consumer COUNT 1 STREAMS $ >", &[]);
    send(&transport, "0").await;
    let received = transport.receive(1).await.unwrap();
    let held = never_received(std::slice::from_ref(&id), &received[0].receipt);
    transport.releasing.as_ref().unwrap().release(&held).await.unwrap();
    transport.keeping_alive.as_ref().unwrap().keep_alive(&held, SystemTime::now()).await.unwrap();
    transport.ack(&ids(&received)).await.unwrap();
    transport.retrying.as_ref().unwrap().retry(&id, &message("2"), Duration::ZERO).await.unwrap();
    assert_eq!(counts(&transport).await, Counts { in_flight: 1, ..Counts::default() });
    let received = receive_eventually(&transport).await;
    assert_eq!((&received.id, &message_of(&received).body[..]), (&id, &b"1"[..]));
}

#[test]
async fn a_slow_consumer_does_not_retry_a_message_that_another_has() {
    let Some(redis) = Redis::new().await else { return };
    let open = || redis.stage.open_with("a", "{redeliver_timeout: 1}");
    let (slow, other) = (open(), open());
    send(&slow, "1").await;
    let received = slow.receive(1).await.unwrap();
    assert_eq!(receive_eventually(&other).await.id, received[0].id);
    let place = redis.stage.open("b").moving.as_ref().unwrap().place();
    let (retrying, moving) = (slow.retrying.as_ref().unwrap(), slow.moving.as_ref().unwrap());
    retrying.retry(&received[0].id, &message("2"), Duration::ZERO).await.unwrap();
    retrying.retry(&received[0].id, &message("2"), HOUR).await.unwrap();
    moving.move_to(&received[0].id, &message("2"), &place).await.unwrap();
    slow.keeping_alive.as_ref().unwrap().keep_alive(&deliveries(&received), SystemTime::now()).await.unwrap();
    other.ack(&ids(&received)).await.unwrap();
    for queue in ["a", "b"] {
        assert_eq!(counts(&redis.stage.open(queue)).await, Counts::default());
    }
}

#[test]
async fn pending_messages_are_counted_if_the_server_does_not_know_the_lag() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open("a");
    let mut sent = vec![];
    for n in 0..250 {
        sent.push(send(&transport, n.to_string()).await);
    }
    transport.receive(10).await.unwrap();
    // Deleted before they were received: the server loses count.
    redis.run::<()>("XDEL $", &[&sent[50].0, &sent[60].0]);
    let groups: Vec<std::collections::HashMap<String, redis::Value>> = redis.run("XINFO GROUPS $", &[]);
    assert_eq!(groups[0].get("lag").unwrap_or(&redis::Value::Nil), &redis::Value::Nil);
    assert_eq!(counts(&transport).await, Counts { pending: 238, in_flight: 10, ..Counts::default() });
    assert_eq!(transport.counting.as_ref().unwrap().pending(100).await.unwrap(), 100);
    assert_eq!(transport.counting.as_ref().unwrap().pending(150).await.unwrap(), 150);
}

/// Redis 7.0 goes on to count such messages as undelivered.
#[test]
async fn messages_removed_before_they_were_received_are_not_counted() {
    for options in ["{}", "{delete_after_ack: false, delete_after_reject: false}"] {
        let Some(redis) = Redis::new().await else { return };
        let transport = redis.stage.open_with("a", options);
        let mut sent = vec![];
        for n in 0..5 {
            sent.push(send(&transport, n.to_string()).await);
        }
        let pending = async || counts(&transport).await.pending;
        let finish_next = async || transport.ack(&ids(&transport.receive(1).await.unwrap())).await.unwrap();
        let remove = async |id: &MessageId| {
            let taken = transport.taking.as_ref().unwrap().take(id).await.unwrap().unwrap();
            transport.reject(&[taken.id]).await.unwrap();
        };
        finish_next().await;
        remove(&sent[1]).await;
        assert_eq!(pending().await, 3, "{options}");
        finish_next().await;
        assert_eq!(pending().await, 2, "{options}");
        remove(&sent[4]).await;
        assert_eq!(pending().await, 1, "{options}");
        remove(&sent[3]).await;
        assert_eq!(counts(&transport).await, Counts::default(), "{options}");
        send(&transport, "5").await;
        assert_eq!(pending().await, 1, "{options}");
        finish_next().await;
        assert_eq!(counts(&transport).await, Counts::default(), "{options}");
    }
}

#[test]
async fn a_message_deleted_while_in_flight_is_dropped() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open("a");
    let id = send(&transport, "1").await;
    let received = transport.receive(1).await.unwrap();
    redis.run::<()>("XDEL $", &[&id.0]);
    transport.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    send(&transport, "2").await;
    assert_eq!(receive_bodies(&redis.stage.open("a")).await, ["2"]);
    assert_eq!(counts(&transport).await, Counts { in_flight: 1, ..Counts::default() });
}

#[test]
async fn handled_messages_stay_if_they_are_not_to_be_deleted() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open_with("a", "{delete_after_ack: false, delete_after_reject: 'no'}");
    for n in 0..3 {
        send(&transport, n.to_string()).await;
    }
    let received = transport.receive(2).await.unwrap();
    transport.ack(&ids(&received)[..1]).await.unwrap();
    transport.reject(&ids(&received)[1..]).await.unwrap();
    assert_eq!(redis.run::<u64>("XLEN $", &[]), 3);
    assert_eq!(counts(&transport).await, Counts { pending: 1, ..Counts::default() });
    assert_eq!(receive_bodies(&redis.stage.open("a")).await, ["2"]);
}

#[test]
async fn a_stream_is_cut_to_its_maximum_length() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open_with("a", "{stream_max_entries: 100}");
    for n in 0..1000 {
        send(&transport, n.to_string()).await;
    }
    assert!((100..400).contains(&redis.run::<u64>("XLEN $", &[])));
}

#[test]
async fn a_deleted_stream_is_created_again_with_the_next_message() {
    let Some(mut redis) = Redis::new().await else { return };
    let transport = redis.stage.open("a");
    send(&transport, "1").await;
    let received = transport.receive(1).await.unwrap();
    redis.run::<()>("DEL $", &[]);
    transport.retrying.as_ref().unwrap().retry(&received[0].id, &message("x"), Duration::ZERO).await.unwrap();
    transport.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    transport.ack(&ids(&received)).await.unwrap();
    assert!(transport.receive(1).await.unwrap().is_empty());
    send(&transport, "2").await;
    assert_eq!(receive_bodies(&transport).await, ["2"]);
}

#[test]
async fn a_second_group_is_refused_if_messages_are_deleted() {
    let Some(redis) = Redis::new().await else { return };
    let (first, second) = (redis.stage.open("a"), redis.stage.open_with("a", "{group: other}"));
    send(&first, "1").await;
    assert_eq!(receive_bodies(&first).await, ["1"]);
    for result in [second.receive(1).await.map(drop), second.setting_up.as_ref().unwrap().setup().await] {
        let text = error_text(result);
        assert!(
            text.contains("the group \"symfony\" besides \"other\"") && text.contains("delete_after_ack"),
            "{text}"
        );
    }
    let keeping = "{group: other, delete_after_ack: false, delete_after_reject: false}";
    assert_eq!(receive_bodies(&redis.stage.open_with("a", keeping)).await, ["1"]);
}

#[test]
async fn a_key_of_another_type_is_named() {
    let Some(mut redis) = Redis::new().await else { return };
    redis.run::<()>("SET $ hello", &[]);
    let transport = redis.stage.open("a");
    let id = minutely::transport::MessageId("1-1".to_owned());
    for result in [
        transport.send(&message("1"), Duration::ZERO).await.map(drop),
        transport.receive(1).await.map(drop),
        transport.ack(std::slice::from_ref(&id)).await,
        transport.counting.as_ref().unwrap().pending(1).await.map(drop),
        transport.setting_up.as_ref().unwrap().setup().await,
        transport.releasing.as_ref().unwrap().release(&never_received(&[id], &Receipt("somebody".into()))).await,
    ] {
        let text = error_text(result);
        assert!(text.contains("\"a\"") && text.contains("WRONGTYPE") && text.contains("another `stream`"), "{text}");
        assert!(!text.contains("script"), "{text}");
    }
    // A delayed message stays where it is, and so does one that is to be moved.
    redis.run::<()>("ZADD $__queue 1", &[JSON]);
    error_text(transport.receive(1).await);
    assert_eq!(redis.run::<u64>("ZCARD $__queue", &[]), 1);
    let source = redis.stage.open("b");
    send(&source, "1").await;
    let received = source.receive(1).await.unwrap();
    let place = transport.moving.as_ref().unwrap().place();
    error_text(source.moving.as_ref().unwrap().move_to(&received[0].id, &message("1"), &place).await);
    assert_eq!(counts(&source).await, Counts { in_flight: 1, ..Counts::default() });
}

#[test]
async fn a_released_message_wakes_waiting_consumers() {
    let Some(redis) = Redis::new().await else { return };
    let (dead, supervisor, waiting) = (redis.stage.open("a"), redis.stage.open("a"), redis.stage.open("a"));
    send(&dead, "1").await;
    let received = dead.receive(1).await.unwrap();
    let woken = async {
        while waiting.receive(1).await.unwrap().is_empty() {
            waiting.waking.as_ref().unwrap().wake().await.unwrap();
        }
    };
    let release = async {
        // Only once it listens.
        let deadline = Instant::now() + DEADLINE;
        while waiting.waking.as_ref().unwrap().poll_interval().is_none() {
            assert!(Instant::now() < deadline, "it does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        supervisor.releasing.as_ref().unwrap().release(&deliveries(&received)).await.unwrap();
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(woken, release) }).await.unwrap();
}

/// Waits until nothing from before wakes a consumer any more.
async fn settle(consumer: &Queue) {
    let quiet = Duration::from_millis(300);
    for _ in 0..5 {
        if tokio::time::timeout(quiet, consumer.waking.as_ref().unwrap().wake()).await.is_err() {
            return;
        }
        assert!(consumer.receive(1).await.unwrap().is_empty());
    }
    panic!("it is woken again and again by nothing");
}

#[test]
async fn changes_of_other_keys_wake_no_consumer() {
    let Some(redis) = Redis::new().await else { return };
    let (waiting, other) = (redis.stage.open("a"), redis.stage.open("ab"));
    let waking = waiting.waking.as_ref().unwrap();
    let quiet = Duration::from_millis(300);
    assert!(waiting.receive(1).await.unwrap().is_empty());
    settle(&waiting).await;
    send(&other, "1").await;
    send_later(&other, "2", HOUR).await;
    assert!(tokio::time::timeout(quiet, waking.wake()).await.is_err());
    send_later(&redis.stage.open("a"), "3", Duration::from_millis(1)).await;
    tokio::time::timeout(DEADLINE, waking.wake()).await.unwrap().unwrap();
}

/// Store errors name the transport and the server.
fn is_store_error<T: std::fmt::Debug>(result: Result<T, TransportError>, server: &PrivateRedis) {
    let error = result.unwrap_err();
    assert!(matches!(error, TransportError::Store { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("\"a\"") && text.contains(&format!("127.0.0.1:{}/", server.port())), "{text}");
}

#[test]
async fn nothing_is_lost_when_the_server_goes_away_and_comes_back() {
    let Some(mut server) = PrivateRedis::start(&[]) else { return };
    let transport = transport(&server.url(), "{}");
    for n in 0..5 {
        send(&transport, n.to_string()).await;
    }
    send_later(&transport, "5", Duration::from_millis(1)).await;
    let in_flight = transport.receive(2).await.unwrap();
    server.kill();
    let start = Instant::now();
    is_store_error(queued(&transport).await, &server);
    is_store_error(transport.receive(1).await, &server);
    is_store_error(transport.ack(&ids(&in_flight)).await, &server);
    is_store_error(transport.counting.as_ref().unwrap().pending(1).await, &server);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    server.start_again();
    transport.ack(&ids(&in_flight)).await.unwrap();
    let mut bodies = receive_bodies(&transport).await;
    bodies.sort();
    assert_eq!(bodies, ["2", "3", "4", "5"]);
    assert_eq!(counts(&transport).await, Counts { in_flight: 4, ..Counts::default() });
}

#[test]
async fn a_waiting_consumer_notices_the_servers_end_and_waits_again() {
    let Some(mut server) = PrivateRedis::start(&[]) else { return };
    let consumer = transport(&server.url(), "{}");
    let waking = consumer.waking.as_ref().unwrap();
    let wake = async || tokio::time::timeout(DEADLINE, waking.wake()).await.unwrap();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    settle(&consumer).await;
    assert!(waking.poll_interval().is_some());
    // It listens already: what is asked once waits.
    let mut woken = std::pin::pin!(wake());
    assert!(futures_util::poll!(woken.as_mut()).is_pending());
    tokio::task::block_in_place(|| server.kill());
    woken.await.unwrap();
    assert!(waking.poll_interval().is_none(), "it has to look by itself while nothing can wake it");
    is_store_error(consumer.receive(1).await, &server);
    server.start_again();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    settle(&consumer).await;
    assert!(waking.poll_interval().is_some());
    let producer = transport(&server.url(), "{}");
    let (woken, ()) = tokio::join!(wake(), async { drop(send(&producer, "1").await) });
    woken.unwrap();
    assert_eq!(bodies(&consumer.receive(1).await.unwrap()), ["1"]);
}

fn transport(dsn: &str, options: &str) -> Arc<Queue> {
    open("a", dsn, options, Path::new("/"))
}

async fn queued(transport: &Queue) -> Result<Sent, TransportError> {
    transport.send(&message("{}"), Duration::ZERO).await
}

#[test]
async fn logins_and_sockets_are_understood_and_secrets_not_shown() {
    let options = ["--requirepass", "hunter2", "--user", "app", "on", ">p@ss:w/rd", "~*", "&*", "+@all"];
    let Some(server) = PrivateRedis::start(&options) else { return };
    let (port, socket) = (server.port(), server.socket().display().to_string());
    for (dsn, options) in [
        (format!("redis://hunter2@127.0.0.1:{port}/s"), "{}"),
        (format!("redis://:hunter2@127.0.0.1:{port}/s?dbindex=3"), "{}"),
        (format!("valkey://127.0.0.1:{port}/s"), "{auth: hunter2}"),
        (format!("redis://app:p%40ss%3Aw%2Frd@127.0.0.1:{port}"), "{stream: s}"),
        (format!("redis://hunter2@{socket}?stream=s"), "{dbindex: 1}"),
        (format!("redis://app:p%40ss%3Aw%2Frd@{socket}"), "{}"),
    ] {
        queued(&transport(&dsn, options)).await.unwrap();
    }
    for (dsn, expected) in [
        (format!("redis://hunter3@127.0.0.1:{port}/s"), "password are wrong"),
        (format!("redis://app:hunter3@127.0.0.1:{port}/s"), "password are wrong"),
        (format!("redis://127.0.0.1:{port}/s"), "asks for a password"),
        (format!("redis://hunter2@127.0.0.1:{port}/s?dbindex=99"), "99"),
        ("redis://hunter2@127.0.0.1:1/s".to_owned(), "127.0.0.1:1/0: Connection refused"),
        ("redis://hunter2@/nowhere/a.sock".to_owned(), "/nowhere/a.sock/0: No such file"),
    ] {
        let text = error_text(queued(&transport(&dsn, "{}")).await);
        assert!(text.contains(expected) && text.contains("\"a\"") && !text.contains("hunter"), "{text}");
    }
}

#[test]
async fn requests_do_not_wait_for_delayed_acknowledgements() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let transport = transport(&server.url(), "{}");
    queued(&transport).await.unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let fd: i32 = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        #[allow(unsafe_code, reason = "the number is from /proc/self/fd")]
        // SAFETY: the descriptor is only duplicated. If it was closed meanwhile, that fails.
        let Ok(owned) = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned() else { continue };
        let socket = TcpStream::from(owned);
        if socket.peer_addr().is_ok_and(|peer| peer.ip().is_loopback() && peer.port() == server.port()) {
            found.push(socket.nodelay().unwrap());
        }
    }
    assert_eq!(found, [true]);
}

#[test]
async fn a_missing_permission_is_named() {
    let options = ["--user", "app", "on", ">hunter2", "~*", "&*", "+@all", "-@stream"];
    let Some(server) = PrivateRedis::start(&options) else { return };
    let transport = transport(&format!("redis://app:hunter2@127.0.0.1:{}", server.port()), "{}");
    let text = error_text(queued(&transport).await);
    assert!(text.contains("no permissions") && text.contains("ACL SETUSER") && !text.contains("hunter2"), "{text}");
}

#[test]
async fn a_full_server_refuses_new_messages_and_delivers_old_ones() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let transport = transport(&server.url(), "{}");
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    send(&transport, "1").await;
    send(&transport, "2").await;
    send_later(&transport, "3", Duration::from_millis(1)).await;
    let mut connection = server.connect().unwrap();
    cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").query::<()>(&mut connection).unwrap();
    let text = error_text(queued(&transport).await);
    assert!(text.contains("maxmemory"), "{text}");
    let received = transport.receive(5).await.unwrap();
    transport.ack(&ids(&received)).await.unwrap();
    // What is delayed is no less there for it.
    let counts = counts(&transport).await;
    assert_eq!((received.len(), counts), (2, Counts { pending: 1, ..Counts::default() }));
}

#[test]
async fn a_server_that_is_too_old_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Redis 5, as far as it is asked.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for command in lines.map_while(Result::ok).filter(|line| ["HELLO", "CLIENT"].contains(&line.as_str())) {
                let _ = stream.write_all(format!("-ERR unknown command `{command}`\r\n").as_bytes());
            }
        }
    });
    let text = error_text(queued(&transport(&format!("redis://127.0.0.1:{port}"), "{}")).await);
    assert!(text.contains("Redis 6.2 is the oldest"), "{text}");
}

/// What is wrong, or doubtful, with a DSN.
fn check(dsn: &str) -> Vec<String> {
    let problems = problems(transports([("a", dsn)], "{}"), Path::new("/"));
    problems.into_iter().map(|problem| problem.message).collect()
}

#[test]
fn symfonys_dsns_are_understood() {
    for (dsn, store, stream) in [
        ("redis://localhost:6379/messages", "localhost:6379/0", "messages"),
        ("redis://localhost", "localhost:6379/0", "messages"),
        (
            "redis://pass%40word@[::1]:6380/s/g?auto_setup=true&serializer=1&stream_max_entries=0&dbindex=2",
            "[::1]:6380/2",
            "s",
        ),
        ("rediss://u:p@h/s/?lazy=1&tls=1&timeout=0&read_timeout=0&retry_interval=0", "h:6379/0", "s"),
        ("redis:///var/run/redis.sock", "/var/run/redis.sock/0", "messages"),
        ("valkeys://h/path?stream=option&group=g&delete_after_ack=1&delete_after_reject=0", "h:6379/0", "path"),
        ("redis://h/?claim_interval=1000&redeliver_timeout=10", "h:6379/0", "messages"),
    ] {
        assert_eq!(check(dsn), Vec::<String>::new(), "{dsn}");
        let transport = transport(dsn, "{}");
        assert_eq!(transport.connecting.as_ref().unwrap().connection(), store);
        let place = format!("{:?}", transport.moving.as_ref().unwrap().place());
        assert!(place.contains(&format!("{stream:?}")), "{place}");
    }
}

#[test]
async fn a_server_that_says_nothing_is_given_up_after_the_timeouts() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let open = |address: String, options: &str| open("a", &format!("redis://{address}/s"), options, Path::new("/"));
    let begun = Instant::now();
    let transport = open(silent.local_addr().unwrap().to_string(), "{timeout: 0.2}");
    error_text(transport.send(&message("{}"), Duration::ZERO).await);

    let transport = open(format!("127.0.0.1:{}", server.port()), "{read_timeout: 0.2}");
    send(&transport, "1").await;
    redis::cmd("CLIENT").arg("PAUSE").arg(60_000).exec(&mut server.connect().unwrap()).unwrap();
    error_text(transport.send(&message("{}"), Duration::ZERO).await);
    // By default it would be ten seconds and thirty.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[test]
fn mistakes_are_named() {
    for (dsn, expected) in [
        ("redis://hunter2@h/s?strem=a", "unknown option \"strem\", did you mean \"stream\"?"),
        ("redis://h/s?serializer=2", "serializer is 0 (JSON as it is) or 1"),
        ("redis://h/s?dbindex=main", "dbindex is a whole number"),
        ("redis://h/s?claim_interval=1m", "claim_interval is a whole number"),
        ("redis://h/s?redeliver_timeout=1h", "redeliver_timeout is a whole number of seconds"),
        ("redis://h/s?sentinel_master=main&redis_sentinel=other", "have different values"),
        ("redis://h/s?sentinel_master=main&cluster=1", "a cluster has no sentinels"),
        ("redis://h1,h2/s", "the stream \"s\" and its delayed messages, \"s__queue\", would be on different nodes"),
        ("redis://h1:6379,redis://h2:6379", "name it with braces"),
        ("redis://h/s?cluster=1", "name it with braces"),
        ("redis://h1,h2/{s}?dbindex=1", "a cluster has only the database 0"),
        ("redis://h?host[]=h2", "name all of them in one place"),
        ("redis:?host[h2:port]", "host is a map of servers"),
        ("redis://h/a/b/c/d?auth=hunter2", "its path is /stream/group/consumer"),
        ("redis://h/s?stream_max_entries=10", "stream_max_entries drops the oldest messages"),
        ("redis://h/s/g/c", "share the name `consumer`"),
    ] {
        let problems = check(dsn);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{dsn}: {problems:?}");
        assert!(!problems.concat().contains("hunter2"), "{dsn}: {problems:?}");
    }
    for dsn in [
        "redis://h1,h2/{s}",
        "redis://h1:6379,redis://h2:6379/app:{s}/group",
        "redis:?host[h1:6379]&host[h2]&stream={s}",
        "redis://h/{s}?cluster=1",
        "redis://h:26379/s?sentinel_master=main",
        "redis:?host[h1:26379]&host[h2:26379]&redis_sentinel=main",
        "redis:?host[]=h1:26379&host[]=h2:26379&sentinel_master=main&dbindex=1",
        "redis://h/s?sentinel_master=&timeout=2.5&read_timeout=5",
    ] {
        assert_eq!(check(dsn), Vec::<String>::new(), "{dsn}");
    }
}
