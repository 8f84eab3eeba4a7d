//! What PHP's own `serialize()` and `unserialize()` say, against the decoder: values at random, and changes of stamps.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use minutely::message::{BusNameStamp, DelayStamp, Encoded, Envelope, ErrorDetailsStamp, SentToFailureTransportStamp};
use serde_json::{Value, json};

use super::both::on_each_symfony;
use super::php::Symfony;

/// How many envelopes there are.
const GENERATED: usize = 3000;

on_each_symfony! {
    generated_values_are_what_php_says_and_changed_stamps_what_php_writes
}

fn generated_values_are_what_php_says_and_changed_stamps_what_php_writes(symfony: Symfony) {
    let Some(folder) = symfony.folder() else { return };
    let php = |arguments: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/serialized.php");
        let mut command = Command::new("php");
        command.arg(script).args(arguments).env("SYMFONY", &folder).stderr(Stdio::inherit());
        command
    };
    let seed = fastrand::u32(..).to_string();
    println!("seed {seed}");
    let generated = php(&["generate", &GENERATED.to_string(), &seed]).output().unwrap();
    assert!(generated.status.success());
    let lines: Vec<Value> =
        generated.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(lines.len(), GENERATED);
    let mut changes = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let body = BASE64.decode(line["body"].as_str().unwrap()).unwrap();
        let received = Encoded { body: body.into(), ..Encoded::default() };
        let envelope = Envelope::decode(&received).unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(envelope.message_type(), line["type"]);
        let message: Value = serde_json::from_slice(envelope.body()).unwrap();
        let expected: Value = serde_json::from_str(line["message"].as_str().unwrap()).unwrap();
        assert!(is_same(&message, &expected), "{n}: {message}\nin PHP: {expected}");
        assert_eq!(envelope.encode(), received);
        let changed = changed(envelope).encode();
        assert!(changed.headers.is_empty(), "{:?}", changed.headers);
        let change = json!({"before": line["body"], "after": BASE64.encode(&changed.body)});
        writeln!(changes, "{change}").unwrap();
    }
    let mut check = php(&["check"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = check.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&changes));
    let checked = check.wait_with_output().unwrap();
    let _ = writer.join();
    assert_eq!(String::from_utf8_lossy(&checked.stdout).trim(), GENERATED.to_string());
}

/// With the changes that `serialized.php` makes in PHP.
fn changed(envelope: Envelope) -> Envelope {
    let details: ErrorDetailsStamp = serde_json::from_value(json!({
        "exceptionClass": "E", "exceptionCode": 7, "exceptionMessage": "é \"\\ \0",
    }))
    .unwrap();
    let failure: SentToFailureTransportStamp =
        serde_json::from_value(json!({"originalReceiverName": "async"})).unwrap();
    let another = BusNameStamp { bus_name: "another".into() };
    envelope.without::<DelayStamp>().with(&another).with(&details).with(&failure)
}

/// Floating-point numbers are equal if they differ in the last digit: serde_json does not read them more exactly.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let same = |(name, value)| right.get(name).is_some_and(|other| is_same(value, other));
            left.len() == right.len() && left.iter().all(same)
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= a.abs() * 4.0 * f64::EPSILON && a.is_sign_negative() == b.is_sign_negative()
        }
        _ => left == right,
    }
}
