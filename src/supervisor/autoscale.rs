//! How many workers each definition gets: arithmetic, without clock, I/O or randomness.

use serde::Serialize;

use crate::config::Autoscale;

/// What was seen of a worker definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The definition's name.
    pub name: String,
    /// What it consumes.
    pub transports: Vec<String>,
    /// What it wants.
    pub autoscale: Autoscale,
    /// How many messages are pending over all its transports, counted up to [`count_up_to`]; or why that is not known.
    pub pending: Result<u64, String>,
    /// How many of its workers live.
    pub running: u32,
}

/// What is to be done for a worker definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The definition's name.
    pub name: String,
    /// What it consumes.
    pub transports: Vec<String>,
    /// Pending messages; none where they could not be counted.
    pub pending: Option<u64>,
    /// Workers that live.
    pub running: u32,
    /// Workers that are wanted.
    pub desired: u32,
    /// Workers to start.
    pub start: u32,
    /// Why, for people.
    pub reason: String,
}

/// What is to be done, for all definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order of the configuration.
    pub workers: Vec<Step>,
}

/// Where counting may stop: more pending messages than this change nothing.
pub fn count_up_to(autoscale: Autoscale) -> u64 {
    autoscale.desired_size.saturating_mul(autoscale.max.into())
}

/// Decides. Contao's rule, `clamp(ceil(pending / desired_size), min, max)`, with a `min` that may be zero. No worker is
/// ever stopped: those that are too many end at their time limit.
pub fn plan(observations: Vec<Observation>) -> Plan {
    Plan { workers: observations.into_iter().map(step).collect() }
}

fn step(seen: Observation) -> Step {
    let Autoscale { desired_size, min, max } = seen.autoscale;
    let needed = seen.pending.as_ref().map_or(0, |pending| pending.div_ceil(desired_size.max(1)));
    let desired = u32::try_from(needed).unwrap_or(u32::MAX).clamp(min, max.max(min));
    let start = desired.saturating_sub(seen.running);
    let reason = reason(&seen, needed, desired, start);
    Step {
        name: seen.name,
        transports: seen.transports,
        pending: seen.pending.ok(),
        running: seen.running,
        desired,
        start,
        reason,
    }
}

fn reason(seen: &Observation, needed: u64, desired: u32, start: u32) -> String {
    let Autoscale { desired_size, min, max } = seen.autoscale;
    let wanted = match &seen.pending {
        Err(why) => format!("pending messages could not be counted ({why}): min {min}"),
        Ok(_) if min == max => format!("always {min}"),
        Ok(pending) => {
            // The count stops at what the maximum is good for.
            let or_more = if *pending >= count_up_to(seen.autoscale) { " or more" } else { "" };
            let bound = match needed {
                needed if needed > u64::from(max) || !or_more.is_empty() => format!(", limited to max {max}"),
                needed if needed < u64::from(min) => format!(", at least min {min}"),
                _ => String::new(),
            };
            format!("{pending}{or_more} pending, one worker per {desired_size}{bound}")
        }
    };
    let change = match (start, seen.running) {
        (0, running) if running > desired => {
            format!("{running} running, {} more than wanted end at their limits", running - desired)
        }
        (0, running) => format!("{running} running"),
        (start, 0) => format!("{start} to start"),
        (start, running) => format!("{running} running, {start} to start"),
    };
    format!("{wanted}; {change}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step_for(autoscale: Autoscale, pending: Result<u64, String>, running: u32) -> Step {
        step(Observation { name: "mail".into(), transports: vec!["mail".into()], autoscale, pending, running })
    }

    #[test]
    fn the_rule_is_contaos() {
        let autoscale = Autoscale { desired_size: 5, min: 1, max: 15 };
        for (pending, desired) in [(0, 1), (1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (9999, 15)] {
            assert_eq!(step_for(autoscale, Ok(pending), 0).desired, desired, "{pending} pending");
        }
    }

    #[test]
    fn a_minimum_of_zero_lets_a_definition_rest() {
        let autoscale = Autoscale { desired_size: 5, min: 0, max: 15 };
        assert_eq!(step_for(autoscale, Ok(0), 0).desired, 0);
        assert_eq!(step_for(autoscale, Ok(1), 0).start, 1);
    }

    #[test]
    fn what_cannot_be_counted_keeps_its_minimum() {
        let autoscale = Autoscale { desired_size: 5, min: 2, max: 15 };
        let step = step_for(autoscale, Err("no connection".into()), 1);
        assert_eq!((step.pending, step.desired, step.start), (None, 2, 1));
    }

    #[test]
    fn the_reason_is_readable() {
        let autoscale = Autoscale { desired_size: 5, min: 1, max: 10 };
        let reasons = [
            step_for(autoscale, Ok(0), 0),
            step_for(autoscale, Ok(12), 1),
            step_for(autoscale, Ok(50), 3),
            step_for(autoscale, Ok(3), 4),
            step_for(Autoscale::default(), Ok(1), 1),
            step_for(autoscale, Err("no connection".into()), 0),
        ];
        let reasons: Vec<String> = reasons.into_iter().map(|step| step.reason).collect();
        insta::assert_snapshot!(reasons.join("\n"), @r"
        0 pending, one worker per 5, at least min 1; 1 to start
        12 pending, one worker per 5; 1 running, 2 to start
        50 or more pending, one worker per 5, limited to max 10; 3 running, 7 to start
        3 pending, one worker per 5; 4 running, 3 more than wanted end at their limits
        always 1; 1 running
        pending messages could not be counted (no connection): min 1; 1 to start
        ");
    }

    prop_compose! {
        fn autoscales()(desired_size in 1u64.., min: u32, more: u32) -> Autoscale {
            Autoscale { desired_size, min, max: min.saturating_add(more).max(1) }
        }
    }

    proptest! {
        #[test]
        fn the_bounds_hold_for_any_numbers(autoscale in autoscales(), pending: u64, running: u32) {
            let step = step_for(autoscale, Ok(pending), running);
            prop_assert!(step.desired >= autoscale.min && step.desired <= autoscale.max);
            prop_assert!(u64::from(step.start) + u64::from(running) <= u64::from(autoscale.max.max(running)));
            prop_assert!(step.start == 0 || step.start + running == step.desired);
        }

        #[test]
        fn more_messages_never_mean_fewer_workers(autoscale in autoscales(), a: u64, b: u64) {
            let (few, many) = (a.min(b), a.max(b));
            prop_assert!(step_for(autoscale, Ok(few), 0).desired <= step_for(autoscale, Ok(many), 0).desired);
        }

        #[test]
        fn counting_further_than_the_cap_changes_nothing(autoscale in autoscales(), pending: u64) {
            let capped = pending.min(count_up_to(autoscale));
            let (all, counted) = (step_for(autoscale, Ok(pending), 0), step_for(autoscale, Ok(capped), 0));
            prop_assert_eq!(all.desired, counted.desired);
        }
    }
}
