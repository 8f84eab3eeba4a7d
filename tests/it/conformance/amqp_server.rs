//! Behaviour that only AMQP has: exchanges, several queues, retries, fairness, and broken connections.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::skip;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use minutely::message::{AmqpStamp, Envelope, UndecodableError};
use minutely::transport::TransportError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;

use super::stage::{
    DEADLINE, Queue, bodies, ids, message, message_of, open, receive_bodies, receive_eventually, send, send_later,
};
use crate::support::exchanges::Exchanges;
use crate::support::proxy::Proxy;

fn transport(dsn: &str, options: &str) -> Arc<Queue> {
    open("a", dsn, options, Path::new("/"))
}

fn error_text<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
async fn messages_are_published_as_symfony_does() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    send(&transport, "{\"n\":1}").await;
    let (_connection, channel) = exchanges.channel().await;
    let got = channel.basic_get(exchanges.name("a").into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    let properties = &got.delivery.properties;
    assert_eq!(got.delivery.data, b"{\"n\":1}");
    assert_eq!(got.delivery.exchange.as_str(), exchanges.name("a"));
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!(properties.timestamp().is_some());
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["type"], AMQPValue::LongString("App\\Message\\Test".into()));
}

#[test]
async fn a_delayed_message_waits_in_symfonys_queue() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    send_later(&transport, "{}", Duration::from_secs(3600)).await;
    let (_connection, channel) = exchanges.channel().await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name = format!("delay_{}__3600000_delay", exchanges.name("a"));
    let queue = channel.queue_declare(name.clone().into(), passive, FieldTable::default()).await.unwrap();
    assert_eq!(queue.message_count(), 1);
    // Declared as Symfony declares it, or the broker would refuse this.
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(3_600_000));
    arguments.insert("x-expires".into(), AMQPValue::LongInt(3_610_000));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(exchanges.name("a").into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("".into()));
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

/// The limit is for the queue in which the message waits: ten years, of which ten seconds are Symfony's.
#[test]
async fn a_delay_up_to_the_brokers_bound_is_kept_and_a_longer_one_refused() {
    const LONGEST: u64 = 315_360_000_000 - 10_000;
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    let (_connection, channel) = exchanges.channel().await;
    let error = transport.send(&message("{}"), Duration::from_millis(LONGEST + 1)).await.unwrap_err();
    assert!(matches!(&error, TransportError::Unstorable { why, .. } if why.contains("3649 days")), "{error}");
    send_later(&transport, "sent", Duration::from_millis(LONGEST)).await;
    // A failed message must not be lost, so that its retry comes as late as it can.
    send(&transport, "{}").await;
    let failed = receive_eventually(&transport).await;
    let retrying = transport.retrying.as_ref().unwrap();
    retrying.retry(&failed.id, &message("retried"), Duration::from_secs(20 * 365 * 86_400)).await.unwrap();
    let name = exchanges.name("a");
    for (queue, body) in [
        (format!("delay_{name}__{LONGEST}_delay"), "sent"),
        (format!("delay_{name}_{name}_{LONGEST}_retry"), "retried"),
    ] {
        let got = channel.basic_get(queue.clone().into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
        assert_eq!(got.delivery.data, body.as_bytes());
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

/// Declaring a quorum queue again does not make it live longer, so a delay queue is used for a day and expires after
/// it.
#[test]
async fn each_day_may_have_delay_queues_of_its_own() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let options = "{delay: {daily_delay_queues: true, arguments: {x-queue-type: quorum}}}";
    let transport = transport(&exchanges.dsn("a"), options);
    let day = || chrono::Utc::now().format("%Y-%m-%dZ").to_string();
    let today = day();
    send_later(&transport, "{}", Duration::from_secs(3600)).await;
    send_later(&transport, "{}", Duration::from_secs(3600)).await;
    let (_connection, channel) = exchanges.channel().await;
    let name = format!("delay_{}__3600000_delay_{today}", exchanges.name("a"));
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(3_600_000));
    arguments.insert("x-expires".into(), AMQPValue::LongInt(3_610_000 + 86_400_000));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(exchanges.name("a").into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // Declared in this way, or the broker would refuse it.
    let durable = QueueDeclareOptions::durable();
    let queue = channel.queue_declare(name.clone().into(), durable, arguments.clone()).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut messages = queue.message_count();
    // Quorum queues count what they have confirmed a moment later.
    while messages < 2 && day() == today {
        assert!(Instant::now() < deadline, "{messages}");
        messages =
            channel.queue_declare(name.clone().into(), durable, arguments.clone()).await.unwrap().message_count();
    }
    // And out of such a queue messages come back.
    send_later(&transport, "soon", Duration::from_millis(50)).await;
    let soon = receive_eventually(&transport).await;
    assert_eq!(bodies(std::slice::from_ref(&soon)), ["soon"]);
    transport.retrying.as_ref().unwrap().retry(&soon.id, &message("again"), Duration::from_millis(50)).await.unwrap();
    assert_eq!(bodies(&[receive_eventually(&transport).await]), ["again"]);
}

/// As a worker with another source does: it may stop waiting, and start again, at any moment.
#[test]
async fn cancelled_waiting_does_not_affect_messages_in_flight() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    send(&transport, "1").await;
    let in_hand = receive_eventually(&transport).await;
    let waking = transport.waking.as_ref().unwrap();
    for n in 0..300_u64 {
        let _ = tokio::time::timeout(Duration::from_micros(n * 37 % 3000), waking.wake()).await;
    }
    // Only the channel that received it can acknowledge it, and a channel that ends requeues it.
    transport.ack(&[in_hand.id]).await.unwrap();
    transport.connecting.as_ref().unwrap().close().await;
    let (_connection, channel) = exchanges.channel().await;
    let got = channel.basic_get(exchanges.name("a").into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert!(got.is_none(), "it went back while it was in hand");
}

#[test]
async fn an_exchange_receives_from_exchanges_that_it_is_bound_to() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let (_connection, channel) = exchanges.channel().await;
    let source = exchanges.name("b");
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(source.clone().into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    let in_yaml = format!("{{exchange: {{bindings: {{{source}: {{binding_keys: ['order.*', refund]}}}}}}}}");
    let in_dsn = format!("{}&exchange[bindings][{source}][binding_keys][0]=order.*", exchanges.dsn("a"));
    for (n, transport) in [transport(&exchanges.dsn("a"), &in_yaml), transport(&in_dsn, "{}")].iter().enumerate() {
        transport.setting_up.as_ref().unwrap().setup().await.unwrap();
        for (key, body) in [("order.new", "for us"), ("invoice", "not for us")] {
            let (source, properties) = (source.clone().into(), BasicProperties::default());
            let options = BasicPublishOptions::default();
            let sent = channel.basic_publish(source, key.into(), options, body.as_bytes(), properties).await;
            sent.unwrap().await.unwrap();
        }
        let received = receive_eventually(transport).await;
        assert_eq!(bodies(std::slice::from_ref(&received)), ["for us"], "{n}");
        transport.ack(&[received.id]).await.unwrap();
        assert_eq!(transport.counting.as_ref().unwrap().pending(9).await.unwrap(), 0);
    }
}

/// An exchange with two queues that get the same messages.
fn two_queues(exchanges: &Exchanges) -> (String, String) {
    let [a, b] = ["a", "b"].map(|queue| exchanges.name(queue));
    let options = format!("{{queues: {{{a}: ~, {b}: {{binding_keys: ['']}}}}}}");
    (exchanges.dsn("a"), options)
}

/// One of its queues.
fn only(transport: &Queue, queue: &str) -> Arc<Queue> {
    Queue::of(transport.queues.as_ref().unwrap().only(&[queue.to_owned()]))
}

#[test]
async fn a_message_goes_to_all_queues_and_a_retry_to_its_own() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let (dsn, options) = two_queues(&exchanges);
    let transport = transport(&dsn, &options);
    send(&transport, "first").await;
    assert_eq!(transport.counting.as_ref().unwrap().pending(10).await.unwrap(), 2);
    let only_b = only(&transport, &exchanges.name("b"));
    assert_eq!(only_b.queues.as_ref().unwrap().names(), [exchanges.name("b")]);
    let received = only_b.receive(10).await.unwrap();
    assert_eq!(bodies(&received), ["first"]);
    for (body, delay) in [("second", Duration::ZERO), ("third", Duration::from_millis(100))] {
        let received = if body == "second" { received.clone() } else { vec![receive_eventually(&only_b).await] };
        only_b.retrying.as_ref().unwrap().retry(&received[0].id, &message(body), delay).await.unwrap();
    }
    let again = receive_eventually(&only_b).await;
    assert_eq!(message_of(&again), &message("third"));
    // The other queue has seen none of that.
    let only_a = only(&transport, &exchanges.name("a"));
    assert_eq!(receive_bodies(&only_a).await, ["first"]);
}

#[test]
async fn routing_keys_select_queues_and_an_unroutable_message_is_an_error() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let [a, b] = ["a", "b"].map(|queue| exchanges.name(queue));
    let dsn = format!(
        "{}&exchange[type]=direct&exchange[default_publish_routing_key]=high&queues[{a}][binding_keys][0]=high\
         &queues[{a}][binding_keys][1]=higher&queues[{b}][binding_keys][]=low",
        exchanges.dsn("a")
    );
    let high = transport(&dsn, "{}");
    send(&high, "to a").await;
    assert_eq!(receive_bodies(&only(&high, &b)).await, Vec::<String>::new());
    assert_eq!(receive_bodies(&only(&high, &a)).await, ["to a"]);
    // Options beside the DSN have precedence, key by key.
    let low = transport(&dsn, "{exchange: {default_publish_routing_key: low}}");
    send(&low, "to b").await;
    assert_eq!(receive_bodies(&only(&low, &b)).await, ["to b"]);
    for none in ["{queues: []}", "{queues: false}"] {
        let none = transport(&exchanges.dsn("a"), none);
        assert!(matches!(none.receive(1).await, Err(TransportError::Unsupported { .. })));
    }
    let nowhere = transport(&dsn, "{exchange: {default_publish_routing_key: nowhere}}");
    let error = error_text(nowhere.send(&message("lost"), Duration::ZERO).await);
    assert!(error.contains("no queue takes messages") && error.contains("nowhere"), "{error}");
}

#[test]
async fn of_messages_that_are_sent_at_once_those_that_are_returned_are_the_errors() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let options = format!("&exchange[type]=direct&queues[{}][binding_keys][]=a", exchanges.name("a"));
    let transport = transport(&(exchanges.dsn("a") + &options), "{}");
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    let addressing = transport.addressing.as_ref().unwrap();
    for _ in 0..10 {
        let sends = (0..40).map(|n| async move {
            let key = if n % 2 == 0 { "a" } else { "nowhere" };
            let stamp: AmqpStamp = serde_json::from_value(serde_json::json!({ "routingKey": key })).unwrap();
            addressing.send_with(&message(n.to_string()), Duration::ZERO, &stamp).await.is_ok()
        });
        let results = futures_util::future::join_all(sends).await;
        let wrong: Vec<usize> = (0..40).filter(|n| results[*n] != (n % 2 == 0)).collect();
        assert_eq!(wrong, Vec::<usize>::new());
    }
}

#[test]
async fn priorities_are_respected_and_survive_a_retry() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let queue = exchanges.name("a");
    let options = format!("{{queues: {{{queue}: {{arguments: {{x-max-priority: 5}}}}}}}}");
    let transport = transport(&exchanges.dsn("a"), &options);
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    let (_connection, channel) = exchanges.channel().await;
    for (body, priority) in [("low", 1), ("high", 5)] {
        let properties = BasicProperties::default().with_priority(priority);
        let published = channel.basic_publish(
            "".into(),
            queue.clone().into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            properties,
        );
        published.await.unwrap().await.unwrap();
    }
    let deadline = Instant::now() + DEADLINE;
    while transport.counting.as_ref().unwrap().pending(9).await.unwrap() < 2 {
        assert!(Instant::now() < deadline);
    }
    let high = receive_eventually(&transport).await;
    assert_eq!(bodies(std::slice::from_ref(&high)), ["high"]);
    transport.retrying.as_ref().unwrap().retry(&high.id, &message("high again"), Duration::ZERO).await.unwrap();
    assert_eq!(bodies(&[receive_eventually(&transport).await]), ["high again"]);
}

#[test]
async fn messages_of_other_programs_are_read_as_far_as_possible() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    transport.setting_up.as_ref().unwrap().setup().await.unwrap();
    let (_connection, channel) = exchanges.channel().await;
    let mut headers = FieldTable::default();
    headers.insert("number".into(), AMQPValue::LongLongInt(-7));
    headers.insert("flag".into(), AMQPValue::Boolean(true));
    headers.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
    headers.insert("x-first-death-queue".into(), AMQPValue::LongString("x".into()));
    for (body, properties) in [
        (&b"O:36:\"Symfony\\Component\\Messenger\\Envelope\":0:{}"[..], BasicProperties::default()),
        (b"\xff\0", BasicProperties::default().with_headers(headers)),
    ] {
        let name = exchanges.name("a").into();
        channel.basic_publish("".into(), name, BasicPublishOptions::default(), body, properties).await.unwrap();
    }
    let php = receive_eventually(&transport).await;
    assert!(matches!(Envelope::decode(message_of(&php)), Err(UndecodableError::Php(_))));
    let strange = receive_eventually(&transport).await;
    let strange = message_of(&strange);
    assert_eq!(&strange.body[..], b"\xff\0");
    let headers: Vec<_> = strange.headers.iter().collect();
    assert_eq!(headers, [("flag", "true"), ("number", "-7")]);
}

#[test]
async fn existing_queues_with_other_properties_are_reported() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let (_connection, channel) = exchanges.channel().await;
    let (name, options) = (exchanges.name("a"), ExchangeDeclareOptions { durable: true, ..Default::default() });
    channel.exchange_declare(name.clone().into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    let fanout = transport(&exchanges.dsn("a"), "{}");
    for error in [
        error_text(fanout.send(&message("{}"), Duration::ZERO).await),
        error_text(fanout.receive(1).await),
        error_text(fanout.setting_up.as_ref().unwrap().setup().await),
    ] {
        assert!(
            error.contains("transport \"a\"") && error.contains(&name) && error.contains("auto_setup=false"),
            "{error}"
        );
    }
}

#[test]
async fn a_refused_login_is_reported_without_the_password() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let dsn = exchanges.dsn("a");
    let wrong = transport(&dsn.replace("guest:guest@", "guest:hunter2@"), "{}");
    let error = error_text(wrong.send(&message("{}"), Duration::ZERO).await);
    assert!(error.contains("user and password") && !error.contains("hunter2"), "{error}");
    let nowhere = transport(&dsn.replace("/%2f/", "/no_such_vhost/"), "{}");
    let error = error_text(nowhere.counting.as_ref().unwrap().pending(1).await);
    assert!(error.contains("no_such_vhost") && error.contains("virtual host"), "{error}");
    // There is another kind of server.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut other, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut other, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = error_text(transport(&format!("amqp://u:hunter2@127.0.0.1:{port}/"), "{}").receive(1).await);
    assert!(error.contains(&port.to_string()) && !error.contains("hunter2"), "{error}");
}

/// Waiting changes the prefetch count, and may be cancelled in the middle of that.
#[test]
async fn after_cancelled_waiting_the_consumer_still_receives() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let transport = transport(&exchanges.dsn("a"), "{}");
    for n in 0..40 {
        let waiting = transport.waking.as_ref().unwrap().wake();
        let _ = tokio::time::timeout(Duration::from_micros(n * 100), waiting).await;
        if n % 2 == 0 {
            assert!(transport.receive(100).await.unwrap().is_empty());
        }
        if n % 5 == 0 {
            send(&transport, n.to_string()).await;
            let received = receive_eventually(&transport).await;
            assert_eq!(bodies(std::slice::from_ref(&received)), [n.to_string()]);
            transport.ack(&[received.id]).await.unwrap();
        }
    }
}

/// A consumer that asks for one message gets only that one.
#[test]
async fn slow_consumers_share_a_queue_fairly() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let [fast, slow, third] = [(); 3].map(|()| transport(&exchanges.dsn("a"), "{}"));
    for n in 0..20 {
        send(&fast, n.to_string()).await;
    }
    let batch = fast.receive(8).await.unwrap();
    assert!(!batch.is_empty() && batch.len() <= 8);
    fast.ack(&ids(&batch)).await.unwrap();
    // Nothing is prefetched if one at a time is asked for.
    let (one, other) = (fast.receive(1).await.unwrap(), slow.receive(1).await.unwrap());
    assert_eq!((one.len(), other.len()), (1, 1));
    let mut rest = vec![];
    let deadline = Instant::now() + DEADLINE;
    while rest.len() < 20 - batch.len() - 2 {
        assert!(Instant::now() < deadline, "{} are kept from others", 18 - batch.len() - rest.len());
        rest.extend(third.receive(100).await.unwrap());
    }
}

#[test]
async fn a_connection_that_is_cut_loses_nothing() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let dsn = exchanges.dsn("a");
    let address = exchanges.address();
    let proxy = Proxy::start(&address, 0);
    let transport = transport(&dsn.replace(&address, &format!("127.0.0.1:{}", proxy.port())), "{}");
    for n in 0..5 {
        send(&transport, n.to_string()).await;
    }
    let in_hand = transport.receive(2).await.unwrap();
    proxy.cut();
    // These can no longer be acknowledged; the broker has requeued them.
    let deadline = Instant::now() + DEADLINE;
    while transport.receive(1).await.is_ok_and(|received| received.is_empty()) {
        assert!(Instant::now() < deadline);
    }
    transport.ack(&ids(&in_hand)).await.unwrap();
    let observer = open("a", &dsn, "{}", Path::new("/"));
    while observer.counting.as_ref().unwrap().pending(9).await.unwrap() + 1 < 5 {
        assert!(Instant::now() < deadline, "the broker has not got everything back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy.cut();
    let (mut all, mut deadline) = (std::collections::BTreeSet::new(), Instant::now() + DEADLINE);
    while all.len() < 5 {
        assert!(Instant::now() < deadline, "lost: {all:?}");
        let Ok(received) = transport.receive(10).await else { continue };
        all.extend(bodies(&received));
        transport.ack(&ids(&received)).await.unwrap();
    }
    // And the end wakes a waiting consumer.
    deadline = Instant::now() + DEADLINE;
    let (ended, ()) = tokio::join!(tokio::time::timeout(DEADLINE, transport.waking.as_ref().unwrap().wake()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.cut();
    });
    ended.unwrap().unwrap();
    while transport.send(&message("{}"), Duration::ZERO).await.is_err() {
        assert!(Instant::now() < deadline);
    }
}

/// A certificate for `localhost` that an authority of its own has signed, and the key: the files of all three.
pub(super) fn certificate(dir: &Path) -> Option<[PathBuf; 3]> {
    let [authority, certificate, key] = ["authority", "certificate", "key"].map(|name| dir.join(format!("{name}.pem")));
    let (authority_key, request) = (dir.join("authority.key"), dir.join("request.pem"));
    let made = |command: &mut Command| match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            true
        }
        Err(_) => false,
    };
    let new = |subject: &str| {
        let mut command = Command::new("openssl");
        command.args(["req", "-newkey", "rsa:2048", "-nodes", "-subj", subject]);
        command
    };
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-days", "2", "-set_serial", "1", "-extfile"]).arg(dir.join("names"));
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost").unwrap();
    let is_made = made(
        new("/CN=authority").args(["-x509", "-days", "2", "-keyout"]).arg(&authority_key).arg("-out").arg(&authority),
    ) && made(new("/CN=localhost").arg("-keyout").arg(&key).arg("-out").arg(&request))
        && made(
            sign.arg("-in")
                .arg(&request)
                .arg("-CA")
                .arg(&authority)
                .arg("-CAkey")
                .arg(&authority_key)
                .arg("-out")
                .arg(&certificate),
        );
    if !is_made {
        skip("openssl is not installed");
    }
    is_made.then_some([authority, certificate, key])
}

#[test]
async fn with_tls_both_sides_verify_each_other() {
    let Some(exchanges) = Exchanges::create().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some([authority, certificate, key]) = certificate(dir.path()) else { return };
    let mut authorities = RootCertStore::empty();
    authorities.add(CertificateDer::from_pem_file(&authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let own = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
    let config = config
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(own, PrivateKeyDer::from_pem_file(&key).unwrap())
        .unwrap();
    let proxy = Proxy::start_encrypted(&exchanges.address(), config);
    let dsn = exchanges
        .dsn("a")
        .replace("amqp://", "amqps://")
        .replace(&exchanges.address(), &format!("localhost:{}", proxy.port()));
    let [authority, certificate, key] = [authority, certificate, key].map(|file| file.display().to_string());

    let verified = transport(&dsn, &format!("{{cacert: {authority}, cert: {certificate}, key: {key}}}"));
    send(&verified, "1").await;
    assert_eq!(receive_bodies(&verified).await, ["1"]);

    let error = error_text(transport(&dsn, "{}").send(&message("2"), Duration::ZERO).await);
    assert!(error.contains("invalid peer certificate"), "{error}");
    let anonymous = transport(&dsn, &format!("{{cacert: {authority}}}"));
    assert!(anonymous.send(&message("3"), Duration::ZERO).await.is_err());
    let broken = transport(&dsn, &format!("{{cacert: {authority}, cert: {certificate}, key: {certificate}}}"));
    let error = error_text(broken.send(&message("4"), Duration::ZERO).await);
    assert!(error.contains("the file that `key` names has no key"), "{error}");
    let other_name = transport(&dsn.replace("localhost:", "127.0.0.1:"), &format!("{{cacert: {authority}}}"));
    let error = error_text(other_name.send(&message("5"), Duration::ZERO).await);
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[test]
fn options_are_refused_by_name_and_with_the_reason() {
    for (dsn, options, expected) in [
        ("amqp://u:hunter2@h/v/e/more", "{}", "/vhost/exchange"),
        ("amqp://u:hunter2@h,i/v", "{}", "several hosts"),
        ("amqp://u:hunter2@h?exchange[kind]=x", "{}", "unknown key \"kind\""),
        ("amqp://u:hunter2@h?queues[a][flags]=64", "{}", "php-amqp's constants"),
        ("amqp://u:hunter2@h?queues[a][arguments][x-max-priority]=many", "{}", "whole number"),
        ("amqp://u:hunter2@h", "{queues: nonsense}", "a map of names"),
        ("amqp://u:hunter2@h", "{delay: {queue_name_pattern: one}}", "%delay%"),
        ("amqp://u:hunter2@h", "{verify: false}", "cacert"),
        ("amqp://u:hunter2@h", "{cacert: /etc/passwd}", "for amqps:"),
        ("amqps://u:hunter2@h", "{cacert: /no/such/file}", "cannot be read"),
        ("amqp://u:hunter2@h", "{heartbeat: soon}", "heartbeat is a whole number"),
        ("amqp://u:hunter2@h", "{confirm_timeout: soon}", "confirm_timeout is a number of seconds"),
        ("amqp://u:hunter2@h", "{sasl_method: 1}", "EXTERNAL logs in by the client's certificate"),
        ("amqps://u:hunter2@h", "{sasl_method: external}", "it needs amqps:, `cert` and `key`"),
        ("amqp://u:hunter2@h", "{sasl_method: 2}", "0 (plain) or 1 (external)"),
        ("amqp://u:hunter2@h", "{exchange: {bindings: {b: {binding_keys: []}}}}", "needs binding_keys"),
        ("amqp://u:hunter2@h", "{exchange: {bindings: {b: {keys: [x]}}}}", "unknown key \"keys\""),
        ("amqp://u:hunter2@h", "{exchange: {name: '', bindings: {b: {binding_keys: ['']}}}}", "default exchange"),
        ("amqp://u:hunter2@h", "{delay: {daily_delay_queues: often}}", "true or false"),
        ("amqp://u:hunter2@h", "{queue: a}", "did you mean \"queues\""),
    ] {
        let found = super::sql_dsns::problems(dsn, options);
        assert!(found.contains(expected) && !found.contains("hunter2"), "{dsn} {options}: {found}");
    }
}
