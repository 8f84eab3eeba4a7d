//! Ids of messages, names of consumers, and times in milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::gethostname;

use super::super::MessageId;

/// Prefix of generated consumer names.
pub(super) const NAME_PREFIX: &str = "minutely:";
/// Prefix of the ids of delayed messages.
pub(super) const DELAYED: &str = "delayed:";
/// The latest time, in milliseconds since 1970: the largest integer that a score holds exactly (the year 287396).
pub(super) const LATEST: u64 = (1 << 53) - 1;

/// A unique name for a consumer.
pub(super) fn own_name() -> String {
    let host = gethostname().unwrap_or_default();
    format!("{NAME_PREFIX}{}:{}:{:08x}", host.display(), std::process::id(), fastrand::u32(..))
}

/// Whether this is the id of a stream's entry, such as `1700000000000-0`.
pub(super) fn is_entry(id: &MessageId) -> bool {
    // `parse` alone would accept a plus sign.
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

/// When a message with this delay is due: at the next whole millisecond, so that the delay is never cut short.
pub(super) fn due(delay: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(now.saturating_add(delay).saturating_add(Duration::from_nanos(999_999))).min(LATEST)
}

/// A value that makes delayed messages with equal content distinct.
pub(super) fn new_uniqid() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Marks the `uniqid` of a message that was taken by its id, and is in flight until it is due.
const TAKEN: &str = "taken-";

/// A value that makes a taken message distinct.
pub(super) fn new_taken_uniqid() -> String {
    format!("{TAKEN}{}", new_uniqid())
}

/// Whether this is the id of a message that was taken by its id.
pub(super) fn is_of_taken(id: &MessageId) -> bool {
    id.0.strip_prefix(DELAYED).and_then(|id| id.split_once(':')).is_some_and(|(_, uniqid)| uniqid.starts_with(TAKEN))
}

/// Whether a message with this `uniqid`, due at this time, is in flight.
pub(super) fn is_taken(uniqid: &str, due: u64) -> bool {
    uniqid.starts_with(TAKEN) && due > now()
}

/// The id of a delayed message.
pub(super) fn delayed_id(due: u64, uniqid: &str) -> MessageId {
    MessageId(format!("{DELAYED}{due}:{uniqid}"))
}
