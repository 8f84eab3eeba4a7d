//! Finds the handlers of a message.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use indexmap::{IndexMap, IndexSet};
use serde_json::Value;
use tokio::time::timeout;

use super::{Handler, HandlerContext, HandlerError, HandlerOptions, States, caught};
use crate::message::{Envelope, HandledNowStamp, Message, ReceivedStamp};

/// How long handlers may take to end what they have kept. A program that stays is killed before that.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Handlers by the type or wildcard they are registered for.
#[derive(Default, Clone)]
pub(crate) struct Handlers {
    by_pattern: IndexMap<String, Vec<Registered>>,
    /// The interfaces of each message type. A received message does not contain them.
    interfaces: IndexMap<String, IndexSet<String>>,
    /// The states that they share.
    pub(crate) states: States,
}

/// A handler, and when it is called.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) options: HandlerOptions,
    /// All names of the transports in its options.
    from: Vec<String>,
}

impl Handlers {
    /// Adds a message type with its interfaces, so that received messages find handlers that are registered for an
    /// interface.
    pub(crate) fn add_type<M: Message>(&mut self) {
        self.add_interfaces(M::TYPE, M::INTERFACES.iter().map(|name| (*name).to_owned()));
    }

    /// Adds interfaces to a message type.
    pub(crate) fn add_interfaces(&mut self, message_type: &str, interfaces: impl IntoIterator<Item = String>) {
        let known = self.interfaces.entry(message_type.to_owned()).or_default();
        known.extend(interfaces);
    }

    /// The interfaces of a type: those that the message brings along (`own`), then those that were added.
    pub(crate) fn interfaces<'a>(&'a self, message_type: &str, own: &[&'a str]) -> Vec<&'a str> {
        let known = self.interfaces.get(message_type).into_iter().flatten().map(String::as_str);
        own.iter().copied().chain(known).collect::<IndexSet<_>>().into_iter().collect()
    }

    /// Every type that was added.
    pub(crate) fn known_types(&self) -> impl Iterator<Item = &str> {
        self.interfaces.keys().map(String::as_str)
    }

    /// Registers a handler for a type, an interface, or a wildcard (`App\Message\*`, `*`).
    ///
    /// One handler may be registered for several of them, and still handles each message once. If two different
    /// handlers have the same name, the second is renamed to `name#2`, so that the stamps of a retry can tell them
    /// apart.
    pub(crate) fn register(&mut self, pattern: &str, options: HandlerOptions, handler: Arc<dyn Handler>) {
        let handler = match self.is_taken(handler.name(), &handler) {
            true => Arc::new(Renamed { name: self.free_name(&handler), handler }),
            false => handler,
        };
        let registered = self.by_pattern.entry(pattern.to_owned()).or_default();
        if !registered.iter().any(|other| Arc::ptr_eq(&other.handler, &handler) && other.options == options) {
            let from = options.from_transports.clone();
            registered.push(Registered { handler, options, from });
        }
    }

    /// All handlers of a message type in the order in which they are called: by priority; of the same priority, those of its own
    /// type first. Unlike in routing, wildcards add to more specific patterns.
    pub(crate) fn for_type(&self, message_type: &str, interfaces: &[&str]) -> Vec<&Registered> {
        let patterns = matching_patterns(message_type, &self.interfaces(message_type, interfaces));
        let mut matching: Vec<&Registered> =
            patterns.iter().filter_map(|pattern| self.by_pattern.get(pattern)).flatten().collect();
        matching.sort_by_key(|registered| Reverse(registered.options.priority));
        let mut seen = HashSet::new();
        // Names are unique among handlers.
        matching
            .retain(|found| seen.insert((found.handler.name(), &found.options.from_transports, &found.options.bus)));
        matching
    }

    /// The handlers of a message on a bus, each once: those of its type, without those for messages of other transports or on
    /// other buses.
    pub(crate) fn for_message(&self, envelope: &Envelope, bus: &str) -> Vec<Arc<dyn Handler>> {
        let sources = sources(envelope);
        let takes = |from: &[String]| {
            let is_from = |source: &String| from.contains(source);
            from.is_empty() || sources.is_empty() || sources.iter().any(is_from)
        };
        let mut handlers = self.for_type(envelope.message_type(), envelope.interfaces());
        handlers.retain(|registered| takes(&registered.from) && registered.options.is_on(bus));
        let mut seen = HashSet::new();
        handlers.retain(|registered| seen.insert(registered.handler.name()));
        handlers.into_iter().map(|registered| Arc::clone(&registered.handler)).collect()
    }

    /// Every type or wildcard with its handlers, in the order of registration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[Registered])> {
        self.by_pattern.iter().map(|(pattern, handlers)| (pattern.as_str(), handlers.as_slice()))
    }

    /// Adds further names to the transports of all handlers: those under which the same queue is consumed.
    pub(crate) fn add_names_of_transports(&mut self, names: impl Fn(&str) -> Vec<String>) {
        for registered in self.by_pattern.values_mut().flatten() {
            for name in &registered.options.from_transports {
                registered.from.extend(names(name));
            }
        }
    }

    /// Every handler, once.
    fn all(&self) -> impl Iterator<Item = &Arc<dyn Handler>> {
        let mut seen = HashSet::new();
        self.by_pattern
            .values()
            .flatten()
            .map(|known| &known.handler)
            .filter(move |handler| seen.insert(handler.name()))
    }

    /// Tells all handlers that a worker has handled its last message. A handler that panics, or takes too long, does not
    /// keep the worker from ending.
    pub(crate) async fn worker_stopped(&self) {
        let tell = |handler: &Arc<dyn Handler>| {
            let handler = Arc::clone(handler);
            async move {
                let why = match timeout(STOP_TIMEOUT, caught(async { handler.worker_stopped().await })).await {
                    Ok(Ok(())) => return,
                    Ok(Err(panic)) => format!("panicked: {panic}"),
                    Err(_) => format!("not done within {} s", STOP_TIMEOUT.as_secs()),
                };
                tracing::error!(handler = handler.name(), error = why, "what the handler had kept could not be ended");
            }
        };
        join_all(self.all().map(tell)).await;
    }

    /// Whether another handler has this name.
    fn is_taken(&self, name: &str, handler: &Arc<dyn Handler>) -> bool {
        let all = self.by_pattern.values().flatten();
        all.into_iter().any(|other| other.handler.name() == name && !Arc::ptr_eq(&other.handler, handler))
    }

    fn free_name(&self, handler: &Arc<dyn Handler>) -> String {
        let mut number = 2;
        loop {
            let name = format!("{}#{number}", handler.name());
            if !self.is_taken(&name, handler) {
                return name;
            }
            number += 1;
        }
    }
}

/// The transports that a message was received from, or that were asked to queue it and had it handled at once. None for a
/// message that is not routed.
fn sources(envelope: &Envelope) -> Vec<String> {
    if let Some(received) = envelope.last::<ReceivedStamp>() {
        return vec![received.transport_name];
    }
    envelope.all::<HandledNowStamp>().into_iter().filter_map(|stamp| stamp.transport_name).collect()
}

/// A handler under another name.
struct Renamed {
    name: String,
    handler: Arc<dyn Handler>,
}

#[async_trait]
impl Handler for Renamed {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        self.handler.handle(context).await
    }

    async fn worker_stopped(&self) {
        self.handler.worker_stopped().await;
    }

    fn problems(&self, states: &States) -> Vec<String> {
        self.handler.problems(states)
    }
}

/// The patterns that match a message, most specific first: its type, its interfaces, the wildcards of its namespaces
/// from the innermost to the outermost, then `*` (the order of `HandlersLocator::listTypes`, Symfony Messenger 7.2).
pub(crate) fn matching_patterns(message_type: &str, interfaces: &[&str]) -> Vec<String> {
    let mut patterns = vec![message_type.to_owned()];
    patterns.extend(interfaces.iter().map(|name| (*name).to_owned()));
    let namespaces = message_type.rmatch_indices('\\').map(|(end, _)| &message_type[..end]);
    // A leading backslash does not start a namespace.
    patterns.extend(namespaces.filter(|namespace| !namespace.is_empty()).map(|namespace| format!(r"{namespace}\*")));
    patterns.push("*".to_owned());
    let mut seen = HashSet::new();
    patterns.retain(|pattern| seen.insert(pattern.clone()));
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    #[async_trait]
    impl Handler for Named {
        fn name(&self) -> &str {
            self.0
        }

        async fn handle(&self, _context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
            Ok(Value::Null)
        }
    }

    fn names(handlers: &Handlers, message_type: &str, interfaces: &[&str]) -> Vec<String> {
        handlers.for_type(message_type, interfaces).iter().map(|found| found.handler.name().to_owned()).collect()
    }

    /// What cannot end what it has kept.
    struct Stuck {
        panics: bool,
    }

    #[async_trait]
    impl Handler for Stuck {
        fn name(&self) -> &str {
            if self.panics { "panics" } else { "hangs" }
        }

        async fn handle(&self, _context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
            Ok(Value::Null)
        }

        async fn worker_stopped(&self) {
            assert!(!self.panics, "it cannot be ended");
            std::future::pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_or_hangs_at_the_end_does_not_keep_the_worker_from_ending() {
        let mut handlers = Handlers::default();
        for panics in [true, false] {
            handlers.register("*", HandlerOptions::new(), Arc::new(Stuck { panics }));
        }
        let begun = tokio::time::Instant::now();
        handlers.worker_stopped().await;
        assert!(begun.elapsed() <= STOP_TIMEOUT + Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_type_matches_the_wildcards_of_its_namespaces() {
        let patterns = matching_patterns(r"App\Message\SendEmail", &[r"App\Async"]);
        assert_eq!(patterns, [r"App\Message\SendEmail", r"App\Async", r"App\Message\*", r"App\*", "*"]);
        assert_eq!(matching_patterns("plain", &[]), ["plain", "*"]);
        assert_eq!(matching_patterns("", &[]), ["", "*"]);
        assert_eq!(matching_patterns(r"\App\Mail", &[]), [r"\App\Mail", r"\App\*", "*"]);
        assert_eq!(matching_patterns("*", &["*"]), ["*"]);
    }

    #[test]
    fn all_matching_handlers_are_found_most_specific_first() {
        let mut handlers = Handlers::default();
        for (pattern, name) in [
            ("*", "log"),
            (r"App\*", "app"),
            (r"App\Message\*", "message"),
            (r"App\Async", "async"),
            (r"App\Message\Mail", "send"),
            (r"App\Message\Other", "other"),
        ] {
            handlers.register(pattern, HandlerOptions::new(), Arc::new(Named(name)));
        }
        assert_eq!(names(&handlers, r"App\Message\Mail", &[r"App\Async"]), ["send", "async", "message", "app", "log"]);
        assert_eq!(names(&handlers, r"Other", &[]), ["log"]);
    }

    #[test]
    fn handlers_with_the_same_name_are_numbered() {
        let mut handlers = Handlers::default();
        for pattern in [r"App\Mail", r"App\Mail", r"App\*"] {
            handlers.register(pattern, HandlerOptions::new(), Arc::new(Named("send")));
        }
        assert_eq!(names(&handlers, r"App\Mail", &[]), ["send", "send#2", "send#3"]);
    }

    #[test]
    fn one_handler_under_several_names_handles_a_message_once() {
        let mut handlers = Handlers::default();
        let handler: Arc<dyn Handler> = Arc::new(Named("send"));
        for pattern in [r"App\Mail", r"App\Mail", r"App\*", "*"] {
            handlers.register(pattern, HandlerOptions::new(), Arc::clone(&handler));
        }
        assert_eq!(names(&handlers, r"App\Mail", &[]), ["send"]);
        let listed: Vec<(&str, usize)> = handlers.iter().map(|(pattern, list)| (pattern, list.len())).collect();
        assert_eq!(listed, [(r"App\Mail", 1), (r"App\*", 1), ("*", 1)]);
    }

    #[test]
    fn a_higher_priority_comes_first_also_under_a_wildcard() {
        let mut handlers = Handlers::default();
        for (pattern, name, priority) in [("App", "last", -1), ("App", "send", 0), ("*", "log", 0), ("*", "first", 5)] {
            handlers.register(pattern, HandlerOptions::new().priority(priority), Arc::new(Named(name)));
        }
        assert_eq!(names(&handlers, "App", &[]), ["first", "send", "log", "last"]);
    }

    #[test]
    fn a_handler_of_a_transport_handles_what_was_received_there() {
        let mut handlers = Handlers::default();
        let from =
            |names: &[&str]| names.iter().fold(HandlerOptions::new(), |options, name| options.from_transport(*name));
        handlers.register("App", from(&["a", "b"]), Arc::new(Named("ab")));
        handlers.register("App", from(&["c"]), Arc::new(Named("c")));
        let both: Arc<dyn Handler> = Arc::new(Named("both"));
        handlers.register("*", from(&["a"]), Arc::clone(&both));
        handlers.register("App", from(&["c"]), both);
        handlers.add_names_of_transports(|name| if name == "c" { vec!["c".into(), "target".into()] } else { vec![] });
        let of = |transport: Option<&str>| {
            let mut envelope = Envelope::from_json("App", "{}");
            envelope = transport
                .iter()
                .fold(envelope, |envelope, name| envelope.with(&ReceivedStamp { transport_name: (*name).to_owned() }));
            let found = handlers.for_message(&envelope, "bus");
            found.iter().map(|handler| handler.name().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(None), "ab c both", "handled during its dispatch");
        let now = HandledNowStamp { transport_name: Some("b".into()), reason: String::new() };
        let of_sync = handlers.for_message(&Envelope::from_json("App", "{}").with(&now), "bus");
        assert_eq!(
            of_sync.iter().map(|handler| handler.name()).collect::<Vec<_>>(),
            ["ab"],
            "as with Symfony's sync://"
        );
        assert_eq!((of(Some("a")), of(Some("b"))), ("ab both".to_owned(), "ab".to_owned()));
        assert_eq!((of(Some("target")), of(Some("d"))), ("c both".to_owned(), String::new()));
    }
}
