//! Reads `mailer`: how mail is sent.

use std::time::Duration;

use super::Secret;
use super::consume_options::parse_size;
use super::definition::{Definition, Kind, Setting};
use super::section::{Node, Reader};

/// The key `mailer`.
pub(super) const MAILER: Definition = Definition::new(
    "mailer",
    Kind::Either(&[Kind::Text("DSN"), Kind::Section(KEYS)]),
    "how mail is sent; with it, Symfony's `SendEmailMessage` and `Minutely\\Mail` have a handler",
);
const KEYS: &[Definition] = &[DSN, FROM.definition, TIMEOUT.definition, FILES, MAX_ATTACHMENTS];
const DSN: Definition = Definition::new(
    "dsn",
    Kind::Text("DSN"),
    "the mail server, or the program `sendmail`, as in Symfony's `MAILER_DSN`",
)
.required()
.example("smtp://user:password@localhost:25");
const FROM: Setting<Option<String>> =
    Setting::text("from", "", "the sender of mails that name none: `Shop <shop@example.com>`")
        .of_kind("address")
        .optional();
const TIMEOUT: Setting<Duration> =
    Setting::duration("timeout", "60s", "how long sending one mail may take, from the connection on");
const FILES: Definition = Definition::new(
    "files",
    Kind::OneOrMore(&Kind::Text("path")),
    "the folders that attachments given as a path may come from",
)
.or("the folder of the configuration");
const MAX_ATTACHMENTS: Definition =
    Definition::new("max_attachments", Kind::Text("size"), "how large the attachments of a mail may be together")
        .or("64M")
        .example("25M");
/// The default of that, in bytes.
const DEFAULT_MAX_ATTACHMENTS: u64 = 64 << 20;

/// How mail is sent.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "mail"), allow(dead_code, reason = "nothing sends mail"))]
pub(crate) struct MailerConfig {
    /// Its place in the file.
    pub(crate) path: String,
    /// May contain a password.
    pub(crate) dsn: Secret,
    /// The sender of mails that name none.
    pub(crate) from: Option<String>,
    /// How long sending one mail may take.
    pub(crate) timeout: Duration,
    /// The folders that attachments may come from.
    pub(crate) files: Vec<String>,
    /// How large the attachments of a mail may be together, in bytes.
    pub(crate) max_attachments: u64,
}

pub(super) fn read_mailer(node: Node, reader: &mut Reader) -> Option<MailerConfig> {
    let expected = "a DSN such as smtp://user:password@localhost:25, or a mapping with `dsn`";
    let path = node.path.clone();
    if !cfg!(feature = "mail") {
        reader.error(&path, "this build cannot send mail: it was made without the cargo feature `mail`");
        return None;
    }
    let mailer = |path: String, dsn: String| MailerConfig {
        path,
        dsn: Secret(dsn),
        from: None,
        timeout: TIMEOUT.default_value(),
        files: vec![".".to_owned()],
        max_attachments: DEFAULT_MAX_ATTACHMENTS,
    };
    if !node.is_mapping() {
        return node.filled_text(expected, reader).map(|dsn| mailer(path, dsn));
    }
    let mut section = node.section(KEYS, expected, reader)?;
    let from = section.get(&FROM, reader);
    let timeout = section.take("timeout").and_then(|node| {
        let timeout: Duration = node.read(&TIMEOUT.definition, reader)?;
        if timeout.is_zero() {
            reader.error(&node.path, "must be more than 0");
            return None;
        }
        Some(timeout)
    });
    let files = section.take("files").map(|node| {
        let items = node.items_or_one("a list of folders", reader).unwrap_or_default();
        items.iter().filter_map(|node| node.filled_text("a folder", reader)).collect()
    });
    let max_attachments = section.take("max_attachments").and_then(|node| {
        let text = node.text("a size, such as 25M", reader)?;
        parse_size(&text).map_err(|why| reader.error(&node.path, why)).ok()
    });
    let dsn = section.require(&DSN, reader)?;
    let text = dsn.filled_text("a DSN", reader)?;
    let mailer = mailer(dsn.path, text);
    Some(MailerConfig {
        from,
        timeout: timeout.unwrap_or(mailer.timeout),
        files: files.unwrap_or_else(|| mailer.files.clone()),
        max_attachments: max_attachments.unwrap_or(mailer.max_attachments),
        ..mailer
    })
}
