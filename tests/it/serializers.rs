//! Forms of messages other than Symfony's JSON: those of other applications, encrypted and signed ones.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use sqlx::{Connection, Row};

use crate::interop::Symfony;
use crate::support::Project;

pub const CONFIG: &str = r#"
transports:
  async: {dsn: "sqlite:q.db?queue_name=async", serializer: SERIALIZER, retry_strategy: {max_retries: 1, delay: 0}}
  failed: "sqlite:q.db?queue_name=failed"
failure_transport: failed
routing: {'*': async}
handlers:
  '*': {exec: [sh, -c, 'cat >> handled; echo " $MINUTELY_MESSAGE_TYPE" >> handled; test ! -e broken']}
"#;

pub fn project(serializer: &str) -> Project {
    Project::new(&CONFIG.replace("SERIALIZER", serializer))
}

fn database<T>(project: &Project, run: impl AsyncFnOnce(sqlx::SqliteConnection) -> T) -> T {
    let url = format!("sqlite://{}", project.file("q.db").display());
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { run(sqlx::SqliteConnection::connect(&url).await.unwrap()).await })
}

/// Puts a message into the queue as some other program might.
pub fn insert(project: &Project, body: &str, headers: &str) {
    project.run(&["setup"]).succeeds();
    database(project, async |mut database| {
        sqlx::query(
            "INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at)
             VALUES (?, ?, 'async', '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
        )
        .bind(body)
        .bind(headers)
        .execute(&mut database)
        .await
        .unwrap();
    });
}

/// The messages in a queue: body and headers.
pub fn stored(project: &Project, queue: &str) -> Vec<(String, String)> {
    database(project, async |mut database| {
        let select = sqlx::query("SELECT body, headers FROM messenger_messages WHERE queue_name = ? ORDER BY id");
        let rows = select.bind(queue).fetch_all(&mut database).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    })
}

/// Handles what is due, first tries and retries.
pub fn consume(project: &Project, transport: &str) {
    project.run(&["consume", transport, "--time-limit", "2", "--move-unhandleable"]);
}

#[test]
fn messages_of_other_applications_are_handled_retried_and_kept_as_they_came() {
    let project =
        project("{type_field: kind, types: {order.created: 'App\\Created'}, body_field: data, type: 'App\\Other'}");
    let body = r#"{"kind":"order.created", "data":{"id" :1.0}}"#;
    insert(&project, body, r#"{"X-Trace":"abc"}"#);
    insert(&project, r#"{"data":[7]}"#, "{}");
    project.write("broken", "");
    consume(&project, "async");
    let failed = stored(&project, "failed");
    assert_eq!([failed[0].0.as_str(), failed[1].0.as_str()], [body, r#"{"data":[7]}"#]);
    assert!(failed[0].1.contains(r#""X-Trace":"abc""#) && !failed[0].1.contains("\"type\""), "{failed:?}");
    std::fs::remove_file(project.file("broken")).unwrap();
    std::fs::remove_file(project.file("handled")).unwrap();
    // It is read as on the transport that it came from.
    consume(&project, "failed");
    assert_eq!(project.lines("handled"), [r#"{"id" :1.0} App\Created"#, r"[7] App\Other"]);
    project.run(&["dispatch", r"App\Created", r#"{"id":2}"#]).succeeds();
    assert_eq!(stored(&project, "async")[0].0, r#"{"kind":"order.created","data":{"id":2}}"#);
    let refused = project.run(&["dispatch", r"App\Unknown", "{}"]).exits(1);
    assert!(refused.stderr.contains("add it to `types`"), "{refused:?}");
}

#[test]
fn sensitive_messages_are_encrypted_until_they_are_handled_also_after_a_failure() {
    let project = project("{encrypt: {keys: ['%env(NEW)%', '%env(OLD)%']}}");
    let keys = ["NEW", "OLD", "OTHER"].map(|_| project.run(&["key"]).succeeds().stdout.trim().to_owned());
    let use_keys = |new: &str, old: &str| project.write(".env", format!("NEW={new}\nOLD={old}\n"));
    use_keys(&keys[1], &keys[1]);
    project.run(&["dispatch", r"App\Salary", r#"{"iban":"DE99"}"#]).succeeds();
    use_keys(&keys[0], &keys[1]);
    project.run(&["dispatch", r"App\Salary", r#"{"iban":"DE00"}"#]).succeeds();
    insert(&project, r#"{"iban":"plain"}"#, r#"{"type":"App\\Salary"}"#);
    project.write("broken", "");
    consume(&project, "async");
    assert_eq!(stored(&project, "async"), []);
    let failed = stored(&project, "failed");
    assert_eq!(failed.len(), 3);
    for (body, headers) in &failed[..2] {
        let text = format!("{body}{headers}");
        assert!(!text.contains("iban") && !text.contains("Salary") && text.contains("X-Minutely-Encrypted"), "{text}");
    }
    assert!(failed[2].1.contains("is not encrypted"), "{failed:?}");
    let list = project.run(&["failed", "show"]).succeeds().stdout;
    let id = list.split_whitespace().find(|word| word.parse::<u64>().is_ok()).unwrap();
    let shown = project.run(&["failed", "show", id, "-v"]).succeeds().stdout;
    assert!(shown.contains("encrypted in its queue") && shown.contains(r"App\Salary"), "{shown}");
    assert!(!shown.contains("iban"), "{shown}");
    assert!(!project.log().contains("DE99"), "{}", project.log());
    std::fs::remove_file(project.file("broken")).unwrap();
    std::fs::remove_file(project.file("handled")).unwrap();
    use_keys(&keys[2], &keys[2]);
    consume(&project, "failed");
    assert_eq!(project.lines("handled"), Vec::<String>::new());
    assert!(project.log().contains("a key that is not here"), "{}", project.log());
    use_keys(&keys[0], &keys[1]);
    // They are parked by now.
    project.run(&["consume", "failed", "--time-limit", "2"]);
    assert_eq!(project.lines("handled"), [r#"{"iban":"DE99"} App\Salary"#, r#"{"iban":"DE00"} App\Salary"#]);
    assert_eq!(stored(&project, "failed").len(), 1);
}

#[test]
fn messages_that_must_be_signed_are_refused_without_a_signature_and_kept() {
    let project = project(r"json");
    let config = CONFIG.replace("SERIALIZER", "json") + "signing: {key: '%env(APP_SECRET)%', types: ['App\\Run']}\n";
    project.write("config.yaml", config);
    project.write(".env", "APP_SECRET=s3cret\n");
    project.run(&["dispatch", r"App\Run", "{}"]).succeeds();
    let (_, headers) = &stored(&project, "async")[0];
    assert!(headers.contains(r#""Body-Sign":"v2:"#), "{headers}");
    insert(&project, "{\"forged\":1}", r#"{"type":"App\\Run"}"#);
    insert(&project, "{\"forged\":2}", headers);
    insert(&project, "{\"free\":3}", r#"{"type":"App\\Free"}"#);
    consume(&project, "async");
    let mut handled = project.lines("handled");
    handled.sort();
    assert_eq!(handled, [r#"{"free":3} App\Free"#, r"{} App\Run"]);
    let failed = stored(&project, "failed");
    assert!(failed[0].1.contains("this one has none") && failed[1].1.contains("is not valid"), "{failed:?}");
    assert_eq!(failed.len(), 2);
    // One that failed is signed on the failure transport too.
    project.write("broken", "");
    project.run(&["dispatch", r"App\Run", "{\"n\":1}"]).succeeds();
    consume(&project, "async");
    assert!(stored(&project, "failed")[2].1.contains("Body-Sign"));
    std::fs::remove_file(project.file("broken")).unwrap();
    consume(&project, "failed");
    assert_eq!(project.lines("handled").last().unwrap(), r#"{"n":1} App\Run"#);
    assert_eq!(stored(&project, "failed").len(), 2);
}

/// An application in PHP with its default serializer consumes it.
#[test]
fn what_is_dispatched_as_php_writes_it_is_what_php_reads() {
    let Some(symfony) = Symfony::System.folder() else { return };
    let project = project("php");
    let classes = r"
php:
  classes:
    App\Address: {street: string, city: protected ?string}
    App\Order:
      App\Base::id: int
      to: public readonly string
      count: int
      price: protected float
      paid: bool
      tags: array
      at: DateTimeImmutable
      address: ?App\Address
      status: enum App\Status
      addresses: App\Address[]
      none: string|null
";
    project.write("config.yaml", CONFIG.replace("SERIALIZER", "php") + classes);
    let order = serde_json::json!({
        "id": 7, "to": "ü \"'\\ \u{0}", "count": -3, "price": 2, "paid": true, "tags": {"a": [1, null, 1.5]},
        "at": "2026-01-31T10:00:00+01:00", "address": {"street": "Way 1", "city": null}, "status": "Done",
        "addresses": [{"street": "Way 2", "city": "Here"}],
    });
    project.run(&["dispatch", r"App\Order", &order.to_string()]).succeeds();
    let (body, headers) = stored(&project, "async").remove(0);
    assert_eq!(headers, "{}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/written.php");
    let mut php = Command::new("php");
    php.arg(script).env("SYMFONY", symfony).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut php = php.spawn().unwrap();
    php.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let read: Value = serde_json::from_slice(&php.wait_with_output().unwrap().stdout).unwrap();
    let expected = serde_json::json!({
        "class": r"App\Order", "id": 7, "to": "ü \"'\\ \u{0}", "count": -3, "price": "float 2", "paid": true,
        "tags": {"a": [1, null, "float 1.5"]}, "at": "2026-01-31T10:00:00+01:00",
        "address": {"class": r"App\Address", "street": "Way 1", "city": null}, "status": r"App\Status::Done",
        "addresses": [{"class": r"App\Address", "street": "Way 2", "city": "Here"}], "none": null,
    });
    assert_eq!(read["message"], expected);
    assert_eq!(read["stamps"], serde_json::json!([r"Symfony\Component\Messenger\Stamp\BusNameStamp"]));
    assert_eq!(read["same"], true, "{body}");
    // And it is read here.
    consume(&project, "async");
    assert!(project.lines("handled")[0].ends_with(r"App\Order"), "{}", project.log());
    for (message_type, body, why) in [
        (r"App\Unknown", "{}", r#"the properties of "App\Unknown" are not known"#),
        (r"App\Address", r#"{"street":1}"#, "street must be text"),
        (r"App\Address", r#"{"city":"a"}"#, "street is missing"),
        (r"App\Address", r#"{"street":"a","zip":1}"#, r#"zip is a property that "App\Address" does not have"#),
    ] {
        let refused = project.run(&["dispatch", message_type, body]).exits(1);
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
}
