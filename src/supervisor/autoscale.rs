//! How many workers each definition gets, and why: pure arithmetic on what was observed.
//!
//! No clock, no I/O, no randomness, so that `cron`, `cron --dry-run` and tests all get the same plan. The rule is
//! Contao's: `clamp(ceil(pending / desired_size), min, max)`. A plan starts workers, and never stops any: superfluous
//! workers end at their time limit.

use serde::Serialize;

use crate::config::{Autoscale, Scope, WorkerDefinition};

/// What was observed of a worker definition.
#[derive(Debug, Clone)]
pub(super) struct Observation<'a> {
    /// The worker definition.
    pub definition: &'a WorkerDefinition,
    /// The pending messages of all its transports, each counted up to [`count_cap`]; or why they could not be counted.
    pub pending: Result<u64, String>,
    /// Its live workers, including those in slots beyond a `max` that was lowered; with `scope: cluster`, on all hosts.
    /// Or why they could not be counted.
    pub running: Result<u32, String>,
    /// Why its workers could do nothing, if that is so.
    pub refused: Option<String>,
}

/// What is to be done for all worker definitions, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// One entry for each definition.
    pub workers: Vec<PlannedWorkers>,
}

/// What is to be done for a worker definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PlannedWorkers {
    /// The definition's name.
    pub name: String,
    /// What its workers consume, in order of priority.
    pub transports: Vec<String>,
    /// The pending messages, or at least this many: counting stops where more would not change the plan. `None` if they
    /// could not be counted.
    pub pending: Option<u64>,
    /// The live workers. `None` if they could not be counted.
    pub running: Option<u32>,
    /// How many workers there should be, between `min` and `max`.
    pub desired: u32,
    /// How many workers to start for that.
    pub start: u32,
    /// Why, for people.
    pub reason: String,
    /// No worker is started, because it could do nothing.
    pub refused: bool,
}

/// How far the pending messages of a transport are counted. More would not mean more workers.
pub(super) fn count_cap(autoscale: &Autoscale) -> u64 {
    autoscale.desired_size.saturating_mul(autoscale.max.into())
}

/// The plan for these observations, in their order.
pub(super) fn plan(observations: &[Observation<'_>]) -> Plan {
    Plan { workers: observations.iter().map(plan_one).collect() }
}

fn plan_one(observation: &Observation<'_>) -> PlannedWorkers {
    let Observation { definition, pending, running, refused } = observation;
    let desired = match pending {
        Ok(pending) => desired(&definition.autoscale, *pending),
        Err(_) => definition.autoscale.min,
    };
    // If it is unknown how many run, one more could be too many.
    let start = match (running, refused) {
        (Ok(running), None) => desired.saturating_sub(*running),
        _ => 0,
    };
    PlannedWorkers {
        name: definition.name.clone(),
        transports: definition.transports.clone(),
        pending: pending.as_ref().ok().copied(),
        running: running.as_ref().ok().copied(),
        desired,
        start,
        refused: refused.is_some(),
        reason: match running {
            _ if let Some(why) = refused => format!("none is started: {why}"),
            Ok(running) => {
                let everywhere = if definition.autoscale.scope == Scope::Cluster { " on all hosts" } else { "" };
                format!("{}, {running} running{everywhere}, {start} to start", wanted(&definition.autoscale, pending))
            }
            Err(why) => format!("{}; none is started: {why}", wanted(&definition.autoscale, pending)),
        },
    }
}

fn desired(autoscale: &Autoscale, pending: u64) -> u32 {
    // The configuration's check reports a size of 0 or a max below min. Neither may panic here.
    let needed = pending.div_ceil(autoscale.desired_size.max(1));
    u32::try_from(needed).unwrap_or(u32::MAX).max(autoscale.min).min(autoscale.max)
}

/// The first half of the reason: `7 pending, one worker per 5: 2 wanted`.
fn wanted(autoscale: &Autoscale, pending: &Result<u64, String>) -> String {
    let Autoscale { desired_size, min, max, .. } = *autoscale;
    let pending = match pending {
        Ok(pending) => *pending,
        Err(why) => return format!("pending could not be counted: {why}; keeping min {min}"),
    };
    let capped = pending >= count_cap(autoscale);
    let at_least = if capped { " or more" } else { "" };
    if min == max {
        return format!("{pending}{at_least} pending, always {max} wanted");
    }
    let desired = desired(autoscale, pending);
    let bound = match desired {
        _ if capped => "max ",
        _ if u64::from(desired) > pending.div_ceil(desired_size.max(1)) => "min ",
        _ => "",
    };
    format!("{pending}{at_least} pending, one worker per {desired_size}: {bound}{desired} wanted")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::ConsumeOptions;

    fn definition(desired_size: u64, min: u32, max: u32) -> WorkerDefinition {
        WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec!["async".into()],
            options: vec![],
            consume_options: ConsumeOptions::default(),
            autoscale: Autoscale { desired_size, min, max, scope: Scope::Host },
            command: None,
        }
    }

    fn planned(definition: &WorkerDefinition, pending: Result<u64, String>, running: u32) -> PlannedWorkers {
        plan(&[Observation { definition, pending, running: Ok(running), refused: None }]).workers.remove(0)
    }

    #[test]
    fn workers_that_could_do_nothing_are_not_started() {
        let definition = definition(1, 1, 10);
        let refused = Some("there is no handler".to_owned());
        let planned = plan(&[Observation { definition: &definition, pending: Ok(7), running: Ok(0), refused }]);
        let planned = &planned.workers[0];
        assert_eq!((planned.desired, planned.start, planned.refused), (7, 0, true));
        assert_eq!(planned.reason, "none is started: there is no handler");
    }

    fn autoscale() -> impl Strategy<Value = WorkerDefinition> {
        let size = prop_oneof![1..100u64, Just(u64::MAX)];
        let bounds = prop_oneof![
            (0..50u32, 0..50u32).prop_map(|(min, more)| (min, (min + more).max(1))),
            Just((0, u32::MAX)),
            Just((u32::MAX, u32::MAX)),
        ];
        (size, bounds).prop_map(|(size, (min, max))| definition(size, min, max))
    }

    fn pending() -> impl Strategy<Value = u64> {
        prop_oneof![0..10_000u64, any::<u64>(), Just(u64::MAX)]
    }

    proptest! {
        #[test]
        fn desired_is_within_min_and_max(definition in autoscale(), pending in pending(), running in any::<u32>()) {
            let desired = planned(&definition, Ok(pending), running).desired;
            prop_assert!(desired >= definition.autoscale.min && desired <= definition.autoscale.max);
        }

        #[test]
        fn more_pending_never_means_fewer_workers(definition in autoscale(), a in pending(), b in pending()) {
            let (less, more) = (a.min(b), a.max(b));
            let (less, more) = (planned(&definition, Ok(less), 0), planned(&definition, Ok(more), 0));
            prop_assert!(less.desired <= more.desired);
        }

        #[test]
        fn no_more_is_started_than_max_leaves_room_for(
            definition in autoscale(), pending in pending(), running in any::<u32>()
        ) {
            let plan = planned(&definition, Ok(pending), running);
            prop_assert!(plan.start <= definition.autoscale.max.saturating_sub(running));
            prop_assert_eq!(plan.start, plan.desired.saturating_sub(running));
        }

        #[test]
        fn counting_further_than_the_cap_changes_nothing(definition in autoscale(), pending in pending()) {
            let capped = pending.min(count_cap(&definition.autoscale));
            let (whole, capped) = (planned(&definition, Ok(pending), 0), planned(&definition, Ok(capped), 0));
            prop_assert_eq!(whole.desired, capped.desired);
        }

        #[test]
        fn definitions_that_cannot_be_counted_get_min(definition in autoscale(), running in any::<u32>()) {
            let plan = planned(&definition, Err("no answer".into()), running);
            prop_assert_eq!(plan.desired, definition.autoscale.min);
            prop_assert_eq!(plan.pending, None);
        }
    }

    #[test]
    fn the_rule_is_contaos() {
        let definition = definition(5, 1, 15);
        for (pending, desired) in [(0, 1), (1, 1), (5, 1), (6, 2), (10, 2), (74, 15), (75, 15), (9999, 15)] {
            assert_eq!(planned(&definition, Ok(pending), 0).desired, desired, "{pending} pending");
        }
    }

    #[test]
    fn min_zero_scales_to_zero() {
        let definition = definition(5, 0, 15);
        assert_eq!(planned(&definition, Ok(0), 0).desired, 0);
        assert_eq!(planned(&definition, Ok(1), 0).desired, 1);
    }

    #[test]
    fn the_reason_explains_the_decision() {
        let scaled = definition(5, 1, 10);
        let reason = |pending, running| planned(&scaled, pending, running).reason;
        assert_eq!(reason(Ok(7), 1), "7 pending, one worker per 5: 2 wanted, 1 running, 1 to start");
        assert_eq!(reason(Ok(0), 1), "0 pending, one worker per 5: min 1 wanted, 1 running, 0 to start");
        assert_eq!(reason(Ok(50), 4), "50 or more pending, one worker per 5: max 10 wanted, 4 running, 6 to start");
        assert_eq!(
            reason(Err("no answer".into()), 0),
            "pending could not be counted: no answer; keeping min 1, 0 running, 1 to start"
        );
        let fixed = definition(1, 1, 1);
        assert_eq!(planned(&fixed, Ok(0), 1).reason, "0 pending, always 1 wanted, 1 running, 0 to start");
    }

    #[test]
    fn no_worker_is_started_if_the_running_ones_cannot_be_counted() {
        let mut definition = definition(5, 1, 10);
        definition.autoscale.scope = Scope::Cluster;
        let of = |running| {
            plan(&[Observation { definition: &definition, pending: Ok(7), running, refused: None }]).workers.remove(0)
        };
        let planned = of(Err("no answer".into()));
        assert_eq!((planned.desired, planned.running, planned.start), (2, None, 0));
        assert_eq!(planned.reason, "7 pending, one worker per 5: 2 wanted; none is started: no answer");
        let reason = of(Ok(1)).reason;
        assert_eq!(reason, "7 pending, one worker per 5: 2 wanted, 1 running on all hosts, 1 to start");
    }

    #[test]
    fn a_plan_is_json_with_the_documented_keys() {
        let definition = definition(5, 1, 10);
        let observations = [Observation { definition: &definition, pending: Ok(7), running: Ok(1), refused: None }];
        assert_eq!(
            serde_json::to_value(plan(&observations)).unwrap(),
            serde_json::json!({"workers": [{
                "name": "mail", "transports": ["async"], "pending": 7, "running": 1, "desired": 2, "start": 1,
                "reason": "7 pending, one worker per 5: 2 wanted, 1 running, 1 to start", "refused": false,
            }]})
        );
    }
}
