//! The options of `consume`, each defined once: for the command line, for entries under `workers`, and for workers
//! inside an application.

use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser};

use super::problem::Problem;
use super::problem::displayable;
use super::{DurationError, parse_duration};

/// The shortest sleep: a worker that never sleeps would keep a processor busy.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

// Not a comment, which clap would take for the help of a parser that flattens it.
#[doc = concat!(
    "How a worker works: the options of `consume`. The default is a command line without any.\n\n",
    "An application with a command line of its own may `#[command(flatten)]` them into it, and hand them to a worker ",
    "with [`WorkerBuilder::options`](crate::WorkerBuilder::options)."
)]
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumeOptions {
    /// Consume only this queue of a transport with several (amqp:); may be given more than once
    #[arg(long, value_name = "QUEUE")]
    pub queues: Vec<String>,
    /// Stop after this many messages
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Stop after this many failures
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub failure_limit: Option<u64>,
    /// Stop when the process uses more memory than this: a number of bytes, or 128M, 1G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_limit: Option<u64>,
    /// Stop after this time: a number of seconds, or 500ms, 5m
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// Pause between two polls while no message is pending: a number of seconds, or 500ms
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = parse_interval)]
    pub sleep: Duration,
    /// Handle up to this many messages at once
    #[arg(
        long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from),
    )]
    pub concurrency: usize,
    /// Keep slow messages from being delivered again: tell the transport at this interval that they are still being
    /// handled (default: 5 seconds; at most a third of redeliver_timeout)
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "5", require_equals = true, value_parser = parse_interval)]
    pub keepalive: Option<Duration>,
    /// Move messages without a handler here to the failure transport, even if no message has one
    #[arg(long)]
    pub move_unhandleable: bool,
    /// Do not reset between messages what handlers in Rust share, where the application has code for it
    #[arg(long)]
    pub no_reset: bool,
}

// As above: clap would take a comment for help.
#[doc = concat!("How much is printed. All commands have these options.")]
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verbosity {
    /// Print only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more; -vv prints everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Takes `-v` and `-q` out of a worker's options, which have been checked. No value of an option begins with a hyphen, and
/// in `-vl5` flags are in front of the option that has a value.
pub(crate) fn split_verbosity(options: &[String]) -> (Verbosity, Vec<String>) {
    let (mut verbosity, mut others) = (Verbosity::default(), Vec::new());
    for option in options {
        let flags = match option.as_str() {
            "--verbose" => "v",
            "--quiet" => "q",
            option => {
                let short = option.strip_prefix('-').unwrap_or_default();
                &short[..short.len() - short.trim_start_matches(['v', 'q']).len()]
            }
        };
        let verbose = flags.bytes().filter(|flag| *flag == b'v').count();
        verbosity.verbose = verbosity.verbose.saturating_add(u8::try_from(verbose).unwrap_or(u8::MAX));
        verbosity.quiet |= flags.contains('q');
        if flags.is_empty() {
            others.push(option.clone());
        } else if !option.starts_with("--") && option.len() > flags.len() + 1 {
            others.push(format!("-{}", &option[1 + flags.len()..]));
        }
    }
    (verbosity, others)
}

/// The options by which the supervisor tells a worker of this program of the `-v` and `-q` among its options. They are
/// `consume`'s own, so that a worker knows them whatever parser an application has around it.
pub(crate) const WORKER_VERBOSE: &str = "--worker-verbose";
/// See [`WORKER_VERBOSE`].
pub(crate) const WORKER_QUIET: &str = "--worker-quiet";

impl Default for ConsumeOptions {
    fn default() -> Self {
        parse::<&str>(&[]).expect("no option is required")
    }
}

/// The arguments of a worker: those of an entry under `workers`.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Arguments {
    #[command(flatten)]
    options: ConsumeOptions,
    #[command(flatten)]
    _verbosity: Verbosity,
}

/// The options as defined for clap.
pub(super) fn definitions() -> clap::Command {
    Arguments::command()
}

fn parse<T: AsRef<str>>(arguments: &[T]) -> Result<ConsumeOptions, clap::Error> {
    Arguments::try_parse_from(arguments.iter().map(AsRef::as_ref)).map(|arguments| arguments.options)
}

/// Parses arguments, each with its place in the file. Returns the options and all mistakes. Wrong arguments count as
/// missing.
pub(super) fn read(arguments: &[(String, String)]) -> (ConsumeOptions, Vec<Problem>) {
    let (mut places, mut texts): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(|(place, text)| (place.as_str(), text.as_str())).unzip();
    let mut problems = Vec::new();
    loop {
        if let Ok(options) = parse(&texts) {
            return (options, problems);
        }
        // The mistake is after the longest prefix that can be parsed.
        let at = (0..texts.len()).rev().find(|end| parse(&texts[..*end]).is_ok()).unwrap_or(0);
        let values = texts[at + 1..].iter().take_while(|text| !text.starts_with('-')).count();
        let end = at + 1 + values;
        problems.extend(parse(&texts[..end]).err().map(|error| problem(places[at], texts[at], &error)));
        places.drain(at..end);
        texts.drain(at..end);
    }
}

/// The time limit among another program's arguments, in the same notation. The last one counts; it may not be readable.
/// Other arguments are not examined.
pub(super) fn time_limit_among(arguments: &[String]) -> Option<Option<Duration>> {
    let is_time_limit = |error: &clap::Error| matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(name)) if name.starts_with("--time-limit "));
    let read = |arguments: &[String]| match parse(arguments) {
        Ok(options) => options.time_limit.map(Some),
        Err(error) => (error.kind() == ErrorKind::ValueValidation && is_time_limit(&error)).then_some(None),
    };
    let positions = (0..arguments.len()).rev();
    let parts = positions.flat_map(|at| [at..at + 1, at..at + 2]);
    parts.filter_map(|part| arguments.get(part)).find_map(read)
}

fn problem(place: &str, text: &str, error: &clap::Error) -> Problem {
    let shown = displayable(text);
    match error.kind() {
        ErrorKind::UnknownArgument if text.starts_with('-') => {
            let name = shown.split('=').next().unwrap_or_default();
            let command = definitions();
            let known: Vec<String> =
                command.get_arguments().filter(|option| !option.is_hide_set()).map(written).collect();
            Problem::unknown(place, "option", name, known.iter().map(String::as_str))
        }
        ErrorKind::UnknownArgument => Problem::error(
            place,
            format!("\"{shown}\" is no option, and no option before it takes a value; options are --name=value"),
        ),
        _ => {
            let text = error.to_string();
            let text: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim).collect();
            Problem::error(place, text.join(" ").trim().trim_start_matches("error: "))
        }
    }
}

/// `--sleep`
fn written(option: &clap::Arg) -> String {
    option.get_long().map_or_else(|| option.get_id().to_string(), |name| format!("--{name}"))
}

/// A size in bytes: `1000`, `512K`, `128M`, `1G`, as in Symfony (a kilobyte has 1024 bytes).
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches(['k', 'm', 'g']);
    let factor = match lower.trim_end_matches('b').bytes().last() {
        Some(b'k') => 1 << 10,
        Some(b'm') => 1 << 20,
        Some(b'g') => 1 << 30,
        _ => 1,
    };
    let size = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).filter(|size| *size > 0);
    size.ok_or_else(|| "a size is a number of bytes, or a number with K, M or G: 128M".to_owned())
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).map_err(|error: DurationError| error.to_string())?;
    if interval < SHORTEST_INTERVAL { Err("at least 1ms".to_owned()) } else { Ok(interval) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(arguments: &[&str]) -> (ConsumeOptions, Vec<String>) {
        let arguments: Vec<_> =
            arguments.iter().enumerate().map(|(n, text)| (format!("options[{n}]"), (*text).to_owned())).collect();
        let (options, problems) = read(&arguments);
        (options, problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect())
    }

    #[test]
    fn sizes_are_read_as_symfony_reads_them() {
        for (text, bytes) in [("1000", 1000), ("512k", 512 << 10), ("128M", 128 << 20), ("1GB", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "0", "1T", "99999999999G", "1.5M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_are_read_in_all_forms() {
        let (options, problems) =
            read_all(&["--sleep", "500ms", "-t5m", "-l", "3", "--keepalive", "-vv", "--no-reset"]);
        assert_eq!(problems, Vec::<String>::new());
        let expected = ConsumeOptions {
            sleep: Duration::from_millis(500),
            time_limit: Some(Duration::from_secs(300)),
            limit: Some(3),
            keepalive: Some(Duration::from_secs(5)),
            no_reset: true,
            ..ConsumeOptions::default()
        };
        assert_eq!(options, expected);
        let ConsumeOptions { sleep, concurrency, .. } = ConsumeOptions::default();
        assert_eq!((sleep, concurrency), (Duration::from_secs(1), 1));
    }

    #[test]
    fn verbosity_is_taken_out_of_the_options() {
        for (options, quiet, verbose, others) in [
            (&["--limit=5", "-v", "--queues", "vip"][..], false, 1, &["--limit=5", "--queues", "vip"][..]),
            (&["-vv", "--verbose", "-vl5", "--no-reset"], false, 4, &["-l5", "--no-reset"]),
            (&["-q", "-l5"], true, 0, &["-l5"]),
            (&["--quiet"], true, 0, &[]),
            (&["--limit=5", "-f", "3"], false, 0, &["--limit=5", "-f", "3"]),
        ] {
            let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
            let (verbosity, left) = split_verbosity(&options);
            assert_eq!((verbosity.quiet, verbosity.verbose), (quiet, verbose), "{options:?}");
            assert_eq!(left, others, "{options:?}");
        }
    }

    #[test]
    fn every_mistake_is_reported_at_its_place() {
        let (options, problems) = read_all(&[
            "--time-limit=5",
            "--slep=5",
            "--limit",
            "none",
            "--sleep",
            "-q",
            "extra",
            "--sleep=0",
            "-x",
            "-v",
            "--time-limit=6",
        ]);
        insta::assert_snapshot!(problems.join("\n"));
        assert_eq!(options.time_limit, Some(Duration::from_secs(5)), "what is right counts");
    }

    #[test]
    fn the_time_limit_of_another_program_is_found_among_its_own_options() {
        let seconds = |seconds| Some(Some(Duration::from_secs(seconds)));
        for (arguments, expected) in [
            (&["--env=prod", "--time-limit=60", "--bus", "x"][..], seconds(60)),
            (&["--env", "prod", "-t", "30", "-e"], seconds(30)),
            (&["-t5", "--time-limit", "7"], seconds(7)),
            (&["--time-limit=soon"], Some(None)),
            (&["--time-limiter=5", "-n"], None),
            (&["--time-limit"], None),
            (&[], None),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(time_limit_among(&arguments), expected, "{arguments:?}");
        }
    }
}
