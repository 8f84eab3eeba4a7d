//! Stamps as people write them, on a command line or in a request: a class, and its values as JSON.

use serde_json::value::RawValue;

use super::{
    AmqpStamp, BusNameStamp, DeduplicateStamp, DelayStamp, DispatchAfterCurrentBusStamp, Envelope,
    HandlerArgumentsStamp, RouterContextStamp, SerializerStamp, Stamp, TransportNamesStamp, ValidationStamp,
};
use crate::config::nearest;

/// The longest name of a class, in bytes.
const LONGEST_CLASS: usize = 200;

/// Adds a stamp of a known class to a message, or says why the text does not fit it.
type Add = fn(&mut Envelope, &str) -> Result<(), String>;

/// The stamps that mean something where a message is dispatched. They need no namespace.
const KNOWN: &[(&str, Add)] = &[
    (AmqpStamp::CLASS, add::<AmqpStamp>),
    (BusNameStamp::CLASS, add::<BusNameStamp>),
    (DeduplicateStamp::CLASS, add::<DeduplicateStamp>),
    (DelayStamp::CLASS, add::<DelayStamp>),
    (DispatchAfterCurrentBusStamp::CLASS, add::<DispatchAfterCurrentBusStamp>),
    (HandlerArgumentsStamp::CLASS, add::<HandlerArgumentsStamp>),
    (RouterContextStamp::CLASS, add::<RouterContextStamp>),
    (SerializerStamp::CLASS, add::<SerializerStamp>),
    (TransportNamesStamp::CLASS, add::<TransportNamesStamp>),
    (ValidationStamp::CLASS, add::<ValidationStamp>),
];

/// Stamps of Symfony's that are not sent, and that only a bus or a worker gives.
const NOT_GIVEN: &[&str] = &[
    "AckStamp",
    "AmqpReceivedStamp",
    "ConsumedByWorkerStamp",
    "DoctrineReceivedStamp",
    "FlushBatchHandlersStamp",
    "NoAutoAckStamp",
    "ReceivedStamp",
    "RedisReceivedStamp",
    "SentStamp",
];

fn add<S: Stamp>(envelope: &mut Envelope, json: &str) -> Result<(), String> {
    let stamp: S = serde_json::from_str(json).map_err(|error| error.to_string())?;
    envelope.add(&stamp);
    Ok(())
}

/// The class without its namespace.
fn short(class: &str) -> &str {
    class.rsplit('\\').next().unwrap_or(class)
}

impl Envelope {
    /// Adds a stamp of any class. Those that are known here must have the values that they have.
    pub(crate) fn add_stamp(&mut self, class: &str, json: &str) -> Result<(), String> {
        let class = class.trim().trim_start_matches('\\');
        let wrong = |why: String| format!("stamp {}: {why}", class.escape_debug().to_string().replace(r"\\", r"\"));
        if let Some((_, add)) = KNOWN.iter().find(|(known, _)| *known == class || short(known) == class) {
            return add(self, json).map_err(wrong);
        }
        if NOT_GIVEN.contains(&short(class)) {
            return Err(wrong("only a bus or a worker gives it".to_owned()));
        }
        let names = || KNOWN.iter().map(|(known, _)| short(known));
        if !class.contains(['\\', '.', '/', ':']) {
            let hint = nearest(class, names()).map(|near| format!(", did you mean \"{near}\"?"));
            let known = names().collect::<Vec<_>>().join(", ");
            let known = format!("; known: {known}. Another is written with its namespace: App\\Stamp\\Tenant");
            return Err(wrong(format!("it is unknown{}{known}", hint.unwrap_or_default())));
        }
        if class.len() > LONGEST_CLASS || !class.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it is no name of a class".to_owned()));
        }
        let values: Box<RawValue> = serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
        if !values.get().starts_with('{') {
            return Err(wrong("its values must be a JSON object".to_owned()));
        }
        self.add_raw(class, values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(envelope: &mut Envelope, text: &str) -> Result<(), String> {
        let (class, json) = text.split_once('=').unwrap_or((text, "{}"));
        envelope.add_stamp(class, json)
    }

    #[test]
    fn stamps_are_given_as_text() {
        let mut envelope = Envelope::from_json("a", "{}");
        for text in [
            r#"DelayStamp={"delay":500}"#,
            r#"Symfony\Component\Messenger\Stamp\ValidationStamp={"groups":["import"]}"#,
            r#"AmqpStamp={"routingKey":"a.b","attributes":{"priority":5}}"#,
            r#"DeduplicateStamp={"key":"daily"}"#,
            r#"App\Stamp\Tenant={ "id": 7 }"#,
            r#"\App\Stamp\Tenant={"id":8}"#,
            "DispatchAfterCurrentBusStamp",
        ] {
            add(&mut envelope, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        assert_eq!(envelope.last::<DelayStamp>().unwrap().delay, 500);
        assert_eq!(envelope.last::<ValidationStamp>().unwrap().groups, ["import"]);
        assert_eq!(envelope.last::<AmqpStamp>().unwrap().attributes.priority, Some(5));
        let deduplicate = envelope.last::<DeduplicateStamp>().unwrap();
        assert_eq!((deduplicate.ttl, deduplicate.only_deduplicate_in_queue), (Some(300.0), false));
        assert!(envelope.last::<DispatchAfterCurrentBusStamp>().is_some());
        let own = envelope.encode().headers.get(r"X-Message-Stamp-App\Stamp\Tenant").map(str::to_owned);
        assert_eq!(own.as_deref(), Some(r#"[{ "id": 7 },{"id":8}]"#));
    }

    #[test]
    fn what_is_no_stamp_is_refused() {
        for (text, expected) in [
            ("DelayStamp", "stamp DelayStamp: missing field `delay`"),
            (r#"DelayStamp={"delay":"soon"}"#, "stamp DelayStamp: invalid type"),
            ("DelayStmp={}", r#"did you mean "DelayStamp"?"#),
            ("=", "it is unknown; known: AmqpStamp, "),
            (r#"AmqpStamp={"attributes":{"prio":1}}"#, "unknown field `prio`"),
            (r"App\Stamp\Tenant=[]", "must be a JSON object"),
            (r"App\Stamp\Tenant={", "EOF"),
            ("App\\A\nB={}", "no name of a class"),
            (r"Symfony\Component\Messenger\Stamp\ReceivedStamp={}", "only a bus or a worker"),
        ] {
            let error = add(&mut Envelope::from_json("a", "{}"), text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
