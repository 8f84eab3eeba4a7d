//! `minutely setup`: create what the transports need, or print the SQL that would.

use serde_json::{Value, json};

use super::output::{self, Format, FormatArg};
use super::{App, End, Result, chosen};
use crate::transport::{SchemaChange, TransportError};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Transports with auto_setup (the default) create what is missing by themselves when they are first used. This command also \
brings tables up to date that an earlier version or Symfony has created: it adds the index, and on PostgreSQL the trigger \
that wakes workers. It removes nothing, and messages stay. On PostgreSQL and MySQL, other programs go on using the table \
meanwhile; on SQLite, they wait.

With --dump-sql nothing is changed: the statements are for a migration, or for somebody who may create tables. Those that \
are for an existing table on PostgreSQL (CREATE INDEX CONCURRENTLY) must not be in a transaction.")]
pub(super) struct Args {
    /// The transports; all of them, and the cache, if none is named
    #[arg(value_name = "TRANSPORT")]
    transports: Vec<String>,
    /// Print the SQL that would be executed, and change nothing
    #[arg(long)]
    dump_sql: bool,
    /// With --dump-sql: print everything, as for an empty database, and ask no server
    #[arg(long, requires = "dump_sql")]
    all: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// The name under which the cache is printed.
const CACHE: &str = "cache";

/// What was done, or would be done, for a transport or the cache.
struct Outcome {
    name: String,
    /// The database; none if it is not in a database.
    location: Option<String>,
    changes: Vec<SchemaChange>,
    /// There is something to create, which is not SQL.
    is_set_up_otherwise: bool,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut outcomes = Vec::new();
    let mut end = End::Well;
    let mut names = chosen(app, &args.transports)?;
    let with_cache = args.transports.is_empty() && app.config.cache.is_some();
    names.extend(with_cache.then(|| CACHE.to_owned()));
    for (n, name) in names.iter().enumerate() {
        let is_cache = with_cache && n + 1 == names.len();
        let outcome = if is_cache { of_cache(app, args).await } else { of_transport(app, name, args).await? };
        match outcome {
            Ok(outcome) => {
                if !args.dump_sql && args.format.format == Format::Text {
                    print_done(&outcome);
                }
                outcomes.push(outcome);
            }
            Err(error) => {
                output::error(&error);
                end = End::Failed;
            }
        }
    }
    match args.format.format {
        Format::Json => output::json(&outcomes.iter().map(to_json).collect::<Vec<_>>())?,
        Format::Text if args.dump_sql => print_sql(&outcomes),
        Format::Text => {}
    }
    Ok(end)
}

async fn of_transport(app: &App, name: &str, args: &Args) -> Result<std::result::Result<Outcome, String>> {
    let transport = app.transports.target(name)?;
    let mut outcome = Outcome {
        name: name.to_owned(),
        location: transport.migrating.as_ref().map(|migrating| migrating.location().to_owned()),
        changes: Vec::new(),
        is_set_up_otherwise: transport.migrating.is_none() && transport.setting_up.is_some(),
    };
    let changes: std::result::Result<_, TransportError> = match (&transport.migrating, &transport.setting_up) {
        (Some(migrating), _) if args.all => Ok(vec![migrating.schema()]),
        (Some(migrating), _) if args.dump_sql => migrating.missing().await,
        (Some(migrating), _) => migrating.migrate().await,
        (None, Some(setting_up)) if !args.dump_sql => setting_up.setup().await.map(|()| Vec::new()),
        _ => Ok(Vec::new()),
    };
    Ok(changes.map_err(|error| error.to_string()).map(|changes| {
        outcome.changes = changes;
        outcome
    }))
}

async fn of_cache(app: &App, args: &Args) -> std::result::Result<Outcome, String> {
    let statements = app.cache.schema();
    let create = || vec![SchemaChange::new("create the table of the cache", statements.clone())];
    let changes = async {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        if args.all || (args.dump_sql && !app.cache.is_set_up().await?) {
            return Ok(create());
        }
        if args.dump_sql || app.cache.is_set_up().await? {
            return Ok(Vec::new());
        }
        Ok(create())
    };
    let set_up = async {
        let changes = changes.await?;
        if !args.dump_sql {
            app.cache.set_up().await?;
        }
        Ok::<_, crate::cache::CacheError>(changes)
    };
    let changes = set_up.await.map_err(|error| error.to_string())?;
    let location = (!statements.is_empty()).then(|| app.cache.location());
    Ok(Outcome { name: CACHE.to_owned(), location, changes, is_set_up_otherwise: false })
}

fn print_done(outcome: &Outcome) {
    let Outcome { name, location, changes, is_set_up_otherwise } = outcome;
    for change in changes {
        output::line(format_args!("{name}: {}", change.what));
    }
    let state = if location.is_some() || *is_set_up_otherwise { "ready" } else { "needs nothing" };
    output::line(format_args!("{name}: {state}"));
}

/// A script for `psql`, `mysql` or `sqlite3`. What several transports have in common is in it once.
fn print_sql(outcomes: &[Outcome]) {
    let mut printed: Vec<(&str, &String)> = Vec::new();
    for Outcome { name, location, changes, is_set_up_otherwise } in outcomes {
        let Some(location) = location else {
            if *is_set_up_otherwise {
                output::comment(&format!(
                    "{name}: is not in an SQL database; the command without --dump-sql creates it"
                ));
            }
            continue;
        };
        let mut is_new = false;
        for change in changes {
            let new = change.statements.iter().filter(|statement| !printed.contains(&(location, *statement)));
            let new: Vec<&String> = new.collect();
            if new.is_empty() {
                continue;
            }
            is_new = true;
            output::line(format_args!("-- {name} ({location}): {}", change.what));
            for statement in new {
                output::line(format_args!("{statement};"));
                printed.push((location, statement));
            }
        }
        match (changes.is_empty(), is_new) {
            (true, _) => output::line(format_args!("-- {name} ({location}): nothing is missing")),
            (false, false) => output::line(format_args!("-- {name} ({location}): as above")),
            (false, true) => {}
        }
    }
}

fn to_json(outcome: &Outcome) -> Value {
    let change = |change: &SchemaChange| json!({ "what": change.what, "statements": change.statements });
    let changes: Vec<Value> = outcome.changes.iter().map(change).collect();
    json!({ "transport": outcome.name, "location": outcome.location, "changes": changes })
}
