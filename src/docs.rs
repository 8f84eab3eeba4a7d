//! The generated parts of the pages in `docs/`: what the definitions of options and commands say, as a reader sees it.
//!
//! A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. The tests here fail where a page
//! says something else than the code; with `MINUTELY_BLESS=1` they write what the code says into the page:
//!
//! ```console
//! $ MINUTELY_BLESS=1 cargo test --lib docs
//! ```

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Definition, KEYS, Kind, Missing, SchemeOptions, Support};
use crate::{cache, cli, transport};

const HOW: &str = "run `MINUTELY_BLESS=1 cargo test --lib docs`, and look at what it has changed";

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Holds a page's generated parts to what the code says: all of them, and no others.
fn hold(name: &str, parts: &[(&str, String)]) {
    let path = page(name);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut generated = text.clone();
    for (part, content) in parts {
        let (start, end) = (format!("<!-- generated: {part} -->\n"), format!("<!-- end of {part} -->"));
        let place = generated.split_once(&start).and_then(|(before, rest)| Some((before, rest.split_once(&end)?)));
        let Some((before, (_, after))) = place else { panic!("{name} lacks the lines {start}{end}") };
        generated = format!("{before}{start}\n{content}\n{end}{after}");
    }
    assert_eq!(generated.matches("<!-- generated: ").count(), parts.len(), "{name} has parts that nothing generates");
    if std::env::var_os("MINUTELY_BLESS").is_some() {
        if generated != text {
            fs::write(&path, generated).unwrap();
        }
        return;
    }
    if let Some((line, (found, expected))) =
        text.lines().zip(generated.lines()).enumerate().find(|(_, (found, expected))| found != expected)
    {
        panic!("{name}:{}: is\n{found}\nand should be\n{expected}\n{HOW}", line + 1);
    }
    assert!(generated == text, "{name} is too long or too short: {HOW}");
}

/// The part of the reference about these keys.
fn keys(names: &[&str]) -> String {
    let keys: Vec<Definition> = KEYS.iter().filter(|key| names.contains(&key.name)).copied().collect();
    assert_eq!(keys.len(), names.len(), "a key of {names:?} does not exist");
    table(&keys)
}

#[test]
fn the_reference_of_the_configuration_says_what_the_code_does() {
    let parts = [
        &["transports", "rate_limiter"][..],
        &["routing"],
        &["interfaces"],
        &["buses", "default_bus"],
        &["validation"],
        &["failure_transport"],
        &["serializer", "signing", "php"],
        &["mailer"],
        &["workers", "stop_worker_on_signals"],
        &["handlers"],
        &["hooks"],
        &["cron"],
        &["serve"],
        &["state_dir", "cache", "heartbeat", "connections"],
    ];
    let described: usize = parts.iter().map(|names| names.len()).sum();
    assert_eq!(described, KEYS.len(), "a key has no part in docs/configuration.md");
    hold("docs/configuration.md", &parts.map(|names| (names[0], keys(names))));
}

/// The options that go with a scheme.
fn options_of(scheme: &str, all: &[SchemeOptions]) -> Vec<Definition> {
    let found = all.iter().find(|known| known.schemes.contains(&scheme));
    found.unwrap_or_else(|| panic!("nothing is known of {scheme}:")).options.clone()
}

/// A table of options as they are written in a DSN: `exchange[name]`. Then those that have no effect, or are refused.
fn table_of_options(definitions: &[Definition]) -> String {
    let mut text = String::from("| option | default | what for |\n| --- | --- | --- |\n");
    for Row { path, definition } in rows(definitions) {
        let mut names = path.split('.');
        let mut name = names.next().unwrap_or_default().to_owned();
        for within in names {
            let _ = write!(name, "[{}]", if within == "*" { "NAME" } else { within });
        }
        let _ = writeln!(text, "| `{name}` | {} | {} |", default_label(&definition), definition.help);
    }
    let accepted: Vec<String> = definitions
        .iter()
        .filter(|definition| definition.support == Support::Accepted)
        .map(|definition| format!("`{}`", definition.name))
        .collect();
    if !accepted.is_empty() {
        let _ = writeln!(text, "\nAccepted, and without meaning here: {}.", accepted.join(", "));
    }
    let mut title = "\n| without effect, with a warning | why |\n| --- | --- |\n";
    for definition in definitions {
        if let Support::Ignored { why, .. } = definition.support {
            let _ = writeln!(text, "{title}| `{}` | {why} |", definition.name);
            title = "";
        }
    }
    let mut title = "\n| refused | why |\n| --- | --- |\n";
    for definition in definitions {
        if let Support::Refused { why, .. } = definition.support {
            let _ = writeln!(text, "{title}| `{}` | {why} |", definition.name);
            title = "";
        }
    }
    text
}

#[test]
fn the_pages_of_the_transports_say_which_options_there_are() {
    let all = transport::scheme_options(&transport::built_in_factories());
    let pages = [
        ("docs/transports/sqlite.md", "sqlite"),
        ("docs/transports/postgres.md", "postgres"),
        ("docs/transports/mysql.md", "mysql"),
        ("docs/transports/redis.md", "redis"),
        ("docs/transports/amqp.md", "amqp"),
    ];
    for (page, scheme) in pages {
        let (connection, queue): (Vec<_>, Vec<_>) =
            options_of(scheme, &all).into_iter().partition(|definition| definition.of_connection);
        let mut parts = vec![("options", table_of_options(&queue))];
        if !connection.is_empty() {
            parts.push(("connection", table_of_options(&connection)));
        }
        hold(page, &parts);
    }
    let parts = ["in-memory", "auto-fallback"].map(|scheme| (scheme, table_of_options(&options_of(scheme, &all))));
    hold("docs/transports.md", &parts);
}

#[test]
fn the_page_of_the_cache_says_which_options_there_are() {
    let (caches, transports) = (cache::cache_options(), transport::scheme_options(&transport::built_in_factories()));
    // Without those that are said of the transport at the same place: they are the connection's.
    let own = |scheme| {
        let of_transport = options_of(scheme, &transports);
        let is_shared = |option: &Definition| {
            of_transport.iter().any(|other| (other.name, other.help) == (option.name, option.help))
        };
        options_of(scheme, &caches).into_iter().filter(|option| !is_shared(option)).collect::<Vec<_>>()
    };
    let databases = table_of_options(&own("sqlite"));
    assert_eq!(table_of_options(&own("postgres")), databases);
    assert_eq!(table_of_options(&own("mysql")), databases);
    hold("docs/cache.md", &[("databases", databases), ("redis", table_of_options(&own("redis")))]);
}

#[test]
fn the_reference_of_the_commands_says_what_the_program_does() {
    let mut command = cli::command();
    command.build();
    let mut text = options_table("Options of all commands", &command, |arg| arg.is_global_set());
    for command in command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set()) {
        describe(command, "minutely", &mut text);
    }
    hold("docs/commands.md", &[("commands", text)]);
}

/// A command, and those within it.
fn describe(command: &clap::Command, above: &str, text: &mut String) {
    let name = format!("{above} {}", command.get_name());
    let within: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
    if !command.is_subcommand_required_set() {
        let about = command.get_long_about().or(command.get_about()).unwrap_or_default();
        let _ = writeln!(text, "## {name}\n\n{}.\n", about.to_string().trim_end_matches('.'));
        let usage = command.clone().bin_name(&name).render_usage().to_string();
        let _ = writeln!(text, "    {}\n", usage.trim_start_matches("Usage: "));
        let aliases: Vec<String> = command.get_all_aliases().map(|alias| format!("`{alias}`")).collect();
        if !aliases.is_empty() {
            let _ = writeln!(text, "Also as {}, as Symfony or Contao name it.\n", aliases.join(", "));
        }
        text.push_str(&options_table("", command, |arg| !arg.is_global_set()));
        if let Some(more) = command.get_after_long_help().or(command.get_after_help()) {
            text.push_str(&markdown(&more.to_string()));
        }
    }
    for command in within {
        describe(command, &name, text);
    }
}

fn options_table(title: &str, command: &clap::Command, is_shown: impl Fn(&clap::Arg) -> bool) -> String {
    let shown = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && is_shown(arg) && !matches!(arg.get_id().as_str(), "help" | "version"));
    let rows: Vec<String> = shown.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let title = if title.is_empty() { String::new() } else { format!("## {title}\n\n") };
    format!("{title}| argument | default | what for |\n| --- | --- | --- |\n{}\n\n", rows.join("\n"))
}

fn row(arg: &clap::Arg) -> String {
    let value = arg.get_value_names().map(|names| names.join(" ")).filter(|_| arg.get_action().takes_values());
    let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
    match (arg.get_long(), &value) {
        (Some(long), None) => names.push(format!("`--{long}`")),
        (Some(long), Some(value)) if arg.get_num_args().is_some_and(|count| count.min_values() == 0) => {
            names.push(format!("`--{long}[={value}]`"));
        }
        (Some(long), Some(value)) => names.push(format!("`--{long}={value}`")),
        (None, Some(value)) => {
            let several = if arg.get_num_args().is_some_and(|count| count.max_values() > 1) { "…" } else { "" };
            names.push(format!("`{value}{several}`"));
        }
        (None, None) => {}
    }
    let default = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(", ");
    let default = match (arg.get_env(), default.as_str()) {
        _ if arg.is_required_set() => "required".to_owned(),
        (_, _) if !arg.get_action().takes_values() => String::new(),
        (Some(variable), default) => format!("`{}`, else `{default}`", variable.to_string_lossy()),
        (None, "") => String::new(),
        (None, default) => format!("`{default}`"),
    };
    let mut help = arg.get_long_help().or(arg.get_help()).unwrap_or_default().to_string().replace('\n', " ");
    let possible: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !possible.is_empty() && value.is_some() {
        let _ = write!(help, " ({})", possible.join(", "));
    }
    format!("| {} | {default} | {} |", names.join(", "), help.replace('|', "\\|").replace('<', "&lt;"))
}

/// Help text as Markdown: what is indented is an example.
fn markdown(help: &str) -> String {
    let mut text = String::new();
    let mut in_example = false;
    for line in help.trim().lines() {
        let is_example = line.starts_with("  ");
        if is_example && !in_example && !text.ends_with("\n\n") {
            text.push('\n');
        }
        if !is_example && in_example && !line.is_empty() {
            text.push('\n');
        }
        in_example = is_example;
        let _ = writeln!(text, "{}{line}", if is_example { "  " } else { "" });
    }
    text.push('\n');
    text
}

/// The configurations in a page: the blocks of YAML with one of the keys that a configuration has.
fn configurations(text: &str) -> Vec<&str> {
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
    let is_configuration = |block: &&str| {
        let top = |line: &str| {
            KEYS.iter()
                .map(|key| key.name)
                .chain(["framework", "contao"])
                .any(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
        };
        block.lines().any(top)
    };
    blocks.filter(is_configuration).collect()
}

#[test]
fn every_configuration_in_the_documentation_fits_the_schema() {
    let schema = crate::App::builder().config_schema();
    let mut pages = vec![page("README.md"), page("config.yaml")];
    for folder in ["docs", "docs/transports"] {
        let files = fs::read_dir(page(folder)).unwrap().map(|file| file.unwrap().path());
        pages.extend(files.filter(|file| file.extension().is_some_and(|extension| extension == "md")));
    }
    let mut count = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let is_yaml = page.extension().is_some_and(|extension| extension == "yaml");
        for configuration in if is_yaml { vec![text.as_str()] } else { configurations(&text) } {
            let value: serde_json::Value = serde_yaml::from_str(configuration).unwrap();
            if let Err(error) = crate::config::validate(&value, &schema) {
                panic!("{}:\n{configuration}\n{error}", page.display());
            }
            count += 1;
        }
    }
    assert!(count >= 12, "only {count} configurations were found");
}

/// A row of the reference: an option, and where it is written (`workers[].autoscale.max`).
struct Row {
    /// `*` is any name, `[]` any item of a list.
    path: String,
    /// The option.
    definition: Definition,
}

/// All options in their order, each followed by those within it.
fn rows(definitions: &[Definition]) -> Vec<Row> {
    let mut rows = Vec::new();
    add_rows(definitions, "", &mut rows);
    rows
}

fn add_rows(definitions: &[Definition], prefix: &str, rows: &mut Vec<Row>) {
    for definition in definitions.iter().filter(|definition| definition.support == Support::Used) {
        let path = format!("{prefix}{}", definition.name);
        rows.push(Row { path: path.clone(), definition: *definition });
        add_rows_within(&definition.kind, &path, rows);
    }
}

/// The options within a value of this kind, which is written at `path`.
fn add_rows_within(kind: &Kind, path: &str, rows: &mut Vec<Row>) {
    match kind {
        Kind::List(item) => add_rows_within(item, &format!("{path}[]"), rows),
        Kind::Map(value) => add_rows_within(value, &format!("{path}.*"), rows),
        Kind::OneOrMore(one) => add_rows_within(one, path, rows),
        Kind::Section(keys) => add_rows(keys, &format!("{path}."), rows),
        Kind::Either(kinds) => kinds.iter().for_each(|kind| add_rows_within(kind, path, rows)),
        _ => {}
    }
}

/// The rows as a table of Markdown: name, value, default, meaning.
fn table(definitions: &[Definition]) -> String {
    let mut table = String::from("| key | value | default | what for |\n| --- | --- | --- | --- |\n");
    for Row { path, definition } in rows(definitions) {
        let (kind, default) = (definition.kind.label(), default_label(&definition));
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{path}` | {kind} | {default} | {} |", definition.help);
    }
    table
}

/// The default as the reference shows it.
fn default_label(definition: &Definition) -> String {
    match definition.default {
        Missing::Required => "required".to_owned(),
        Missing::Nothing => "none".to_owned(),
        Missing::Described(text) => text.to_owned(),
        Missing::Value("") => "empty".to_owned(),
        Missing::Value(value) if is_text(&definition.kind) => format!("`{value}`"),
        Missing::Value(value) => value.to_owned(),
    }
}

fn is_text(kind: &Kind) -> bool {
    matches!(kind, Kind::Text(_) | Kind::Matching(..) | Kind::Dsn(_) | Kind::Choice(_) | Kind::List(_) | Kind::Anything)
}
