//! Wakes the workers of this process when it has queued a message for them: no store needs to be asked for that.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

/// The workers of this process. Clones are one.
#[derive(Clone, Default)]
pub(super) struct LocalWorkers {
    workers: Arc<Mutex<Vec<LocalWorker>>>,
}

struct LocalWorker {
    queues: Vec<String>,
    notify: Weak<Notify>,
}

impl LocalWorkers {
    /// From now on messages on these queues are told of, until what is returned is dropped.
    pub(super) fn add(&self, queues: Vec<String>) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.notify.strong_count() > 0);
        workers.push(LocalWorker { queues, notify: Arc::downgrade(&notify) });
        notify
    }

    /// A message that is due now is on this queue.
    pub(super) fn notify(&self, queue: &str) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.iter().filter(|worker| worker.queues.iter().any(|name| name == queue)) {
            if let Some(notify) = worker.notify.upgrade() {
                // Kept for a worker that does not wait at the moment.
                notify.notify_one();
            }
        }
    }
}
