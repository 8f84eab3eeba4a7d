//! Sends mail: Symfony's `SendEmailMessage`, and [`Mail`] for messages that do not come from PHP.
//!
//! `mailer` in the configuration says how, and then both have a handler. What is in a message becomes a `Draft`, the
//! draft becomes MIME, and that goes to a server by SMTP or to the program `sendmail`.

mod address;
mod attachment;
mod draft;
mod error;
mod mailer;
mod sendmail;
mod smtp;
mod symfony;

pub(crate) use mailer::Mailer;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::handler::{Handler, HandlerContext, HandlerError};
use crate::message::Message;

/// The type of Symfony's messages that hold a mail.
pub(crate) const SYMFONY_MAIL: &str = r"Symfony\Component\Mailer\Messenger\SendEmailMessage";

/// A mail to be sent. With `mailer` in the configuration there is a handler for it.
///
/// Addresses are written `ada@example.com` or `Ada Lovelace <ada@example.com>`. In JSON, one address need not be a list.
///
/// ```
/// use minutely::mail::Mail;
///
/// let mail = Mail {
///     to: vec!["Ada Lovelace <ada@example.com>".into()],
///     subject: "Your order".into(),
///     text: Some("Thank you.".into()),
///     ..Mail::default()
/// };
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mail {
    /// The sender. Default: `mailer.from` of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The recipients.
    #[serde(deserialize_with = "one_or_more")]
    pub to: Vec<String>,
    /// Who gets a copy.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<String>,
    /// Who gets a copy without being named in it.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<String>,
    /// Where answers go, if not to the sender.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub reply_to: Vec<String>,
    /// The subject.
    pub subject: String,
    /// The text. A mail with text and HTML has both, and the reader's program chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The text as HTML. `<img src="cid:NAME">` shows the attachment of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Files that go with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<MailAttachment>,
}

/// A file that goes with a [`Mail`]: one of `text`, `base64` and `path`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MailAttachment {
    /// Its name, for the reader. Default: that of the file.
    pub name: String,
    /// Its MIME type. Default: `application/octet-stream`, or `text/plain` for `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its content, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its content, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The file. It is read when the mail is sent, and must be in one of the folders of `mailer.files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl Message for Mail {
    const TYPE: &'static str = r"Minutely\Mail";
}

/// A list of text, or one. What is wrong with it is said of the value at its place, which an untagged enum does not know.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMore;
    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address, or a list of addresses")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(OneOrMore)
}

/// Sends the mail in a message.
pub(crate) struct MailHandler {
    pub(crate) mailer: Arc<Mailer>,
    /// Its name: the message's type is the last part.
    pub(crate) name: &'static str,
}

impl MailHandler {
    /// One for each type of message, with that type.
    pub(crate) fn all(mailer: &Arc<Mailer>) -> [(&'static str, Arc<dyn Handler>); 2] {
        [(SYMFONY_MAIL, "mailer"), (Mail::TYPE, "mailer (Mail)")]
            .map(|(of, name)| (of, Arc::new(Self { mailer: Arc::clone(mailer), name }) as Arc<dyn Handler>))
    }
}

#[async_trait]
impl Handler for MailHandler {
    fn name(&self) -> &str {
        self.name
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let envelope = context.envelope();
        let prepared = if envelope.message_type() == Mail::TYPE {
            self.mailer.prepare_own(envelope.message::<Mail>().map_err(HandlerError::unrecoverable)?).await
        } else {
            self.mailer.prepare_symfony(envelope.body()).await
        };
        self.mailer.send(&prepared?).await?;
        Ok(Value::Null)
    }
}
