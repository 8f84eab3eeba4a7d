//! Messages as rows: written as arguments, read from whatever stands there.

use std::str;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::super::super::{Damaged, MessageId, Receipt, Received};
use crate::connection::sql::sqlite::Statement;
use crate::message::{Encoded, UndecodableError, headers_from_json, headers_to_json};

/// A message's row. Texts are read as bytes, because nothing keeps another program from writing others than UTF-8.
pub(super) struct ReadRow {
    pub(super) id: i64,
    pub(super) available_at: Vec<u8>,
    body: Bytes,
    headers: Bytes,
}

impl ReadRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let bytes = |column| row.try_get::<Option<Vec<u8>>, _>(column).map(Option::unwrap_or_default);
        Ok(Self {
            id: row.try_get("id")?,
            available_at: bytes("available_at")?,
            body: bytes("body")?.into(),
            headers: bytes("headers")?.into(),
        })
    }

    pub(super) fn received(self, receipt: Receipt) -> Received {
        let headers = str::from_utf8(&self.headers)
            .map_err(|error| UndecodableError::Headers(format!("they are no UTF-8 text: {error}")))
            .and_then(headers_from_json);
        let message = match headers {
            Ok(headers) => Ok(Encoded { body: self.body, headers }),
            Err(error) => Err(Damaged { body: self.body, headers: self.headers, error }),
        };
        Received { id: MessageId(self.id.to_string()), receipt, message }
    }
}

/// Adds body and headers: `?1`, `?2`. A body that is no text is kept as the bytes it is.
pub(super) fn bind_message(statement: Statement, message: &Encoded) -> Statement {
    let statement = match str::from_utf8(&message.body) {
        Ok(text) => statement.bind(text),
        Err(_) => statement.bind(message.body.as_ref()),
    };
    statement.bind(headers_to_json(&message.headers))
}

/// The id in the first row.
pub(super) fn first_id(rows: &[SqliteRow]) -> Result<MessageId, sqlx::Error> {
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(MessageId(row.try_get::<i64, _>("id")?.to_string()))
}
