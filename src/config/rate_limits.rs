//! Reads `rate_limiter`: how many messages of a transport are handled in a time, by all workers together.
//!
//! A limiter has a name under the key `rate_limiter` (Symfony: `framework.rate_limiter`), and transports name it; or a
//! transport has one of its own, written where the name would be.

use std::time::Duration;

use indexmap::IndexMap;

use super::definition::{Definition, Kind, Setting};
use super::parse_duration;
use super::problem::{Problem, displayable};
use super::section::{Node, Reader, Section, join};

/// The key `rate_limiter` of the file.
pub(super) const LIMITERS: Definition = Definition::new(
    "rate_limiter",
    Kind::Map(&Kind::Section(LIMITER)),
    "limits by names of your choice, which transports name in their `rate_limiter`: see [rate limits](running.md#rate-limits)",
);

/// The key `rate_limiter` of a transport.
pub(super) const OF_TRANSPORT: Definition = Definition::new(
    "rate_limiter",
    Kind::Either(&[Kind::Text("name"), Kind::Section(LIMITER)]),
    "how many of its messages are begun in a time: a name under `rate_limiter`, or a limit of its own",
);

const LIMITER: &[Definition] = &[
    POLICY,
    LIMIT.definition,
    INTERVAL,
    RATE,
    Definition::accepted("cache_pool", "the counts are in `cache`"),
    Definition::accepted("storage_service", "the counts are in `cache`"),
    Definition::accepted("lock_factory", "no lock is needed"),
];
const POLICY: Definition =
    Definition::new("policy", Kind::Choice(POLICIES), "how messages are counted").required().example("token_bucket");
const POLICIES: &[&str] = &["token_bucket", "fixed_window", "sliding_window", "no_limit"];
const LIMIT: Setting<u64> =
    Setting::whole("limit", 1, MOST, "1", "the most messages in an interval; of a bucket, how many tokens it holds")
        .required()
        .example("100");
const INTERVAL: Definition =
    Definition::new("interval", Kind::Text("duration"), "of windows: how long one is (`1m`, or `1 minute` as in PHP)");
const RATE: Definition = Definition::new("rate", Kind::Section(RATE_KEYS), "of a bucket: how it is filled again");
const RATE_KEYS: &[Definition] = &[RATE_INTERVAL, AMOUNT.definition];
const RATE_INTERVAL: Definition =
    Definition::new("interval", Kind::Text("duration"), "how often tokens are added").required().example("1s");
const AMOUNT: Setting<u64> = Setting::whole("amount", 1, MOST, "1", "how many are added each time");

/// The largest count.
const MOST: u64 = 1_000_000_000;

/// The shortest interval: with a shorter one, workers would ask the cache all the time.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

const FORM: &str = "the name of a limiter, or a mapping such as {policy: fixed_window, limit: 100, interval: 1m}";

/// How many messages may be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RateLimit {
    /// Transports whose limits have the same name share one count.
    pub(crate) name: String,
    /// How many there are: in a window, or as tokens in a bucket.
    pub(crate) limit: u64,
    /// How long a window lasts, or how often tokens are added.
    pub(crate) interval: Duration,
    /// What happens after an interval.
    pub(crate) policy: RatePolicy,
}

/// What happens after an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RatePolicy {
    /// Tokens are added to the bucket: this many.
    TokenBucket(u64),
    /// A new window begins with the next message.
    FixedWindow,
    /// A new window begins, and the one before counts as far as it reaches into the last interval.
    SlidingWindow,
}

/// The limiters of a file, by name.
pub(super) struct Limiters {
    nodes: IndexMap<String, Node>,
}

impl Limiters {
    /// Those of the file's own key are checked at once. Those of Symfony's are read when a transport names them: the
    /// application may have others, for what only PHP limits.
    pub(super) fn of(nodes: IndexMap<String, Node>, reader: &mut Reader) -> Self {
        for (name, node) in &nodes {
            if !node.path.starts_with("framework.") {
                read_limiter(name, node.clone(), reader);
            }
        }
        Self { nodes }
    }

    /// The limit of a transport. `None` if there is none, or if a mistake was reported.
    pub(super) fn of_transport(&self, transport: &str, node: Node, reader: &mut Reader) -> Option<RateLimit> {
        if node.is_mapping() {
            return read_limiter(&format!("transport {transport}"), node, reader);
        }
        let name = node.filled_text(FORM, reader)?;
        let Some(limiter) = self.nodes.get(&name) else {
            let known = self.nodes.keys().map(String::as_str);
            let problem = Problem::unknown(&node.path, "rate limiter", &displayable(&name), known);
            let message = format!("{}; limiters are defined under `rate_limiter`", problem.message);
            reader.error(&node.path, message);
            return None;
        };
        if limiter.path.starts_with("framework.") {
            return read_limiter(&name, limiter.clone(), reader);
        }
        // Its mistakes have been reported.
        let reported = reader.problems.list.len();
        let limit = read_limiter(&name, limiter.clone(), reader);
        reader.problems.list.truncate(reported);
        limit
    }
}

fn read_limiter(name: &str, node: Node, reader: &mut Reader) -> Option<RateLimit> {
    let mut section =
        node.section(LIMITER, "a mapping such as {policy: fixed_window, limit: 100, interval: 1m}", reader)?;
    let policy = section.require(&POLICY, reader)?;
    let chosen = policy.text("the name of a policy", reader)?;
    let policy = match chosen.as_str() {
        "token_bucket" => RatePolicy::TokenBucket(0),
        "fixed_window" => RatePolicy::FixedWindow,
        "sliding_window" => RatePolicy::SlidingWindow,
        "no_limit" => return None,
        _ => return reader.unknown(&policy, "policy", POLICIES.iter().copied()),
    };
    let limit = section.require(&LIMIT.definition, reader).and_then(|node| node.read(&LIMIT.definition, reader));
    let (policy, interval) = if policy == RatePolicy::TokenBucket(0) {
        let Some(rate) = section.take("rate") else {
            reader.error(
                &section.path,
                "`rate` is missing: how the bucket is filled again, such as {interval: 1s, amount: 10}",
            );
            return None;
        };
        let mut rate = rate.section(RATE_KEYS, "a mapping such as {interval: 1s, amount: 10}", reader)?;
        let amount = rate.get(&AMOUNT, reader);
        (RatePolicy::TokenBucket(amount), interval_of(&mut rate, &RATE_INTERVAL, reader))
    } else {
        (policy, interval_of(&mut section, &INTERVAL, reader))
    };
    Some(RateLimit { name: name.to_owned(), limit: limit?, interval: interval?, policy })
}

fn interval_of(section: &mut Section, definition: &Definition, reader: &mut Reader) -> Option<Duration> {
    let Some(node) = section.take("interval") else {
        reader.error(&section.path, format!("`interval` is missing: {}", definition.help));
        return None;
    };
    let text = node.filled_text("a duration such as 1m", reader)?;
    let Some(interval) = parse_interval(&text) else {
        return node.mismatch("a duration such as 500ms, 1m, 15 minutes or 1 hour", reader);
    };
    if (SHORTEST..=LONGEST).contains(&interval) {
        return Some(interval);
    }
    reader.error(&join(&section.path, "interval"), "must be at least 100ms and at most 366 days");
    None
}

/// A duration as elsewhere in the file, or as PHP has it: `1 hour`, `15 minutes 30 seconds`. PHP's months and years differ in
/// length, and are none.
fn parse_interval(text: &str) -> Option<Duration> {
    if let Ok(duration) = parse_duration(text) {
        return Some(duration);
    }
    let words: Vec<&str> = text.split([' ', ',', '+']).filter(|word| !word.is_empty() && *word != "and").collect();
    if words.is_empty() || !words.len().is_multiple_of(2) {
        return None;
    }
    words.chunks(2).try_fold(Duration::ZERO, |sum, pair| {
        let [number, unit] = pair else { return None };
        let seconds: u64 = match unit.to_ascii_lowercase().trim_end_matches('s') {
            "second" | "sec" => 1,
            "minute" | "min" => 60,
            "hour" => 3600,
            "day" => 86_400,
            "week" => 7 * 86_400,
            _ => return None,
        };
        sum.checked_add(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, read_text};
    use super::*;

    fn read(text: &str) -> (Config, String) {
        let (config, problems) = read_text(text, std::path::Path::new("/app/config.yaml")).unwrap();
        let problems = problems.list.iter().map(|problem| format!("{}: {}", problem.path, problem.message));
        (config, problems.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_transport_names_a_limiter_or_has_its_own() {
        let (config, problems) = read(
            "
            framework:
                rate_limiter:
                    mails: {policy: token_bucket, limit: 50, rate: {interval: '15 minutes', amount: 5}, lock_factory: ~}
                    logins: {policy: compound, limiters: [a]}
                    free: {policy: no_limit}
                messenger:
                    transports:
                        a: {dsn: 'sqlite:a.db', rate_limiter: mails}
                        b: {dsn: 'sqlite:b.db', rate_limiter: free}
            rate_limiter: {slow: {policy: sliding_window, limit: 3, interval: 90s}}
            transports:
                c: {dsn: 'sqlite:c.db', rate_limiter: slow}
                d: {dsn: 'sqlite:d.db', rate_limiter: {policy: fixed_window, limit: 7, interval: '1 hour 1 min'}}
            ",
        );
        assert_eq!(problems, "");
        let limit = |name: &str| config.transports[name].rate_limit.clone();
        let of = |name: &str, limit, seconds, policy| {
            Some(RateLimit { name: name.to_owned(), limit, interval: Duration::from_secs(seconds), policy })
        };
        assert_eq!(limit("a"), of("mails", 50, 900, RatePolicy::TokenBucket(5)));
        assert_eq!(limit("b"), None);
        assert_eq!(limit("c"), of("slow", 3, 90, RatePolicy::SlidingWindow));
        assert_eq!(limit("d"), of("transport d", 7, 3660, RatePolicy::FixedWindow));
    }

    #[test]
    fn mistakes_are_told_once_and_at_their_place() {
        for (limiter, expected) in [
            ("{limit: 1}", "rate_limiter.x: `policy` is missing"),
            ("{policy: token_buket, limit: 1}", "unknown policy \"token_buket\", did you mean \"token_bucket\"?"),
            ("{policy: token_bucket, limit: 1}", "rate_limiter.x: `rate` is missing"),
            ("{policy: fixed_window, limit: 1}", "rate_limiter.x: `interval` is missing"),
            ("{policy: fixed_window, interval: 1m}", "rate_limiter.x: `limit` is missing"),
            ("{policy: fixed_window, limit: 0, interval: 1m}", "rate_limiter.x.limit: must be a whole number"),
            ("{policy: fixed_window, limit: 1, interval: 1ms}", "rate_limiter.x.interval: must be at least 100ms"),
            ("{policy: fixed_window, limit: 1, interval: '2 months'}", "rate_limiter.x.interval: must be a duration"),
        ] {
            let text =
                format!("rate_limiter: {{x: {limiter}}}\ntransports: {{a: {{dsn: 'sqlite:a.db', rate_limiter: x}}}}");
            let (_, problems) = read(&text);
            assert!(problems.contains(expected) && problems.lines().count() == 1, "{limiter}: {problems}");
        }
        let (_, problems) = read("transports: {a: {dsn: 'sqlite:a.db', rate_limiter: x}}");
        assert!(problems.contains("transports.a.rate_limiter: unknown rate limiter \"x\""), "{problems}");
    }
}
