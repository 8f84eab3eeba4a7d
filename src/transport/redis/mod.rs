//! `redis:`: a queue in a Redis stream, the same that Symfony Messenger's Redis transport uses.
//!
//! A stream keeps entries in the order of their ids, a consumer group knows which of them are in flight, with whom and for
//! how long. Delayed messages wait in a sorted set beside the stream, and whoever consumes moves the due ones over. All
//! that changes more than one of these is a script (see [`scripts`]), and so one step for everybody.

mod entry;
mod error;
mod facts;
mod link;
mod listing;
mod options;
mod scripts;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::unistd::gethostname;
use redis::Value;
use redis::streams::StreamInfoGroupsReply;
use tokio::sync::watch;

use self::entry::Wrapping;
use self::error::RedisFailure;
use self::link::Link;
use self::options::{Address, Queue};
use super::sql::store_error;
use super::{
    Connecting, Context, Counting, Counts, Delivery, Factory, KeepingAlive, MessageId, Moving, Place, Receipt,
    Received, Receiver, Releasing, Resting, Retrying, Sender, Sent, SettingUp, Transport, TransportError,
    TransportSpec, Waking, registry,
};
use crate::cache::Store;
use crate::config::Problem;
use crate::message::Encoded;

/// Begins the names that consumers give themselves.
const OWN_NAMES: &str = "minutely:";
/// A consumer that holds nothing and was not heard of for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// After the name of a stream: the set of the messages that are to come to it.
const DELAYED_SET: &str = "__queue";
/// Before the id of a message that is delayed.
const DELAYED: &str = "delayed:";
/// The largest whole number that a score holds exactly, in milliseconds: the year 287396.
const LATEST: u64 = (1 << 53) - 1;
/// The most that counting or looking looks through where Redis does not know the number by itself.
const MOST_COUNTED: u64 = 100_000;
/// How often delayed messages are moved over before what is there is taken all the same.
const MOVES: u32 = 10;
/// Where the search for abandoned messages begins, and what the server says when it has come to the end.
const BEGINNING: &str = "0-0";
/// How often one receive goes on with that search while it finds nothing; each step examines a thousand messages in flight.
const LOOKS: u32 = 100;
/// The most messages taken in one step.
const MOST_TAKEN: usize = 1000;

/// A queue in a stream.
pub(crate) struct Redis {
    name: String,
    queue: Queue,
    /// The sorted set of delayed messages.
    delayed: String,
    consumer: String,
    link: Arc<Link>,
    state: Mutex<State>,
    /// Has this consumer's own past, and that of others, been looked after?
    has_begun: AtomicBool,
}

/// What the last look has found.
struct State {
    /// Where the search for abandoned messages goes on.
    cursor: String,
    /// What the server had told by then.
    told: watch::Receiver<u64>,
    /// When the next delayed message is due.
    next_due: Option<SystemTime>,
    /// With a name that is set: up to where the messages that it had in flight before have been taken.
    own: Option<String>,
}

impl Redis {
    fn new(name: &str, queue: Queue, link: Arc<Link>) -> Self {
        link.watch(&queue.stream);
        let own = queue.consumer.as_ref().map(|_| "0".to_owned());
        let consumer = queue.consumer.clone().unwrap_or_else(own_name);
        let mut told = link.told(&queue.stream);
        // Nobody has looked yet.
        told.mark_changed();
        Self {
            name: name.to_owned(),
            delayed: format!("{}{DELAYED_SET}", queue.stream),
            consumer,
            state: Mutex::new(State { cursor: BEGINNING.to_owned(), told, next_due: None, own }),
            has_begun: AtomicBool::new(false),
            queue,
            link,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, action: &'static str, error: RedisFailure) -> TransportError {
        if error.is_missing() { self.not_set_up() } else { store_error(&self.name, action, error) }
    }

    fn not_set_up(&self) -> TransportError {
        let Queue { stream, group, .. } = &self.queue;
        let what = format!("stream \"{stream}\" with group \"{group}\" in {}", self.link.place());
        TransportError::NotSetUp { transport: self.name.clone(), what }
    }

    fn invocation<'s>(&self, script: &'s redis::Script) -> redis::ScriptInvocation<'s> {
        let mut invocation = script.prepare_invoke();
        invocation.key(&self.queue.stream).key(&self.delayed);
        invocation
    }

    fn bound(&self) -> String {
        self.queue.stream_max_entries.map_or(String::new(), |most| most.to_string())
    }

    /// Creates the group, and the stream where it is missing.
    async fn create_group(&self, action: &'static str) -> Result<(), TransportError> {
        let mut create = redis::cmd("XGROUP");
        // From the beginning: what is there was sent for this group.
        create.arg("CREATE").arg(&self.queue.stream).arg(&self.queue.group).arg("0").arg("MKSTREAM");
        match self.link.run(async |connection| create.exec_async(connection).await).await {
            Err(error) if !error.is_there_already() => Err(self.error(action, error)),
            _ => Ok(()),
        }
    }

    /// Takes messages, of a group that is there.
    async fn take(&self, up_to: usize) -> Result<Vec<Entry>, RedisFailure> {
        if !self.has_begun.load(Ordering::Relaxed) {
            self.check_groups().await?;
            self.sweep().await?;
            self.has_begun.store(true, Ordering::Relaxed);
        }
        let own = self.state().own.clone();
        if let Some(after) = own {
            let page = self.take_own(&after, up_to).await?;
            self.state().own = page.last().map(|(id, _)| id.clone());
            // One that was deleted from the stream has nothing left to deliver.
            let (gone, entries): (Vec<Entry>, Vec<Entry>) = page.into_iter().partition(|(_, fields)| fields.is_empty());
            self.finish_entries(&gone.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), false).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        let told = self.link.told(&self.queue.stream);
        let mut cursor = self.state().cursor.clone();
        let (mut looks, mut is_whole_pass) = (LOOKS, cursor == BEGINNING);
        let mut moves = MOVES;
        loop {
            let now = now();
            let mut receive = self.invocation(&scripts::RECEIVE);
            receive.arg(&self.queue.group).arg(&self.consumer).arg(up_to).arg(millis(self.queue.redeliver_timeout));
            receive.arg(&cursor).arg(if moves > 0 { now.to_string() } else { String::new() });
            let mut answer: Vec<Value> = self.link.run(async |link| receive.invoke_async(link).await).await?;
            if answer.len() == 1 {
                match self.become_due(answer.swap_remove(0), now).await {
                    Ok(()) => moves -= 1,
                    // A full server takes nothing into the stream, and what is there is taken all the same.
                    Err(error) if error.is_full() => moves = 0,
                    Err(error) => return Err(error),
                }
                continue;
            }
            let (next, entries, next_due): (String, Vec<Entry>, String) =
                redis::from_redis_value(Value::Array(answer)).map_err(|error| self.link.failure(error.into()))?;
            let is_over = is_whole_pass && next == BEGINNING;
            is_whole_pass |= next == BEGINNING;
            cursor = next;
            // Nothing else is to be done, so the abandoned messages behind all those that are in flight are looked for.
            if entries.is_empty() && !is_over && looks > 0 {
                looks -= 1;
                continue;
            }
            let next_due: Option<f64> = next_due.parse().ok();
            let mut state = self.state();
            (state.cursor, state.told) = (cursor, told);
            state.next_due =
                next_due.map(|due| UNIX_EPOCH + Duration::from_secs_f64(due.clamp(0.0, LATEST as f64) / 1000.0));
            return Ok(entries);
        }
    }

    /// What a consumer of this name had in flight when it ended, page by page.
    async fn take_own(&self, after: &str, up_to: usize) -> Result<Vec<Entry>, RedisFailure> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.queue.group).arg(&self.consumer).arg("COUNT").arg(up_to);
        read.arg("STREAMS").arg(&self.queue.stream).arg(after);
        let read: Option<HashMap<String, Vec<Entry>>> =
            self.link.run(async |link| read.query_async(link).await).await?;
        Ok(read.unwrap_or_default().into_values().flatten().collect())
    }

    /// Delayed messages whose time has come.
    async fn become_due(&self, members: Value, now: u64) -> Result<(), RedisFailure> {
        let members: Vec<Vec<u8>> =
            redis::from_redis_value(members).map_err(|error| self.link.failure(error.into()))?;
        let mut become_due = self.invocation(&scripts::BECOME_DUE);
        become_due.arg(self.bound()).arg(now);
        for member in &members {
            become_due.arg(member).arg(entry::entry_of_member(member, self.queue.wrapping));
        }
        self.link.run(async |link| become_due.invoke_async(link).await).await
    }

    /// With several groups, what one of them deletes is lost to the others. Symfony refuses that too.
    async fn check_groups(&self) -> Result<(), RedisFailure> {
        let Queue { stream, group, delete_after_ack, delete_after_reject, .. } = &self.queue;
        if !delete_after_ack && !delete_after_reject {
            return Ok(());
        }
        let info = redis::cmd("XINFO").arg("GROUPS").arg(stream).clone();
        let groups = match self.link.run(async |link| info.query_async::<StreamInfoGroupsReply>(link).await).await {
            Ok(reply) => reply.groups,
            Err(error) if error.is_no_key() => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(other) = groups.into_iter().find(|known| known.name != *group) else { return Ok(()) };
        Err(self.link.refusal(format!(
            "stream \"{stream}\" has the group \"{}\" besides \"{group}\", and what one deletes is lost to the other: set \
             delete_after_ack and delete_after_reject to false, or remove one (XGROUP DESTROY)",
            other.name
        )))
    }

    /// Forgets consumers that are gone.
    async fn sweep(&self) -> Result<(), RedisFailure> {
        let mut sweep = self.invocation(&scripts::SWEEP);
        sweep.arg(&self.queue.group).arg(OWN_NAMES).arg(millis(FORGOTTEN_AFTER));
        self.link.run(async |link| sweep.invoke_async(link).await).await
    }

    /// A script for some messages. What is no id of an entry is passed over.
    async fn change(
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
        match self.link.run(async |link| change.invoke_async(link).await).await {
            Ok(()) => Ok(()),
            // There is nothing in a queue that is not there.
            Err(error) if error.is_missing() && self.queue.auto_setup => Ok(()),
            Err(error) => Err(self.error(action, error)),
        }
    }

    /// Messages leave.
    async fn finish(&self, action: &'static str, ids: &[MessageId], delete: bool) -> Result<(), TransportError> {
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
            self.link.run(async |link| remove.invoke_async(link).await).await
        };
        finish.await.map_err(|error| self.error(action, error))
    }

    async fn finish_entries(&self, ids: &[&str], delete: bool) -> Result<(), RedisFailure> {
        // Lua has no place for very many arguments.
        for ids in ids.chunks(MOST_TAKEN) {
            let mut finish = self.invocation(&scripts::FINISH);
            finish.arg(&self.queue.group).arg(u8::from(delete)).arg(ids);
            self.link.run(async |link| finish.invoke_async::<()>(link).await).await?;
        }
        Ok(())
    }

    /// Takes a message from its place and puts another one where it is to be, in one step. The new id; none where the
    /// first one is not there any more, or another consumer has it.
    async fn put(
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
        let put = self.link.run(async |link| put.invoke_async(link).await).await;
        let id = put.map_err(|error| self.error(action, error))?;
        self.link.ring(destination.strip_suffix(DELAYED_SET).unwrap_or(destination));
        Ok(id)
    }

    fn entry(&self, message: &Encoded) -> Result<Vec<u8>, TransportError> {
        entry::entry(&self.name, message, self.queue.wrapping)
    }

    async fn count(&self, cap: u64) -> Result<Counts, TransportError> {
        let action = "counting";
        let mut count = self.invocation(&scripts::COUNT);
        count.arg(&self.queue.group).arg(now()).arg(millis(self.queue.redeliver_timeout)).arg(cap.min(MOST_COUNTED));
        let counted = self.link.run(async |link| count.invoke_async(link).await).await;
        let (is_there, pending, delayed, in_flight): (bool, u64, u64, u64) =
            counted.map_err(|error| self.error(action, error))?;
        if !is_there && !self.queue.auto_setup {
            return Err(self.not_set_up());
        }
        Ok(Counts { pending: pending.min(cap), delayed: delayed.min(cap), in_flight: in_flight.min(cap) })
    }
}

/// An entry: its id, its fields and their values.
type Entry = (String, Vec<Vec<u8>>);

/// The message in an entry. One without a field `message` is shown with what it has.
fn received((id, fields): Entry, receipt: Receipt) -> Received {
    let mut pairs = fields.chunks_exact(2);
    let message = pairs.find(|pair| pair[0] == b"message").map(|pair| entry::read(&pair[1]));
    let message = message.unwrap_or_else(|| Err(entry::without_message(&fields)));
    Received { id: MessageId(id), receipt, message }
}

/// A name for a consumer that no other has.
fn own_name() -> String {
    let host = gethostname().unwrap_or_default();
    format!("{OWN_NAMES}{}:{}:{:08x}", host.display(), std::process::id(), fastrand::u32(..))
}

/// Is it an id of a stream's entry, `1700000000000-0`?
fn is_entry(id: &MessageId) -> bool {
    // A number may begin with a plus sign elsewhere.
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    id.0.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number))
}

/// Now, in milliseconds since 1970.
fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a message with this delay is due.
fn due(delay: Duration) -> u64 {
    now().saturating_add(millis(delay)).min(LATEST)
}

fn new_uniqid() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn delayed_id(due: u64, uniqid: &str) -> MessageId {
    MessageId(format!("{DELAYED}{due}:{uniqid}"))
}

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
            let id: Result<Option<String>, _> = self.link.run(async |link| add.query_async(link).await).await;
            let id = id.map_err(|error| self.error(action, error))?;
            self.link.ring(&self.queue.stream);
            return queued(MessageId(id.ok_or_else(|| self.not_set_up())?));
        }
        let (due, uniqid) = (due(delay), new_uniqid());
        let member = entry::member(&self.name, message, &uniqid)?;
        if !self.queue.auto_setup {
            let exists = redis::cmd("EXISTS").arg(&self.queue.stream).clone();
            let exists = self.link.run(async |link| exists.query_async(link).await).await;
            if !exists.map_err(|error| self.error(action, error))? {
                return Err(self.not_set_up());
            }
        }
        let add = redis::cmd("ZADD").arg(&self.delayed).arg("NX").arg(due).arg(member).clone();
        self.link.run(async |link| add.exec_async(link).await).await.map_err(|error| self.error(action, error))?;
        self.link.ring(&self.queue.stream);
        queued(delayed_id(due, &uniqid))
    }
}

#[async_trait]
impl Receiver for Redis {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        let up_to = up_to.min(MOST_TAKEN);
        if up_to == 0 {
            return Ok(Vec::new());
        }
        let entries = match self.take(up_to).await {
            Err(error) if error.is_missing() && self.queue.auto_setup => {
                // Also where there is nothing to take yet: what is not there cannot tell of its first message.
                self.create_group(action).await?;
                self.take(up_to).await
            }
            entries => entries,
        };
        let entries = entries.map_err(|error| self.error(action, error))?;
        let receipt = Receipt(self.consumer.clone());
        Ok(entries.into_iter().map(|entry| received(entry, receipt.clone())).collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("acknowledging", ids, self.queue.delete_after_ack).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("rejecting", ids, self.queue.delete_after_reject).await
    }
}

#[async_trait]
impl Counting for Redis {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(cap).await
    }
}

#[async_trait]
impl SettingUp for Redis {
    async fn setup(&self) -> Result<(), TransportError> {
        let action = "setting up";
        self.check_groups().await.map_err(|error| self.error(action, error))?;
        self.create_group(action).await
    }
}

#[async_trait]
impl Releasing for Redis {
    /// The receipt is the consumer's name. Consumers that share one, set by the option `consumer`, are one to Redis.
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
        Ok(())
    }
}

#[async_trait]
impl Resting for Redis {
    async fn resting(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        let (action, now) = ("resuming", now());
        loop {
            let mut resume = self.invocation(&scripts::RESUME);
            resume.arg(now);
            let more: bool = self
                .link
                .run(async |link| resume.invoke_async(link).await)
                .await
                .map_err(|error| self.error(action, error))?;
            if !more {
                break;
            }
        }
        self.link.ring(&self.queue.stream);
        Ok(())
    }
}

#[async_trait]
impl KeepingAlive for Redis {
    fn redeliver_timeout(&self) -> Duration {
        self.queue.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], _now: SystemTime) -> Result<(), TransportError> {
        let ids: Vec<MessageId> = deliveries.iter().map(|delivery| delivery.id.clone()).collect();
        self.change("keeping alive", &scripts::KEEP_ALIVE, &[&self.queue.group, &self.consumer], &ids).await
    }
}

#[async_trait]
impl Waking for Redis {
    async fn wake(&self) -> Result<(), TransportError> {
        let (mut told, next_due) = {
            let state = self.state();
            (state.told.clone(), state.next_due)
        };
        if !self.link.listen().await.map_err(|error| self.error("waiting", error))? {
            return std::future::pending().await;
        }
        let until_due = async {
            match next_due {
                Some(due) => tokio::time::sleep(due.duration_since(SystemTime::now()).unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = told.changed() => {}
            () = until_due => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        // Nothing tells of messages whose consumer is gone.
        self.link.tells().then(|| self.queue.claim_interval.min(self.queue.redeliver_timeout))
    }
}

#[async_trait]
impl Connecting for Redis {
    fn server(&self) -> &str {
        let place = self.link.place();
        place.rsplit_once('/').map_or(place, |(server, _database)| server)
    }

    fn connection(&self) -> &str {
        self.link.place()
    }

    async fn limit(&self) -> Result<Option<u64>, TransportError> {
        let info =
            self.link.run(async |link| redis::cmd("INFO").arg("clients").query_async::<String>(link).await).await;
        let info = info.map_err(|error| self.error("asking for the limit of connections", error))?;
        Ok(info.lines().find_map(|line| line.strip_prefix("maxclients:")?.trim().parse().ok()))
    }

    fn close_idle(&self) {
        self.link.rest();
    }
}

#[async_trait]
impl Retrying for Redis {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let action = "retrying";
        let bound = self.bound();
        if delay.is_zero() {
            self.put(action, id, &self.queue.stream, &self.entry(message)?, None, &bound).await.map(drop)
        } else {
            let member = entry::member(&self.name, message, &new_uniqid())?;
            self.put(action, id, &self.delayed, &member, Some(due(delay)), &bound).await.map(drop)
        }
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
        let same_store =
            |place: &&StreamPlace| place.database == self.link.place() && place.wrapping == self.queue.wrapping;
        let Some(StreamPlace { stream, bound, .. }) = destination.get::<StreamPlace>().filter(same_store) else {
            return Ok(None);
        };
        let moved = self.put("moving", id, stream, &self.entry(message)?, None, bound).await?;
        Ok(Some(moved.map_or_else(|| id.clone(), MessageId)))
    }

    fn place(&self) -> Place {
        Place::new(StreamPlace {
            database: self.link.place().to_owned(),
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
    /// How many entries the stream may have; empty where that is not bounded.
    bound: String,
}

impl Redis {
    fn into_transport(self) -> Transport {
        let queue = Arc::new(self);
        let mut transport = Transport::queue(&queue.name, Arc::clone(&queue));
        transport.counting = Some(queue.clone());
        transport.setting_up = Some(queue.clone());
        transport.listing = Some(queue.clone());
        transport.releasing = Some(queue.clone());
        transport.keeping_alive = Some(queue.clone());
        transport.resting = Some(queue.clone());
        transport.waking = Some(queue.clone());
        transport.connecting = Some(queue.clone());
        transport.retrying = Some(queue.clone());
        transport.moving = Some(queue);
        transport
    }
}

/// Makes the transports of `redis:`. Those on one database share one connection.
#[derive(Default)]
pub struct RedisFactory {
    links: Mutex<HashMap<Address, Weak<Link>>>,
}

impl RedisFactory {
    fn link(&self, address: Address) -> redis::RedisResult<Arc<Link>> {
        // A panic while the lock is held leaves at worst an entry out.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&address).and_then(Weak::upgrade) {
            return Ok(link);
        }
        let link = Arc::new(Link::new(&address)?);
        links.insert(address, Arc::downgrade(&link));
        Ok(link)
    }
}

impl Factory for RedisFactory {
    fn schemes(&self) -> &'static [&'static str] {
        registry::REDIS
    }

    fn create(&self, spec: &TransportSpec, _context: &Context) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let (address, queue) = options::read(spec, &mut options);
        let link = self.link(address).map_err(|error| spec.dsn_problem(error.to_string()));
        if let Err(problem) = &link {
            options.push(problem.clone());
        }
        options.finish()?;
        let link = link.map_err(|problem| vec![problem])?;
        Ok(Redis::new(&spec.name, queue, link).into_transport())
    }

    fn cache(&self, spec: &TransportSpec, _project_dir: &Path) -> Option<Result<Arc<dyn Store>, Vec<Problem>>> {
        let mut options = spec.options();
        let (address, prefix) = options::read_for_cache(spec, &mut options);
        let made = options.finish().and_then(|()| {
            let link = self.link(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
            Ok(Arc::new(facts::Facts { link, prefix }) as Arc<dyn Store>)
        });
        Some(made)
    }

    fn warnings(&self, spec: &TransportSpec) -> Vec<Problem> {
        let (_, queue) = options::read(spec, &mut spec.options());
        let mut warnings = Vec::new();
        if queue.stream_max_entries.is_some() {
            let message =
                "stream_max_entries drops the oldest messages when there are more, also those that nobody has handled";
            warnings.push(spec.warning(message));
        }
        if queue.consumer.is_some() {
            let message =
                "workers that share the name `consumer` take each other's messages; without it each has its own";
            warnings.push(spec.warning(message));
        }
        warnings
    }
}
