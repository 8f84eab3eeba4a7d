//! Lists messages without receiving them: first those in the stream, then the delayed ones.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use redis::Value;

use super::super::{Listed, Listing, MessageId, Receipt, Received, TransportError};
use super::Redis;
use super::entry::{self, Entry, received};
use super::ids::{DELAYED, LATEST, delayed_id, is_entry, is_taken, millis};

/// What the group knows about the stream.
struct Group {
    last_delivered: (u64, u64),
    /// The entries that a consumer has received and not finished, and whether they are in flight. Otherwise they are
    /// abandoned or released, and pending again.
    received: HashMap<String, bool>,
}

impl Group {
    /// Whether a message is finished, and still in the stream because messages are not deleted.
    fn is_finished(&self, id: &str) -> bool {
        parts(id) <= self.last_delivered && !self.received.contains_key(id)
    }
}

/// When a delayed message must be due, for a script to change it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    At(u64),
    Anytime,
}

impl Due {
    /// As the scripts have it.
    pub(super) fn argument(self) -> String {
        match self {
            Self::At(due) => due.to_string(),
            Self::Anytime => "*".to_owned(),
        }
    }
}

impl Redis {
    /// The members of the set with these ids, and when each is due. Unknown ids are skipped. What was taken here is its
    /// taker's, whenever it is due: it may just be kept alive.
    pub(super) async fn members(
        &self,
        action: &'static str,
        ids: Vec<&MessageId>,
    ) -> Result<Vec<(Vec<u8>, Due)>, TransportError> {
        let mut members = Vec::new();
        for id in ids {
            let taken = self.state().taken.get(&id.0).cloned();
            if let Some(member) = taken {
                members.push((member, Due::Anytime));
                continue;
            }
            let Some(due) = due_of(id) else { continue };
            let of_that_time = self.delayed_between(action, due, due, 0, None).await?;
            let found = of_that_time.into_iter().find(|(member, _)| id_of(member, due as f64) == *id);
            members.extend(found.map(|(member, _)| (member, Due::At(due))));
        }
        Ok(members)
    }

    async fn delayed_between(
        &self,
        action: &'static str,
        from: u64,
        to: u64,
        skip: usize,
        limit: Option<usize>,
    ) -> Result<Vec<(Vec<u8>, f64)>, TransportError> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(&self.delayed).arg(from).arg(to).arg("WITHSCORES");
        if let Some(limit) = limit {
            range.arg("LIMIT").arg(skip).arg(limit);
        }
        let found = self.connection.run(async |connection| range.query_async(connection).await).await;
        found.map_err(|error| self.error(action, error))
    }

    /// Up to `limit` delayed messages, in the order of the set, after the message `after`, which is due at `due`. If that
    /// is gone, those that are due at the same time come again.
    async fn delayed_after(
        &self,
        after: Option<(&MessageId, u64)>,
        limit: usize,
    ) -> Result<Vec<Listed>, TransportError> {
        let (action, from) = ("listing", after.map_or(0, |(_, due)| due));
        let (mut skip, mut is_after) = (0, after.is_none());
        let mut listed = Vec::new();
        while listed.len() < limit {
            let page = self.delayed_between(action, from, LATEST, skip, Some(limit)).await?;
            if page.is_empty() && (is_after || skip == 0) {
                break;
            }
            let is_gone = page.last().is_none_or(|(_, due)| *due > from as f64);
            skip += page.len();
            let found = page.iter().position(|(member, due)| after.is_some_and(|(id, _)| id_of(member, *due) == *id));
            let begin = match found {
                _ if is_after => 0,
                Some(position) => position + 1,
                None if is_gone => {
                    (skip, is_after) = (0, true);
                    continue;
                }
                None => continue,
            };
            is_after = true;
            listed.extend(page.into_iter().skip(begin).take(limit - listed.len()).map(as_listed));
        }
        Ok(listed)
    }

    async fn group(&self) -> Result<Option<Group>, TransportError> {
        let action = "listing";
        let (stream, group) = (&self.queue.stream, &self.queue.group);
        let info = redis::cmd("XINFO").arg("GROUPS").arg(stream).clone();
        let groups: Vec<redis::streams::StreamInfoGroup> = match self
            .connection
            .run(async |connection| info.query_async::<redis::streams::StreamInfoGroupsReply>(connection).await)
            .await
        {
            Ok(reply) => reply.groups,
            Err(error) if error.is_no_key() => return Ok(None),
            Err(error) => return Err(self.error(action, error)),
        };
        let Some(known) = groups.into_iter().find(|known| known.name == *group) else { return Ok(None) };
        let pending = redis::cmd("XPENDING").arg(stream).arg(group).arg("-").arg("+").arg(known.pending).clone();
        // Id, consumer, milliseconds since the delivery, number of deliveries.
        let received: Vec<(String, Value, u64, Value)> = if known.pending == 0 {
            Vec::new()
        } else {
            let received = self.connection.run(async |connection| pending.query_async(connection).await).await;
            received.map_err(|error| self.error(action, error))?
        };
        let timeout = millis(self.queue.redeliver_timeout);
        let received = received.into_iter().map(|(id, _, idle, _)| (id, idle < timeout)).collect();
        Ok(Some(Group { last_delivered: parts(&known.last_delivered_id), received }))
    }

    /// Entries between two ids.
    async fn entries(&self, from: &str, to: &str, limit: usize) -> Result<Vec<Listed>, TransportError> {
        let action = "listing";
        let group = self.group().await?;
        let (mut listed, mut from) = (Vec::new(), from.to_owned());
        while listed.len() < limit {
            let range = redis::cmd("XRANGE").arg(&self.queue.stream).arg(&from).arg(to).arg("COUNT").arg(limit).clone();
            let entries =
                self.connection.run(async |connection| range.query_async::<Vec<Entry>>(connection).await).await;
            let entries = entries.map_err(|error| self.error(action, error))?;
            let Some((last, _)) = entries.last() else { break };
            from = format!("({last}");
            for (id, fields) in entries {
                let in_flight = group.as_ref().is_some_and(|group| group.received.get(&id) == Some(&true));
                if listed.len() < limit && !group.as_ref().is_some_and(|group| group.is_finished(&id)) {
                    let available_at = Some(UNIX_EPOCH + Duration::from_millis(parts(&id).0));
                    listed.push(Listed {
                        received: received((id, fields), Receipt::default()),
                        available_at,
                        in_flight,
                    });
                }
            }
        }
        Ok(listed)
    }
}

#[async_trait]
impl Listing for Redis {
    async fn list(&self, after: Option<&MessageId>, limit: usize) -> Result<Vec<Listed>, TransportError> {
        let mut listed = match after {
            None => self.entries("-", "+", limit).await?,
            Some(id) if is_entry(id) => self.entries(&format!("({}", id.0), "+", limit).await?,
            Some(_) => Vec::new(),
        };
        let after = match after.filter(|id| !is_entry(id)) {
            Some(id) => match due_of(id) {
                Some(due) => Some((id, due)),
                // Nothing comes after something that was never an id.
                None => return Ok(Vec::new()),
            },
            None => None,
        };
        if listed.len() < limit {
            listed.extend(self.delayed_after(after, limit - listed.len()).await?);
        }
        Ok(listed)
    }

    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError> {
        if is_entry(id) {
            return Ok(self.entries(&id.0, &id.0, 1).await?.pop());
        }
        let Some(due) = due_of(id) else { return Ok(None) };
        let of_that_time = self.delayed_between("listing", due, due, 0, None).await?;
        Ok(of_that_time.into_iter().map(as_listed).find(|listed| listed.received.id == *id))
    }
}

fn as_listed((member, due): (Vec<u8>, f64)) -> Listed {
    let (due, uniqid) = (due.max(0.0) as u64, entry::uniqid(&member).unwrap_or_default());
    let received =
        Received { id: delayed_id(due, &uniqid), receipt: Receipt::default(), message: entry::read(&member) };
    let available_at: Option<SystemTime> = UNIX_EPOCH.checked_add(Duration::from_millis(due));
    Listed { received, available_at, in_flight: is_taken(&uniqid, due) }
}

fn id_of(member: &[u8], due: f64) -> MessageId {
    delayed_id(due.max(0.0) as u64, &entry::uniqid(member).unwrap_or_default())
}

/// When the delayed message with this id is due.
fn due_of(id: &MessageId) -> Option<u64> {
    id.0.strip_prefix(DELAYED)?.split(':').next()?.parse().ok()
}

/// The numbers of an entry's id, in the order in which ids are compared.
fn parts(id: &str) -> (u64, u64) {
    let (time, number) = id.split_once('-').unwrap_or((id, "0"));
    (time.parse().unwrap_or(0), number.parse().unwrap_or(0))
}
