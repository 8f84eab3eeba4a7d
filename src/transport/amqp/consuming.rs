//! Keeps the messages that a channel has received: those waiting, and those handed out until they are acknowledged.
//! [`fetching`](super::fetching) gets them from the broker.
//!
//! A received message belongs to its channel. When the channel ends, for whatever reason, the broker requeues all its
//! messages, and they can no longer be acknowledged. So their ids contain the channel too.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use futures_util::future::{FutureExt, try_join_all};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};

use super::super::MessageId;
use super::tags::{Acks, SettledTags};

/// A channel that receives messages.
pub(super) struct Consuming {
    pub(super) channel: Channel,
    /// Identifies this channel in the ids of its messages.
    number: u64,
    /// In order of priority.
    pub(super) queues: Vec<ConsumedQueue>,
    /// The most messages to prefetch.
    pub(super) most: usize,
    state: Mutex<State>,
    /// Held while consumers are started or stopped, and while messages are fetched.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// A queue to receive from.
#[derive(Clone)]
pub(super) struct ConsumedQueue {
    pub(super) name: ShortString,
    /// Whether it may have consumers for a while. A queue that is deleted with its last consumer may not.
    pub(super) pushes: bool,
    /// The queue whose messages are parked in this one.
    pub(super) parks_for: Option<ShortString>,
}

/// What the broker pushes at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pushing {
    #[default]
    Nothing,
    /// The next message of any queue, for a waiting worker.
    Next,
    /// The backlog of one queue, `prefetch` messages at a time.
    Backlog { queue: usize, prefetch: usize },
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pushing: Pushing,
    /// Each with the index of its queue.
    pub(super) consumers: Vec<(usize, Consumer)>,
    /// The prefetch count of consumers that are started now.
    pub(super) prefetch: u16,
    /// Messages that were received and not handed out, for each queue.
    pub(super) waiting: Vec<VecDeque<Waiting>>,
    /// Messages that were handed out, by delivery tag.
    held: BTreeMap<u64, Held>,
    settled: SettledTags,
    /// The task that waits for the next message.
    pub(super) waker: Option<Waker>,
    /// How many tasks wait.
    pub(super) watchers: usize,
    /// Whether the reaper runs, which requeues messages that nobody asks for.
    pub(super) has_reaper: bool,
    /// The number of checks since messages were last asked for.
    pub(super) idle_checks: u8,
    /// The approximate size of the largest recent message, in bytes.
    pub(super) largest: usize,
}

/// A message that was received and not handed out.
pub(super) struct Waiting {
    pub(super) delivery: Delivery,
    /// The number of checks during which it has waited.
    pub(super) checks: u8,
}

/// What is needed to send a message again.
#[derive(Clone)]
pub(super) struct Held {
    /// The queue that it belongs to.
    pub(super) queue: ShortString,
    /// Whether it was received from where that queue's messages are parked.
    pub(super) is_parked: bool,
    pub(super) properties: BasicProperties,
}

/// A message to be handed out.
pub(super) struct HandedOut {
    pub(super) id: MessageId,
    pub(super) data: Vec<u8>,
    pub(super) properties: BasicProperties,
}

impl Consuming {
    pub(super) fn new(channel: Channel, queues: Vec<ConsumedQueue>, most: usize) -> Self {
        let waiting = queues.iter().map(|_| VecDeque::new()).collect();
        Self {
            channel,
            number: fastrand::u64(..),
            queues,
            most,
            state: Mutex::new(State { waiting, ..State::default() }),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Closes the channel when the broker has received everything that was sent on it. The broker requeues messages
    /// that are still handed out.
    pub(super) async fn close(&self) {
        if let Err(error) = self.channel.close(200, "done".into()).await {
            tracing::debug!(%error, "the channel could not be closed cleanly");
        }
    }

    /// Whether it receives from where messages are parked.
    pub(super) fn is_of_parked(&self) -> bool {
        self.queues.iter().any(|queue| queue.parks_for.is_some())
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Hands out up to `up_to` messages, but not many more than `bytes`, those of the first queue first.
    pub(super) fn hand_out(&self, up_to: usize, bytes: usize) -> Vec<HandedOut> {
        let mut state = self.state();
        let (mut taken, mut size) = (Vec::new(), 0_usize);
        while taken.len() < up_to && (taken.is_empty() || size < bytes) {
            let Some((queue, delivery)) = state.pop() else { break };
            let Delivery { delivery_tag: tag, properties, data, .. } = delivery;
            size = size.saturating_add(data.len());
            let ConsumedQueue { name, parks_for, .. } = self.queues[queue].clone();
            let (is_parked, queue) = (parks_for.is_some(), parks_for.unwrap_or(name));
            state.held.insert(tag, Held { queue, is_parked, properties: properties.clone() });
            taken.push(HandedOut { id: self.id(tag), data, properties });
        }
        taken
    }

    /// The queue and properties of a message that was handed out.
    pub(super) fn held(&self, id: &MessageId) -> Option<Held> {
        self.state().held.get(&self.tag(id)?).cloned()
    }

    /// Acknowledges messages. The broker does not respond. On a broken channel, they have been requeued already.
    pub(super) async fn ack(&self, ids: &[MessageId]) -> lapin::Result<()> {
        let Acks { all_up_to, single } = {
            let mut state = self.state();
            let tags = self.release_tags(&mut state, ids);
            state.settled.acknowledge(tags)
        };
        let all = all_up_to.into_iter().map(|tag| (tag, true));
        for (tag, multiple) in all.chain(single.into_iter().map(|tag| (tag, false))) {
            self.channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
        }
        Ok(())
    }

    /// Refuses messages: they are requeued, or removed.
    pub(super) async fn nack(&self, ids: &[MessageId], requeue: bool) -> lapin::Result<()> {
        let tags = self.release_tags(&mut self.state(), ids);
        self.refuse(tags, requeue).await
    }

    pub(super) async fn refuse(&self, tags: Vec<u64>, requeue: bool) -> lapin::Result<()> {
        for tag in tags {
            self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue }).await?;
            // Not earlier: another task could acknowledge all up to a later tag, including this one.
            self.state().settled.add(tag);
        }
        Ok(())
    }

    /// Removes these messages from those handed out, and returns their tags.
    fn release_tags(&self, state: &mut State, ids: &[MessageId]) -> Vec<u64> {
        ids.iter().filter_map(|id| self.tag(id)).filter(|tag| state.held.remove(tag).is_some()).collect()
    }

    /// Returns when there is a message to hand out.
    pub(super) async fn message_ready(&self) -> lapin::Result<()> {
        poll_fn(|context| {
            let mut state = self.state();
            state.waker = Some(context.waker().clone());
            state.poll(context)
        })
        .await
    }

    /// Takes over the messages that were pushed, without waiting.
    pub(super) fn collect(&self) -> lapin::Result<()> {
        let collected = poll_fn(|context| {
            let mut state = self.state();
            while let Poll::Ready(come) = state.poll_new(context) {
                if come.is_err() {
                    return Poll::Ready(come);
                }
            }
            Poll::Ready(Ok(()))
        })
        .now_or_never()
        .unwrap_or(Ok(()));
        // A consumer only wakes the task that polled it last.
        if let Some(waker) = self.state().waker.take() {
            waker.wake();
        }
        collected
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // At worst, a panic while the lock is held leaves a message that the broker requeues later.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, tag: u64) -> MessageId {
        MessageId(format!("{:016x}-{tag}", self.number))
    }

    /// The tag of a message, if it is of this channel.
    fn tag(&self, id: &MessageId) -> Option<u64> {
        let (number, tag) = id.0.split_once('-')?;
        if u64::from_str_radix(number, 16).ok()? == self.number { tag.parse().ok() } else { None }
    }
}

impl State {
    /// Keeps a message that was received from a queue.
    pub(super) fn keep(&mut self, queue: usize, delivery: Delivery) {
        // The estimate follows a large message at once, and small ones gradually.
        self.largest = (self.largest - self.largest / 16).max(delivery.data.len());
        // In the broker's order: of several concurrent requests, a later one may be answered first.
        let waiting = &mut self.waiting[queue];
        let before = waiting.iter().rposition(|waiting| waiting.delivery.delivery_tag < delivery.delivery_tag);
        waiting.insert(before.map_or(0, |before| before + 1), Waiting { delivery, checks: 0 });
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// How many messages wait in this queue and those before it.
    pub(super) fn waiting_down_to(&self, queue: usize) -> usize {
        self.waiting.iter().take(queue + 1).map(VecDeque::len).sum()
    }

    fn pop(&mut self) -> Option<(usize, Delivery)> {
        let waiting = self.waiting.iter_mut().enumerate();
        waiting.filter_map(|(queue, waiting)| Some((queue, waiting.pop_front()?.delivery))).next()
    }

    /// Ready when a message waits, or one arrives.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        if self.is_waiting() { Poll::Ready(Ok(())) } else { self.poll_new(context) }
    }

    fn poll_new(&mut self, context: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        let mut come = None;
        for (queue, consumer) in &mut self.consumers {
            match std::pin::Pin::new(consumer).poll_next(context) {
                Poll::Ready(Some(Ok(delivery))) => {
                    come = Some((*queue, delivery));
                    break;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                // The queue was deleted, or the connection lost.
                Poll::Ready(None) => {
                    return Poll::Ready(Err(std::io::Error::other("the broker has ended the consumer").into()));
                }
                Poll::Pending => {}
            }
        }
        let Some((queue, delivery)) = come else { return Poll::Pending };
        self.keep(queue, delivery);
        Poll::Ready(Ok(()))
    }
}

/// How many messages are ready in these queues.
pub(super) async fn count(channel: &Channel, queues: &[ShortString]) -> lapin::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let counts = queues.iter().map(|queue| channel.queue_declare(queue.clone(), passive, FieldTable::default()));
    Ok(try_join_all(counts).await?.iter().map(|queue| u64::from(queue.message_count())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_handed_out_in_the_brokers_order() {
        let mut state = State { waiting: vec![VecDeque::new()], ..State::default() };
        for tag in [1, 4, 3, 5, 2] {
            state.keep(0, Delivery::mock(tag, "".into(), "".into(), false, vec![]));
        }
        let tags: Vec<u64> = std::iter::from_fn(|| state.pop()).map(|(_, delivery)| delivery.delivery_tag).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5]);
    }
}
