//! The mail server of `tests/interop/smtp_server.py`, in a project's folder.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Project, Running, wait_until};

/// Starts one, and returns its port. `None` where there is no mail server for tests, and the test is to be skipped.
pub fn start(project: &Project, certificate: &[&str]) -> Option<(Running, String)> {
    let installed = Command::new("/usr/bin/python3").args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        harness::skip("python3-aiosmtpd is not installed, .ci/run has its name");
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/smtp_server.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(project.path()).args(certificate).current_dir(project.path());
    let server = Running::start(project, "smtp", command);
    wait_until("the mail server listens", || project.file("port").exists());
    Some((server, fs::read_to_string(project.file("port")).unwrap()))
}

/// The mails that it got.
pub fn mails(project: &Project) -> Vec<Value> {
    project.lines("mails").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}
