//! The rules of the configuration, each by example.

mod handlers;
mod nesting;
mod transports;
mod workers;

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::env::Environment;
use super::read::parse;
use super::{Autoscale, Config, ExecConfig, HandlerAction, HandlerConfig, Problems, RetryStrategy, Scope, Secret};

fn read_in(text: &str, environment: Environment) -> Result<(Config, Problems), Problems> {
    parse(text, Path::new("/app/config.yaml"), &environment, Problems::new("config.yaml"))
}

/// A configuration without a mistake.
#[track_caller]
fn good(text: &str) -> Config {
    let (config, problems) = read_in(text, environment()).expect("this is YAML");
    assert_eq!(problems.to_string(), "", "{text}");
    config
}

/// All problems, one a line, without the file's name in front.
fn problems(text: &str) -> String {
    let problems = match read_in(text, environment()) {
        Ok((_, problems)) | Err(problems) => problems,
    };
    problems.to_string().replace("config.yaml: ", "")
}

fn environment() -> Environment {
    Environment::from([("MAX", "7"), ("QUEUE", "async"), ("SECRET", "hunter2"), ("DSN", "sqlite:a.db")])
}

/// Puts transports before a piece of configuration.
fn with_transports(rest: &str) -> String {
    format!(
        "transports:\n  async: sqlite:a.db\n  failed: sqlite:a.db?queue_name=failed\n  sync: sync://\n  memory: \
         in-memory://\n  high: auto-fallback://high?target=async&fallback=sync\n  \
         nowhere: auto-fallback://nowhere?target=sync&fallback=sync\n{rest}\n"
    )
}

#[track_caller]
fn each_is_told(examples: &[(&str, &str)]) {
    for (text, expected) in examples {
        let found = problems(&with_transports(text));
        assert!(found.starts_with(expected), "{text}\nfound:    {found}\nexpected: {expected}");
        assert_eq!(found.lines().count(), 1, "one mistake, one problem: {text}\n{found}");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = good("transports: {async: 'sqlite:a.db'}\nworkers: [{transports: async}]");
    assert_eq!(config.file, Path::new("/app/config.yaml"));
    assert_eq!(config.dir, Path::new("/app"));
    assert_eq!(config.state_dir, Path::new("/app/var"));
    assert_eq!(config.heartbeat_ttl, Duration::from_secs(60));
    assert_eq!(config.failure_transport, None);
    assert_eq!(config.transports["async"].retry, None);
    assert_eq!(config.transports["async"].path, "transports.async");
    let worker = &config.workers[0];
    assert_eq!(worker.name, "async");
    assert_eq!(worker.path, "workers[0]");
    assert_eq!(worker.options, ["--time-limit=60"]);
    assert_eq!(worker.autoscale, Autoscale { desired_size: 1, min: 1, max: 1, scope: Scope::Host });
    assert_eq!(worker.command, None);
}

#[test]
fn the_other_keys_are_checked_too() {
    let config = good("state_dir: /tmp/x\nheartbeat: {ttl: 2m}\nconnections: {a: 'sqlite:a.db'}");
    assert_eq!(config.state_dir, Path::new("/tmp/x"));
    assert_eq!(config.heartbeat_ttl, Duration::from_secs(120));
    assert_eq!(good("state_dir: '%kernel.project_dir%/../s'").state_dir, Path::new("/app/../s"));
    each_is_told(&[
        ("state_dir: ''", "state_dir: must be the path of a folder, and is empty"),
        ("state_dir: [a]", "state_dir: must be the path of a folder, not a list"),
        ("heartbeat: 60", "heartbeat: must be a mapping such as {ttl: 60s}, not 60"),
        ("heartbeat: {ttl: 0}", "heartbeat.ttl: must be at least 100ms"),
        ("heartbeat: {ttl: soon}", "heartbeat.ttl: \"soon\" is no duration here: a duration is a number of seconds"),
        ("heartbeat: {tll: 5}", "heartbeat: unknown key \"tll\", did you mean \"ttl\"? known: ttl"),
        ("connections: {a: [b]}", "connections.a: must be a database URL, not a list"),
        ("worker: []", "unknown key \"worker\", did you mean \"workers\"? known: transports, rate_limiter"),
        ("services: {}", "unknown key \"services\"; known: transports, rate_limiter"),
        ("when@: {}", "when@: names no environment: when@prod, for example"),
    ]);
}

#[test]
fn the_section_of_the_environment_is_merged_and_its_mistakes_are_placed_there() {
    let text = "transports: {a: {dsn: 'sqlite:a.db', retry_strategy: {max_retries: 5}}, b: 'sqlite:b.db'}\n\
        when@test: {transports: {a: 'in-memory://', b: {failure_transport: a}}, state_dir: t}\n\
        when@prod: {state_dir: p}";
    let (config, problems) = read_in(text, Environment::from([("APP_ENV", "test")])).unwrap();
    assert_eq!(problems.to_string(), "");
    assert_eq!(config.transports["a"].dsn.0, "in-memory://");
    assert_eq!(config.transports["a"].retry.as_ref().unwrap().max_retries, 5);
    assert_eq!(config.transports["b"].failure_transport.as_deref(), Some("a"));
    assert_eq!(config.state_dir, Path::new("/app/t"));
    // Without APP_ENV it is prod.
    assert_eq!(good(text).state_dir, Path::new("/app/p"));
    each_is_told(&[
        ("when@prod: {heartbeat: {ttl: 0}}", "when@prod.heartbeat.ttl: must be at least 100ms"),
        ("heartbeat: {ttl: 5}\nwhen@prod: {heartbeat: {ttl: 0}}", "when@prod.heartbeat.ttl: must be at least 100ms"),
        ("heartbeat: {ttl: 0}\nwhen@prod: {state_dir: x}", "heartbeat.ttl: must be at least 100ms"),
        ("when@prod: {worker: []}", "when@prod: unknown key \"worker\", did you mean"),
        ("heartbeat: {ttl: 5}\nwhen@prod: {heartbeat: {tll: 5}}", "when@prod.heartbeat: unknown key \"tll\""),
        ("when@prod: {transports: {async: ''}}", "when@prod.transports.async: must be a DSN"),
        (
            "when@prod: {framework: {messenger: {transports: {c: {dns: 'x:', dsn: 'x:'}}}}}",
            "when@prod.framework.messenger.transports.c: unknown key \"dns\"",
        ),
    ]);
}

#[test]
fn passwords_are_in_no_problem() {
    let text = "transports: {a: {dsn: ['mysql://u:hunter2@h/d']}, b: '%env(int:SECRET)%', 'mysql://u:hunter2@h': 'x:'}\n\
        failure_transport: mysql://u:hunter2@h/d\nheartbeat: {ttl: 'redis://hunter2@h'}\nstate_dir: ['hunter2@x']\n\
        workers: [{transports: ['%env(SECRET)%'], command: 'x \"hunter2', name: 'u:hunter2@h'}]\n\
        handlers: {A: {exec: 'mysql -u x -phunter2@x'}, B: {exec: ['%env(nope:default:mysql://hunter2@h:X)%']}}\n\
        routing: {A: {senders: {'mysql://u:hunter2@h': 1}}}";
    let found = problems(text);
    assert!(found.lines().count() >= 9, "{found}");
    assert!(!found.contains("hunter2"), "{found}");
}

#[test]
fn empty_lists_and_mappings_are_one_as_in_php() {
    let config =
        good("transports: {a: {dsn: 'x:', options: [], retry_strategy: []}}\nrouting: []\nhandlers: []\ncache: ~");
    assert!(config.transports["a"].options.is_empty() && config.routing.is_empty() && config.handlers.is_empty());
    assert_eq!(config.transports["a"].retry, Some(RetryStrategy::default()));
    good("transports: {a: {dsn: 'x:', options: {  }}}\nworkers: {  }\ncache: {dsn: 'sqlite:c.db', options: []}");
    good(
        "transports: {a: 'x:'}\nworkers: [{transports: a, options: {  }}]\nconnections: []\nheartbeat: []\ninterfaces: []",
    );
}

#[test]
fn nothing_is_the_default_wherever_there_is_one() {
    let config = good(
        "
        transports:
            a:
                dsn: 'x:'
                options: ~
                serializer: ~
                rate_limiter: ~
                failure_transport: ~
                retry_strategy: {service: ~, max_retries: ~, delay: ~, multiplier: ~, max_delay: ~, jitter: ~}
            b: {dsn: 'x:', retry_strategy: ~}
        workers:
            - {transports: a, options: ~, name: ~, command: ~, autoscale: ~}
            - {transports: a, autoscale: {enabled: ~, desired_size: 5, min: ~, max: ~, scope: ~}}
        handlers: {A: {exec: [a], timeout: ~}}
        routing: ~
        interfaces: ~
        failure_transport: ~
        state_dir: ~
        cache: {dsn: 'x:', options: ~}
        heartbeat: {ttl: ~}
        connections: {default: ~}
        ",
    );
    assert_eq!(config.transports["a"].retry, Some(RetryStrategy::default()));
    assert_eq!(config.workers[1].autoscale, Autoscale { desired_size: 5, min: 1, max: 10, scope: Scope::Host });
    assert!(config.connections.is_empty());
}

#[test]
fn what_is_no_configuration_at_all_says_so() {
    for (text, expected) in [
        ("", "the file is empty; `init` writes a first one"),
        ("# nothing\n", "the file is empty"),
        ("- a", "must be a mapping with keys such as transports, rate_limiter, routing"),
        ("hello", "must be a mapping"),
        ("a: [", "is not valid YAML: "),
    ] {
        let problems = read_in(text, environment()).expect_err("nothing to look at").to_string();
        assert!(problems.starts_with(&format!("config.yaml: {expected}")), "{text}: {problems}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    insta::assert_snapshot!(problems(
        r"
        transport: {}
        transports:
            async: '%env(QUEUE_DSN)%'
            failed: sqlite:var/messages.db?queue_name=failed
            sync: sync://
            high:
                dsn: sqlite:var/messages.db
                retry_strategy: {delay: soon, jitter: 2}
                failure_transport: faild
        failure_transport: sync
        routing:
            App\Message\Note: asyn
            App*: async
        workers:
            - {transports: [high, hihg], autoscale: {desired_size: 0, max: 2, min: 3}}
            - {transports: async, name: one, option: [--sleep=5]}
            - {transports: sync, name: one}
        handlers:
            App\Message\Note: {exec: php bin/note.php, timeout: never}
        heartbeat: {ttl: 0}
        "
    ), @r#"
    unknown key "transport", did you mean "transports"? known: transports, rate_limiter, routing, interfaces, buses, default_bus, validation, failure_transport, serializer, signing, php, mailer, workers, stop_worker_on_signals, handlers, hooks, cron, serve, state_dir, cache, heartbeat, connections, framework, contao
    transports.async: environment variable QUEUE_DSN is not set: set it, put it into .env or .env.local beside the configuration, or give a default with %env(default:…:QUEUE_DSN)%
    transports.high.retry_strategy.delay: "soon" is no duration here: a number of milliseconds, or a number with a unit: 500ms, 5s, 2m, 1h
    transports.high.retry_strategy.jitter: must be a number from 0 to 1, not 2
    transports.high.failure_transport: unknown transport "faild", did you mean "failed"? known: async, failed, sync, high
    routing.App\Message\Note: unknown transport "asyn", did you mean "async"? known: async, failed, sync, high
    routing.App*: a wildcard is `*` alone, or `\*` at the end of a namespace, such as `App\Message\*`
    failure_transport: "sync" ends at sync://, which keeps nothing: a failed message needs a transport with a store
    workers[0].transports[1]: unknown transport "hihg", did you mean "high"? known: async, failed, sync, high
    workers[0].autoscale.desired_size: must be a whole number from 1 to 1000000000, not 0
    workers[0].autoscale.min: must not be more than max: min is 3, max is 2
    workers[1]: unknown key "option", did you mean "options"? known: transports, options, name, command, autoscale
    workers[2].transports: "sync" cannot be consumed: it ends at sync://, where messages are handled at once and nothing waits for a worker
    workers[2].name: "one" is the name of workers[1] already
    handlers.App\Message\Note.timeout: "never" is no duration here: a duration is a number of seconds, or a number with a unit: 500ms, 5s, 2m, 1h
    handlers.App\Message\Note.exec: must be a list, because no shell takes it apart: [php, bin/note.php]
    heartbeat.ttl: must be at least 100ms
    "#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,80}") {
        let _ = read_in(&text, environment());
    }

    #[test]
    fn no_value_anywhere_makes_reading_panic(
        place in 0..PLACES.len(),
        value in prop_oneof![
            "[-0-9.e]{0,24}", "%env\\([a-z:]{0,12}(SECRET|NOPE)\\)%", "\\PC{0,20}",
            Just("~".to_owned()), Just("[]".to_owned()), Just("{}".to_owned()), Just("[[~]]".to_owned()),
            Just("{a: {b: [c]}}".to_owned()), Just("!t x".to_owned()), Just("auto-fallback://a?target=a".to_owned()),
            "[a-z]{1,8}"
        ],
        quoted in any::<bool>(),
    ) {
        let value = if quoted { format!("'{}'", value.replace('\'', "''")) } else { value };
        let text = PLACES[place].replace('@', &value);
        if let Ok((config, problems)) = read_in(&text, environment()) {
            prop_assert!(!problems.to_string().contains("hunter2"));
            for worker in &config.workers {
                let autoscale = worker.autoscale;
                prop_assert!(autoscale.desired_size >= 1 && autoscale.max >= 1 && autoscale.min <= autoscale.max);
                prop_assert!(!worker.name.is_empty() && worker.name.len() <= 100 && !worker.name.contains('/'));
            }
        }
    }
}

/// Configurations with an `@` where any value may stand.
const PLACES: &[&str] = &[
    "@",
    "@: {}",
    "transports: @",
    "transports: {a: @}",
    "transports: {@: 'x:'}\nworkers: [{transports: [@]}]",
    "transports: {a: {dsn: @, options: @, serializer: @, failure_transport: @}}",
    "transports: {a: {dsn: 'x:', serializer: {name: @, type: @, type_field: @, types: @, body_field: @, encrypt: @}}}",
    "transports: {a: {dsn: 'x:', serializer: {type_field: a, types: {@: @}, encrypt: {keys: [@], accept_plain: @}}}}",
    "serializer: @",
    "mailer: @",
    "mailer: {dsn: @, from: @, timeout: @, files: @, max_attachments: @}",
    "php: @",
    "php: {classes: {A: @}}",
    "php: {classes: {@: {@: @}}}",
    "signing: @",
    "signing: {key: @, types: [@], cover_headers: @}",
    "transports: {a: {dsn: 'x:', retry_strategy: @}}",
    "transports: {a: {dsn: 'x:', retry_strategy: {max_retries: @, delay: @, multiplier: @, max_delay: @, jitter: @}}}",
    "transports: {a: 'x:'}\nrouting: {a: @}",
    "transports: {a: 'x:'}\nrouting: {@: a}",
    "transports: {a: 'x:'}\nworkers: @",
    "transports: {a: 'x:'}\nworkers: [{transports: @, options: @, name: @, command: @, autoscale: @}]",
    "transports: {a: 'x:'}\nworkers: [{transports: a, autoscale: {desired_size: @, min: @, max: @, enabled: @}}]",
    "handlers: {a: @}",
    "handlers: {@: {exec: @, timeout: @}}",
    "handlers: {a: {exec: [@, @]}}",
    "heartbeat: @",
    "heartbeat: {ttl: @}",
    "state_dir: @\nconnections: {a: @}",
    "framework: @\ncontao: @\ndoctrine: @",
    "framework: {messenger: @}\ncontao: {messenger: @}",
    "transports: {a: 'doctrine://a'}\nframework: ~\ndoctrine: {dbal: @}",
    "transports: {a: 'doctrine://a'}\nframework: ~\ndoctrine: {dbal: {url: @, default_connection: @, connections: @}}",
];
