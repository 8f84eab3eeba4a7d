//! Finds the one server that has the keys, where a DSN names several: sentinels, which know the primary, or nodes of a
//! cluster, one of which has the slot. Asked before each connection, because another server may have taken over.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value};

use super::address::{Address, Lookup, Several};
use crate::threads;

/// How long one of the servers may take to answer, before the next one is asked.
const SEED_TIMEOUT: Duration = Duration::from_secs(2);

/// A server's host and port.
type Server = (String, u16);

/// The server that has the keys now. Asks one server after the other until one knows.
pub(super) async fn find(address: &Address, several: &Several) -> RedisResult<Client> {
    let mut reasons = Vec::new();
    for seed in &several.hosts {
        let limit = SEED_TIMEOUT.min(address.connect_timeout);
        let found = match tokio::time::timeout(limit, ask(address, several, seed)).await {
            Ok(Ok(server)) => return address.client_to(&server.0, server.1, true),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", limit.as_secs_f32()),
        };
        tracing::debug!(server = %format_args!("{}:{}", seed.0, seed.1), error = found, "does not know the server");
        reasons.push(format!("{}:{}: {found}", seed.0, seed.1));
    }
    let what = match &several.lookup {
        Lookup::Sentinel(_) => "no sentinel knows the primary",
        Lookup::Cluster(_) => "no node of the cluster knows who has the keys",
    };
    Err(RedisError::from((ErrorKind::Client, what, reasons.join("; "))))
}

/// Whether this is the primary: a sentinel may not know yet that it is no longer. A server that does not tell is one.
pub(super) async fn is_primary(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    match redis::cmd("ROLE").query_async::<Vec<Value>>(connection).await {
        Ok(role) => Ok(role.first().and_then(text).is_none_or(|role| role == "master")),
        Err(error) if error.is_io_error() || error.is_timeout() => Err(error),
        Err(_) => Ok(true),
    }
}

async fn ask(address: &Address, several: &Several, (host, port): &Server) -> RedisResult<Server> {
    threads::wait_for_lookup_thread(host).await?;
    // Sentinels have logins of their own, usually none.
    let is_node = matches!(several.lookup, Lookup::Cluster(_));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(SEED_TIMEOUT))
        .set_response_timeout(Some(SEED_TIMEOUT));
    let client = address.client_to(host, *port, is_node)?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    match &several.lookup {
        Lookup::Sentinel(primary) => {
            let mut ask = redis::cmd("SENTINEL");
            ask.arg("get-master-addr-by-name").arg(primary);
            let found: Option<Server> = ask.query_async(&mut connection).await?;
            found.ok_or_else(|| own("it has no primary of this name; see `sentinel_master`"))
        }
        Lookup::Cluster(tag) => {
            let slot = redis::cmd("CLUSTER").arg("KEYSLOT").arg(tag).query_async(&mut connection).await?;
            let slots: Vec<Value> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
            let owner = slots.iter().find_map(|range| owner_of(slot, range));
            let (name, port) = owner.ok_or_else(|| own("no node has these keys; see CLUSTER INFO"))?;
            // Without a name, it is this node.
            Ok((name.unwrap_or_else(|| host.clone()), port))
        }
    }
}

fn own(reason: &'static str) -> RedisError {
    (ErrorKind::Client, reason).into()
}

/// The primary of a range of slots, `[first, last, [host, port, …], …]`, if the slot is among them.
fn owner_of(slot: i64, range: &Value) -> Option<(Option<String>, u16)> {
    let Value::Array(range) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = range.as_slice() else { return None };
    let [host, Value::Int(port), ..] = node.as_slice() else { return None };
    let host = text(host).filter(|host| !host.is_empty() && host != "?");
    (*first..=*last).contains(&slot).then_some((host, u16::try_from(*port).ok()?))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64, host: Value) -> Value {
        let node = |host| Value::Array(vec![host, Value::Int(7000), Value::BulkString(b"id".to_vec())]);
        let replica = node(Value::BulkString(b"replica".to_vec()));
        Value::Array(vec![Value::Int(first), Value::Int(last), node(host), replica])
    }

    #[test]
    fn the_primary_of_the_slot_is_found() {
        let named = range(0, 5460, Value::BulkString(b"one".to_vec()));
        assert_eq!(owner_of(5460, &named), Some((Some("one".to_owned()), 7000)));
        assert_eq!(owner_of(5461, &named), None);
        for unnamed in [Value::Nil, Value::BulkString(vec![]), Value::BulkString(b"?".to_vec())] {
            assert_eq!(owner_of(0, &range(0, 0, unnamed)), Some((None, 7000)));
        }
        for nonsense in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(0), Value::Int(9)])] {
            assert_eq!(owner_of(0, &nonsense), None);
        }
    }
}
