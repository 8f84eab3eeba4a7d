//! Forms of messages other than Symfony's JSON: those of other applications, encrypted and signed ones.

use sqlx::{Connection, Row};

use crate::support::Project;

const CONFIG: &str = r#"
transports:
  async: {dsn: "sqlite:q.db?queue_name=async", serializer: SERIALIZER, retry_strategy: {max_retries: 1, delay: 0}}
  failed: "sqlite:q.db?queue_name=failed"
failure_transport: failed
routing: {'*': async}
handlers:
  '*': {exec: [sh, -c, 'cat >> handled; echo " $MINUTELY_MESSAGE_TYPE" >> handled; test ! -e broken']}
"#;

fn project(serializer: &str) -> Project {
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
fn insert(project: &Project, body: &str, headers: &str) {
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
fn stored(project: &Project, queue: &str) -> Vec<(String, String)> {
    database(project, async |mut database| {
        let select = sqlx::query("SELECT body, headers FROM messenger_messages WHERE queue_name = ? ORDER BY id");
        let rows = select.bind(queue).fetch_all(&mut database).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    })
}

/// Handles what is due, first tries and retries.
fn consume(project: &Project, transport: &str) {
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
    // What PHP's hash_hmac('sha256', '{}', 's3cret') says.
    let (_, headers) = &stored(&project, "async")[0];
    assert!(
        headers.contains(r#""Body-Sign":"adbde1ce40c89c14215687d5d762a47df6dfaefcfad61e2e86718ffc8498571b""#),
        "{headers}"
    );
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
