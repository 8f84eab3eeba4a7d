//! Files that go with a mail.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;

use super::error::MailError;

/// How binary data is written in JSON.
const DATA_URI: &str = "data:application/octet-stream;base64,";

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attachment {
    pub(super) name: String,
    pub(super) content_type: String,
    pub(super) content: Source,
    /// It is shown within the HTML.
    pub(super) is_inline: bool,
    /// The name that the HTML has for it, if not its own.
    pub(super) content_id: Option<String>,
}

/// Where an attachment's content is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    Here(Vec<u8>),
    /// In the file of this path.
    File(String),
}

/// The folders that files may be read from.
pub(super) struct Files {
    /// Relative paths start there.
    pub(super) dir: PathBuf,
    pub(super) allowed: Vec<PathBuf>,
    /// How large the attachments of a mail may be together, in bytes.
    pub(super) max_attachments: u64,
}

impl Files {
    /// Reads the files that go with a mail. Blocks until they are read.
    pub(super) fn load(&self, attachments: &mut [Attachment]) -> Result<(), MailError> {
        let here = attachments.iter().map(|attachment| match &attachment.content {
            Source::Here(content) => content.len() as u64,
            Source::File(_) => 0,
        });
        // What is in the message is counted first, as it is there already.
        let mut left = self.max_attachments.checked_sub(here.sum()).ok_or_else(|| self.too_large())?;
        for attachment in attachments {
            if let Source::File(path) = &attachment.content {
                let content = self.read(path, left)?;
                left -= content.len() as u64;
                attachment.content = Source::Here(content);
            }
        }
        Ok(())
    }

    fn too_large(&self) -> MailError {
        let size = self.max_attachments;
        let size = if size.is_multiple_of(1 << 20) { format!("{} MiB", size >> 20) } else { format!("{size} bytes") };
        MailError::permanent(format!("its attachments are larger than {size} together (`mailer.max_attachments`)"))
    }

    /// Reads a file, if it is in one of the folders and has at most so many bytes.
    fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, MailError> {
        let shown = path.chars().take(200).flat_map(char::escape_debug).collect::<String>();
        let failed =
            |error: std::io::Error| MailError::temporary(format!("the attachment {shown} cannot be read: {error}"));
        // A symbolic link must not lead out of the folders.
        let file = self.dir.join(path).canonicalize().map_err(failed)?;
        // Files such as .env.local hold what nobody is to get by mail.
        let is_hidden = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
        let is_allowed = |folder: &PathBuf| {
            let folder = folder.canonicalize().ok();
            let within = folder.as_deref().and_then(|folder| file.strip_prefix(folder).ok());
            within.is_some_and(|within| !within.components().any(is_hidden))
        };
        if !self.allowed.iter().any(is_allowed) {
            let why = format!(
                "the attachment {shown} is in none of the folders that attachments may come from, or hidden: see `mailer.files`"
            );
            return Err(MailError::permanent(why));
        }
        // A pipe would keep the worker waiting.
        if !file.is_file() {
            return Err(MailError::permanent(format!("the attachment {shown} is not a file")));
        }
        let file = File::open(&file).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > max {
            return Err(self.too_large());
        }
        // It may grow meanwhile.
        let mut content = Vec::new();
        file.take(max.saturating_add(1)).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > max { Err(self.too_large()) } else { Ok(content) }
    }
}

/// Text from JSON as the bytes that it stands for.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    let decoded = text.strip_prefix(DATA_URI).and_then(|data| BASE64.decode(data).ok());
    decoded.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The last part of a path, for the reader of the mail.
pub(super) fn file_name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
