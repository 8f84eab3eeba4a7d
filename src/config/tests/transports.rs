//! Transports, their retries, and which messages go to them.

use super::*;

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
