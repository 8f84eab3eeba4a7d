//! The options of an application's own transport: lists, maps, texts with a pattern, and what must be given.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use minutely::config::{Config, Definition, Problem, Setting};
use minutely::transport::{Factory, FactoryContext, InMemory, Transport, TransportSpec};
use minutely::{App, Error};
use serde_json::json;

const TAGS: Setting<Vec<String>> = Setting::list("tags", "what messages are marked with");
const LABELS: Setting<BTreeMap<String, String>> = Setting::map("labels", "what the store shows");
const BUCKET: Setting<String> = Setting::text("bucket", "mail", "where messages are kept")
    .matching("[a-z]+|[0-9]+", "a name of small letters, or digits");
const OWNER: Setting<String> = Setting::text("owner", "", "who pays for it").required().example("ada");
const GUESTS: Setting<Vec<String>> = Setting::list("guests", "who else may read").required();

/// What the factory has read.
#[derive(Debug, Default, Clone, PartialEq)]
struct Read {
    tags: Vec<String>,
    labels: Vec<(String, String)>,
    bucket: String,
}

#[derive(Default)]
struct ShelfFactory {
    with_required: bool,
    read: Mutex<Read>,
}

impl Factory for ShelfFactory {
    fn schemes(&self) -> &'static [&'static str] {
        &["shelf"]
    }

    fn options(&self) -> Vec<Definition> {
        let mut options = vec![TAGS.definition, LABELS.definition, BUCKET.definition];
        if self.with_required {
            options.extend([OWNER.definition, GUESTS.definition]);
        }
        options
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        *self.read.lock().unwrap() = Read {
            tags: options.get(&TAGS),
            labels: options.get(&LABELS).into_iter().collect(),
            bucket: options.get(&BUCKET),
        };
        if self.with_required {
            let _ = (options.get(&OWNER), options.get(&GUESTS));
        }
        options.finish()?;
        Ok(InMemory::new(&spec.name).into())
    }
}

/// What is read from a DSN with these options beside it, or what is wrong with them.
fn read(factory: ShelfFactory, dsn: &str, options: &str) -> Result<Read, Vec<String>> {
    let options: serde_json::Value = serde_yaml::from_str(options).unwrap();
    let config = Config::builder().transport_with("a", json!({ "dsn": dsn, "options": options }));
    let factory = Arc::new(factory);
    match App::builder().transport(Arc::clone(&factory) as Arc<dyn Factory>).config(config).dir(Path::new("/")).build()
    {
        Ok(_) => Ok(factory.read.lock().unwrap().clone()),
        Err(Error::Configuration(problems)) => {
            Err(problems.list.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect())
        }
        Err(other) => panic!("{other}"),
    }
}

fn good(dsn: &str, options: &str) -> Read {
    read(ShelfFactory::default(), dsn, options).unwrap_or_else(|problems| panic!("{dsn} {options}: {problems:?}"))
}

#[test]
fn a_list_is_written_in_yaml_or_in_the_dsn() {
    for (dsn, options, expected) in [
        ("shelf:", "{}", &[][..]),
        ("shelf:", "{tags: ~}", &[]),
        ("shelf:", "{tags: []}", &[]),
        ("shelf:", "{tags: [b, a, 5, true]}", &["b", "a", "5", "true"]),
        ("shelf:", "{tags: a}", &["a"]),
        ("shelf:?tags=a", "{}", &["a"]),
        ("shelf:?tags[]=a&tags[]=b%26c", "{}", &["a", "b&c"]),
        ("shelf:?tags[0]=a&tags[1]=b", "{}", &["a", "b"]),
        ("shelf:?tags[]=a&tags[]=b", "{tags: [c]}", &["c"]),
    ] {
        assert_eq!(good(dsn, options).tags, expected, "{dsn} {options}");
    }
}

#[test]
fn a_map_is_written_in_yaml_or_in_the_dsn_or_in_both() {
    for (dsn, options, expected) in [
        ("shelf:", "{}", &[][..]),
        ("shelf:", "{labels: []}", &[]),
        ("shelf:", "{labels: {team: mail, floor: 5, door: ~}}", &[("floor", "5"), ("team", "mail")]),
        ("shelf:?labels[team]=mail", "{}", &[("team", "mail")]),
        ("shelf:?labels[team]=mail&labels[floor]=5", "{labels: {floor: 6}}", &[("floor", "6"), ("team", "mail")]),
    ] {
        let expected: Vec<_> = expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        assert_eq!(good(dsn, options).labels, expected, "{dsn} {options}");
    }
}

#[test]
fn a_text_matches_its_pattern_as_a_whole() {
    assert_eq!(good("shelf:", "{}").bucket, "mail");
    assert_eq!(good("shelf:?bucket=archive", "{}").bucket, "archive");
    assert_eq!(good("shelf:", "{bucket: 2026}").bucket, "2026");
}

#[test]
fn a_value_of_another_kind_is_reported_with_its_place() {
    for (dsn, options, expected) in [
        ("shelf:", "{tags: {a: b}}", "transports.a.options.tags: tags is text, or a list of text; found a list or map"),
        (
            "shelf:",
            "{tags: [a, [b]]}",
            "transports.a.options.tags: tags is text, or a list of text; found a list or map",
        ),
        ("shelf:?tags[a]=b", "{}", "transports.a.dsn: tags is text, or a list of text; found a list or map"),
        ("shelf:?labels=a", "{}", "transports.a.dsn: labels is a map of names to text; found \"a\""),
        (
            "shelf:",
            "{labels: [a]}",
            "transports.a.options.labels: labels is a map of names to text; found a list or map",
        ),
        (
            "shelf:",
            "{labels: {a: {b: c}}}",
            "transports.a.options.labels: labels is a map of names to text; found a list or map",
        ),
        ("shelf:?bucket=Mail", "{}", "transports.a.dsn: bucket is a name of small letters, or digits; found \"Mail\""),
        (
            "shelf:",
            "{bucket: 'mail5'}",
            "transports.a.options.bucket: bucket is a name of small letters, or digits; found \"mail5\"",
        ),
        (
            "shelf:",
            "{bucket: \"mail\\n\"}",
            "transports.a.options.bucket: bucket is a name of small letters, or digits; found \"mail\\n\"",
        ),
        (
            "shelf:",
            "{bucket: 'mysql://u:hunter2@h/d'}",
            "transports.a.options.bucket: bucket is a name of small letters, or digits; found \"mysql:…\"",
        ),
    ] {
        let problems = read(ShelfFactory::default(), dsn, options).unwrap_err();
        assert_eq!(problems, [expected], "{dsn} {options}");
    }
}

#[test]
fn a_required_option_that_is_missing_is_reported() {
    let with_required = || ShelfFactory { with_required: true, ..ShelfFactory::default() };
    let missing_owner = "transports.a.dsn: owner is missing: who pays for it, such as ada";
    let missing_guests = "transports.a.dsn: guests is missing: who else may read";
    assert_eq!(read(with_required(), "shelf:", "{}").unwrap_err(), [missing_owner, missing_guests]);
    assert_eq!(read(with_required(), "shelf:?owner=", "{guests: [b]}").unwrap_err(), [missing_owner]);
    assert!(read(with_required(), "shelf:?owner=ada", "{guests: [b]}").is_ok());
    let wrong = read(with_required(), "shelf:?guests=b", "{owner: [a]}").unwrap_err();
    assert_eq!(wrong, ["transports.a.options.owner: owner is text; found a list or map"]);
}
