//! Signed messages, beside Symfony's own serializer. Released with 7.4, so that `scripts/interop-newest` alone has it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Symfony;
use crate::serializers::{CONFIG, consume, insert, project, stored};

/// Signed here and verified by Symfony, signed there and handled here, and failed here and verified there.
#[test]
fn signatures_are_those_of_symfony() {
    let has_it = |folder: &PathBuf| {
        folder.join("Symfony/Component/Messenger/Transport/Serialization/SigningSerializer.php").is_file()
    };
    let Some(symfony) = [Symfony::System, Symfony::Beside].into_iter().filter_map(Symfony::folder).find(has_it) else {
        return harness::skip_always("no Symfony here is 7.4 or later; scripts/interop-newest brings one");
    };
    let php = |command: &str, input: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/signing.php");
        let mut php = Command::new("php");
        php.args([script, command]).env("SYMFONY", &symfony).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut php = php.spawn().unwrap();
        php.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        String::from_utf8(php.wait_with_output().unwrap().stdout).unwrap()
    };
    let verified = |(body, headers): &(String, String)| {
        let headers: Value = serde_json::from_str(headers).unwrap();
        php("verify", &serde_json::json!({"body": body, "headers": headers}).to_string())
    };
    let project = project("php");
    for cover_headers in [true, false] {
        let signing = format!(
            "signing: {{key: s3cret, types: ['App\\Run'], cover_headers: {cover_headers}}}\n\
             php: {{classes: {{'App\\Run': {{report: public string}}}}}}\n"
        );
        project.write("config.yaml", CONFIG.replace("SERIALIZER", "php") + &signing);
        project.run(&["dispatch", r"App\Run", r#"{"report":"here"}"#]).succeeds();
        assert_eq!(verified(&stored(&project, "async")[0]), r"App\Run");
        let signed: Value = serde_json::from_str(&php("sign", "")).unwrap();
        insert(&project, signed["body"].as_str().unwrap(), &signed["headers"].to_string());
        insert(&project, signed["body"].as_str().unwrap(), "{}");
        project.write("broken", "");
        consume(&project, "async");
        let failed = stored(&project, "failed");
        let mut said: Vec<String> = failed.iter().map(verified).collect();
        said.sort();
        assert_eq!((failed.len(), &said[..2]), (3, &[r"App\Run".to_owned(), r"App\Run".to_owned()][..]), "{said:?}");
        assert!(said[2].contains("requires a signature"), "{said:?}");
        project.run(&["failed", "remove", "--all", "--force"]).succeeds();
    }
}
