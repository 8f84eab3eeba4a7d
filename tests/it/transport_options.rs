//! How all transports treat their options: `~`, files, and options without effect. Nothing is opened.

use std::fs;
use std::path::Path;

use minutely::config::{Config, Problem};

use crate::support::applications::{problems, transports};

/// The problems of a transport in a project's folder.
fn check_in(dir: &Path, dsn: &str, options: &str) -> Vec<Problem> {
    problems(transports([("a", dsn)], options), dir)
}

fn check(dsn: &str, options: &str) -> Vec<Problem> {
    check_in(Path::new("/"), dsn, options)
}

const STORES: [&str; 5] =
    ["sqlite:a.db", "postgres://h/app", "mysql://u@h/app", "redis://h/stream", "amqps://h/%2f/exchange"];

#[test]
fn a_tilde_stands_for_the_default_of_every_option() {
    let options = [
        "table_name queue_name redeliver_timeout auto_setup",
        "table_name queue_name redeliver_timeout auto_setup use_notify get_notify_timeout check_delayed_interval sslmode \
         sslrootcert sslcrl connect_timeout",
        "table_name queue_name redeliver_timeout auto_setup unix_socket ssl-ca charset",
        "stream group consumer auto_setup delete_after_ack delete_after_reject stream_max_entries dbindex redeliver_timeout \
         claim_interval lazy auth serializer sentinel_master redis_sentinel timeout read_timeout retry_interval \
         persistent_id ssl tls host cluster",
        "host port vhost login password exchange queues delay auto_setup confirm_timeout connect_timeout prefetch_count \
         cacert cert key verify sasl_method persistent read_timeout write_timeout rpc_timeout heartbeat frame_max",
    ];
    for (dsn, options) in STORES.into_iter().zip(options) {
        for option in options.split_whitespace() {
            assert_eq!(check(dsn, &format!("{{{option}: ~}}")), [], "{dsn} {option}");
        }
        let unknown = check(dsn, "{no_such_option: ~}");
        assert!(unknown.len() == 1 && !unknown[0].warning, "{unknown:?}");
    }
}

#[test]
fn options_without_effect_are_named_in_a_warning() {
    for (dsn, option, value) in [
        ("redis://h/s", "lazy", "false"),
        ("redis://h/s", "retry_interval", "100"),
        ("redis://h/s", "persistent_id", "x"),
        ("amqp://h", "persistent", "true"),
        ("amqp://h", "retry", "true"),
        ("amqp://h", "read_timeout", "3"),
        ("amqp://h", "write_timeout", "3"),
        ("amqp://h", "rpc_timeout", "3"),
        ("postgres://h/app", "get_notify_timeout", "500"),
        ("postgres://h/app", "sslcrl", "a.crl"),
        ("postgres://h/app", "connect_timeout", "5"),
        ("mysql://u@h/app", "charset", "latin1"),
        ("mysql://u@h/app", "collation", "latin1_german1_ci"),
    ] {
        let in_option = check(dsn, &format!("{{{option}: {value}}}"));
        let in_dsn = check(&format!("{dsn}?{option}={value}"), "{}");
        for (problems, place) in
            [(in_option, format!("transports.a.options.{option}")), (in_dsn, "transports.a.dsn".into())]
        {
            let [problem] = &problems[..] else { panic!("{dsn} {option}: {problems:?}") };
            assert!(problem.warning && problem.path == place, "{problem:?}");
            assert!(problem.message.starts_with(&format!("{option} has no effect here: ")), "{problem:?}");
        }
    }
    // An option that asks for the default behaviour is not reported.
    for (dsn, options) in [
        ("redis://h/s", "{lazy: true, timeout: 0, read_timeout: 0.0, retry_interval: '0'}"),
        ("amqp://h", "{persistent: false, read_timeout: 0}"),
        ("postgres://h/app", "{get_notify_timeout: 0, charset: utf8, serverVersion: '16'}"),
        ("mysql://u@h/app", "{charset: utf8mb4, serverVersion: '8.0'}"),
    ] {
        assert_eq!(check(dsn, options), [], "{dsn}");
    }
}

#[test]
fn options_of_the_cache_without_effect_are_named_in_a_warning() {
    let warnings = problems(Config::builder().cache("redis://h?retry_interval=3"), Path::new("/"));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].message.starts_with("retry_interval has no effect here"), "{warnings:?}");
}

#[test]
fn files_for_tls_are_relative_to_the_config_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("certs")).unwrap();
    fs::write(dir.path().join("certs/ca.pem"), "").unwrap();
    for (dsn, options) in [
        ("amqps://h", "{cacert: certs/ca.pem, cert: certs/ca.pem, key: certs/ca.pem}"),
        ("amqps://h?cacert=certs/ca.pem", "{}"),
        ("amqps://h?cacert=certs", "{}"),
        ("rediss://h/s", "{ssl: {capath: certs, verify_peer: true}}"),
        ("redis://h/s?tls=1&ssl[capath]=certs", "{}"),
    ] {
        assert_eq!(check_in(dir.path(), dsn, options), [], "{dsn} {options}");
        let elsewhere = check(dsn, options);
        assert!(!elsewhere.is_empty() && elsewhere.iter().all(|problem| problem.message.contains("cannot be read")));
    }
}

#[test]
fn mistakes_in_options_for_tls_are_named() {
    for (dsn, options, expected) in [
        ("redis://h/s", "{ssl: {cafile: /etc/passwd}}", "ssl is for rediss:"),
        ("rediss://h/s", "{ssl: {verify_peer: false}}", "the server is always verified"),
        ("rediss://h/s", "{ssl: {ca: x}}", "unknown key \"ca\"; known: cafile"),
        ("rediss://h/s", "{ssl: yes}", "ssl is a map"),
        ("rediss://h/s", "{ssl: {cafile: /no/such/file}}", "/no/such/file cannot be read"),
        ("amqps://h", "{cert: /etc/passwd}", "cert and key are needed together"),
    ] {
        let problems = check(dsn, options);
        assert!(problems.iter().any(|problem| problem.message.contains(expected)), "{dsn} {options}: {problems:?}");
    }
}
