//! Leases on cluster slots: how `max` becomes one bound for all hosts.
//!
//! With `scope: cluster`, hosts share the slots of a worker definition. Slot `n` of the cluster is a *claim* in the
//! cache that the hosts share; the host that holds it has a *lease* on the slot, and may run a worker in its own slot
//! `n`. So there are never more workers than cluster slots, however many hosts there are.
//!
//! ```text
//!   lock slot n ▸ claim cluster slot n ▸ write the lease file ▸ start the worker
//!   worker gone ▸ lock slot n ▸ remove the lease file ▸ release the claim
//! ```
//!
//! After a crash in between, the next tick releases a lease that has no worker.
//!
//! A lease outlasts its worker's time limit by [`GRACE`], and then expires. So a host that dies takes its workers with
//! it, and its leases expire without anybody's help. While a worker is at work for longer, its supervisor renews the
//! lease. If it cannot (the cache is down), it ends the worker before the lease expires: the bound has priority, and
//! the worker's message is delivered again.
//!
//! The lease file, beside the slot's file, tells later supervisors of this host when the lease expires.

mod file;
mod host_id;
#[cfg(test)]
mod tests;

pub(super) use file::TEMPORARY_PREFIX;
pub(crate) use host_id::{known_owner as known_host_owner, owner as host_owner};

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::process::ProcessId;
use super::session;
use super::slots::{LiveSlot, Slots, WorkerRecord};
use crate::cache::{Cache, CacheError};
use crate::config::{Scope, WorkerDefinition};
use crate::state_files::StateError;
use file::LeaseFile;

/// How much longer than its worker's time limit a lease lasts.
const GRACE: Duration = Duration::from_secs(90);
/// A lease that expires sooner than this is renewed.
const RENEW_BELOW: Duration = Duration::from_secs(75);
/// How long a renewed lease lasts.
const RENEWED_FOR: Duration = Duration::from_secs(120);
/// A worker whose lease expires sooner than this is asked to finish. Up to 15 seconds may pass between the last check
/// of one cron and the first check of the next; the worker then has 15 seconds more.
const FINISH_BELOW: Duration = Duration::from_secs(50);
/// A worker whose lease expires sooner than this is killed: the next check, by another cron, may come this much later.
const KILL_BELOW: Duration = Duration::from_secs(20);
/// How long the cache may take to answer.
const CACHE_TIMEOUT: Duration = Duration::from_secs(2);

/// One host's leases on the cluster slots of all definitions.
pub(super) struct Leases {
    cache: Arc<Cache>,
    state_dir: PathBuf,
    slots: Slots,
}

/// What happens to a worker whose lease could not be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Wait,
    AskToFinish,
    Kill,
}

impl Leases {
    pub(super) fn new(cache: Arc<Cache>, state_dir: &Path) -> Self {
        Self { cache, state_dir: state_dir.to_owned(), slots: Slots::new(state_dir) }
    }

    /// The cluster slots of a definition that some host has leased.
    pub(super) async fn held(&self, definition: &str) -> Result<BTreeSet<u32>, String> {
        let claims = within_timeout(self.cache.list(&group(definition))).await?;
        Ok(claims.iter().filter_map(|claim| claim.key.parse().ok()).collect())
    }

    /// Leases a cluster slot for a worker that is about to be started; `false` if another host has leased it. The
    /// caller must have locked its own slot of the same number.
    pub(super) async fn acquire(&self, definition: &WorkerDefinition, slot: u32) -> Result<bool, String> {
        let limit = definition.consume_options.time_limit.ok_or("its time limit cannot be read")?;
        self.claim(&definition.name, slot, limit.saturating_add(GRACE), None).await
    }

    /// Renews the leases of live workers, and releases those that have no worker. Ends workers whose lease is about to
    /// expire and cannot be renewed. To be called at the beginning of each tick.
    pub(super) async fn maintain(&self, definitions: &[WorkerDefinition]) {
        let shared = definitions.iter().filter(|definition| is_shared(definition));
        join_all(shared.map(|definition| async {
            if let Err(error) = self.maintain_definition(&definition.name).await {
                tracing::warn!(worker = definition.name, error, "the leases on cluster slots are not up to date");
            }
        }))
        .await;
    }

    /// Whether this worker has been asked to finish, because its lease expires.
    pub(super) fn has_asked_to_finish(&self, worker: &WorkerRecord) -> bool {
        let lease = LeaseFile::of(&self.slots, &worker.definition, worker.slot).read();
        lease.is_some_and(|lease| lease.asked_to_finish == Some(worker.process))
    }

    async fn maintain_definition(&self, definition: &str) -> Result<(), String> {
        let live = self.slots.live(definition).map_err(|error| error.to_string())?;
        join_all(live.iter().map(|slot| self.renew(slot))).await;
        let owner = self.owner().map_err(|error| error.to_string())?;
        let claims = within_timeout(self.cache.list(&group(definition))).await?;
        for claim in claims.iter().filter(|claim| claim.value == owner) {
            let Ok(slot) = claim.key.parse() else { continue };
            if !live.iter().any(|live| live.slot == slot) {
                self.release(definition, slot, &owner).await?;
            }
        }
        Ok(())
    }

    /// Claims a cluster slot, or extends this host's claim. Writes the lease file afterwards, so that it never names a
    /// later time than the claim does.
    async fn claim(
        &self,
        definition: &str,
        slot: u32,
        ttl: Duration,
        asked_to_finish: Option<ProcessId>,
    ) -> Result<bool, String> {
        let owner = self.owner().map_err(|error| error.to_string())?;
        let expires_at = SystemTime::now() + ttl;
        let claimed = within_timeout(self.cache.claim(&group(definition), &slot.to_string(), &owner, ttl)).await?;
        if claimed {
            let lease = file::Lease { expires_at, asked_to_finish };
            LeaseFile::of(&self.slots, definition, slot).write(&lease).map_err(|error| error.to_string())?;
        }
        Ok(claimed)
    }

    /// Releases a lease. Locks the slot meanwhile, so that no worker can be started in it.
    async fn release(&self, definition: &str, slot: u32, owner: &str) -> Result<(), String> {
        let Some(_locked) = self.slots.claim(definition, slot).map_err(|error| error.to_string())? else {
            return Ok(());
        };
        LeaseFile::of(&self.slots, definition, slot).remove();
        within_timeout(self.cache.unclaim(&group(definition), &slot.to_string(), owner)).await
    }

    /// Renews the lease of a live worker if it expires soon. If that fails, ends the worker in time.
    async fn renew(&self, live: &LiveSlot) {
        let name = format!("{}/{}", live.definition, live.slot);
        let file = LeaseFile::of(&self.slots, &live.definition, live.slot);
        let lease = file.read();
        if lease.is_some_and(|lease| lease.remaining() >= RENEW_BELOW) {
            return;
        }
        let asked_to_finish = lease.and_then(|lease| lease.asked_to_finish);
        let is_lost = match self.claim(&live.definition, live.slot, RENEWED_FOR, asked_to_finish).await {
            Ok(true) => return,
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(slot = name, error, "the worker's lease on its cluster slot cannot be renewed now");
                false
            }
        };
        // Without a lease, the worker was started when its scope was the host. It ends at its time limit.
        let Some(lease) = lease else { return };
        let Some(process) = live.record.as_ref().map(|record| record.process) else { return };
        let remaining = lease.remaining();
        let ended = match if is_lost { Action::Kill } else { action(remaining) } {
            Action::Wait => return,
            Action::AskToFinish if asked_to_finish == Some(process) => return,
            Action::AskToFinish => {
                // Written first: after a crash in between, the worker is never asked, rather than asked twice.
                match file.write(&file::Lease { asked_to_finish: Some(process), ..lease }) {
                    Ok(()) => process.terminate(),
                    Err(error) => {
                        tracing::error!(slot = name, %error, "a worker that loses its lease cannot be asked to finish");
                        return;
                    }
                }
            }
            // With everything that it has started.
            Action::Kill => session::kill(process.pid),
        };
        let (pid, left) = (process.pid, remaining.as_secs());
        match ended {
            Ok(()) => {
                tracing::error!(slot = name, pid, left, "ended a worker that loses the lease on its cluster slot");
            }
            Err(error) => tracing::error!(slot = name, pid, %error, "a worker without a lease cannot be ended"),
        }
    }

    /// This host's name in claims.
    fn owner(&self) -> Result<String, StateError> {
        host_id::owner(&self.state_dir)
    }
}

/// Waits for the cache's answer for a limited time.
async fn within_timeout<T>(answer: impl Future<Output = Result<T, CacheError>>) -> Result<T, String> {
    match tokio::time::timeout(CACHE_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the cache did not answer within {} s", CACHE_TIMEOUT.as_secs())),
    }
}

/// Whether hosts share the slots of this definition.
pub(super) fn is_shared(definition: &WorkerDefinition) -> bool {
    definition.autoscale.scope == Scope::Cluster
}

/// The cache's group of a definition's claims. Hosts with other versions of this program read it: it must not change.
fn group(definition: &str) -> String {
    format!("places/{definition}")
}

fn action(remaining: Duration) -> Action {
    match remaining {
        _ if remaining < KILL_BELOW => Action::Kill,
        _ if remaining < FINISH_BELOW => Action::AskToFinish,
        _ => Action::Wait,
    }
}
