//! A project and a Symfony application that share one store.

use std::any::Any;

use serde_json::Value;

use super::Project;
use super::php::{Php, is_here};

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
    // Last, as it goes when nobody uses it any more.
    _store: Box<dyn Any>,
}

impl Both {
    /// None where Symfony is not here, and the test is to be skipped. `ours` are the DSNs of `async` and `failed` on this
    /// side; `store` is what goes at the end.
    pub fn on(store: impl Any, ours: [String; 2], php: Php) -> Option<Self> {
        if !is_here() {
            return None;
        }
        let project = Project::new(CONFIG);
        let console = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/console.php");
        let [queue, failed] = ours;
        let database = &php.database_url;
        let env = format!("CONSOLE={console}\nDATABASE_URL={database}\nASYNC_DSN={queue}\nFAILED_DSN={failed}\n");
        project.write(".env", env);
        Some(Self { project, php, _store: Box::new(store) })
    }

    pub fn handled(&self) -> Vec<Value> {
        self.project.lines("handled").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn dispatch_here(&self, n: i64, text: &str) {
        let body = serde_json::json!({ "n": n, "text": text, "fail": false }).to_string();
        self.project.run(&["dispatch", r"App\Message\Note", &body]).succeeds();
    }

    /// Everything that was handled, by its number; by whom it was.
    pub fn numbers(&self) -> (Vec<i64>, [usize; 2]) {
        let handled = self.handled();
        let mut numbers: Vec<i64> = handled.iter().map(|note| note["n"].as_i64().unwrap()).collect();
        numbers.sort_unstable();
        let by = |who| handled.iter().filter(|note| note["by"] == who).count();
        (numbers, [by("us"), by("php")])
    }
}
