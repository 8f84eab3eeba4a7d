//! Contao's default configuration, here and in a PHP application: messages in PHP's `serialize()`, which fail on one side and are
//! reviewed and retried on the other.

use std::any::Any;
use std::fs;

use serde_json::{Value, json};

use super::both::on_each_symfony;
use super::php::{Php, Symfony};
use super::sql;
use crate::support::databases::Server;
use crate::support::{Project, wait_until};

/// What the configuration has beside Contao's own.
const HANDLERS: &str = r#"
handlers:
  'Contao\CoreBundle\Messenger\Message\*': &handler
    exec: [sh, -c, 'test ! -e broken && { cat; echo; } >> handled']
  'App\Messenger\*': *handler
"#;

/// Who has a failed message tries it three times more.
const ATTEMPTS: usize = 4;

struct Contao {
    project: Project,
    php: Php,
    _store: Box<dyn Any>,
}

impl Contao {
    fn on(symfony: Symfony, server: Option<Server>) -> Option<Self> {
        let (store, database_url) = sql::database(server)?;
        let in_memory = ["in-memory://", "in-memory://"].map(str::to_owned);
        let php = Php { extension: Some("contao.php"), ..Php::new(symfony, in_memory, &database_url)?.serializing() };
        let project = Project::new(&format!("{HANDLERS}{}", include_str!("../../fixtures/contao.yaml")));
        project.write(".env", format!("DATABASE_URL={database_url}\n"));
        // What `contao:migrate` does there.
        php.run(&project, &["messenger:setup-transports", "contao_failure"]);
        Some(Self { project, php, _store: store })
    }

    fn dispatch(&self, command: &[&str]) {
        self.php.run(&self.project, command);
    }

    fn consume(&self, transport: &str, attempts: usize) {
        let limit = format!("--limit={attempts}");
        self.project.run(&["consume", transport, &limit, "--sleep=50ms", "--time-limit=50"]).succeeds();
    }

    fn handled(&self) -> Vec<Value> {
        self.project.lines("handled").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn break_handlers(&self) {
        self.project.write("broken", "");
    }

    fn mend_handlers(&self) {
        fs::remove_file(self.project.file("broken")).unwrap();
    }

    /// What Symfony's own command says about failed messages.
    fn reviewed_there(&self, arguments: &[&str]) -> String {
        let run = self.php.run(&self.project, &[&["messenger:failed:show"], arguments].concat());
        format!("{}{}", run.stdout, run.stderr)
    }

    /// The one message on the failure transport.
    fn reviewed_here(&self) -> Value {
        let failed = self.project.json(&["failed", "show"]);
        assert_eq!(failed["messages"].as_array().unwrap().len(), 1, "{failed}");
        failed["messages"][0].clone()
    }
}

const SEARCH_INDEX: &str = r"Contao\CoreBundle\Messenger\Message\SearchIndexMessage";

fn dispatched_there_handled_here(contao: &Contao) {
    contao.dispatch(&["contao:index", "https://example.com/é"]);
    assert_eq!(contao.project.pending("contao_prio_low"), 1);
    contao.consume("contao_prio_low", 1);
    let document = json!({
        "jsonLds": null, "uri": "https://example.com/é", "statusCode": 200,
        "headers": {"content-type": ["text/html"]}, "body": "<p>\"é\" \\ 日本</p>",
    });
    assert_eq!(contao.handled(), [json!({"document": document, "index": true, "delete": false})]);
    contao.dispatch(&["contao:zip", "a", "b"]);
    contao.consume("contao_prio_high", 1);
    assert_eq!(contao.handled()[1], json!({"fileIds": ["a", "b"]}));
}

fn failed_here_reviewed_and_retried_there(contao: &Contao) {
    contao.break_handlers();
    contao.dispatch(&["contao:index", "https://example.com/"]);
    contao.consume("contao_prio_low", ATTEMPTS);
    let id = contao.reviewed_here()["id"].as_str().unwrap().to_owned();
    let listed = contao.reviewed_there(&[]);
    assert!(listed.contains(&id) && listed.contains(SEARCH_INDEX) && listed.contains("exit code 1"), "{listed}");
    let details = contao.reviewed_there(&[&id, "-vv"]);
    assert!(details.contains("contao_prio_low") && details.contains("https://example.com/"), "{details}");
    contao.mend_handlers();
    contao.php.run(&contao.project, &["messenger:failed:retry", &id, "--force"]);
    assert_eq!(contao.handled(), [json!({"by": "php", "what": "https://example.com/"})]);
    assert_eq!(contao.project.pending("contao_failure"), 0);
}

fn failed_there_reviewed_and_retried_here(contao: &Contao) {
    contao.break_handlers();
    contao.dispatch(&["contao:zip", "a", "b"]);
    for _ in 0..ATTEMPTS {
        wait_until("it is due", || contao.project.pending("contao_prio_high") == 1);
        contao.php.run(&contao.project, &["messenger:consume", "contao_prio_high", "--limit=1", "--time-limit=20"]);
    }
    let failed = contao.reviewed_here();
    let id = failed["id"].as_str().unwrap();
    let details = contao.project.run(&["failed", "show", id, "-vv"]).succeeds().stdout;
    assert!(details.contains("CreateAsyncZipFileMessage") && details.contains("PHP finds it broken"), "{details}");
    contao.mend_handlers();
    contao.project.run(&["failed", "retry", id, "--force"]).succeeds();
    assert_eq!(contao.handled(), [json!({"fileIds": ["a", "b"]})]);
    assert_eq!(contao.project.pending("contao_failure"), 0);
}

/// Makes the tests of one database.
macro_rules! on_database {
    ($module:ident, $server:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(
                fn $test(symfony: Symfony) {
                    if let Some(contao) = Contao::on(symfony, $server) {
                        super::$test(&contao);
                    }
                }
            )*
            on_each_symfony! { $($test)* }
        }
    };
}

macro_rules! on_every_database {
    ($($test:ident)*) => {
        on_database!(sqlite, None, $($test)*);
        on_database!(postgres, Some(Server::Postgres), $($test)*);
        on_database!(mysql, Some(Server::Mysql), $($test)*);
    };
}

on_every_database! {
    dispatched_there_handled_here
    failed_here_reviewed_and_retried_there
    failed_there_reviewed_and_retried_here
}
