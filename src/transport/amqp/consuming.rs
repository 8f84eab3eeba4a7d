//! Receiving: what a channel has brought, what is in hand, and what becomes of it. [`fetching`](super::fetching) sees to it
//! that messages come.
//!
//! A message that was received belongs to its channel. When that ends, by whatever cause, the broker puts all of it back,
//! and nothing said later about these messages means anything: so their ids name the channel too.

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
use super::tags::{Acks, Settled};

/// A channel on which messages come.
pub(super) struct Consuming {
    pub(super) channel: Channel,
    /// Tells this channel's messages from those of others.
    number: u64,
    /// The most important first.
    pub(super) queues: Vec<ConsumedQueue>,
    /// The most messages that may be pushed ahead.
    pub(super) most: usize,
    state: Mutex<State>,
    /// Held while consumers begin or end, and while messages are fetched.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// A queue to receive from.
#[derive(Clone)]
pub(super) struct ConsumedQueue {
    pub(super) name: ShortString,
    /// May it have consumers that go again? One that is deleted with its last consumer may not.
    pub(super) pushes: bool,
}

/// What consumers are there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pushing {
    #[default]
    Nothing,
    /// The next message, of whichever queue: a worker is waiting for it.
    Next,
    /// The backlog of one queue, so many messages at a time.
    Backlog { queue: usize, prefetch: usize },
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pushing: Pushing,
    /// By the queue's place among the queues.
    pub(super) consumers: Vec<(usize, Consumer)>,
    /// The prefetch of consumers that begin now.
    pub(super) prefetch: u16,
    /// Received from the broker and not handed out, for each queue.
    pub(super) waiting: Vec<VecDeque<Waiting>>,
    /// Handed out, by delivery tag.
    held: BTreeMap<u64, Held>,
    settled: Settled,
    /// Who waits for the next message.
    pub(super) waker: Option<Waker>,
    /// How many they are.
    pub(super) watchers: usize,
    /// Is somebody looking after what is pushed and not asked for?
    pub(super) is_minded: bool,
    /// For how many looks nothing has been asked for.
    pub(super) unasked: u8,
    /// About how large the largest of the last messages was, in bytes.
    pub(super) largest: usize,
}

/// A message that has come and is not handed out.
pub(super) struct Waiting {
    pub(super) delivery: Delivery,
    /// For how many looks it has waited.
    pub(super) looks: u8,
}

/// What sending a message again needs to know.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) queue: ShortString,
    pub(super) properties: BasicProperties,
}

/// A message that is handed out.
pub(super) struct Taken {
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

    /// Ends the channel, once the broker has received everything that was said on it. It puts back what is still in hand.
    pub(super) async fn close(&self) {
        if let Err(error) = self.channel.close(200, "done".into()).await {
            tracing::debug!(%error, "the channel was not closed in order");
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Hands out up to so many of those that have come, the most important queue's first.
    pub(super) fn hand_out(&self, up_to: usize, bytes: usize) -> Vec<Taken> {
        let mut state = self.state();
        let (mut taken, mut size) = (Vec::new(), 0_usize);
        while taken.len() < up_to && (taken.is_empty() || size < bytes) {
            let Some((queue, delivery)) = state.pop() else { break };
            let Delivery { delivery_tag: tag, properties, data, .. } = delivery;
            size = size.saturating_add(data.len());
            let queue = self.queues[queue].name.clone();
            state.held.insert(tag, Held { queue, properties: properties.clone() });
            taken.push(Taken { id: self.id(tag), data, properties });
        }
        taken
    }

    /// What is known of a message that is handed out.
    pub(super) fn held(&self, id: &MessageId) -> Option<Held> {
        self.state().held.get(&self.tag(id)?).cloned()
    }

    /// The messages leave their queues. The broker does not answer; a channel that is broken has lost them already.
    pub(super) async fn ack(&self, ids: &[MessageId]) -> lapin::Result<()> {
        let Acks { all_up_to, single } = {
            let mut state = self.state();
            let tags = self.no_longer_held(&mut state, ids);
            state.settled.acknowledge(tags)
        };
        let all = all_up_to.into_iter().map(|tag| (tag, true));
        for (tag, multiple) in all.chain(single.into_iter().map(|tag| (tag, false))) {
            self.channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
        }
        Ok(())
    }

    /// The messages are not wanted here: they go back to their queues, or leave them.
    pub(super) async fn nack(&self, ids: &[MessageId], requeue: bool) -> lapin::Result<()> {
        let tags = self.no_longer_held(&mut self.state(), ids);
        self.refuse(tags, requeue).await
    }

    pub(super) async fn refuse(&self, tags: Vec<u64>, requeue: bool) -> lapin::Result<()> {
        for tag in tags {
            self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue }).await?;
            // Not before: an acknowledgement of all up to a later tag, by another task, would take this one for handled.
            self.state().settled.add(tag);
        }
        Ok(())
    }

    /// The tags of these, as far as they were in hand.
    fn no_longer_held(&self, state: &mut State, ids: &[MessageId]) -> Vec<u64> {
        ids.iter().filter_map(|id| self.tag(id)).filter(|tag| state.held.remove(tag).is_some()).collect()
    }

    /// Returns when a message is there to be handed out.
    pub(super) async fn come(&self) -> lapin::Result<()> {
        poll_fn(|context| {
            let mut state = self.state();
            state.waker = Some(context.waker().clone());
            state.poll(context)
        })
        .await
    }

    /// Takes over what has been pushed, without waiting.
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
        // A consumer tells only the one who asked last.
        if let Some(waker) = self.state().waker.take() {
            waker.wake();
        }
        collected
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst a message that the broker puts back later.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, tag: u64) -> MessageId {
        MessageId(format!("{:016x}-{tag}", self.number))
    }

    /// The tag of a message of this channel's.
    fn tag(&self, id: &MessageId) -> Option<u64> {
        let (number, tag) = id.0.split_once('-')?;
        if u64::from_str_radix(number, 16).ok()? == self.number { tag.parse().ok() } else { None }
    }
}

impl State {
    /// Keeps what has come from a queue.
    pub(super) fn keep(&mut self, queue: usize, delivery: Delivery) {
        // Believes a large one at once, and forgets it by and by.
        self.largest = (self.largest - self.largest / 16).max(delivery.data.len());
        // In the broker's order: of several that are asked for at once, a later one may be noticed first.
        let waiting = &mut self.waiting[queue];
        let before = waiting.iter().rposition(|waiting| waiting.delivery.delivery_tag < delivery.delivery_tag);
        waiting.insert(before.map_or(0, |before| before + 1), Waiting { delivery, looks: 0 });
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// How many wait that are as important as this queue's, or more.
    pub(super) fn waiting_down_to(&self, queue: usize) -> usize {
        self.waiting.iter().take(queue + 1).map(VecDeque::len).sum()
    }

    fn pop(&mut self) -> Option<(usize, Delivery)> {
        let waiting = self.waiting.iter_mut().enumerate();
        waiting.filter_map(|(queue, waiting)| Some((queue, waiting.pop_front()?.delivery))).next()
    }

    /// Is anything waiting, or does something come?
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
                // The broker has ended it: the queue is gone, or the connection.
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

/// Messages ready in queues.
pub(super) async fn count(channel: &Channel, queues: &[ShortString]) -> lapin::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let counts = queues.iter().map(|queue| channel.queue_declare(queue.clone(), passive, FieldTable::default()));
    Ok(try_join_all(counts).await?.iter().map(|queue| u64::from(queue.message_count())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_handed_out_in_the_brokers_order_whichever_is_noticed_first() {
        let mut state = State { waiting: vec![VecDeque::new()], ..State::default() };
        for tag in [1, 4, 3, 5, 2] {
            state.keep(0, Delivery::mock(tag, "".into(), "".into(), false, vec![]));
        }
        let tags: Vec<u64> = std::iter::from_fn(|| state.pop()).map(|(_, delivery)| delivery.delivery_tag).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5]);
    }
}
