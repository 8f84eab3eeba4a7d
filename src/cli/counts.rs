//! How many messages a transport holds, as `stats` and `status` tell it.

use super::App;
use crate::transport::TransportError;
use crate::worker;

/// What is known of a transport's messages.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Known {
    pub(super) pending: Option<u64>,
    pub(super) delayed: Option<u64>,
    pub(super) in_flight: Option<u64>,
}

impl Known {
    /// All that are known of.
    pub(super) fn all(self) -> u64 {
        [self.pending, self.delayed, self.in_flight].into_iter().flatten().fold(0, u64::saturating_add)
    }
}

/// Counts a transport's messages. A store that can count only pending messages may still know how many are parked on a
/// failure transport.
pub(super) async fn count(app: &App, name: &str) -> Result<Known, TransportError> {
    let transport = app.transports.target(name)?;
    let Some(counting) = &transport.counting else { return Ok(Known::default()) };
    let counts = counting.counts(u64::MAX).await?;
    let mut known = Known { pending: Some(counts.pending), ..Known::default() };
    if !counting.counts_pending_only() {
        (known.delayed, known.in_flight) = (Some(counts.delayed), Some(counts.in_flight));
    } else if is_failure_transport(app, name)
        && let Some(parking) = &transport.parking
    {
        known.delayed = Some(parking.parked(u64::MAX).await?);
    }
    Ok(known)
}

/// Whether messages that failed for good are moved to this transport.
pub(super) fn is_failure_transport(app: &App, name: &str) -> bool {
    let target = app.transports.target(name);
    target.is_ok_and(|target| worker::is_failure_transport(&app.config, &app.transports, target.name()))
}
