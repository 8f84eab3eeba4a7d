//! What may be written in the DSNs of PostgreSQL and MySQL, and what is said about mistakes. Nothing is opened.

use std::path::Path;

use minutely::config::ConfigBuilder;
use serde_json::json;

use crate::support::applications::{self, build, transports};

/// The problems of a DSN with further options, as YAML.
pub fn problems(dsn: &str, options: &str) -> String {
    let problems = applications::problems(transports([("a", dsn)], options), Path::new("/"));
    problems.into_iter().map(|problem| problem.message + "\n").collect()
}

/// A DSN, with a connection `default` at this URL if there is one.
fn config(dsn: &str, url: &str) -> ConfigBuilder {
    let config = transports([("a", dsn)], "{}");
    if url.is_empty() { config } else { config.set("connections", json!({ "default": url })) }
}

fn check(dsn: &str, url: &str) -> Vec<String> {
    let problems = applications::problems(config(dsn, url), Path::new("/"));
    problems.into_iter().map(|problem| problem.message).collect()
}

fn store(dsn: &str, url: &str) -> String {
    let app = build(config(dsn, url), Path::new("/")).unwrap();
    let transport = app.transports().get("a").unwrap();
    transport.connecting.as_ref().unwrap().connection().to_owned()
}

#[test]
fn symfonys_urls_are_understood() {
    for (url, place) in [
        ("postgresql://app:p%40ss@127.0.0.1:5432/app?serverVersion=16&charset=utf8", "127.0.0.1:5432/app"),
        ("postgres://app:!ChangeMe!@database:5433/app?sslmode=prefer&whatever=1", "database:5433/app"),
        ("pdo-pgsql://app@[::1]/app", "[::1]:5432/app"),
        ("mysql://app:!ChangeMe!@127.0.0.1:3306/app?serverVersion=8.0.32&charset=utf8mb4", "127.0.0.1:3306/app"),
        ("pdo-mysql://app:a%2Fb@db/app?serverVersion=10.11.2-MariaDB&whatever=1", "db:3306/app"),
        ("mysql://app@localhost/app?unix_socket=/run/mysqld/mysqld.sock", "localhost:3306/app"),
    ] {
        assert_eq!(check("doctrine://default?queue_name=a", url), Vec::<String>::new(), "{url}");
        assert_eq!(store("doctrine://default?queue_name=a", url), place);
        let direct = url.replace("&whatever=1", "");
        let direct = format!("{direct}{}queue_name=a&table_name=x.y", if direct.contains('?') { '&' } else { '?' });
        assert_eq!(check(&direct, ""), Vec::<String>::new(), "{direct}");
    }
}

#[test]
fn mistakes_are_reported_without_secrets() {
    let login = "app:hunter2@h";
    for (dsn, expected) in [
        ("postgres://{login}/app?queue_nam=a", "unknown option \"queue_nam\", did you mean \"queue_name\"?"),
        ("postgres://{login}/app?sslmode=perhaps", "ssl_mode"),
        ("postgres://{login},other/app", "several hosts"),
        ("postgres://{login}/app?table_name=a.b.c", "table_name is a name"),
        ("postgres://{login}/app?check_delayed_interval=soon", "check_delayed_interval is a whole number"),
        ("postgres://{login}/app?use_notify=perhaps", "use_notify is true or false"),
        ("postgres://{login}/app?get_notify_timeout=500", "get_notify_timeout has no effect here"),
        ("mysql://{login}/", "names no database"),
        ("mysql://{login}/app?ssl-mode=perhaps", "ssl_mode"),
        ("mysql://{login}/app?use_notify=true", "unknown option \"use_notify\""),
        ("mariadb://{login}/app?table_name=a;b", "table_name is a name"),
    ] {
        let problems = check(&dsn.replace("{login}", login), "");
        assert_eq!(problems.len(), 1, "{dsn}: {problems:?}");
        assert!(problems[0].contains(expected) && !problems[0].contains("hunter2"), "{dsn}: {problems:?}");
    }
}
