//! Options that transports of several kinds have.

use std::time::Duration;

use crate::config::Setting;

/// How long a message may be in flight before it is pending again. The default is Symfony Messenger's.
pub(super) const REDELIVER_TIMEOUT: Setting<Duration> = Setting::seconds(
    "redeliver_timeout",
    "3600",
    "seconds after which a message in flight is pending again; must be more than the slowest message takes",
);
