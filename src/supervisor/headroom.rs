//! How many workers and jobs fit under the limit on this user's processes.
//!
//! A system that is out of processes refuses them to everybody: to the handlers of running workers, to programs that
//! dispatch, and to cron. So no more workers and jobs are started than leave room for these. The plan says how many more
//! workers are wanted; jobs wait.
//!
//! Neither may keep the other from running at all:
//!
//! - Each definition's first worker takes what room there is. Further workers leave room for a job while none runs.
//! - The first job is started in any case, as the first worker is. Further jobs leave room for a worker while a
//!   definition has none.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::autoscale::Plan;
use super::slots::{LiveSlot, Slots};
use crate::config::WorkerDefinition;
use crate::threads::process_limit;

/// How many threads a worker has.
const WORKER: u64 = 2;
/// How many processes a handler takes: a shell, and some that it starts.
const HANDLER: u64 = 3;
/// How many a job takes: the process that runs it, which may need a thread for a moment, and a program like a handler.
const JOB: u64 = 2 + HANDLER;
/// How many are reserved for others: the next cron, and a dispatch.
const SPARE: u64 = 4;

/// The room for further workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headroom {
    /// The most processes and threads of this user.
    limit: u64,
    /// How many of them are left when all running workers and jobs are busy.
    free: u64,
    /// How many jobs run.
    jobs: usize,
}

/// The room for further jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobRoom {
    /// `None` if there is no limit.
    headroom: Option<Headroom>,
    /// What is left free for workers.
    reserved: u64,
}

/// The workers of a definition that run and that are wanted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    running: u32,
    start: u32,
    needs: u64,
}

impl Headroom {
    /// The room that there is now. `None` if there is no limit, or /proc cannot be read. `live` are the workers of each
    /// definition; `jobs` those of all jobs.
    pub(super) fn look<'a>(
        live: impl Iterator<Item = (&'a WorkerDefinition, &'a [LiveSlot])>,
        jobs: impl FnOnce() -> Vec<LiveSlot>,
    ) -> Option<Self> {
        let limit = process_limit()?;
        let by_session = threads_by_session()?;
        let jobs = jobs();
        let used: u64 = by_session.values().sum();
        let idle = |needs: u64, slots: &[LiveSlot]| {
            let has = |slot: &LiveSlot| slot.record.as_ref().and_then(|record| by_session.get(&record.process.pid));
            slots.iter().map(|slot| needs.saturating_sub(has(slot).copied().unwrap_or(0))).sum::<u64>()
        };
        let workers: u64 = live.map(|(definition, slots)| idle(needs(definition), slots)).sum();
        let reserved = workers + idle(JOB, &jobs) + SPARE;
        Some(Self { limit, free: limit.saturating_sub(used + reserved), jobs: jobs.len() })
    }

    /// Limits a plan to the workers that there is room for. Returns the definitions that have no worker because of
    /// that. `has_jobs`: jobs may become due.
    pub(super) fn limit<'a>(
        self,
        plan: &mut Plan,
        definitions: impl Iterator<Item = &'a WorkerDefinition>,
        has_jobs: bool,
    ) -> Vec<String> {
        let for_job = if has_jobs && self.jobs == 0 { JOB } else { 0 };
        let wanted = plan.workers.iter().zip(definitions).map(|(planned, definition)| Wanted {
            running: planned.running.unwrap_or(0),
            start: planned.start,
            needs: needs(definition),
        });
        let shares = share(self.free, for_job, &wanted.collect::<Vec<_>>());
        let mut without = Vec::new();
        for (planned, share) in plan.workers.iter_mut().zip(shares) {
            let held_back = planned.start - share;
            if held_back == 0 {
                continue;
            }
            planned.start = share;
            planned.reason += &format!("; {held_back} held back: {}", self.why());
            if share == 0 && planned.running == Some(0) {
                without.push(planned.name.clone());
            }
        }
        without
    }

    /// Why workers are held back, and what to do.
    pub(super) fn why(self) -> String {
        format!(
            "this user may have {} processes and threads (`ulimit -u`), which the workers and jobs at work need; \
             raise it, or lower `max` or `--concurrency`",
            self.limit
        )
    }
}

impl JobRoom {
    /// The room that there is now, beside the workers of these definitions.
    pub(super) fn look(definitions: &[WorkerDefinition], workers: &Slots, jobs: &Slots) -> Self {
        let live: Vec<Vec<LiveSlot>> =
            definitions.iter().map(|definition| workers.live(&definition.name).unwrap_or_default()).collect();
        let of_each = definitions.iter().zip(live.iter().map(Vec::as_slice));
        let without = of_each.clone().filter(|(_, live)| live.is_empty()).map(|(definition, _)| needs(definition));
        let reserved = without.min().unwrap_or(0);
        Self { headroom: Headroom::look(of_each, || jobs.all_live().unwrap_or_default()), reserved }
    }

    /// Whether a further job may be started. The first one may be in any case.
    pub(crate) fn has_place(&self) -> bool {
        let fits = |room: Headroom| room.jobs == 0 || room.free >= JOB + self.reserved;
        self.headroom.is_none_or(fits)
    }

    /// A further job was started.
    pub(crate) fn take(&mut self) {
        if let Some(room) = &mut self.headroom {
            (room.free, room.jobs) = (room.free.saturating_sub(JOB), room.jobs + 1);
        }
    }

    /// Why there is no place, and what to do.
    pub(crate) fn why(&self) -> String {
        let limit = self.headroom.map(|room| room.limit).unwrap_or_default();
        format!(
            "this user may have {limit} processes and threads (`ulimit -u`), which the workers and jobs at work need; \
             raise it, spread the jobs (`jitter`), or lower `max` of the workers"
        )
    }
}

/// How many processes and threads a worker takes when it is busy.
fn needs(definition: &WorkerDefinition) -> u64 {
    WORKER + HANDLER * definition.consume_options.concurrency as u64
}

/// How many workers each definition may start: first one for each that has none, then in the order of the definitions
/// as long as `for_job` is left. If no worker runs at all, one is tried in any case.
fn share(mut free: u64, for_job: u64, wanted: &[Wanted]) -> Vec<u32> {
    let mut shares = vec![0; wanted.len()];
    let mut is_first = wanted.iter().all(|wanted| wanted.running == 0);
    for (share, wanted) in shares.iter_mut().zip(wanted).filter(|(_, wanted)| wanted.running == 0 && wanted.start > 0) {
        if free >= wanted.needs || is_first {
            (*share, free) = (1, free.saturating_sub(wanted.needs));
            is_first = false;
        }
    }
    free = free.saturating_sub(for_job);
    for (share, wanted) in shares.iter_mut().zip(wanted) {
        let more = (free / wanted.needs).min(u64::from(wanted.start - *share));
        *share += u32::try_from(more).unwrap_or(0);
        free -= more * wanted.needs;
    }
    shares
}

/// The threads of this user's processes, by session. `None` without `/proc`.
fn threads_by_session() -> Option<HashMap<u32, u64>> {
    let user = nix::unistd::getuid().as_raw();
    let mut threads = HashMap::new();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let is_process =
            process.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process || !process.metadata().is_ok_and(|metadata| metadata.uid() == user) {
            continue;
        }
        // Empty if the process is gone by now.
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        if let Some((session, count)) = session_and_threads(&stat) {
            *threads.entry(session).or_default() += count;
        }
    }
    Some(threads)
}

/// Reads a line of `/proc/PID/stat`, see proc_pid_stat(5). The process's name in it may contain anything.
fn session_and_threads(stat: &str) -> Option<(u32, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    // Fields are counted from 1; the third is the first one after the name.
    let session = fields.nth(6 - 3)?.parse().ok()?;
    let threads = fields.nth(20 - 7)?.parse().ok()?;
    Some((session, threads))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(free: u64, wanted: &[(u32, u32)]) -> Vec<u32> {
        shares_beside_jobs(free, 0, wanted)
    }

    fn shares_beside_jobs(free: u64, for_job: u64, wanted: &[(u32, u32)]) -> Vec<u32> {
        let wanted = wanted.iter().map(|(running, start)| Wanted { running: *running, start: *start, needs: 5 });
        share(free, for_job, &wanted.collect::<Vec<_>>())
    }

    #[test]
    fn workers_leave_room_for_a_job_but_for_the_first_of_each_definition() {
        assert_eq!(shares_beside_jobs(24, JOB, &[(0, 10), (0, 1)]), [2, 1]);
        assert_eq!(shares_beside_jobs(10, JOB, &[(0, 10), (0, 1)]), [1, 1]);
        assert_eq!(shares_beside_jobs(9, JOB, &[(1, 10)]), [0]);
    }

    #[test]
    fn jobs_leave_room_for_a_worker_but_the_first_is_started_in_any_case() {
        let room = |free, jobs, reserved| JobRoom { headroom: Some(Headroom { limit: 24, free, jobs }), reserved };
        let places = |mut room: JobRoom| {
            let taken = std::iter::from_fn(|| room.has_place().then(|| room.take()));
            taken.take(100).count()
        };
        assert_eq!(places(room(19, 0, 0)), 3);
        assert_eq!(places(room(19, 0, 5)), 2);
        assert_eq!((places(room(0, 0, 5)), places(room(4, 1, 0))), (1, 0));
        assert_eq!(places(JobRoom { headroom: None, reserved: 5 }), 100, "no limit");
        assert!(room(0, 1, 0).why().contains("24 processes"));
    }

    #[test]
    fn every_definition_gets_a_worker_before_one_gets_two() {
        assert_eq!(shares(19, &[(0, 10), (0, 1), (0, 10)]), [1, 1, 1]);
        assert_eq!(shares(29, &[(0, 10), (0, 1), (0, 10)]), [3, 1, 1]);
        assert_eq!(shares(12, &[(1, 9), (0, 1)]), [1, 1]);
        assert_eq!(shares(100, &[(1, 2), (0, 1)]), [2, 1]);
    }

    #[test]
    fn one_worker_is_tried_if_none_runs() {
        assert_eq!(shares(0, &[(0, 3), (0, 1)]), [1, 0]);
        assert_eq!(shares(0, &[(1, 3), (0, 1)]), [0, 0]);
        assert_eq!(shares(0, &[(0, 0), (0, 1)]), [0, 1]);
    }

    #[test]
    fn the_threads_of_this_process_are_counted() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (session, threads) = session_and_threads(&stat).unwrap();
        assert_eq!(i32::try_from(session).unwrap(), nix::unistd::getsid(None).unwrap().as_raw());
        assert!(threads >= 1);
        let odd = "7 (a) b 9) S 1 7 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 100";
        assert_eq!(session_and_threads(odd), Some((42, 3)));
        assert!(threads_by_session().unwrap()[&session] >= threads);
    }

    proptest! {
        #[test]
        fn no_more_are_started_than_wanted_or_except_for_the_first_than_fit(
            free in 0..200_u64,
            wanted in prop::collection::vec((0..4_u32, 0..20_u32), 0..6),
        ) {
            let shares = shares(free, &wanted);
            prop_assert!(shares.iter().zip(&wanted).all(|(share, (_, start))| share <= start));
            let all: u32 = shares.iter().sum();
            prop_assert!(all <= 1 || u64::from(all) * 5 <= free);
        }
    }
}
