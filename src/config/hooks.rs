//! Reads `hooks`: programs and URLs that are told what happens.

use std::time::Duration;

use super::definition::{Definition, Kind, Setting};
use super::handlers::read_program;
use super::http_request::{CALL, read_call};
use super::section::{Node, Reader, Section};
use super::{ExecConfig, HandlerAction};

/// The key `hooks`.
pub(super) const HOOKS: Definition = Definition {
    default: super::definition::Missing::Value("[]"),
    ..Definition::new(
        "hooks",
        Kind::List(&Kind::Section(HOOK)),
        "programs and URLs that workers tell what happens: see [hooks](hooks.md)",
    )
};

const HOOK: &[Definition] = &[ON, EXEC, URL, TIMEOUT.definition, EVERY.definition, INCLUDE_BODY.definition];
const ON: Definition =
    Definition::new("on", Kind::OneOrMore(&Kind::Choice(EVENTS)), "the events").required().example("[failed, parked]");
const EVENTS: &[&str] = &["failed", "retried", "parked", "rate_limited", "worker_started", "worker_stopped"];
const EXEC: Definition = Definition::new(
    "exec",
    Kind::List(&Kind::Text("text")),
    "a program, which gets the events as JSON on standard input",
)
.or("none: `url`")
.example("[bin/alert]");
const URL: Definition = Definition::new("url", CALL, "a URL, which gets them with `POST`").or("none");
const TIMEOUT: Setting<Duration> = Setting::duration("timeout", "30s", "how long a call may take");
const EVERY: Setting<Duration> = Setting::duration(
    "every",
    "1s",
    "the shortest time between the beginnings of two calls; events meanwhile share the next one",
);
const INCLUDE_BODY: Setting<bool> =
    Setting::flag("include_body", "false", "whether messages are told with their bodies");

const FORM: &str = "a hook such as {on: failed, exec: [bin/alert]}";

/// An entry under `hooks`.
#[derive(Debug, Clone)]
pub(crate) struct HookConfig {
    /// The names of the events.
    pub(crate) on: Vec<String>,
    /// What is called.
    pub(crate) action: HandlerAction,
    /// How long a call may take.
    pub(crate) timeout: Duration,
    /// The shortest time between the beginnings of two calls.
    pub(crate) every: Duration,
    /// Whether messages are told with their bodies.
    pub(crate) include_body: bool,
}

pub(super) fn read_hooks(node: Node, reader: &mut Reader) -> Vec<HookConfig> {
    let items = node.items_or_one("a list of hooks", reader).unwrap_or_default();
    items.into_iter().filter_map(|item| read_hook(item, reader)).collect()
}

fn read_hook(node: Node, reader: &mut Reader) -> Option<HookConfig> {
    let mut section = node.section(HOOK, FORM, reader)?;
    let path = section.path.clone();
    let on = section.require(&ON, reader).map(|node| read_events(node, reader));
    let timeout = positive(&TIMEOUT, &mut section, reader);
    let every = section.get(&EVERY, reader);
    let include_body = section.get(&INCLUDE_BODY, reader);
    let action = match (section.take("exec"), section.take("url")) {
        (Some(_), Some(url)) => {
            reader.error(&url.path, "stands beside `exec`; a hook has one of them");
            return None;
        }
        (Some(exec), None) => {
            let exec = read_program(exec, reader)?;
            HandlerAction::Exec(ExecConfig { exec, timeout: Some(timeout) })
        }
        (None, Some(url)) => called(read_call(url, reader)?, timeout)?,
        (None, None) => {
            reader.error(&path, "what is called is missing: `exec` or `url`");
            return None;
        }
    };
    Some(HookConfig { on: on?, action, timeout, every, include_body })
}

fn read_events(node: Node, reader: &mut Reader) -> Vec<String> {
    let path = node.path.clone();
    let items = node.items_or_one("the name of an event, or a list of such names", reader).unwrap_or_default();
    if items.is_empty() {
        reader.error(&path, format!("names no event; there are {}", EVENTS.join(", ")));
    }
    let named = items.iter().filter_map(|item| {
        let name = item.filled_text("the name of an event", reader)?;
        if EVENTS.contains(&name.as_str()) {
            return Some(name);
        }
        reader.unknown(item, "event", EVENTS.iter().copied())
    });
    named.collect()
}

fn positive(setting: &Setting<Duration>, section: &mut Section, reader: &mut Reader) -> Duration {
    let duration = section.get(setting, reader);
    if duration.is_zero() {
        reader.error(&section.path, format!("`{}` must be more than 0", setting.definition.name));
    }
    duration
}

#[cfg(feature = "http")]
#[allow(clippy::unnecessary_wraps, reason = "without the feature there is none")]
fn called(request: super::HttpRequest, timeout: Duration) -> Option<HandlerAction> {
    Some(HandlerAction::Http { request, timeout })
}

#[cfg(not(feature = "http"))]
fn called(_: super::HttpRequest, _: Duration) -> Option<HandlerAction> {
    None
}

#[cfg(test)]
mod tests {
    use super::super::read_text;

    #[test]
    fn mistakes_in_hooks_are_told() {
        for (hook, expected) in [
            ("{on: failed, exec: [a]}", ""),
            ("{on: [failed, worker_stopped], exec: [a], every: 0, include_body: true}", ""),
            ("{exec: [a]}", "hooks[0]: `on` is missing: the events, such as [failed, parked]"),
            ("{on: [faild], exec: [a]}", "hooks[0].on[0]: unknown event \"faild\", did you mean \"failed\"?"),
            ("{on: [], exec: [a]}", "hooks[0].on: names no event"),
            ("{on: failed}", "hooks[0]: what is called is missing: `exec` or `url`"),
            ("{on: failed, exec: [a], url: 'http://a'}", "hooks[0].url: stands beside `exec`"),
            ("{on: failed, exec: [a], timeout: 0}", "hooks[0]: `timeout` must be more than 0"),
        ] {
            let (_, problems) =
                read_text(&format!("hooks: [{hook}]"), std::path::Path::new("/app/config.yaml")).unwrap();
            let found = problems.list.iter().map(|problem| format!("{}: {}", problem.path, problem.message));
            let found = found.collect::<Vec<_>>().join("\n");
            assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{hook}: {found}");
        }
    }
}
