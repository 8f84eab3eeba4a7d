//! `POST /cron`: starts the jobs that are due, and the workers that are needed. For hosts without cron.
//!
//! What cron does for almost a minute, this does once, in the same way: jobs and workers are processes of their own, which go
//! on. While another supervisor is at work, it alone starts workers. Jobs are taken among all who look, so that no due time
//! is run twice.

use futures_util::future::join;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::reply::Reply;
use super::service::Service;
use crate::app::explain;

pub(super) async fn run(service: &Service) -> Reply {
    // Not the whole time: this answer has to come before that of a request that took too long.
    let Ok(_turn) = timeout(service.config().request_timeout / 2, service.cron_turn.lock()).await else {
        return Reply::error(503, "earlier requests to run what is due are still at work").with("Retry-After", "60");
    };
    let mut errors = Vec::new();
    let (jobs, workers) = join(jobs(service), workers(service)).await;
    let mut report = jobs.unwrap_or_else(|error| {
        errors.push(error);
        json!({ "started": [], "left_out": [], "failed": [] })
    });
    report["workers"] = workers.unwrap_or_else(|error| {
        errors.push(error);
        Value::Null
    });
    for failed in [&report["failed"], &report["workers"]["failed"]].into_iter().filter_map(Value::as_array).flatten() {
        errors.push(format!(
            "{}: {}",
            failed["name"].as_str().unwrap_or_default(),
            failed["error"].as_str().unwrap_or_default()
        ));
    }
    if errors.is_empty() {
        return Reply::new(200, report);
    }
    report["error"] = errors.join("; ").into();
    Reply::new(500, report)
}

async fn jobs(service: &Service) -> Result<Value, String> {
    let looked = (service.new_scheduler)()?.once().await;
    let left_out = looked.left_out.iter().map(|(name, reason)| json!({ "name": name, "reason": reason }));
    Ok(json!({
        "started": looked.started,
        "left_out": left_out.collect::<Vec<_>>(),
        "failed": failures(looked.failed),
    }))
}

async fn workers(service: &Service) -> Result<Value, String> {
    if service.app.config.workers.is_empty() {
        return Ok(Value::Null);
    }
    let supervisor = service.app.supervisor_of_workers().map_err(|error| error.to_string())?;
    let report = supervisor.once().await.map_err(|error| error.to_string())?;
    let Some(report) = report else {
        return Ok(json!({ "started": [], "failed": [], "reason": "another supervisor is at work" }));
    };
    explain(&report);
    let started = report.started.iter();
    let started = started.map(|worker| json!({ "name": worker.definition, "slot": worker.slot, "pid": worker.pid }));
    let failed = report.failures.iter().map(|failure| (failure.definition.clone(), failure.message.clone()));
    Ok(json!({ "started": started.collect::<Vec<_>>(), "failed": failures(failed) }))
}

fn failures(failed: impl IntoIterator<Item = (String, String)>) -> Value {
    failed.into_iter().map(|(name, error)| json!({ "name": name, "error": error })).collect()
}
