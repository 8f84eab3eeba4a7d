//! Times in the columns of a queue's table.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use indexmap::IndexMap;

use super::super::{Delivery, Receipt};

/// The format of times: text that sorts like time. In UTC, as in Symfony Messenger since 6.0.
const TIME: &str = "%Y-%m-%d %H:%M:%S";

/// A time, for columns that keep whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Now.
    pub(super) fn now() -> Self {
        Self(Utc::now())
    }

    /// This time, for the columns.
    pub(super) fn at(time: SystemTime) -> Self {
        Self(time.into())
    }

    /// The receipt of messages that were received now.
    pub(super) fn receipt(self) -> Receipt {
        Receipt(self.text())
    }

    /// When a message becomes due. A delay ends at the next whole second, as in Symfony since 7.4, so that it is never
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
        // Later than the year 9999, the text would not sort like the time.
        Self(due.map_or(last, |due| due.min(last)))
    }

    /// Messages received before this have been in flight for too long.
    pub(super) fn before(self, redeliver_timeout: Duration) -> Self {
        Self(TimeDelta::from_std(redeliver_timeout).map_or(self.0, |timeout| self.0 - timeout))
    }

    /// The time as written into a column. Fractions of a second are cut and not rounded, because the current time must
    /// not become a time in the future.
    pub(super) fn text(self) -> String {
        self.0.format(TIME).to_string()
    }
}

/// How long a receipt may repeat: it has a resolution of a second, and the clocks of hosts may differ.
pub(super) const RECEIPT_REPEATS: Duration = Duration::from_secs(2);

/// The ids of the messages that were received at each of these times. Invalid ids and times are skipped.
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

/// Reads a time from a column. `None` if it has another content.
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
    fn a_message_without_a_delay_is_due_now() {
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
        // Received at .9 of a second, but written as the full second before. The comparison with "before" makes up for
        // that.
        let received = at("2026-01-01 00:00:10").text();
        assert!(received >= at("2026-01-01 00:01:10").before(Duration::from_secs(60)).text());
        assert!(received < at("2026-01-01 00:01:11").before(Duration::from_secs(60)).text());
    }
}
