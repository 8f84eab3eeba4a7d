//! Messages as rows of a server's table: what is written into the columns, and what is read from whatever stands there.

use std::str;

use bytes::Bytes;
use thiserror::Error;

use super::super::{Damaged, Listed, MessageId, Receipt, Received};
use super::{Dialect, time_from_text};
use crate::connection::sql::Row;
use crate::message::{Encoded, UndecodableError, headers_from_json, headers_to_json};

/// A message as the columns `body` and `headers` hold it.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) body: String,
    pub(crate) headers: String,
}

/// A body that a column of text cannot hold.
#[derive(Debug, Error)]
#[error("the body {0}, which a column of text cannot hold; what is JSON or base64 it can")]
pub(super) struct NotText(&'static str);

impl Content {
    pub(super) fn of<D: Dialect>(message: &Encoded) -> Result<Self, NotText> {
        let body = str::from_utf8(&message.body).map_err(|_| NotText("is not UTF-8"))?;
        match D::refuses(body) {
            Some(why) => Err(NotText(why)),
            None => Ok(Self { body: body.to_owned(), headers: headers_to_json(&message.headers) }),
        }
    }
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
            .map_err(|error| UndecodableError::Headers(format!("they are no UTF-8 text: {error}")))
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
