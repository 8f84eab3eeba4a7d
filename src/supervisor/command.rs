//! The command line of a worker.

use std::ffi::OsString;

use crate::config::WorkerDefinition;

const TRANSPORTS: &str = "{transports}";
const OPTIONS: &str = "{options}";

/// The program and arguments that a definition's workers are started with: its own `command` with the placeholders filled
/// in, or else `program` followed by transports and options.
///
/// A placeholder that is a whole argument becomes as many arguments as there are transports or options; within an argument
/// they are joined by spaces.
pub(super) fn command(definition: &WorkerDefinition, program: &[OsString]) -> Vec<OsString> {
    let Some(command) = &definition.command else {
        let own = definition.transports.iter().chain(&definition.options).map(OsString::from);
        return program.iter().cloned().chain(own).collect();
    };
    let fill = |argument: &String| match argument.as_str() {
        TRANSPORTS => definition.transports.clone(),
        OPTIONS => definition.options.clone(),
        _ => vec![
            argument
                .replace(TRANSPORTS, &definition.transports.join(" "))
                .replace(OPTIONS, &definition.options.join(" ")),
        ],
    };
    command.iter().flat_map(fill).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Autoscale;

    fn definition(command: Option<&[&str]>) -> WorkerDefinition {
        WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec!["a".into(), "b".into()],
            options: vec!["--sleep=5".into(), "--time-limit=60".into()],
            autoscale: Autoscale::default(),
            command: command.map(|words| words.iter().map(|word| (*word).to_owned()).collect()),
        }
    }

    #[test]
    fn without_a_command_it_is_this_program() {
        let program = ["/bin/minutely".into(), "consume".into()];
        let expected = ["/bin/minutely", "consume", "a", "b", "--sleep=5", "--time-limit=60"];
        assert_eq!(command(&definition(None), &program), expected);
    }

    #[test]
    fn placeholders_are_filled_in() {
        let php = ["php", "bin/console", "messenger:consume", "{transports}", "{options}", "--no-interaction"];
        let expected =
            ["php", "bin/console", "messenger:consume", "a", "b", "--sleep=5", "--time-limit=60", "--no-interaction"];
        assert_eq!(command(&definition(Some(&php)), &[]), expected);
        let shell = ["sh", "-c", "exec consume {transports} {options}"];
        let expected = ["sh", "-c", "exec consume a b --sleep=5 --time-limit=60"];
        assert_eq!(command(&definition(Some(&shell)), &[]), expected);
        assert_eq!(command(&definition(Some(&["sleep", "60"])), &[]), ["sleep", "60"]);
    }
}
