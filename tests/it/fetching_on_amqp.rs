//! What workers on a broker fetch, keep and release, with very quick handlers in this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapin::options::BasicGetOptions;
use minutely::message::{Encoded, Message};
use minutely::{App, StopReason, WorkerBuilder, WorkerHandle};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::support::exchanges::Exchanges;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Note {
    n: u32,
    /// Its handler waits for a permit of the test.
    slow: bool,
}

impl Message for Note {
    const TYPE: &'static str = "Note";
}

/// An application whose handler counts.
struct Counting {
    app: App,
    /// How often each was started.
    begun: Arc<Mutex<BTreeMap<u32, u32>>>,
    /// Slow messages are done when there is a permit.
    go: Arc<Semaphore>,
    exchanges: Exchanges,
    _dir: tempfile::TempDir,
}

impl Counting {
    /// `transports` are options of transports whose exchange has their name.
    async fn on(transports: impl Fn(&Exchanges) -> Vec<(&'static str, String)>) -> Option<Self> {
        let exchanges = Exchanges::create().await?;
        let dir = tempfile::tempdir().unwrap();
        let transports = transports(&exchanges).into_iter().map(|(name, options)| {
            let options = if options.is_empty() { "{}".to_owned() } else { options };
            format!("  {name}: {{dsn: '{}', options: {options}}}\n", exchanges.dsn(name))
        });
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, format!("transports:\n{}", transports.collect::<String>())).unwrap();
        let (begun, go) = (Arc::<Mutex<BTreeMap<u32, u32>>>::default(), Arc::new(Semaphore::new(0)));
        let app = App::builder().handle_named("count", {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            move |note: Note| {
                *begun.lock().unwrap().entry(note.n).or_default() += 1;
                let go = Arc::clone(&go);
                async move {
                    if note.slow {
                        go.acquire().await.unwrap().forget();
                    }
                }
            }
        });
        let app = app.config_file(&file).build().unwrap();
        for transport in app.transports().names() {
            app.transports().get(transport).unwrap().setting_up.as_ref().unwrap().setup().await.unwrap();
        }
        Some(Self { app, begun, go, exchanges, _dir: dir })
    }

    async fn send(&self, transport: &str, n: u32, slow: bool) {
        let message = self.encoded(n, slow);
        self.app.transports().get(transport).unwrap().sender.send(&message, Duration::ZERO).await.unwrap();
    }

    fn encoded(&self, n: u32, slow: bool) -> Encoded {
        let body = serde_json::to_vec(&Note { n, slow }).unwrap().into();
        Encoded { body, headers: [("type", "Note")].into() }
    }

    /// Sends many at once.
    async fn send_all(&self, transport: &str, notes: impl Iterator<Item = (u32, bool)>) {
        let sending: Vec<_> = notes.map(|(n, slow)| self.send(transport, n, slow)).collect();
        futures_util::future::join_all(sending).await;
    }

    fn start(&self, transports: &[&str], concurrency: usize) -> WorkerHandle {
        self.worker(transports, concurrency).spawn().unwrap()
    }

    fn worker(&self, transports: &[&str], concurrency: usize) -> WorkerBuilder {
        self.app.worker(transports.iter().copied()).concurrency(concurrency)
    }

    fn begun(&self) -> u32 {
        self.begun.lock().unwrap().values().sum()
    }

    /// Waits until this many were started, for as long as there is progress.
    async fn begins(&self, all: u32) {
        let mut so_far = 0;
        while so_far < all {
            wait_until("more messages are begun", async || self.begun() > so_far).await;
            so_far = self.begun();
        }
        assert_eq!(so_far, all);
    }

    fn has_begun(&self, n: u32) -> bool {
        self.begun.lock().unwrap().contains_key(&n)
    }

    async fn pending(&self, transport: &str) -> u64 {
        self.app.transports().get(transport).unwrap().counting.as_ref().unwrap().pending(u64::MAX).await.unwrap()
    }

    /// Empties a queue: how many messages were left, and how many of those the broker says were delivered before.
    async fn empty(&self, queue: &str) -> (u64, u64) {
        let (_connection, channel) = self.exchanges.channel().await;
        let (mut left, mut redelivered) = (0, 0);
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = channel.basic_get(self.exchanges.name(queue).into(), options).await.unwrap() {
            left += 1;
            redelivered += u64::from(got.delivery.redelivered);
        }
        (left, redelivered)
    }
}

/// A transport of these queues, which all get each message.
fn queues(exchanges: &Exchanges, names: &[&str], more: &str) -> String {
    let queues: Vec<String> = names.iter().map(|name| format!("{}: ~", exchanges.name(name))).collect();
    format!("{{queues: {{{}}}{more}}}", queues.join(", "))
}

async fn wait_until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
async fn with_several_queues_nothing_is_acknowledged_before_it_is_handled() {
    for more in [", prefetch_count: 1", ", prefetch_count: 10", ""] {
        let all = |exchanges: &Exchanges| vec![("a", queues(exchanges, &["a", "b", "async", "failed"], more))];
        let Some(counting) = Counting::on(all).await else { return };
        counting.send_all("a", (0..150).map(|n| (n, false))).await;
        let worker = counting.start(&["a"], 1);
        counting.begins(600).await;
        wait_until("nothing is pending", async || counting.pending("a").await == 0).await;
        let summary = worker.stop().await.unwrap();
        assert_eq!((summary.handled, summary.failed), (600, 0), "{more}");
        for queue in ["a", "b", "async", "failed"] {
            assert_eq!(counting.empty(queue).await, (0, 0), "{more}");
        }
        assert!(counting.begun.lock().unwrap().values().all(|times| *times == 4), "{more}");
    }
}

#[test]
async fn a_busy_worker_holds_no_other_messages() {
    let two = |_: &Exchanges| vec![("a", String::new()), ("b", String::new())];
    let Some(counting) = Counting::on(two).await else { return };
    let worker = counting.start(&["a", "b"], 1);
    // It has waited, on both.
    counting.send("b", 1, false).await;
    wait_until("the first is handled", async || counting.begun() == 1).await;
    counting.send("a", 2, true).await;
    wait_until("the slow one is begun", async || counting.has_begun(2)).await;
    counting.send("b", 3, false).await;
    counting.send("a", 4, false).await;
    // Longer than anything is kept here. The broker would have pushed it by then.
    let (mut seen, since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        assert_eq!((counting.pending("a").await, counting.pending("b").await), (1, 1), "after {seen} looks");
        seen += 1;
    }
    // A free consumer gets them, and they do not count as redelivered.
    assert_eq!((counting.empty("a").await, counting.empty("b").await), ((1, 0), (1, 0)));
    counting.go.add_permits(1);
    assert_eq!(worker.stop().await.unwrap().handled, 2);
}

#[test]
async fn no_message_waits_behind_a_slow_one() {
    let Some(counting) = Counting::on(|_| vec![("a", String::new())]).await else { return };
    // Handlers have been quick, so messages are prefetched.
    counting.send_all("a", (0..500).map(|n| (n, false))).await;
    counting.send("a", 500, true).await;
    counting.send_all("a", (501..1000).map(|n| (n, false))).await;
    let worker = counting.start(&["a"], 1);
    wait_until("the slow one is begun", async || counting.has_begun(500)).await;
    wait_until("all others can be had", async || {
        let (pending, begun) = (counting.pending("a").await, counting.begun());
        pending + u64::from(begun) == 1000
    })
    .await;
    counting.go.add_permits(1);
    counting.begins(1000).await;
    assert_eq!(worker.stop().await.unwrap().handled, 1000);
    assert_eq!(counting.empty("a").await, (0, 0));
}

#[test]
async fn messages_that_a_stopping_worker_leaves_do_not_count_as_redelivered() {
    let both = |exchanges: &Exchanges| vec![("a", queues(exchanges, &["a", "b"], ""))];
    let Some(counting) = Counting::on(both).await else { return };
    for round in 0..12 {
        let before = counting.begun();
        let began = Instant::now();
        counting.send_all("a", (0..200).map(|n| (n, false))).await;
        let mut worker = counting.worker(&["a"], if round % 3 == 0 { 5 } else { 1 });
        let limit = (round % 4 == 0).then_some(50 + 17 * round);
        if let Some(limit) = limit {
            worker = worker.limit(limit);
        }
        if round % 4 == 1 {
            worker = worker.time_limit(Duration::from_millis(5 * round));
        }
        let worker = worker.spawn().unwrap();
        let summary = if round % 4 > 1 {
            let some = u32::try_from(20 * round).unwrap();
            wait_until("it has handled some", async || counting.begun() > before + some).await;
            worker.stop().await.unwrap()
        } else {
            worker.wait().await.unwrap()
        };
        let took = began.elapsed();
        assert!(limit.is_none_or(|limit| summary.handled == limit), "{summary:?}");
        let (a, b) = (counting.empty("a").await, counting.empty("b").await);
        // Messages that wait behind others for half a second are requeued, which happens on a machine that stalls.
        let stood_still = took > Duration::from_millis(500) && !matches!(summary.reason, StopReason::TimeLimit);
        if !stood_still {
            let delivered_before = (a.1, b.1);
            assert_eq!(delivered_before, (0, 0), "of {a:?} and {b:?} in round {round}, within {took:?}: {summary:?}");
        }
        assert_eq!(a.0 + b.0 + summary.handled, 400, "round {round}");
    }
}
