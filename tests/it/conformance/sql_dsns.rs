//! What may be written in the DSNs of PostgreSQL and MySQL, and what is said about mistakes. Nothing is opened.

use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;
use minutely::config::{Secret, TransportConfig};
use minutely::transport::{FactoryContext, Liveness, Transports, built_in_factories};

struct Nobody;

#[async_trait]
impl Liveness for Nobody {
    async fn is_running(&self, _transports: &[&str]) -> bool {
        false
    }
}

fn config(dsn: &str) -> IndexMap<String, TransportConfig> {
    config_with(dsn, "{}")
}

fn config_with(dsn: &str, options: &str) -> IndexMap<String, TransportConfig> {
    let config = TransportConfig {
        name: "a".to_owned(),
        path: "transports.a".to_owned(),
        dsn: Secret(dsn.to_owned()),
        options: serde_yaml::from_str(options).unwrap(),
        retry: None,
        failure_transport: None,
    };
    IndexMap::from([("a".to_owned(), config)])
}

fn context(url: &str) -> FactoryContext {
    let connections = IndexMap::from([("default".to_owned(), Secret(url.to_owned()))]);
    FactoryContext { project_dir: "/".into(), state_dir: "/".into(), connections, liveness: Arc::new(Nobody) }
}

/// The problems of a DSN with further options, as YAML.
pub fn problems(dsn: &str, options: &str) -> String {
    let problems = Transports::build(&config_with(dsn, options), &built_in_factories(), &context("sqlite:a.db")).1;
    problems.into_iter().map(|problem| problem.message + "\n").collect()
}

/// The problems of a DSN, with a connection `default` at this URL.
fn check(dsn: &str, url: &str) -> Vec<String> {
    let problems = Transports::build(&config(dsn), &built_in_factories(), &context(url)).1;
    problems.into_iter().map(|problem| problem.message).collect()
}

fn store(dsn: &str, url: &str) -> String {
    let transports = Transports::new(&config(dsn), &built_in_factories(), &context(url)).unwrap();
    transports.get("a").unwrap().connecting.as_ref().unwrap().connection().to_owned()
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
