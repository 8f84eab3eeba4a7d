//! Keys for a test on the running Redis server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::skip;
use redis::{Client, Connection};

/// Environment variable with the address of a Redis server.
pub const VARIABLE: &str = "MINUTELY_TEST_REDIS_URL";

/// All keys with this prefix. They are deleted when this is dropped.
pub struct Keys {
    url: String,
    prefix: String,
}

impl Keys {
    /// `None` if there is no server: the test is then reported as skipped.
    pub async fn create() -> Option<Self> {
        tokio::task::spawn_blocking(Self::on_the_server).await.unwrap().map_err(|reason| skip(&reason)).ok()
    }

    pub fn create_blocking() -> Option<Self> {
        Self::on_the_server().map_err(|reason| skip(&reason)).ok()
    }

    /// Or why there are none.
    fn on_the_server() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = std::env::var(VARIABLE).unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
        let keys = Self { url, prefix: format!("minutely_test_{}_{number}_", std::process::id()) };
        match keys.connect(0) {
            Ok(_) => Ok(keys),
            Err(error) => Err(format!("no Redis server ({error}); {VARIABLE} says where one is")),
        }
    }

    /// The DSN of a queue in one of the server's databases.
    pub fn dsn(&self, queue: &str, database: u32) -> String {
        format!("{}/{}?dbindex={database}", self.url, self.stream(queue))
    }

    /// A cache whose keys are this test's.
    pub fn cache_dsn(&self) -> String {
        format!("{}?prefix={}", self.url, self.prefix)
    }

    /// The stream of a queue.
    pub fn stream(&self, queue: &str) -> String {
        format!("{}{queue}", self.prefix)
    }

    pub fn connect(&self, database: u32) -> redis::RedisResult<Connection> {
        let mut connection = Client::open(self.url.as_str())?.get_connection_with_timeout(Duration::from_secs(10))?;
        redis::cmd("SELECT").arg(database).exec(&mut connection)?;
        Ok(connection)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        for database in [0, 1] {
            let Ok(mut connection) = self.connect(database) else { continue };
            let all: Vec<String> =
                redis::cmd("KEYS").arg(format!("{}*", self.prefix)).query(&mut connection).unwrap_or_default();
            if !all.is_empty() {
                let _ = redis::cmd("DEL").arg(all).exec(&mut connection);
            }
        }
    }
}
