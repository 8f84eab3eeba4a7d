//! Exchanges and queues for a test on the running broker.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::skip;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Channel, Connection, ConnectionProperties};

/// Environment variable with the address of a broker.
pub const VARIABLE: &str = "MINUTELY_TEST_AMQP_URL";

/// Everything whose name begins like this. What a test may have made is deleted when it goes; queues of short delays
/// go by themselves.
pub struct Exchanges {
    url: String,
    prefix: String,
}

impl Exchanges {
    /// None where the broker is not there: then the test is over, and says that it was skipped.
    pub async fn create() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = std::env::var(VARIABLE).unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned());
        let exchanges = Self { url, prefix: format!("minutely_test_{}_{number}_", std::process::id()) };
        let why = match tokio::time::timeout(Duration::from_secs(30), connect(&exchanges.url)).await {
            Ok(Ok(_)) => return Some(exchanges),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        skip(&format!("no AMQP broker ({why}); {VARIABLE} says where one is"));
        None
    }

    /// The same outside of a runtime.
    pub fn create_blocking() -> Option<Self> {
        block_on(Self::create())
    }

    /// The DSN of a transport with one queue.
    pub fn dsn(&self, queue: &str) -> String {
        format!("{}/{}?delay[exchange_name]={}", self.url, self.name(queue), self.name("delays"))
    }

    /// Where the broker is: `host:port`.
    pub fn address(&self) -> String {
        let url = url::Url::parse(&self.url).unwrap();
        url[url::Position::BeforeHost..url::Position::BeforePath].to_owned()
    }

    /// The name of a queue, and of its exchange.
    pub fn name(&self, queue: &str) -> String {
        format!("{}{queue}", self.prefix)
    }

    /// A channel of the test's own.
    pub async fn channel(&self) -> (Connection, Channel) {
        let connection = connect(&self.url).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

async fn connect(url: &str) -> lapin::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default()).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

impl Drop for Exchanges {
    fn drop(&mut self) {
        const HOUR: &str = "3600000";
        const PARKED_FOR: &str = "86400000";
        let mut queues = Vec::new();
        for queue in ["a", "b", "async", "failed", "ours", "theirs"] {
            let name = self.name(queue);
            let daily = chrono::Utc::now().format("%Y-%m-%dZ");
            // Those that would stay for long: of an hour, of a day, and daily ones of any time.
            for delay in ["50", HOUR, PARKED_FOR] {
                for of in [
                    format!("{name}__{delay}_delay"),
                    format!("_{name}_{delay}_retry"),
                    format!("{name}_{name}_{delay}_retry"),
                ] {
                    queues.extend([format!("delay_{of}_{daily}"), format!("delay_{of}")]);
                }
            }
            queues.push(name);
        }
        let exchanges = ["a", "b", "async", "failed", "ours", "theirs", "delays"].map(|exchange| self.name(exchange));
        let url = self.url.clone();
        // The test's runtime may be in the middle of ending.
        let cleaned = std::thread::spawn(move || {
            block_on(async {
                let connection = connect(&url).await?;
                let channel = connection.create_channel().await?;
                for queue in queues {
                    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
                }
                for exchange in exchanges {
                    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
                }
                lapin::Result::Ok(())
            })
        });
        if let Ok(Err(error)) = cleaned.join() {
            eprintln!("{}… stays behind: {error}", self.prefix);
        }
    }
}
