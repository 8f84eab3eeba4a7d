//! Who may take a message that others are at, too: Symfony's consumers with their delayed messages, and abandoned ones
//! behind many that are in flight.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minutely::transport::{Counts, MessageId};
use redis::{Connection, FromRedisValue, Script};

use super::redis_server::{Redis, counts};
use super::stage::{DEADLINE, Queue, bodies, deliveries, ids, message, open, send};

/// What Symfony 7.4.22 does first with a delayed message: it raises the score of one that is due.
const CLAIM: &str = "
local message = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, 1)
if message[1] then redis.call('ZADD', KEYS[1], 'XX', ARGV[2], message[1]) end
return message";

/// A consumer of Symfony 7.4, as far as it moves delayed messages.
struct Symfony {
    connection: Connection,
    stream: String,
}

impl Symfony {
    fn of(redis: &Redis) -> Self {
        Self { connection: redis.stage.keys().connect(0).unwrap(), stream: redis.stream.clone() }
    }

    fn run<T: FromRedisValue>(&mut self, command: &str, arguments: &[&str]) -> T {
        redis::cmd(command).arg(arguments).query(&mut self.connection).unwrap()
    }

    fn queue(&self) -> String {
        format!("{}__queue", self.stream)
    }

    /// The member that is claimed until in an hour.
    fn claim(&mut self) -> Option<String> {
        let (seconds, micros): (u64, u64) = self.run("TIME", &[]);
        let now = seconds * 1000 + micros / 1000;
        let claim = Script::new(CLAIM);
        let mut claim = claim.key(self.queue());
        let found: Vec<String> = claim.arg(now).arg(now + 3_600_000).invoke(&mut self.connection).unwrap();
        found.into_iter().next()
    }

    fn add(&mut self, member: &str) {
        let mut content: serde_json::Map<String, serde_json::Value> = serde_json::from_str(member).unwrap();
        content.remove("uniqid");
        let content = serde_json::to_string(&content).unwrap();
        self.run::<String>("XADD", &[&self.stream.clone(), "*", "message", &content]);
    }

    fn remove(&mut self, member: &str) {
        self.run::<u64>("ZREM", &[&self.queue(), member]);
    }
}

/// A way to the server on which something is done just before the first request that contains a word goes on.
struct Tripwire {
    port: u16,
}

impl Tripwire {
    fn new(server: String, word: &'static str, action: impl FnOnce() + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let action = Arc::new(Mutex::new(Some(action)));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&server).unwrap();
                let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass_on(server_too, client_too, |_| ()));
                let action = Arc::clone(&action);
                std::thread::spawn(move || {
                    pass_on(client, server, |bytes| {
                        if bytes.windows(word.len()).any(|part| part == word.as_bytes())
                            && let Some(action) = action.lock().unwrap().take()
                        {
                            action();
                        }
                    });
                });
            }
        });
        Self { port }
    }

    fn open(&self, stream: &str) -> Arc<Queue> {
        let dsn = format!("redis://127.0.0.1:{}/{stream}", self.port);
        open("a", &dsn, "{}", Path::new("/"))
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, before: impl Fn(&[u8])) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        before(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Where the tests' server is, as `host:port`.
fn server(redis: &Redis) -> String {
    let dsn = url::Url::parse(&redis.stage.keys().dsn("a", 0)).unwrap();
    format!("{}:{}", dsn.host_str().unwrap(), dsn.port().unwrap_or(6379))
}

fn add_delayed(redis: &mut Redis, name: &str, due: &str) {
    let member = format!(r#"{{"body":"{{\"n\":\"{name}\"}}","headers":{{"type":"A"}},"uniqid":"{name}"}}"#);
    redis.run::<u64>(&format!("ZADD $__queue {due}"), &[&member]);
}

#[test]
async fn a_delayed_message_that_symfony_claims_meanwhile_is_left_to_it() {
    let Some(mut redis) = Redis::new().await else { return };
    let mut symfony = Symfony::of(&redis);
    let claimed = Arc::new(Mutex::new(None));
    let wire = Tripwire::new(server(&redis), "tripwire", {
        let (claimed, mut symfony) = (Arc::clone(&claimed), Symfony::of(&redis));
        move || *claimed.lock().unwrap() = symfony.claim()
    });
    add_delayed(&mut redis, "tripwire", "1");
    // It is due when it is found, and claimed when it is to be moved.
    assert!(wire.open(&redis.stream).receive(5).await.unwrap().is_empty());
    let member = claimed.lock().unwrap().take().expect("the message was not asked for");
    symfony.add(&member);
    let transport = redis.stage.open("a");
    let received = transport.receive(5).await.unwrap();
    assert_eq!(bodies(&received), [r#"{"n":"tripwire"}"#]);
    symfony.remove(&member);
    assert!(transport.receive(5).await.unwrap().is_empty());
    transport.ack(&ids(&received)).await.unwrap();
    assert_eq!(counts(&transport).await, Counts::default());
}

#[test]
async fn a_delayed_message_that_symfony_claims_is_neither_moved_nor_removed() {
    for act in ["retry", "move", "reject"] {
        let Some(mut redis) = Redis::new().await else { return };
        let claimed = Arc::new(Mutex::new(None));
        let wire = Tripwire::new(server(&redis), "tripwire", {
            let (claimed, mut symfony) = (Arc::clone(&claimed), Symfony::of(&redis));
            move || *claimed.lock().unwrap() = symfony.claim()
        });
        add_delayed(&mut redis, "tripwire", "1");
        let (transport, other) = (wire.open(&redis.stream), wire.open(&redis.stage.keys().stream("b")));
        let id = MessageId("delayed:1:tripwire".to_owned());
        let (retrying, moving) = (transport.retrying.as_ref().unwrap(), transport.moving.as_ref().unwrap());
        let place = other.moving.as_ref().unwrap().place();
        match act {
            "retry" => retrying.retry(&id, &message("x"), Duration::ZERO).await.unwrap(),
            "move" => drop(moving.move_to(&id, &message("x"), &place).await.unwrap()),
            _ => transport.reject(&[id]).await.unwrap(),
        }
        assert!(claimed.lock().unwrap().is_some(), "the message was not asked for");
        assert_eq!(counts(&other).await, Counts::default(), "{act}");
        assert_eq!(counts(&redis.stage.open("a")).await, Counts { delayed: 1, ..Counts::default() }, "{act}");
    }
}

#[test]
async fn delayed_messages_are_received_once_beside_symfony() {
    const MESSAGES: usize = 600;
    let Some(mut redis) = Redis::new().await else { return };
    for n in 0..MESSAGES {
        add_delayed(&mut redis, &n.to_string(), &(n + 1).to_string());
    }
    let mut symfony = Symfony::of(&redis);
    let beside = std::thread::spawn(move || {
        let mut moved = 0;
        while let Some(member) = symfony.claim() {
            symfony.add(&member);
            symfony.remove(&member);
            moved += 1;
        }
        moved
    });
    let transport = redis.stage.open("a");
    let receive = async {
        let mut received = Vec::new();
        while !beside.is_finished() || !transport.counting.as_ref().unwrap().pending(1).await.unwrap().eq(&0) {
            received.extend(transport.receive(20).await.unwrap());
        }
        received
    };
    let received = tokio::time::timeout(DEADLINE, receive).await.unwrap();
    beside.join().unwrap();
    let mut bodies = bodies(&received);
    bodies.sort();
    bodies.dedup();
    assert_eq!((received.len(), bodies.len()), (MESSAGES, MESSAGES));
}

#[test]
async fn abandoned_messages_are_found_at_once_behind_many_in_flight() {
    const LIVE: usize = 2500;
    let Some(mut redis) = Redis::new().await else { return };
    let (live, dead, next) = (redis.stage.open("a"), redis.stage.open("a"), redis.stage.open("a"));
    for n in 0..LIVE {
        redis.add("message", &format!(r#"{{"body":"{n}","headers":{{}}}}"#));
    }
    let mut held = 0;
    while held < LIVE {
        held += live.receive(1000).await.unwrap().len();
    }
    for n in 0..3 {
        send(&dead, n.to_string()).await;
    }
    let abandoned = dead.receive(3).await.unwrap();
    dead.releasing.as_ref().unwrap().release(&deliveries(&abandoned)).await.unwrap();
    // An idle worker with one message at a time looks once.
    assert_eq!(bodies(&next.receive(1).await.unwrap()), ["0"]);
    assert_eq!(bodies(&next.receive(1).await.unwrap()), ["1"]);
    // What is abandoned behind the place where the last look has ended is found as well.
    let first: Vec<(String, String, u64, u64)> = redis.run("XPENDING $ symfony - + 1", &[]);
    redis.run::<redis::Value>(&format!("XCLAIM $ symfony {} 0 {} TIME 0 JUSTID", first[0].1, first[0].0), &[]);
    assert_eq!(bodies(&next.receive(1).await.unwrap()), ["2"]);
    assert_eq!(bodies(&next.receive(1).await.unwrap()), ["0"]);
    assert!(next.receive(1).await.unwrap().is_empty());
}
