//! The definitions of workers, and how many they may be.

use super::*;

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
