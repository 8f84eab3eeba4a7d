//! Ids of messages, names of consumers, and times in milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::gethostname;

use super::super::MessageId;

/// Begins the names that consumers give themselves.
pub(super) const OWN_NAMES: &str = "minutely:";
/// Before the id of a message that is delayed.
pub(super) const DELAYED: &str = "delayed:";
/// The largest whole number that a score holds exactly, in milliseconds: the year 287396.
pub(super) const LATEST: u64 = (1 << 53) - 1;

/// A name for a consumer that no other has.
pub(super) fn own_name() -> String {
    let host = gethostname().unwrap_or_default();
    format!("{OWN_NAMES}{}:{}:{:08x}", host.display(), std::process::id(), fastrand::u32(..))
}

/// Is it an id of a stream's entry, `1700000000000-0`?
pub(super) fn is_entry(id: &MessageId) -> bool {
    // A number may begin with a plus sign elsewhere.
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    id.0.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number))
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a message with this delay is due.
pub(super) fn due(delay: Duration) -> u64 {
    now().saturating_add(millis(delay)).min(LATEST)
}

/// Tells delayed messages with equal content apart.
pub(super) fn new_uniqid() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The id of a delayed message.
pub(super) fn delayed_id(due: u64, uniqid: &str) -> MessageId {
    MessageId(format!("{DELAYED}{due}:{uniqid}"))
}
