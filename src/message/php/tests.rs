//! Envelopes as PHP writes them, and as an attacker might.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{
    BusNameStamp, DelayStamp, Encoded, Envelope, ErrorDetailsStamp, HandledStamp, RedeliveryStamp,
    SentToFailureTransportStamp, Stamp, UndecodableError, wire::headers_from_json,
};
use super::parse::MAX_DEPTH;
use super::text;

const STAMPS: &str = "\0Symfony\\Component\\Messenger\\Envelope\0stamps";
const MESSAGE: &str = "\0Symfony\\Component\\Messenger\\Envelope\0message";
const NOTE: &str = r#"O:16:"App\Message\Note":2:{s:1:"n";i:7;s:4:"text";s:3:"hi!";}"#;

/// A string in PHP's format.
fn s(text: &str) -> String {
    format!("s:{}:\"{text}\";", text.len())
}

/// An envelope with these elements of the array of stamps, and this message.
fn envelope(lists: &[String], message: &str) -> String {
    let (stamps, message_key) = (s(STAMPS), s(MESSAGE));
    let (count, lists) = (lists.len(), lists.concat());
    format!(r#"O:36:"Symfony\Component\Messenger\Envelope":2:{{{stamps}a:{count}:{{{lists}}}{message_key}{message}}}"#)
}

/// The stamps of one class.
fn list(class: &str, stamps: &[&str]) -> String {
    let items: String = stamps.iter().enumerate().map(|(n, stamp)| format!("i:{n};{stamp}")).collect();
    format!("{}a:{}:{{{items}}}", s(class), stamps.len())
}

fn delay(ms: u64) -> String {
    let class = DelayStamp::CLASS;
    format!("O:{}:\"{class}\":1:{{{}i:{ms};}}", class.len(), s(&format!("\0{class}\0delay")))
}

fn encoded(text: &str) -> Encoded {
    Encoded { body: text::encode(text.as_bytes()), ..Encoded::default() }
}

fn decode(text: &str) -> Envelope {
    Envelope::decode(&encoded(text)).unwrap()
}

/// The text that is sent.
fn sent(envelope: &Envelope) -> String {
    String::from_utf8(text::decode(&envelope.encode().body).unwrap().into_owned()).unwrap()
}

/// Why a message cannot be decoded.
fn refusal(message: &str) -> String {
    match Envelope::decode(&encoded(&envelope(&[], message))) {
        Err(UndecodableError::Php(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// The JSON of a value in a message.
fn json(value: &str) -> String {
    let envelope = decode(&envelope(&[], &format!(r#"O:1:"A":1:{{s:1:"x";{value}}}"#)));
    let body = std::str::from_utf8(envelope.body()).unwrap();
    body.strip_prefix(r#"{"x":"#).unwrap().strip_suffix('}').unwrap().to_owned()
}

#[test]
fn a_message_is_read_as_symfonys_json() {
    let tenant = r#"O:16:"App\Stamp\Tenant":1:{s:4:"name";s:1:"t";}"#;
    let text = envelope(&[list(DelayStamp::CLASS, &[&delay(500)]), list(r"App\Stamp\Tenant", &[tenant])], NOTE);
    let envelope = decode(&text);
    assert_eq!(envelope.message_type(), r"App\Message\Note");
    assert_eq!(envelope.body(), r#"{"n":7,"text":"hi!"}"#);
    assert_eq!(envelope.last::<DelayStamp>().unwrap().delay, 500);
    assert_eq!(envelope.headers().get(r"X-Message-Stamp-App\Stamp\Tenant"), Some(r#"[{"name":"t"}]"#));
    assert_eq!(envelope.encode(), encoded(&text));
}

#[test]
fn values_are_written_as_symfony_does() {
    for (php, expected) in [
        ("N;", "null"),
        ("b:1;", "true"),
        ("i:-9223372036854775808;", "-9223372036854775808"),
        ("d:0.1;", "0.1"),
        ("d:1;", "1.0"),
        ("d:-0;", "-0.0"),
        ("d:1.0E+25;", "1e+25"),
        ("s:2:\"\0\n\";", r#""\u0000\n""#),
        ("a:0:{}", "[]"),
        ("a:2:{i:0;i:5;i:1;i:6;}", "[5,6]"),
        ("a:2:{i:1;i:5;i:0;i:6;}", r#"{"1":5,"0":6}"#),
        ("a:2:{i:1;i:5;s:1:\"1\";i:6;}", r#"{"1":6}"#),
        (r#"O:8:"stdClass":0:{}"#, "{}"),
        (r#"E:11:"Suit:Hearts";"#, r#""Hearts""#),
        (
            r#"O:8:"DateTime":3:{s:4:"date";s:26:"2026-07-31 10:00:00.123456";s:13:"timezone_type";i:3;s:8:"timezone";s:13:"Europe/Berlin";}"#,
            r#""2026-07-31T10:00:00+02:00""#,
        ),
        (r#"O:12:"DateTimeZone":2:{s:13:"timezone_type";i:3;s:8:"timezone";s:3:"UTC";}"#, r#""UTC""#),
        // Each is the object's own rather than a parent's, whatever its visibility.
        (
            "O:1:\"B\":4:{s:4:\"\0A\0p\";i:1;s:4:\"\0B\0p\";i:2;s:4:\"\0*\0q\";i:3;s:1:\"r\";i:4;}",
            r#"{"p":2,"q":3,"r":4}"#,
        ),
        ("O:1:\"B\":2:{s:4:\"\0B\0p\";i:2;s:4:\"\0A\0p\";i:1;}", r#"{"p":2}"#),
        (r#"C:1:"S":15:{a:1:{i:0;i:42;}}"#, "[42]"),
        (r#"C:1:"S":5:{a b c}"#, r#""a b c""#),
        ("O:43:\"Doctrine\\Common\\Collections\\ArrayCollection\":1:{s:8:\"elements\";a:1:{i:0;i:1;}}", "[1]"),
        (r#"O:11:"ArrayObject":4:{i:0;i:0;i:1;a:1:{s:1:"k";i:1;}i:2;a:0:{}i:3;N;}"#, r#"{"k":1}"#),
        ("O:28:\"Symfony\\Component\\Uid\\UuidV4\":1:{s:6:\"\0*\0uid\";s:1:\"u\";}", r#""u""#),
        // An object again, and a reference to a value.
        (r#"a:3:{i:0;O:1:"B":1:{s:1:"p";i:1;}i:1;r:5;i:2;R:6;}"#, r#"[{"p":1},{"p":1},1]"#),
    ] {
        assert_eq!(json(php), expected, "{php:?}");
    }
}

#[test]
fn binary_data_becomes_a_data_uri() {
    let message = b"O:1:\"A\":1:{s:1:\"x\";s:2:\"\xff\0\";}";
    let text = envelope(&[], "?");
    let (before, after) = text.split_once('?').unwrap();
    let body = text::encode(&[before.as_bytes(), message, after.as_bytes()].concat());
    assert!(body.starts_with(b"Tzo"));
    let wire = Encoded { body, ..Encoded::default() };
    let envelope = Envelope::decode(&wire).unwrap();
    assert_eq!(envelope.body(), r#"{"x":"data:application/octet-stream;base64,/wA="}"#);
    assert_eq!(envelope.encode(), wire);
    let again = envelope.with(&DelayStamp { delay: 1 }).encode();
    assert!(again.body.starts_with(b"Tzo"));
    assert_eq!(Envelope::decode(&again).unwrap().last::<DelayStamp>().unwrap().delay, 1);
}

#[test]
fn what_json_cannot_hold_is_refused_with_its_place() {
    let shown = refusal(r#"O:1:"A":1:{s:1:"x";a:1:{s:1:"y";d:NAN;}}"#);
    assert_eq!(shown, "NaN cannot be written as JSON (in x → y)");
    let shown = refusal(r#"O:1:"A":1:{s:4:"self";r:3;}"#);
    assert_eq!(shown, "it contains itself, which JSON cannot hold (in self)");
    assert!(refusal("a:0:{}").contains("the message is no object"));
}

#[test]
fn a_stamp_that_json_cannot_hold_is_kept_and_does_not_hinder() {
    let odd = r#"O:1:"S":2:{s:1:"a";d:INF;s:1:"b";r:4;}"#;
    let text = envelope(&[list("S", &[odd])], NOTE);
    let envelope = decode(&text);
    assert_eq!(envelope.headers().get("X-Message-Stamp-S"), Some(r#"[{"a":null,"b":null}]"#));
    let again = sent(&envelope.with(&DelayStamp { delay: 5 }));
    assert!(again.contains(odd), "{again}");
}

#[test]
fn stamps_are_added_and_removed_in_phps_text() {
    let with_references = r#"O:1:"A":2:{s:1:"x";O:1:"B":0:{}s:1:"y";r:FIRST;}"#;
    let first = list(r"App\Stamp\First", &[r#"O:15:"App\Stamp\First":1:{s:1:"f";i:1;}"#]);
    let bus = format!(
        r#"O:46:"Symfony\Component\Messenger\Stamp\BusNameStamp":1:{{{}s:1:"b";}}"#,
        s("\0Symfony\\Component\\Messenger\\Stamp\\BusNameStamp\0busName")
    );
    // Number 1 is the envelope, 2 the stamps, 3 the list, 4 the stamp, 5 its delay.
    let before =
        envelope(&[list(DelayStamp::CLASS, &[&delay(1)]), first.clone()], &with_references.replace("FIRST", "10"));
    let after = envelope(&[first.clone(), list(BusNameStamp::CLASS, &[&bus])], &with_references.replace("FIRST", "10"));
    let changed = decode(&before).without::<DelayStamp>().with(&BusNameStamp { bus_name: "b".into() });
    assert_eq!(sent(&changed), after);
    let two =
        envelope(&[list(DelayStamp::CLASS, &[&delay(1), &delay(2)]), first], &with_references.replace("FIRST", "12"));
    assert_eq!(sent(&decode(&before).with(&DelayStamp { delay: 2 })), two);
    // And back.
    assert_eq!(sent(&decode(&two).without::<DelayStamp>().with(&DelayStamp { delay: 1 })).len(), before.len());
}

#[test]
fn a_stamp_that_the_message_refers_to_stays() {
    let text = envelope(&[list(DelayStamp::CLASS, &[&delay(1)])], r#"O:1:"A":1:{s:1:"x";r:4;}"#);
    let envelope = decode(&text).without::<DelayStamp>();
    assert_eq!(sent(&envelope), text);
    let again = decode(&sent(&envelope.with(&DelayStamp { delay: 2 })));
    assert_eq!(again.body(), r#"{"x":{"delay":1}}"#);
    assert_eq!(again.last::<DelayStamp>().unwrap().delay, 2);
}

#[test]
fn every_stamp_that_a_worker_adds_is_read_again() {
    let details = ErrorDetailsStamp {
        exception_class: "E".into(),
        exception_code: 7.into(),
        exception_message: "é \" \\ \0".into(),
        flatten_exception: serde_json::Value::Null,
    };
    let redelivery = RedeliveryStamp { retry_count: 2, redelivered_at: "2026-01-31T10:00:00+00:00".into() };
    let failure = SentToFailureTransportStamp { original_receiver_name: "async".into() };
    let handled = HandledStamp { result: serde_json::json!({"a": [1, 2.5, null]}), handler_name: "h".into() };
    let envelope = decode(&envelope(&[], NOTE)).with(&details).with(&redelivery).with(&failure).with(&handled);
    let wire = envelope.encode();
    assert!(wire.headers.is_empty());
    let again = Envelope::decode(&wire).unwrap();
    assert_eq!(again.last::<ErrorDetailsStamp>(), Some(details));
    assert_eq!(again.last::<RedeliveryStamp>(), Some(redelivery));
    assert_eq!(again.last::<SentToFailureTransportStamp>(), Some(failure));
    assert_eq!(again.last::<HandledStamp>(), Some(handled));
}

#[test]
fn what_php_does_not_know_stays_a_header() {
    let mut wire = encoded(&envelope(&[], NOTE));
    wire.headers = headers_from_json(
        r#"{"X-Trace":"1","X-Message-Stamp-Ours":"[{}]","X-Message-Stamp-Symfony\\Component\\Messenger\\Stamp\\DelayStamp":"[{\"delay\":3}]"}"#,
    )
    .unwrap();
    let envelope = Envelope::decode(&wire).unwrap();
    assert_eq!(envelope.last::<DelayStamp>().unwrap().delay, 3);
    let again = envelope.encode();
    let names: Vec<&str> = again.headers.names().collect();
    assert_eq!(names, ["X-Trace", "X-Message-Stamp-Ours"]);
    let again = Envelope::decode(&again).unwrap();
    assert_eq!(again.last::<DelayStamp>().unwrap().delay, 3);
}

#[test]
fn a_message_that_cannot_be_read_gets_its_stamps_where_php_finds_them() {
    let failure = SentToFailureTransportStamp { original_receiver_name: "async".into() };
    let stamps = Envelope::from_json("", "").with(&failure).with(&DelayStamp { delay: 2 });
    let refused = envelope(&[list(DelayStamp::CLASS, &[&delay(1)])], r#"O:1:"A":1:{s:1:"x";d:NAN;}"#);
    let stamped = stamps.stamp(&encoded(&refused));
    assert!(stamped.headers.is_empty());
    let readable = text::decode(&stamped.body).unwrap().into_owned();
    let readable = String::from_utf8(readable).unwrap().replace("d:NAN;", "d:1.5;");
    let again = decode(&readable);
    assert_eq!(again.all::<DelayStamp>().iter().map(|stamp| stamp.delay).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(again.last::<SentToFailureTransportStamp>(), Some(failure));
    // Without an envelope, beside it.
    let other = stamps.stamp(&encoded(r#"O:1:"A":0:{}"#));
    assert_eq!((other.body, other.headers.len()), (encoded(r#"O:1:"A":0:{}"#).body, 2));
}

#[test]
fn hostile_texts_cost_little_and_are_refused() {
    let nested = |depth: usize| format!("{}N;{}", "a:1:{i:0;".repeat(depth), "}".repeat(depth));
    let message = |value: &str| format!(r#"O:1:"A":1:{{s:1:"x";{value}}}"#);
    assert!(refusal(&message(&nested(MAX_DEPTH))).contains("nested more than 512 deep"));
    assert!(Envelope::decode(&encoded(&envelope(&[], &message(&nested(MAX_DEPTH - 2))))).is_ok());
    // Each array holds the one before it twice.
    let mut bomb = r#"i:0;O:1:"B":0:{}"#.to_owned();
    for n in 0..60 {
        let number = if n == 0 { 5 } else { 3 * n + 3 };
        bomb += &format!(r#"i:{};O:1:"B":2:{{s:1:"a";r:{number};s:1:"b";r:{number};}}"#, n + 1);
    }
    assert!(refusal(&message(&format!("a:61:{{{bomb}}}"))).contains("repeated too often"));
    // Each refers to the one before it; followed one by one, these are 20 billion steps.
    let chain: String = (1..200_000).map(|n| format!("i:{n};r:{};", n + 4)).collect();
    assert!(json(&format!(r#"a:200000:{{i:0;O:1:"B":0:{{}}{chain}}}"#)).ends_with(",{}]"));
    // Values of the same name, of which one is written, in an object that is referred to often.
    let same = r#"s:1:"a";N;"#.repeat(100_000);
    let often: String = (1..100_000).map(|n| format!("i:{n};r:5;")).collect();
    let equal = format!(r#"a:100000:{{i:0;O:1:"B":100000:{{{same}}}{often}}}"#);
    assert!(refusal(&message(&equal)).contains("repeated too often"));
    for (value, why) in [
        ("s:4294967295:\"a\";", "ends too early"),
        ("s:99999999999999999999:\"a\";", "expected a number"),
        ("a:4294967295:{i:0;N;}", "cannot hold"),
        ("i:99999999999999999999;", "expected an integer"),
        ("d:0x1;", "expected a number"),
        ("r:9;", "does not stand before it"),
        ("r:4;", "does not stand before it"),
        ("r:0;", "does not stand before it"),
        ("a:2:{i:0;i:1;i:1;r:5;}", "a reference to an object that is none"),
        ("C:1:\"S\":4:{r:1;}", "a format of its own, with references"),
        ("a:3:{i:0;C:1:\"S\":4:{i:1;}i:1;O:1:\"B\":0:{}i:2;r:6;}", "after an object of the class S"),
        ("a:1:{a:0:{}N;}", "expected a key"),
        ("b:2;", "expected b:0; or b:1;"),
        ("x:1;", "expected a value"),
    ] {
        let shown = refusal(&message(value));
        assert!(shown.contains(why), "{value}: {shown}");
    }
    let long = format!(r#"O:5000:"{}":1:{{s:1:"x";d:NAN;}}"#, "\u{1b}".repeat(5000));
    assert!(refusal(&long).len() < 2000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(body: Vec<u8>) {
        let _ = Envelope::decode(&Encoded { body: body.into(), ..Encoded::default() });
    }

    /// A change of any bytes is refused, or the result can be changed and read like every other.
    #[test]
    fn damaged_envelopes_are_refused_or_stay_what_they_are(
        at in any::<prop::sample::Index>(), with: [u8; 2], length in 0_usize..3, removed in 0_usize..4,
    ) {
        let stamps = [list(DelayStamp::CLASS, &[&delay(1), &delay(2)]), list("S", &[r#"O:1:"S":1:{s:1:"b";r:4;}"#])];
        let mut body = envelope(&stamps, r#"O:1:"A":2:{s:1:"x";O:1:"B":0:{}s:1:"y";r:4;}"#).into_bytes();
        let at = at.index(body.len());
        let end = (at + removed).min(body.len());
        body.splice(at..end, with[..length.min(2)].iter().copied());
        let wire = Encoded { body: text::encode(&body), ..Encoded::default() };
        if let Ok(envelope) = Envelope::decode(&wire) {
            let unchanged = envelope.encode();
            prop_assert_eq!(&unchanged.body, &wire.body);
            let changed = envelope.clone().without::<DelayStamp>().with(&BusNameStamp { bus_name: "b".into() });
            let again = Envelope::decode(&changed.encode());
            prop_assert!(again.is_ok(), "{again:?}");
            let again = again.unwrap();
            prop_assert_eq!(again.message_type(), envelope.message_type());
            prop_assert_eq!(again.body(), envelope.body());
            prop_assert_eq!(again.last::<BusNameStamp>().unwrap().bus_name, "b");
        }
    }
}

#[test]
fn other_texts_of_php_are_refused() {
    for text in ["a:0:{}", "O:1:\"A\":0:{}", "O:", "s:1:\"a\";"] {
        let wire = Encoded { body: Bytes::copy_from_slice(text.as_bytes()), ..Encoded::default() };
        assert!(Envelope::decode(&wire).is_err(), "{text}");
    }
}
