//! Receives messages: delayed ones that are due, abandoned ones, and new ones, in one step of the server.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use redis::Value;
use redis::streams::StreamInfoGroupsReply;

use super::super::{MessageId, Receipt, Received, Receiver, TransportError};
use super::entry::{self, Entry};
use super::ids::{LATEST, NAME_PREFIX, millis, now};
use super::options::Queue;
use super::{Redis, scripts};
use crate::connection::redis::RedisFailure;

/// A consumer that has nothing in flight is removed after this time without a sign of life.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// How often delayed messages are moved to the stream before messages are received in any case.
const MAX_MOVES: u32 = 10;
/// Where the search for abandoned messages begins, and what the server returns at its end.
pub(super) const BEGINNING: &str = "0-0";
/// The most steps of that search in one receive that finds nothing. Each examines a thousand messages in flight.
const MAX_SEARCHES: u32 = 100;
/// The most messages received in one step.
pub(super) const MAX_RECEIVED: usize = 1000;

impl Redis {
    /// Receives messages. The group must exist.
    pub(super) async fn take(&self, up_to: usize) -> Result<Vec<Entry>, RedisFailure> {
        if !self.has_begun.load(Ordering::Relaxed) {
            self.check_groups().await?;
            self.sweep().await?;
            self.has_begun.store(true, Ordering::Relaxed);
        }
        let own = self.state().own.clone();
        if let Some(after) = own {
            let page = self.take_own(&after, up_to).await?;
            self.state().own = page.last().map(|(id, _)| id.clone());
            // Messages that were deleted from the stream have nothing to deliver.
            let (gone, entries): (Vec<Entry>, Vec<Entry>) = page.into_iter().partition(|(_, fields)| fields.is_empty());
            self.finish_entries(&gone.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), false).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let changes = self.connection.subscribe([&self.queue.stream, &self.delayed]);
        let mut cursor = self.state().cursor.clone();
        let (mut searches, mut is_full_pass) = (MAX_SEARCHES, cursor == BEGINNING);
        let mut moves = MAX_MOVES;
        loop {
            let now = now();
            let mut receive = self.invocation(&scripts::RECEIVE);
            receive.arg(&self.queue.group).arg(&self.consumer).arg(up_to).arg(millis(self.queue.redeliver_timeout));
            receive.arg(&cursor).arg(if moves > 0 { now.to_string() } else { String::new() });
            let mut answer: Vec<Value> =
                self.connection.run(async |connection| receive.invoke_async(connection).await).await?;
            if answer.len() == 1 {
                match self.become_due(answer.swap_remove(0), now).await {
                    Ok(()) => moves -= 1,
                    // A full server adds nothing to the stream. Messages in it can still be received.
                    Err(error) if error.is_full() => moves = 0,
                    Err(error) => return Err(error),
                }
                continue;
            }
            let (next, entries, next_due): (String, Vec<Entry>, String) =
                redis::from_redis_value(Value::Array(answer)).map_err(|error| self.connection.failure(error.into()))?;
            let is_over = is_full_pass && next == BEGINNING;
            is_full_pass |= next == BEGINNING;
            cursor = next;
            // There is nothing else to do, so the search for abandoned messages continues.
            if entries.is_empty() && !is_over && searches > 0 {
                searches -= 1;
                continue;
            }
            let next_due: Option<f64> = next_due.parse().ok();
            let mut state = self.state();
            (state.cursor, state.changes) = (cursor, changes);
            state.next_due =
                next_due.map(|due| UNIX_EPOCH + Duration::from_secs_f64(due.clamp(0.0, LATEST as f64) / 1000.0));
            return Ok(entries);
        }
    }

    /// The messages that a consumer of this name had in flight when it ended, page by page.
    async fn take_own(&self, after: &str, up_to: usize) -> Result<Vec<Entry>, RedisFailure> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.queue.group).arg(&self.consumer).arg("COUNT").arg(up_to);
        read.arg("STREAMS").arg(&self.queue.stream).arg(after);
        let read: Option<HashMap<String, Vec<Entry>>> =
            self.connection.run(async |connection| read.query_async(connection).await).await?;
        Ok(read.unwrap_or_default().into_values().flatten().collect())
    }

    /// Moves delayed messages that are due to the stream.
    async fn become_due(&self, members: Value, now: u64) -> Result<(), RedisFailure> {
        let members: Vec<Vec<u8>> =
            redis::from_redis_value(members).map_err(|error| self.connection.failure(error.into()))?;
        let mut become_due = self.invocation(&scripts::BECOME_DUE);
        become_due.arg(self.bound()).arg(now);
        for member in &members {
            become_due.arg(member).arg(entry::entry_of_member(member, self.queue.wrapping));
        }
        self.connection.run(async |connection| become_due.invoke_async(connection).await).await
    }

    /// Refuses several groups if messages are deleted: one group would delete them for the others. Symfony refuses that
    /// too.
    pub(super) async fn check_groups(&self) -> Result<(), RedisFailure> {
        let Queue { stream, group, delete_after_ack, delete_after_reject, .. } = &self.queue;
        if !delete_after_ack && !delete_after_reject {
            return Ok(());
        }
        let info = redis::cmd("XINFO").arg("GROUPS").arg(stream).clone();
        let groups = match self
            .connection
            .run(async |connection| info.query_async::<StreamInfoGroupsReply>(connection).await)
            .await
        {
            Ok(reply) => reply.groups,
            Err(error) if error.is_no_key() => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(other) = groups.into_iter().find(|known| known.name != *group) else { return Ok(()) };
        Err(self.connection.refusal(format!(
            "stream \"{stream}\" has the group \"{}\" besides \"{group}\", and messages that one of them deletes are lost to the other: set \
             delete_after_ack and delete_after_reject to false, or remove one (XGROUP DESTROY)",
            other.name
        )))
    }

    /// Removes consumers that are gone.
    async fn sweep(&self) -> Result<(), RedisFailure> {
        let mut sweep = self.invocation(&scripts::SWEEP);
        sweep.arg(&self.queue.group).arg(NAME_PREFIX).arg(millis(FORGET_AFTER));
        self.connection.run(async |connection| sweep.invoke_async(connection).await).await
    }
}

#[async_trait]
impl Receiver for Redis {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        let up_to = up_to.min(MAX_RECEIVED);
        if up_to == 0 {
            return Ok(Vec::new());
        }
        let entries = match self.take(up_to).await {
            Err(error) if error.is_missing() && self.queue.auto_setup => {
                // Even if there is nothing to receive: a missing stream cannot notify of its first message.
                self.create_group(action).await?;
                self.take(up_to).await
            }
            entries => entries,
        };
        let entries = entries.map_err(|error| self.error(action, error))?;
        let receipt = Receipt(self.consumer.clone());
        Ok(entries.into_iter().map(|entry| entry::received(entry, receipt.clone())).collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("acknowledging", ids, self.queue.delete_after_ack).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("rejecting", ids, self.queue.delete_after_reject).await
    }
}
