//! Configurations as Symfony and Contao nest them.

use super::*;

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
fn contaos_default_configuration_loads_unchanged() {
    let environment = Environment::from([("DATABASE_URL", "sqlite:///%kernel.project_dir%/var/data.db")]);
    let (config, problems) = read_in(include_str!("../../../tests/fixtures/contao.yaml"), environment).unwrap();
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
