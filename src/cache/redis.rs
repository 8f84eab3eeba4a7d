//! The cache on a Redis server: a hash for each group, with a field for each entry.
//!
//! A field's value is `WRITTEN:EXPIRES:VALUE`, in milliseconds by the server's clock; what is read is translated to
//! this host's. The server removes a hash when the last of its entries has expired.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{FromRedisValue, Script};

use super::{CLOCK_TOLERANCE, CacheEntry, CacheError, CacheStore};
use crate::config::{Definition, Problem, Setting, TransportSpec};
use crate::connection::Connections;
use crate::connection::redis::{Address, OPTIONS, RedisConnection, RedisFailure};

/// The beginning of all scripts. The key is the group's hash.
const COMMON: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(text)
  local written, expires, value = text:match('^(%d+):(%d+):(.*)$')
  return tonumber(written), tonumber(expires), value
end
local function is_current(written, expires)
  return expires and expires > now and written <= now + TOLERANCE
end
local function write(key, value, ttl)
  local entry = string.format('%.0f:%.0f:', now, now + ttl) .. value
  redis.call('HSET', KEYS[1], key, entry)
  if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ttl)) end
end
";

macro_rules! script {
    ($name:ident = $code:literal) => {
        static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(&(COMMON.replace("TOLERANCE", &CLOCK_TOLERANCE.as_millis().to_string()) + $code))
        });
    };
}

// Key, value, time to live. Also removes expired entries.
script!(
    PUT = r"
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local written, expires = read(all[n + 1])
  if not is_current(written, expires) then redis.call('HDEL', KEYS[1], all[n]) end
end
write(ARGV[1], ARGV[2], tonumber(ARGV[3]))"
);

// Returns keys, values, and how many milliseconds ago each was written and in how many it expires.
script!(
    LIST = r"
local entries, all = {}, redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local written, expires, value = read(all[n + 1])
  if is_current(written, expires) then entries[#entries + 1] = {all[n], value, now - written, expires - now} end
end
return entries"
);

// Key, owner, time to live.
script!(
    CLAIM = r"
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then
  local written, expires, owner = read(held)
  if is_current(written, expires) and owner ~= ARGV[2] then return 0 end
end
write(ARGV[1], ARGV[2], tonumber(ARGV[3]))
return 1"
);

// Key, owner.
script!(
    UNCLAIM = r"
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then
  local _, _, owner = read(held)
  if owner == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
end"
);

/// The options of a cache on a Redis server.
pub(super) fn options() -> Vec<Definition> {
    [&[PREFIX.definition][..], &OPTIONS].concat()
}

const PREFIX: Setting<String> = Setting::text("prefix", "minutely:", "what keys begin with");

/// A cache on a Redis server, or all mistakes in its description.
pub(super) fn on_redis(spec: &TransportSpec, connections: &Connections) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let mut address = Address::read_with_database(spec, &mut options);
    let prefix = options.get(&PREFIX);
    if !address.select_node(&prefix) {
        let message = "prefix: in a cluster, it needs braces, such as {minutely}: keys with the same text in braces are on one node";
        options.refuse("prefix", message);
    }
    options.finish()?;
    let connection = connections.redis(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
    Ok(Arc::new(RedisStore { connection, prefix }))
}

/// The cache, in keys with a common prefix.
struct RedisStore {
    connection: Arc<RedisConnection>,
    prefix: String,
}

impl RedisStore {
    async fn invoke<T: FromRedisValue>(
        &self,
        action: &'static str,
        script: &Script,
        group: &str,
        arguments: &[&str],
        ttl: Option<Duration>,
    ) -> Result<T, CacheError> {
        let mut invocation = script.key(format!("{}{group}", self.prefix));
        invocation.arg(arguments);
        if let Some(ttl) = ttl {
            // At most a number that Lua represents exactly.
            invocation.arg(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 50));
        }
        self.connection
            .run(async |connection| invocation.invoke_async(connection).await)
            .await
            .map_err(|error| self.error(action, error))
    }

    fn error(&self, action: &'static str, error: RedisFailure) -> CacheError {
        CacheError { location: self.connection.location().to_string(), action, known: false, source: Box::new(error) }
    }
}

#[async_trait]
impl CacheStore for RedisStore {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.invoke("written", &PUT, group, &[key, value], Some(ttl)).await
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        let hash = format!("{}{group}", self.prefix);
        let remove = redis::cmd("HDEL").arg(hash).arg(key).clone();
        self.connection
            .run(async |connection| remove.exec_async(connection).await)
            .await
            .map_err(|error| self.error("written", error))
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64)> = self.invoke("read", &LIST, group, &[], None).await?;
        let now = SystemTime::now();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let span = |millis: i64| Duration::from_millis(u64::try_from(millis).unwrap_or(0));
        let entry = |(key, value, age, left)| CacheEntry {
            key: text(key),
            value: text(value),
            // The server's clock may have been set back a little since.
            written_at: now.checked_sub(span(age)).unwrap_or(now),
            expires_at: now + span(left),
        };
        let mut entries: Vec<CacheEntry> = rows.into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        self.invoke("written", &CLAIM, group, &[key, owner], Some(ttl)).await
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.invoke("written", &UNCLAIM, group, &[key, owner], None).await
    }

    fn location(&self) -> String {
        self.connection.location().to_string()
    }

    fn close_idle(&self) {
        self.connection.close_idle();
    }
}
