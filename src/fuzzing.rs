//! What the targets of `fuzz/` run. Each takes any bytes, and panics where a promise about them is broken.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;

use crate::config::{Dsn, Secret, TransportConfig, read_text};
use crate::message::{
    BusNameStamp, DelayStamp, Encoded, Envelope, ErrorDetailsStamp, HandledStamp, Headers, PhpClasses, PhpProperty,
    RedeliveryStamp, SentToFailureTransportStamp, Stamp, TransportNamesStamp, headers_from_json, headers_to_json,
};
use crate::serializer::Serializers;
use crate::transport::{FactoryContext, Liveness, Transports, built_in_factories};

/// A class of the `php` section, with a property of each type.
const CLASS: &str = r"App\Every";
const PROPERTIES: [(&str, &str); 10] = [
    ("text", "public ?string"),
    ("int", "protected ?int"),
    ("float", "private ?float"),
    ("flag", "public ?bool"),
    ("any", "mixed"),
    ("list", "?array"),
    ("date", r"?DateTimeImmutable"),
    ("uid", r"?Symfony\Component\Uid\Ulid"),
    ("case", r"enum ?App\Suit"),
    ("inner", r"?App\Every"),
];

/// A shorter password could stand elsewhere in a DSN by chance.
const SHORTEST_PASSWORD: usize = 8;

/// A message in a store: its headers as JSON in the first line, and its body.
pub fn wire(input: &[u8]) {
    let (headers, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&b"{}"[..], input),
    };
    let Ok(headers) = headers_from_json(&String::from_utf8_lossy(headers)) else { return };
    assert_eq!(headers_from_json(&headers_to_json(&headers)).as_ref(), Ok(&headers));
    stored(&Encoded { body: body.to_vec().into(), headers });
    written_as_php(body);
}

/// What PHP's `serialize()` has written: as it is, and as Symfony stores it.
pub fn php(input: &[u8]) {
    for body in [input.to_vec(), with_slashes(input)] {
        let encoded = Encoded { body: body.into(), headers: Headers::new() };
        if let Ok(envelope) = Envelope::decode(&encoded) {
            assert!(serde_json::from_slice::<serde_json::Value>(envelope.body()).is_ok(), "not JSON");
            if Envelope::is_of_php(&encoded) {
                assert_eq!(envelope.encode(), encoded, "the same bytes");
            }
        }
        stored(&encoded);
    }
}

/// A DSN: parsed, shown, and made a transport of.
pub fn dsn(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(dsn) = Dsn::parse(text) {
        let shown = format!("{dsn} {dsn:?}").to_lowercase();
        if let Some(password) = dsn.password().filter(|password| is_unmistakable(text, password)) {
            assert!(!shown.contains(&password.to_lowercase()), "{shown}");
        }
    }
    let config = TransportConfig {
        name: "async".into(),
        path: "transports.async".into(),
        dsn: Secret(text.to_owned()),
        options: serde_yaml::Mapping::new(),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    };
    build(&IndexMap::from([("async".to_owned(), config)]), IndexMap::new());
}

/// A configuration, with the transports that it makes.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match read_text(text, Path::new("/nowhere/config.yaml")) {
        Ok((config, problems)) => {
            let _ = (problems.to_string(), format!("{config:?}"));
            build(&config.transports, config.connections.clone());
        }
        Err(problems) => assert!(problems.any_error(), "it is refused without a reason"),
    }
}

/// A message that is kept, whatever it is, and handled if it can be read.
fn stored(received: &Encoded) {
    let note = Envelope::from_json("", "").with(&details()).with(&DelayStamp { delay: 17 });
    // What cannot be read is kept with stamps about it.
    let kept = note.stamp(received);
    assert_eq!(Envelope::decode(received).is_ok(), Envelope::decode(&kept).is_ok(), "a note changes what can be read");
    read_stamps(&Envelope::stamps_of(received));

    let Ok(envelope) = Envelope::decode(received) else { return };
    read_stamps(&envelope);
    let again = Envelope::decode(&envelope.encode()).expect("what was read is written so that it can be read");
    is_same_message(&again, &envelope);
    let changed = envelope.clone().without::<DelayStamp>().with(&DelayStamp { delay: 23 }).with(&details());
    let changed = Envelope::decode(&changed.encode()).expect("a message can be read after its stamps have changed");
    is_same_message(&changed, &envelope);
    assert_eq!(changed.all::<DelayStamp>(), [DelayStamp { delay: 23 }]);
    assert_eq!(changed.last::<ErrorDetailsStamp>(), Some(details()));
}

fn details() -> ErrorDetailsStamp {
    let details = serde_json::json!({"exceptionClass": "E", "exceptionCode": 7, "exceptionMessage": "it failed"});
    serde_json::from_value(details).expect("these are its properties")
}

fn is_same_message(message: &Envelope, expected: &Envelope) {
    assert_eq!((message.message_type(), message.body()), (expected.message_type(), expected.body()));
}

fn read_stamps(envelope: &Envelope) {
    fn read<S: Stamp>(envelope: &Envelope) {
        let all = envelope.all::<S>();
        assert_eq!(all.is_empty(), envelope.last::<S>().is_none());
    }
    read::<BusNameStamp>(envelope);
    read::<DelayStamp>(envelope);
    read::<ErrorDetailsStamp>(envelope);
    read::<HandledStamp>(envelope);
    read::<RedeliveryStamp>(envelope);
    read::<SentToFailureTransportStamp>(envelope);
    read::<TransportNamesStamp>(envelope);
}

/// A new message that is to be written as PHP's `serialize()` would: it fits its class and can be read, or is refused.
fn written_as_php(json: &[u8]) {
    let property = |(name, declaration)| PhpProperty::parse(name, declaration).expect("it is what PHP declares");
    let classes = PhpClasses(IndexMap::from([(CLASS.to_owned(), PROPERTIES.map(property).into())]));
    let envelope = Envelope::from_json(CLASS, json.to_vec()).with(&DelayStamp { delay: 17 });
    let Ok(written) = envelope.encode_php(&classes) else { return };
    let read = Envelope::decode(&written).expect("what is written here can be read");
    assert_eq!((read.message_type(), read.all::<DelayStamp>()), (CLASS, vec![DelayStamp { delay: 17 }]));
}

/// PHP's `addslashes()`.
fn with_slashes(text: &[u8]) -> Vec<u8> {
    let mut slashed = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            0 => slashed.extend_from_slice(b"\\0"),
            b'\'' | b'"' | b'\\' => slashed.extend_from_slice(&[b'\\', *byte]),
            byte => slashed.push(*byte),
        }
    }
    slashed
}

/// Whether a password that is shown would be seen: it is long and plain, and stands at one place.
fn is_unmistakable(dsn: &str, password: &str) -> bool {
    let dsn = percent_encoding::percent_decode_str(dsn).decode_utf8_lossy().to_lowercase();
    password.len() >= SHORTEST_PASSWORD
        && password.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && dsn.matches(&password.to_lowercase()).count() == 1
}

fn build(transports: &IndexMap<String, TransportConfig>, connections: IndexMap<String, Secret>) {
    struct Nobody;
    #[async_trait]
    impl Liveness for Nobody {
        async fn is_running(&self, _: &[&str]) -> bool {
            false
        }
    }
    let context = FactoryContext {
        project_dir: "/nowhere".into(),
        state_dir: "/nowhere/var".into(),
        connections,
        liveness: Arc::new(Nobody),
    };
    let (built, problems) = Transports::build(transports, &built_in_factories(), &context, Serializers::default());
    let missing = transports.keys().any(|name| built.get(name).is_err());
    assert!(!missing || problems.iter().any(|problem| !problem.warning), "a transport is left out without a reason");
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Runs a target on its corpus, which is what the fuzzer starts from.
    fn run(folder: &str, target: fn(&[u8])) {
        let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
        let mut inputs = 0;
        for input in fs::read_dir(&folder).unwrap() {
            let file = input.unwrap().path();
            println!("{}", file.display());
            target(&fs::read(file).unwrap());
            inputs += 1;
        }
        assert!(inputs >= 10, "{folder} has {inputs}");
    }

    #[test]
    fn messages_of_the_corpus_keep_every_promise() {
        run("fuzz/corpus/wire", super::wire);
    }

    #[test]
    fn serialized_bodies_of_the_corpus_keep_every_promise() {
        run("fuzz/corpus/php", super::php);
    }

    #[test]
    fn dsns_of_the_corpus_keep_every_promise() {
        run("fuzz/corpus/dsn", super::dsn);
    }

    #[test]
    fn configurations_of_the_corpus_keep_every_promise() {
        run("fuzz/corpus/config", super::config);
        run("tests/fixtures/symfony", super::config);
    }
}
