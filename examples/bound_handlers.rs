//! One message, two handlers, each with a queue and workers of its own; and one handler that is called before the others.
//!
//! ```text
//! cargo run --example bound_handlers
//! ```

use std::sync::{Arc, Mutex};

use minutely::config::Config;
use minutely::handler::{HandlerOptions, State};
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct PictureArrived {
    file: String,
}

#[derive(Serialize, Deserialize)]
struct PictureRemoved {
    file: String,
}

impl Message for PictureArrived {
    const TYPE: &'static str = r"App\Message\PictureArrived";
}

impl Message for PictureRemoved {
    const TYPE: &'static str = r"App\Message\PictureRemoved";
}

/// What was done, in its order. Handlers of several messages share it.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, what: &str, file: &str) {
        println!("{what} {file}");
        self.0.lock().unwrap().push(format!("{what} {file}"));
    }
}

/// Takes long, so it has a queue of its own.
async fn thumbnail(picture: PictureArrived, State(journal): State<Journal>) {
    journal.note("thumbnail of", &picture.file);
}

async fn notify(picture: PictureArrived, State(journal): State<Journal>) {
    journal.note("mail about", &picture.file);
}

async fn count(picture: PictureArrived, State(journal): State<Journal>) {
    journal.note("counted", &picture.file);
}

async fn forget(picture: PictureRemoved, State(journal): State<Journal>) {
    journal.note("forgot", &picture.file);
}

fn builder() -> AppBuilder {
    let config = Config::builder()
        .transport("images", "in-memory://")
        .transport("mail", "in-memory://")
        .route(PictureArrived::TYPE, ["images", "mail"]);
    App::builder()
        .config(config)
        .state(Journal::default())
        .handle_with(HandlerOptions::new().from_transport("images"), thumbnail)
        .handle_with(HandlerOptions::new().from_transport("mail"), notify)
        .handle_with(HandlerOptions::new().from_transport("mail").priority(10), count)
        // Without a transport: called for messages of each, and here at once, as nothing routes them.
        .handle(forget)
}

#[tokio::main]
async fn main() -> Result<(), minutely::Error> {
    let app = builder().build()?;
    let workers = [app.worker(["images"]).limit(1).spawn()?, app.worker(["mail"]).limit(1).spawn()?];
    app.dispatch(&PictureArrived { file: "cat.jpg".into() }).await?;
    for worker in workers {
        worker.wait().await?;
    }
    app.dispatch(&PictureRemoved { file: "cat.jpg".into() }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_worker_calls_the_handlers_of_its_transport() -> Result<(), minutely::Error> {
        let journal = Journal::default();
        let done = || std::mem::take(&mut *journal.0.lock().unwrap());
        let app = builder().state(journal.clone()).test()?;
        app.dispatch(&PictureArrived { file: "cat.jpg".into() }).await?;
        assert!(done().is_empty());
        app.worker(["images"]).limit(1).spawn()?.wait().await?;
        assert_eq!(done(), ["thumbnail of cat.jpg"]);
        app.worker(["mail"]).limit(1).spawn()?.wait().await?;
        assert_eq!(done(), ["counted cat.jpg", "mail about cat.jpg"]);
        app.dispatch(&PictureRemoved { file: "cat.jpg".into() }).await?;
        assert_eq!(done(), ["forgot cat.jpg"]);
        Ok(())
    }
}
