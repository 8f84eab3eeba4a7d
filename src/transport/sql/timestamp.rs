//! Times in the columns of a queue's table.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use indexmap::IndexMap;

use super::super::{Delivery, Receipt};

/// How times are written: text that sorts as time does. UTC, as Symfony Messenger does it from 6.0 on.
const TIME: &str = "%Y-%m-%d %H:%M:%S";

/// A time, for columns that keep whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Now.
    pub(super) fn now() -> Self {
        Self(Utc::now())
    }

    /// This time, as the columns see it.
    pub(super) fn at(time: SystemTime) -> Self {
        Self(time.into())
    }

    /// Tells what was received now from what was received at other times.
    pub(super) fn receipt(self) -> Receipt {
        Receipt(self.text())
    }

    /// When a message becomes due: with a delay at the next whole second, as Symfony has it from 7.4 on, so that no delay is
    /// cut short.
    pub(super) fn after(self, delay: Duration) -> Self {
        if delay.is_zero() {
            return self;
        }
        let due = TimeDelta::from_std(delay).ok().and_then(|delay| self.0.checked_add_signed(delay));
        let due = due.and_then(|due| match due.trunc_subsecs(0) {
            second if second == due => Some(due),
            second => second.checked_add_signed(TimeDelta::seconds(1)),
        });
        let last = DateTime::<Utc>::from_timestamp_secs(253_402_300_799).unwrap_or(DateTime::<Utc>::MAX_UTC);
        // Past the year 9999 the text would not sort as the time does.
        Self(due.map_or(last, |due| due.min(last)))
    }

    /// Messages received before this have been in flight for too long.
    pub(super) fn before(self, redeliver_timeout: Duration) -> Self {
        Self(TimeDelta::from_std(redeliver_timeout).map_or(self.0, |timeout| self.0 - timeout))
    }

    /// As it is written into a column. The fraction of the second is cut off and not rounded, as what is written as now must
    /// not lie in the future.
    pub(super) fn text(self) -> String {
        self.0.format(TIME).to_string()
    }
}

/// How far apart the clocks of hosts may be, and how exactly a receipt tells the time.
pub(super) const RECEIPT_REPEATS: Duration = Duration::from_secs(2);

/// The ids of the messages that were received at each of these times. What is no number or no time is passed over.
pub(super) fn by_receipt(deliveries: &[Delivery]) -> IndexMap<&str, Vec<i64>> {
    let mut by_receipt: IndexMap<&str, Vec<i64>> = IndexMap::new();
    for delivery in deliveries {
        let Ok(id) = delivery.id.0.parse() else { continue };
        for Receipt(time) in delivery.receipts.iter().filter(|receipt| time_from_text(&receipt.0).is_some()) {
            by_receipt.entry(time).or_default().push(id);
        }
    }
    by_receipt
}

/// Reads a time from a column; none when something else is written there.
pub(super) fn time_from_text(text: &str) -> Option<SystemTime> {
    NaiveDateTime::parse_from_str(text, TIME).ok().map(|time| time.and_utc().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(DateTime::parse_from_rfc3339(&format!("{}Z", text.replace(' ', "T"))).unwrap().into())
    }

    #[test]
    fn a_delay_is_never_cut_short() {
        for (now, millis, due) in [
            ("2026-02-28 23:59:58", 1, "2026-02-28 23:59:59"),
            ("2026-02-28 23:59:58", 1000, "2026-02-28 23:59:59"),
            ("2026-02-28 23:59:58", 2001, "2026-03-01 00:00:01"),
            ("2026-02-28 23:59:58.800", 100, "2026-02-28 23:59:59"),
            ("2026-02-28 23:59:58.800", 200, "2026-02-28 23:59:59"),
            ("2026-02-28 23:59:58.800", 1000, "2026-03-01 00:00:00"),
            ("2026-02-28 23:59:58.000000001", 1000, "2026-03-01 00:00:00"),
        ] {
            assert_eq!(at(now).after(Duration::from_millis(millis)).text(), due, "{now} + {millis} ms");
        }
    }

    #[test]
    fn what_is_not_delayed_is_due_now() {
        let now = at("2026-02-28 23:59:58.999");
        assert_eq!(now.after(Duration::ZERO).text(), "2026-02-28 23:59:58");
        assert_eq!(now.text(), "2026-02-28 23:59:58");
    }

    #[test]
    fn a_delay_without_end_is_still_written_in_four_digits() {
        let now = at("2026-01-01 00:00:00");
        for delay in [Duration::MAX, Duration::from_secs(1 << 40)] {
            assert_eq!(now.after(delay).text(), "9999-12-31 23:59:59");
        }
    }

    #[test]
    fn a_message_is_never_redelivered_before_its_time() {
        // Received at .9 of a second, so written up to a second early: "before" and not "until" makes up for it.
        let received = at("2026-01-01 00:00:10").text();
        assert!(received >= at("2026-01-01 00:01:10").before(Duration::from_secs(60)).text());
        assert!(received < at("2026-01-01 00:01:11").before(Duration::from_secs(60)).text());
    }
}
