//! Changes existing messages: acknowledges, releases, retries and moves them.

use super::super::{MessageId, TransportError};
use super::ids::is_entry;
use super::taking::MAX_RECEIVED;
use super::{Redis, scripts};
use crate::connection::redis::RedisFailure;

impl Redis {
    /// Executes a script for some messages. Anything that is not the id of an entry is skipped.
    pub(super) async fn change(
        &self,
        action: &'static str,
        script: &redis::Script,
        arguments: &[&str],
        ids: &[MessageId],
    ) -> Result<(), TransportError> {
        let ids: Vec<&str> = ids.iter().filter(|id| is_entry(id)).map(|id| id.0.as_str()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut change = self.invocation(script);
        change.arg(arguments).arg(ids);
        match self.connection.run(async |connection| change.invoke_async(connection).await).await {
            Ok(()) => Ok(()),
            // A queue that does not exist has no messages.
            Err(error) if error.is_missing() && self.queue.auto_setup => Ok(()),
            Err(error) => Err(self.error(action, error)),
        }
    }

    /// Acknowledges messages, and deletes them if `delete` is set.
    pub(super) async fn finish(
        &self,
        action: &'static str,
        ids: &[MessageId],
        delete: bool,
    ) -> Result<(), TransportError> {
        let (entries, others): (Vec<&MessageId>, Vec<&MessageId>) = ids.iter().partition(|id| is_entry(id));
        let members = self.members(action, others).await?;
        if entries.is_empty() && members.is_empty() {
            return Ok(());
        }
        let entries: Vec<&str> = entries.into_iter().map(|id| id.0.as_str()).collect();
        let finish = async {
            self.finish_entries(&entries, delete).await?;
            if members.is_empty() {
                return Ok(());
            }
            let mut remove = self.invocation(&scripts::REMOVE_DELAYED);
            for (member, due) in &members {
                remove.arg(member).arg(due);
            }
            self.connection.run(async |connection| remove.invoke_async(connection).await).await
        };
        finish.await.map_err(|error| self.error(action, error))
    }

    pub(super) async fn finish_entries(&self, ids: &[&str], delete: bool) -> Result<(), RedisFailure> {
        // Lua limits the number of arguments.
        for ids in ids.chunks(MAX_RECEIVED) {
            let mut finish = self.invocation(&scripts::FINISH);
            finish.arg(&self.queue.group).arg(u8::from(delete)).arg(ids);
            self.connection.run(async |connection| finish.invoke_async::<()>(connection).await).await?;
        }
        Ok(())
    }

    /// Replaces a message by another one, in this queue or another, in one step. Returns the new id; `None` if the
    /// original is gone, or another consumer has it.
    pub(super) async fn put(
        &self,
        action: &'static str,
        id: &MessageId,
        destination: &str,
        content: &[u8],
        due: Option<u64>,
        bound: &str,
    ) -> Result<Option<String>, TransportError> {
        let mut put = self.invocation(&scripts::MOVE);
        put.key(destination).arg(&self.queue.group);
        if is_entry(id) {
            put.arg(&id.0).arg("");
        } else {
            let Some((member, due)) = self.members(action, vec![id]).await?.pop() else { return Ok(None) };
            put.arg(member).arg(due);
        }
        put.arg(u8::from(self.queue.delete_after_reject)).arg(content);
        put.arg(due.map_or(String::new(), |due| due.to_string())).arg(bound).arg(&self.consumer);
        let put = self.connection.run(async |connection| put.invoke_async(connection).await).await;
        let id = put.map_err(|error| self.error(action, error))?;
        self.connection.changed(destination);
        Ok(id)
    }
}
