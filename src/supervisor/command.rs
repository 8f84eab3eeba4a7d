//! A worker's command line: this program's own `consume`, or the definition's `command` with its placeholders replaced. No
//! shell is involved.

use std::ffi::OsString;

use crate::config::{WORKER_QUIET, WORKER_VERBOSE, WorkerDefinition, split_verbosity};

const TRANSPORTS: &str = "{transports}";
const OPTIONS: &str = "{options}";

/// The program and its arguments. `consume` is the part of the command line of this program's own worker that is the same for
/// all definitions.
///
/// A placeholder that is a whole argument of a `command` is replaced by as many arguments as it stands for, which may be none.
/// Within a longer argument (`sh -c "… {transports}"`) it is replaced by them, joined with spaces.
pub(super) fn command_line(definition: &WorkerDefinition, consume: &[OsString]) -> Vec<OsString> {
    match &definition.command {
        None => {
            // The parser that an application has around `consume` may not know `-v`, or have another meaning for it.
            let (verbosity, options) = split_verbosity(&definition.options);
            let own = definition.transports.iter().cloned().chain(options);
            let own = own.chain(verbosity.quiet.then(|| WORKER_QUIET.to_owned()));
            let own = own.chain((verbosity.verbose > 0).then(|| format!("{WORKER_VERBOSE}={}", verbosity.verbose)));
            consume.iter().cloned().chain(own.map(OsString::from)).collect()
        }
        Some(command) => command.iter().flat_map(|argument| expand(argument, definition)).map(Into::into).collect(),
    }
}

fn expand(argument: &str, definition: &WorkerDefinition) -> Vec<String> {
    match argument {
        TRANSPORTS => definition.transports.clone(),
        OPTIONS => definition.options.clone(),
        _ => vec![replace_placeholders(argument, definition)],
    }
}

/// Reads the argument once, so that a replacement is not taken for a placeholder itself.
fn replace_placeholders(argument: &str, definition: &WorkerDefinition) -> String {
    let mut replaced = String::new();
    let mut rest = argument;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        replaced.push_str(before);
        rest = if let Some(after) = from.strip_prefix(TRANSPORTS) {
            replaced.push_str(&definition.transports.join(" "));
            after
        } else if let Some(after) = from.strip_prefix(OPTIONS) {
            replaced.push_str(&definition.options.join(" "));
            after
        } else {
            replaced.push('{');
            &from[1..]
        };
    }
    replaced + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Autoscale, ConsumeOptions};

    fn definition(command: Option<&[&str]>) -> WorkerDefinition {
        WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec!["high".into(), "low".into()],
            options: vec!["--time-limit=60".into(), "--sleep=2".into()],
            consume_options: ConsumeOptions::default(),
            autoscale: Autoscale::default(),
            command: command.map(|command| command.iter().map(|argument| (*argument).to_owned()).collect()),
        }
    }

    fn line(command: Option<&[&str]>) -> Vec<String> {
        let consume: Vec<OsString> = ["minutely", "--config", "c.yaml", "consume"].map(Into::into).into();
        let line = command_line(&definition(command), &consume);
        line.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn without_a_command_it_is_this_programs_consume() {
        let expected = ["minutely", "--config", "c.yaml", "consume", "high", "low", "--time-limit=60", "--sleep=2"];
        assert_eq!(line(None), expected);
    }

    #[test]
    fn how_much_a_worker_prints_is_told_in_a_way_that_every_parser_knows() {
        let mut definition = definition(None);
        definition.options.insert(0, "-v".into());
        let line = command_line(&definition, &["consume".into()]);
        assert_eq!(line, ["consume", "high", "low", "--time-limit=60", "--sleep=2", "--worker-verbose=1"]);
        definition.options[0] = "-q".into();
        assert_eq!(command_line(&definition, &[]).last().unwrap(), "--worker-quiet");
        definition.command = Some(vec!["php".into(), "{options}".into()]);
        assert_eq!(command_line(&definition, &[])[1], "-q", "another program has its own");
    }

    #[test]
    fn a_placeholder_of_its_own_becomes_several_arguments() {
        let command = ["php", "bin/console", "messenger:consume", "{options}", "{transports}", "-v"];
        let expected = ["php", "bin/console", "messenger:consume", "--time-limit=60", "--sleep=2", "high", "low", "-v"];
        assert_eq!(line(Some(&command)), expected);
    }

    #[test]
    fn a_placeholder_within_an_argument_is_joined_with_spaces() {
        let command = ["sh", "-c", "exec consume {transports} {options} # {other} {"];
        assert_eq!(line(Some(&command))[2], "exec consume high low --time-limit=60 --sleep=2 # {other} {");
    }

    #[test]
    fn a_replacement_is_not_replaced_again() {
        let mut definition = definition(Some(&["x{transports}"]));
        definition.transports = vec!["{options}".into()];
        assert_eq!(command_line(&definition, &[]), ["x{options}"]);
    }

    proptest! {
        #[test]
        fn a_command_without_placeholders_stays_as_it_is(command in prop::collection::vec("[^{]{0,12}|[{][^to}]{0,8}[}]", 0..6)) {
            let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
            prop_assert_eq!(line(Some(&arguments)), command);
        }
    }
}
