//! Handlers in the configuration.

use super::*;

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
            r"handlers: {'Symfony\Component\Process\Messenger\RunProcessMessage': {builtin: true, batch: {}}}",
            r"handlers.Symfony\Component\Process\Messenger\RunProcessMessage.batch: belongs to `exec`, `stream` or `http`; `builtin` gets",
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
