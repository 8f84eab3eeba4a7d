//! Logging in to a broker by the client's certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::amqp_server::certificate;
use super::stage::{message, open, receive_bodies, send};
use crate::support::private_broker::PrivateBroker;

#[test]
async fn with_external_the_certificate_says_who_logs_in() {
    let dir = tempfile::tempdir().unwrap();
    let Some(files) = certificate(dir.path()) else { return };
    let [authority, own, key] = files.each_ref().map(PathBuf::as_path);
    let Some(broker) = PrivateBroker::start(dir.path(), [authority, own, key]) else { return };
    let dsn = |queue: &str| format!("amqps://localhost:{}/%2f/{queue}", broker.port());
    let [authority, own, key] = files.map(|file| file.display().to_string());
    let identity = format!("cacert: {authority}, cert: {own}, key: {key}");
    for method in ["1", "external"] {
        let transport = open("a", &dsn(method), &format!("{{{identity}, sasl_method: {method}}}"), Path::new("/"));
        send(&transport, method).await;
        assert_eq!(receive_bodies(&transport).await, [method]);
    }
    // This broker knows no passwords.
    let with_password = open("a", &dsn("other"), &format!("{{{identity}}}"), Path::new("/"));
    assert!(with_password.send(&message("{}"), Duration::ZERO).await.is_err());
}
