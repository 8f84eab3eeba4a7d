//! The heartbeat of cron itself: who has one, and how it is shown.

use std::io::{self, IsTerminal};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::App;
use super::super::output::age;
use crate::cache::CacheError;
use crate::heartbeat::{CronBeat, CronHeartbeat, CronKind, cron_beats};
use crate::supervisor::{host_owner, known_host_owner};

/// Whether cron is at work, as `--format json` shows it.
#[derive(Serialize)]
pub(in super::super) struct CronStatus {
    /// On any host that shares the cache.
    pub running: bool,
    /// How many seconds ago it was last seen; none if that was not within a day.
    age: Option<u64>,
    hosts: Vec<HostStatus>,
}

#[derive(Serialize)]
struct HostStatus {
    host: String,
    /// Is it this host?
    here: bool,
    kind: CronKind,
    running: bool,
    started_at: DateTime<Utc>,
    age: u64,
}

/// The heartbeat of `minutely cron`, which is this process.
pub(super) fn of_cron(app: &App) -> CronHeartbeat {
    let is_by_hand = io::stdin().is_terminal() || io::stderr().is_terminal();
    of(app, if is_by_hand { CronKind::ByHand } else { CronKind::Cron })
}

/// That of `minutely supervise`.
pub(in super::super) fn of_supervise(app: &App) -> CronHeartbeat {
    of(app, CronKind::Supervise)
}

fn of(app: &App, kind: CronKind) -> CronHeartbeat {
    let host = host_owner(&app.config.state_dir).unwrap_or_else(|error| {
        tracing::warn!("this host has no id, so that `status` cannot tell it from others: {error}");
        "unknown".to_owned()
    });
    CronHeartbeat::new(app.cache.clone(), kind, &host)
}

/// Is cron at work, and where?
pub(in super::super) async fn cron_status(app: &App) -> Result<CronStatus, CacheError> {
    let here = known_host_owner(&app.config.state_dir).ok().flatten();
    let beats = cron_beats(&app.cache).await?;
    let host = |beat: CronBeat| HostStatus {
        here: here.as_ref() == Some(&beat.host),
        kind: beat.kind,
        running: beat.is_running(),
        started_at: beat.started_at,
        age: beat.age.as_secs(),
        host: beat.host,
    };
    Ok(CronStatus {
        running: beats.iter().any(CronBeat::is_running),
        age: beats.iter().map(|beat| beat.age).min().as_ref().map(Duration::as_secs),
        hosts: beats.into_iter().map(host).collect(),
    })
}

impl CronStatus {
    /// For people: a line, and one for each host where there are several.
    pub(in super::super) fn lines(&self) -> Vec<String> {
        // One that was stopped may be the last that was seen, while another one runs.
        let last = self.hosts.iter().find(|host| host.running == self.running);
        let mut lines = vec![match last {
            Some(last) if self.running => format!("cron is running: {}", last.seen()),
            Some(last) => format!("cron is not running: {}", last.seen()),
            None => "cron is not running: it was not seen within a day".to_owned(),
        }];
        if self.hosts.len() > 1 {
            let line = |host: &HostStatus| {
                let running = if host.running { "running" } else { "not running" };
                format!("  {running}: {}", host.seen())
            };
            lines.extend(self.hosts.iter().map(line));
        }
        lines
    }
}

impl HostStatus {
    fn seen(&self) -> String {
        let what = match self.kind {
            CronKind::Cron => "`cron`",
            CronKind::ByHand => "`cron`, started by hand,",
            CronKind::Supervise => "`supervise`",
        };
        let place = if self.here { "here".to_owned() } else { format!("on {}", self.host) };
        format!("{what} was last seen {place} {} ago", age(self.age))
    }
}
