//! What hosts that share a cache do together, in simulated time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;

use super::due::{Step, step};
use super::shared_state::{key_of, parse_time};
use super::*;
use crate::cache::{Cache, CacheStore, MemoryStore};
use crate::clock;
use crate::config::{self, Config, Trigger};
use crate::supervisor::SlotClaim;

fn config(text: &str) -> Config {
    let (config, problems) = config::read_text(text, Path::new("/app/config.yaml")).unwrap();
    assert_eq!(problems.list, []);
    config
}

/// Jobs with these schedules, and what else is said of each.
fn jobs_of(schedules: &[&str], further: &str) -> Vec<Job> {
    let job = |(n, schedule): (usize, &&str)| {
        format!("  - {{name: job-{n}, schedule: '{schedule}', timezone: Europe/Vienna, command: [job], {further}}}\n")
    };
    let text: String = schedules.iter().enumerate().map(job).collect();
    let (jobs, problems) = jobs(&config(&format!("cron:\n{text}")), utc("2026-01-01T00:00:00Z"));
    assert_eq!(problems, []);
    jobs
}

fn job(schedule: &str, further: &str) -> Job {
    jobs_of(&[schedule], further).remove(0)
}

fn run(id: &str, host: &str, started_at: DateTime<Utc>, ended_at: Option<DateTime<Utc>>) -> Run {
    Run {
        id: id.to_owned(),
        host: host.to_owned(),
        pid: 1,
        due: None,
        started_at,
        ended_at,
        outcome: ended_at.map(|_| Outcome::Succeeded),
        exit_code: None,
        why: None,
        output: String::new(),
    }
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn now() -> DateTime<Utc> {
    DateTime::from(clock::now())
}

/// What was started: the job's name, and when it was due.
type Started = Arc<Mutex<Vec<(String, String)>>>;

/// A supervisor's scheduler, whose jobs end at once.
struct Host {
    scheduler: Scheduler,
    shared: SharedState,
    jobs: Vec<Job>,
    _dir: TempDir,
}

impl Host {
    fn new(name: &str, store: &MemoryStore, jobs: &[Job], started: &Started) -> Self {
        Self::looking_for(Trigger::Cli, name, store, jobs, started)
    }

    fn looking_for(trigger: Trigger, name: &str, store: &MemoryStore, jobs: &[Job], started: &Started) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::new(Arc::new(store.clone()) as Arc<dyn CacheStore>));
        let (shared, started) = (SharedState::new(cache, name.to_owned()), Arc::clone(started));
        let start = move |job: &Job, taken: Option<&str>, _slot: SlotClaim| {
            started.lock().unwrap().push((job.name().to_owned(), taken.unwrap_or_default().to_owned()));
            Ok(())
        };
        let scheduler = Scheduler::new(jobs, trigger, shared.clone(), dir.path(), Box::new(start));
        Self { scheduler, shared, jobs: jobs.to_vec(), _dir: dir }
    }

    async fn look(&mut self) -> DateTime<Utc> {
        let wake = self.scheduler.look(now()).await;
        for job in &self.jobs {
            self.shared.release(job).await.unwrap();
        }
        wake
    }
}

fn names(started: &Started) -> Vec<String> {
    started.lock().unwrap().drain(..).map(|(_, due)| due).collect()
}

#[tokio::test(start_paused = true)]
async fn a_year_of_schedules_over_two_supervisors_runs_each_due_time_exactly_once() {
    let schedules = [
        "0 */4 * * *",
        "daily",
        "weekly",
        "monthly",
        "yearly",
        "30 2 * * *",
        "5 4 * * 1",
        "0 8,20 * * *",
        "H H * * *",
        "0 12 13 * 5",
        "0 0 L * *",
        "0 9 * * 1#2",
        "every 7h",
        "30 15 3 * * *",
    ];
    let jobs = jobs_of(&schedules, "jitter: 0");
    let (store, started) = (MemoryStore::default(), Started::default());
    let mut hosts = ["one", "two"].map(|name| Host::new(name, &store, &jobs, &started));
    for host in &mut hosts {
        host.look().await;
    }
    let (begin, end) = (now(), now() + TimeDelta::days(365));
    while now() < end {
        // Sometimes the one is first, and sometimes the other; and both come a little late.
        hosts.swap(0, fastrand::usize(..2));
        let first = hosts[0].look().await;
        let wake = first.min(hosts[1].look().await) + TimeDelta::milliseconds(fastrand::i64(0..500));
        tokio::time::advance((wake - now()).to_std().unwrap_or(Duration::from_millis(1))).await;
    }
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (job, due) in started.lock().unwrap().iter() {
        runs.entry(job.clone()).or_default().push(due.clone());
    }
    for job in &jobs {
        let (mut expected, mut time) = (Vec::new(), begin);
        while let Some(due) = job.schedule.next_after(time).filter(|due| *due <= end - TimeDelta::hours(2)) {
            expected.push(key_of(due));
            time = due;
        }
        let mut runs = runs.remove(job.name()).unwrap_or_default();
        runs.retain(|due| parse_time(due).unwrap() <= end - TimeDelta::hours(2));
        assert_eq!(runs, expected, "{}", job.config.schedule);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_job_waits_until_it_is_due_and_a_new_schedule_is_not_caught_up() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let mut host = Host::new("one", &store, &[job("every 1h", "")], &started);
    host.look().await;
    assert!(names(&started).is_empty());
    tokio::time::advance(Duration::from_secs(3600)).await;
    host.look().await;
    assert_eq!(names(&started).len(), 1);
    // Within half an hour, one of these was due.
    tokio::time::advance(Duration::from_secs(1800)).await;
    let mut changed = Host::new("one", &store, &[job("every 10m", "")], &started);
    changed.look().await;
    assert!(names(&started).is_empty());
    tokio::time::advance(Duration::from_secs(600)).await;
    changed.look().await;
    assert_eq!(names(&started).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn missed_runs_are_caught_up_once_or_all_or_not_at_all() {
    for (catch_up, expected) in [("once", 1), ("all", 5), ("none", 0)] {
        let (store, started) = (MemoryStore::default(), Started::default());
        let jobs = [job("every 1h", &format!("catch_up: {catch_up}"))];
        Host::new("one", &store, &jobs, &started).look().await;
        // To ten minutes past an hour.
        let past = now().timestamp().rem_euclid(3600);
        tokio::time::advance(Duration::from_secs((5 * 3600 - past + 600).unsigned_abs())).await;
        let mut host = Host::new("one", &store, &jobs, &started);
        for _ in 0..7 {
            host.look().await;
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let runs = names(&started);
        assert_eq!(runs.len(), expected, "{catch_up}: {runs:?}");
        assert!(runs.is_sorted());
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_skips_itself_is_due_again_in_the_next_minute() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs = [job("every 1h", "")];
    let mut host = Host::new("one", &store, &jobs, &started);
    host.look().await;
    tokio::time::advance(Duration::from_secs(3600)).await;
    host.look().await;
    let due = names(&started).remove(0);
    host.shared.skip(&jobs[0], &due, now()).await.unwrap();
    let mut next = Host::new("two", &store, &jobs, &started);
    let wake = next.look().await;
    assert!(names(&started).is_empty() && wake > now() && wake <= now() + TimeDelta::seconds(60), "{wake}");
    tokio::time::advance(Duration::from_secs(60)).await;
    next.look().await;
    assert_eq!(names(&started), [due]);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_goes_on_finds_that_a_run_was_given_back() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs = [job("every 1h", "")];
    let mut host = Host::new("one", &store, &jobs, &started);
    let shared = host.shared.clone();
    let stop = async {
        while started.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let due = started.lock().unwrap()[0].1.clone();
        shared.skip(&jobs[0], &due, now()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(150)).await;
    };
    host.scheduler.run(stop, |_| {}).await;
    let runs = names(&started);
    assert_eq!((runs.len(), &runs[0]), (2, &runs[1]));
}

#[tokio::test(start_paused = true)]
async fn a_run_without_an_end_on_a_dead_host_costs_no_other_run() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs = [job("every 1h", "")];
    let [dead, mut starting, mut other] =
        ["dead", "starting", "other"].map(|name| Host::new(name, &store, &jobs, &started));
    other.look().await;
    dead.shared.write("job-0", &run("1", "dead", utc("2026-11-21T12:00:00Z"), None)).await.unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    // One host is about to take the due time, which it takes after the lease.
    assert!(starting.shared.lease(&jobs[0]).await.unwrap());
    other.look().await;
    assert!(names(&started).is_empty());
    starting.look().await;
    assert_eq!(names(&started).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_from_the_future_does_not_stop_the_job_and_none_is_run_twice() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs = [job("every 1h", "")];
    let mut host = Host::new("one", &store, &jobs, &started);
    host.look().await;
    let history = host.shared.history(&jobs[0], now()).await.unwrap();
    let future = now() + TimeDelta::days(400);
    assert!(host.shared.take(&jobs[0], future, &history).await.unwrap());
    tokio::time::advance(Duration::from_secs(3600)).await;
    host.look().await;
    let runs = names(&started);
    assert_eq!(runs.len(), 1);
    // The clock goes back by two hours, and forward again.
    for time in [now() - TimeDelta::hours(2), now() - TimeDelta::hours(1), now()] {
        host.scheduler.look(time).await;
    }
    let again = names(&started);
    assert!(!again.contains(&runs[0]), "{again:?}");
}

/// Looks at each second of a time by this host's clock, which is behind by `behind`.
async fn look_behind(host: &mut Host, behind: TimeDelta, seconds: u32) {
    for _ in 0..seconds {
        host.scheduler.look(now() - behind).await;
        for job in &host.jobs {
            host.shared.release(job).await.unwrap();
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_clock_is_far_behind_runs_nothing_again() {
    for catch_up in ["once", "all", "none"] {
        let (store, started) = (MemoryStore::default(), Started::default());
        let jobs = [job("every 1m", &format!("catch_up: {catch_up}"))];
        let [mut right, mut behind] = ["right", "behind"].map(|name| Host::new(name, &store, &jobs, &started));
        for _ in 0..300 {
            right.look().await;
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        let runs = names(&started);
        assert!(runs.len() > 295, "{}", runs.len());
        for minutes in [250, 100, 21, 17, 5] {
            look_behind(&mut behind, TimeDelta::minutes(minutes), 70).await;
            let again = names(&started);
            assert!(!again.iter().any(|due| runs.contains(due)), "{catch_up}, {minutes} minutes behind: {again:?}");
        }
        // It is put right, and goes on.
        behind.look().await;
        assert!(!names(&started).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_far_ahead_for_long_does_not_stop_the_job() {
    for ahead in [TimeDelta::minutes(9), TimeDelta::hours(5), TimeDelta::days(400)] {
        let (store, started) = (MemoryStore::default(), Started::default());
        let jobs = [job("every 1m", "")];
        let mut host = Host::new("one", &store, &jobs, &started);
        for _ in 0..40 {
            host.look().await;
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        look_behind(&mut host, -ahead, 60 * 60).await;
        names(&started);
        look_behind(&mut host, TimeDelta::zero(), 60 * 60).await;
        // What was run within nine minutes of the future is not run again.
        let runs = names(&started).len();
        assert!(runs >= 48, "{ahead}: {runs}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_job_has_taken_is_forgotten_in_time() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs = [job("every 10s", "")];
    let mut host = Host::new("one", &store, &jobs, &started);
    for _ in 0..500 {
        host.look().await;
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    assert!(started.lock().unwrap().len() > 490);
    let cache = Cache::new(Arc::new(store.clone()) as Arc<dyn CacheStore>);
    let kept = cache.list("cron/job-0").await.unwrap().len();
    assert!((16..70).contains(&kept), "{kept}");
}

#[tokio::test(start_paused = true)]
async fn only_the_last_runs_are_kept() {
    let cache = Arc::new(Cache::new(Arc::new(MemoryStore::default()) as Arc<dyn CacheStore>));
    let shared = SharedState::new(cache, "one".to_owned());
    for n in 0..30 {
        let time = utc("2026-11-21T12:00:00Z") + TimeDelta::seconds(n);
        let run = run(&n.to_string(), "one", time, Some(time));
        shared.write("job", &run).await.unwrap();
    }
    let runs = shared.runs("job").await.unwrap();
    assert_eq!((runs.len(), runs[0].id.as_str()), (20, "29"));
}

#[test]
fn overlap_says_what_becomes_of_a_run_that_is_due_while_another_goes_on() {
    let (last, now) = (utc("2026-11-21T12:00:00Z"), utc("2026-11-21T12:01:30Z"));
    let due = utc("2026-11-21T12:01:00Z");
    let running = Some(utc("2026-11-21T12:00:01Z"));
    for (overlap, expected) in [
        ("skip", Step::LeaveOut { due, why: "the job still runs" }),
        ("queue", Step::WaitForRun),
        ("allow", Step::Start { due }),
    ] {
        let job = job("minutely", &format!("overlap: {overlap}"));
        assert_eq!(step(&job, last, now, running), expected, "{overlap}");
        assert_eq!(step(&job, last, now, None), Step::Start { due }, "{overlap}");
    }
    // One that was missed before the running one began waits for it.
    let all = job("minutely", "catch_up: all");
    assert_eq!(step(&all, last, now, Some(utc("2026-11-21T12:01:20Z"))), Step::WaitForRun);
    assert_eq!(step(&all, due, now, None), Step::Wait(Some(utc("2026-11-21T12:02:00Z"))));
}

#[test]
fn jitter_delays_a_run_but_not_beyond_the_next_one() {
    let job = job("every 10m", "jitter: 1h");
    let mut due = utc("2026-11-21T12:00:00Z");
    let mut delays = std::collections::HashSet::new();
    for _ in 0..100 {
        let next = job.schedule.next_after(due).unwrap();
        let begins = job.begins(due);
        assert!(begins >= due && begins < next);
        delays.insert((begins - due).num_seconds());
        assert_eq!(step(&job, due - TimeDelta::seconds(1), begins, None), Step::Start { due });
        if begins > due {
            let wait = step(&job, due - TimeDelta::seconds(1), begins - TimeDelta::milliseconds(1), None);
            assert_eq!(wait, Step::Wait(Some(begins)));
        }
        due = next;
    }
    assert!(delays.len() > 10, "{delays:?}");
}

#[test]
fn what_is_wrong_with_schedules_is_told_with_its_place() {
    let config = config(
        "cron:
  - {name: a, schedule: 0 0 31 2 *, command: [a]}
  - {name: b, schedule: dialy, timezone: Europe/Viena, command: [b]}
  - {name: c, schedule: at 2020-01-01, command: [c]}",
    );
    let (jobs, problems) = jobs(&config, utc("2026-11-21T12:00:00Z"));
    assert_eq!(jobs.len(), 1);
    let problems: Vec<String> =
        problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect();
    assert_eq!(
        problems,
        [
            "cron[0].schedule: day of month: there is no such day in February, so that it never comes",
            "cron[1].timezone: unknown time zone \"Europe/Viena\"; did you mean \"Europe/Vienna\"?",
            "cron[1].schedule: \"dialy\" is no schedule; did you mean \"daily\"?",
            "cron[2].schedule: is in the past: unless it was missed, the job does not run again",
        ]
    );
}

#[test]
fn a_job_that_runs_on_every_host_has_no_lease() {
    assert!(job("daily", "").has_lease() && job("daily", "overlap: queue").has_lease());
    assert!(!job("@reboot", "").has_lease() && !job("daily", "overlap: allow").has_lease());
    assert_eq!((job("@reboot", "").slots(), job("daily", "overlap: allow").slots()), (1, 64));
}

#[tokio::test(start_paused = true)]
async fn a_job_is_started_only_by_what_its_scope_names() {
    let (store, started) = (MemoryStore::default(), Started::default());
    let jobs: Vec<Job> = ["scope: cli", "scope: [web]", "scope: [cli, web]", ""]
        .iter()
        .enumerate()
        .map(|(n, scope)| {
            let text = format!("cron: [{{name: job-{n}, schedule: minutely, command: [job], {scope}}}]");
            super::jobs(&config(&text), now()).0.remove(0)
        })
        .collect();
    let of = |trigger| Host::looking_for(trigger, "a", &store, &jobs, &started);
    let (mut cli, mut web) = (of(Trigger::Cli), of(Trigger::Web));
    let jobs = || started.lock().unwrap().drain(..).map(|(name, _)| name).collect::<Vec<_>>();
    cli.look().await;
    web.look().await;
    jobs();
    tokio::time::advance(Duration::from_secs(60)).await;
    cli.look().await;
    assert_eq!(jobs(), ["job-0", "job-2", "job-3"]);
    web.look().await;
    assert_eq!(jobs(), ["job-1"], "the others were run");
    tokio::time::advance(Duration::from_secs(60)).await;
    web.look().await;
    assert_eq!(jobs(), ["job-1", "job-2", "job-3"]);
}

#[test]
fn a_scope_that_nothing_runs_is_a_mistake() {
    for scope in ["[]", "host", "[cli, pinger]", "{cli: true}"] {
        let text = format!("cron: [{{name: a, schedule: daily, command: [job], scope: {scope}}}]");
        let (_, problems) = config::read_text(&text, Path::new("/app/config.yaml")).unwrap();
        let told =
            problems.list.iter().map(|problem| format!("{} {}", problem.path, problem.message)).collect::<String>();
        assert!(told.contains("cron[0].scope") && told.contains("cli, web, or [cli, web]"), "{told}");
    }
}
