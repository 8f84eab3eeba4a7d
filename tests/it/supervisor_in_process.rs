//! A supervisor inside of an application: this test program has it, and its workers are processes of `minutely`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use minutely::config::Config;
use minutely::handler::{HandlerError, State};
use minutely::message::{Envelope, Message};
use minutely::{App, Error, Job};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::support::{Project, process_exists, wait_until};

/// A folder whose configuration keeps one worker running.
fn project() -> Project {
    Project::new(&format!(
        r#"
transports:
  mail: "sqlite:var/q.db?queue_name=mail"
routing: {{'*': mail}}
handlers:
  Note: {{exec: [sh, -c, 'printf "%s\n" "$(cat)" >> handled']}}
  Slow: {{exec: [sh, -c, 'echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done; echo slow >> handled']}}
workers:
  - name: mail
    transports: [mail]
    options: [--time-limit=600, --sleep=50ms]
    command: ["{}", consume, "{{transports}}", "{{options}}"]
    autoscale: {{desired_size: 100, min: 1, max: 1}}
"#,
        env!("CARGO_BIN_EXE_minutely")
    ))
}

fn app(project: &Project) -> App {
    App::builder().config_file(project.file("config.yaml")).build().unwrap()
}

async fn send(app: &App, message_type: &str) {
    app.dispatch_envelope(Envelope::from_json(message_type, "{}")).await.unwrap();
}

/// The pid of the worker, once there is one.
fn worker(project: &Project) -> i32 {
    let mut workers = vec![];
    wait_until("a worker runs", || {
        workers = project.workers();
        !workers.is_empty()
    });
    assert_eq!(workers.len(), 1);
    workers[0]
}

#[test]
async fn its_workers_handle_messages_and_finish_what_they_have_in_hand_when_it_is_stopped() {
    let project = project();
    let app = app(&project);
    let supervisor = app.supervisor().spawn().unwrap();
    send(&app, "Note").await;
    wait_until("the message is handled", || !project.lines("handled").is_empty());
    let pid = worker(&project);
    send(&app, "Slow").await;
    wait_until("the slow one is begun", || !project.lines("begun").is_empty());
    let stopped = tokio::spawn(supervisor.stop());
    wait_until("producers are told", || !project.is_running("mail"));
    assert!(process_exists(pid), "it has a message in hand");
    project.write("go", "");
    stopped.await.unwrap().unwrap();
    assert_eq!(project.lines("handled"), ["{}", "slow"]);
    assert!(!process_exists(pid));
    assert!(project.workers().is_empty());
}

#[test]
async fn a_worker_that_dies_is_replaced_and_its_message_put_back_at_once() {
    let project = project();
    let app = app(&project);
    let supervisor = app.supervisor().spawn().unwrap();
    send(&app, "Slow").await;
    wait_until("the slow one is begun", || project.lines("begun").len() == 1);
    let first = worker(&project);
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_until("it is begun again", || project.lines("begun").len() == 2);
    assert_ne!(worker(&project), first);
    project.write("go", "");
    wait_until("it is handled", || project.lines("handled") == ["slow"]);
    supervisor.stop().await.unwrap();
}

#[test]
async fn left_workers_go_on_and_the_next_supervisor_finds_them() {
    let project = project();
    let app = app(&project);
    let (first, second) = (app.supervisor().spawn().unwrap(), app.supervisor().spawn().unwrap());
    let pid = worker(&project);
    first.leave().await.unwrap();
    assert_eq!(worker(&project), pid, "there is one supervisor at work, and it takes over the worker");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("the second one starts another", || project.workers().iter().any(|worker| *worker != pid));
    second.stop().await.unwrap();
    assert!(project.workers().is_empty());
}

#[test]
async fn a_state_directory_of_another_configuration_is_an_error() {
    let project = project();
    let supervisor = app(&project).supervisor().spawn().unwrap();
    worker(&project);
    supervisor.leave().await.unwrap();
    let other = App::builder().config(Config::builder()).dir(project.path()).build().unwrap();
    let error = other.supervisor().spawn().unwrap().stop().await.unwrap_err();
    assert!(matches!(error, Error::Supervisor(_)), "{error}");
    assert!(error.to_string().contains("is in use by another configuration"), "{error}");
    app(&project).supervisor().spawn().unwrap().stop().await.unwrap();
}

#[derive(Serialize, Deserialize)]
struct Note {}

impl Message for Note {
    const TYPE: &'static str = "Note";
}

#[test]
async fn workers_of_the_application_itself_need_its_arguments() {
    async fn nothing(_: Note) -> Result<(), HandlerError> {
        Ok(())
    }
    let config = |options: &[&str]| {
        let worker = serde_json::json!({ "transports": ["mail"], "options": options });
        Config::builder().transport("mail", "sqlite:var/q.db").worker(worker)
    };
    let project = Project::new("");
    let app = App::builder().config(config(&[])).dir(project.path()).handle(nothing).build().unwrap();
    assert!(matches!(app.supervisor().spawn(), Err(Error::WorkerArguments)));
    let wrong = App::builder().config(config(&["--slepp=1"])).dir(project.path()).handle(nothing);
    let error = wrong.worker_arguments(["consume"]).build().err().unwrap().to_string();
    assert!(error.contains("--slepp"), "{error}");
}

#[test]
async fn without_commands_of_its_own_its_jobs_run_in_this_process_and_end_with_it() {
    let project = Project::new("");
    let ran = Arc::new(AtomicU32::new(0));
    let count = async |State(ran): State<Arc<AtomicU32>>| {
        ran.fetch_add(1, Ordering::Relaxed);
    };
    let (begun, is_dropped) = (project.file("begun"), Arc::new(()));
    let held = Arc::clone(&is_dropped);
    let hang = move || {
        let (begun, held) = (begun.clone(), Arc::clone(&held));
        async move {
            let _held = held;
            std::fs::write(begun, "").unwrap();
            std::future::pending::<()>().await;
        }
    };
    let program = serde_json::json!([{ "name": "program", "schedule": "every 1s", "command": ["sh", "-c", "echo >> echoed; sleep 300"] }]);
    let app = App::builder()
        .config(Config::builder().set("cron", program))
        .dir(project.path())
        .state(Arc::clone(&ran))
        .job(Job::new("count", "every 1s", count))
        .job(Job::new("hang", "every 1s", hang))
        .build()
        .unwrap();
    let supervisor = app.supervisor().spawn().unwrap();
    until("all run", || {
        ran.load(Ordering::Relaxed) >= 2 && project.file("begun").exists() && !project.lines("echoed").is_empty()
    })
    .await;
    assert_eq!((project.lines("echoed").len(), Arc::strong_count(&is_dropped)), (1, 3), "none runs twice at once");
    supervisor.stop().await.unwrap();
    drop(app);
    assert_eq!(Arc::strong_count(&is_dropped), 1, "the function is dropped");
    wait_until("the program is ended", || project.processes().is_empty());
    let jobs =
        "cron: [{name: hang, schedule: every 1s, command: [a]}, {name: program, schedule: every 1s, command: [a]}]";
    project.write("config.yaml", jobs);
    for job in project.json(&["cron", "list"]).as_array().unwrap() {
        assert_eq!((&job["last_run"]["result"], &job["running"]), (&"interrupted".into(), &false.into()), "{job}");
    }
}

#[test]
fn a_function_that_computes_on_after_its_timeout_runs_once_at_a_time_in_this_process_too() {
    // Of its own, with a thread for the function, which blocks it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let project = Project::new("");
    let (begun, released) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (begins, release) = (Arc::clone(&begun), Arc::clone(&released));
    let compute = move || {
        let (begins, release) = (Arc::clone(&begins), Arc::clone(&release));
        async move {
            begins.fetch_add(1, Ordering::Relaxed);
            while !release.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let job = Job::new("compute", "every 1s", compute).timeout(Duration::from_millis(300));
    let app = App::builder().config(Config::builder()).dir(project.path()).job(job).build().unwrap();
    let supervisor = {
        let _entered = runtime.enter();
        app.supervisor().spawn().unwrap()
    };
    // A thread that leaves the timers to compute leaves them to nobody, until another one gets something to do
    // (tokio-rs/tokio#4730).
    let wait_until = |what: &str, condition: &dyn Fn() -> bool| {
        wait_until(what, || {
            runtime.spawn(async {});
            condition()
        });
    };
    wait_until("it begins", &|| begun.load(Ordering::Relaxed) == 1);
    // Due times pass, and each would be a run.
    let began = Instant::now();
    wait_until("it is not begun again", &|| {
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        began.elapsed() > Duration::from_secs(9)
    });
    released.store(true, Ordering::Relaxed);
    wait_until("it runs again", &|| begun.load(Ordering::Relaxed) >= 2);
    runtime.block_on(supervisor.stop()).unwrap();
}

/// Waits for a condition, and lets the tasks of this process run meanwhile.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
