//! Sending: to the stream, or, for later, to the set of delayed messages.

use std::time::Duration;

use async_trait::async_trait;

use super::super::{MessageId, Sender, Sent, TransportError};
use super::ids::{delayed_id, due, new_uniqid};
use super::{Redis, entry};
use crate::message::Encoded;

#[async_trait]
impl Sender for Redis {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let action = "sending";
        let queued = |id| Ok(Sent::Queued { transport: self.name.clone(), id, reason: None });
        if delay.is_zero() {
            let mut add = redis::cmd("XADD");
            add.arg(&self.queue.stream);
            if !self.queue.auto_setup {
                add.arg("NOMKSTREAM");
            }
            if let Some(most) = self.queue.stream_max_entries {
                add.arg("MAXLEN").arg("~").arg(most);
            }
            add.arg("*").arg("message").arg(self.entry(message)?);
            let id: Result<Option<String>, _> =
                self.connection.run(async |connection| add.query_async(connection).await).await;
            let id = id.map_err(|error| self.error(action, error))?;
            self.connection.changed(&self.queue.stream);
            return queued(MessageId(id.ok_or_else(|| self.not_set_up())?));
        }
        let (due, uniqid) = (due(delay), new_uniqid());
        let member = entry::member(&self.name, message, &uniqid)?;
        if !self.queue.auto_setup {
            let exists = redis::cmd("EXISTS").arg(&self.queue.stream).clone();
            let exists = self.connection.run(async |connection| exists.query_async(connection).await).await;
            if !exists.map_err(|error| self.error(action, error))? {
                return Err(self.not_set_up());
            }
        }
        let add = redis::cmd("ZADD").arg(&self.delayed).arg("NX").arg(due).arg(member).clone();
        self.connection
            .run(async |connection| add.exec_async(connection).await)
            .await
            .map_err(|error| self.error(action, error))?;
        self.connection.changed(&self.queue.stream);
        queued(delayed_id(due, &uniqid))
    }
}
