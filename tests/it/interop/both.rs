//! A project and a Symfony application that share one store.

use std::any::Any;
use std::collections::BTreeMap;

use serde_json::Value;

use super::php::Php;
use crate::support::{Project, Running, wait_until};

/// Generates each test for each version of Symfony.
macro_rules! on_each_symfony {
    ($($test:ident)*) => {
        mod system {
            $(#[test] fn $test() { super::$test(crate::interop::php::Symfony::System); })*
        }
        mod beside {
            $(#[test] fn $test() { super::$test(crate::interop::php::Symfony::Beside); })*
        }
    };
}

pub(crate) use on_each_symfony;

/// `async` with one retry, and `failed`. The worker definition is Symfony's own worker.
const CONFIG: &str = r#"
failure_transport: failed
transports:
  async: {dsn: '%env(ASYNC_DSN)%', retry_strategy: {max_retries: 1, delay: 10}}
  failed: '%env(FAILED_DSN)%'
routing: {'*': async}
handlers:
  'App\Message\Note':
    exec: [sh, -c, 'body=$(cat); case "$body" in *"\"fail\":true"*|*"not here"*) exit 1;; esac;
                    printf "{\"by\":\"us\",%s\n" "${body#?}" >> handled; printf "%s" "$MINUTELY_HEADERS" > headers']
workers:
  - name: php
    transports: [async]
    command: [php, '%env(CONSOLE)%', 'messenger:consume', '{transports}', '{options}']
    options: [--time-limit=600, --sleep=1]
    autoscale: {desired_size: 2, max: 3}
"#;

pub struct Both {
    pub project: Project,
    pub php: Php,
    // The last field: dropped after everything that uses it.
    _store: Box<dyn Any>,
}

impl Both {
    /// `ours` are the DSNs of `async` and `failed` on this side; `store` is dropped at the end.
    pub fn on(store: impl Any, ours: [String; 2], php: Php) -> Self {
        let project = Project::new(CONFIG);
        let console = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/console.php");
        let [queue, failed] = ours;
        let database = &php.database_url;
        let env = format!("CONSOLE={console}\nDATABASE_URL={database}\nASYNC_DSN={queue}\nFAILED_DSN={failed}\n");
        project.write(".env", env);
        Self { project, php, _store: Box::new(store) }
    }

    /// A supervisor whose worker is Symfony's.
    pub fn supervise(&self) -> Running {
        let mut command = self.project.command(&["supervise"]);
        self.php.environment(&mut command);
        Running::start(&self.project, "supervise", command)
    }

    pub fn handled(&self) -> Vec<Value> {
        self.project.lines("handled").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn dispatch_here(&self, n: i64, text: &str) {
        let body = serde_json::json!({ "n": n, "text": text, "fail": false }).to_string();
        self.project.run(&["dispatch", r"App\Message\Note", &body]).succeeds();
    }

    /// Whether Symfony's side has handled something. It starts slowly, and this side could be done first.
    pub fn php_takes_part(&self) -> bool {
        self.project.lines("handled").iter().any(|line| line.contains(r#""by":"php""#))
    }

    /// Everything that was handled, by its number, and which side handled it.
    pub fn numbers(&self) -> (Vec<i64>, [usize; 2]) {
        let handled = self.handled();
        let mut numbers: Vec<i64> = handled.iter().map(|note| note["n"].as_i64().unwrap()).collect();
        numbers.sort_unstable();
        let by = |who| handled.iter().filter(|note| note["by"] == who).count();
        (numbers, [by("us"), by("php")])
    }

    /// Dispatched by a Symfony application with the default serializer: handled here; failed here, then handled there;
    /// failed there, then failed here. Returns that application.
    pub fn serialized_messages_go_both_ways(&self) -> Php {
        let php = self.php.serializing();
        let consume = |queue: &str, limit: &str| {
            self.project.run(&["consume", queue, limit, "--sleep=50ms", "--time-limit=20"]).succeeds();
        };
        let waiting = || (self.project.pending("async"), self.project.pending("failed"));
        php.run(&self.project, &["dispatch", r#"{"n":1,"text":"é \"x\" / 日本 😀"}"#]);
        consume("async", "--limit=1");
        let note = &self.handled()[0];
        assert_eq!((&note["by"], &note["n"], &note["text"]), (&"us".into(), &1.into(), &"é \"x\" / 日本 😀".into()));
        let headers: BTreeMap<String, String> = serde_json::from_str(&self.project.lines("headers").join("")).unwrap();
        assert_eq!(headers[r"X-Message-Stamp-App\Stamp\Tenant"], r#"[{"name":"tenant 0"}]"#);
        assert_eq!(headers["type"], r"App\Message\Note");

        php.run(&self.project, &["dispatch", r#"{"n":2,"text":"not here"}"#]);
        consume("async", "--limit=2");
        assert_eq!(waiting(), (0, 1));
        php.run(&self.project, &["messenger:consume", "failed", "--limit=1", "--time-limit=20"]);
        assert_eq!((self.handled().len(), &self.handled()[1]["by"], waiting()), (2, &"php".into(), (0, 0)));

        php.run(&self.project, &["dispatch", r#"{"n":3,"fail":true}"#]);
        for _ in 0..2 {
            wait_until("it is due", || self.project.pending("async") == 1);
            php.run(&self.project, &["messenger:consume", "async", "--limit=1", "--time-limit=20"]);
        }
        assert_eq!(waiting(), (0, 1));
        consume("failed", "--limit=1");
        // It failed here too, and is kept.
        assert_eq!(self.project.pending("async"), 0);
        php
    }
}
