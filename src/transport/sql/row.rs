//! Messages as rows of a table: how they are written, and how any content of the columns is read.

use std::str;

use bytes::Bytes;

use super::super::{Damaged, Listed, MessageId, Receipt, Received};
use super::time_from_text;
use crate::connection::sql::{Row, Value};
use crate::message::{Encoded, UndecodableError, headers_from_json};

/// The columns `body` and `headers` of a message.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) body: Value,
    pub(crate) headers: String,
}

impl Content {
    /// About how much it is to send, in bytes.
    pub(super) fn size(&self) -> usize {
        self.body.size() + self.headers.len()
    }
}

/// The most rows of one statement that has an argument for each of their columns: below all limits of servers.
const MAX_ROWS: usize = 256;

/// Statements for all of these rows, each for some of them: a power of two, so that a connection prepares and caches only
/// few.
pub(super) fn in_few_widths<R, S>(mut rows: Vec<R>, statement: impl Fn(Vec<R>) -> S) -> Vec<S> {
    let mut statements = Vec::new();
    while !rows.is_empty() {
        let width = 1 << rows.len().min(MAX_ROWS).ilog2();
        let rest = rows.split_off(width);
        statements.push(statement(std::mem::replace(&mut rows, rest)));
    }
    statements
}

/// The body as text, or why it is not text.
pub(super) fn text(body: &[u8]) -> Result<&str, &'static str> {
    str::from_utf8(body).map_err(|_| "is not UTF-8")
}

/// A message's row: id, `available_at`, body, headers.
pub(super) struct Stored {
    id: i64,
    available_at: Vec<u8>,
    body: Bytes,
    headers: Bytes,
}

impl Stored {
    pub(super) fn read(mut row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.number(0)?,
            available_at: row.take_text(1)?,
            body: row.take_text(2)?.into(),
            headers: row.take_text(3)?.into(),
        })
    }

    /// Oldest first, and within a second in the order in which they were sent.
    pub(super) fn order(&self) -> (&[u8], i64) {
        (&self.available_at, self.id)
    }

    pub(super) fn received(self, receipt: Receipt) -> Received {
        let headers = str::from_utf8(&self.headers)
            .map_err(|error| UndecodableError::Headers(format!("they are not UTF-8 text: {error}")))
            .and_then(headers_from_json);
        let message = match headers {
            Ok(headers) => Ok(Encoded { body: self.body, headers }),
            Err(error) => Err(Damaged { body: self.body, headers: self.headers, error }),
        };
        Received { id: MessageId(self.id.to_string()), receipt, message }
    }

    pub(super) fn listed(self, in_flight: bool) -> Listed {
        let available_at = str::from_utf8(&self.available_at).ok().and_then(time_from_text);
        Listed { available_at, in_flight, received: self.received(Receipt::default()) }
    }
}
