//! Wakes the workers of this process when the process itself has queued a message for them. That does not depend on the
//! store.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

/// The workers of this process. Clones share them.
#[derive(Clone, Default)]
pub(super) struct LocalWorkers {
    workers: Arc<Mutex<Vec<LocalWorker>>>,
}

struct LocalWorker {
    queues: Vec<String>,
    notify: Weak<Notify>,
}

impl LocalWorkers {
    /// Notifies the returned handle of messages on these queues, until it is dropped.
    pub(super) fn add(&self, queues: Vec<String>) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.notify.strong_count() > 0);
        workers.push(LocalWorker { queues, notify: Arc::downgrade(&notify) });
        notify
    }

    /// Notifies the workers that a message on this queue is due now.
    pub(super) fn notify(&self, queue: &str) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.iter().filter(|worker| worker.queues.iter().any(|name| name == queue)) {
            if let Some(notify) = worker.notify.upgrade() {
                // `notify_one` is kept for a worker that is not waiting at the moment.
                notify.notify_one();
            }
        }
    }
}
