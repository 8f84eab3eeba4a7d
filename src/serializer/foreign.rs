//! Messages of other applications: JSON without a `type` header, whose type is known or is in a field of it.
//!
//! A received message goes back as it came, with stamps in its headers. A message that has a `type` header, or that PHP
//! has written, is read as everywhere else.

use std::borrow::Cow;

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::Json;
use super::{Serializer, SerializerError};
use crate::config::ForeignForm;
use crate::message::{Encoded, Envelope, TYPE, UndecodableError};

/// The longest value of a field that an error shows, in characters.
const MAX_SHOWN: usize = 100;

pub(super) struct Foreign(pub(super) ForeignForm);

impl Serializer for Foreign {
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        if let Some(body) = envelope.stored_body() {
            return Ok(Encoded { body: body.clone(), headers: envelope.headers().clone() });
        }
        let mut encoded = Json.encode(envelope)?;
        let is_plain = encoded.headers.contains_key(TYPE);
        if let Some(field) = self.0.type_field.as_deref().filter(|_| is_plain) {
            match self.kind_of(envelope.message_type()) {
                Some(kind) => {
                    encoded.body = self.wrap(field, kind, envelope)?.into();
                    encoded.headers.remove(TYPE);
                }
                // It is what a message without that field is.
                None if self.0.message_type.as_deref() == Some(envelope.message_type()) => {}
                None => {
                    let message_type = envelope.message_type();
                    let why = format!("no value of field \"{field}\" stands for \"{message_type}\": add it to `types`");
                    return Err(SerializerError::new(why));
                }
            }
        }
        Ok(encoded)
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        if encoded.headers.contains_key(TYPE) || Envelope::is_of_php(encoded) {
            return Json.decode(encoded);
        }
        let json: &RawValue =
            serde_json::from_slice(&encoded.body).map_err(|error| UndecodableError::Body(error.to_string()))?;
        let message_type = self.type_of(json)?;
        let body = match &self.0.body_field {
            None => json,
            Some(path) => field(json, path)
                .ok_or_else(|| UndecodableError::Form(format!("the message has no field \"{path}\" (`body_field`)")))?,
        };
        let envelope = Envelope::from_json(message_type, Bytes::copy_from_slice(body.get().as_bytes()));
        let mut envelope = envelope.with_stored_body(encoded.body.clone());
        envelope.join_headers(&encoded.headers);
        Ok(envelope)
    }
}

impl Foreign {
    /// The type of a message without a `type` header.
    fn type_of(&self, json: &RawValue) -> Result<String, UndecodableError> {
        let ForeignForm { message_type, type_field, types, .. } = &self.0;
        let otherwise = |why: String| message_type.clone().ok_or(UndecodableError::Form(why));
        let Some(path) = type_field else {
            return otherwise("the type is unknown".to_owned());
        };
        let found = field(json, path);
        let Some(kind) = found.and_then(text) else {
            let what = if found.is_some() { "is neither text nor a number" } else { "is missing" };
            return otherwise(format!("field \"{path}\" (`type_field`), which says what the message is, {what}"));
        };
        match types {
            None => Ok(kind.into_owned()),
            Some(types) => match types.get(kind.as_ref()) {
                Some(known) => Ok(known.clone()),
                None => {
                    let shown: String = kind.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
                    otherwise(format!(
                        "no type is known for \"{shown}\", which is in field \"{path}\": add it to `types`"
                    ))
                }
            },
        }
    }

    /// The field's value for a type.
    fn kind_of<'a>(&'a self, message_type: &'a str) -> Option<&'a str> {
        match &self.0.types {
            None => Some(message_type),
            Some(types) => types.iter().find(|(_, known)| *known == message_type).map(|(kind, _)| kind.as_str()),
        }
    }

    /// The message as the other application reads it.
    fn wrap(&self, type_path: &str, kind: &str, envelope: &Envelope) -> Result<String, SerializerError> {
        let body = std::str::from_utf8(envelope.body()).map_err(SerializerError::new)?;
        if let Some(body_path) = &self.0.body_field {
            let body: Box<RawValue> = serde_json::from_str(body).map_err(SerializerError::new)?;
            let mut fields = Fields::default();
            fields.insert(type_path, Field::Text(kind.to_owned()))?;
            fields.insert(body_path, Field::Raw(body))?;
            return serde_json::to_string(&fields).map_err(SerializerError::new);
        }
        let members: IndexMap<String, &RawValue> = serde_json::from_str(body)
            .map_err(|_| SerializerError::new("only a message that is a JSON object can get a field with its type"))?;
        let first = type_path.split('.').next().unwrap_or(type_path);
        if members.contains_key(first) {
            let json: &RawValue = serde_json::from_str(body).map_err(SerializerError::new)?;
            return match field(json, type_path).and_then(text) {
                Some(found) if found == kind => Ok(body.to_owned()),
                _ => Err(SerializerError::new(format!(
                    "the message has a field \"{first}\" of its own, where its type belongs"
                ))),
            };
        }
        let mut fields = Fields::default();
        fields.insert(type_path, Field::Text(kind.to_owned()))?;
        let head = serde_json::to_string(&fields).map_err(SerializerError::new)?;
        let (head, rest) = (head.trim_end_matches('}'), body.trim_start().trim_start_matches('{'));
        // As many braces as the path has parts were taken away, and all but the outermost are missing.
        let inner = "}".repeat(type_path.matches('.').count());
        let comma = if members.is_empty() { "" } else { "," };
        Ok(format!("{head}{inner}{comma}{rest}"))
    }
}

/// The value at a path of fields.
fn field<'a>(json: &'a RawValue, path: &str) -> Option<&'a RawValue> {
    path.split('.').try_fold(json, |json, name| {
        let mut members: IndexMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(json.get()).ok()?;
        members.swap_remove(name)
    })
}

/// A field's value as text.
fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    match serde_json::from_str(json.get()).ok()? {
        Value::String(text) => Some(text.into()),
        Value::Number(_) => Some(json.get().into()),
        _ => None,
    }
}

/// An object to be written.
#[derive(Default, serde::Serialize)]
#[serde(transparent)]
struct Fields(IndexMap<String, Field>);

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Raw(Box<RawValue>),
    Fields(Fields),
}

impl Fields {
    fn insert(&mut self, path: &str, value: Field) -> Result<(), SerializerError> {
        match path.split_once('.') {
            None => drop(self.0.insert(path.to_owned(), value)),
            Some((name, rest)) => {
                match self.0.entry(name.to_owned()).or_insert_with(|| Field::Fields(Fields::default())) {
                    Field::Fields(inner) => inner.insert(rest, value)?,
                    Field::Text(_) | Field::Raw(_) => {
                        return Err(SerializerError::new("`type_field` and `body_field` cannot be within each other"));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::message::{DelayStamp, Headers};

    fn foreign(yaml: &str) -> Foreign {
        let map: Map<String, Value> = serde_yaml::from_str(yaml).unwrap();
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let types = map.get("types").and_then(Value::as_object);
        let types =
            types.map(|types| types.iter().map(|(kind, of)| (kind.clone(), of.as_str().unwrap().to_owned())).collect());
        let [message_type, type_field, body_field] = ["type", "type_field", "body_field"].map(text);
        Foreign(ForeignForm { message_type, type_field, types, body_field })
    }

    fn plain(body: &str) -> Encoded {
        let headers = Headers::from([("Content-Type", "application/json"), ("X-Trace", "abc")]);
        Encoded { body: Bytes::copy_from_slice(body.as_bytes()), headers }
    }

    #[test]
    fn a_message_without_a_type_gets_one_and_goes_back_as_it_came() {
        let by_field =
            r"{type_field: meta.kind, types: {order.created: App\Created, '7': App\Seven}, body_field: data}";
        for (form, body, message_type, message) in [
            (r"{type: App\Order}", " { \"id\": 1.0 }", r"App\Order", "{ \"id\": 1.0 }"),
            (by_field, r#"{"meta":{"kind":"order.created"},"data": {"id" :1}}"#, r"App\Created", r#"{"id" :1}"#),
            (by_field, r#"{"meta":{"kind":7},"data":[]}"#, r"App\Seven", "[]"),
            ("{type_field: kind}", r#"{"kind":"order.paid"}"#, "order.paid", r#"{"kind":"order.paid"}"#),
            (r"{type_field: kind, types: {a: A}, type: App\Any}", r#"{"kind":"z"}"#, r"App\Any", r#"{"kind":"z"}"#),
        ] {
            let (form, wire) = (foreign(form), plain(body));
            let envelope = form.decode(&wire).unwrap();
            assert_eq!((envelope.message_type(), &envelope.body()[..]), (message_type, message.as_bytes()), "{body}");
            assert_eq!(form.encode(&envelope).unwrap(), wire);
            let again = form.encode(&envelope.with(&DelayStamp { delay: 5 })).unwrap();
            assert_eq!(again.body, wire.body);
            assert_eq!(form.decode(&again).unwrap().last::<DelayStamp>().unwrap().delay, 5);
        }
    }

    #[test]
    fn a_new_message_is_written_as_the_other_application_reads_it() {
        let message = |message_type: &str, body: &'static str| Envelope::from_json(message_type, body);
        for (form, body, written) in [
            ("{type_field: a.b, types: {k: T}, body_field: a.c}", r#"{"n":1.0}"#, r#"{"a":{"b":"k","c":{"n":1.0}}}"#),
            ("{type_field: kind, types: {k: T}}", r#" {"n":1.0}"#, r#"{"kind":"k","n":1.0}"#),
            ("{type_field: a.b, types: {k: T}}", "{}", r#"{"a":{"b":"k"}}"#),
            ("{type_field: kind}", r#"{"kind":"T"}"#, r#"{"kind":"T"}"#),
        ] {
            let form = foreign(form);
            let encoded = form.encode(&message("T", body)).unwrap();
            assert_eq!(encoded.body, written);
            assert_eq!(encoded.headers.get(TYPE), None);
            assert_eq!(form.decode(&encoded).unwrap().message_type(), "T");
        }
        let form = foreign("{type_field: kind, types: {k: T}}");
        for (message_type, body) in [("U", "{}"), ("T", "[]"), ("T", r#"{"kind":1}"#)] {
            assert!(form.encode(&message(message_type, body)).is_err(), "{message_type} {body}");
        }
        // A message of Symfony on the same queue.
        let typed = message("U", "{}").encode();
        assert_eq!(form.decode(&typed).unwrap().encode(), typed);
    }

    #[test]
    fn what_has_another_form_is_refused_with_the_field() {
        let form = foreign("{type_field: kind, types: {a: A}, body_field: data}");
        for (body, why) in [
            ("nonsense", "not JSON"),
            ("[]", "\"kind\" (`type_field`), which says what the message is, is missing"),
            (r#"{"kind":{}}"#, "neither text nor a number"),
            ("{\"kind\":\"b\\n\"}", "no type is known for \"b\\n\""),
            (r#"{"kind":"a"}"#, "no field \"data\""),
        ] {
            let error = form.decode(&plain(body)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
