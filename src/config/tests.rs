//! The rules of the configuration, each by example.

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
fn a_transport_is_a_dsn_or_a_mapping() {
    let config = good(
        r"
        failure_transport: failed
        transports:
            failed: sqlite:f.db
            full:
                dsn: amqp://guest:p%40ss@localhost:5672/%2f/messages
                options: {auto_setup: false, queues: {a: {binding_keys: ['%env(QUEUE)%']}}}
                retry_strategy: {max_retries: 5, delay: 500, multiplier: 1.5, max_delay: 1m, jitter: 0}
                failure_transport: failed
                serializer: messenger.transport.symfony_serializer
        ",
    );
    let full = &config.transports["full"];
    assert_eq!(full.dsn.0, "amqp://guest:p%40ss@localhost:5672/%2f/messages");
    assert_eq!(full.options["auto_setup"], false);
    assert_eq!(full.options["queues"]["a"]["binding_keys"][0], "async");
    assert_eq!(
        full.retry,
        Some(RetryStrategy {
            max_retries: 5,
            delay: Duration::from_millis(500),
            multiplier: 1.5,
            max_delay: Duration::from_secs(60),
            jitter: 0.0,
            service: None
        })
    );
    assert_eq!(full.failure_transport.as_deref(), Some("failed"));
    assert_eq!(config.failure_transport.as_deref(), Some("failed"));
    assert!(!format!("{config:?}").contains("p%40ss"));
}

#[test]
fn no_options_may_be_written_as_php_writes_none() {
    for none in ["[]", "{}", "~"] {
        let config = good(&format!(
            "transports: {{a: {{dsn: 'sqlite:a.db', options: {none}}}}}\ncache: {{dsn: 'file:c', options: {none}}}"
        ));
        assert!(config.transports["a"].options.is_empty());
    }
}

#[test]
fn mistakes_in_transports_are_told() {
    each_is_told(&[
        ("failure_transport: faild", "failure_transport: unknown transport \"faild\", did you mean \"failed\"?"),
        ("failure_transport: sync", "failure_transport: \"sync\" ends at sync://, which keeps nothing"),
        ("failure_transport: [failed]", "failure_transport: must be the name of a transport, not a list"),
    ]);
    for (text, expected) in [
        ("a: ~", "transports.a: must be a DSN such as sqlite:var/messages.db, or a mapping with `dsn`, not nothing"),
        ("a: ''", "transports.a: must be a DSN such as sqlite:var/messages.db, or a mapping with `dsn`, and is empty"),
        ("a: [x]", "transports.a: must be a DSN"),
        ("a: {}", "transports.a: `dsn` is missing: where the messages wait, such as sqlite:var/messages.db"),
        ("a: {dns: 'x:', dsn: 'x:'}", "transports.a: unknown key \"dns\", did you mean \"dsn\"?"),
        ("a: {dsn: {}}", "transports.a.dsn: must be a DSN, not a mapping"),
        ("a: {dsn: 'x:', options: [1]}", "transports.a.options: must be a mapping of options, not a list"),
        ("a: {dsn: 'x:', options: {b: '%env(NOPE)%'}}", "transports.a.options.b: environment variable NOPE is not set"),
        ("a: {dsn: 'x:', failure_transport: b}", "transports.a.failure_transport: unknown transport \"b\""),
        (
            "a: {dsn: 'x:', serializer: messenger.default_serializer}",
            "transports.a.serializer: warning: \"messenger.default_serializer\" is ignored: new messages are JSON",
        ),
        (
            "a: {dsn: 'x:', serializer: {encrypt: {keys: hunter2}}}",
            "transports.a.serializer.encrypt.keys: must be 32 bytes in base64, as the command `key` prints one",
        ),
        (
            "a: {dsn: 'x:', serializer: {encrypt: {keys: []}}}",
            "transports.a.serializer.encrypt: needs at least one key",
        ),
        ("a: {dsn: 'x:', serializer: {encrypt: {}}}", "transports.a.serializer.encrypt: `keys` is missing"),
        (
            "a: {dsn: 'x:', serializer: {types: {a: A}}}",
            "transports.a.serializer.types: is of no use without `type_field`",
        ),
        (
            "a: {dsn: 'x:', serializer: {body_field: b}}",
            "transports.a.serializer.body_field: is of no use without `type` or `type_field`",
        ),
        ("a: {dsn: 'x:', serializer: {name: own, type: A}}", "transports.a.serializer.name: cannot be beside `type`"),
        ("a: {dsn: 'x:', rate_limiter: x}", "transports.a.rate_limiter: unknown rate limiter \"x\""),
        ("a: '%env(NOPE)%'", "transports.a: environment variable NOPE is not set: set it, put it into .env"),
        ("a: !php/const X", "transports.a: must be a plain value; YAML tags (!php/const) mean nothing here"),
        ("'-a': 'x:'", "transports.-a: a transport's name has 1 to 100 letters"),
        ("a b: 'x:'", "transports.\"a b\": a transport's name has"),
        ("[a]: 'x:'", "transports: a key must be text, not a list"),
    ] {
        let found = problems(&format!("transports:\n  {text}"));
        assert!(found.starts_with(expected), "{text}\nfound:    {found}\nexpected: {expected}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
    }
}

#[test]
fn a_retry_strategy_keeps_within_its_bounds() {
    for (text, expected) in [
        ("max_retries: -1", "max_retries: must be a whole number from 0 to 9223372036854775807, not -1"),
        ("max_retries: 1.5", "max_retries: must be a whole number"),
        ("delay: -1", "delay: -1 is no duration here: a number of milliseconds, or a number with a unit"),
        ("delay: soon", "delay: \"soon\" is no duration here: a number of milliseconds"),
        ("delay: 1e300", "delay: 1e300 is no duration here: a duration is at most 100 years"),
        ("delay: .nan", "delay: .nan is no duration"),
        ("max_delay: [1]", "max_delay: must be a duration"),
        ("multiplier: 0.5", "multiplier: must be a number from 1 to 1000, not 0.5"),
        ("multiplier: .inf", "multiplier: must be a number from 1 to 1000, not .inf"),
        ("jitter: 1.1", "jitter: must be a number from 0 to 1, not 1.1"),
        ("jitter: .nan", "jitter: must be a number from 0 to 1, not .nan"),
        ("service: [a]", "service: must be the name of a strategy, not a list"),
    ] {
        let found = problems(&format!("transports: {{a: {{dsn: 'x:', retry_strategy: {{{text}}}}}}}"));
        let expected = format!("transports.a.retry_strategy.{expected}");
        assert!(found.starts_with(&expected), "{text}\nfound:    {found}\nexpected: {expected}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
    }
    let found = problems("transports: {a: {dsn: 'x:', retry_strategy: {max_retry: 1}}}");
    assert!(found.starts_with("transports.a.retry_strategy: unknown key \"max_retry\", did you mean \"max_retries\"?"));
    let config = good("transports: {a: {dsn: 'x:', retry_strategy: {max_retries: 9223372036854775807}}}");
    assert_eq!(config.transports["a"].retry.as_ref().unwrap().max_retries, u32::MAX);
}

#[test]
fn routing_takes_a_name_a_list_or_senders() {
    let config = good(&with_transports(
        "routing:\n  App\\A: async\n  'App\\B': [async, high, async]\n  'App\\C\\*': {senders: [high]}\n  '*': sync",
    ));
    let routing: Vec<_> = config.routing.iter().map(|(pattern, names)| (pattern.as_str(), names.join(","))).collect();
    let expected = [("App\\A", "async"), ("App\\B", "async,high"), ("App\\C\\*", "high"), ("*", "sync")];
    assert_eq!(routing, expected.map(|(pattern, names)| (pattern, names.to_owned())));
    each_is_told(&[
        ("routing: {A: asinc}", "routing.A: unknown transport \"asinc\", did you mean \"async\"? known: async, failed"),
        ("routing: {A: [async, asinc]}", "routing.A[1]: unknown transport \"asinc\""),
        ("routing: {A: {senders: asinc}}", "routing.A.senders: unknown transport"),
        (
            "routing: {A: {sender: async, senders: async}}",
            "routing.A: unknown key \"sender\", did you mean \"senders\"?",
        ),
        ("routing: {A: {}}", "routing.A: `senders` is missing"),
        ("routing: {A: []}", "routing.A: must be the name of a transport, or a list of such names, and is empty"),
        ("routing: {A: ~}", "routing.A: must be the name of a transport, not nothing"),
        ("routing: {'App*': async}", "routing.App*: a wildcard is `*` alone, or `\\*` at the end"),
        ("routing: {'*\\A': async}", "routing.*\\A: a wildcard is"),
        ("routing: {'App\\*\\*': async}", "routing.App\\*\\*: a wildcard is"),
        ("routing: {'\\*': async}", "routing.\\*: must be a message's type"),
        ("routing: {'': async}", "routing.\"\": must be a message's type"),
        ("routing: {'\\App\\A': async}", "routing.\\App\\A: types are written without the \\ in front: App\\A"),
        ("routing: {'App\\\\A': async}", "routing.App\\\\A: has two \\ in a row"),
        ("routing: [async]", "routing: must be a mapping of types to transports, not a list"),
    ]);
}

#[test]
fn a_worker_definition_is_read_whole() {
    let config = good(&with_transports(
        "workers:
  - name: Mine-1.x
    transports: [high, failed]
    options: [--sleep=5, -t, 30, --limit, 10]
    autoscale: {desired_size: 5, min: 0, max: '%env(int:MAX)%'}
    command: php bin/console 'messenger:consume' {transports} {options}
  - transports: '%env(QUEUE)%'
    command: [./worker, 7]
    autoscale: {enabled: false, desired_size: 5}
  - transports: async
    autoscale: {desired_size: 5}
",
    ));
    let [first, second, third] = &config.workers[..] else { panic!("three definitions") };
    assert_eq!(first.name, "Mine-1.x");
    assert_eq!(first.transports, ["high", "failed"]);
    assert_eq!(first.options, ["--sleep=5", "-t", "30", "--limit", "10"]);
    assert_eq!(first.autoscale, Autoscale { desired_size: 5, min: 0, max: 7, scope: Scope::Host });
    let words = ["php", "bin/console", "messenger:consume", "{transports}", "{options}"];
    assert_eq!(first.command.as_deref(), Some(&words.map(String::from)[..]));
    assert_eq!(second.command.as_deref(), Some(&["./worker", "7"].map(String::from)[..]));
    assert_eq!(second.autoscale, Autoscale::default());
    assert_eq!(third.autoscale, Autoscale { desired_size: 5, min: 1, max: 10, scope: Scope::Host });
}

#[test]
fn a_time_limit_is_added_only_where_none_is_given() {
    for (options, added) in [
        ("[]", true),
        ("[--sleep=5]", true),
        ("[--time-limiter=5]", true),
        ("[--time-limit=0]", false),
        ("[--time-limit, 60]", false),
        ("[-t, 60]", false),
        ("[-t60]", false),
        ("[-t5m]", false),
        ("[--env=prod, --time-limit=soon, -n]", false),
    ] {
        let other = format!("workers: [{{transports: async, options: {options}, command: php x}}]");
        let config = good(&with_transports(&other));
        assert_eq!(config.workers[0].options.contains(&"--time-limit=60".to_owned()), added, "{options}");
    }
}

#[test]
fn what_a_workers_options_say_is_known() {
    let config = good(&with_transports(
        "workers: [{transports: async, options: [--sleep, 5, -t2m, --concurrency=3, -v]}, {transports: async}, {transports: async, \
         options: [--env=prod, --concurrency=2], command: app consume}]",
    ));
    let [ours, default, other] = &config.workers[..] else { panic!("three definitions") };
    let [ours, default, other] = [ours, default, other].map(|worker| &worker.consume_options);
    let seconds = Duration::from_secs;
    assert_eq!((ours.sleep, ours.time_limit, ours.concurrency), (seconds(5), Some(seconds(120)), 3));
    assert_eq!((default.sleep, default.time_limit, default.concurrency), (seconds(1), Some(seconds(60)), 1));
    assert_eq!((other.time_limit, other.concurrency), (Some(seconds(60)), 2));
}

#[test]
fn workers_can_be_turned_off() {
    for text in ["workers: []", "workers: ~", ""] {
        assert!(good(&with_transports(text)).workers.is_empty());
    }
}

#[test]
fn every_definition_gets_a_name_of_its_own() {
    let config = good(&with_transports(
        "workers: [{transports: async}, {transports: async}, {transports: [high, async]}, {transports: async}, {name: \
         async-2, transports: async}, {name: a+b, transports: async}]",
    ));
    let names: Vec<_> = config.workers.iter().map(|worker| worker.name.as_str()).collect();
    assert_eq!(names, ["async", "async-3", "high+async", "async-4", "async-2", "a+b"]);

    let long = "x".repeat(100);
    let config = good(&format!("transports: {{_ü: 'x:', {long}: 'x:'}}\nworkers: [{{transports: [_ü, {long}]}}]"));
    assert_eq!(config.workers[0].name, format!("worker__+{}", "x".repeat(81)));
}

#[test]
fn mistakes_in_workers_are_told() {
    each_is_told(&[
        ("workers: {transports: async}", "workers: must be a list of workers, or [] for none, not a mapping"),
        ("workers: [async]", "workers[0]: must be a mapping with `transports`, not \"async\""),
        ("workers: [{}]", "workers[0]: `transports` is missing"),
        ("workers: [{transports: []}]", "workers[0].transports: must name a transport to consume, and is empty"),
        (
            "workers: [{transports: [async, asnyc]}]",
            "workers[0].transports[1]: unknown transport \"asnyc\", did you mean",
        ),
        ("workers: [{transports: [async, async]}]", "workers[0].transports[1]: \"async\" is in this list already"),
        ("workers: [{transports: sync}]", "workers[0].transports: \"sync\" cannot be consumed: it ends at sync://"),
        (
            "workers: [{transports: [nowhere]}]",
            "workers[0].transports[0]: \"nowhere\" cannot be consumed: it ends at sync",
        ),
        (
            "workers: [{transports: memory}]",
            "workers[0].transports: \"memory\" cannot be consumed: it ends at in-memory",
        ),
        ("workers: [{transport: async, transports: async}]", "workers[0]: unknown key \"transport\", did you mean"),
        ("workers: [{transports: async, name: 'a/b'}]", "workers[0].name: must be a name of 1 to 100 letters"),
        ("workers: [{transports: async, name: ..}]", "workers[0].name: must be a name"),
        ("workers: [{transports: async, name: ''}]", "workers[0].name: must be a name"),
        (
            "workers: [{transports: async, name: x}, {transports: async, name: x}]",
            "workers[1].name: \"x\" is the name of workers[0] already",
        ),
        (
            "workers: [{transports: async, options: --sleep=5}]",
            "workers[0].options: must be a list of options, such as",
        ),
        (
            "workers: [{transports: async, options: ['--sleep 5']}]",
            "workers[0].options[0]: \"--sleep 5\" is two arguments",
        ),
        ("workers: [{transports: async, options: [{a: b}]}]", "workers[0].options[0]: must be an option"),
        (
            "workers: [{transports: async, options: [-v, --slep=5]}]",
            "workers[0].options[1]: unknown option \"--slep\", did you mean \"--sleep\"? known: --queues, --limit,",
        ),
        (
            "workers: [{transports: async, options: [--limit, none]}]",
            "workers[0].options[0]: invalid value 'none' for '--limit <N>'",
        ),
        ("workers: [{transports: async, options: [high]}]", "workers[0].options[0]: \"high\" is no option"),
        (
            "workers: [{transports: async, command: x, options: [-t, soon], autoscale: {desired_size: 1, scope: cluster}}]",
            "workers[0].options: needs a time limit that can be read",
        ),
        ("workers: [{transports: async, command: []}]", "workers[0].command: must name a program, and is empty"),
        ("workers: [{transports: async, command: 'php \"x'}]", "workers[0].command: has a quote that is not closed"),
        ("workers: [{transports: async, command: 'php {transport}'}]", "workers[0].command: warning: {transport} is"),
    ]);
}

#[test]
fn mistakes_in_autoscale_are_told() {
    for (text, expected) in [
        ("{}", ": `desired_size` is missing"),
        ("true", ": must be a mapping such as {desired_size: 5, min: 1, max: 10}, not true"),
        ("{desired_size: 0}", ".desired_size: must be a whole number from 1 to 1000000000, not 0"),
        ("{desired_size: 5.5}", ".desired_size: must be a whole number"),
        ("{desired_size: five}", ".desired_size: must be a whole number from 1 to 1000000000, not \"five\""),
        (
            "{desired_size: '%env(SECRET)%'}",
            ".desired_size: must be a whole number from 1 to 1000000000, not \"%env(SEC",
        ),
        ("{desired_size: 5, max: 0}", ".max: must be a whole number from 1 to 10000, not 0"),
        ("{desired_size: 5, max: 99999999999999999999}", ".max: must be a whole number"),
        ("{desired_size: 5, min: -1}", ".min: must be a whole number from 0 to 10000, not -1"),
        ("{desired_size: 5, min: 4, max: 3}", ".min: must not be more than max: min is 4, max is 3"),
        ("{desired_size: 5, min: 11}", ".min: must not be more than max: min is 11, max is 10, the default"),
        ("{desired: 5, desired_size: 5}", ": unknown key \"desired\"; known: enabled, desired_size, min, max"),
        ("{desired_size: 5, enabled: 1}", ".enabled: must be true or false, not 1"),
    ] {
        let text = with_transports(&format!("workers: [{{transports: async, autoscale: {text}}}]"));
        let found = problems(&text);
        let expected = format!("workers[0].autoscale{expected}");
        assert!(found.starts_with(&expected), "{text}\nfound:    {found}\nexpected: {expected}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
        assert!(!found.contains("hunter2"));
    }
}

#[test]
fn handlers_are_one_or_several_programs() {
    let config = good(
        "handlers:\n  App\\A: {exec: [sh, -c, 'exit 0', 5, 1.5, true], timeout: 500ms}\n  '*':\n    - exec: [a]\n    - \
         {exec: [b], timeout: 2m}",
    );
    let of = |pattern: &str| {
        let handlers = config.handlers[pattern].iter();
        let handlers = handlers.map(|HandlerConfig { action, .. }| match action {
            HandlerAction::Exec(ExecConfig { exec, timeout }) => (exec.join(" "), *timeout),
            other => panic!("{other:?}"),
        });
        handlers.collect::<Vec<_>>()
    };
    assert_eq!(of("App\\A"), [("sh -c exit 0 5 1.5 true".to_owned(), Some(Duration::from_millis(500)))]);
    assert_eq!(of("*"), [("a".to_owned(), None), ("b".to_owned(), Some(Duration::from_secs(120)))]);
}

#[test]
fn handlers_may_be_for_some_transports_and_have_a_priority() {
    let config = good(&with_transports(
        "handlers: {A: [{exec: [a], from_transport: async}, {exec: [b], from_transport: [async, async], priority: -5}, {exec: [c]}]}",
    ));
    let of = |n: usize| (config.handlers["A"][n].from_transports.join(" "), config.handlers["A"][n].priority);
    assert_eq!([of(0), of(1), of(2)], [("async".into(), 0), ("async async".into(), -5), (String::new(), 0)]);
    for (text, expected) in [
        ("from_transport: asinc", ".from_transport: unknown transport \"asinc\", did you mean \"async\"?"),
        ("from_transport: []", ".from_transport: is empty, so that it would handle nothing"),
        ("from_transport: {a: b}", ".from_transport: must be the name of a transport"),
        ("priority: 1.5", ".priority: must be a whole number"),
        ("priority: high", ".priority: must be a number from -1000000 to 1000000, not \"high\""),
    ] {
        let found = problems(&with_transports(&format!("handlers: {{A: {{exec: [a], {text}}}}}")));
        assert!(found.starts_with(&format!("handlers.A{expected}")), "{text}: {found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn mistakes_in_handlers_are_told() {
    each_is_told(&[
        ("handlers: {A: php x}", "handlers.A: must be a handler such as `exec: [php, bin/handle.php]`, or a list"),
        (
            "handlers: {A: []}",
            "handlers.A: must be a handler such as `exec: [php, bin/handle.php]`, or a list of handlers,",
        ),
        ("handlers: {A: {}}", "handlers.A: what handles the message is missing: `exec`, `stream`,"),
        ("handlers: {A: [{exec: [a]}, {}]}", "handlers.A[1]: what handles the message is missing"),
        (
            "handlers: {A: {exec: php x 'y z'}}",
            "handlers.A.exec: must be a list, because no shell takes it apart: [php,",
        ),
        ("handlers: {A: {exec: []}}", "handlers.A.exec: must name a program, and is empty"),
        ("handlers: {A: {exec: ['']}}", "handlers.A.exec[0]: must name a program, and is empty"),
        ("handlers: {A: {exec: [a, [b]]}}", "handlers.A.exec[1]: must be text, not a list"),
        ("handlers: {A: {exec: [a, \"b\\0\"]}}", "handlers.A.exec[1]: must not contain a NUL character"),
        ("handlers: {A: {exec: [date, '+%H%M']}}", "handlers.A.exec[1]: unknown parameter %H%;"),
        ("handlers: {A: {exec: [a], timeout: 0}}", "handlers.A.timeout: must be more than 0"),
        ("handlers: {A: {exec: [a], timeout: 5 min}}", "handlers.A.timeout: \"5 min\" is no duration here"),
        ("handlers: {A: {exec: [a], timout: 5}}", "handlers.A: unknown key \"timout\", did you mean \"timeout\"?"),
        ("handlers: {'A*': {exec: [a]}}", "handlers.A*: a wildcard is"),
        (
            "handlers: {A: {exec: [a], stream: [b]}}",
            "handlers.A.stream: stands beside `exec`; a handler has one of them",
        ),
        ("handlers: {A: {exec: [a], max_messages: 5}}", "handlers.A.max_messages: belongs to `stream`;"),
        ("handlers: {A: {stream: [a], max_memory: much}}", "handlers.A.max_memory: a size is a number of bytes, or"),
        ("handlers: {A: {stream: [a], max_messages: 0}}", "handlers.A.max_messages: must be a whole number"),
        ("handlers: {A: {http: 'ftp://u:hunter2@h'}}", "handlers.A.http: must be a URL that begins with https://"),
        ("handlers: {A: {http: {url: 'http://h', method: GET}}}", "handlers.A.http.method: must be one of POST, PUT"),
        (
            "handlers: {A: {http: 'http://h', batch: {}}}",
            "handlers.A.batch: belongs to `exec` or `stream`; `http` gets one",
        ),
        (
            "handlers: {A: {exec: [a], batch: {size: 0}}}",
            "handlers.A.batch.size: must be a whole number from 1 to 10000",
        ),
        ("handlers: {A: builtin}", "handlers.A: there is none for this type; there are for Symfony"),
        ("handlers: {A: {console: [a]}}", "handlers.A.console: runs the commands of Symfony"),
        ("handlers: {A: {exec: [bin/no]}}", "handlers.A.exec[0]: warning: /app/bin/no does not exist"),
        ("handlers: {A: {exec: [/dev]}}", "handlers.A.exec[0]: warning: /dev is not a file"),
        ("handlers: {A: {exec: [/etc/passwd]}}", "handlers.A.exec[0]: warning: /etc/passwd is not executable"),
    ]);
    assert_eq!(problems("handlers: {A: {exec: [/bin/sh]}}"), "");
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
        ("when@dev: {}", "unknown key \"when@dev\"; known: transports, rate_limiter"),
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
fn database_url_is_the_default_connection() {
    let url = || Environment::from([("DATABASE_URL", "sqlite:///%kernel.project_dir%/var/p%40ss.db")]);
    let (config, _) = read_in("transports: {a: 'doctrine://default'}", url()).unwrap();
    assert_eq!(config.connections["default"], Secret("sqlite:////app/var/p%40ss.db".to_owned()));
    let (config, _) = read_in("connections: {default: 'sqlite:b.db'}", url()).unwrap();
    assert_eq!(config.connections["default"], Secret("sqlite:b.db".to_owned()));
    let (config, _) = read_in("transports: {a: 'x:'}", Environment::from([("DATABASE_URL", "")])).unwrap();
    assert!(config.connections.is_empty());
}

#[test]
fn doctrines_own_connections_are_found() {
    let text = "
        framework: {messenger: {transports: {a: 'doctrine://default'}}}
        connections: {other: 'sqlite:o.db'}
        doctrine: {dbal: {default_connection: main, url: '%env(resolve:DSN)%', connections: {other: {url: 'x:'}, third: {url: 'sqlite:t.db'}, ~: 5}}}
        ";
    let config = good(text);
    let connections: Vec<_> = config.connections.iter().map(|(name, url)| (name.as_str(), url.0.as_str())).collect();
    assert_eq!(connections, [("other", "sqlite:o.db"), ("main", "sqlite:a.db"), ("third", "sqlite:t.db")]);
    // An application that has no transport there may have there what it likes.
    good("framework: {messenger: {transports: {a: 'x:'}}}\ndoctrine: {dbal: {url: '%env(nope:NOPE)%'}}");
}

#[test]
fn symfonys_and_contaos_nesting_is_read_among_unrelated_keys() {
    let config = good(
        "
        imports: [{resource: x}]
        parameters: {a: '%unknown%'}
        services: {_defaults: {autowire: true}, x: !tagged y}
        when@dev: {framework: {messenger: {}}}
        framework:
            secret: '%env(NOT_OURS)%'
            messenger:
                enabled: true
                serializer:
                    default_serializer: messenger.transport.symfony_serializer
                    symfony_serializer: {format: json, context: {}}
                buses: []
                stop_worker_on_signals: {}
                reset_on_message: true
                failure_transport: failed
                transports: {failed: 'sqlite:f.db'}
                routing: {App\\A: [own]}
        contao:
            locales: [de]
            messenger: {workers: [{transports: [own]}]}
        transports: {own: 'sqlite:o.db'}
        handlers: {App\\A: {exec: [a]}}
        state_dir: state
        ",
    );
    assert_eq!(config.transports.keys().collect::<Vec<_>>(), ["own", "failed"]);
    assert_eq!(config.transports["failed"].path, "framework.messenger.transports.failed");
    assert_eq!(config.workers[0].path, "contao.messenger.workers[0]");
    assert_eq!(config.failure_transport.as_deref(), Some("failed"));
    assert_eq!(config.state_dir, Path::new("/app/state"));
    for text in [
        "framework: ~",
        "framework: {messenger: ~}",
        "framework: {messenger: []}",
        "framework: {messenger: false}\ncontao: {messenger: ~}",
        "framework: {messenger: {enabled: false, transports: {a: 'x:'}}}",
    ] {
        assert!(good(text).transports.is_empty());
    }
}

#[test]
fn what_only_php_reads_is_told_by_name() {
    let found = problems(
        "
        framework:
            messenger:
                serializer:
                    default_serializer: messenger.transport.native_php_serializer
                    symfony_serializer: {format: xml}
        contao:
            messenger: {web_worker: {transports: [own]}}
        ",
    );
    let keys: Vec<&str> = found.lines().map(|line| line.split_once(" is ignored: ").expect(line).0).collect();
    assert_eq!(
        keys,
        [
            "framework.messenger.serializer.symfony_serializer.format: warning:",
            "contao.messenger.web_worker: warning:",
            "framework.messenger.serializer.default_serializer: warning: \"messenger.transport.native_php_serializer\"",
        ]
    );
}

#[test]
fn buses_stand_where_symfony_has_them_or_at_the_top() {
    let nested = good(
        "
        framework:
            messenger:
                default_bus: command.bus
                buses:
                    command.bus: ~
                    event.bus: {default_middleware: {allow_no_handlers: true}, middleware: [validation, App\\Mine]}
        buses: {query.bus: {middleware: {id: messenger.middleware.router_context}}}
        ",
    );
    let named: Vec<(&str, bool, Vec<&str>)> = nested
        .buses
        .all
        .iter()
        .map(|bus| (&*bus.name, bus.allow_no_handlers, bus.middleware.iter().map(|one| &*one.id).collect()))
        .collect();
    assert_eq!(
        named,
        [
            ("query.bus", false, vec!["router_context"]),
            ("command.bus", false, vec![]),
            ("event.bus", true, vec!["validation", r"App\Mine"]),
        ]
    );
    assert_eq!(nested.buses.default, "command.bus");
    assert_eq!(good("buses: {one: ~}").buses.default, "one");
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
fn priorities_are_routed_without_being_written() {
    let interface =
        |priority: &str| format!("Contao\\CoreBundle\\Messenger\\Message\\{priority}PriorityMessageInterface");
    let config = good("transports: {prio_high: 'x:', contao_prio_high: 'x:', prio_low: 'x:'}");
    let routing: Vec<_> = config.routing.iter().map(|(name, to)| (name.clone(), to.join(","))).collect();
    let expected = [(interface("High"), "contao_prio_high".to_owned()), (interface("Low"), "prio_low".to_owned())];
    assert_eq!(routing, expected);
    let written = format!("transports: {{prio_high: 'x:', other: 'x:'}}\nrouting: {{'{}': other}}", interface("High"));
    assert_eq!(good(&written).routing[&interface("High")], ["other"]);
}

#[test]
fn interfaces_are_one_or_several_names() {
    let config = good("interfaces: {'App\\A': 'App\\I', 'App\\B': ['App\\I', 'App\\J', 'App\\I']}");
    assert_eq!(config.interfaces["App\\A"], ["App\\I"]);
    assert_eq!(config.interfaces["App\\B"], ["App\\I", "App\\J"]);
    each_is_told(&[
        ("interfaces: {'App\\*': 'App\\I'}", "interfaces.App\\*: must be one type, and no wildcard"),
        ("interfaces: {A: ['App\\*']}", "interfaces.A[0]: must be one type, and no wildcard"),
        ("interfaces: {A: ['']}", "interfaces.A[0]: must be the name of an interface, and is empty"),
        ("interfaces: [A]", "interfaces: must be a mapping of types to interfaces, not a list"),
    ]);
}

#[test]
fn contaos_default_configuration_loads_unchanged() {
    let environment = Environment::from([("DATABASE_URL", "sqlite:///%kernel.project_dir%/var/data.db")]);
    let (config, problems) = read_in(include_str!("../../tests/fixtures/contao.yaml"), environment).unwrap();
    assert!(problems.list.is_empty(), "{problems}");
    assert_eq!(config.routing[crate::message::HIGH_PRIORITY], ["contao_prio_high"]);
    assert_eq!(config.transports.len(), 8);
    assert_eq!(
        config.transports["contao_prio_high"].dsn.0,
        "contao-auto-fallback://contao_prio_high?target=contao_prio_high_doctrine&fallback=sync"
    );
    assert_eq!(config.failure_transport.as_deref(), Some("contao_failure"));
    assert_eq!(config.connections["default"].0, "sqlite:////app/var/data.db");
    let workers: Vec<_> = config
        .workers
        .iter()
        .map(|worker| (worker.name.as_str(), worker.options.join(" "), worker.autoscale.desired_size))
        .collect();
    assert_eq!(
        workers,
        [
            ("contao_prio_high", "--time-limit=60 --sleep=5".to_owned(), 5),
            ("contao_prio_normal", "--time-limit=60 --sleep=10".to_owned(), 10),
            ("contao_prio_low", "--time-limit=60 --sleep=20".to_owned(), 20)
        ]
    );
    assert!(config.workers.iter().all(|worker| (worker.autoscale.min, worker.autoscale.max) == (1, 10)));
}

#[test]
fn mistakes_in_nested_files_are_told() {
    for (text, expected) in [
        ("framework: {mesenger: {}}", "framework: unknown key \"mesenger\", did you mean \"messenger\"?"),
        ("framework: {messenger: [1]}", "framework.messenger: must be a mapping, not a list"),
        (
            "framework: {messenger: {serializer: {default: x}}}",
            "framework.messenger.serializer: unknown key \"default\"; known: default_serializer, symfony_serializer",
        ),
        (
            "framework: {messenger: {transprts: {}}}",
            "framework.messenger: unknown key \"transprts\", did you mean \"transports\"? known: transports, routing, buses",
        ),
        ("contao: {messenger: {workrs: []}}", "contao.messenger: unknown key \"workrs\", did you mean \"workers\"?"),
        ("contao: {messenger: {}}\nhandler: {}", "unknown key \"handler\", did you mean \"handlers\"?"),
        ("framewrk: {messenger: {}}", "unknown key \"framewrk\", did you mean \"framework\"?"),
        (
            "framework: {messenger: {transports: {a: 'x:'}}}\ntransports: {a: 'y:'}",
            "framework.messenger.transports.a: is set a second time: see transports.a",
        ),
        (
            "contao: {messenger: {workers: []}}\nworkers: []",
            "contao.messenger.workers: is set a second time: see workers",
        ),
        (
            "framework: {messenger: {transports: {a: 'x:'}, failure_transport: a}}\nfailure_transport: a",
            "framework.messenger.failure_transport: is set a second time: see failure_transport",
        ),
    ] {
        let found = problems(text);
        assert!(found.starts_with(expected), "{text}\nfound:    {found}\nexpected: {expected}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
    }
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
    "mailer: {dsn: @, from: @, timeout: @, files: @}",
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
