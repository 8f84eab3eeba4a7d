//! Messages and waiting consumers when the server ends and starts again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use minutely::transport::{Counts, TransportError};
use sqlx::{Connection, Executor, PgConnection, Row};

use super::stage::{DEADLINE, Queue, bodies, ids, message, open, receive_bodies, send};
use crate::support::databases::Server;
use crate::support::private_servers::PrivateServer;

fn transport(server: &PrivateServer) -> Arc<Queue> {
    let dsn = format!("{}?queue_name=a&table_name=restart_messages", server.admin_url());
    open("a", &dsn, "{}", std::path::Path::new("/"))
}

/// Store errors name the transport and the server. No other error comes from a missing server.
fn is_store_error<T: std::fmt::Debug>(result: Result<T, TransportError>, server: &PrivateServer) {
    let error = result.unwrap_err();
    assert!(matches!(error, TransportError::Store { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("\"a\"") && text.contains(&format!("127.0.0.1:{}/", server.port())), "{text}");
}

async fn nothing_is_lost(server: Server) {
    let Some(mut server) = PrivateServer::start(server) else { return };
    let transport = transport(&server);
    for n in 0..5 {
        send(&transport, n.to_string()).await;
    }
    let in_flight = transport.receive(2).await.unwrap();

    server.kill();
    let start = Instant::now();
    is_store_error(transport.send(&message("lost"), Duration::ZERO).await, &server);
    is_store_error(transport.receive(1).await, &server);
    is_store_error(transport.ack(&ids(&in_flight)).await, &server);
    is_store_error(transport.counting.as_ref().unwrap().pending(1).await, &server);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());

    server.start_again();
    transport.ack(&ids(&in_flight)).await.unwrap();
    send(&transport, "5").await;
    assert_eq!(receive_bodies(&transport).await, ["2", "3", "4", "5"]);
    let counts = transport.counting.as_ref().unwrap().counts(100).await.unwrap();
    assert_eq!(counts, Counts { in_flight: 4, ..Counts::default() });
}

#[test]
async fn nothing_is_lost_on_postgres() {
    nothing_is_lost(Server::Postgres).await;
}

#[test]
async fn nothing_is_lost_on_mysql() {
    nothing_is_lost(Server::Mysql).await;
}

#[test]
async fn a_consumer_waiting_on_postgres_notices_the_end_and_waits_again() {
    let Some(mut server) = PrivateServer::start(Server::Postgres) else { return };
    let consumer = transport(&server);
    let waking = consumer.waking.as_ref().unwrap();
    let wake = async || tokio::time::timeout(DEADLINE, waking.wake()).await.unwrap();
    // The first call only starts to listen.
    wake().await.unwrap();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    assert!(waking.poll_interval().is_some());

    // Once for the question to be prepared, which it does before it asks.
    send(&transport(&server), "0").await;
    wake().await.unwrap();
    consumer.ack(&ids(&consumer.receive(1).await.unwrap())).await.unwrap();

    // It asks when something is due, and waits when it has the answer.
    let mut observer = PgConnection::connect(&server.admin_url()).await.unwrap();
    let answered = "SELECT max(state_change)::text FROM pg_stat_activity WHERE state = 'idle' \
                    AND wait_event = 'ClientRead' AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let deadline = Instant::now() + DEADLINE;
    let mut answered_since = async |before: Option<String>| loop {
        let last: Option<String> = observer.fetch_one(answered).await.unwrap().get(0);
        if last.is_some() && last != before {
            return last;
        }
        assert!(Instant::now() < deadline, "it does not ask");
    };
    let before = answered_since(None).await;
    let (woken, ()) = tokio::join!(wake(), async {
        answered_since(before).await;
        // The answer is here, and read while this one comes.
        answered_since(None).await;
        tokio::task::block_in_place(|| server.kill());
    });
    woken.unwrap();
    assert!(waking.poll_interval().is_none(), "it has to look by itself while nothing can wake it");
    is_store_error(consumer.receive(1).await, &server);
    server.start_again();

    assert!(consumer.receive(1).await.unwrap().is_empty());
    wake().await.unwrap();
    assert!(consumer.receive(1).await.unwrap().is_empty());
    assert!(waking.poll_interval().is_some());
    let producer = transport(&server);
    let (woken, ()) = tokio::join!(wake(), async { drop(send(&producer, "1").await) });
    woken.unwrap();
    assert_eq!(bodies(&consumer.receive(1).await.unwrap()), ["1"]);
}
