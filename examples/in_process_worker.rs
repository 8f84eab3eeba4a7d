//! A worker in the application's own process: dispatched messages wake it, and it finishes what it has in hand at the end.
//!
//! ```text
//! cargo run --example in_process_worker
//! ```

use std::time::Duration;

use minutely::App;
use minutely::config::Config;
use minutely::message::Message;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Resize {
    picture: String,
}

impl Message for Resize {
    const TYPE: &'static str = "gallery.resize";
}

async fn resize(message: Resize) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    println!("{} is resized", message.picture);
}

async fn resize_all(pictures: &[&str]) -> Result<u64, Box<dyn std::error::Error>> {
    let config = Config::builder().transport("thumbs", "in-memory://").route(Resize::TYPE, ["thumbs"]);
    let app = App::builder().config(config).handle(resize).build()?;

    let worker = app.worker(["thumbs"]).concurrency(4).limit(pictures.len() as u64).spawn()?;
    for picture in pictures {
        app.dispatch(&Resize { picture: (*picture).to_owned() }).await?;
    }
    let summary = worker.wait().await?;
    Ok(summary.handled)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{} pictures", resize_all(&["a.jpg", "b.jpg", "c.jpg"]).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn all_pictures_are_resized() -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(super::resize_all(&["a.jpg", "b.jpg"]).await?, 2);
        Ok(())
    }
}
