//! Creates all transports of a configuration, and finds all mistakes before anything is opened.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::{IndexMap, IndexSet};

use super::auto_fallback::{self, AutoFallback, References};
use super::{Addressing, Factory, FactoryContext, Liveness, Transport, TransportError, TransportSpec, registry};
use crate::config::{Problem, SchemeOptions, TransportConfig};
use crate::serializer::Serializers;

/// The options of all transports, by scheme, for the [schema](crate::config::schema()) of the configuration.
pub(crate) fn scheme_options(factories: &[Arc<dyn Factory>]) -> Vec<SchemeOptions> {
    let mut seen = IndexSet::new();
    let mut all = Vec::new();
    // A factory added later wins.
    for factory in factories.iter().rev() {
        let schemes: Vec<&str> = factory.schemes().iter().copied().filter(|scheme| seen.insert(*scheme)).collect();
        if !schemes.is_empty() {
            all.push(SchemeOptions { schemes, options: factory.options() });
        }
    }
    all.reverse();
    all.push(SchemeOptions { schemes: auto_fallback::SCHEMES.to_vec(), options: auto_fallback::OPTIONS.to_vec() });
    all
}

/// The transports of an application, by name.
#[derive(Clone, Default)]
pub struct Transports {
    by_name: IndexMap<String, Arc<Transport>>,
    /// The queue behind each auto-fallback.
    targets: HashMap<String, String>,
    serializers: Arc<Serializers>,
}

impl Transports {
    /// Creates all transports, or reports all mistakes. Leaves warnings out; [`Transports::build`] has them.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn new(
        configs: &IndexMap<String, TransportConfig>,
        factories: &[Arc<dyn Factory>],
        context: &FactoryContext,
    ) -> Result<Self, Vec<Problem>> {
        let (transports, mut problems) = Self::build(configs, factories, context, Serializers::default());
        problems.retain(|problem| !problem.warning);
        if problems.is_empty() { Ok(transports) } else { Err(problems) }
    }

    /// Creates all transports that can be created, and reports all mistakes and warnings. Opens nothing.
    pub(crate) fn build(
        configs: &IndexMap<String, TransportConfig>,
        factories: &[Arc<dyn Factory>],
        context: &FactoryContext,
        serializers: Serializers,
    ) -> (Self, Vec<Problem>) {
        build(configs, factories, context, serializers)
    }

    /// Adds a transport. Replaces one with the same name.
    pub(crate) fn insert(&mut self, transport: impl Into<Transport>) {
        let transport = transport.into();
        self.targets.remove(transport.name());
        self.by_name.insert(transport.name().to_owned(), Arc::new(transport));
    }

    /// Adds a transport that sends to `target` while that is being consumed, and otherwise to `fallback`. Fails if one
    /// of the two does not exist yet.
    pub(crate) fn insert_auto_fallback(
        &mut self,
        name: &str,
        target: &str,
        fallback: &str,
        liveness: Arc<dyn Liveness>,
    ) -> Result<(), TransportError> {
        let (queue, target, fallback) = (self.target(target)?, self.get(target)?, self.get(fallback)?);
        let mut consumed_as = vec![name.to_owned(), target.name().to_owned()];
        if queue.name() != target.name() {
            consumed_as.push(queue.name().to_owned());
        }
        let sender = AutoFallback { name: name.to_owned(), target, fallback, consumed_as, liveness };
        let is_addressing = sender.target.addressing.is_some() || sender.fallback.addressing.is_some();
        let sender = Arc::new(sender);
        let mut transport = Transport::sender(name, Arc::clone(&sender));
        transport.addressing = is_addressing.then_some(sender as Arc<dyn Addressing>);
        self.insert(transport);
        self.targets.insert(name.to_owned(), queue.name().to_owned());
        Ok(())
    }

    /// What reads and writes their messages.
    pub(crate) fn serializers(&self) -> Arc<Serializers> {
        Arc::clone(&self.serializers)
    }

    /// A transport by its name.
    pub fn get(&self, name: &str) -> Result<Arc<Transport>, TransportError> {
        self.by_name.get(name).cloned().ok_or_else(|| TransportError::Unknown(name.to_owned()))
    }

    /// The transport to read when `name` is consumed or counted: for an auto-fallback its target, otherwise itself.
    pub fn target(&self, name: &str) -> Result<Arc<Transport>, TransportError> {
        self.get(self.targets.get(name).map_or(name, String::as_str))
    }

    /// All names under which the queue of this transport is consumed: its own, its auto-fallbacks', and those of the others.
    pub(crate) fn same_queue(&self, name: &str) -> Vec<String> {
        let queue = |name: &str| self.target(name).ok().map(|queue| queue.name().to_owned());
        let Some(own) = queue(name) else { return Vec::new() };
        self.names().filter(|name| queue(name).as_ref() == Some(&own)).map(str::to_owned).collect()
    }

    /// All names, in the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// All transports, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Transport>> {
        self.by_name.values()
    }
}

/// Creates the transports that can be created. The problems are in the order of the configuration.
fn build(
    configs: &IndexMap<String, TransportConfig>,
    factories: &[Arc<dyn Factory>],
    context: &FactoryContext,
    mut serializers: Serializers,
) -> (Transports, Vec<Problem>) {
    let mut problems: IndexMap<&str, Vec<Problem>> = configs.keys().map(|name| (name.as_str(), vec![])).collect();
    let mut transports = Transports::default();
    let mut auto_fallbacks: IndexMap<&str, (TransportSpec, References)> = IndexMap::new();

    for (name, config) in configs {
        let spec = TransportSpec::new(config, &context.connections, &context.project_dir);
        let result = spec.map_err(|problem| vec![problem]).and_then(|spec| {
            if auto_fallback::SCHEMES.contains(&spec.store.scheme()) {
                let spec = spec.with_options(auto_fallback::OPTIONS.to_vec());
                let references = auto_fallback::references(&spec, configs)?;
                if let Some(serializer) = &config.serializer {
                    let target = &references.target;
                    let why = format!(
                        "an auto-fallback stores nothing itself: give the serializer to its target, \"{target}\""
                    );
                    problems[name.as_str()].push(Problem::error(&serializer.path, why));
                }
                auto_fallbacks.insert(name, (spec, references));
                return Ok(());
            }
            let factory = factory_for(&spec, factories)?;
            let spec = spec.with_options(factory.options());
            problems[name.as_str()].extend(factory.warnings(&spec));
            let made = factory.create(&spec, context);
            problems[name.as_str()].extend(spec.take_warnings());
            let mut made = made?;
            made.serializer = serializers.if_needed(name);
            transports.insert(made);
            Ok(())
        });
        problems[name.as_str()].extend(result.err().unwrap_or_default());
    }

    for (name, (spec, _)) in &auto_fallbacks {
        if let Some(path) = cycle(name, &auto_fallbacks) {
            problems[*name].push(spec.dsn_problem(format!("it leads to itself: {}", path.join(" → "))));
        }
    }
    // Each round creates those whose target and fallback exist. Those left at the end lead to themselves, or to a
    // transport that could not be created. Both have been reported.
    loop {
        let made = transports.by_name.len();
        auto_fallbacks.retain(|name, (spec, References { target, fallback })| {
            let liveness = Arc::clone(&context.liveness);
            if transports.insert_auto_fallback(name, target, fallback, liveness).is_err() {
                return true;
            }
            if transports.target(name).is_ok_and(|queue| queue.receiver.is_none()) {
                let what = format!("the target \"{target}\" keeps no messages, so nothing can consume it");
                problems[*name].push(Problem::error(spec.option_path("target"), what));
            }
            false
        });
        if transports.by_name.len() == made {
            break;
        }
    }
    // An auto-fallback has none, because its target and its fallback have theirs; what is consumed by its name is read as
    // its target writes it.
    for (name, target) in &transports.targets {
        serializers.add_name(name, target);
    }
    transports.serializers = Arc::new(serializers);
    transports.by_name.sort_by_key(|name, _| configs.get_index_of(name));
    (transports, problems.into_values().flatten().collect())
}

fn factory_for<'a>(
    spec: &TransportSpec,
    factories: &'a [Arc<dyn Factory>],
) -> Result<&'a Arc<dyn Factory>, Vec<Problem>> {
    let scheme = spec.store.scheme();
    // A factory added later wins, so that an application can put its own in place of a built-in one.
    if let Some(factory) = factories.iter().rev().find(|factory| factory.schemes().contains(&scheme)) {
        return Ok(factory);
    }
    let mut known: IndexSet<&str> = factories.iter().flat_map(|factory| factory.schemes()).copied().collect();
    known.extend(auto_fallback::SCHEMES);
    if registry::known_schemes().any(|known| known == scheme) {
        let known: Vec<&str> = known.into_iter().collect();
        let message = format!("\"{scheme}:\" is not in this build, which has: {}, doctrine", known.join(", "));
        return Err(vec![spec.dsn_problem(message)]);
    }
    if let Some(service) = missing_service(spec) {
        let message = format!(
            "Symfony's transport for {service} is not here; an application in Rust can have one of its own. Known: {}, doctrine",
            known.into_iter().collect::<Vec<_>>().join(", ")
        );
        return Err(vec![spec.dsn_problem(message)]);
    }
    known.insert("doctrine");
    Err(vec![Problem::unknown(spec.dsn_path(), "scheme", scheme, known)])
}

/// What a scheme stands for in Symfony's bridges that have no counterpart here.
fn missing_service(spec: &TransportSpec) -> Option<&'static str> {
    match spec.store.scheme() {
        "beanstalkd" => Some("Beanstalkd"),
        "sqs" => Some("Amazon SQS"),
        "https" if spec.store.host().starts_with("sqs.") => Some("Amazon SQS"),
        "enqueue" => Some("Enqueue"),
        _ => None,
    }
}

/// The path from an auto-fallback through targets and fallbacks back to itself, if there is one.
fn cycle<'a>(start: &'a str, auto_fallbacks: &'a IndexMap<&str, (TransportSpec, References)>) -> Option<Vec<&'a str>> {
    let mut seen = IndexSet::new();
    let mut paths = vec![vec![start]];
    while let Some(path) = paths.pop() {
        let Some((_, references)) = path.last().and_then(|name| auto_fallbacks.get(name)) else { continue };
        for next in [references.target.as_str(), references.fallback.as_str()] {
            let longer = [path.as_slice(), &[next]].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                paths.push(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::in_memory::InMemoryFactory;
    use super::super::sql::SqliteFactory;
    use super::super::sync::SyncFactory;
    use super::*;
    use crate::config::Secret;

    struct Nobody;

    #[async_trait]
    impl Liveness for Nobody {
        async fn is_running(&self, _transports: &[&str]) -> bool {
            false
        }
    }

    fn context(connections: &[(&str, &str)]) -> FactoryContext {
        let connections =
            connections.iter().map(|(name, url)| ((*name).to_owned(), Secret((*url).to_owned()))).collect();
        FactoryContext {
            project_dir: "/project".into(),
            state_dir: "/project/var".into(),
            connections,
            liveness: Arc::new(Nobody),
        }
    }

    fn configs(transports: &[(&str, &str, &str)]) -> IndexMap<String, TransportConfig> {
        let config = |(name, dsn, options): &(&str, &str, &str)| TransportConfig {
            name: (*name).to_owned(),
            path: format!("transports.{name}"),
            dsn: Secret((*dsn).to_owned()),
            options: serde_yaml::from_str(options).unwrap(),
            retry: None,
            failure_transport: None,
            rate_limit: None,
            serializer: None,
        };
        transports.iter().map(|transport| (transport.0.to_owned(), config(transport))).collect()
    }

    /// The factories that every build has.
    fn factories() -> [Arc<dyn Factory>; 3] {
        [Arc::new(SyncFactory), Arc::new(InMemoryFactory::default()), Arc::new(SqliteFactory::default())]
    }

    fn check_with(transports: &[(&str, &str, &str)], connections: &[(&str, &str)]) -> Vec<String> {
        Transports::build(&configs(transports), &factories(), &context(connections), Serializers::default())
            .1
            .into_iter()
            .map(|problem| format!("{}{}: {}", if problem.warning { "?" } else { "" }, problem.path, problem.message))
            .collect()
    }

    fn check(transports: &[(&str, &str, &str)]) -> Vec<String> {
        check_with(transports, &[])
    }

    #[test]
    fn contaos_default_transports_are_created_without_opening_anything() {
        let mut list = vec![("sync", "sync://".to_owned())];
        list.push(("contao_failure", "doctrine://default?table_name=tl_message_queue&queue_name=failure".into()));
        for prio in ["high", "normal", "low"] {
            let (name, queue) =
                (format!("contao_prio_{prio}").leak() as &str, format!("contao_prio_{prio}_doctrine").leak());
            list.push((name, format!("contao-auto-fallback://{name}?target={queue}&fallback=sync")));
            let dsn = "doctrine://default?table_name=tl_message_queue&queue_name=prio_{prio}&auto_setup=false";
            list.push((queue, dsn.replace("{prio}", prio)));
        }
        let list: Vec<_> = list.iter().map(|(name, dsn)| (*name, dsn.as_str(), "{}")).collect();
        let context = context(&[("default", "pdo-sqlite:////nowhere/var/data.db?serverVersion=3")]);
        let transports = Transports::new(&configs(&list), &factories(), &context).unwrap();
        assert_eq!(transports.names().collect::<Vec<_>>(), list.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
        assert_eq!(transports.target("contao_prio_low").unwrap().name(), "contao_prio_low_doctrine");
        assert_eq!(transports.target("sync").unwrap().name(), "sync");
        assert!(transports.get("contao_prio_low").unwrap().receiver.is_none());
        assert!(matches!(transports.get("contao"), Err(TransportError::Unknown(name)) if name == "contao"));
    }

    #[test]
    fn every_mistake_is_found_with_its_place() {
        let found = check(&[
            ("no_dsn", "nonsense", "{}"),
            ("typo", "sqllite:a.db", "{}"),
            ("later", "amqp://guest:hunter2@localhost/", "{}"),
            ("option", "sqlite:a.db?tablename=hunter2&queue_name=a", "{auto_setups: true}"),
            ("values", "sqlite:a.db?redeliver_timeout=soon&table_name=a%3Bb", "{auto_setup: perhaps}"),
            ("file", "sqlite:", "{}"),
            ("host", "sqlite://var/queue.db", "{}"),
            ("memory", "sqlite::memory:", "{}"),
            ("plain", "sync://?queue=a", "{}"),
        ]);
        insta::assert_snapshot!(found.join("\n"));
    }

    #[test]
    fn every_mistake_in_an_auto_fallback_is_found() {
        let found = check(&[
            ("sync", "sync://", "{}"),
            ("queue", "sqlite:a.db", "{}"),
            ("broken", "nonsense", "{}"),
            ("good", "auto-fallback://good?target=queue&fallback=sync", "{}"),
            ("nested", "auto-fallback://nested?target=good", "{fallback: sync}"),
            ("name", "auto-fallback://nmae?target=queue&fallback=sync", "{}"),
            ("nothing", "auto-fallback://nothing", "{}"),
            ("typos", "auto-fallback://typos?target=qeue", "{fallback: snyc}"),
            ("selfish", "auto-fallback://selfish?target=selfish&fallback=sync", "{}"),
            ("a", "auto-fallback://a?target=queue&fallback=b", "{}"),
            ("b", "auto-fallback://b?target=a&fallback=sync", "{}"),
            ("into_circle", "auto-fallback://into_circle?target=a&fallback=sync", "{}"),
            ("onto_sync", "auto-fallback://onto_sync?target=sync&fallback=queue", "{}"),
            ("onto_broken", "auto-fallback://onto_broken?target=broken&fallback=sync", "{}"),
        ]);
        insta::assert_snapshot!(found.join("\n"));
    }

    #[test]
    fn connections_are_looked_up_and_their_secrets_kept() {
        let transports =
            [("a", "doctrine://defualt", "{}"), ("b", "doctrine://mysql", "{}"), ("c", "doctrine://bad", "{}")];
        let connections =
            [("default", "sqlite:///a.db"), ("mysql", "mysql://u:hunter2@h/db"), ("bad", "mysql://u:hunter2/x@h/db")];
        let mut found = check_with(&transports, &connections);
        found.extend(check(&[("none", "doctrine://default", "{}")]));
        assert!(!found.join("").contains("hunter2"));
        insta::assert_snapshot!(found.join("\n"));
    }

    #[test]
    fn options_beside_the_dsn_win_over_those_in_it() {
        let transports = configs(&[("a", "sqlite:a.db?queue_name=dsn&table_name=dsn", "{queue_name: options}")]);
        let transports = Transports::new(&transports, &factories(), &context(&[])).unwrap();
        let place = format!("{:?}", transports.get("a").unwrap().moving.as_ref().unwrap().place());
        assert_eq!(place, r#"queue "options" of table "dsn" in /project/a.db"#);
    }

    #[test]
    fn there_is_a_warning_about_a_transport_in_memory() {
        let found = check(&[("a", "in-memory://", "{}")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("?transports.a: "), "{found:?}");
    }
}
