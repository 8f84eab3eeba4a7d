//! Gets messages from the broker: requests them, or has them pushed.
//!
//! Pushed messages are kept from other consumers, even while this worker is busy. If they are requeued, Symfony's
//! consumers count them as failed. So messages are requested (`basic.get`), queue by queue in order of priority. There
//! are consumers in two cases only:
//!
//! - While a worker waits, each queue has a consumer for one message. All are stopped when the first message arrives.
//! - While a worker with fast handlers works off a backlog, that queue has a consumer that prefetches as many messages
//!   as are received at once: some milliseconds of work, without a round trip for each.
//!
//! Pushed messages that are not asked for soon, because a handler takes longer than all before it, are requeued
//! nevertheless.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use lapin::Consumer;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use super::consuming::{Consuming, HandedOut, Pushing};

/// The default for the most messages to prefetch.
pub(super) const MAX_PREFETCH: usize = 1024;
/// For fewer messages, a consumer is not worthwhile.
const MIN_PREFETCH: usize = 8;

/// The most bytes fetched at once, estimated from the sizes of earlier messages.
const MAX_BYTES: usize = 8 << 20;

/// How often the reaper checks for pushed messages that nobody asks for, and how many checks a message may wait. Checks
/// are counted and not time, because a machine that stalls for a moment asks for nothing meanwhile.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const MAX_CHECKS: u8 = 5;

impl Consuming {
    /// Up to `up_to` messages that are ready now. With `ahead`, the next ones may be prefetched.
    pub(super) async fn take(self: &Arc<Self>, up_to: usize, ahead: bool) -> lapin::Result<Vec<HandedOut>> {
        self.to_completion(async move |this: Arc<Self>| this.fetch(up_to, ahead).await).await?;
        // Only a part of those prefetched, so that the others arrive while these are handled.
        let backlog = matches!(self.state().pushing, Pushing::Backlog { .. });
        Ok(self.hand_out(if backlog { up_to.div_ceil(2) } else { up_to }, MAX_BYTES))
    }

    /// Returns when a message has arrived.
    pub(super) async fn wait(self: &Arc<Self>) -> lapin::Result<()> {
        self.collect()?;
        if self.state().is_waiting() {
            return Ok(());
        }
        let watch = Watcher::begin(self);
        self.to_completion(async move |this: Arc<Self>| this.watch().await).await?;
        self.message_ready().await?;
        drop(watch);
        self.to_completion(async move |this: Arc<Self>| this.unwatch().await).await
    }

    /// Stops pushing, and hands out all messages that were pushed.
    pub(super) async fn stop(self: &Arc<Self>) -> lapin::Result<Vec<HandedOut>> {
        self.to_completion(async move |this: Arc<Self>| {
            let _turn = this.turn.lock().await;
            this.stop_consumers().await
        })
        .await?;
        Ok(self.hand_out(usize::MAX, usize::MAX))
    }

    /// Runs something in a task of its own, which is not cancelled with the caller: work that is half done would leave
    /// unknown consumers, or messages that nobody hands out.
    async fn to_completion<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> lapin::Result<()>
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
        let ahead = ahead && prefetch >= MIN_PREFETCH;
        let pushing = {
            let mut state = self.state();
            state.idle_checks = 0;
            state.pushing
        };
        let mut backlog = match pushing {
            // The prefetch count changes only if necessary: that takes two round trips.
            Pushing::Backlog { queue, prefetch: now } if ahead && now / 2 <= prefetch && now >= prefetch / 2 => {
                Some(queue)
            }
            Pushing::Next if self.state().watchers > 0 => None,
            _ => {
                self.stop_consumers().await?;
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
                    self.stop_consumers().await?;
                }
                continue;
            };
            if backlog == Some(queue) {
                break;
            }
            if ahead && more >= prefetch && self.queues[queue].pushes {
                self.stop_consumers().await?;
                self.start_consumers(Pushing::Backlog { queue, prefetch }).await?;
                break;
            }
            self.get_more(queue, missing.saturating_sub(1).min(more)).await?;
        }
        self.start_reaper();
        Ok(())
    }

    /// Requests a message of a queue, and returns how many more there are; `None` if there was none.
    async fn get(&self, queue: usize) -> lapin::Result<Option<usize>> {
        let name = self.queues[queue].name.clone();
        let Some(got) = self.channel.basic_get(name, BasicGetOptions { no_ack: false }).await? else { return Ok(None) };
        // Messages that were pushed earlier come first.
        self.collect()?;
        let more = usize::try_from(got.message_count).unwrap_or(usize::MAX);
        self.state().keep(queue, got.delivery);
        Ok(Some(more))
    }

    /// Requests `many` messages of a queue, in one round trip, or fewer if they are too large to be fetched at once.
    async fn get_more(&self, queue: usize, many: usize) -> lapin::Result<()> {
        let many = self.at_once(many.saturating_add(1)) - 1;
        let got = join_all((0..many).map(|_| self.get(queue))).await;
        got.into_iter().try_for_each(|got| got.map(|_| ()))
    }

    /// How many messages to fetch at once: up to `up_to`, as many as are not too large together, and at least one.
    fn at_once(&self, up_to: usize) -> usize {
        up_to.min(MAX_BYTES / self.state().largest.max(1)).max(1)
    }

    /// Has each queue push a message.
    async fn watch(self: Arc<Self>) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let is_needless = {
            let state = self.state();
            state.pushing == Pushing::Next || state.watchers == 0 || state.is_waiting()
        };
        if is_needless {
            return Ok(());
        }
        self.stop_consumers().await?;
        self.start_consumers(Pushing::Next).await
    }

    /// Ends that if no task waits any more.
    async fn unwatch(self: Arc<Self>) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let over = {
            let state = self.state();
            state.pushing == Pushing::Next && state.watchers == 0
        };
        if over {
            self.stop_consumers().await?;
            self.start_reaper();
        }
        Ok(())
    }

    async fn start_consumers(&self, pushing: Pushing) -> lapin::Result<()> {
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

    /// Stops the consumers, and keeps the messages that they have received.
    async fn stop_consumers(&self) -> lapin::Result<()> {
        // Taken out first: to other tasks, it would look as if the broker had ended them.
        let consumers = {
            let mut state = self.state();
            state.pushing = Pushing::Nothing;
            std::mem::take(&mut state.consumers)
        };
        // All messages that the broker has pushed arrive before its response.
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

    /// Starts the reaper, which runs while messages are pushed or wait here.
    fn start_reaper(self: &Arc<Self>) {
        let mut state = self.state();
        if state.has_reaper || !state.needs_reaper() {
            return;
        }
        state.has_reaper = true;
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                match Weak::upgrade(&this) {
                    Some(this) if this.reap().await => {}
                    _ => return,
                }
            }
        });
    }

    /// Requeues messages that have waited here for too long, and stops a consumer if nobody asks for its messages.
    /// Returns whether to check again.
    async fn reap(&self) -> bool {
        let _turn = self.turn.lock().await;
        // Errors of the channel are reported to the next caller.
        let _ = self.collect();
        let is_abandoned = {
            let mut state = self.state();
            state.idle_checks = state.idle_checks.saturating_add(1);
            matches!(state.pushing, Pushing::Backlog { .. }) && state.idle_checks >= MAX_CHECKS
        };
        let ended = if is_abandoned { self.stop_consumers().await } else { Ok(()) };
        let overdue: Vec<u64> = self.state().overdue();
        if !overdue.is_empty() {
            tracing::debug!(messages = overdue.len(), "requeued messages that were pushed and not started in time");
        }
        let refused = self.refuse(overdue, true).await;
        let mut state = self.state();
        state.has_reaper = ended.is_ok() && refused.is_ok() && state.needs_reaper();
        state.has_reaper
    }
}

impl super::consuming::State {
    fn needs_reaper(&self) -> bool {
        matches!(self.pushing, Pushing::Backlog { .. }) || self.is_waiting()
    }

    /// Removes the messages that have waited for too long, and returns their tags.
    fn overdue(&mut self) -> Vec<u64> {
        let mut overdue = Vec::new();
        for waiting in &mut self.waiting {
            waiting.iter_mut().for_each(|waiting| waiting.checks += 1);
            waiting.retain(|waiting| {
                let is_overdue = waiting.checks >= MAX_CHECKS;
                if is_overdue {
                    overdue.push(waiting.delivery.delivery_tag);
                }
                !is_overdue
            });
        }
        overdue
    }
}

/// A task that waits for the next message.
struct Watcher(Arc<Consuming>);

impl Watcher {
    fn begin(consuming: &Arc<Consuming>) -> Self {
        consuming.state().watchers += 1;
        Self(Arc::clone(consuming))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.state().watchers -= 1;
        // Outside of a runtime, the connection is about to end, and its consumers with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(Arc::clone(&self.0).unwatch());
        }
    }
}
