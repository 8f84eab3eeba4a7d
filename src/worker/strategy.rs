//! When a failed message is tried again: as the configuration says, or code of the application.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::retry::{MAX_DELAY, retry_delay};
use crate::config::{self, Config};
use crate::message::{Envelope, ErrorDetailsStamp};

/// The name under which a strategy is used for all transports.
pub(crate) const ALL: &str = "*";

/// Decides in code whether a failed message is tried again, and when: Symfony's `RetryStrategyInterface`. Passed to
/// [`AppBuilder::retry_strategy`](crate::AppBuilder::retry_strategy).
///
/// It is asked after a failure whose error leaves the decision open. An error that
/// [must not be retried](crate::handler::HandlerError::unrecoverable) is not, and one that
/// [is retried in any case](crate::handler::HandlerError::recoverable) is; without a delay of its own, that is
/// [`RetryStrategy::delay`]. If a strategy panics, the panic is logged, and the numbers in the configuration count.
///
/// ```
/// use std::time::Duration;
/// use minutely::{App, FailedAttempt, RetryStrategy};
///
/// /// Tries for a day, and waits longer if the other side is busy.
/// struct Patient;
///
/// impl RetryStrategy for Patient {
///     fn is_retryable(&self, attempt: &FailedAttempt<'_>) -> bool {
///         attempt.retries < 24
///     }
///
///     fn delay(&self, attempt: &FailedAttempt<'_>) -> Duration {
///         let is_busy = attempt.error.exception_message.contains("429");
///         Duration::from_secs(if is_busy { 3600 } else { 60 })
///     }
/// }
///
/// let app = App::builder().retry_strategy("mail", Patient);
/// ```
pub trait RetryStrategy: Send + Sync {
    /// Whether to try the message again. If not, it goes to the failure transport.
    fn is_retryable(&self, attempt: &FailedAttempt<'_>) -> bool;

    /// How long to wait before the message is tried again; at most ten years.
    fn delay(&self, attempt: &FailedAttempt<'_>) -> Duration;
}

/// A failed attempt to handle a message.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FailedAttempt<'a> {
    /// The message, with a stamp for each handler that has succeeded.
    pub envelope: &'a Envelope,
    /// The transport that it was received from.
    pub transport: &'a str,
    /// How often it was retried before, without this attempt: 0 after the first attempt.
    pub retries: u32,
    /// What went wrong.
    pub error: &'a ErrorDetailsStamp,
}

/// The strategies of an application, each under the name of a transport, under [`ALL`], or under one that the
/// configuration names as `retry_strategy.service`.
#[derive(Clone, Default)]
pub(crate) struct RetryStrategies(HashMap<String, Arc<dyn RetryStrategy>>);

impl RetryStrategies {
    pub(crate) fn insert(&mut self, name: String, strategy: Arc<dyn RetryStrategy>) {
        self.0.insert(name, strategy);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// How the messages of a transport are retried. An auto-fallback's name and settings come before its target's.
    pub(super) fn of(&self, config: &Config, names: [&str; 2]) -> Retrial {
        let configured = || names.iter().filter_map(|name| config.transports.get(*name)?.retry.as_ref()).next();
        let service = configured().and_then(|retry| self.0.get(retry.service.as_ref()?));
        let own = || names.iter().find_map(|name| self.0.get(*name));
        let of_all = || self.0.get(ALL).filter(|_| configured().is_none());
        let code = service.or_else(own).or_else(of_all).cloned();
        Retrial { numbers: configured().cloned().unwrap_or_default(), code }
    }
}

/// How the messages of one transport are retried.
pub(super) struct Retrial {
    numbers: config::RetryStrategy,
    code: Option<Arc<dyn RetryStrategy>>,
}

impl Retrial {
    /// As a configuration says.
    #[cfg(test)]
    pub(super) fn by(numbers: config::RetryStrategy) -> Self {
        Self { numbers, code: None }
    }

    pub(super) fn is_retryable(&self, attempt: &FailedAttempt<'_>) -> bool {
        let by_numbers = || attempt.retries < self.numbers.max_retries;
        self.ask(attempt, |strategy| strategy.is_retryable(attempt)).unwrap_or_else(by_numbers)
    }

    /// The delay before the next attempt. `step` is how often the delay has grown before.
    pub(super) fn delay(&self, attempt: &FailedAttempt<'_>, step: u32) -> Duration {
        let delay = self.ask(attempt, |strategy| strategy.delay(attempt));
        delay.map_or_else(|| self.delay_by_numbers(step), |delay| delay.min(MAX_DELAY))
    }

    /// The delay after an attempt that did not fail by itself, and that no strategy is asked about.
    pub(super) fn delay_by_numbers(&self, step: u32) -> Duration {
        retry_delay(&self.numbers, step, fastrand::f64())
    }

    /// `None` if there is no code to ask, or if it panics.
    fn ask<T>(&self, attempt: &FailedAttempt<'_>, question: impl FnOnce(&dyn RetryStrategy) -> T) -> Option<T> {
        let strategy = self.code.as_deref()?;
        let answer = catch_unwind(AssertUnwindSafe(|| question(strategy)));
        if answer.is_err() {
            let (transport, message_type) = (attempt.transport, attempt.envelope.message_type());
            tracing::error!(transport, message_type, "the retry strategy panicked; the configured numbers count");
        }
        answer.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Always, after this many seconds.
    struct After(u64);

    impl RetryStrategy for After {
        fn is_retryable(&self, _attempt: &FailedAttempt<'_>) -> bool {
            assert!(self.0 < 100, "too long");
            true
        }

        fn delay(&self, _attempt: &FailedAttempt<'_>) -> Duration {
            Duration::from_secs(self.0)
        }
    }

    fn decision(retrial: &Retrial) -> (bool, u64) {
        let error = ErrorDetailsStamp {
            exception_class: String::new(),
            exception_code: 0.into(),
            exception_message: String::new(),
            flatten_exception: serde_json::Value::Null,
        };
        let attempt =
            FailedAttempt { envelope: &Envelope::from_json("a", "{}"), transport: "a", retries: 9, error: &error };
        (retrial.is_retryable(&attempt), retrial.delay(&attempt, 0).as_secs())
    }

    #[test]
    fn a_named_strategy_comes_before_that_of_the_transport_and_that_before_one_for_all() {
        let mut strategies = RetryStrategies::default();
        for (name, seconds) in [("a", 1), ("patient", 2), (ALL, 3), ("panics", 100)] {
            strategies.insert(name.to_owned(), Arc::new(After(seconds)));
        }
        let retry = |service: &str| {
            format!("{{dsn: 'in-memory://', retry_strategy: {{delay: 7000, jitter: 0, service: {service}}}}}")
        };
        let yaml = format!(
            "transports: {{a: 'in-memory://', b: {}, c: {}, d: 'in-memory://', e: {}}}",
            retry("patient"),
            retry("~"),
            retry("panics")
        );
        let (config, _) = config::read_text(&yaml, std::path::Path::new("/")).unwrap();
        let of = |name| strategies.of(&config, [name, name]);
        assert_eq!(decision(&of("a")), (true, 1));
        assert_eq!(decision(&of("b")), (true, 2));
        assert_eq!(decision(&of("c")), (false, 7), "its own numbers come before a strategy for all");
        assert_eq!(decision(&of("d")), (true, 3));
        assert!(!decision(&of("e")).0, "one that panics leaves it to the numbers");
    }
}
