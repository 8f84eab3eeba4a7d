//! Tests of an application: delays and retries take no time, and what became of each message can be looked at.
//!
//! ```text
//! cargo test --example testing
//! ```

use std::time::Duration;

use minutely::config::Config;
use minutely::handler::HandlerError;
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Remind {
    who: String,
}

impl Message for Remind {
    const TYPE: &'static str = "calendar.remind";
}

async fn remind(message: Remind) -> Result<(), HandlerError> {
    if message.who.is_empty() {
        return Err(HandlerError::failed("there is nobody to remind"));
    }
    println!("{}, it is time!", message.who);
    Ok(())
}

/// The application, for `main` and for tests.
fn builder() -> AppBuilder {
    let reminders = serde_json::json!({
        "dsn": "redis://localhost/reminders",
        "retry_strategy": { "max_retries": 2, "delay": 600_000, "multiplier": 1, "jitter": 0 },
    });
    let config = Config::builder()
        .transport_with("reminders", reminders)
        .transport("failed", "redis://localhost/failed")
        .failure_transport("failed")
        .route(Remind::TYPE, ["reminders"]);
    App::builder().config(config).handle(remind)
}

async fn remind_later(app: &App, who: &str) -> Result<(), minutely::Error> {
    app.dispatch(&Remind { who: who.to_owned() }).delay(Duration::from_secs(3600)).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), minutely::Error> {
    remind_later(&builder().build()?, "Ada").await
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_reminder_comes_after_an_hour() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        remind_later(&app, "Ada").await?;
        assert_eq!(app.sent::<Remind>().only().delay, HOUR);

        app.work_for(HOUR - Duration::from_secs(1)).await;
        app.handled::<Remind>().assert_none();
        app.work_for(Duration::from_secs(2)).await;
        assert_eq!(app.handled::<Remind>().only().who, "Ada");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_three_times_ten_minutes_apart_and_then_kept() -> Result<(), minutely::Error> {
        let (app, begun) = (builder().test()?, Instant::now());
        app.dispatch(&Remind { who: String::new() }).await?;
        let worked = app.work_until_idle().await;
        assert_eq!((worked.handled, worked.failed), (0, 3));
        assert!(begun.elapsed() >= 2 * Duration::from_secs(600));
        let failed = app.failed::<Remind>().only();
        assert!(failed.error.unwrap().contains("nobody to remind"));
        Ok(())
    }
}
