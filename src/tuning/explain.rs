//! Why a definition has as many workers as it has: pure, from the plan of now and the record of the last minutes.

use crate::config::Autoscale;
use crate::record::TickLine;
use crate::supervisor::PlannedWorkers;

/// How far back workers that end at once are looked for, in seconds.
const RECENT: i64 = 300;
/// Two lines so far apart are of consecutive ticks, in seconds.
const CONSECUTIVE: i64 = 15;
/// Fewer workers than this that end at once are chance.
const TOO_MANY: usize = 3;
/// Under cron, there are at most a few seconds between two supervisors. After this many, nobody supervises.
const SILENCE: i64 = 90;

/// What is to be said of a definition's workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// What keeps the wanted workers from running, and what to do.
    pub in_the_way: Vec<String>,
    /// What would change the number of workers that are wanted.
    pub would_change: Vec<String>,
}

/// Explains a definition's workers. `ticks` are the definition's lines of the last hour, in their order; `now` is in Unix
/// seconds.
pub(crate) fn explain(
    autoscale: &Autoscale,
    planned: &PlannedWorkers,
    held_back: Option<&str>,
    ticks: &[&TickLine],
    supervisor_runs: bool,
    now: i64,
) -> Explanation {
    let obstacles = [
        planned.refused.then(|| planned.reason.clone()),
        planned
            .pending
            .is_none()
            .then(|| "the pending messages cannot be counted, so there are `min` workers".to_owned()),
        held_back.filter(|_| planned.reason.contains("held back")).map(str::to_owned),
        (!supervisor_runs).then(|| nobody_supervises(ticks, now)).flatten(),
        workers_end_at_once(ticks, now),
        at_max(autoscale, planned),
    ];
    let in_the_way = obstacles.into_iter().flatten().collect();
    Explanation { in_the_way, would_change: would_change(autoscale, planned) }
}

fn nobody_supervises(ticks: &[&TickLine], now: i64) -> Option<String> {
    match ticks.last() {
        None => Some("no supervisor has looked within the last hour: is the crontab line in place?".to_owned()),
        Some(last) if now - last.at > SILENCE => {
            Some(format!("no supervisor has looked for {} s: is the crontab line in place?", now - last.at))
        }
        Some(_) => None,
    }
}

/// Workers that were started and are gone at the next tick.
fn workers_end_at_once(ticks: &[&TickLine], now: i64) -> Option<String> {
    let recent = ticks.iter().position(|tick| now - tick.at <= RECENT).map_or(&[][..], |first| &ticks[first..]);
    let ended = |pair: &[&TickLine]| {
        let (before, after) = (pair[0], pair[1]);
        after.at - before.at <= CONSECUTIVE && after.running.is_some_and(|running| running < before.started)
    };
    let times = recent.windows(2).filter(|pair| ended(pair)).count();
    (times >= TOO_MANY).then(|| {
        format!(
            "workers end within seconds of their start ({times} times in the last {} minutes); if `--limit` does not ask \
             for that, their log says why",
            RECENT / 60
        )
    })
}

fn needed(autoscale: &Autoscale, pending: u64) -> u64 {
    pending.div_ceil(autoscale.desired_size.max(1))
}

fn at_max(autoscale: &Autoscale, planned: &PlannedWorkers) -> Option<String> {
    let pending = planned.pending?;
    let is_at_max = autoscale.min < autoscale.max && needed(autoscale, pending) >= autoscale.max.into();
    (is_at_max && planned.desired == autoscale.max)
        .then(|| format!("there are no more than `max` ({}) workers, however many messages are pending", autoscale.max))
}

fn would_change(autoscale: &Autoscale, planned: &PlannedWorkers) -> Vec<String> {
    let Autoscale { desired_size, min, max, .. } = *autoscale;
    if min == max {
        return vec![format!("nothing: `min` and `max` are both {max}")];
    }
    let from = |workers: u32| u64::from(workers - 1).saturating_mul(desired_size).saturating_add(1);
    let more = planned.desired + 1;
    if more == 1 {
        vec!["a worker is wanted from the first pending message on".to_owned()]
    } else if more <= max {
        vec![format!("{more} workers are wanted from {} pending messages on", from(more))]
    } else {
        vec![format!("a larger `max`; {max} workers are wanted from {} pending messages on", from(max))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;

    const NOW: i64 = 1_800_000_000;

    fn autoscale(desired_size: u64, min: u32, max: u32) -> Autoscale {
        Autoscale { desired_size, min, max, scope: Scope::Host }
    }

    fn planned(pending: u64, desired: u32) -> PlannedWorkers {
        PlannedWorkers {
            name: "mail".into(),
            transports: vec!["async".into()],
            pending: Some(pending),
            running: Some(0),
            desired,
            start: desired,
            reason: "because".into(),
            refused: false,
        }
    }

    fn tick(ago: i64, running: u32, started: u32) -> TickLine {
        TickLine {
            at: NOW - ago,
            worker: "mail".into(),
            pending: Some(1),
            running: Some(running),
            desired: 1,
            started,
            why: "because".into(),
            failed: None,
        }
    }

    fn in_the_way(planned: &PlannedWorkers, ticks: &[TickLine]) -> Vec<String> {
        let ticks: Vec<&TickLine> = ticks.iter().collect();
        explain(&autoscale(5, 1, 10), planned, None, &ticks, false, NOW).in_the_way
    }

    #[test]
    fn where_all_is_well_nothing_is_in_the_way() {
        assert_eq!(in_the_way(&planned(7, 2), &[tick(5, 1, 0)]), Vec::<String>::new());
    }

    #[test]
    fn missing_supervisors_are_in_the_way() {
        let said = in_the_way(&planned(7, 2), &[]);
        assert_eq!(said, ["no supervisor has looked within the last hour: is the crontab line in place?"]);
        let said = in_the_way(&planned(7, 2), &[tick(600, 1, 0)]);
        assert_eq!(said, ["no supervisor has looked for 600 s: is the crontab line in place?"]);
    }

    #[test]
    fn a_supervisor_that_records_nothing_is_not_missing() {
        let explained = explain(&autoscale(5, 1, 10), &planned(7, 2), None, &[], true, NOW);
        assert_eq!(explained.in_the_way, Vec::<String>::new());
    }

    #[test]
    fn max_is_in_the_way_when_more_would_be_wanted() {
        let said = in_the_way(&planned(50, 10), &[tick(1, 10, 0)]);
        assert_eq!(said, ["there are no more than `max` (10) workers, however many messages are pending"]);
    }

    #[test]
    fn workers_that_end_at_once_are_in_the_way() {
        let crashing: Vec<_> = (0..4).rev().map(|n| tick(n * 5, 0, 1)).collect();
        let said = in_the_way(&planned(1, 1), &crashing);
        assert!(said[0].starts_with("workers end within seconds of their start (3 times"), "{said:?}");
        let long_ago: Vec<_> = crashing.iter().map(|line| TickLine { at: line.at - 400, ..line.clone() }).collect();
        let said = in_the_way(&planned(1, 1), &[long_ago, vec![tick(1, 1, 0)]].concat());
        assert_eq!(said, Vec::<String>::new());
    }

    #[test]
    fn workers_that_are_replaced_at_their_time_limit_are_not() {
        let turnover: Vec<_> = (0..60).rev().map(|n| tick(n * 5, 9, 1)).collect();
        assert_eq!(in_the_way(&planned(50, 9), &turnover), Vec::<String>::new());
    }

    #[test]
    fn the_next_worker_is_said_with_its_number_of_messages() {
        let change = |pending, desired| {
            explain(&autoscale(5, 1, 3), &planned(pending, desired), None, &[], true, NOW).would_change
        };
        assert_eq!(change(0, 1), ["2 workers are wanted from 6 pending messages on"]);
        assert_eq!(change(10, 2), ["3 workers are wanted from 11 pending messages on"]);
        assert_eq!(change(15, 3), ["a larger `max`; 3 workers are wanted from 11 pending messages on"]);
        let none = explain(&autoscale(5, 0, 3), &planned(0, 0), None, &[], true, NOW).would_change;
        assert_eq!(none, ["a worker is wanted from the first pending message on"]);
        let fixed = explain(&autoscale(1, 2, 2), &planned(0, 2), None, &[], true, NOW).would_change;
        assert_eq!(fixed, ["nothing: `min` and `max` are both 2"]);
    }
}
