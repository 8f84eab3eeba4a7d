//! How messages come: asked for one by one, or pushed by the broker.
//!
//! What is pushed is kept from other consumers, also while nothing can be begun here; and what is given back counts, with
//! Symfony's consumers, as a message that failed. So messages are asked for (`basic.get`), queue by queue in the order of
//! their importance, and consumers exist in two cases only:
//!
//! - While a worker waits, each queue has one that brings one message, and all end with the first that comes.
//! - While a worker with fast handlers works off a backlog, that queue has one that brings up to as many messages as are
//!   received at once: some milliseconds of work, without a round trip for each.
//!
//! What was pushed and is not asked for soon, since a message takes longer than all before it, does go back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use lapin::Consumer;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use super::consuming::{Consuming, Pushing, Taken};

/// The most messages that may be pushed ahead, where nothing else is said.
pub(super) const MOST: usize = 1024;
/// For fewer messages ahead a consumer is not worth while.
const FEWEST: usize = 8;

/// The most bytes that are fetched at once, as far as the sizes of earlier messages tell.
const BYTES: usize = 8 << 20;

/// How often somebody looks for what was pushed and not asked for, and how many looks it may wait. Looks and not time: a
/// machine that stands still for a moment has asked for nothing meanwhile.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u8 = 5;

impl Consuming {
    /// Up to so many messages that are there now. With `ahead`, the next ones may be pushed meanwhile.
    pub(super) async fn take(self: &Arc<Self>, up_to: usize, ahead: bool) -> lapin::Result<Vec<Taken>> {
        self.whole(async move |this: Arc<Self>| this.fetch(up_to, ahead).await).await?;
        // A part of what may come ahead, so that the rest comes while these are handled.
        let backlog = matches!(self.state().pushing, Pushing::Backlog { .. });
        Ok(self.hand_out(if backlog { up_to.div_ceil(2) } else { up_to }, BYTES))
    }

    /// Returns when a message has come.
    pub(super) async fn wait(self: &Arc<Self>) -> lapin::Result<()> {
        self.collect()?;
        if self.state().is_waiting() {
            return Ok(());
        }
        let watch = Watch::begin(self);
        self.whole(async move |this: Arc<Self>| this.watch().await).await?;
        self.come().await?;
        drop(watch);
        self.whole(async move |this: Arc<Self>| this.unwatch().await).await
    }

    /// From now on nothing is pushed. Hands out what has been.
    pub(super) async fn stop(self: &Arc<Self>) -> lapin::Result<Vec<Taken>> {
        self.whole(async move |this: Arc<Self>| {
            let _turn = this.turn.lock().await;
            this.end_consumers().await
        })
        .await?;
        Ok(self.hand_out(usize::MAX, usize::MAX))
    }

    /// Does something in a task of its own, which is not broken off with whoever waits for it: what is half done would leave
    /// consumers that nobody knows, or messages that nobody hands out.
    async fn whole<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> lapin::Result<()>
    where
        F: Future<Output = lapin::Result<()>> + Send + 'static,
    {
        let done = tokio::spawn(work(Arc::clone(self))).await;
        done.unwrap_or_else(|ended| Err(std::io::Error::other(ended).into()))
    }

    async fn fetch(self: Arc<Self>, up_to: usize, ahead: bool) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        self.collect()?;
        let prefetch = self.at_once(up_to.min(self.most));
        let ahead = ahead && prefetch >= FEWEST;
        let pushing = {
            let mut state = self.state();
            state.unasked = 0;
            state.pushing
        };
        let mut backlog = match pushing {
            // It changes only when it has to: that takes two round trips.
            Pushing::Backlog { queue, prefetch: now } if ahead && now / 2 <= prefetch && now >= prefetch / 2 => {
                Some(queue)
            }
            Pushing::Next if self.state().watchers > 0 => None,
            _ => {
                self.end_consumers().await?;
                None
            }
        };
        for queue in 0..self.queues.len() {
            let missing = up_to.saturating_sub(self.state().waiting_down_to(queue));
            if missing == 0 || (backlog == Some(queue) && self.state().waiting_down_to(queue) > 0) {
                break;
            }
            let Some(more) = self.get(queue).await? else {
                if backlog == Some(queue) {
                    backlog = None;
                    self.end_consumers().await?;
                }
                continue;
            };
            if backlog == Some(queue) {
                break;
            }
            if ahead && more >= prefetch && self.queues[queue].pushes {
                self.end_consumers().await?;
                self.begin_consumers(Pushing::Backlog { queue, prefetch }).await?;
                break;
            }
            self.get_more(queue, missing.saturating_sub(1).min(more)).await?;
        }
        self.mind();
        Ok(())
    }

    /// Asks a queue for a message, and returns how many more there are; `None` when there was none.
    async fn get(&self, queue: usize) -> lapin::Result<Option<usize>> {
        let name = self.queues[queue].name.clone();
        let Some(got) = self.channel.basic_get(name, BasicGetOptions { no_ack: false }).await? else { return Ok(None) };
        // What was pushed before comes before.
        self.collect()?;
        let more = usize::try_from(got.message_count).unwrap_or(usize::MAX);
        self.state().keep(queue, got.delivery);
        Ok(Some(more))
    }

    /// Asks a queue for so many messages, with one round trip as long as their size is not beyond what may be fetched at
    /// once.
    async fn get_more(&self, queue: usize, many: usize) -> lapin::Result<()> {
        let many = self.at_once(many.saturating_add(1)) - 1;
        let got = join_all((0..many).map(|_| self.get(queue))).await;
        got.into_iter().try_for_each(|got| got.map(|_| ()))
    }

    /// So many messages, or as many as are not too large together; at least one.
    fn at_once(&self, up_to: usize) -> usize {
        up_to.min(BYTES / self.state().largest.max(1)).max(1)
    }

    /// Lets each queue push a message.
    async fn watch(self: Arc<Self>) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let is_needless = {
            let state = self.state();
            state.pushing == Pushing::Next || state.watchers == 0 || state.is_waiting()
        };
        if is_needless {
            return Ok(());
        }
        self.end_consumers().await?;
        self.begin_consumers(Pushing::Next).await
    }

    /// Ends that, when nobody waits any more.
    async fn unwatch(self: Arc<Self>) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let over = {
            let state = self.state();
            state.pushing == Pushing::Next && state.watchers == 0
        };
        if over {
            self.end_consumers().await?;
            self.mind();
        }
        Ok(())
    }

    async fn begin_consumers(&self, pushing: Pushing) -> lapin::Result<()> {
        let (queues, prefetch) = match pushing {
            Pushing::Nothing => return Ok(()),
            Pushing::Next => (0..self.queues.len(), 1),
            Pushing::Backlog { queue, prefetch } => (queue..queue + 1, prefetch),
        };
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        if self.state().prefetch != prefetch {
            self.channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
            self.state().prefetch = prefetch;
        }
        let begun = queues.filter(|queue| self.queues[*queue].pushes).map(|queue| async move {
            let (name, options) = (self.queues[queue].name.clone(), BasicConsumeOptions::default());
            let consumer =
                self.channel.basic_consume(name, ShortString::default(), options, FieldTable::default()).await?;
            Ok::<(usize, Consumer), lapin::Error>((queue, consumer))
        });
        let consumers = try_join_all(begun).await?;
        let mut state = self.state();
        state.consumers = consumers;
        state.pushing = pushing;
        Ok(())
    }

    /// Ends the consumers, and keeps what they have brought.
    async fn end_consumers(&self) -> lapin::Result<()> {
        // Nobody else asks them from here on: they end, and to others that would look as if the broker had ended them.
        let consumers = {
            let mut state = self.state();
            state.pushing = Pushing::Nothing;
            std::mem::take(&mut state.consumers)
        };
        // All that the broker has pushed is here before its answer.
        let ended = consumers
            .iter()
            .map(|(_, consumer)| self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()));
        join_all(ended).await.into_iter().collect::<lapin::Result<Vec<()>>>()?;
        let mut state = self.state();
        for (queue, mut consumer) in consumers {
            while let Some(Some(Ok(delivery))) =
                futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut consumer))
            {
                state.keep(queue, delivery);
            }
        }
        Ok(())
    }

    /// Looks after what is pushed or waits here, until there is nothing of that.
    fn mind(self: &Arc<Self>) {
        let mut state = self.state();
        if state.is_minded || !state.is_to_be_minded() {
            return;
        }
        state.is_minded = true;
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                match Weak::upgrade(&this) {
                    Some(this) if this.look().await => {}
                    _ => return,
                }
            }
        });
    }

    /// Gives back what has waited here for too long, and ends a consumer whose messages nobody asks for. Returns whether to
    /// look again.
    async fn look(&self) -> bool {
        let _turn = self.turn.lock().await;
        // Whatever is wrong with the channel, the next one who asks finds out.
        let _ = self.collect();
        let nobody_asks = {
            let mut state = self.state();
            state.unasked = state.unasked.saturating_add(1);
            matches!(state.pushing, Pushing::Backlog { .. }) && state.unasked >= LOOKS
        };
        let ended = if nobody_asks { self.end_consumers().await } else { Ok(()) };
        let overdue: Vec<u64> = self.state().overdue();
        if !overdue.is_empty() {
            tracing::debug!(messages = overdue.len(), "pushed and not begun in time: they go back");
        }
        let refused = self.refuse(overdue, true).await;
        let mut state = self.state();
        state.is_minded = ended.is_ok() && refused.is_ok() && state.is_to_be_minded();
        state.is_minded
    }
}

impl super::consuming::State {
    fn is_to_be_minded(&self) -> bool {
        matches!(self.pushing, Pushing::Backlog { .. }) || self.is_waiting()
    }

    /// Those that have waited for too long, which are not here any more then.
    fn overdue(&mut self) -> Vec<u64> {
        let mut overdue = Vec::new();
        for waiting in &mut self.waiting {
            waiting.iter_mut().for_each(|waiting| waiting.looks += 1);
            waiting.retain(|waiting| {
                let is_overdue = waiting.looks >= LOOKS;
                if is_overdue {
                    overdue.push(waiting.delivery.delivery_tag);
                }
                !is_overdue
            });
        }
        overdue
    }
}

/// Somebody who waits for the next message.
struct Watch(Arc<Consuming>);

impl Watch {
    fn begin(consuming: &Arc<Consuming>) -> Self {
        consuming.state().watchers += 1;
        Self(Arc::clone(consuming))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.state().watchers -= 1;
        // Outside of a runtime the connection is about to go, and its consumers with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(Arc::clone(&self.0).unwatch());
        }
    }
}
