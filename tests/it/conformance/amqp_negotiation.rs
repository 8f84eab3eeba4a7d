//! How a connection to a broker is opened, as a broker sees it.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::stage::{message, open};

/// The class and the method of AMQP that the client sends next, and the arguments.
async fn next_method(client: &mut TcpStream) -> ([u8; 4], Vec<u8>) {
    let mut head = [0; 7];
    client.read_exact(&mut head).await.unwrap();
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; size as usize + 1];
    client.read_exact(&mut payload).await.unwrap();
    assert_eq!((head[0], payload.pop()), (1, Some(0xce)), "a method, and the end of its frame");
    (payload[..4].try_into().unwrap(), payload[4..].to_vec())
}

async fn send_method(client: &mut TcpStream, method: [u8; 4], arguments: &[u8]) {
    let size = u32::try_from(arguments.len() + 4).unwrap().to_be_bytes();
    let frame = [&[1, 0, 0], &size[..], &method, arguments, &[0xce]].concat();
    client.write_all(&frame).await.unwrap();
}

#[test]
async fn login_name_and_limits_of_a_connection_are_those_of_the_options() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = format!(
        "{{host: 127.0.0.1, port: {}, vhost: shop, login: app, password: hunter2, connection_name: shop worker, \
         channel_max: 100, frame_max: 65536, heartbeat: 7}}",
        listener.local_addr().unwrap().port()
    );
    let transport = open("a", "amqp://", &options, Path::new("/"));
    let sending = tokio::spawn(async move { transport.send(&message("{}"), Duration::ZERO).await.map(drop) });

    let (mut client, _) = listener.accept().await.unwrap();
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"AMQP\0\0\x09\x01");
    // connection.start: version 0.9, no properties, one mechanism, one locale.
    send_method(&mut client, [0, 10, 0, 10], b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US").await;
    let (method, properties) = next_method(&mut client).await;
    assert_eq!(method, [0, 10, 0, 11], "connection.start-ok");
    let name = b"\x0fconnection_nameS\0\0\0\x0bshop worker";
    let login = b"\x05PLAIN\0\0\0\x0c\0app\0hunter2";
    for expected in [&name[..], login] {
        let found = properties.windows(expected.len()).any(|part| part == expected);
        assert!(found, "{}", String::from_utf8_lossy(&properties));
    }
    // connection.tune: 2047 channels, frames of 128 KiB, a heartbeat each minute.
    send_method(&mut client, [0, 10, 0, 30], &[0x07, 0xff, 0, 2, 0, 0, 0, 60]).await;
    let (method, limits) = next_method(&mut client).await;
    assert_eq!(method, [0, 10, 0, 31], "connection.tune-ok");
    assert_eq!(limits, [0, 100, 0, 1, 0, 0, 0, 7]);
    let (method, host) = next_method(&mut client).await;
    assert_eq!((method, &host[..5]), ([0, 10, 0, 40], &b"\x04shop"[..]), "connection.open");
    sending.abort();
}

#[test]
async fn a_broker_that_says_nothing_is_given_up_after_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dsn = format!("amqp://{}", listener.local_addr().unwrap());
    let transport = open("a", &dsn, "{connect_timeout: 0.2}", Path::new("/"));
    let error = transport.send(&message("{}"), Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("no connection within 0.2 seconds"), "{error}");
}
