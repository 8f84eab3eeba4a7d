//! The mailer of an application: what `mailer` in the configuration says.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use lettre::address::Envelope;
use lettre::message::Mailbox;

use super::address::mailbox;
use super::attachment::{Attachment, Files, Source, file_name};
use super::draft::{Content, Draft, Prepared};
use super::error::MailError;
use super::sendmail::Sendmail;
use super::smtp::Smtp;
use super::symfony::{self, Email};
use super::{Mail, MailAttachment};
use crate::config::{Dsn, MailerConfig, Problem};
use crate::handler::HandlerError;
use crate::threads;

/// Sends mail.
pub(crate) struct Mailer {
    way: Way,
    from: Option<Mailbox>,
    files: Arc<Files>,
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
    pub(crate) fn new(
        config: &MailerConfig,
        dir: &Path,
        warnings: &mut Vec<Problem>,
    ) -> Result<Arc<Self>, Vec<Problem>> {
        let path = config.path.as_str();
        let dsn = Dsn::parse(&config.dsn.0).map_err(|error| vec![Problem::error(path, error.to_string())])?;
        let way = match dsn.scheme() {
            "smtp" | "smtps" => Way::Smtp(Box::new(Smtp::new(&dsn, path, config.timeout, warnings)?)),
            "sendmail" | "native" => Way::Sendmail(Sendmail::new(&dsn, path, dir, config.timeout)?),
            "null" => Way::Null,
            other => {
                let known = ["smtp", "smtps", "sendmail", "native", "null"];
                return Err(vec![Problem::unknown(path, "scheme", other, known)]);
            }
        };
        let from = config.from.as_deref().map(|from| mailbox(from, "from")).transpose();
        let from = from.map_err(|error| vec![Problem::error(path, error.to_string())])?;
        let allowed = config.files.iter().map(|folder| dir.join(folder)).collect();
        let files = Files { dir: dir.to_owned(), allowed, max_attachments: config.max_attachments };
        Ok(Arc::new(Self { way, from, files: Arc::new(files) }))
    }

    pub(super) async fn prepare_own(&self, mail: Mail) -> Result<Prepared, MailError> {
        let list = |texts: &[String], what: &str| -> Result<Vec<Mailbox>, MailError> {
            texts.iter().enumerate().map(|(n, text)| mailbox(text, &format!("{what}[{n}]"))).collect()
        };
        let from = mail.from.as_deref().map(|from| mailbox(from, "from")).transpose()?;
        let attachments = mail.attachments.into_iter().enumerate();
        self.finish(Draft {
            from: from.into_iter().collect(),
            to: list(&mail.to, "to")?,
            cc: list(&mail.cc, "cc")?,
            bcc: list(&mail.bcc, "bcc")?,
            reply_to: list(&mail.reply_to, "reply_to")?,
            subject: Some(mail.subject),
            text: mail.text.map(Content::utf8),
            html: mail.html.map(Content::utf8),
            attachments: attachments
                .map(|(n, file)| {
                    attachment(file).map_err(|what| MailError::permanent(format!("attachments[{n}]: {what}")))
                })
                .collect::<Result<_, _>>()?,
            ..Draft::default()
        })
        .await
    }

    pub(super) async fn prepare_symfony(&self, body: &[u8]) -> Result<Prepared, MailError> {
        match symfony::read(body)? {
            Email::Draft(draft) => self.finish(*draft).await,
            Email::Raw(content, from, to) => {
                let envelope = Envelope::new(Some(from), to).map_err(MailError::permanent)?;
                Ok(Prepared { envelope, content })
            }
        }
    }

    async fn finish(&self, mut draft: Draft) -> Result<Prepared, MailError> {
        if draft.from.is_empty() {
            draft.from.extend(self.from.clone());
        }
        if draft.from.is_empty() {
            return Err(MailError::permanent("it has no sender: neither `from`, nor `mailer.from`"));
        }
        if !draft.has_files() {
            return draft.prepare(&self.files);
        }
        let files = Arc::clone(&self.files);
        let prepared = threads::run_on_pool(move || draft.prepare(&files)).await;
        prepared.map_err(|error| MailError::temporary(format!("its attachments cannot be read: {error}")))?
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), HandlerError> {
        match &self.way {
            Way::Smtp(smtp) => Ok(smtp.send(mail).await?),
            Way::Sendmail(sendmail) => sendmail.send(mail).await,
            Way::Null => Ok(()),
        }
    }
}

fn attachment(file: MailAttachment) -> Result<Attachment, &'static str> {
    let MailAttachment { name, content_type, text, base64, path } = file;
    let of_file = path.as_deref().map(file_name).unwrap_or_default();
    let (content, default_type) = match (text, base64, path) {
        (Some(text), None, None) => (Source::Here(text.into_bytes()), "text/plain; charset=utf-8"),
        (None, Some(data), None) => {
            let decoded = BASE64.decode(data.trim()).map_err(|_| "its `base64` is not base64")?;
            (Source::Here(decoded), "application/octet-stream")
        }
        (None, None, Some(path)) => (Source::File(path), "application/octet-stream"),
        _ => return Err("an attachment has one of `text`, `base64` and `path`"),
    };
    let name = if name.is_empty() { of_file } else { name };
    let content_type = content_type.unwrap_or_else(|| default_type.to_owned());
    Ok(Attachment { name, content_type, content, is_inline: false, content_id: None })
}
