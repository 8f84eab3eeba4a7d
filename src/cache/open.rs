//! Creates the store of a cache, which the configuration describes like a transport: by a DSN, with options.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{CacheStore, FileStore, sql};
use crate::config::{Definition, Problem, SchemeOptions, Secret, TransportConfig, TransportSpec, nearest};
use crate::connection::{Connections, StoreKind};

/// Creates the store of a cache, or reports all mistakes in its description. Adds to `warnings`. Opens nothing: a store
/// connects when it is first used.
///
/// Relative paths start at `project_dir`; `databases` has the URL for each name in `doctrine://NAME`.
pub fn open_store(dsn: &str, project_dir: &Path) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let config = TransportConfig {
        name: "cache".to_owned(),
        path: "cache".to_owned(),
        dsn: Secret(dsn.to_owned()),
        options: serde_yaml::Mapping::new(),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    };
    open_store_on(&Connections::default(), &config, project_dir, &IndexMap::new(), &mut Vec::new())
}

/// The same, sharing connections with the application's transports.
pub(crate) fn open_store_on(
    connections: &Connections,
    config: &TransportConfig,
    project_dir: &Path,
    databases: &IndexMap<String, Secret>,
    warnings: &mut Vec<Problem>,
) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let spec = TransportSpec::new(config, databases, project_dir).map_err(|problem| vec![problem])?;
    let known = StoreKind::of_scheme(spec.store.scheme()).map(options_of).unwrap_or_default();
    let spec = spec.with_options(known);
    let store = open(&spec, connections);
    warnings.extend(spec.take_warnings());
    store
}

fn open(spec: &TransportSpec, connections: &Connections) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let scheme = spec.store.scheme();
    match StoreKind::of_scheme(scheme) {
        Some(StoreKind::Sqlite) => sql::on_sqlite(spec, connections),
        #[cfg(feature = "postgres")]
        Some(StoreKind::Postgres) => sql::on_postgres(spec, connections),
        #[cfg(feature = "mysql")]
        Some(StoreKind::Mysql) => sql::on_mysql(spec, connections),
        #[cfg(feature = "redis")]
        Some(StoreKind::Redis) => super::redis::on_redis(spec, connections),
        None if scheme == "file" => in_files(spec),
        kind => Err(vec![unusable(spec, scheme, kind)]),
    }
}

/// The options of a cache on a store of this kind.
fn options_of(kind: StoreKind) -> Vec<Definition> {
    let table = sql::TABLE_NAME.definition;
    match kind {
        StoreKind::Sqlite => vec![table],
        #[cfg(feature = "postgres")]
        StoreKind::Postgres => [&[table][..], &crate::connection::sql::postgres::OPTIONS].concat(),
        #[cfg(feature = "mysql")]
        StoreKind::Mysql => [&[table][..], &crate::connection::sql::mysql::OPTIONS].concat(),
        #[cfg(feature = "redis")]
        StoreKind::Redis => super::redis::options(),
        _ => Vec::new(),
    }
}

/// The options of all caches, by scheme, for the [schema](crate::config::schema()) of the configuration.
pub(crate) fn cache_options() -> Vec<SchemeOptions> {
    let kinds = [StoreKind::Sqlite, StoreKind::Postgres, StoreKind::Mysql, StoreKind::Redis];
    let mut all: Vec<SchemeOptions> = kinds
        .into_iter()
        .filter(|kind| kind.is_in_this_build())
        .map(|kind| SchemeOptions { schemes: kind.schemes().to_vec(), options: options_of(kind) })
        .collect();
    all.push(SchemeOptions { schemes: vec!["file"], options: Vec::new() });
    all
}

fn in_files(spec: &TransportSpec) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let path = spec.path().map_err(|problem| options.push(problem)).unwrap_or_default();
    options.finish()?;
    Ok(Arc::new(FileStore::new(path)))
}

/// Why there is no cache at a DSN of this scheme.
fn unusable(spec: &TransportSpec, scheme: &str, kind: Option<StoreKind>) -> Problem {
    let kinds = [StoreKind::Sqlite, StoreKind::Postgres, StoreKind::Mysql, StoreKind::Redis];
    if kind.is_some_and(|kind| kinds.contains(&kind)) {
        return spec.dsn_problem(format!("\"{scheme}:\" is not in this build"));
    }
    let known = kinds.into_iter().filter(|kind| kind.is_in_this_build()).flat_map(StoreKind::schemes).copied();
    let known: Vec<&str> = ["file", "doctrine"].into_iter().chain(known).collect();
    if kind.is_none() && nearest(scheme, known.iter().copied()).is_some() {
        return Problem::unknown(spec.dsn_path(), "scheme", scheme, known);
    }
    let why = "cannot be a cache: use file:, sqlite:, postgres:, mysql:, redis: or doctrine://NAME";
    spec.dsn_problem(format!("\"{scheme}:\" {why}"))
}
