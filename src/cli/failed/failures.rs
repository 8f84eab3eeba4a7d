//! The messages of a failure transport: by their ids, or one after the other where there are none.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::progress::Progress;
use super::{App, Choice, Failed, Failure, Result, is_failure_transport, known};
use crate::connection::StoreKind;
use crate::message::Encoded;
use crate::serializer::Serializers;
use crate::transport::{Browsing, Listed, Listing, MessageId, Received, Taking, Transport};

/// How many messages are read at once.
const PAGE: usize = 100;

/// Where messages can be seen only by putting each behind the others, all are put there if there are no more than these,
/// so that they keep their order.
const KEPT_IN_ORDER: u64 = 1000;

/// A failure transport.
pub(super) struct Failures {
    pub(super) name: String,
    pub(super) transport: Arc<Transport>,
    serializers: Arc<Serializers>,
    access: Access,
}

/// How its messages can be got at.
enum Access {
    /// By their ids, if it has a way to receive them.
    ById { listing: Arc<dyn Listing>, taking: Option<Arc<dyn Taking>> },
    /// One after the other. What is shown as an id is computed from the content.
    InOrder(Arc<dyn Browsing>),
}

impl Failures {
    pub(super) fn choose(app: &App, choice: &Choice) -> Result<Self> {
        let name = name(app, choice)?;
        let transport = app.transports.target(&name)?;
        let access = match (&transport.listing, &transport.browsing) {
            (Some(listing), _) => Access::ById { listing: Arc::clone(listing), taking: transport.taking.clone() },
            (None, Some(browsing)) => Access::InOrder(Arc::clone(browsing)),
            (None, None) => {
                return Err(Failure::Usage(format!(
                    "transport \"{name}\" cannot show its messages; the command `consume {name}` handles them again"
                )));
            }
        };
        Ok(Self { name, transport, serializers: app.transports.serializers(), access })
    }

    /// What to say where messages that wait for a retry are not seen: in their order only those that are due and those
    /// that are parked are.
    pub(super) fn hides(&self, app: &App) -> Option<String> {
        let config = app.config.transports.get(self.transport.name());
        let retry = config.and_then(|config| config.retry.as_ref());
        let may_retry = retry.is_none_or(|retry| retry.max_retries > 0 || retry.service.is_some());
        (matches!(self.access, Access::InOrder(_)) && may_retry).then(|| {
            format!(
                "messages of {} that wait for a retry cannot be seen: they are here again when they are due \
                 (`max_retries: 0` in its retry_strategy avoids that)",
                self.name
            )
        })
    }

    /// Whether a message has another id while it is retried, and after that.
    pub(super) fn changes_ids(&self, app: &App) -> bool {
        let config = app.config.transports.get(self.transport.name());
        let scheme = config.and_then(|config| config.dsn.0.split(':').next()).unwrap_or_default().to_ascii_lowercase();
        StoreKind::of_scheme(&scheme) == Some(StoreKind::Redis)
    }

    /// How many messages there are: due, and delayed or parked.
    async fn counts(&self) -> Result<[u64; 2]> {
        let Some(counting) = &self.transport.counting else { return Ok([0; 2]) };
        if !counting.counts_pending_only() {
            let counts = counting.counts(u64::MAX).await?;
            return Ok([counts.pending, counts.delayed.saturating_add(counts.in_flight)]);
        }
        let parked = match &self.transport.parking {
            Some(parking) => parking.parked(u64::MAX).await?,
            None => 0,
        };
        Ok([counting.pending(u64::MAX).await?, parked])
    }

    async fn total(&self) -> Result<u64> {
        Ok(self.counts().await?.iter().fold(0, |sum, count| sum.saturating_add(*count)))
    }

    /// Shows each message to `look`, until that has seen enough.
    pub(super) async fn look(&self, mut look: impl FnMut(Failed) -> ControlFlow<()>) -> Result<()> {
        let mut progress = Progress::new("reading messages:", Some(self.total().await?));
        match &self.access {
            Access::ById { listing, .. } => {
                let mut after: Option<MessageId> = None;
                loop {
                    let page = listing.list(after.as_ref(), PAGE).await?;
                    after = page.last().map(|listed| listed.received.id.clone());
                    let is_last = page.len() < PAGE;
                    for listed in page {
                        progress.step();
                        if look(self.listed(listed)).is_break() {
                            return Ok(());
                        }
                    }
                    if is_last {
                        return Ok(());
                    }
                }
            }
            Access::InOrder(browsing) => {
                let counts = self.counts().await?;
                let keeps_order = counts.iter().sum::<u64>() <= KEPT_IN_ORDER;
                let mut has_seen_enough = false;
                for (count, parked) in counts.into_iter().zip([false, true]) {
                    for _ in 0..count {
                        let Some(message) = browsing.next(parked).await? else { break };
                        browsing.put_back(&message).await?;
                        progress.step();
                        has_seen_enough = has_seen_enough || look(self.browsed(&message)).is_break();
                        if has_seen_enough && !keeps_order {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) async fn find(&self, id: &str) -> Result<Option<Failed>> {
        if let Access::ById { listing, .. } = &self.access {
            return Ok(listing.find(&MessageId(id.to_owned())).await?.map(|listed| self.listed(listed)));
        }
        let mut found = None;
        self.look(|failed| {
            if failed.id.0 != id {
                return ControlFlow::Continue(());
            }
            found = Some(failed);
            ControlFlow::Break(())
        })
        .await?;
        Ok(found)
    }

    /// The messages with these ids, or all that are there now and that `is_wanted` does not refuse.
    pub(super) async fn walk(&self, ids: &[String], is_wanted: impl Fn(&Failed) -> bool) -> Result<Walk<'_>> {
        let mut walk = Walk {
            failures: self,
            ids: VecDeque::new(),
            wanted: None,
            left: [0; 2],
            keeps_order: false,
            missing: Vec::new(),
        };
        match &self.access {
            Access::InOrder(_) => {
                walk.left = self.counts().await?;
                walk.keeps_order = walk.left.iter().sum::<u64>() <= KEPT_IN_ORDER;
                walk.wanted = (!ids.is_empty()).then(|| ids.iter().cloned().collect());
            }
            Access::ById { .. } if !ids.is_empty() => {
                let mut seen = HashSet::new();
                walk.ids = ids.iter().filter(|id| seen.insert(*id)).cloned().map(MessageId).collect();
            }
            Access::ById { .. } => {
                // Fixed before the first one is retried: those that fail again may come back under other ids.
                self.look(|failed| {
                    if is_wanted(&failed) {
                        walk.ids.push_back(failed.id);
                    }
                    ControlFlow::Continue(())
                })
                .await?;
            }
        }
        Ok(walk)
    }

    /// Whether a message can be received by itself.
    pub(super) fn can_take(&self) -> bool {
        !matches!(self.access, Access::ById { taking: None, .. })
    }

    /// Receives a message of the walk, or has it already. `None` if another has it by now.
    pub(super) async fn take(&self, candidate: Candidate) -> Result<Option<Received>> {
        match (&self.access, candidate.received) {
            (Access::InOrder(browsing), Some(received)) => Ok(browsing.is_held(&received.id).await.then_some(received)),
            (Access::ById { taking: Some(taking), .. }, _) => Ok(taking.take(&candidate.failed.id).await?),
            _ => Ok(None),
        }
    }

    /// Leaves a message of the walk where it is.
    pub(super) async fn leave(&self, candidate: &Candidate) -> Result<()> {
        if let (Access::InOrder(browsing), Some(received)) = (&self.access, &candidate.received) {
            browsing.put_back(received).await?;
        }
        Ok(())
    }

    /// Removes a received message.
    pub(super) async fn remove(&self, received: &Received) -> Result<()> {
        let Some(receiver) = &self.transport.receiver else { return Ok(()) };
        let id = std::slice::from_ref(&received.id);
        match &self.access {
            // Rejected ones go to a dead-letter exchange, if there is one.
            Access::InOrder(_) => receiver.ack(id).await?,
            Access::ById { .. } => receiver.reject(id).await?,
        }
        Ok(())
    }
}

/// A message that the caller has to take or to leave.
pub(super) struct Candidate {
    pub(super) failed: Failed,
    /// Where messages are seen in their order only, it has been received.
    received: Option<Received>,
}

/// Goes through messages, with time for something else between them.
pub(super) struct Walk<'a> {
    failures: &'a Failures,
    ids: VecDeque<MessageId>,
    /// In their order: which ones are wanted, and how many are left to look at.
    wanted: Option<HashSet<String>>,
    left: [u64; 2],
    /// Whether to put all messages back, also when all that were wanted are found.
    keeps_order: bool,
    missing: Vec<String>,
}

impl Walk<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<Candidate>> {
        match &self.failures.access {
            Access::ById { listing, .. } => {
                while let Some(id) = self.ids.pop_front() {
                    match listing.find(&id).await? {
                        Some(listed) => {
                            return Ok(Some(Candidate { failed: self.failures.listed(listed), received: None }));
                        }
                        None => self.missing.push(id.0),
                    }
                }
                Ok(None)
            }
            Access::InOrder(browsing) => {
                for (parked, left) in [false, true].into_iter().zip(&mut self.left) {
                    let is_over = |wanted: &Option<HashSet<String>>| wanted.as_ref().is_some_and(HashSet::is_empty);
                    while *left > 0 && (self.keeps_order || !is_over(&self.wanted)) {
                        *left -= 1;
                        let Some(message) = browsing.next(parked).await? else {
                            *left = 0;
                            break;
                        };
                        let failed = self.failures.browsed(&message);
                        if self.wanted.as_mut().is_some_and(|wanted| !wanted.remove(&failed.id.0)) {
                            browsing.put_back(&message).await?;
                            continue;
                        }
                        return Ok(Some(Candidate { failed, received: Some(message) }));
                    }
                }
                self.missing.extend(self.wanted.take().into_iter().flatten());
                Ok(None)
            }
        }
    }

    /// How many messages have not been returned: those that were asked for, or were there at the beginning.
    pub(super) fn remaining(&self) -> u64 {
        match (&self.failures.access, &self.wanted) {
            (Access::ById { .. }, _) => self.ids.len() as u64,
            (Access::InOrder(_), Some(wanted)) => wanted.len() as u64,
            (Access::InOrder(_), None) => self.left.iter().sum(),
        }
    }

    /// The ids that were asked for, or were there at the beginning, and were not there when it was their turn.
    pub(super) fn missing(&mut self) -> Vec<String> {
        std::mem::take(&mut self.missing)
    }
}

impl Failures {
    fn listed(&self, listed: Listed) -> Failed {
        Failed::new(listed.received, listed.in_flight, |encoded| self.serializers.decode(&self.name, encoded))
    }

    fn browsed(&self, message: &Received) -> Failed {
        let decode = |encoded: &Encoded| self.serializers.decode(&self.name, encoded);
        let mut failed = Failed::new(message.clone(), false, decode);
        failed.id = MessageId(content_id(&failed.stored));
        failed
    }
}

/// Stands for an id where there are none. Equal messages have the same.
fn content_id(message: &Encoded) -> String {
    let mut headers: Vec<(&str, &str)> = message.headers.iter().collect();
    headers.sort_unstable();
    let hash = |round: u8| {
        let mut hasher = DefaultHasher::new();
        (round, &message.body[..], &headers).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:08x}", hash(0), hash(1) >> 32)
}

/// The failure transport that was named, or the one that there is.
fn name(app: &App, choice: &Choice) -> Result<String> {
    let own = app.config.transports.values().filter_map(|transport| transport.failure_transport.as_ref());
    let mut names: Vec<&String> = app.config.failure_transport.iter().chain(own).collect();
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(*name));
    let all = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        let text = "no failure transport is configured, so messages that fail for good are discarded; `failure_transport` \
                    in the configuration names the transport that keeps them";
        return Err(Failure::Usage(text.to_owned()));
    }
    match (&choice.transport, &app.config.failure_transport) {
        (Some(name), _) => {
            known(app, name)?;
            if is_failure_transport(app, name) {
                return Ok(name.clone());
            }
            Err(Failure::Usage(format!("transport \"{name}\" is no failure transport; there is: {all}")))
        }
        (None, Some(global)) => Ok(global.clone()),
        (None, None) if names.len() == 1 => Ok(names[0].clone()),
        (None, None) => {
            Err(Failure::Usage(format!("there are several failure transports; name one with --transport: {all}")))
        }
    }
}
