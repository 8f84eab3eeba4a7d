//! Reads Symfony's `SendEmailMessage`: a mail and perhaps an envelope, as PHP's `serialize()` or Symfony's JSON serializer has
//! written it.
//!
//! Symfony's mails say themselves what `serialize()` writes: lists whose places have a meaning. Those of an `Email` are
//! text, its charset, HTML, its charset, attachments, and what is in every message: headers and body. A `TemplatedEmail`
//! has such a list within its own.

use std::time::SystemTime;

use chrono::DateTime;
use lettre::message::Mailbox;
use serde_json::{Map, Value};

use super::address::{named, one_line};
use super::attachment::{Attachment, Source, bytes, file_name};
use super::draft::{Content, Draft};
use super::error::MailError;

/// What is in a `SendEmailMessage`.
#[derive(Debug)]
pub(super) enum Email {
    Draft(Box<Draft>),
    /// MIME already, with its envelope.
    Raw(Vec<u8>, lettre::Address, Vec<lettre::Address>),
}

/// How deep mails of derived classes are looked for.
const MAX_DERIVED: usize = 8;

pub(super) fn read(body: &[u8]) -> Result<Email, MailError> {
    let message: Value = serde_json::from_slice(body).map_err(|_| unknown("it is not JSON"))?;
    let envelope = message.get("envelope").filter(|envelope| !envelope.is_null()).map(read_envelope).transpose()?;
    let mail = message.get("message").ok_or_else(|| unknown("it has no `message`"))?;
    if let Some(raw) = raw(mail) {
        let Some((from, to)) = envelope else {
            return Err(MailError::permanent("a RawMessage needs an envelope, which says who sends it and to whom"));
        };
        return Ok(Email::Raw(bytes(raw), from, to));
    }
    let parts = Parts::find(mail)?;
    let mut draft = Draft { envelope, ..Draft::default() };
    draft.text = content(parts.text, parts.text_charset);
    draft.html = content(parts.html, parts.html_charset);
    if parts.body.is_some_and(|body| !body.is_null()) {
        return Err(MailError::permanent(
            "its body was put together as MIME parts in PHP; text(), html() and attach() of Email can be sent from here",
        ));
    }
    for (name, list) in headers(parts.headers) {
        for header in items(list) {
            add_header(&mut draft, name, header)?;
        }
    }
    for attachment in items(parts.attachments) {
        draft.attachments.push(read_attachment(attachment)?);
    }
    if draft.text.is_none() && draft.html.is_none() && parts.has_template {
        return Err(MailError::permanent(
            "it is a TemplatedEmail whose template was not rendered, which Twig has to do in PHP before the mail is dispatched (`BodyRenderer`)",
        ));
    }
    Ok(Email::Draft(Box::new(draft)))
}

fn unknown(why: &str) -> MailError {
    MailError::permanent(format!("this is no SendEmailMessage of Symfony: {why}"))
}

/// The text of a `RawMessage`.
fn raw(mail: &Value) -> Option<&str> {
    let members = mail.as_object()?;
    match (members.get("0"), members.get("message")) {
        (Some(Value::String(raw)), _) if members.len() == 1 => Some(raw),
        (_, Some(Value::String(raw))) if !members.contains_key("headers") => Some(raw),
        _ => None,
    }
}

/// The parts of an `Email`.
struct Parts<'a> {
    text: &'a Value,
    text_charset: &'a Value,
    html: &'a Value,
    html_charset: &'a Value,
    attachments: &'a Value,
    headers: &'a Value,
    body: Option<&'a Value>,
    has_template: bool,
}

impl<'a> Parts<'a> {
    fn find(mail: &'a Value) -> Result<Self, MailError> {
        if let Some(members) = mail.as_object().filter(|members| members.contains_key("headers")) {
            let member = |name: &str| members.get(name).unwrap_or(&Value::Null);
            let has_template = ["htmlTemplate", "textTemplate", "template"].iter().any(|name| member(name).is_string());
            return Ok(Self {
                text: member("text"),
                text_charset: member("textCharset"),
                html: member("html"),
                html_charset: member("htmlCharset"),
                attachments: member("attachments"),
                headers: member("headers"),
                body: members.get("body"),
                has_template,
            });
        }
        let mut list = places(mail).ok_or_else(|| unknown("its message is no object"))?;
        let mut has_template = false;
        for _ in 0..MAX_DERIVED {
            if let [text, text_charset, html, html_charset, attachments, parent] = list[..]
                && let Some([headers, body]) = places(parent).as_deref()
            {
                return Ok(Self {
                    text,
                    text_charset,
                    html,
                    html_charset,
                    attachments,
                    headers,
                    body: Some(body),
                    has_template,
                });
            }
            has_template |= list.iter().take(2).any(|place| place.is_string());
            // What the parent class has written is one of the places of a derived one.
            let inner = list.iter().filter_map(|place| places(place)).find(|places| places.len() >= 4);
            list = inner.ok_or_else(|| unknown("its message is no Email and no RawMessage"))?;
        }
        Err(unknown("its message is no Email and no RawMessage"))
    }
}

/// The values of a list, or of an object whose keys are those of a list.
fn places(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(items) => Some(items.iter().collect()),
        Value::Object(members) => {
            let places: Vec<&Value> = (0..members.len()).map_while(|n| members.get(&n.to_string())).collect();
            (places.len() == members.len()).then_some(places)
        }
        _ => None,
    }
}

/// The items of a list; also of one that has lost some, which PHP writes with keys.
fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => Vec::new(),
    }
}

fn content(text: &Value, charset: &Value) -> Option<Content> {
    let charset = charset.as_str().filter(|charset| !charset.is_empty()).unwrap_or("utf-8");
    text.as_str().map(|text| Content { bytes: bytes(text), charset: charset.to_ascii_lowercase() })
}

/// All headers by name: in JSON as they are, from `serialize()` within their object.
fn headers(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let inner = value.get("headers").filter(|_| value.get("lineLength").is_some());
    inner.unwrap_or(value).as_object().into_iter().flatten().map(|(name, list)| (name.as_str(), list))
}

fn add_header(draft: &mut Draft, name: &str, header: &Value) -> Result<(), MailError> {
    let lower = name.to_ascii_lowercase();
    let own_name = header.get("name").and_then(Value::as_str).unwrap_or(name);
    let addresses = || -> Result<Vec<Mailbox>, MailError> {
        items(header.get("addresses").unwrap_or(&Value::Null))
            .into_iter()
            .map(|address| mailbox(address, own_name))
            .collect()
    };
    let address = || header.get("address").map(|address| mailbox(address, own_name)).transpose();
    match lower.as_str() {
        "from" => draft.from.extend(addresses()?),
        "to" => draft.to.extend(addresses()?),
        "cc" => draft.cc.extend(addresses()?),
        "bcc" => draft.bcc.extend(addresses()?),
        "reply-to" => draft.reply_to.extend(addresses()?),
        "sender" => draft.sender = address()?,
        "return-path" => draft.return_path = address()?.map(|mailbox| mailbox.email),
        "subject" => draft.subject = header.get("value").and_then(Value::as_str).map(str::to_owned),
        "date" => {
            let date = header.get("dateTime").and_then(Value::as_str);
            draft.date = date.and_then(|date| DateTime::parse_from_rfc3339(date).ok()).map(SystemTime::from);
        }
        "message-id" => draft.message_id = ids(header),
        _ => {
            let value = match header.get("value") {
                Some(Value::String(value)) => Some(value.clone()),
                _ => ids(header),
            };
            if let Some(value) = value {
                draft.headers.push((own_name.to_owned(), value));
            } else if header.get("addresses").is_some() {
                let list: Vec<String> = addresses()?.iter().map(ToString::to_string).collect();
                draft.headers.push((own_name.to_owned(), list.join(", ")));
            } else {
                let shown: String = own_name.chars().take(50).flat_map(char::escape_debug).collect();
                return Err(MailError::permanent(format!("its header {shown} is of a kind that is not known here")));
            }
        }
    }
    Ok(())
}

/// The ids of a header such as Message-ID, in angle brackets.
fn ids(header: &Value) -> Option<String> {
    let ids: Vec<String> = items(header.get("ids")?)
        .into_iter()
        .filter_map(Value::as_str)
        .map(|id| format!("<{}>", one_line(id).trim_matches(['<', '>'])))
        .collect();
    (!ids.is_empty()).then(|| ids.join(" "))
}

fn mailbox(value: &Value, what: &str) -> Result<Mailbox, MailError> {
    let text = |name| value.get(name).and_then(Value::as_str);
    let address = text("address").ok_or_else(|| MailError::permanent(format!("{what}: an address is missing")))?;
    named(address, text("name").unwrap_or_default(), what)
}

fn read_envelope(value: &Value) -> Result<(lettre::Address, Vec<lettre::Address>), MailError> {
    let sender = value.get("sender").ok_or_else(|| MailError::permanent("the envelope has no sender"))?;
    let recipients = items(value.get("recipients").unwrap_or(&Value::Null));
    let recipients = recipients.into_iter().map(|address| Ok(mailbox(address, "recipient")?.email));
    Ok((mailbox(sender, "sender")?.email, recipients.collect::<Result<_, MailError>>()?))
}

/// An attachment: as Symfony 5.4 has it, or a `DataPart`.
fn read_attachment(value: &Value) -> Result<Attachment, MailError> {
    let part = value.get("part").filter(|part| part.is_object()).unwrap_or(value);
    let parent = part.get("_parent").unwrap_or(part);
    let text = |of: &Map<String, Value>, name: &str| of.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(part), Some(parent)) = (part.as_object(), parent.as_object()) else {
        return Err(MailError::permanent("an attachment is of a kind that is not known here"));
    };
    let body = parent.get("body");
    let path = text(part, "path").or_else(|| body.and_then(|body| text(body.as_object()?, "path")));
    let content = match (body.and_then(Value::as_str), &path) {
        (Some(body), _) => Source::Here(bytes(body)),
        (None, Some(path)) => Source::File(path.clone()),
        (None, None) => return Err(MailError::permanent("an attachment has no content")),
    };
    let subtype = text(parent, "subtype");
    let by_parts = text(part, "mediaType").zip(subtype).map(|(kind, subtype)| format!("{kind}/{subtype}"));
    let content_type = text(part, "content-type").or(by_parts).unwrap_or_else(|| "application/octet-stream".to_owned());
    let name = text(part, "name").or_else(|| text(parent, "name")).or_else(|| text(part, "filename"));
    let is_inline = part.get("inline").and_then(Value::as_bool).unwrap_or(false)
        || text(parent, "disposition").is_some_and(|disposition| disposition == "inline");
    let content_id = text(part, "cid").map(|id| one_line(&id)).filter(|id| !id.is_empty());
    let name = name.unwrap_or_else(|| path.as_deref().map(file_name).unwrap_or_default());
    Ok(Attachment { name, content_type, content, is_inline, content_id })
}
