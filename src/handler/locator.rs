//! Finds the handlers of a message.

use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;

use super::{Handler, HandlerError};
use crate::message::Envelope;

/// Handlers by the type or wildcard they are registered for.
#[derive(Default, Clone)]
pub struct Handlers {
    by_pattern: IndexMap<String, Vec<Arc<dyn Handler>>>,
}

impl Handlers {
    /// Registers a handler for a type, an interface, or a wildcard (`App\Message\*`, `*`). When its name is taken, it goes
    /// by `name#2`: handlers of one message are told apart by their names.
    pub fn register(&mut self, pattern: &str, handler: Arc<dyn Handler>) {
        let taken = |name: &str| self.by_pattern.values().flatten().any(|other| other.name() == name);
        let handler = if taken(handler.name()) {
            let free = (2..).map(|n| format!("{}#{n}", handler.name())).find(|name| !taken(name));
            Arc::new(Renamed { name: free.unwrap_or_default(), handler })
        } else {
            handler
        };
        self.by_pattern.entry(pattern.to_owned()).or_default().push(handler);
    }

    /// All handlers of a message, those of its own type first. Unlike routing, wildcards add to what is more specific.
    pub fn for_type(&self, message_type: &str, interfaces: &[&str]) -> Vec<Arc<dyn Handler>> {
        let patterns = matching_patterns(message_type, interfaces);
        patterns.iter().filter_map(|pattern| self.by_pattern.get(pattern)).flatten().cloned().collect()
    }

    /// Every pattern with its handlers, in the order they were registered.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Arc<dyn Handler>])> {
        self.by_pattern.iter().map(|(pattern, handlers)| (pattern.as_str(), handlers.as_slice()))
    }
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

    async fn handle(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        self.handler.handle(envelope).await
    }
}

/// The names a message answers to, most specific first: its type, its interfaces, then wildcards from the longest down to
/// `*` (the order of Symfony's `HandlersLocator::listTypes`).
pub fn matching_patterns(message_type: &str, interfaces: &[&str]) -> Vec<String> {
    let mut patterns: Vec<String> =
        std::iter::once(message_type).chain(interfaces.iter().copied()).map(str::to_owned).collect();
    patterns.extend(message_type.rmatch_indices('\\').map(|(at, _)| format!("{}\\*", &message_type[..at])));
    patterns.push("*".to_owned());
    let mut seen = std::collections::HashSet::new();
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

        async fn handle(&self, _envelope: &Envelope) -> Result<(), HandlerError> {
            Ok(())
        }
    }

    #[test]
    fn a_type_answers_to_its_namespaces() {
        let patterns = matching_patterns(r"App\Message\SendEmail", &[r"App\Async"]);
        assert_eq!(patterns, [r"App\Message\SendEmail", r"App\Async", r"App\Message\*", r"App\*", "*"]);
        assert_eq!(matching_patterns("plain", &[]), ["plain", "*"]);
        assert_eq!(matching_patterns("", &[]), ["", "*"]);
    }

    #[test]
    fn every_matching_handler_is_found_once_and_names_are_unique() {
        let mut handlers = Handlers::default();
        for (pattern, name) in
            [("*", "log"), (r"App\Mail", "send"), (r"App\Mail", "send"), (r"App\*", "app"), ("Other", "no")]
        {
            handlers.register(pattern, Arc::new(Named(name)));
        }
        let found = handlers.for_type(r"App\Mail", &[]);
        let names: Vec<&str> = found.iter().map(|handler| handler.name()).collect();
        assert_eq!(names, ["send", "send#2", "app", "log"]);
    }
}
