//! Queues in tables: [`sqlite`], [`postgres`] and [`mysql`], and what they have in common: the options of a queue in a
//! table, and how times are written there. [`Table`] is the transport that the servers have in common; what each has its
//! own way for is its [`Dialect`].

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod dialect;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod row;
mod sqlite;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod table;

use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use indexmap::IndexMap;

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use self::{dialect::Dialect, row::Content, table::Table};
#[cfg(feature = "mysql")]
pub use mysql::MysqlFactory;
#[cfg(feature = "postgres")]
pub use postgres::PostgresFactory;
pub use sqlite::SqliteFactory;

use super::{Delivery, Receipt};
use crate::config::Options;
use crate::connection::sql::is_identifier;

/// How long a message may be in flight before it is pending again: Symfony Messenger's default.
pub(super) const REDELIVER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Symfony Messenger's default for `table_name`.
const TABLE: &str = "messenger_messages";
/// Symfony Messenger's default for `queue_name`.
const QUEUE: &str = "default";
/// Stands in for a time that never comes.
pub(super) const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// The width of the column `queue_name`; SQLite does not enforce it, the servers do.
const QUEUE_NAME_MAX: usize = 190;

/// How times are written: text that sorts as time does. UTC, as Symfony Messenger does it from 6.0 on.
const TIME: &str = "%Y-%m-%d %H:%M:%S";

/// One queue in one table: the options that all SQL transports share.
#[derive(Debug, Clone)]
pub(super) struct QueueOptions {
    /// The table, an identifier.
    pub(super) table: String,
    /// The value of its column `queue_name`.
    pub(super) queue: String,
    /// How long a message may be in flight before it is pending again.
    pub(super) redeliver_timeout: Duration,
    /// Create the table when it is missing?
    pub(super) auto_setup: bool,
}

impl QueueOptions {
    /// Reads `table_name`, `queue_name`, `redeliver_timeout` and `auto_setup`.
    pub(super) fn read(options: &mut Options<'_>) -> Self {
        let rule = "is a name of letters, digits and _, not starting with a digit or \"sqlite_\"";
        Self::read_where(options, is_identifier, rule)
    }

    /// The same, for tables that may lie in a schema: `table_name: schema.table`.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(super) fn read_with_schema(options: &mut Options<'_>) -> Self {
        let rule = "is a name of letters, digits and _, not starting with a digit, perhaps with a schema: schema.table";
        Self::read_where(options, is_identifier_with_schema, rule)
    }

    fn read_where(options: &mut Options<'_>, fits: fn(&str) -> bool, rule: &str) -> Self {
        let table = options.text("table_name").unwrap_or_else(|| TABLE.to_owned());
        if !fits(&table) {
            options.refuse("table_name", format!("table_name {rule}; found \"{table}\""));
        }
        let queue = options.text("queue_name").unwrap_or_else(|| QUEUE.to_owned());
        if queue.chars().count() > QUEUE_NAME_MAX {
            options
                .refuse("queue_name", format!("queue_name has at most {QUEUE_NAME_MAX} characters; this one has more"));
        }
        let redeliver_timeout = options.seconds("redeliver_timeout", REDELIVER_TIMEOUT);
        let auto_setup = options.flag("auto_setup", true);
        Self { table, queue, redeliver_timeout, auto_setup }
    }
}

/// A moment in time, for a queue's columns, which keep whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(DateTime<Utc>);

impl Moment {
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

    /// Messages received before this moment have been in flight for too long.
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

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn is_identifier_with_schema(text: &str) -> bool {
    let (schema, table) = text.split_once('.').map_or((None, text), |(schema, table)| (Some(schema), table));
    schema.is_none_or(is_identifier) && is_identifier(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> Moment {
        Moment(DateTime::parse_from_rfc3339(&format!("{}Z", text.replace(' ', "T"))).unwrap().into())
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
            assert_eq!(moment(now).after(Duration::from_millis(millis)).text(), due, "{now} + {millis} ms");
        }
    }

    #[test]
    fn what_is_not_delayed_is_due_now() {
        let now = moment("2026-02-28 23:59:58.999");
        assert_eq!(now.after(Duration::ZERO).text(), "2026-02-28 23:59:58");
        assert_eq!(now.text(), "2026-02-28 23:59:58");
    }

    #[test]
    fn a_delay_without_end_is_still_written_in_four_digits() {
        let now = moment("2026-01-01 00:00:00");
        for delay in [Duration::MAX, Duration::from_secs(1 << 40)] {
            assert_eq!(now.after(delay).text(), "9999-12-31 23:59:59");
        }
    }

    #[test]
    fn a_message_is_never_redelivered_before_its_time() {
        // Received at .9 of a second, so written up to a second early: "before" and not "until" makes up for it.
        let received = moment("2026-01-01 00:00:10").text();
        assert!(received >= moment("2026-01-01 00:01:10").before(Duration::from_secs(60)).text());
        assert!(received < moment("2026-01-01 00:01:11").before(Duration::from_secs(60)).text());
    }
}
