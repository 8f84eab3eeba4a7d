//! Which transports a message is sent to.

use indexmap::{IndexMap, IndexSet};

use crate::handler::matching_patterns;

/// Types and wildcards, with the transports their messages are sent to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routing {
    by_pattern: IndexMap<String, Vec<String>>,
}

impl Routing {
    /// Routing by these types, interfaces and wildcards.
    pub(crate) fn new(by_pattern: IndexMap<String, Vec<String>>) -> Self {
        Self { by_pattern }
    }

    /// The transports for a message, in sending order, each once: those of its type and of its interfaces. A wildcard
    /// counts only if nothing more specific matches (as in Symfony's `SendersLocator`, since 6.2).
    pub(crate) fn transports(&self, message_type: &str, interfaces: &[&str]) -> Vec<String> {
        let mut transports = IndexSet::new();
        for pattern in matching_patterns(message_type, interfaces) {
            if pattern.ends_with('*') && !transports.is_empty() {
                break;
            }
            transports.extend(self.exactly(&pattern).iter().cloned());
        }
        transports.into_iter().collect()
    }

    /// The transports of exactly this type or wildcard.
    pub(crate) fn exactly(&self, pattern: &str) -> &[String] {
        self.by_pattern.get(pattern).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every type and wildcard that is routed.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = &str> {
        self.by_pattern.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_wins_and_wildcards_are_a_fallback() {
        let rules = [
            ("*", vec!["all"]),
            (r"App\*", vec!["app"]),
            (r"App\Message\*", vec!["message"]),
            (r"App\Message\Mail", vec!["mail", "audit"]),
            (r"App\Async", vec!["async", "audit"]),
        ];
        let rules = rules.map(|(pattern, names)| (pattern.to_owned(), names.into_iter().map(str::to_owned).collect()));
        let routing = Routing::new(rules.into());
        let route = |message_type, interfaces: &[&str]| routing.transports(message_type, interfaces).join(",");
        assert_eq!(route(r"App\Message\Mail", &[]), "mail,audit");
        assert_eq!(route(r"App\Message\Mail", &[r"App\Async"]), "mail,audit,async");
        assert_eq!(route(r"App\Message\Other", &[r"App\Async"]), "async,audit");
        assert_eq!(route(r"App\Message\Other", &[]), "message");
        assert_eq!(route(r"App\Other", &[]), "app");
        assert_eq!(route("Other", &[]), "all");
        assert_eq!(Routing::default().transports("Other", &[]), Vec::<String>::new());
    }
}
