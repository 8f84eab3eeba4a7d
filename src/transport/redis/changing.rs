//! Changes existing messages: acknowledges, releases, retries and moves them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::super::{
    Delivery, KeepingAlive, Listing, MessageId, Moving, Place, Receipt, Received, Releasing, Retrying, Taking,
    TransportError,
};
use super::entry::{self, Wrapping};
use super::ids::{delayed_id, due, is_entry, is_of_taken, millis, new_taken_uniqid, new_uniqid, now};
use super::listing::Due;
use super::taking::MAX_RECEIVED;
use super::{Redis, scripts};
use crate::connection::redis::RedisFailure;
use crate::message::Encoded;

/// How long a message that was taken by its id is in flight after it was taken or kept alive, at most. Whoever takes a
/// message keeps it alive every few seconds; if that process is killed, it comes back soon.
const TAKEN_LEASE: Duration = Duration::from_secs(60);

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
                remove.arg(member).arg(due.argument());
            }
            self.connection.run(async |connection| remove.invoke_async(connection).await).await
        };
        finish.await.map_err(|error| self.error(action, error))?;
        self.forget_taken(ids);
        Ok(())
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
    /// original is gone, or another consumer has it, who with `if_abandoned` has not had it for too long.
    #[expect(clippy::too_many_arguments, reason = "the arguments of a script")]
    pub(super) async fn put(
        &self,
        action: &'static str,
        id: &MessageId,
        destination: &str,
        content: &[u8],
        due: Option<u64>,
        bound: &str,
        if_abandoned: bool,
    ) -> Result<Option<String>, TransportError> {
        let mut put = self.invocation(&scripts::MOVE);
        put.key(destination).arg(&self.queue.group);
        if is_entry(id) {
            put.arg(&id.0).arg("");
        } else {
            let Some((member, due)) = self.members(action, vec![id]).await?.pop() else { return Ok(None) };
            put.arg(member).arg(due.argument());
        }
        put.arg(u8::from(self.queue.delete_after_reject)).arg(content);
        put.arg(due.map_or(String::new(), |due| due.to_string())).arg(bound).arg(&self.consumer);
        put.arg(if if_abandoned { millis(self.queue.redeliver_timeout).to_string() } else { String::new() });
        let put = self.connection.run(async |connection| put.invoke_async(connection).await).await;
        let new = put.map_err(|error| self.error(action, error))?;
        self.forget_taken([id]);
        self.connection.changed(destination);
        Ok(new)
    }
}

impl Redis {
    /// Makes messages due that were taken by their ids. Such an id is used once, so it is a receipt too.
    async fn release_taken(&self, ids: Vec<&MessageId>) -> Result<(), TransportError> {
        let action = "releasing";
        let members = self.members(action, ids.clone()).await?;
        if members.is_empty() {
            return Ok(());
        }
        self.change_due(action, &members, now()).await?;
        self.forget_taken(ids);
        self.connection.changed(&self.queue.stream);
        Ok(())
    }

    /// Keeps messages alive that were taken by their ids.
    async fn keep_taken_alive(&self, ids: Vec<&MessageId>) -> Result<(), TransportError> {
        let action = "keeping alive";
        let members = self.members(action, ids).await?;
        if members.is_empty() {
            return Ok(());
        }
        self.change_due(action, &members, due(self.taken_lease())).await
    }

    /// These are no longer in flight here.
    fn forget_taken<'a>(&self, ids: impl IntoIterator<Item = &'a MessageId>) {
        let mut state = self.state();
        for id in ids {
            state.taken.remove(&id.0);
        }
    }

    async fn change_due(
        &self,
        action: &'static str,
        members: &[(Vec<u8>, Due)],
        new: u64,
    ) -> Result<(), TransportError> {
        let mut change = self.invocation(&scripts::CHANGE_DUE);
        change.arg(new);
        for (member, due) in members {
            change.arg(member).arg(due.argument());
        }
        let changed = self.connection.run(async |connection| change.invoke_async::<()>(connection).await).await;
        changed.map_err(|error| self.error(action, error))
    }

    /// How long a message that was taken by its id is in flight, unless it is kept alive.
    fn taken_lease(&self) -> Duration {
        TAKEN_LEASE.min(self.queue.redeliver_timeout)
    }
}

#[async_trait]
impl Releasing for Redis {
    /// The receipt is the consumer's name. Redis cannot tell consumers apart that share a name (option `consumer`).
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        let mut by_consumer: HashMap<&str, Vec<MessageId>> = HashMap::new();
        for delivery in deliveries {
            for receipt in &delivery.receipts {
                by_consumer.entry(&receipt.0).or_default().push(delivery.id.clone());
            }
        }
        for (consumer, ids) in by_consumer {
            self.change("releasing", &scripts::RELEASE, &[&self.queue.group, consumer], &ids).await?;
        }
        let ids = deliveries.iter().map(|delivery| &delivery.id).filter(|id| is_of_taken(id));
        self.release_taken(ids.collect()).await
    }
}

#[async_trait]
impl KeepingAlive for Redis {
    fn redeliver_timeout(&self) -> Duration {
        self.queue.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], _now: SystemTime) -> Result<(), TransportError> {
        let ids: Vec<MessageId> = deliveries.iter().map(|delivery| delivery.id.clone()).collect();
        self.change("keeping alive", &scripts::KEEP_ALIVE, &[&self.queue.group, &self.consumer], &ids).await?;
        self.keep_taken_alive(ids.iter().filter(|id| is_of_taken(id)).collect()).await
    }
}

#[async_trait]
impl Retrying for Redis {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let action = "retrying";
        let bound = self.bound();
        if delay.is_zero() {
            self.put(action, id, &self.queue.stream, &self.entry(message)?, None, &bound, false).await.map(drop)
        } else {
            let member = entry::member(&self.name, message, &new_uniqid())?;
            self.put(action, id, &self.delayed, &member, Some(due(delay)), &bound, false).await.map(drop)
        }
    }
}

#[async_trait]
impl Taking for Redis {
    /// A consumer group gives entries out in their order only. So the message becomes a delayed one, in one step, which
    /// is due when its lease is over: no consumer receives it before, and any consumer after. Its `uniqid` says that it is
    /// in flight until then.
    async fn take(&self, id: &MessageId) -> Result<Option<Received>, TransportError> {
        let action = "receiving";
        let Some(listed) = self.find(id).await?.filter(|listed| !listed.in_flight) else { return Ok(None) };
        let Ok(message) = listed.received.message else { return Ok(None) };
        let (due, uniqid) = (due(self.taken_lease()), new_taken_uniqid());
        let member = entry::member(&self.name, &message, &uniqid)?;
        let taken = self.put(action, id, &self.delayed, &member, Some(due), "", true).await?;
        let id = delayed_id(due, &uniqid);
        if taken.is_some() {
            self.state().taken.insert(id.0.clone(), member);
        }
        Ok(taken.map(|_| Received { id, receipt: Receipt(self.consumer.clone()), message: Ok(message) }))
    }
}

#[async_trait]
impl Moving for Redis {
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError> {
        let same_store = |place: &&StreamPlace| {
            place.database == self.connection.location().as_str() && place.wrapping == self.queue.wrapping
        };
        let Some(StreamPlace { stream, bound, .. }) = destination.get::<StreamPlace>().filter(same_store) else {
            return Ok(None);
        };
        let moved = self.put("moving", id, stream, &self.entry(message)?, None, bound, false).await?;
        Ok(Some(moved.map_or_else(|| id.clone(), MessageId)))
    }

    fn place(&self) -> Place {
        Place::new(StreamPlace {
            database: self.connection.location().to_string(),
            wrapping: self.queue.wrapping,
            stream: self.queue.stream.clone(),
            bound: self.bound(),
        })
    }
}

/// Where a queue is. All groups of the stream read what moves there.
#[derive(Debug)]
struct StreamPlace {
    /// The server and the number of the database.
    database: String,
    /// Entries move only between queues that wrap messages in the same way.
    wrapping: Wrapping,
    stream: String,
    /// The maximum length of the stream; empty if it is not limited.
    bound: String,
}
