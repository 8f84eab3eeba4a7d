//! Receiving: the broker pushes messages, as many as are wanted and no more.
//!
//! How many may be on their way (the prefetch) follows what is asked for: a worker with slow handlers asks for one message
//! at a time and keeps none from others, one with fast handlers gets them by the hundred. What is pushed and not wanted
//! any more goes back.
//!
//! A message that was received belongs to its channel. When that ends, by whatever cause, the broker puts all of it back,
//! and nothing said later about these messages means anything: so their ids name the channel too.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::{FutureExt, join_all, try_join_all};
use lapin::message::Delivery;
use lapin::options::QueueDeclareOptions;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};

use super::super::MessageId;

/// The most messages that may be on their way.
const MOST: u16 = 1024;

/// How long a message is waited for that the broker has.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// A channel on which messages come.
pub(super) struct Consuming {
    channel: Channel,
    /// Tells this channel's messages from those of others.
    number: u64,
    queues: Vec<ShortString>,
    /// As configured.
    most: u16,
    state: Mutex<State>,
    /// Held while the prefetch changes.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    prefetch: u16,
    consumers: Vec<(ShortString, Consumer)>,
    /// Pushed, and not handed out.
    waiting: VecDeque<(ShortString, Delivery)>,
    /// Handed out, by delivery tag.
    held: BTreeMap<u64, Held>,
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
    pub(super) fn new(channel: Channel, queues: Vec<ShortString>, prefetch: Option<u16>) -> Self {
        let most = prefetch.unwrap_or(MOST);
        Self {
            channel,
            number: fastrand::u64(..),
            queues,
            most,
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Up to so many messages that are there now.
    pub(super) async fn take(self: &Arc<Self>, up_to: usize) -> lapin::Result<Vec<Taken>> {
        self.want(up_to).await?;
        self.collect()?;
        if self.state().waiting.is_empty() {
            // What the broker has pushed by the time it answers this is here before the answer. What is still there then is
            // on its way, or another's.
            let ready = self.count().await?;
            self.collect()?;
            if ready > 0 && self.state().waiting.is_empty() {
                tokio::time::timeout(UNDER_WAY, self.come()).await.unwrap_or(Ok(()))?;
            }
        }
        let mut state = self.state();
        let many = up_to.min(state.waiting.len());
        let taken: Vec<(ShortString, Delivery)> = state.waiting.drain(..many).collect();
        let taken = taken.into_iter().map(|(queue, delivery)| {
            let Delivery { delivery_tag: tag, properties, data, .. } = delivery;
            state.held.insert(tag, Held { queue, properties: properties.clone() });
            Taken { id: self.id(tag), data, properties }
        });
        Ok(taken.collect())
    }

    /// Returns when a message has come.
    pub(super) async fn wait(self: &Arc<Self>) -> lapin::Result<()> {
        self.want(1).await?;
        self.come().await
    }

    /// Returns when a message is waiting here.
    async fn come(&self) -> lapin::Result<()> {
        poll_fn(|context| self.state().poll(context)).await
    }

    /// Messages ready in the queues, as the broker sees it.
    async fn count(&self) -> lapin::Result<u64> {
        count(&self.channel, &self.queues).await
    }

    /// What is known of a message that is handed out.
    pub(super) fn held(&self, id: &MessageId) -> Option<Held> {
        self.state().held.get(&self.tag(id)?).cloned()
    }

    /// The messages leave their queues. The broker does not answer; a channel that is broken has lost them already.
    pub(super) async fn ack(&self, ids: &[MessageId]) -> lapin::Result<()> {
        let (all_up_to, others) = {
            let mut state = self.state();
            let mut tags: Vec<u64> = ids.iter().filter_map(|id| self.tag(id)).collect();
            tags.retain(|tag| state.held.remove(tag).is_some());
            tags.sort_unstable();
            // One word for all up to the first that is still in hand, or waits.
            let in_hand = state.held.keys().next().copied().into_iter();
            let first_left = in_hand.chain(state.waiting.iter().map(|(_, delivery)| delivery.delivery_tag)).min();
            let together = tags.partition_point(|tag| first_left.is_none_or(|left| *tag < left));
            let others = tags.split_off(together);
            (tags.pop(), others)
        };
        if let Some(tag) = all_up_to {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        for tag in others {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?;
        }
        Ok(())
    }

    /// The messages are not wanted here: they go back to their queues, or leave them.
    pub(super) async fn nack(&self, ids: &[MessageId], requeue: bool) -> lapin::Result<()> {
        let tags: Vec<u64> = {
            let mut state = self.state();
            ids.iter().filter_map(|id| self.tag(id)).filter(|tag| state.held.remove(tag).is_some()).collect()
        };
        self.refuse(tags, requeue).await
    }

    async fn refuse(&self, tags: Vec<u64>, requeue: bool) -> lapin::Result<()> {
        for tag in tags {
            self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue }).await?;
        }
        Ok(())
    }

    /// Sees to it that so many messages can be on their way besides those in hand, and not many more.
    async fn want(self: &Arc<Self>, up_to: usize) -> lapin::Result<()> {
        if self.prefetch_for(up_to).is_none() {
            return Ok(());
        }
        // In a task of its own, which is not broken off with whoever waits for it: what was half changed would receive
        // nothing any more.
        let this = Arc::clone(self);
        let changed = tokio::spawn(async move {
            let _one_at_a_time = this.changing.lock().await;
            match this.prefetch_for(up_to) {
                Some(prefetch) => this.change(prefetch).await,
                None => Ok(()),
            }
        });
        changed.await.unwrap_or_else(|ended| Err(std::io::Error::other(ended).into()))
    }

    /// The prefetch for this, if it is not the one there is.
    fn prefetch_for(&self, up_to: usize) -> Option<u16> {
        let state = self.state();
        let in_hand = state.held.len().saturating_add(up_to).min(self.most.into());
        // In powers of two, so that it changes seldom.
        let wanted = in_hand.next_power_of_two().min(self.most.into());
        let wanted = u16::try_from(wanted).unwrap_or(self.most).max(1);
        let fits = state.prefetch >= wanted && (state.prefetch / 4 < wanted) && (wanted > 1 || state.prefetch == 1);
        (!fits).then_some(wanted)
    }

    /// Ends the consumers, gives back what they have brought, and begins anew.
    async fn change(&self, prefetch: u16) -> lapin::Result<()> {
        let before: Vec<(ShortString, Consumer)> = {
            let mut state = self.state();
            state.prefetch = 0;
            std::mem::take(&mut state.consumers)
        };
        join_all(
            before.iter().map(|(_, consumer)| self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())),
        )
        .await
        .into_iter()
        .collect::<lapin::Result<Vec<()>>>()?;
        let unwanted = {
            let mut state = self.state();
            // What had been pushed before the broker heard of it.
            for (queue, mut consumer) in before {
                while let Poll::Ready(Some(Ok(delivery))) =
                    Pin::new(&mut consumer).poll_next(&mut Context::from_waker(std::task::Waker::noop()))
                {
                    state.waiting.push_back((queue.clone(), delivery));
                }
            }
            // The next consumer gets as many as are wanted, so these would come on top. They go back to where they were.
            state.waiting.drain(..).map(|(_, delivery)| delivery.delivery_tag).collect()
        };
        self.refuse(unwanted, true).await?;
        self.channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
        let consumers = self.queues.iter().map(|queue| async {
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer =
                self.channel.basic_consume(queue.clone(), ShortString::default(), options, arguments).await?;
            Ok::<_, lapin::Error>((queue.clone(), consumer))
        });
        let consumers = try_join_all(consumers).await?;
        let mut state = self.state();
        state.consumers = consumers;
        state.prefetch = prefetch;
        Ok(())
    }

    /// Takes over what has come, without waiting.
    fn collect(&self) -> lapin::Result<()> {
        poll_fn(|context| {
            let mut state = self.state();
            while let Poll::Ready(come) = state.poll_new(context) {
                if come.is_err() {
                    return Poll::Ready(come);
                }
            }
            Poll::Ready(Ok(()))
        })
        .now_or_never()
        .unwrap_or(Ok(()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
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
    /// Is anything waiting, or does something come?
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        if self.waiting.is_empty() { self.poll_new(context) } else { Poll::Ready(Ok(())) }
    }

    fn poll_new(&mut self, context: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        let Self { consumers, waiting, .. } = self;
        for (queue, consumer) in consumers {
            match Pin::new(consumer).poll_next(context) {
                Poll::Ready(Some(Ok(delivery))) => {
                    waiting.push_back((queue.clone(), delivery));
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                // The broker has ended it: the queue is gone, or the connection.
                Poll::Ready(None) => {
                    return Poll::Ready(Err(std::io::Error::other("the broker has ended the consumer").into()));
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

/// Messages ready in queues.
pub(super) async fn count(channel: &Channel, queues: &[ShortString]) -> lapin::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let counts = queues.iter().map(|queue| channel.queue_declare(queue.clone(), passive, FieldTable::default()));
    Ok(try_join_all(counts).await?.iter().map(|queue| u64::from(queue.message_count())).sum())
}
