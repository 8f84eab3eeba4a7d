//! A message, a handler, and all of minutely's commands.
//!
//! ```text
//! cargo run --example first_handler -- dispatch 'App\Message\SendEmail' '{"to":"ada@example.com"}'
//! cargo run --example first_handler -- consume mail --limit=1 -v
//! cargo run --example first_handler -- --help
//! ```

use std::process::ExitCode;

use minutely::App;
use minutely::handler::HandlerError;
use minutely::message::Message;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl Message for SendEmail {
    // The name on the wire: a PHP class where PHP shares the queue, and any stable name otherwise.
    const TYPE: &'static str = r"App\Message\SendEmail";
}

async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
    if !message.to.contains('@') {
        // No retry will make an address of it. Any other error (with `?`) is retried.
        return Err(HandlerError::unrecoverable(format!("\"{}\" is no address", message.to)));
    }
    println!("an e-mail to {}", message.to);
    Ok(())
}

fn main() -> ExitCode {
    minutely::cli::main(App::builder().config_file("examples/first_handler.yaml").handle(send_email))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_written_to_and_anything_else_is_kept_as_failed() -> Result<(), minutely::Error> {
        let app = App::builder().config_file("examples/first_handler.yaml").handle(send_email).test()?;
        app.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
        app.dispatch(&SendEmail { to: "nobody".into() }).await?;
        app.work_until_idle().await;
        assert_eq!(app.handled::<SendEmail>().only().to, "ada@example.com");
        assert_eq!(app.failed::<SendEmail>().only().to, "nobody");
        Ok(())
    }
}
