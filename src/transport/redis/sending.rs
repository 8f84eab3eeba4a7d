//! Sending: to the stream, or, for later, to the set of delayed messages.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, RedisResult};

use super::super::{MessageId, Sender, Sent, ToSend, TransportError};
use super::ids::{delayed_id, due, new_uniqid};
use super::{Redis, entry};
use crate::message::Encoded;

const ACTION: &str = "sending";

/// The most messages that are sent before the server's answers are read.
const CHUNK: usize = 1024;
/// The most bytes of them, unless it is one message.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The command that stores a message.
struct Add {
    command: Cmd,
    /// The id of a delayed message; the stream gives one to others.
    id: Option<MessageId>,
}

/// Messages that are sent at once, each with its place among all.
#[derive(Default)]
struct Chunk {
    adds: Vec<(usize, Add)>,
    bytes: usize,
}

#[async_trait]
impl Sender for Redis {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let Add { command, id } = self.add(message, delay)?;
        if !delay.is_zero() && !self.queue.auto_setup {
            let exists = redis::cmd("EXISTS").arg(&self.queue.stream).clone();
            let exists = self.connection.run(async |connection| exists.query_async(connection).await).await;
            if !exists.map_err(|error| self.error(ACTION, error))? {
                return Err(self.not_set_up());
            }
        }
        let added: Result<redis::Value, _> =
            self.connection.run(async |connection| command.query_async(connection).await).await;
        let added = added.map_err(|error| self.error(ACTION, error))?;
        self.connection.changed(&self.queue.stream);
        self.sent(id, added)
    }

    /// The commands are sent without waiting for the answer to each. Each is a step of its own: what the server refuses
    /// keeps no other message out.
    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let mut results: Vec<Option<Result<Sent, TransportError>>> = messages.iter().map(|_| None).collect();
        let mut chunk = Chunk::default();
        for (n, ToSend { message, delay }) in messages.iter().enumerate() {
            if !delay.is_zero() && !self.queue.auto_setup {
                results[n] = Some(self.send(message, *delay).await);
                continue;
            }
            let size = message.body.len();
            if chunk.adds.len() >= CHUNK || chunk.bytes + size > CHUNK_BYTES {
                self.send_chunk(std::mem::take(&mut chunk), &mut results).await;
            }
            match self.add(message, *delay) {
                Ok(add) => chunk.adds.push((n, add)),
                Err(error) => results[n] = Some(Err(error)),
            }
            chunk.bytes += size;
        }
        self.send_chunk(chunk, &mut results).await;
        // Each has a result by now: it was refused above, or was in a chunk.
        results.into_iter().flatten().collect()
    }
}

impl Redis {
    fn add(&self, message: &Encoded, delay: Duration) -> Result<Add, TransportError> {
        if delay.is_zero() {
            let mut command = redis::cmd("XADD");
            command.arg(&self.queue.stream);
            if !self.queue.auto_setup {
                command.arg("NOMKSTREAM");
            }
            if let Some(most) = self.queue.stream_max_entries {
                command.arg("MAXLEN").arg("~").arg(most);
            }
            command.arg("*").arg("message").arg(self.entry(message)?);
            return Ok(Add { command, id: None });
        }
        let (due, uniqid) = (due(delay), new_uniqid());
        let member = entry::member(&self.name, message, &uniqid)?;
        let mut command = redis::cmd("ZADD");
        command.arg(&self.delayed).arg("NX").arg(due).arg(member);
        Ok(Add { command, id: Some(delayed_id(due, &uniqid)) })
    }

    /// The result of the answer to a command.
    fn sent(&self, id: Option<MessageId>, answer: redis::Value) -> Result<Sent, TransportError> {
        let id = match id {
            Some(id) => id,
            None => {
                let id: Result<Option<String>, _> = redis::from_redis_value(answer);
                let id = id.map_err(|error| self.error(ACTION, self.connection.failure(error.into())))?;
                // None: there is no stream, and none is to be created.
                MessageId(id.ok_or_else(|| self.not_set_up())?)
            }
        };
        Ok(Sent::Queued { transport: self.name.clone(), id, reason: None })
    }

    async fn send_chunk(&self, chunk: Chunk, results: &mut [Option<Result<Sent, TransportError>>]) {
        if chunk.adds.is_empty() {
            return;
        }
        let mut pipeline = redis::Pipeline::with_capacity(chunk.adds.len());
        pipeline.ignore_errors();
        let (commands, ids): (Vec<_>, Vec<_>) =
            chunk.adds.into_iter().map(|(n, Add { command, id })| (command, (n, id))).unzip();
        for command in commands {
            pipeline.add_command(command);
        }
        let work = async |connection: &mut _| {
            let answers: Vec<RedisResult<redis::Value>> = pipeline.query_async(connection).await?;
            // What it refuses altogether (it has become a replica, for example) may be a reason to connect again.
            if answers.iter().all(Result::is_err) {
                answers.into_iter().map(|answer| answer.map(Ok)).collect()
            } else {
                Ok(answers)
            }
        };
        match self.connection.run(work).await {
            Ok(answers) => {
                self.connection.changed(&self.queue.stream);
                for ((n, id), answer) in ids.into_iter().zip(answers) {
                    let answer = answer.map_err(|error| self.error(ACTION, self.connection.failure(error)));
                    results[n] = Some(answer.and_then(|answer| self.sent(id, answer)));
                }
            }
            Err(error) => {
                // Those that the server had read before are stored nevertheless: at least once.
                for (n, _) in ids {
                    results[n] = Some(Err(self.error(ACTION, error.clone())));
                }
            }
        }
    }
}
