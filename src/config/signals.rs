//! Reads `stop_worker_on_signals`: at which signals a worker stops.

use nix::sys::signal::Signal;

use super::definition::{Definition, Kind};
use super::problem::{Problem, displayable};
use super::section::{Node, Reader};

/// The key `stop_worker_on_signals`.
pub(super) const STOP_WORKER_ON_SIGNALS: Definition = Definition::new(
    "stop_worker_on_signals",
    Kind::OneOrMore(&Kind::Text("signal")),
    "the signals, by name or number, at which `consume` finishes its current messages and stops; SIGTERM always is one, because \
     the supervisor sends it",
)
.or("`[SIGTERM, SIGINT, SIGQUIT]`");

/// What a process can be sent for such a purpose. Others cannot be caught, or report what the process has done.
const KNOWN: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGXCPU,
    Signal::SIGPROF,
    Signal::SIGVTALRM,
];

/// The signals of a worker whose configuration names none.
pub(super) const DEFAULT: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// The numbers of the signals.
pub(super) fn read_signals(node: Option<Node>, reader: &mut Reader) -> Vec<i32> {
    let numbers = |signals: &[Signal]| signals.iter().map(|signal| *signal as i32).collect();
    // Symfony means its own by an empty list.
    let Some(node) = node.filter(|node| !node.is_nothing()) else { return numbers(&DEFAULT) };
    let items = node.items_or_one("a list of signals, such as [SIGTERM, SIGUSR1]", reader).unwrap_or_default();
    let mut signals: Vec<Signal> = items.iter().filter_map(|item| read_signal(item, reader)).collect();
    if !signals.contains(&Signal::SIGTERM) {
        signals.push(Signal::SIGTERM);
    }
    numbers(&signals)
}

fn read_signal(node: &Node, reader: &mut Reader) -> Option<Signal> {
    let text = node.filled_text("the name of a signal such as SIGUSR1, or its number", reader)?;
    let found = match text.trim().parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => text.trim().parse().ok(),
    };
    match found {
        Some(signal) if KNOWN.contains(&signal) => Some(signal),
        Some(signal) => {
            let message = format!("{} cannot ask a worker to stop; SIGUSR1 or SIGHUP can", signal.as_str());
            reader.error(&node.path, message);
            None
        }
        None => {
            let known = KNOWN.iter().map(|signal| signal.as_str());
            reader.problems.push(Problem::unknown(&node.path, "signal", &displayable(&text), known));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::read_text;

    fn read(signals: &str) -> (Vec<i32>, String) {
        let text = format!("stop_worker_on_signals: {signals}");
        let (config, problems) = read_text(&text, std::path::Path::new("/app/config.yaml")).unwrap();
        (
            config.stop_signals,
            problems.list.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("\n"),
        )
    }

    #[test]
    fn signals_have_names_or_numbers_and_sigterm_is_always_one() {
        for (written, expected) in [
            ("~", &[15, 2, 3][..]),
            ("[]", &[15, 2, 3]),
            ("[SIGUSR1, 12]", &[10, 12, 15]),
            ("SIGHUP", &[1, 15]),
            ("[15, '2']", &[15, 2]),
        ] {
            assert_eq!(read(written), (expected.to_vec(), String::new()), "{written}");
        }
        for (written, expected) in [
            ("[SIGUSR3]", "unknown signal \"SIGUSR3\", did you mean \"SIGUSR"),
            ("[SIGKILL]", "SIGKILL cannot ask a worker to stop"),
            ("[17]", "SIGCHLD cannot ask a worker to stop"),
            ("[0]", "unknown signal \"0\""),
            ("{a: b}", "must be the name of a signal such as SIGUSR1, or its number, not a mapping"),
        ] {
            let found = read(written).1;
            assert!(found.contains(expected), "{written}: {found}");
        }
    }
}
