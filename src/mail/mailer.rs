//! The mailer of an application: what `mailer` in the configuration says.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use lettre::address::Envelope;
use lettre::message::Mailbox;

use super::address::mailbox;
use super::attachment::{Attachment, Files, file_name};
use super::draft::{Content, Draft, Prepared};
use super::error::MailError;
use super::sendmail::Sendmail;
use super::smtp::Smtp;
use super::symfony::{self, Email};
use super::{Mail, MailAttachment};
use crate::config::{Dsn, MailerConfig, Problem};

/// Sends mail.
pub(crate) struct Mailer {
    way: Way,
    from: Option<Mailbox>,
    files: Files,
}

/// How mail leaves this host.
enum Way {
    Smtp(Box<Smtp>),
    Sendmail(Sendmail),
    /// It does not.
    Null,
}

impl Mailer {
    /// The mailer of a configuration. Opens nothing.
    pub(crate) fn new(config: &MailerConfig, dir: &Path) -> Result<Arc<Self>, Vec<Problem>> {
        let path = config.path.as_str();
        let dsn = Dsn::parse(&config.dsn.0).map_err(|error| vec![Problem::error(path, error.to_string())])?;
        let way = match dsn.scheme() {
            "smtp" | "smtps" => Way::Smtp(Box::new(Smtp::new(&dsn, path, config.timeout)?)),
            "sendmail" | "native" => Way::Sendmail(Sendmail::new(&dsn, path, dir.to_owned(), config.timeout)?),
            "null" => Way::Null,
            other => {
                let known = ["smtp", "smtps", "sendmail", "native", "null"];
                return Err(vec![Problem::unknown(path, "scheme", other, known)]);
            }
        };
        let from = config.from.as_deref().map(|from| mailbox(from, "from")).transpose();
        let from = from.map_err(|error| vec![Problem::error(path, error.to_string())])?;
        let allowed = config.files.iter().map(|folder| dir.join(folder)).collect();
        Ok(Arc::new(Self { way, from, files: Files { dir: dir.to_owned(), allowed } }))
    }

    pub(super) fn prepare_own(&self, mail: &Mail) -> Result<Prepared, MailError> {
        let list = |texts: &[String], what: &str| -> Result<Vec<Mailbox>, MailError> {
            texts.iter().map(|text| mailbox(text, what)).collect()
        };
        let from = mail.from.as_deref().map(|from| mailbox(from, "from")).transpose()?;
        self.finish(Draft {
            from: from.into_iter().collect(),
            to: list(&mail.to, "to")?,
            cc: list(&mail.cc, "cc")?,
            bcc: list(&mail.bcc, "bcc")?,
            reply_to: list(&mail.reply_to, "reply_to")?,
            subject: Some(mail.subject.clone()),
            text: mail.text.as_ref().map(Content::utf8),
            html: mail.html.as_ref().map(Content::utf8),
            attachments: mail.attachments.iter().map(|file| self.attachment(file)).collect::<Result<_, _>>()?,
            ..Draft::default()
        })
    }

    pub(super) fn prepare_symfony(&self, body: &[u8]) -> Result<Prepared, MailError> {
        match symfony::read(body, &self.files)? {
            Email::Draft(draft) => self.finish(*draft),
            Email::Raw(content, from, to) => {
                let envelope = Envelope::new(Some(from), to).map_err(MailError::permanent)?;
                Ok(Prepared { envelope, content })
            }
        }
    }

    fn finish(&self, mut draft: Draft) -> Result<Prepared, MailError> {
        if draft.from.is_empty() {
            draft.from.extend(self.from.clone());
        }
        if draft.from.is_empty() {
            return Err(MailError::permanent("it has no sender: neither `from`, nor `mailer.from`"));
        }
        draft.prepare()
    }

    fn attachment(&self, file: &MailAttachment) -> Result<Attachment, MailError> {
        let MailAttachment { name, content_type, text, base64, path } = file;
        let (content, default_type) = match (text, base64, path) {
            (Some(text), None, None) => (text.clone().into_bytes(), "text/plain; charset=utf-8"),
            (None, Some(data), None) => {
                let decoded = BASE64.decode(data.trim());
                let decoded =
                    decoded.map_err(|_| MailError::permanent(format!("the attachment {name:?} is not base64")))?;
                (decoded, "application/octet-stream")
            }
            (None, None, Some(path)) => (self.files.read(path)?, "application/octet-stream"),
            _ => return Err(MailError::permanent("an attachment has one of `text`, `base64` and `path`")),
        };
        let of_file = || path.as_deref().map(file_name).unwrap_or_default();
        let name = if name.is_empty() { of_file() } else { name.clone() };
        let content_type = content_type.clone().unwrap_or_else(|| default_type.to_owned());
        Ok(Attachment { name, content_type, content, is_inline: false, content_id: None })
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), MailError> {
        match &self.way {
            Way::Smtp(smtp) => smtp.send(mail).await,
            Way::Sendmail(sendmail) => sendmail.send(mail).await,
            Way::Null => Ok(()),
        }
    }
}
