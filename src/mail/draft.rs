//! A mail before it is MIME, and how it becomes that.

use std::fmt::Write;
use std::time::SystemTime;

use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment as AttachedPart, Body, Mailbox, MultiPart, SinglePart};

use super::address::one_line;
use super::attachment::{Attachment, Files, Source};
use super::error::MailError;

/// Headers that follow from the rest of a mail.
const OWN_HEADERS: [&str; 6] =
    ["mime-version", "content-type", "content-transfer-encoding", "content-disposition", "content-id", "x-transport"];

/// A mail ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    /// Who sends it, and to whom. The server goes by this.
    pub(super) envelope: Envelope,
    /// Headers and content.
    pub(super) content: Vec<u8>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Draft {
    pub(super) from: Vec<Mailbox>,
    pub(super) sender: Option<Mailbox>,
    pub(super) to: Vec<Mailbox>,
    pub(super) cc: Vec<Mailbox>,
    pub(super) bcc: Vec<Mailbox>,
    pub(super) reply_to: Vec<Mailbox>,
    pub(super) return_path: Option<Address>,
    pub(super) subject: Option<String>,
    pub(super) date: Option<SystemTime>,
    /// With its angle brackets.
    pub(super) message_id: Option<String>,
    pub(super) text: Option<Content>,
    pub(super) html: Option<Content>,
    pub(super) attachments: Vec<Attachment>,
    /// Further headers.
    pub(super) headers: Vec<(String, String)>,
    /// The envelope, if it does not follow from the headers.
    pub(super) envelope: Option<(Address, Vec<Address>)>,
}

/// Text or HTML.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) charset: String,
}

/// A part of a mail.
enum Part {
    Single(SinglePart),
    Multi(MultiPart),
}

impl Draft {
    pub(super) fn has_files(&self) -> bool {
        self.attachments.iter().any(|attachment| matches!(attachment.content, Source::File(_)))
    }

    /// Blocks while it reads files.
    pub(super) fn prepare(mut self, files: &Files) -> Result<Prepared, MailError> {
        files.load(&mut self.attachments)?;
        let envelope = self.envelope()?;
        let mut builder = lettre::Message::builder().envelope(envelope.clone());
        let domain = self.from.first().map_or("localhost", |from| from.email.domain()).to_owned();
        builder = self.from.iter().cloned().fold(builder, |builder, from| builder.from(from));
        builder = self.sender.iter().cloned().fold(builder, |builder, sender| builder.sender(sender));
        builder = self.reply_to.iter().cloned().fold(builder, |builder, to| builder.reply_to(to));
        builder = self.to.iter().cloned().fold(builder, |builder, to| builder.to(to));
        builder = self.cc.iter().cloned().fold(builder, |builder, to| builder.cc(to));
        builder = builder.date(self.date.unwrap_or_else(SystemTime::now));
        builder = builder.message_id(Some(self.message_id.clone().unwrap_or_else(|| new_message_id(&domain))));
        if let Some(subject) = &self.subject {
            builder = builder.subject(one_line(subject));
        }
        for (name, value) in &self.headers {
            if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            let name = HeaderName::new_from_ascii(name.clone())
                .map_err(|_| MailError::permanent("the name of a header has characters that it cannot have"))?;
            builder = builder.raw_header(HeaderValue::new(name, one_line(value)));
        }
        let message = match self.into_content(&domain)? {
            Part::Single(part) => builder.singlepart(part),
            Part::Multi(part) => builder.multipart(part),
        };
        let message = message.map_err(|error| MailError::permanent(format!("it cannot be written: {error}")))?;
        Ok(Prepared { envelope, content: message.formatted() })
    }

    /// As Symfony makes it from the headers.
    fn envelope(&self) -> Result<Envelope, MailError> {
        let (from, to) = match &self.envelope {
            Some((from, to)) => (from.clone(), to.clone()),
            None => {
                let sender = self.sender.as_ref().map(|sender| &sender.email).or(self.return_path.as_ref());
                let from = sender.or_else(|| self.from.first().map(|from| &from.email));
                let from =
                    from.ok_or_else(|| MailError::permanent("it has no sender: neither `from`, nor `mailer.from`"))?;
                let to = [&self.to, &self.cc, &self.bcc].into_iter().flatten().map(|to| to.email.clone());
                (from.clone(), to.collect())
            }
        };
        if to.is_empty() {
            return Err(MailError::permanent("it has no recipient"));
        }
        Envelope::new(Some(from), to).map_err(MailError::permanent)
    }

    fn into_content(self, domain: &str) -> Result<Part, MailError> {
        let mut html = self.html;
        let mut within = Vec::new();
        let mut beside = Vec::new();
        for attachment in self.attachments {
            let reference = format!("cid:{}", attachment.name);
            let is_shown = html.as_ref().is_some_and(|html| !attachment.name.is_empty() && html.has(&reference));
            if html.is_none() || !(attachment.is_inline || is_shown) {
                let part = AttachedPart::new(one_line(&attachment.name));
                beside.push(part.body(encoded(attachment.content)?, content_type(&attachment.content_type)?));
                continue;
            }
            let id = attachment.content_id.clone().unwrap_or_else(|| random(domain));
            if let Some(html) = html.as_mut().filter(|_| is_shown) {
                html.replace(&reference, &format!("cid:{id}"));
            }
            let part = AttachedPart::new_inline_with_name(id, one_line(&attachment.name));
            within.push(part.body(encoded(attachment.content)?, content_type(&attachment.content_type)?));
        }
        let text = self.text.as_ref().map(|text| text.part("text/plain")).transpose()?;
        let html = html.map(|html| html.part("text/html")).transpose()?.map(|html| {
            let mut within = within.into_iter();
            match within.next() {
                None => Part::Single(html),
                Some(first) => {
                    let related = MultiPart::related().singlepart(html).singlepart(first);
                    Part::Multi(within.fold(related, MultiPart::singlepart))
                }
            }
        });
        let body = match (text, html) {
            (Some(text), Some(html)) => {
                let alternative = MultiPart::alternative().singlepart(text);
                Some(Part::Multi(match html {
                    Part::Single(html) => alternative.singlepart(html),
                    Part::Multi(html) => alternative.multipart(html),
                }))
            }
            (Some(text), None) => Some(Part::Single(text)),
            (None, html) => html,
        };
        let mut beside = beside.into_iter();
        let Some(first) = beside.next() else {
            return body.ok_or_else(|| MailError::permanent("it has neither text nor HTML nor attachments"));
        };
        let mixed = match body {
            Some(Part::Single(body)) => MultiPart::mixed().singlepart(body).singlepart(first),
            Some(Part::Multi(body)) => MultiPart::mixed().multipart(body).singlepart(first),
            None => MultiPart::mixed().singlepart(first),
        };
        Ok(Part::Multi(beside.fold(mixed, MultiPart::singlepart)))
    }
}

impl Content {
    pub(super) fn utf8(text: impl Into<String>) -> Self {
        Self { bytes: text.into().into_bytes(), charset: "utf-8".to_owned() }
    }

    fn has(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    fn replace(&mut self, text: &str, with: &str) {
        // What is not UTF-8 is in another charset, where an attachment is still found by its ASCII name.
        match std::str::from_utf8(&self.bytes) {
            Ok(html) => self.bytes = html.replace(text, with).into_bytes(),
            Err(_) => {
                let mut replaced = Vec::with_capacity(self.bytes.len());
                let mut rest = &self.bytes[..];
                while !rest.is_empty() {
                    if let Some(after) = rest.strip_prefix(text.as_bytes()) {
                        replaced.extend_from_slice(with.as_bytes());
                        rest = after;
                    } else {
                        replaced.push(rest[0]);
                        rest = &rest[1..];
                    }
                }
                self.bytes = replaced;
            }
        }
    }

    fn part(&self, kind: &str) -> Result<SinglePart, MailError> {
        let part = SinglePart::builder().header(content_type(&format!("{kind}; charset={}", self.charset))?);
        Ok(match String::from_utf8(self.bytes.clone()) {
            // A line end that is no CRLF is not allowed, and some servers take a CR for one.
            Ok(text) => part.body(text.replace("\r\n", "\n").replace('\r', "\n")),
            Err(other) => part.body(other.into_bytes()),
        })
    }
}

/// In base64, byte for byte: as text, servers might change its line ends.
fn encoded(content: Source) -> Result<Body, MailError> {
    match content {
        Source::Here(content) => {
            Ok(Body::new_with_encoding(content, ContentTransferEncoding::Base64).unwrap_or_else(Body::new))
        }
        Source::File(path) => Err(MailError::permanent(format!("the file {path:?} has not been read"))),
    }
}

fn content_type(text: &str) -> Result<ContentType, MailError> {
    let shown = text.chars().take(100).flat_map(char::escape_debug).collect::<String>();
    ContentType::parse(text).map_err(|_| MailError::permanent(format!("\"{shown}\" is no MIME type")))
}

fn new_message_id(domain: &str) -> String {
    format!("<{}>", random(domain))
}

/// A name that nothing else has.
fn random(domain: &str) -> String {
    let mut name = String::new();
    for _ in 0..2 {
        let _ = write!(name, "{:016x}", fastrand::u64(..));
    }
    format!("{name}@{domain}")
}
